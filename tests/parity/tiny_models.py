"""Tiny random models as their own libraries write them: Stable Diffusion, and models of masks with class heads."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    DetrConfig,
    Mask2FormerConfig,
    MaskFormerConfig,
    SwinConfig,
)
from transformers.models.mask2former import modeling_mask2former
from transformers.models.maskformer import modeling_maskformer

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def diffusion():
    """A UNet and a VAE of four levels each, as Stable Diffusion's, of few channels."""
    import diffusers

    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=2,
        cross_attention_dim=12,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 8, 12),
        layers_per_block=2,
        norm_num_groups=4,
        scaling_factor=0.18215,
    )
    return vae.eval(), unet.eval()


def write_diffusion(tmp_path: Path) -> nn.Module:
    """A Stable Diffusion of four words as diffusers writes it; its UNet."""
    vae, unet = diffusion()
    vae.save_pretrained(tmp_path / "vae")
    unet.save_pretrained(tmp_path / "unet")
    sizes = {"hidden_size": 12, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    CLIPTextModel(CLIPTextConfig(vocab_size=4, max_position_embeddings=5, **sizes)).save_pretrained(
        tmp_path / "text_encoder"
    )
    tokens = tmp_path / "tokenizer"
    tokens.mkdir()
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "b</w>": 3}
    (tokens / "vocab.json").write_text(json.dumps(vocabulary))
    (tokens / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(tokens / "vocab.json"), str(tokens / "merges.txt"), model_max_length=5).save_pretrained(tokens)
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"beta_start": 0.00085}')
    (tmp_path / "model_index.json").write_text("{}")
    return unet


def swin() -> SwinConfig:
    return SwinConfig(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
                      out_features=["stage1", "stage2", "stage3", "stage4"])  # fmt: skip


def write_masks(
    folder: Path, names: Sequence[str], monkeypatch: pytest.MonkeyPatch, *, kind: str = "mask2former"
) -> nn.Module:
    """Write a tiny random model as its library does; its losses would want scipy, which is not needed to write it."""
    torch.manual_seed(0)
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: place for place, name in enumerate(names)}}
    if kind == "mask2former":
        monkeypatch.setattr(modeling_mask2former, "requires_backends", lambda *_: None)
        config = Mask2FormerConfig(
            backbone_config=swin(), feature_size=32, mask_feature_size=32, hidden_dim=32, num_queries=20,
            num_attention_heads=4, dim_feedforward=32, encoder_feedforward_dim=32, encoder_layers=1, decoder_layers=2,
            **labels,
        )  # fmt: skip
        model = modeling_mask2former.Mask2FormerForUniversalSegmentation(config)
    else:
        monkeypatch.setattr(modeling_maskformer, "requires_backends", lambda *_: None)
        decoder = DetrConfig(d_model=32, encoder_layers=0, decoder_layers=1, decoder_attention_heads=4,
                             decoder_ffn_dim=32, num_queries=20)  # fmt: skip
        config = MaskFormerConfig(backbone_config=swin(), decoder_config=decoder, fpn_feature_size=32,
                                  mask_feature_size=32, **labels)  # fmt: skip
        model = modeling_maskformer.MaskFormerForInstanceSegmentation(config)
    with torch.no_grad():
        for name, one in model.named_parameters():  # apart from each other, so that segments are found
            if "quer" in name or "mask_embedder" in name or name.startswith("class_predictor"):
                one.normal_(std=0.5)
    model.eval().save_pretrained(folder)
    content = {"size": {"shortest_edge": 64, "longest_edge": 90}, "image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return model
