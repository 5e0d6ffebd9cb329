"""Region-text supervision (A.4, the principle of RegionCLIP): a baseline that CLIPSelf is compared with.

    teacher's crop ----argmax over noun embeddings----> pseudo-label --+
    student's region --cos * exp(logit_scale), nouns--> logits --------+--> binary cross-entropy

It takes the place of CLIPSelf's cosine (`ClipSelf(..., compare=RegionText(nouns, scale=...))`): the same regions, crops
and towers, but all the student is told of a crop is the name of the noun nearest to it.
Deliberately absent: nouns (`foveate.data.nouns`), their embeddings (`foveate.clip.text`), a background class, and what
RegionCLIP itself adds (soft labels, a contrastive loss on captions).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from foveate.errors import InputError

COLUMNS = 100


class RegionText(nn.Module):
    """Classify regions among nouns, as the teacher classifies their crops."""

    nouns: Tensor
    scale: Tensor

    def __init__(self, nouns: Float[Tensor, "K D"], *, scale: Tensor | float, columns: int = COLUMNS) -> None:
        """Hold the classes, none of which is trained.

        Args:
            nouns: L2-normalised embeddings.
            scale: CLIP's inverse temperature (already exponentiated).
            columns: how many classes a batch is told apart among: those present and random others.

        Raises:
            InputError: fewer than two nouns, among which nothing is told apart.
        """
        super().__init__()
        if len(nouns) < 2:
            raise InputError(f"nouns: need at least 2 to tell regions apart; got {len(nouns)}.")
        self.columns = columns
        self.register_buffer("nouns", nouns.detach())
        self.register_buffer("scale", torch.as_tensor(scale).detach().to(nouns))

    def forward(self, regions: Float[Tensor, "R D"], crops: Float[Tensor, "R D"]) -> Float[Tensor, ""]:
        """Binary cross-entropy summed over the columns, averaged over the regions.

        Args:
            regions: the student's embeddings, L2-normalised.
            crops: the teacher's, of the same regions.
        """
        labels = pseudo_labels(crops, self.nouns)
        columns, counts = draw_columns(labels, classes=len(self.nouns), columns=self.columns)
        return region_text_loss(regions, self.nouns[columns], labels[:, None] == columns, counts, scale=self.scale)


def pseudo_labels(crops: Float[Tensor, "R D"], nouns: Float[Tensor, "K D"]) -> Int64[Tensor, " R"]:
    """The noun nearest to each crop, by cosine.

    Args:
        crops, nouns: L2-normalised.
    """
    return (crops @ nouns.T).argmax(dim=1)


def draw_columns(
    labels: Int64[Tensor, " R"], *, classes: int, columns: int
) -> tuple[Int64[Tensor, " C"], Bool[Tensor, " C"]]:
    """Choose the classes that a batch is told apart among: all that are present, and random others up to `columns`.

    How many are present is known to the device alone, and the host does not ask: it lays out as many columns as there
    may be, and the device says which of them count. The draw is from torch's global generator, which `fit` seeds.

    Args:
        labels: of the regions.
        classes: K.
        columns: so many in all, or as many as are present where these are more.

    Returns:
        The classes, those present first, and which of them count.
    """
    most = min(classes, max(columns, len(labels)))
    present = torch.zeros(classes, device=labels.device).index_fill(0, labels, 1.0)  # (K,)
    drawn = torch.rand(classes, device=labels.device)  # in [0, 1)
    chosen = (present + drawn).topk(most).indices
    counts = (torch.arange(most, device=labels.device) < columns) | (present[chosen] > 0)
    return chosen, counts


def region_text_loss(
    regions: Float[Tensor, "R D"],
    nouns: Float[Tensor, "C D"],
    target: Bool[Tensor, "R C"],
    counts: Bool[Tensor, " C"],
    *,
    scale: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Binary cross-entropy of cos * scale, summed over the columns that count and averaged over the regions.

    Args:
        regions, nouns: L2-normalised.
        target: whether a region is of a column's class.
        counts: which columns count.
        scale: CLIP's inverse temperature (already exponentiated).
    """
    logits = scale * regions @ nouns.T  # (R, C)
    losses = F.binary_cross_entropy_with_logits(logits, target.to(logits), reduction="none")
    return (losses * counts).sum(dim=1).mean()
