"""Region-text supervision (A.4, the principle of RegionCLIP): a baseline that CLIPSelf is compared with.

    teacher's crop ----argmax over noun embeddings----> pseudo-label --+
    student's region --cos * exp(logit_scale), nouns--> logits --------+--> binary cross-entropy

It replaces CLIPSelf's cosine (`ClipSelf(..., compare=RegionText(nouns, scale=...))`): the same regions, crops and
towers, but the student learns only the noun nearest to each crop.
Deliberately absent: a background class, and what RegionCLIP itself adds (soft labels, a contrastive loss on captions).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from foveate.errors import InputError

MIN_CLASSES = 100  # that a batch is classified among


class RegionText(nn.Module):
    """Classify regions among nouns, as the teacher classifies their crops."""

    nouns: Tensor
    scale: Tensor

    def __init__(self, nouns: Float[Tensor, "K D"], *, scale: Tensor | float, min_classes: int = MIN_CLASSES) -> None:
        """Store the classes, none of which is trained.

        Args:
            nouns: L2-normalised embeddings.
            scale: CLIP's inverse temperature (already exponentiated).
            min_classes: that a batch is classified among: those present, and random others up to this number.

        Raises:
            InputError: fewer than two nouns.
        """
        super().__init__()
        if len(nouns) < 2:
            raise InputError(f"nouns: need at least 2 to classify regions; got {len(nouns)}. Give more.")
        self.min_classes = min_classes
        self.register_buffer("nouns", nouns.detach())
        self.register_buffer("scale", torch.as_tensor(scale).detach().to(nouns))

    def forward(self, regions: Float[Tensor, "R D"], crops: Float[Tensor, "R D"]) -> Float[Tensor, ""]:
        """Binary cross-entropy summed over the classes, averaged over the regions.

        Args:
            regions: the student's embeddings, L2-normalised.
            crops: the teacher's, of the same regions.
        """
        labels = pseudo_labels(crops, self.nouns)
        classes, is_counted = draw_classes(labels, count=len(self.nouns), min_classes=self.min_classes)
        return region_text_loss(regions, self.nouns[classes], labels[:, None] == classes, is_counted, scale=self.scale)


def pseudo_labels(crops: Float[Tensor, "R D"], nouns: Float[Tensor, "K D"]) -> Int64[Tensor, " R"]:
    """The noun nearest to each crop, by cosine; both are L2-normalised."""
    return (crops @ nouns.T).argmax(dim=1)


def draw_classes(
    labels: Int64[Tensor, " R"], *, count: int, min_classes: int
) -> tuple[Int64[Tensor, " C"], Bool[Tensor, " C"]]:
    """The classes that a batch is classified among: all that are present, and random others up to `min_classes`.

    The host does not wait for the device to know how many are present: the result has as many classes as there may be,
    and a mask of those that count. The draw is from torch's global generator, which `fit` seeds.

    Args:
        labels: of the regions.
        count: K, of all classes.
        min_classes: that count, or as many as are present where these are more.

    Returns:
        The classes, those present first, and which of them count.
    """
    size = min(count, max(min_classes, len(labels)))
    present = torch.zeros(count, device=labels.device).index_fill(0, labels, 1.0)  # (K,)
    drawn = torch.rand(count, device=labels.device)  # in [0, 1)
    classes = (present + drawn).topk(size).indices
    return classes, (torch.arange(size, device=labels.device) < min_classes) | (present[classes] > 0)


def region_text_loss(
    regions: Float[Tensor, "R D"],
    nouns: Float[Tensor, "C D"],
    target: Bool[Tensor, "R C"],
    is_counted: Bool[Tensor, " C"],
    *,
    scale: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Binary cross-entropy of cos * scale, summed over the classes that count and averaged over the regions.

    Args:
        regions, nouns: L2-normalised.
        target: whether a region is of a class.
        is_counted: which classes count.
        scale: CLIP's inverse temperature (already exponentiated).
    """
    logits = scale * regions @ nouns.T  # (R, C)
    losses = F.binary_cross_entropy_with_logits(logits, target.to(logits), reduction="none")
    return (losses * is_counted).sum(dim=1).mean()
