"""The cost volume of CAT-Seg: cosines of locations with prompts, and the choice of the best classes."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

UNSELECTED_LOGIT = -100.0


def cost_volume(dense: Float[Tensor, "B D h w"], text: Float[Tensor, "K P D"]) -> Float[Tensor, "B K P h w"]:
    """The cosine of each location with each of the P prompts of each class; inputs need not be normalised."""
    return torch.einsum("bdhw,kpd->bkphw", F.normalize(dense.float(), dim=1), F.normalize(text.float(), dim=2))


def best_classes(cost: Float[Tensor, "B K P h w"], *, max_classes: int) -> Int64[Tensor, "B M"]:
    """The classes of the highest cosines anywhere in an image, in the order of the vocabulary."""
    highest = cost.flatten(2).amax(dim=2)  # (B, K)
    return highest.topk(min(max_classes, cost.shape[1]), dim=1).indices.sort(dim=1).values


def take_classes(values: Float[Tensor, "B K *rest"], chosen: Int64[Tensor, "B M"]) -> Float[Tensor, "B M *rest"]:
    """The values of each image's chosen classes."""
    return values[torch.arange(len(values), device=values.device)[:, None], chosen]


def spread_classes(
    logits: Float[Tensor, "B M H W"], chosen: Int64[Tensor, "B M"], *, count: int
) -> Float[Tensor, "B K H W"]:
    """The inverse of `take_classes`: logits of `count` classes, -100 for those that were not chosen."""
    spread = logits.new_full((len(logits), count, *logits.shape[2:]), UNSELECTED_LOGIT)
    spread[torch.arange(len(logits), device=logits.device)[:, None], chosen] = logits
    return spread
