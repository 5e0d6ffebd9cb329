"""The cost volume of CAT-Seg: how much each place agrees with each prompt, and which classes are worth a look."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

REFUSED = -100.0  # the logit of a class that was not looked at


def cost_volume(dense: Float[Tensor, "B D h w"], text: Float[Tensor, "K P D"]) -> Float[Tensor, "B K P h w"]:
    """The cosine of each place with each prompt of each class.

    Args:
        dense: dense embeddings of any length.
        text: embeddings of any length, P prompts per class.
    """
    return torch.einsum("bdhw,kpd->bkphw", F.normalize(dense.float(), dim=1), F.normalize(text.float(), dim=2))


def best_classes(cost: Float[Tensor, "B K P h w"], *, most: int) -> Int64[Tensor, "B M"]:
    """The classes with the greatest cosine anywhere in an image, at most so many, in the order of the vocabulary.

    Args:
        cost: of `cost_volume`.
        most: how many.
    """
    greatest = cost.flatten(2).amax(dim=2)  # (B, K)
    return greatest.topk(min(most, cost.shape[1]), dim=1).indices.sort(dim=1).values


def take_classes(values: Float[Tensor, "B K *rest"], chosen: Int64[Tensor, "B M"]) -> Float[Tensor, "B M *rest"]:
    """Of each image the classes that were chosen for it."""
    return values[torch.arange(len(values), device=values.device)[:, None], chosen]


def spread_classes(
    logits: Float[Tensor, "B M H W"], chosen: Int64[Tensor, "B M"], *, count: int
) -> Float[Tensor, "B K H W"]:
    """Put the logits of chosen classes back among all, the others refused; the inverse of `take_classes`.

    Args:
        logits: of the chosen classes.
        chosen: which they are.
        count: K.
    """
    spread = logits.new_full((len(logits), count, *logits.shape[2:]), REFUSED)
    spread[torch.arange(len(logits), device=logits.device)[:, None], chosen] = logits
    return spread
