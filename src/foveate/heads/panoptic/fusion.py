"""Classes of proposed masks: the mask generator's scores and CLIP's, fused (ODISE; Tab. 5).

    1  g = mask generator's logits, the best of a class's synonyms, and a column for "no object"
    2  p = softmax of g without that column; n = its probability in the softmax of all
    3  q = softmax of CLIP's logits of the mask, the best of a class's synonyms
    4  a class is seen if it shares a synonym with a training class
    5  f = (1 - w) log p + w log q, with one fusion weight w for seen classes (alpha) and another for the rest (beta)
    6  [(1 - n) softmax f, n], as logits log(. + 1e-8)

CLIP's embedding of a mask is the mean of the dense feature map inside it (CLIPSelf's), or masked attention (ODISE's).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from foveate.clip.vocabulary import Vocabulary, share_words
from foveate.errors import InputError
from foveate.heads.common.text import ClassEmbeddings, best_of_synonyms
from foveate.heads.panoptic.names import FUSION_WEIGHTS, Preset
from foveate.ops.pool import pool_masks

EPSILON = 1e-8  # added before the last logarithm
MASK_CHUNK = 16  # masks resized to the image at once


@dataclass(frozen=True)
class FusionWeights:
    """CLIP's weight in the score of a class, in [0, 1]."""

    seen: float  # alpha
    unseen: float  # beta

    def __post_init__(self) -> None:
        for name in ("seen", "unseen"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"fusion weights: need `{name}` in [0, 1]; got {getattr(self, name)}.")


PRESETS: dict[Preset, FusionWeights] = {name: FusionWeights(*pair) for name, pair in FUSION_WEIGHTS.items()}


def seen_classes(vocabulary: Vocabulary, trained: Vocabulary) -> Bool[Tensor, " K"]:
    """The classes that share a synonym with a training class (4)."""
    return torch.tensor(share_words(vocabulary, trained))


def clip_logits(embeddings: Float[Tensor, "Q D"], classes: ClassEmbeddings, *, scale: float) -> Float[Tensor, "Q K"]:
    """CLIP's logits of masks (3), from its embeddings of them and its logit scale."""
    text = classes.embeddings.to(embeddings.device).float()  # (S, D)
    return best_of_synonyms(scale * (F.normalize(embeddings.float(), dim=1) @ text.T), classes)


def fuse(
    generator: Float[Tensor, "Q K1"],
    clip: Float[Tensor, "Q K"] | None,
    is_seen: Bool[Tensor, " K"],
    weights: FusionWeights,
) -> Float[Tensor, "Q K1"]:
    """Fuse two distributions (2, 5, 6), in logarithms, so that small probabilities do not underflow.

    Args:
        generator: logits of the K classes and, last, of "no object".
        clip: logits of the K classes; None if its weights are 0.
        is_seen: of the classes.
        weights: CLIP's.

    Returns:
        Logits of the K classes and, last, of "no object"; their softmax is the distribution, up to the 1e-8.
    """
    p = generator[:, :-1].float().log_softmax(dim=1)  # (Q, K)
    no_object = generator.float().softmax(dim=1)[:, -1:]  # (Q, 1)
    weight = torch.where(is_seen.to(p.device), weights.seen, weights.unseen)  # (K,)
    assert clip is not None or not weight.any(), "CLIP has a fusion weight and no logits"
    mixed = p if clip is None else (1 - weight) * p + weight * clip.float().log_softmax(dim=1)
    return (torch.cat([mixed.softmax(dim=1) * (1 - no_object), no_object], dim=1) + EPSILON).log()


# -------------------------------------------------------------------------------------------------- embeddings of masks


def on_grid(logits: Float[Tensor, "Q H W"], *, grid: tuple[int, int]) -> Bool[Tensor, "Q h w"]:
    """The locations of a grid (h, w) inside each mask: logits above 0 after resizing, or else the largest logit.

    Args:
        logits: of the masks, of the same part of the image as the grid.
        grid: (h, w).
    """
    if not len(logits):
        return logits.new_zeros((0, *grid), dtype=torch.bool)
    resized = _resize(logits, grid).flatten(1)  # (Q, L)
    inside = resized > 0
    largest = torch.zeros_like(inside).scatter(1, resized.argmax(dim=1, keepdim=True), True)
    return torch.where(inside.any(dim=1, keepdim=True), inside, largest).unflatten(1, grid)


def pool_mask_logits(dense: Float[Tensor, "D h w"], logits: Float[Tensor, "Q H W"]) -> Float[Tensor, "Q D"]:
    """Embed masks by the mean of the dense feature map inside them (mask pooling; Sec. 4.1).

    Args:
        dense: of the image; need not be normalised.
        logits: of the masks, of the same part of the image as the map.
    """
    unit = F.normalize(dense.float(), dim=0)
    return pool_masks(unit[None], [on_grid(logits.to(dense.device), grid=(dense.shape[1], dense.shape[2]))])


def touched_patches(logits: Float[Tensor, "Q H W"], *, grid: tuple[int, int], patch: int) -> Bool[Tensor, "Q h w"]:
    """The patches of masked attention: those with a pixel whose probability is at least 0.5.

    Args:
        logits: of the masks, of the same part of the image as the grid.
        grid: (h, w).
        patch: side of a patch [pixels].
    """
    parts = [logits.new_zeros((0, *grid), dtype=torch.bool)]
    for chunk in logits.split(MASK_CHUNK) if len(logits) else ():
        pixels = _resize(chunk, (grid[0] * patch, grid[1] * patch))
        parts.append(F.max_pool2d(pixels, patch) >= 0)
    return torch.cat(parts)


def _resize(logits: Float[Tensor, "Q H W"], size: Sequence[int]) -> Float[Tensor, "Q h w"]:
    return F.interpolate(logits[None].float(), size=tuple(size), mode="bilinear", align_corners=False)[0]
