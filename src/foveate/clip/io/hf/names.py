"""Names of weights: open_clip's to those of Hugging Face transformers' CLIPModel and SiglipModel, and back.

One table per family is used in both directions. Beyond names: transformers has separate queries, keys and values where
open_clip has one matrix, in SigLIP's pool the other way round, and both projections of CLIP are transposed.
"""

import re

import torch
from torch import Tensor

Pairs = tuple[tuple[str, str], ...]  # prefixes of names in transformers and open_clip; * is the index of a block

_RESBLOCK = (
    ("layer_norm1.", "ln_1."),
    ("layer_norm2.", "ln_2."),
    ("self_attn.qkv.", "attn.in_proj_"),
    ("self_attn.out_proj.", "attn.out_proj."),
    ("mlp.fc1.", "mlp.c_fc."),
    ("mlp.fc2.", "mlp.c_proj."),
)
_TIMM_BLOCK = (
    ("layer_norm1.", "norm1."),
    ("layer_norm2.", "norm2."),
    ("self_attn.qkv.", "attn.qkv."),
    ("self_attn.out_proj.", "attn.proj."),
    ("mlp.", "mlp."),
)


def _block(theirs: str, ours: str, pairs: Pairs) -> Pairs:
    return tuple((f"{theirs}.encoder.layers.*.{a}", f"{ours}.*.{b}") for a, b in pairs)


_CLIP: Pairs = (
    ("logit_scale", "logit_scale"),
    ("text_model.embeddings.token_embedding.", "token_embedding."),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    *_block("text_model", "transformer.resblocks", _RESBLOCK),
    ("text_model.final_layer_norm.", "ln_final."),
    ("text_projection.weight", "text_projection"),
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.patch_embedding.", "visual.conv1."),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.pre_layrnorm.", "visual.ln_pre."),  # spelled so in transformers
    *_block("vision_model", "visual.transformer.resblocks", _RESBLOCK),
    ("vision_model.post_layernorm.", "visual.ln_post."),
    ("visual_projection.weight", "visual.proj"),
)
_TRANSPOSED = ("text_projection", "visual.proj")
_SIGLIP: Pairs = (
    ("logit_scale", "logit_scale"),
    ("logit_bias", "logit_bias"),
    ("text_model.embeddings.token_embedding.", "text.token_embedding."),
    ("text_model.embeddings.position_embedding.weight", "text.positional_embedding"),
    *_block("text_model", "text.transformer.resblocks", _RESBLOCK),
    ("text_model.final_layer_norm.", "text.ln_final."),
    ("text_model.head.", "text.text_projection."),
    ("vision_model.embeddings.patch_embedding.", "visual.trunk.patch_embed.proj."),
    ("vision_model.embeddings.position_embedding.weight", "visual.trunk.pos_embed"),
    *_block("vision_model", "visual.trunk.blocks", _TIMM_BLOCK),
    ("vision_model.post_layernorm.", "visual.trunk.norm."),
    ("vision_model.head.probe", "visual.trunk.attn_pool.latent"),
    ("vision_model.head.attention.in_proj_", "visual.trunk.attn_pool.qkv."),
    ("vision_model.head.attention.out_proj.", "visual.trunk.attn_pool.proj."),
    ("vision_model.head.layernorm.", "visual.trunk.attn_pool.norm."),
    ("vision_model.head.mlp.", "visual.trunk.attn_pool.mlp."),
)
HF_PREFIXES = ("text_model.", "vision_model.", "text_projection.", "visual_projection.", "logit_")
_THEIR_QKV = ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj.")
_POOL = "visual.trunk.attn_pool."


def is_huggingface(state: dict[str, Tensor]) -> bool:
    """Whether weights have the names of transformers' CLIPModel or SiglipModel."""
    return "vision_model.embeddings.patch_embedding.weight" in state


def from_huggingface(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights of CLIPModel or SiglipModel to open_clip's names and shapes; unknown names are not changed."""
    siglip = "vision_model.head.probe" in state
    pairs = _SIGLIP if siglip else _CLIP
    ours = {_rename(key, pairs): value for key, value in _join(state, _THEIR_QKV, "self_attn.qkv.").items()}
    if not siglip:
        return {key: value.T if key in _TRANSPOSED and value.ndim == 2 else value for key, value in ours.items()}
    ours = {key: value.reshape(()) if _is_scalar(key, value) else value for key, value in ours.items()}
    if "visual.trunk.pos_embed" in ours:
        ours["visual.trunk.pos_embed"] = ours["visual.trunk.pos_embed"].unsqueeze(0)
    for suffix in ("weight", "bias"):
        joined = ours.pop(f"{_POOL}qkv.{suffix}", None)
        if joined is not None:
            width = len(joined) // 3
            ours[f"{_POOL}q.{suffix}"], ours[f"{_POOL}kv.{suffix}"] = joined[:width], joined[width:]
    return ours


def to_huggingface(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights of an open_clip ViT or SigLIP to transformers' names and shapes; the inverse."""
    if f"{_POOL}latent" not in state:
        bare = {key.removeprefix("text."): value for key, value in state.items()}  # of a CustomTextCLIP
        bare = {key: value.T if key in _TRANSPOSED else value for key, value in bare.items()}
        return _split({_rename(key, _back(_CLIP)): value for key, value in bare.items()})
    ours = {key: value.reshape(1) if _is_scalar(key, value) else value for key, value in state.items()}
    ours["visual.trunk.pos_embed"] = ours["visual.trunk.pos_embed"].squeeze(0)
    ours = _join(ours, (f"{_POOL}q.", f"{_POOL}kv."), f"{_POOL}qkv.")
    return _split({_rename(key, _back(_SIGLIP)): value for key, value in ours.items()})


def _rename(key: str, pairs: Pairs) -> str:
    number = re.search(r"\.\d+\.", key)
    pattern = key.replace(number[0], ".*.", 1) if number else key
    for old, new in pairs:
        if pattern.startswith(old):
            return (new + pattern[len(old) :]).replace(".*.", number[0] if number else ".*.")
    return key


def _back(pairs: Pairs) -> Pairs:
    return tuple((ours, theirs) for theirs, ours in pairs)


def _join(state: dict[str, Tensor], parts: tuple[str, ...], whole: str) -> dict[str, Tensor]:
    """Concatenate the rows of matrices and biases that are one tensor in the other library."""
    joined = dict(state)
    for key in state:
        names = [key.replace(parts[0], part) for part in parts]
        if parts[0] in key and all(name in state for name in names):
            joined[key.replace(parts[0], whole)] = torch.cat([joined.pop(name) for name in names])
    return joined


def _split(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Split fused queries, keys and values."""
    split = {}
    for key, value in state.items():
        names = [key.replace("self_attn.qkv.", part) for part in _THEIR_QKV] if "self_attn.qkv." in key else [key]
        split |= dict(zip(names, value.chunk(3) if len(names) == 3 else [value], strict=True))
    return split


def _is_scalar(key: str, value: Tensor) -> bool:
    return key in ("logit_scale", "logit_bias") and value.numel() == 1
