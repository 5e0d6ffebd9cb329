"""Scaled-down towers of both families, every parameter random, so that no weight can be forgotten unnoticed."""

from collections.abc import Callable
from typing import Any

import open_clip
import pytest
import torch
from timm.models import register_model
from timm.models.eva import Eva

from saccade.clip.model import Clip

TEXT = {"context_length": 12, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
STATISTICS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}
# 3 x 3 patches of 8 pixels, 2 heads of 8, 3 blocks
VIT = {"image_size": 24, "patch_size": 8, "width": 16, "head_width": 8, "layers": 3, "mlp_ratio": 2.0}
# 4 x 4 patches of 8 pixels, 3 heads of 8, 3 blocks; rotary range 6 x 6, unlike the grid
EVA = {"timm_model_name": "eva02_saccade_test", "image_size": 32, "timm_pool": "token", "timm_proj": None}


def eva02_saccade_test(pretrained: bool = False, num_classes: int = 12, global_pool: str = "token", **_: Any) -> Eva:
    return Eva(
        img_size=32,
        patch_size=8,
        embed_dim=24,
        depth=3,
        num_heads=3,
        qkv_fused=False,
        mlp_ratio=4 * 2 / 3,
        swiglu_mlp=True,
        scale_mlp=True,
        scale_attn_inner=True,
        use_rot_pos_emb=True,
        ref_feat_shape=(6, 6),
        global_pool=global_pool,
        num_classes=num_classes,
    )


@pytest.fixture(scope="session", autouse=True)
def small_eva_is_known_to_timm() -> None:
    register_model(eva02_saccade_test)


def shake(model: torch.nn.Module, seed: int) -> None:
    """Give every parameter random values of a size that keeps activations moderate."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_scale = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + is_scale)


@pytest.fixture(scope="session")
def make_clip(small_eva_is_known_to_timm: None) -> Callable[..., Clip]:
    """Build a small random CLIP: make_clip("vit" | "vit-quickgelu" | "vit-scaled" | "eva", seed=0)."""

    def build(family: str, *, seed: int = 0) -> Clip:
        model_cfg: dict[str, Any] = {"embed_dim": 12, "vision_cfg": EVA if family == "eva" else VIT, "text_cfg": TEXT}
        if family == "vit-quickgelu":
            model_cfg["quick_gelu"] = True
        if family == "vit-scaled":
            model_cfg["vision_cfg"] = {**VIT, "ls_init_value": 0.5}
        model = open_clip.CustomTextCLIP(**model_cfg) if family == "eva" else open_clip.CLIP(**model_cfg)
        shake(model, seed)
        if family == "eva":
            model_cfg["custom_text"] = True
        config = {"model_cfg": model_cfg, "preprocess_cfg": dict(STATISTICS)}
        return Clip(model.eval(), name=f"small-{family}", config=config)

    return build
