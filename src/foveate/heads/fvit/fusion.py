"""Score fusion: what the detector says of a region, and what the frozen tower says of it (Sec. 3.3; F-VLM's eq. 2).

    p = softmax(T cos(box head's embedding, text))     q = softmax(Tv cos(tower's map at the proposal, text))
    score = p^(1 - a) q^a for base classes and background, p^(1 - b) q^b for novel ones; softmax over all K + 1

Then each class suppresses its own overlapping boxes, and the best of all classes are kept. Nothing here needs the
network: `detect` works on `Candidates`, which are as good from the disk. Deliberately absent: F-VLM's own rule for the
background (the detector's p, then a division by the sum), which F-ViT does not use.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import normalize
from torchvision.ops import nms

from foveate.errors import InputError
from foveate.heads.fvit.candidates import Candidates
from foveate.heads.fvit.names import Benchmark
from foveate.ops.paste import paste_as_rle
from foveate.types import Detections

FIRST = 4  # the first prefix of the pairs that suppression looks at [times what is to be kept]


@dataclass(frozen=True)
class Fusion:
    """How two scores become one, and which pairs of a box and a class are kept."""

    base: float  # a: the tower's share of a base class's score, in [0, 1]
    novel: float  # b: of a novel class's
    temperature: float  # Tv, of the tower's softmax
    min_score: float  # pairs above it count
    nms: float  # IoU above which the better of two boxes of a class suppresses the other
    keep: int  # at most so many of a picture
    detector_temperature: float | None = None  # T, of the detector's softmax; None: what it learned

    def __post_init__(self) -> None:
        for name in ("base", "novel", "min_score", "nms"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"fusion: need `{name}` in [0, 1]; got {getattr(self, name)}.")
        for name in ("temperature", "detector_temperature"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"fusion: need a positive `{name}`; got {value}.")
        if self.keep < 1:
            raise InputError(f"fusion: need at least 1 to keep; got {self.keep}.")


# A.3. The transfer keeps as many as on LVIS, where its detector is trained, and fixes T at its first value.
PRESETS: dict[Benchmark, Fusion] = {
    "ov-coco": Fusion(0.1, 0.8, 75.0, 0.01, 0.4, 100),
    "ov-lvis-b": Fusion(0.1, 0.6, 50.0, 1e-4, 0.5, 300),
    "ov-lvis-l": Fusion(0.1, 0.4, 50.0, 1e-4, 0.5, 300),
    "transfer-coco": Fusion(0.2, 0.2, 120.0, 1e-4, 0.5, 300, 50.0),
    "transfer-objects365": Fusion(0.3, 0.3, 120.0, 1e-4, 0.5, 300, 50.0),
    "transfer-voc": Fusion(0.3, 0.3, 120.0, 1e-4, 0.5, 300, 50.0),
}


def fuse_scores(
    p: Float[Tensor, "N K1"], q: Float[Tensor, "N K1"], is_base: Bool[Tensor, " K"], *, base: float, novel: float
) -> Float[Tensor, "N K1"]:
    """Take the geometric mean of two probabilities, weighed by kind of class (F-VLM's eq. 2).

    Args:
        p: the detector's, over K classes and, last, background.
        q: the tower's.
        is_base: of the K classes; background counts as base.
        base: q's weight for base classes.
        novel: for the others.

    Returns:
        In [0, 1]; the rows do not add up to 1.
    """
    known = torch.cat([is_base, is_base.new_ones(1)]).to(p.device)  # (K + 1,)
    weight = torch.where(known, base, novel).to(p.dtype)  # (K + 1,)
    return p ** (1 - weight) * q**weight


def compare(candidates: Candidates, text: Float[Tensor, "K1 D"]) -> tuple[Float[Tensor, "N K1"], Float[Tensor, "N K1"]]:
    """Cosines of a picture's candidates with the classes and, last, background: of the box head, and of the tower.

    Raises:
        InputError: text of another width, or an embedding that is not finite.
    """
    if text.shape[1] != candidates.detector.shape[1]:
        raise InputError(
            f"text: need embeddings of {candidates.detector.shape[1]} numbers, as the candidates of picture "
            f"{candidates.id} have; got {text.shape[1]}. Is the text another model's?"
        )
    words = normalize(text.float(), dim=1)  # (K + 1, D)
    found = [normalize(one.to(words.device).float(), dim=1) @ words.T for one in (candidates.detector, candidates.clip)]
    if not all(bool(one.isfinite().all()) for one in found):
        raise InputError(f"picture {candidates.id}: need finite embeddings; the candidates or the text hold NaN.")
    return found[0], found[1]


def detect(
    candidates: Candidates,
    text: Float[Tensor, "K1 D"],
    is_base: Bool[Tensor, " K"],
    detector_scale: float,
    fusion: Fusion,
    *,
    masks: bool = True,
) -> Detections:
    """Ask a picture's candidates for classes.

    Args:
        candidates: of one picture.
        text: an embedding a class, and, last, that of background.
        is_base: which classes the detector was trained on; all False: every class is novel.
        detector_scale: T, the detector's learned temperature, where `fusion` does not fix it.
        fusion: how scores are made and which are kept.
        masks: draw the masks of what is kept, where the candidates have them.

    Returns:
        At most `fusion.keep`, best first; of equal scores the better proposal's, then the earlier class's. Boxes
        without area are none.

    Raises:
        InputError: text that does not fit, or numbers that are not finite.
    """
    if len(is_base) != len(text) - 1:
        raise InputError(f"text: need {len(is_base)} classes and background; got {len(text)} embeddings.")
    return detect_from(
        candidates, compare(candidates, text), is_base, detector_scale=detector_scale, fusion=fusion, masks=masks
    )


def rows_of(
    candidates: Candidates,
    text: Float[Tensor, "K1 D"],
    is_base: Bool[Tensor, " K"],
    detector_scale: float,
    fusion: Fusion,
) -> Int64[Tensor, " M"]:
    """Which candidates `detect` will keep, for whatever class: those whose masks are worth making."""
    cosines = compare(candidates, text)
    rows, _ = _choose(candidates, _fused(cosines, is_base, detector_scale=detector_scale, fusion=fusion), fusion)
    return rows.unique()


def detect_from(
    candidates: Candidates,
    cosines: tuple[Float[Tensor, "N K1"], Float[Tensor, "N K1"]],
    is_base: Bool[Tensor, " K"],
    *,
    detector_scale: float,
    fusion: Fusion,
    masks: bool,
) -> Detections:
    """The part of `detect` that depends on the fusion; `compare` made the cosines."""
    boxes = candidates.boxes.cpu()
    scores = _fused(cosines, is_base, detector_scale=detector_scale, fusion=fusion)
    rows, labels = _choose(candidates, scores, fusion)
    drawn = None
    if masks and candidates.masks is not None:
        unique, place = rows.unique(return_inverse=True)  # a proposal has one mask, whatever its classes
        size = {"height": candidates.height, "width": candidates.width}
        pasted = paste_as_rle(candidates.masks[unique], boxes[unique], **size)
        drawn = tuple(pasted[one] for one in place.tolist())
    return Detections(boxes[rows], scores[rows, labels], labels, drawn)


def _fused(
    cosines: tuple[Float[Tensor, "N K1"], Float[Tensor, "N K1"]],
    is_base: Bool[Tensor, " K"],
    *,
    detector_scale: float,
    fusion: Fusion,
) -> Float[Tensor, "N K"]:
    """The fused scores, background left out."""
    scale = detector_scale if fusion.detector_temperature is None else fusion.detector_temperature
    p, q = (scale * cosines[0]).softmax(dim=1), (fusion.temperature * cosines[1]).softmax(dim=1)
    return fuse_scores(p, q, is_base, base=fusion.base, novel=fusion.novel)[:, :-1].cpu()


def _choose(
    candidates: Candidates, scores: Float[Tensor, "N K"], fusion: Fusion
) -> tuple[Int64[Tensor, " M"], Int64[Tensor, " M"]]:
    """Rows and classes of what is kept; boxes without area are not."""
    boxes = candidates.boxes.cpu()
    has_area = (boxes[:, :2] < boxes[:, 2:]).all(dim=1)  # (N,)
    scores = torch.where(has_area[:, None], scores, -1.0)  # a fused score is never below 0
    return keep_best(boxes, scores, min_score=fusion.min_score, overlap=fusion.nms, keep=fusion.keep)


def keep_best(
    boxes: Float[Tensor, "N 4"], scores: Float[Tensor, "N K"], *, min_score: float, overlap: float, keep: int
) -> tuple[Int64[Tensor, " M"], Int64[Tensor, " M"]]:
    """Suppress overlapping boxes within each class, and keep the best pairs of a box and a class.

    Greedy suppression of a sorted list decides about a pair by those before it alone. So the pairs are looked at from
    the best on, and only until enough of them survive: exact, and of a million pairs mostly a thousand suffice. Classes
    are kept apart by moving each to a place of its own, in float64: float32 would lose half a pixel at 1,203 classes.

    Args:
        boxes: xyxy, pixels, the same for every class.
        scores: of each class.
        min_score: pairs above it count.
        overlap: IoU above which the later of two boxes of a class is left out.
        keep: how many.

    Returns:
        The rows of the boxes, and the classes: best first; of equal scores the earlier row, then the earlier class.
    """
    flat = scores.flatten()  # (N * K,)
    counting = int((flat > min_score).sum())
    size = min(counting, FIRST * keep)
    while True:
        pairs = _best_pairs(flat, size)
        rows, labels = pairs // max(1, scores.shape[1]), pairs % max(1, scores.shape[1])
        places = separate(boxes[rows], labels)
        kept = nms(places, flat[pairs].double(), overlap)[:keep]  # sorts again, stably: no change
        if len(kept) == keep or size == counting:
            return rows[kept], labels[kept]
        size = min(counting, 4 * size)


def _best_pairs(flat: Float[Tensor, " P"], size: int) -> Int64[Tensor, " size"]:
    """The first entries of the stably sorted list, without sorting all of it."""
    if not size:
        return torch.zeros(0, dtype=torch.int64)
    least = flat.topk(size, sorted=False).values.min()
    chosen = (flat >= least).nonzero()[:, 0]  # in order; more than asked for where scores are equal
    return chosen[flat[chosen].argsort(descending=True, stable=True)][:size]


def separate(boxes: Float[Tensor, "M 4"], labels: Int64[Tensor, " M"]) -> Float[Tensor, "M 4"]:
    """Move the boxes of each class to a place of its own, in float64, by multiples of a power of two: whole pixels and
    their halves, quarters ... stay exact."""
    if not len(boxes):
        return boxes.double()
    apart = 2.0 ** math.frexp(float(boxes.abs().max()))[1]  # more than any coordinate
    return boxes.double() + (labels.double() * 2 * apart)[:, None]
