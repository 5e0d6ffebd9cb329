"""Spatial correlation distillation: a term beside CLIPSelf's (Sec. 3.2) that preserves similarities between locations.

After an idea of Qiu et al., "Refining CLIP's Spatial Awareness: A Visual-Centric Perspective" (R-SC), ICLR 2025 (arXiv
2504.02328): training on regions alone costs the dense map spatial structure, so the student's similarities between
locations, as distributions at a temperature, are drawn to those of the frozen model. It is not R-SC's term, and what is
measured with it says nothing of R-SC.

    images --teacher.encode_dense--> similarities --+
       +-----student.encode_dense--> similarities --+--> KL(teacher || student), mean over the locations

Ours, and not the source's: the locations of the whole image rather than of single regions, averaged over cells where
there are many, so that the cost is bounded and every token takes part; KL instead of cross-entropy, which differs by a
constant and is 0 where the student has the teacher's structure. The source's Refiner is absent.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from foveate.clip.names import Head

MAX_CELLS = 14  # per axis: at most 196 locations per image


@dataclass(frozen=True)
class Correlation:
    """The settings of the term."""

    weight: float
    head: Head = "naclip"  # the last block of the teacher's dense map
    temperature: float = 0.1


def correlation_losses(
    student: Float[Tensor, "B D h w"],
    teacher: Float[Tensor, "B D h w"],
    *,
    grids: list[tuple[int, int]],
    temperature: float,
) -> Float[Tensor, " B"]:
    """KL divergence between the teacher's and the student's similarities, mean over the locations of each image.

    Args:
        student: dense map, trained.
        teacher: dense map of the same input.
        grids: (h, w) of the top left part of each map that holds the image; padding takes no part.
        temperature: of both softmaxes over cosine similarities.

    Returns:
        One loss per image, at least 0.
    """
    losses = []
    for trained, frozen, (h, w) in zip(student, teacher, grids, strict=True):
        logits, target = (_similarities(dense[:, :h, :w]) / temperature for dense in (trained, frozen))  # (n, n) each
        logs = logits.log_softmax(dim=1), target.log_softmax(dim=1)
        losses.append(F.kl_div(*logs, reduction="batchmean", log_target=True))
    return torch.stack(losses)


def _similarities(dense: Float[Tensor, "D h w"]) -> Float[Tensor, "n n"]:
    """Cosine similarities between the locations of a map."""
    h, w = dense.shape[1:]
    cells = F.adaptive_avg_pool2d(dense, (min(h, MAX_CELLS), min(w, MAX_CELLS))).flatten(1).T  # (n, D)
    cells = F.normalize(cells, dim=1)
    return cells @ cells.T
