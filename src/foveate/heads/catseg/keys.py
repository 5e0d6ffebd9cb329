"""Names of tensors in published CAT-Seg files, and what they are called here (of 2024 and of 2023).

    sem_seg_head.predictor.transformer.   the aggregator
    sem_seg_head.predictor.clip_model.    the whole CLIP, in OpenAI's names
    upsample1, upsample2                  2024: what makes two taps of the tower finer
    backbone.                             2023: detectron2's ResNet-101, or a Swin-B with a LayerNorm a map

Each table has their beginnings of names beside ours, and is read in both directions. Deliberately absent: the values
(`foveate.heads.catseg.published`).
"""

import re

HEAD = "sem_seg_head.predictor.transformer."
CLIP = "sem_seg_head.predictor.clip_model."
BACKBONE = "backbone."

_TOP = (
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
)
_SPACE = (
    ("norm1", "norm1"),
    ("norm2", "norm2"),
    ("attn.q", "q"),
    ("attn.k", "k"),
    ("attn.v", "v"),
    ("attn.proj", "proj"),
    ("mlp", "mlp"),
)
_LAYER = (  # within a layer
    ("swin_block.guidance_norm", "guidance_norm"),
    *(
        (f"swin_block.block_{place + 1}.{theirs}", f"space.{place}.{ours}")
        for place in (0, 1)
        for theirs, ours in _SPACE
    ),
    ("attention.attention", "classes"),
    ("attention.MLP.0", "classes.mlp.fc1"),
    ("attention.MLP.2", "classes.mlp.fc2"),
    ("attention.norm1", "classes.norm1"),
    ("attention.norm2", "classes.norm2"),
    ("attention.padding_tokens", "classes.padding"),  # (1, 1, C) there, (C,) here
    ("attention.padding_guidance", "classes.padding_text"),
)
_DERIVED = re.compile(r"\.(attn_mask|relative_position_index)$")  # tables that every model computes again
_UNUSED = re.compile(r"^backbone\.(res5|layers\.3|layers\.2\.downsample|norm3)\.")  # a stage that guides nothing
_RESNET = (  # detectron2's names of a residual network -> torchvision's and timm's
    (r"stem\.conv1\.norm\.(\w+)", r"bn1.\1"),
    (r"stem\.conv1\.weight", r"conv1.weight"),
    (r"res([2-5])\.(\d+)\.conv(\d)\.norm\.(\w+)", r"layer{}.\2.bn\3.\4"),
    (r"res([2-5])\.(\d+)\.conv(\d)\.weight", r"layer{}.\2.conv\3.weight"),
    (r"res([2-5])\.(\d+)\.shortcut\.norm\.(\w+)", r"layer{}.\2.downsample.1.\3"),
    (r"res([2-5])\.(\d+)\.shortcut\.weight", r"layer{}.\2.downsample.0.weight"),
)
_SWIN = (  # Swin's own names -> timm's; it merges patches at the end of a stage, timm at the beginning of the next
    (r"(patch_embed\..+)", r"network.\1"),
    (r"layers\.(\d+)\.(blocks\..+)", r"network.layers_\1.\2"),
    (r"layers\.(\d+)\.(downsample\..+)", r"network.layers_{}.\2"),
    (r"norm(\d)\.(\w+)", r"norms.\1.\2"),
)


def is_derived(key: str) -> bool:
    """Whether a tensor of the file holds a table that every model computes again."""
    return _DERIVED.search(key) is not None


def is_unused(key: str) -> bool:
    """Whether a tensor belongs to a stage of a backbone whose map guides nothing."""
    return _UNUSED.search(key) is not None


def head_key(theirs: str) -> str | None:
    """What a tensor of the aggregator, or of what makes taps finer, is called in `CatSeg`; None: it is neither."""
    layer = re.match(rf"{re.escape(HEAD)}(layers\.\d+\.)(.+)", theirs)
    if layer is None:
        return _replace_beginning(theirs, _TOP)
    found = _replace_beginning(layer[2], _LAYER)
    return None if found is None else f"aggregator.{layer[1]}{found}"


def published_head_key(ours: str) -> str:
    """What a tensor of `CatSeg` is called in a published file; the inverse of `head_key`."""
    layer = re.match(r"aggregator\.(layers\.\d+\.)(.+)", ours)
    if layer is None:
        return _replace_beginning(ours, _flipped(_TOP)) or ours
    return f"{HEAD}{layer[1]}{_replace_beginning(layer[2], _flipped(_LAYER)) or layer[2]}"


def backbone_key(theirs: str) -> str | None:
    """What a tensor of the backbone is called in `CatSeg`; None: it is not of a ResNet or a Swin."""
    name = theirs.removeprefix(BACKBONE)
    for pattern, ours in _RESNET:
        if found := re.fullmatch(pattern, name):
            stage = int(found[1]) - 1 if "{}" in ours else 0  # res2 is layer1
            return f"{BACKBONE}network.{found.expand(ours).format(stage)}"
    for pattern, ours in _SWIN:
        if found := re.fullmatch(pattern, name):
            stage = int(found[1]) + 1 if "{}" in ours else 0
            return f"{BACKBONE}{found.expand(ours).format(stage)}"
    return None


def _replace_beginning(name: str, table: tuple[tuple[str, str], ...]) -> str | None:
    """A name with its beginning replaced by the longest entry of a table that it begins with."""
    fits = [(old, new) for old, new in table if name == old or name.startswith(f"{old}.")]
    if not fits:
        return None
    old, new = max(fits, key=lambda pair: len(pair[0]))
    return new + name[len(old) :]


def _flipped(table: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    return tuple((ours, theirs) for theirs, ours in table)
