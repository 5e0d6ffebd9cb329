"""Fusion of the detector's scores and the frozen tower's (Sec. 3.3; F-VLM's eq. 2).

    p = softmax(T cos(box head's embedding, text))     q = softmax(Tv cos(dense feature map at the proposal, text))
    score = p^(1 - a) q^a for base classes and background, p^(1 - b) q^b for novel ones; softmax over all K + 1

Then overlapping boxes are suppressed within each class, and the best of all classes are returned. `Candidates` are
enough: the network is not needed. F-ViT does not use F-VLM's rule for the background (the detector's p, then a division
by the sum).
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

PREFIX_FACTOR = 4  # pairs in the first pass of suppression [times `keep`]

Cosines = tuple[Float[Tensor, "N K1"], Float[Tensor, "N K1"]]


@dataclass(frozen=True)
class Fusion:
    """How two scores become one, and which pairs of a box and a class are returned."""

    base: float  # a: fusion weight of the tower's score of base classes, in [0, 1]
    novel: float  # b: of novel classes
    temperature: float  # Tv, of the tower's softmax
    min_score: float  # only pairs with a higher score are returned
    nms: float  # IoU above which the better of two boxes of a class suppresses the other
    keep: int  # max detections per image
    detector_temperature: float | None = None  # T, of the detector's softmax; None: the learned one

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
    """Geometric mean of two probabilities, weighted by kind of class (F-VLM's eq. 2).

    Args:
        p: the detector's, over K classes and, last, background.
        q: the tower's.
        is_base: of the K classes; background counts as base.
        base: q's weight for base classes.
        novel: for the others.

    Returns:
        In [0, 1]; the rows do not sum to 1.
    """
    is_base = torch.cat([is_base, is_base.new_ones(1)]).to(p.device)  # (K + 1,)
    weight = torch.where(is_base, base, novel).to(p.dtype)  # (K + 1,)
    return p ** (1 - weight) * q**weight


def candidate_cosines(candidates: Candidates, text: Float[Tensor, "K1 D"]) -> Cosines:
    """Cosines of the box head's and the tower's embeddings with the classes and, last, background.

    Raises:
        InputError: text of another width, or an embedding that is not finite.
    """
    if text.shape[1] != candidates.detector.shape[1]:
        raise InputError(
            f"text: need embeddings of {candidates.detector.shape[1]} numbers, as the candidates of image "
            f"{candidates.id} have; got {text.shape[1]}. Use the text embeddings of the same model."
        )
    text = normalize(text.float(), dim=1)  # (K + 1, D)
    detector, clip = (
        normalize(embeddings.to(text.device).float(), dim=1) @ text.T
        for embeddings in (candidates.detector, candidates.clip)
    )
    if not (bool(detector.isfinite().all()) and bool(clip.isfinite().all())):
        raise InputError(f"image {candidates.id}: need finite embeddings; the candidates or the text hold NaN.")
    return detector, clip


def detect(
    candidates: Candidates,
    text: Float[Tensor, "K1 D"],
    is_base: Bool[Tensor, " K"],
    detector_scale: float,
    fusion: Fusion,
    *,
    masks: bool = True,
) -> Detections:
    """Detect the classes of a vocabulary among an image's candidates.

    Args:
        candidates: of one image.
        text: one embedding per class, and, last, that of background.
        is_base: which classes the detector was trained on; all False: every class is novel.
        detector_scale: T, the detector's learned temperature, unless `fusion` fixes it.
        fusion: how scores are fused and filtered.
        masks: paste the masks into the image, if the candidates have them.

    Returns:
        At most `fusion.keep`, best first; of equal scores the better proposal's, then the earlier class's. Boxes
        without area are ignored.

    Raises:
        InputError: text that does not fit, or embeddings that are not finite.
    """
    if len(is_base) != len(text) - 1:
        raise InputError(f"text: need {len(is_base)} classes and background; got {len(text)} embeddings.")
    return detect_from_cosines(
        candidates, candidate_cosines(candidates, text), is_base, detector_scale, fusion, masks=masks
    )


def detected_rows(
    candidates: Candidates,
    text: Float[Tensor, "K1 D"],
    is_base: Bool[Tensor, " K"],
    detector_scale: float,
    fusion: Fusion,
) -> Int64[Tensor, " M"]:
    """The candidates that `detect` will return for any class: those that need masks."""
    rows, _, _ = _choose(candidates, candidate_cosines(candidates, text), is_base, detector_scale, fusion)
    return rows.unique()


def detect_from_cosines(
    candidates: Candidates,
    cosines: Cosines,
    is_base: Bool[Tensor, " K"],
    detector_scale: float,
    fusion: Fusion,
    *,
    masks: bool,
) -> Detections:
    """`detect` with the result of `candidate_cosines`, for several fusions."""
    boxes = candidates.boxes.cpu()
    rows, labels, scores = _choose(candidates, cosines, is_base, detector_scale, fusion)
    encoded = None
    if masks and candidates.masks is not None:
        unique, index = rows.unique(return_inverse=True)  # a proposal has one mask for all its classes
        size = {"height": candidates.height, "width": candidates.width}
        pasted = paste_as_rle(candidates.masks[unique], boxes[unique], **size)
        encoded = tuple(pasted[position] for position in index.tolist())
    return Detections(boxes[rows], scores, labels, encoded)


def _choose(
    candidates: Candidates,
    cosines: Cosines,
    is_base: Bool[Tensor, " K"],
    detector_scale: float,
    fusion: Fusion,
) -> tuple[Int64[Tensor, " M"], Int64[Tensor, " M"], Float[Tensor, " M"]]:
    """Rows, classes and fused scores of the detections."""
    scale = detector_scale if fusion.detector_temperature is None else fusion.detector_temperature
    p, q = (scale * cosines[0]).softmax(dim=1), (fusion.temperature * cosines[1]).softmax(dim=1)
    scores = fuse_scores(p, q, is_base, base=fusion.base, novel=fusion.novel)[:, :-1].cpu()  # (N, K)
    boxes = candidates.boxes.cpu()
    has_area = (boxes[:, :2] < boxes[:, 2:]).all(dim=1)  # (N,)
    scores = torch.where(has_area[:, None], scores, -1.0)  # a fused score is never below 0
    rows, labels = keep_best(boxes, scores, min_score=fusion.min_score, overlap=fusion.nms, keep=fusion.keep)
    return rows, labels, scores[rows, labels]


def keep_best(
    boxes: Float[Tensor, "N 4"], scores: Float[Tensor, "N K"], *, min_score: float, overlap: float, keep: int
) -> tuple[Int64[Tensor, " M"], Int64[Tensor, " M"]]:
    """Suppress overlapping boxes within each class, and return the best pairs of a box and a class.

    Greedy suppression decides about a pair by the better pairs alone. So only the best pairs are sorted and suppressed,
    and more of them if too few survive: exact, and a thousand of a million pairs mostly suffice.

    Args:
        boxes: xyxy, pixels, the same for every class.
        scores: of each class.
        min_score: only pairs with a higher score are returned.
        overlap: IoU above which the later of two boxes of a class is suppressed.
        keep: max pairs.

    Returns:
        The rows of the boxes, and the classes: best first; of equal scores the earlier row, then the earlier class.
    """
    flat = scores.flatten()  # (N * K,)
    total = int((flat > min_score).sum())
    size = min(total, PREFIX_FACTOR * keep)
    while True:
        pairs = _best_pairs(flat, size)
        rows, labels = pairs // max(1, scores.shape[1]), pairs % max(1, scores.shape[1])
        shifted = shift_classes(boxes[rows], labels)
        index = nms(shifted, flat[pairs].double(), overlap)[:keep]  # sorts again, stably: no change
        if len(index) == keep or size == total:
            return rows[index], labels[index]
        size = min(total, 4 * size)


def _best_pairs(flat: Float[Tensor, " P"], size: int) -> Int64[Tensor, " size"]:
    """The first entries of the stably sorted list, without sorting all of it."""
    if not size:
        return torch.zeros(0, dtype=torch.int64)
    least = flat.topk(size, sorted=False).values.min()
    chosen = (flat >= least).nonzero()[:, 0]  # in order; more than `size` if scores are equal
    return chosen[flat[chosen].argsort(descending=True, stable=True)][:size]


def shift_classes(boxes: Float[Tensor, "M 4"], labels: Int64[Tensor, " M"]) -> Float[Tensor, "M 4"]:
    """Shift the boxes of each class so that boxes of different classes do not overlap.

    In float64 and by multiples of a power of two, so that whole pixels and their halves, quarters ... stay exact;
    float32 would lose half a pixel at 1,203 classes.
    """
    if not len(boxes):
        return boxes.double()
    step = 2.0 ** math.frexp(float(boxes.abs().max()))[1]  # more than any coordinate
    return boxes.double() + (labels.double() * 2 * step)[:, None]
