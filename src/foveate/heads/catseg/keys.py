"""Names of tensors in published CAT-Seg files (2024 and 2023), and their names here.

sem_seg_head.predictor.transformer.   the aggregator
sem_seg_head.predictor.clip_model.    the whole CLIP, in OpenAI's names
upsample1, upsample2                  2024: upsampling of two taps of the tower
backbone.                             2023: detectron2's ResNet-101, or a Swin-B with a LayerNorm per map
"""

import re

from foveate.heads.common.published import Table, flipped, rename

HEAD = "sem_seg_head.predictor.transformer."
CLIP = "sem_seg_head.predictor.clip_model."
BACKBONE = "backbone."

_ATTENTION = (("norm1", "norm1"), ("norm2", "norm2"), ("attn.q", "q"), ("attn.k", "k"), ("attn.v", "v"),
              ("attn.proj", "proj"), ("mlp", "mlp"))  # fmt: skip
_LAYER = (
    ("swin_block.guidance_norm", "guidance_norm"),
    *((f"swin_block.block_{n + 1}.{theirs}", f"space.{n}.{ours}") for n in (0, 1) for theirs, ours in _ATTENTION),
    ("attention.attention", "classes"),
    ("attention.MLP.0", "classes.mlp.fc1"),
    ("attention.MLP.2", "classes.mlp.fc2"),
    ("attention.norm1", "classes.norm1"),
    ("attention.norm2", "classes.norm2"),
    ("attention.padding_tokens", "classes.padding"),  # (1, 1, C) there, (C,) here
    ("attention.padding_guidance", "classes.padding_text"),
)
_HEAD: Table = (
    ("upsample1", "tower_guidance.middle"),
    ("upsample2", "tower_guidance.fine"),
    (f"{HEAD}conv1", "aggregator.embed"),
    (f"{HEAD}guidance_projection.0", "aggregator.picture.0"),
    (f"{HEAD}text_guidance_projection.0", "aggregator.text.0"),
    (f"{HEAD}decoder_guidance_projection.0.0", "aggregator.decoder.first.guide.0"),
    (f"{HEAD}decoder_guidance_projection.1.0", "aggregator.decoder.second.guide.0"),
    (f"{HEAD}decoder1.up", "aggregator.decoder.first.up"),
    (f"{HEAD}decoder2.up", "aggregator.decoder.second.up"),
    (f"{HEAD}decoder1.conv.double_conv", "aggregator.decoder.first.convs"),
    (f"{HEAD}decoder2.conv.double_conv", "aggregator.decoder.second.convs"),
    (f"{HEAD}head", "aggregator.decoder.logit"),
    *((f"{HEAD}layers.*.{theirs}", f"aggregator.layers.*.{ours}") for theirs, ours in _LAYER),
)
_BACKBONE: Table = (  # detectron2's ResNet -> torchvision's and timm's names; res2 is layer1
    ("backbone.stem.conv1", "backbone.network.conv1"),
    ("backbone.stem.conv1.norm", "backbone.network.bn1"),
    *(
        (f"backbone.res{stage + 1}.*.{theirs}", f"backbone.network.layer{stage}.*.{ours}")
        for stage in range(1, 5)
        for theirs, ours in (
            *((f"conv{n}", f"conv{n}") for n in (1, 2, 3)),
            *((f"conv{n}.norm", f"bn{n}") for n in (1, 2, 3)),
            ("shortcut", "downsample.0"),
            ("shortcut.norm", "downsample.1"),
        )
    ),
    # Swin's own names -> timm's; it merges patches at the end of a stage, timm at the beginning of the next
    ("backbone.patch_embed", "backbone.network.patch_embed"),
    *((f"backbone.layers.{n}.blocks", f"backbone.network.layers_{n}.blocks") for n in range(4)),
    *((f"backbone.layers.{n}.downsample", f"backbone.network.layers_{n + 1}.downsample") for n in range(4)),
    *((f"backbone.norm{n}", f"backbone.norms.{n}") for n in range(4)),
)
_DERIVED = re.compile(r"\.(attn_mask|relative_position_index)$")  # tables that every model computes
_UNUSED = re.compile(r"^backbone\.(res5|layers\.3|layers\.2\.downsample|norm3)\.")  # stages whose maps are not used


def is_derived(key: str) -> bool:
    """Whether a tensor is a table that every model computes."""
    return _DERIVED.search(key) is not None


def is_unused(key: str) -> bool:
    """Whether a tensor belongs to a stage of a backbone whose map is not used."""
    return _UNUSED.search(key) is not None


def our_key(theirs: str) -> str | None:
    """The name in `CatSeg` of a tensor of the aggregator, the upsampling or the backbone; None: unknown."""
    return rename(theirs, _BACKBONE if theirs.startswith(BACKBONE) else _HEAD)


def published_key(ours: str) -> str:
    """The inverse of `our_key` for the aggregator and the upsampling."""
    return rename(ours, flipped(_HEAD)) or ours
