"""Published F-ViT files (mmdet checkpoints of OV-COCO and OV-LVIS) as detectors of this package (Sec. 3.3).

    {"state_dict": {...}, "meta": ..., "optimizer": ...}
        backbone.visual.*                image tower, in EVA-CLIP's names
        backbone.interpolate*, neck.*    pyramid
        rpn_head.*, roi_head.*           both stages; all_embeddings: text embeddings, background last

A file has no text tower (it comes from a CLIP of the same architecture), no class names, and no base and novel classes
(`foveate.data.splits`).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from foveate.clip.io.layouts import drop_derived, rename_eva
from foveate.clip.io.states import differences, put_state
from foveate.clip.model import Clip
from foveate.errors import InputError, listed
from foveate.heads.common.product import trained_state
from foveate.heads.common.published import Table, refuse_unknown, rename, shape_of
from foveate.heads.fvit.detector import FViT, Network
from foveate.heads.fvit.names import Benchmark
from foveate.heads.fvit.product import TOWER

_NORMED = (  # convolutions with or without BatchNorm
    ("neck.lateral_convs", "pyramid.top_down.inner_blocks"),
    ("neck.fpn_convs", "pyramid.top_down.layer_blocks"),
    ("rpn_head.rpn_conv", "rpn.network.head.conv"),
    ("roi_head.bbox_head.shared_convs", "box_head.convs"),
    ("roi_head.mask_head.convs", "mask_head.convs"),
)
TABLE: Table = (
    *((f"{theirs}.*.conv", f"{ours}.*.0") for theirs, ours in _NORMED),
    *((f"{theirs}.*.bn", f"{ours}.*.1") for theirs, ours in _NORMED),
    ("backbone.interpolate1", "pyramid.scales.0"),
    ("backbone.interpolate2.0", "pyramid.scales.1"),
    ("rpn_head.rpn_cls", "rpn.network.head.cls_logits"),
    ("rpn_head.rpn_reg", "rpn.network.head.bbox_pred"),
    ("roi_head.bbox_head.shared_fcs.0", "box_head.shared.1"),
    ("roi_head.bbox_head.shared_fcs.1", "box_head.shared.3"),
    ("roi_head.bbox_head.cls_fcs.0", "box_head.embed"),
    ("roi_head.bbox_head.reg_fcs.0", "box_head.box.0"),
    ("roi_head.bbox_head.fc_reg", "box_head.box.2"),
    ("roi_head.mask_head.upsample", "mask_head.up.0"),
    ("roi_head.mask_head.conv_logits", "mask_head.out"),
)
_BOX, _TOWER = "roi_head.bbox_head.", "backbone.visual."
_TEMPERATURE, _TEXT, _CLASS_LAYER = f"{_BOX}detect_temperature", f"{_BOX}all_embeddings", f"{_BOX}fc_cls."
WHAT = "a whole F-ViT as its own code wrote it"
MIN_COSINE = 0.5  # of a file's text embedding and that of its name; other templates lower it, other names more
MIN_IN_ORDER = 0.9  # fraction of embeddings nearest to their name in order, if several are nearest to one name


@dataclass(frozen=True)
class PublishedFile:
    """The content of a published file, in this package's names."""

    head: dict[str, Tensor]  # the detector without tower and text embeddings
    tower: dict[str, Tensor]  # of open_clip's `visual`
    classes: int  # K
    text: Float[Tensor, "K1 D"] | None  # of the classes and, last, of background
    unused: tuple[str, ...]  # ignored names: the class layer under the text embeddings, rotary tables


def is_published_fvit(state: dict[str, Tensor]) -> bool:
    """Whether a state dictionary is an F-ViT's as its own trainer writes it."""
    return _TEMPERATURE in state and any(name.startswith("rpn_head.") for name in state)


def take_apart(state: dict[str, Tensor], *, source: str) -> PublishedFile:
    """Translate the names of a published file.

    Args:
        state: under "state_dict" of the file.
        source: the file, for messages.

    Raises:
        InputError: the number of classes is not found, or values are not finite.
    """
    broken = [name for name, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if broken:
        raise InputError(f"{source}: {len(broken)} tensors hold NaN or infinity ({listed(broken)}). Use another file.")

    # the head
    head, unused, unknown = {}, [], []
    for name, value in state.items():
        ours = rename(name, TABLE)
        if ours is not None:
            head[ours] = value
        elif name == _TEMPERATURE:
            if value.numel() != 1 or not float(value) > 0:
                raise InputError(f"{source}: need {name} as one number above 0; got {value.flatten()[:3].tolist()}.")
            head["log_scale"] = value.reshape(()).float().log()
        elif name.startswith(_CLASS_LAYER):
            unused.append(name)
        elif name != _TEXT and not name.startswith(_TOWER):
            unknown.append(name)
    refuse_unknown(unknown, source=source, what=WHAT)

    # the tower, without rotary tables
    visual = {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith(_TOWER)}
    stored = drop_derived(visual)
    unused += [f"backbone.{name}" for name in visual if name not in stored]
    tower = {name.removeprefix("visual."): value for name, value in rename_eva(stored).items()}
    count, text = _read_text(state, source=source)
    return PublishedFile(head, tower, count, text, tuple(unused))


def published_network(file: PublishedFile, *, size: int, source: str) -> Network:
    """Read the hyperparameters of a detector from its weights; those that no weight shows are the published ones.

    Args:
        file: of `take_apart`.
        size: side of the square input [pixels].
        source: the file, for messages.
    """

    def outputs(name: str) -> int:
        return shape_of(file.head, name, dims=4, source=source, what=WHAT)[0]

    return Network(
        size=size,
        taps=None,
        pyramid="taps",
        channels=outputs("pyramid.top_down.inner_blocks.0.0.weight"),
        width=outputs("box_head.convs.0.0.weight"),
        masks=_has_masks(file),
        proposals=1000,
        trained_layers=0,
        norm="rpn.network.head.conv.0.1.weight" in file.head,
        relu_embedding=True,
        statistics="imagenet",
        resize="bilinear",
    )


def published_benchmark(file: PublishedFile, *, patch: int) -> Benchmark:
    """The fusion of scores of a published detector, by its patch size [pixels]; those with masks are OV-LVIS's."""
    if not _has_masks(file):
        return "ov-coco"
    return "ov-lvis-l" if patch == 14 else "ov-lvis-b"


def _has_masks(file: PublishedFile) -> bool:
    return any(name.startswith("mask_head.") for name in file.head)


def published_size(benchmark: Benchmark, *, patch: int) -> int:
    """The side of the published input [pixels]: 640 (OV-COCO) and 1024 at patches of 16, 896 at 14."""
    return patch * (40 if benchmark == "ov-coco" and patch == 16 else 64)


def put_tower(clip: Clip, file: PublishedFile, *, source: str) -> None:
    """Load the image tower of a published file into a CLIP.

    Raises:
        InputError: a tower of another size.
    """
    name = f"the image tower of {clip.name}"
    put_state(clip.visual, file.tower, source=f"{source} (image tower)", name=name)


def match_names(
    text: Float[Tensor, "K D"], named: Float[Tensor, "K D"], *, source: str
) -> tuple[Int64[Tensor, " K"], float, int]:
    """Find the class name of each text embedding of a file: the nearest one.

    Args:
        text: of the file.
        named: embeddings of the names, by the text tower that the detector will be used with.
        source: the file, for messages.

    Returns:
        The index of each embedding's name; the lowest cosine of an embedding with its name; and, if several embeddings
        are nearest to one name and the order of the names decided, how many are nearer to another name.

    Raises:
        InputError: other names, or another text tower.
    """
    cosines = F.normalize(text.float(), dim=1) @ F.normalize(named.float(), dim=1).T  # (K, K)
    nearest, in_order = cosines.argmax(dim=1), torch.arange(len(text), device=text.device)  # (K,) each
    ambiguous = 0
    if len(nearest.unique()) < len(nearest):
        matches = int((nearest == in_order).sum())
        if matches < MIN_IN_ORDER * len(in_order):
            raise InputError(
                f"{source}: need the names of its {len(in_order)} classes and the CLIP that embedded them; its text "
                f"embeddings are nearest to {len(nearest.unique())} of the names, {matches} in this order. Are --clip, "
                "--annotations and --novel those it was trained with?"
            )
        nearest, ambiguous = in_order, len(in_order) - matches
    lowest = float(cosines.gather(1, nearest[:, None]).min())
    if lowest < MIN_COSINE:
        raise InputError(
            f"{source}: need the names of its classes and the CLIP that embedded them; the lowest cosine of a text "
            f"embedding with that of its name is {lowest:.2f}, below {MIN_COSINE}. Are --clip, --annotations and "
            "--novel those it was trained with?"
        )
    return nearest, lowest, ambiguous


def build_published(
    file: PublishedFile,
    clip: Clip,
    network: Network,
    *,
    text: Float[Tensor, "K1 D"],
    is_novel: Bool[Tensor, " K"],
    source: str,
) -> FViT:
    """Build the detector of a published file, in evaluation mode.

    Args:
        file: of `take_apart`.
        clip: with the file's image tower, see `put_tower`.
        network: of `published_network`.
        text: of the classes and, last, of background.
        is_novel: of the classes.
        source: the file, for messages.

    Raises:
        InputError: tensors are missing, unknown or of another shape.
    """
    detector = FViT(clip, network, text=text, is_novel=is_novel, jitter=None, flip=False)
    expected = trained_state(detector, frozen=TOWER)
    del expected["text"], expected["is_novel"]
    problems = differences(expected, file.head)
    if problems:
        raise InputError(
            f"{source}: need an F-ViT of {network.channels} channels on {clip.name}; {problems}. Is --clip of the "
            "right size?"
        )
    weights = {name: file.head[name].to(value.dtype) for name, value in expected.items()}
    detector.load_state_dict(weights, strict=False)
    return detector.eval()


def _read_text(state: dict[str, Tensor], *, source: str) -> tuple[int, Float[Tensor, "K1 D"] | None]:
    """The number of classes, and their text embeddings if the file has them."""
    width, columns = state.get(f"{_BOX}cls_fcs.0.weight"), state.get(_TEXT)
    if columns is None:
        layer = state.get(f"{_CLASS_LAYER}weight")
        if layer is None:
            raise InputError(f"{source}: need {_TEXT} or {_CLASS_LAYER}weight, which give the number of classes.")
        return len(layer) - 1, None
    if columns.ndim != 2 or width is None or len(columns) != len(width):
        raise InputError(f"{source}: need {_TEXT} of (D, K + 1), D as in the class layer; got {tuple(columns.shape)}.")
    return columns.shape[1] - 1, columns.float().T.contiguous()
