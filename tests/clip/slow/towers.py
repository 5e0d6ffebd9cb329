"""Scaled-down CLIPs of every family, every number random, so that no weight can be forgotten unnoticed."""

from typing import Any

import open_clip
import torch
from timm.models import is_model, register_model
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

TEXT = {"context_length": 12, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
STATISTICS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}
# 3 x 3 patches of 8 pixels, 2 heads of 8, 4 blocks
VIT = {"image_size": 24, "patch_size": 8, "width": 16, "head_width": 8, "layers": 4, "mlp_ratio": 2.0}
# 4 x 4 patches of 8 pixels, 3 heads of 8, 4 blocks; rotary range 6 x 6, unlike the grid
EVA = {"timm_model_name": "eva02_foveate_test", "image_size": 32, "timm_pool": "token", "timm_proj": None}
# 2 x 2 locations of 32 pixels, 256 channels in 4 heads of 64; one block that changes nothing but its input
RN = {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "head_width": 64}
# 3 x 3 patches of 8 pixels, 3 heads of 8, 3 blocks; the rest as in open_clip's ViT-B-16-SigLIP, but for its tokenizer
SIGLIP = {"timm_model_name": "siglip_foveate_test", "image_size": 24, "timm_pool": "map", "timm_proj": "none"}
SIGLIP_TEXT = {**TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
HEADS = {"vit": 2, "eva": 3, "rn": 4, "siglip": 3}
ROTARY = 6
FAMILIES = ("vit", "vit-quickgelu", "vit-scaled", "eva", "rn", "siglip")


def eva02_foveate_test(pretrained: bool = False, num_classes: int = 12, global_pool: str = "token", **_: Any) -> Eva:
    return Eva(
        img_size=32,
        patch_size=8,
        embed_dim=24,
        depth=4,
        num_heads=3,
        qkv_fused=False,
        mlp_ratio=4 * 2 / 3,
        swiglu_mlp=True,
        scale_mlp=True,
        scale_attn_inner=True,
        use_rot_pos_emb=True,
        ref_feat_shape=(ROTARY, ROTARY),
        global_pool=global_pool,
        num_classes=num_classes,
    )


def siglip_foveate_test(
    pretrained: bool = False, num_classes: int = 0, global_pool: str = "map", **_: Any
) -> VisionTransformer:
    return VisionTransformer(
        img_size=24,
        patch_size=8,
        embed_dim=24,
        depth=3,
        num_heads=3,
        mlp_ratio=2.0,
        class_token=False,
        global_pool=global_pool,
        num_classes=num_classes,
    )


def register() -> None:
    """Make the two towers known to timm by name, as open_clip asks for them."""
    for tower in (eva02_foveate_test, siglip_foveate_test):
        if not is_model(tower.__name__):
            register_model(tower)


def shake(model: torch.nn.Module, seed: int, *, by_inputs: bool = False) -> None:
    """Give every parameter and every running statistic random values of a size that keeps activations moderate.

    `by_inputs` divides weights by the root of their inputs, where there are hundreds; 1.15 keeps the residual network's
    attention between uniform and a single location.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_scale = parameter.ndim == 1 and name.endswith("weight")
            is_matrix = parameter.ndim > 1 and name.endswith("weight")
            size = 1.15 * parameter[0].numel() ** -0.5 if is_matrix and by_inputs else 0.3
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator) + is_scale)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))


def build(family: str, seed: int) -> tuple[torch.nn.Module, dict[str, Any]]:
    """An open_clip module in evaluation mode and its description; `register` must have been called."""
    vision = {"eva": EVA, "rn": RN, "siglip": SIGLIP, "vit-scaled": {**VIT, "ls_init_value": 0.5}}.get(family, VIT)
    model_cfg: dict[str, Any] = {"embed_dim": 12, "vision_cfg": dict(vision), "text_cfg": dict(TEXT)}
    if family == "vit-quickgelu":
        model_cfg["quick_gelu"] = True
    if family == "siglip":
        model_cfg |= {"embed_dim": 24, "init_logit_bias": -10, "text_cfg": dict(SIGLIP_TEXT)}
    custom = family in ("eva", "siglip")
    model = open_clip.CustomTextCLIP(**model_cfg) if custom else open_clip.CLIP(**model_cfg)
    shake(model, seed, by_inputs=family == "rn")
    if custom:
        model_cfg["custom_text"] = True
    return model.eval(), {"model_cfg": model_cfg, "preprocess_cfg": dict(STATISTICS)}
