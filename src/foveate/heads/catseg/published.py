"""A published CAT-Seg file (2024 and 2023, B and L) as a folder that `foveate segment` opens.

The file holds everything: the aggregator, the whole CLIP, and in 2023 the backbone that guides. All sizes are read off
the shapes; what no shape shows (4 heads, windows of 12, 640 pixels at test) is CAT-Seg's. Deliberately absent:
reading the file (`foveate.clip.io.checkpoint_file`), CLIPs that are not OpenAI's, and the class names, which a file
lacks (all published ones were trained on COCO-Stuff).
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
from foveate.heads.catseg.product import About, build_catseg, save_catseg
from foveate.heads.common.product import CLIP_FOLDER, tower_digest, trained_state
from foveate.heads.common.published import count_blocks, refuse_unknown, shape_of

State = dict[str, Tensor]

WHAT = "a published CAT-Seg"

COCO_STUFF = tuple((name,) for name in NAMES)
BACKBONES = {"resnet": "resnet101", "swin": "swin_base_patch4_window12_384"}  # of 2023, B and L
PLACES = 24  # of the dense map, a side
HEAD_WIDTH = 64  # of OpenAI's attention
CONTEXT = 77  # tokens of a text
WIDEST = 1024  # tower of OpenAI's; larger ones of open_clip have heads of other widths and another activation
_CLIP_PARTS = re.compile(r"(.+\.attn\.)([qkv])_proj_weight")


@dataclass(frozen=True)
class Published:
    """What a published file holds."""

    network: Network
    clip_config: dict[str, Any]  # as open_clip describes a model
    clip: State  # in open_clip's names
    head: State  # in the names of `CatSeg`
    names: dict[str, str]  # from these to the file's
    unused: tuple[str, ...]  # of the file, ignored: stages of a backbone that guide nothing


def is_published(state: dict[str, Any]) -> bool:
    """Whether tensors are a published CAT-Seg's, by their names."""
    return any(key.startswith(HEAD) for key in state) and any(key.startswith(CLIP) for key in state)


def read_published(state: State, *, source: str, residual: Residual | None = None) -> Published:
    """Sort the tensors of a published file, rename them, and read the sizes off their shapes.

    Args:
        state: what stands under "model" in the file.
        source: the file, for messages.
        residual: see `CatSeg`; None: the version's. The file does not tell; one of 2023 by CLIPSelf's authors has cls.

    Raises:
        InputError: it lacks what sizes are read from, or has tensors that belong to no CAT-Seg; lists them.
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
    return Published(network, _describe_clip(clip, source=source), clip, head, names, tuple(unused))


def build_published(
    found: Published, *, source: str, classes: tuple[tuple[str, ...], ...] = COCO_STUFF
) -> tuple[CatSeg, str]:
    """Build a CAT-Seg with the weights of a published file.

    Args:
        found: of `read_published`.
        source: the file, for messages.
        classes: it was trained on, each with its words.

    Returns:
        The CAT-Seg in evaluation mode, and the digest of its CLIP.

    Raises:
        InputError: tensors are missing, left over or of another shape (with both shapes), or not finite.
    """
    name = f"the CLIP of {source}"
    model = build(found.clip_config, name=name, seed=0)
    _check_fit(model.state_dict(), found.clip, called=lambda key: f"{CLIP}{key}", source=source)
    model.load_state_dict(found.clip)
    clip = Clip(model.eval(), name=name, config=found.clip_config)
    digest = tower_digest(clip, whole=True)
    catseg = build_catseg(clip, found.network, classes=classes, pretrained=False, is_varied=False)
    own = {key: one for key, one in trained_state(catseg, frozen="clip.").items() if not key.startswith("clip.")}
    counts = {key: one for key, one in own.items() if key.endswith("num_batches_tracked")}
    head = {**counts, **found.head}  # detectron2's frozen BatchNorm does not count
    _check_fit(own, head, called=lambda key: found.names.get(key) or published_key(key), source=source)
    catseg.load_state_dict(head, strict=False)  # the names were compared; the CLIP has its weights
    return catseg.eval(), digest


def write_published(
    state: State,
    folder: Path,
    *,
    source: str,
    residual: Residual | None = None,
    classes: tuple[tuple[str, ...], ...] = COCO_STUFF,
) -> Published:
    """Write a published file as a CAT-Seg's folder with its CLIP inside, so that the folder may be moved.

    Args:
        state: as for `read_published`.
        folder: made if missing.
        source: the file, for messages.
        residual: as for `read_published`.
        classes: as for `build_published`.

    Returns:
        What was in the file.

    Raises:
        InputError: as `read_published` and `build_published`.
    """
    found = read_published(state, source=source, residual=residual)
    catseg, digest = build_published(found, source=source, classes=classes)
    save_clip(catseg.clip, folder / CLIP_FOLDER)
    about = About(
        model=CLIP_FOLDER,
        pretrained=None,
        tower=digest,
        network=found.network,
        classes=classes,
        novel=(),
        training={"file": Path(source).name},
        has_clip=True,
    )
    save_catseg(catseg, folder, about)
    return found


def _check_fit(wanted: State, got: State, *, called: Callable[[str], str], source: str) -> None:
    """Refuse tensors that do not fit; `called` gives the file's names."""
    problems = differences(wanted, got, called=called)
    if problems:
        raise InputError(
            f"{source}: need the weights of a published CAT-Seg; {problems}. Download it again, or give the file as "
            "CAT-Seg's own code wrote it."
        )


def _join_attention(clip: State) -> State:
    """Put apart matrices of queries, keys and values together, as OpenAI has them; biases are together anyway."""
    joined, parts = {}, {}
    for key, value in clip.items():
        part = _CLIP_PARTS.fullmatch(key)
        if part is None:
            joined[key] = value
        else:
            parts.setdefault(part[1], {})[part[2]] = value
    for place, one in parts.items():
        if len(one) == 3:
            joined[f"{place}in_proj_weight"] = torch.cat([one["q"], one["k"], one["v"]])
        else:
            joined |= {f"{place}{name}_proj_weight": value for name, value in one.items()}
    return joined


def _network(state: State, *, source: str, residual: Residual | None) -> Network:
    """The numbers of the network, from the shapes where these show them."""

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
    masks = [one for key, one in state.items() if key.startswith(HEAD) and key.endswith("attn_mask")]
    patch = shape(f"{CLIP}visual.conv1.weight")[-1]
    return Network(
        version=version,
        residual=residual or PUBLISHED[version],
        backbone=BACKBONES[kinds[0]] if kinds else None,
        size=384,
        clip_size=PLACES * patch,  # 384 of B, 336 of L
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
    """Which networks the tensors under "backbone." belong to."""
    beginnings = {"resnet": f"{BACKBONE}stem.", "swin": f"{BACKBONE}patch_embed."}
    return [kind for kind, start in beginnings.items() if any(key.startswith(start) for key in state)]


def _describe_clip(clip: State, *, source: str) -> dict[str, Any]:
    """OpenAI's CLIP of these sizes, in open_clip's words."""

    def shape(key: str, dims: int = 2) -> tuple[int, ...]:
        return shape_of(clip, key, dims=dims, source=source, what=WHAT, prefix=CLIP)

    width, _, _, patch = shape("visual.conv1.weight", 4)
    vocabulary, text_width = shape("token_embedding.weight")
    for what, found in (("image", width), ("text", text_width)):
        if found % HEAD_WIDTH or found > WIDEST:
            raise InputError(
                f"{source}: need an OpenAI CLIP, whose towers are multiples of {HEAD_WIDTH} and at most {WIDEST} wide; "
                f"its {what} tower is {found} wide, as open_clip's larger ones, which are not converted."
            )
    if shape("positional_embedding") != (CONTEXT, text_width):
        raise InputError(
            f"{source}: need an OpenAI CLIP, whose {CLIP}positional_embedding is ({CONTEXT}, {text_width}); got "
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
        "context_length": CONTEXT,
        "vocab_size": vocabulary,
        "width": text_width,
        "heads": text_width // HEAD_WIDTH,
        "layers": count_blocks(clip, "transformer.resblocks."),
    }
    statistics = {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)}
    sizes = {"embed_dim": shape("visual.proj")[1], "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    return {"model_cfg": sizes, "preprocess_cfg": {**statistics, "interpolation": "bicubic", "resize_mode": "shortest"}}
