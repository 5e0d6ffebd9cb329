"""Classes of proposed masks: what their generator says, and what CLIP says, as one distribution (ODISE; Tab. 5).

    1  g = generator's logits, the best of a class's synonyms, and a column for "no object"
    2  p = softmax of g without that column; n = its share in the softmax of all
    3  q = softmax of CLIP's logits of the mask, the best of a class's synonyms
    4  a class is seen if any of its synonyms is one of a training class
    5  f = (1 - share) log p + share log q, with one share for seen classes and another for the rest
    6  [(1 - n) softmax f, n], as logits log(. + 1e-8)

CLIP's embedding of a mask is the mean of the dense map inside it (what CLIPSelf is for), or masked attention (what
ODISE has in its place). Deliberately absent: the generator's own logits (`mask2former`), what becomes of the masks
(`merge`).
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
from foveate.heads.panoptic.names import SHARES, Preset
from foveate.ops.pool import pool_masks

FLOOR = 1e-8  # added before the last logarithm
_CHUNK = 16  # masks made as large as the picture at once


@dataclass(frozen=True)
class Shares:
    """CLIP's share in the score of a class, in [0, 1]."""

    seen: float
    unseen: float

    def __post_init__(self) -> None:
        for name in ("seen", "unseen"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"shares: need `{name}` in [0, 1]; got {getattr(self, name)}.")


PRESETS: dict[Preset, Shares] = {name: Shares(*numbers) for name, numbers in SHARES.items()}


def seen_classes(asked: Vocabulary, trained: Vocabulary) -> Bool[Tensor, " K"]:
    """Which of the classes asked for go by any word that a training class goes by (4).

    Args:
        asked: the K classes.
        trained: those the generator learned from.
    """
    return torch.tensor(share_words(asked, trained))


def clip_logits(embeddings: Float[Tensor, "Q D"], words: ClassEmbeddings, *, scale: float) -> Float[Tensor, "Q K"]:
    """CLIP's logits of masks (3).

    Args:
        embeddings: of masks.
        words: of the classes.
        scale: CLIP's.
    """
    cosines = F.normalize(embeddings.float(), dim=1) @ words.rows.to(embeddings.device).float().T
    return best_of_synonyms(scale * cosines, words)


def fuse(
    generator: Float[Tensor, "Q K1"], clip: Float[Tensor, "Q K"] | None, is_seen: Bool[Tensor, " K"], shares: Shares
) -> Float[Tensor, "Q K1"]:
    """One distribution out of two (2, 5, 6).

    In logarithms all the way, where a probability that is too small for a number still counts.

    Args:
        generator: logits of the K classes and, last, of "no object".
        clip: logits of the K classes; None where its shares are 0.
        is_seen: of the classes.
        shares: CLIP's.

    Returns:
        Logits of the K classes and, last, of "no object"; their softmax is the distribution, up to the 1e-8.
    """
    p = generator[:, :-1].float().log_softmax(dim=1)  # (Q, K)
    nothing = generator.float().softmax(dim=1)[:, -1:]  # (Q, 1)
    share = torch.where(is_seen.to(p.device), shares.seen, shares.unseen)  # (K,)
    assert clip is not None or not share.any(), "CLIP has a share in the score and said nothing"
    mixed = p if clip is None else (1 - share) * p + share * clip.float().log_softmax(dim=1)
    return (torch.cat([mixed.softmax(dim=1) * (1 - nothing), nothing], dim=1) + FLOOR).log()


# -------------------------------------------------------------------------------------------------- embeddings of masks


def on_grid(logits: Float[Tensor, "Q H W"], *, grid: tuple[int, int]) -> Bool[Tensor, "Q h w"]:
    """Which places of a token grid belong to each mask: above 0 once brought there bilinearly, the largest if none is.

    Args:
        logits: of the masks, of the same part of the picture as the grid.
        grid: (h, w).
    """
    if not len(logits):
        return logits.new_zeros((0, *grid), dtype=torch.bool)
    shrunk = _resize(logits, grid).flatten(1)  # (Q, L)
    inside = shrunk > 0
    largest = torch.zeros_like(inside).scatter(1, shrunk.argmax(dim=1, keepdim=True), True)
    return torch.where(inside.any(dim=1, keepdim=True), inside, largest).unflatten(1, grid)


def pool_mask_logits(dense: Float[Tensor, "D h w"], logits: Float[Tensor, "Q H W"]) -> Float[Tensor, "Q D"]:
    """Embed masks by the mean of the dense map inside them (mask pooling; Sec. 4.1).

    Args:
        dense: of the picture; normalised here.
        logits: of the masks, of the same part of the picture as the map.
    """
    unit = F.normalize(dense.float(), dim=0)
    return pool_masks(unit[None], [on_grid(logits.to(dense.device), grid=(dense.shape[1], dense.shape[2]))])


def touched_patches(logits: Float[Tensor, "Q H W"], *, grid: tuple[int, int], patch: int) -> Bool[Tensor, "Q h w"]:
    """Which patches masked attention may look at: those with a pixel whose probability is one half at least.

    Args:
        logits: of the masks, of the same part of the picture as the grid.
        grid: (h, w).
        patch: side of a patch [pixels].
    """
    parts = [logits.new_zeros((0, *grid), dtype=torch.bool)]
    for some in logits.split(_CHUNK) if len(logits) else ():
        pixels = _resize(some, (grid[0] * patch, grid[1] * patch))
        parts.append(F.max_pool2d(pixels, patch) >= 0)
    return torch.cat(parts)


def _resize(logits: Float[Tensor, "Q H W"], size: Sequence[int]) -> Float[Tensor, "Q h w"]:
    return F.interpolate(logits[None].float(), size=tuple(size), mode="bilinear", align_corners=False)[0]
