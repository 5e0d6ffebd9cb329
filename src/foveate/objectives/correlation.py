"""Keep which places of an image are alike: spatial correlation distillation, a term beside CLIPSelf's (Sec. 3.2).

After an idea of Qiu et al., "Refining CLIP's Spatial Awareness: A Visual-Centric Perspective" (R-SC), ICLR 2025 (arXiv
2504.02328): tuning regions alone costs the dense map spatial structure, so the student's similarities between
locations, as distributions at a temperature, are held to those of the frozen model. It is not R-SC's term, and what is
measured with it says nothing of R-SC.

    images --teacher.encode_dense--> places alike --+
       +-----student.encode_dense--> places alike  ---+--> KL(teacher || student), mean over the places

Ours, and not the source's: the places of the whole image rather than of single regions, averaged over cells where
there are many, so that the cost is bounded and every token takes part; KL in the place of cross-entropy, which differs
by a constant and is 0 where the student has the teacher's structure. Deliberately absent: the source's Refiner, a
network trained beforehand to clean the teacher's map.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_MOST = 14  # cells an axis: at most 196 places an image


def correlation_losses(
    student: Float[Tensor, "B D h w"],
    teacher: Float[Tensor, "B D h w"],
    *,
    grids: list[tuple[int, int]],
    temperature: float,
) -> Float[Tensor, " B"]:
    """KL of the student's from the teacher's distribution over places, mean over the places of each image.

    Args:
        student: dense map, learns.
        teacher: dense map of the same input.
        grids: (h, w) of the top left of a map that holds its image; padding beside it takes no part.
        temperature: of both softmaxes over cosine similarities.

    Returns:
        One loss an image, 0 or above.
    """
    found = []
    for ours, theirs, (h, w) in zip(student, teacher, grids, strict=True):
        logits, target = (_alike(one[:, :h, :w]) / temperature for one in (ours, theirs))  # (n, n) each
        both = logits.log_softmax(dim=1), target.log_softmax(dim=1)
        found.append(F.kl_div(*both, reduction="batchmean", log_target=True))
    return torch.stack(found)


def _alike(dense: Float[Tensor, "D h w"]) -> Float[Tensor, "n n"]:
    """Cosine similarities between the places of a map."""
    h, w = dense.shape[1:]
    places = F.adaptive_avg_pool2d(dense, (min(h, _MOST), min(w, _MOST))).flatten(1).T  # (n, D)
    places = F.normalize(places, dim=1)
    return places @ places.T
