"""A published CAT-Seg file (2024 and 2023, B and L) as a folder for `foveate segment`.

The file has the aggregator, the whole CLIP (OpenAI's), and in 2023 the guidance backbone. Sizes are read from shapes;
hyperparameters that no shape shows (4 heads, windows of 12, 640 pixels at test) are CAT-Seg's. A file has no class
names; all published ones were trained on COCO-Stuff.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

from foveate.clip.io.describe import build
from foveate.clip.io.states import differences
from foveate.clip.io.weights import save_clip
from foveate.clip.model import Clip
from foveate.data.datasets.coco_stuff import NAMES
from foveate.errors import InputError
from foveate.heads.catseg.keys import BACKBONE, CLIP, HEAD, is_derived, is_unused, our_key, published_key
from foveate.heads.catseg.model import CatSeg, Network
from foveate.heads.catseg.names import PUBLISHED, Residual, Version
from foveate.heads.catseg.product import CLIP as FROZEN
from foveate.heads.catseg.product import About, build_catseg, save_catseg
from foveate.heads.common.product import CLIP_FOLDER, tower_digest, trained_state
from foveate.heads.common.published import count_blocks, refuse_unknown, shape_of

State = dict[str, Tensor]

WHAT = "a published CAT-Seg"

COCO_STUFF = tuple((name,) for name in NAMES)
BACKBONES = {"resnet": "resnet101", "swin": "swin_base_patch4_window12_384"}  # of 2023, B and L
GRID_SIDE = 24  # of the dense feature map
HEAD_WIDTH = 64  # of OpenAI's attention
CONTEXT_LENGTH = 77
MAX_WIDTH = 1024  # of OpenAI's towers; open_clip's larger ones have other head widths and another activation
_SEPARATE_MATRIX = re.compile(r"(.+\.attn\.)([qkv])_proj_weight")


@dataclass(frozen=True)
class PublishedFile:
    """The content of a published file."""

    network: Network
    clip_config: dict[str, Any]  # as open_clip describes a model
    clip: State  # in open_clip's names
    head: State  # in the names of `CatSeg`
    names: dict[str, str]  # from the names of `CatSeg` to the file's
    unused: tuple[str, ...]  # ignored names: stages of the backbone whose maps are not used


def is_published(state: dict[str, Any]) -> bool:
    """Whether a state dictionary is a published CAT-Seg's, by its names."""
    return any(key.startswith(HEAD) for key in state) and any(key.startswith(CLIP) for key in state)


def read_published(state: State, *, source: str, residual: Residual | None = None) -> PublishedFile:
    """Translate the names of a published file, and read the hyperparameters from its shapes.

    Args:
        state: under "model" in the file.
        source: the file, for messages.
        residual: see `CatSeg`; None: the version's. A file does not have it; one of 2023 by CLIPSelf's authors has cls.

    Raises:
        InputError: tensors that sizes are read from are missing, or tensors are unknown.
    """
    clip, head, names, unused, unknown = {}, {}, {}, [], []
    for key, value in state.items():
        if is_derived(key):
            continue
        if key.startswith(CLIP):
            clip[key.removeprefix(CLIP)] = value
        elif is_unused(key):
            unused.append(key)
        else:
            ours = our_key(key)
            if ours is None:
                unknown.append(key)
            else:
                head[ours], names[ours] = value.flatten() if "padding_" in key else value, key
    refuse_unknown(unknown, source=source, what=WHAT)
    clip = _join_attention(clip)
    network = _network(state, source=source, residual=residual)
    return PublishedFile(network, _describe_clip(clip, source=source), clip, head, names, tuple(unused))


def build_published(
    file: PublishedFile, *, source: str, classes: tuple[tuple[str, ...], ...] = COCO_STUFF
) -> tuple[CatSeg, str]:
    """Build a CAT-Seg with the weights of a published file.

    Args:
        file: of `read_published`.
        source: the file, for messages.
        classes: of the training data, each with its synonyms.

    Returns:
        The CAT-Seg in evaluation mode, and the digest of its CLIP.

    Raises:
        InputError: tensors are missing, unknown, of another shape, or not finite.
    """
    name = f"the CLIP of {source}"
    model = build(file.clip_config, name=name, seed=0)
    _check_fit(model.state_dict(), file.clip, called=lambda key: f"{CLIP}{key}", source=source)
    model.load_state_dict(file.clip)
    clip = Clip(model.eval(), name=name, config=file.clip_config)
    digest = tower_digest(clip, whole=True)
    catseg = build_catseg(clip, file.network, classes=classes, pretrained=False, augment=False)
    state = trained_state(catseg, frozen=FROZEN)
    expected = {key: value for key, value in state.items() if not key.startswith(FROZEN)}
    counts = {key: value for key, value in expected.items() if key.endswith("num_batches_tracked")}
    head = {**counts, **file.head}  # detectron2's frozen BatchNorm does not count
    _check_fit(expected, head, called=lambda key: file.names.get(key) or published_key(key), source=source)
    catseg.load_state_dict(head, strict=False)  # the names were compared; the CLIP has its weights
    return catseg.eval(), digest


def write_published(
    state: State,
    folder: Path,
    *,
    source: str,
    residual: Residual | None = None,
    classes: tuple[tuple[str, ...], ...] = COCO_STUFF,
) -> PublishedFile:
    """Write a published file as a folder with a CAT-Seg and its CLIP; see `read_published` and `build_published`."""
    file = read_published(state, source=source, residual=residual)
    catseg, digest = build_published(file, source=source, classes=classes)
    save_clip(catseg.clip, folder / CLIP_FOLDER)
    about = About(
        model=CLIP_FOLDER,
        pretrained=None,
        tower=digest,
        network=file.network,
        classes=classes,
        novel=(),
        training={"file": Path(source).name},
        has_clip=True,
    )
    save_catseg(catseg, folder, about)
    return file


def _check_fit(expected: State, state: State, *, called: Callable[[str], str], source: str) -> None:
    """Refuse tensors that do not fit; `called` returns the file's names."""
    problems = differences(expected, state, called=called)
    if problems:
        raise InputError(
            f"{source}: need the weights of a published CAT-Seg; {problems}. Download it again, or give the file as "
            "CAT-Seg's own code wrote it."
        )


def _join_attention(clip: State) -> State:
    """Concatenate matrices of queries, keys and values, as in OpenAI's CLIP; biases are concatenated already."""
    joined, parts = {}, {}
    for key, value in clip.items():
        part = _SEPARATE_MATRIX.fullmatch(key)
        if part is None:
            joined[key] = value
        else:
            parts.setdefault(part[1], {})[part[2]] = value
    for prefix, matrices in parts.items():
        if len(matrices) == 3:
            joined[f"{prefix}in_proj_weight"] = torch.cat([matrices[name] for name in "qkv"])
        else:
            joined |= {f"{prefix}{name}_proj_weight": value for name, value in matrices.items()}
    return joined


def _network(state: State, *, source: str, residual: Residual | None) -> Network:
    """The hyperparameters, from shapes where possible."""

    def shape(key: str, dims: int = 4) -> tuple[int, ...]:
        return shape_of(state, key, dims=dims, source=source, what=WHAT)

    has_taps, kinds = "upsample1.weight" in state, _backbone_kinds(state)
    if has_taps == bool(kinds) or len(kinds) > 1:
        got = f"{'upsample1' if has_taps else 'no upsample1'} and {' and '.join(kinds) or 'no backbone'}"
        raise InputError(
            f"{source}: need a CAT-Seg of 2024, with upsample1 and upsample2, or of 2023, with a ResNet or a Swin "
            f"under {BACKBONE}; got {got}. Give the file as CAT-Seg's own code wrote it."
        )
    version: Version = "2024" if has_taps else "2023"
    hidden = shape(f"{HEAD}conv1.weight")[0]
    masks = [value for key, value in state.items() if key.startswith(HEAD) and key.endswith("attn_mask")]
    patch = shape(f"{CLIP}visual.conv1.weight")[-1]
    return Network(
        version=version,
        residual=residual or PUBLISHED[version],
        backbone=BACKBONES[kinds[0]] if kinds else None,
        size=384,
        clip_size=GRID_SIDE * patch,  # B: 384, L: 336
        test_size=640,
        longest=2560,
        stride=256,
        window=int(masks[0].shape[-1] ** 0.5) if masks else 12,
        hidden=hidden,
        guidance=shape(f"{HEAD}guidance_projection.0.weight")[0],
        decoder=(
            shape(f"{HEAD}decoder1.conv.double_conv.0.weight")[0],
            shape(f"{HEAD}decoder2.conv.double_conv.0.weight")[0],
        ),
        decoder_guidance=(
            shape(f"{HEAD}decoder_guidance_projection.0.0.weight")[0],
            shape(f"{HEAD}decoder_guidance_projection.1.0.weight")[0],
        ),
        tower_guidance=(shape("upsample1.weight")[1], shape("upsample2.weight")[1]) if has_taps else (256, 128),
        heads=4,
        layers=count_blocks(state, f"{HEAD}layers."),
        most=256,
    )


def _backbone_kinds(state: State) -> list[str]:
    """The kinds of networks that the tensors under "backbone." belong to."""
    prefixes = {"resnet": f"{BACKBONE}stem.", "swin": f"{BACKBONE}patch_embed."}
    return [kind for kind, prefix in prefixes.items() if any(key.startswith(prefix) for key in state)]


def _describe_clip(clip: State, *, source: str) -> dict[str, Any]:
    """The configuration of OpenAI's CLIP of these sizes, as open_clip writes it."""

    def shape(key: str, dims: int = 2) -> tuple[int, ...]:
        return shape_of(clip, key, dims=dims, source=source, what=WHAT, prefix=CLIP)

    width, _, _, patch = shape("visual.conv1.weight", 4)
    vocabulary, text_width = shape("token_embedding.weight")
    for tower, size in (("image", width), ("text", text_width)):
        if size % HEAD_WIDTH or size > MAX_WIDTH:
            raise InputError(
                f"{source}: need an OpenAI CLIP, with towers at most {MAX_WIDTH} wide, in multiples of {HEAD_WIDTH}; "
                f"its {tower} tower is {size} wide, as open_clip's larger ones, which are not converted."
            )
    if shape("positional_embedding") != (CONTEXT_LENGTH, text_width):
        raise InputError(
            f"{source}: need an OpenAI CLIP, whose {CLIP}positional_embedding is ({CONTEXT_LENGTH}, {text_width}); got "
            f"{shape('positional_embedding')}."
        )
    vision = {
        "image_size": round((shape("visual.positional_embedding")[0] - 1) ** 0.5) * patch,
        "patch_size": patch,
        "width": width,
        "layers": count_blocks(clip, "visual.transformer.resblocks."),
        "head_width": HEAD_WIDTH,
    }
    text = {
        "context_length": CONTEXT_LENGTH,
        "vocab_size": vocabulary,
        "width": text_width,
        "heads": text_width // HEAD_WIDTH,
        "layers": count_blocks(clip, "transformer.resblocks."),
    }
    statistics = {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)}
    sizes = {"embed_dim": shape("visual.proj")[1], "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    return {"model_cfg": sizes, "preprocess_cfg": {**statistics, "interpolation": "bicubic", "resize_mode": "shortest"}}
