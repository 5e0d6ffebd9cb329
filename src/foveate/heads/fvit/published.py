"""Published F-ViT files (mmdet checkpoints of OV-COCO and OV-LVIS) as detectors of this package (Sec. 3.3).

    {"state_dict": {...}, "meta": ..., "optimizer": ...}
        backbone.visual.*                image tower, in EVA-CLIP's names
        backbone.interpolate*, neck.*    pyramid
        rpn_head.*, roi_head.*           both stages; all_embeddings: texts, background last

The image tower is in the file, a text tower is not: it comes from a CLIP of the same architecture. Neither are the
class names nor what is novel. All functions are of state dictionaries. Deliberately absent: reading of files, and class
names (`foveate.data.splits`).
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
_TEMPERATURE, _TEXTS, _UNUSED = f"{_BOX}detect_temperature", f"{_BOX}all_embeddings", f"{_BOX}fc_cls."
WHAT = "a whole F-ViT as its own code wrote it"
LEAST_COSINE = 0.5  # of a text embedding of a file and of its name; other templates lower it, other names more
SURE = 0.9  # of the columns must be nearest to their own names where the names' order cannot be told from the columns


@dataclass(frozen=True)
class Published:
    """What a published file holds, in this package's names."""

    head: dict[str, Tensor]  # of the detector without tower and texts
    tower: dict[str, Tensor]  # of open_clip's `visual`
    classes: int  # K
    text: Float[Tensor, "K1 D"] | None  # of the classes and, last, of background
    unused: tuple[str, ...]  # known names that no network needs: the class layer under the texts, rotary tables


def is_published_fvit(state: dict[str, Tensor]) -> bool:
    """Whether a state dictionary is an F-ViT's as its own trainer writes it."""
    return _TEMPERATURE in state and any(name.startswith("rpn_head.") for name in state)


def take_apart(state: dict[str, Tensor], *, source: str) -> Published:
    """Give a published file's tensors this package's names.

    Args:
        state: under "state_dict" of the file.
        source: the file, for messages.

    Raises:
        InputError: a part is missing without which no size can be told, or values are not finite.
    """
    broken = [name for name, one in state.items() if one.is_floating_point() and not bool(one.isfinite().all())]
    if broken:
        raise InputError(f"{source}: {len(broken)} tensors hold NaN or infinity ({listed(broken)}). Take another file.")
    head, unused, unknown = {}, [], []
    for name, one in state.items():
        ours = rename(name, TABLE)
        if ours is not None:
            head[ours] = one
        elif name == _TEMPERATURE:
            if one.numel() != 1 or not float(one) > 0:
                raise InputError(f"{source}: need {name} as one number above 0; got {one.flatten()[:3].tolist()}.")
            head["log_scale"] = one.reshape(()).float().log()
        elif name.startswith(_UNUSED):
            unused.append(name)
        elif name != _TEXTS and not name.startswith(_TOWER):
            unknown.append(name)
    refuse_unknown(unknown, source=source, what=WHAT)
    visual = {name.removeprefix("backbone."): one for name, one in state.items() if name.startswith(_TOWER)}
    kept = drop_derived(visual)
    unused += [f"backbone.{name}" for name in visual if name not in kept]
    tower = {name.removeprefix("visual."): one for name, one in rename_eva(kept).items()}
    count, text = _texts(state, source=source)
    return Published(head, tower, count, text, tuple(unused))


def published_network(found: Published, *, size: int, source: str) -> Network:
    """Read the sizes of a detector off its weights; what no weight shows is as published.

    Args:
        found: of `take_apart`.
        size: side of the square input [pixels].
        source: the file, for messages.
    """

    def outputs(name: str) -> int:
        return shape_of(found.head, name, dims=4, source=source, what=WHAT)[0]

    return Network(
        size=size,
        taps=None,
        pyramid="taps",
        channels=outputs("pyramid.top_down.inner_blocks.0.0.weight"),
        width=outputs("box_head.convs.0.0.weight"),
        masks=any(name.startswith("mask_head.") for name in found.head),
        proposals=1000,
        trained_layers=0,
        norm="rpn.network.head.conv.0.1.weight" in found.head,
        relu_embedding=True,
        statistics="imagenet",
        resize="bilinear",
    )


def published_benchmark(found: Published, *, patch: int) -> Benchmark:
    """Whose score fusion a published detector is asked with: those with masks are OV-LVIS's.

    Args:
        found: of `take_apart`.
        patch: side of the tower's patches [pixels].
    """
    if not any(name.startswith("mask_head.") for name in found.head):
        return "ov-coco"
    return "ov-lvis-l" if patch == 14 else "ov-lvis-b"


def published_size(benchmark: Benchmark, *, patch: int) -> int:
    """The side of the input as published [pixels]: 640 (OV-COCO) and 1024 at patches of 16, 896 at 14."""
    return patch * (40 if benchmark == "ov-coco" and patch == 16 else 64)


def put_tower(clip: Clip, found: Published, *, source: str) -> None:
    """Give a CLIP the image tower of a published file.

    Args:
        clip: changed here; its text tower stays.
        found: of `take_apart`.
        source: the file, for messages.

    Raises:
        InputError: a tower of another size; says both shapes.
    """
    name = f"the image tower of {clip.name}"
    put_state(clip.visual, found.tower, source=f"{source} (image tower)", name=name)


def order_of_names(
    columns: Float[Tensor, "K D"], named: Float[Tensor, "K D"], *, source: str
) -> tuple[Int64[Tensor, " K"], float, int]:
    """Find which name each text embedding of a file belongs to: the nearest one.

    Args:
        columns: of the file.
        named: embeddings of the names, made by the text tower that the detector is to be used with.
        source: the file, for messages.

    Returns:
        The place of each column's name; the lowest cosine of a column with its name; how many columns are nearer to
        another name, where the order of the names as given decided.

    Raises:
        InputError: other names, or another text tower: several columns have one name.
    """
    cosines = F.normalize(columns.float(), dim=1) @ F.normalize(named.float(), dim=1).T  # (K, K)
    nearest, own = cosines.argmax(dim=1), torch.arange(len(columns), device=columns.device)  # (K,) each
    unsure = 0
    if len(nearest.unique()) < len(nearest):
        right = int((nearest == own).sum())
        if right < SURE * len(own):
            raise InputError(
                f"{source}: need the names of its {len(own)} classes and the CLIP that embedded them; its texts fit "
                f"{len(nearest.unique())} of the names best, {right} in this order. Are --clip, --annotations and "
                "--novel those it was trained with?"
            )
        nearest, unsure = own, len(own) - right  # some names are near each other, and the order given is right for most
    least = float(cosines.gather(1, nearest[:, None]).min())
    if least < LEAST_COSINE:
        raise InputError(
            f"{source}: need the names of its classes and the CLIP that embedded them; the lowest cosine of a text of "
            f"the file with that of its name is {least:.2f}, below {LEAST_COSINE}. Are --clip, --annotations and "
            "--novel those it was trained with?"
        )
    return nearest, least, unsure


def build_published(
    found: Published,
    clip: Clip,
    network: Network,
    *,
    text: Float[Tensor, "K1 D"],
    is_novel: Bool[Tensor, " K"],
    source: str,
) -> FViT:
    """Build the detector of a published file.

    Args:
        found: of `take_apart`.
        clip: with the file's image tower, see `put_tower`.
        network: of `published_network`.
        text: of the classes and, last, of background.
        is_novel: of the classes.
        source: the file, for messages.

    Returns:
        The detector in evaluation mode.

    Raises:
        InputError: tensors are missing, have no place or another shape; lists them with both shapes.
    """
    detector = FViT(clip, network, text=text, is_novel=is_novel, jitter=None, flip=False)
    wanted = trained_state(detector, frozen=TOWER)
    del wanted["text"], wanted["is_novel"]
    problems = differences(wanted, found.head)
    if problems:
        raise InputError(
            f"{source}: need an F-ViT of {network.channels} channels on {clip.name}; {problems}. Is --clip of the "
            "right size?"
        )
    detector.load_state_dict({name: found.head[name].to(one.dtype) for name, one in wanted.items()}, strict=False)
    return detector.eval()


def _texts(state: dict[str, Tensor], *, source: str) -> tuple[int, Float[Tensor, "K1 D"] | None]:
    """How many classes there are, and their texts where the file has them."""
    width, columns = state.get(f"{_BOX}cls_fcs.0.weight"), state.get(_TEXTS)
    if columns is None:
        layer = state.get(f"{_UNUSED}weight")
        if layer is None:
            raise InputError(f"{source}: need {_TEXTS} or {_UNUSED}weight, which say how many classes there are.")
        return len(layer) - 1, None
    if columns.ndim != 2 or width is None or len(columns) != len(width):
        raise InputError(
            f"{source}: need {_TEXTS} of (D, K + 1), D numbers as the class layer has; got {tuple(columns.shape)}."
        )
    return columns.shape[1] - 1, columns.float().T.contiguous()
