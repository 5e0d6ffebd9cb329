"""CLIP's contrastive objective on picture-caption pairs.

Used to pretrain the small CLIP on the rendered world, and as the paper's control of image-level supervision (Tab. 1,
row 5). Deliberately absent: gathering of embeddings over processes.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor


def contrastive_loss(
    images: Float[Tensor, "B D"],
    texts: Float[Tensor, "B D"],
    captions: Int64[Tensor, " B"],
    *,
    scale: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Cross-entropy of each picture over all captions and of each caption over all pictures, averaged.

    Pairs with the very same caption are positives of one another and share the target evenly: with a few dozen
    categories such pairs are common, and to call them negatives would be false.

    Args:
        images, texts: L2-normalised embeddings of the pairs.
        captions: a number for each pair's caption; equal numbers are equal captions.
        scale: CLIP's learned inverse temperature (already exponentiated).
    """
    logits = scale * images @ texts.T  # (B, B)
    same = (captions[:, None] == captions[None, :]).float()
    target = same / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def clamp_scale(logit_scale: Float[Tensor, ""]) -> None:
    """Keep CLIP's logit_scale within [0, log 100], in place (as CLIP's training does after each step)."""
    with torch.no_grad():
        logit_scale.clamp_(0, 4.6052)
