"""K-means on cosine similarity over the tokens of one image (Fig. 4: what the dense map groups together).

Lloyd's iterations from a k-means++ start; clusters too small to see are dissolved. Exact repeatability comes from the
generator.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from foveate.errors import InputError


def cosine_kmeans(
    tokens: Float[Tensor, "L D"],
    *,
    clusters: int,
    generator: torch.Generator,
    iterations: int = 50,
    smallest: float = 0.02,
) -> Int64[Tensor, " L"]:
    """Group tokens by direction (Fig. 4).

    Args:
        tokens: of one image; their length does not matter.
        clusters: at most so many groups.
        generator: of the CPU; chooses the starting centres.
        iterations: at most; stops as soon as nothing moves.
        smallest: groups with a smaller share of the tokens are dissolved, each token going to the nearest group left.

    Returns:
        A group for each token, 0 the largest; fewer groups than asked for where some were dissolved or stayed empty.

    Raises:
        InputError: more clusters than tokens, fewer than one, or tokens that are not finite.
    """
    if not 1 <= clusters <= tokens.shape[0]:
        raise InputError(f"clusters: need 1 to {tokens.shape[0]}, the number of tokens; got {clusters}.")
    if not tokens.isfinite().all():
        raise InputError("tokens: need finite numbers; got NaN or infinity. Check the weights the map was made with.")
    tokens = F.normalize(tokens.float(), dim=1)
    centres = _spread_centres(tokens, clusters, generator)  # (K, D)
    labels = _nearest(tokens, centres)  # (L,)
    for _ in range(iterations):
        centres = _mean_directions(tokens, labels, centres)
        previous, labels = labels, _nearest(tokens, centres)
        if torch.equal(previous, labels):
            break
    share = labels.bincount(minlength=clusters) / labels.shape[0]  # (K,)
    kept = share >= min(smallest, float(share.max()))  # (K,), at least the largest
    kept &= share > 0
    return _number_by_size(_nearest(tokens, centres[kept]))


def _spread_centres(tokens: Float[Tensor, "L D"], clusters: int, generator: torch.Generator) -> Float[Tensor, "K D"]:
    """Choose starting tokens far from each other: k-means++ with 1 - cosine as the squared distance."""
    first = int(torch.randint(tokens.shape[0], (), generator=generator))
    chosen = [first]
    distance = (1 - tokens @ tokens[first]).clamp(min=0)  # (L,)
    while len(chosen) < clusters:
        odds = distance.cpu().double() + 1e-12  # identical tokens are still drawn when nothing else is left
        chosen.append(int(torch.multinomial(odds, 1, generator=generator)))
        distance = torch.minimum(distance, (1 - tokens @ tokens[chosen[-1]]).clamp(min=0))
    return tokens[chosen]


def _nearest(tokens: Float[Tensor, "L D"], centres: Float[Tensor, "K D"]) -> Int64[Tensor, " L"]:
    return (tokens @ centres.T).argmax(dim=1)


def _mean_directions(
    tokens: Float[Tensor, "L D"], labels: Int64[Tensor, " L"], centres: Float[Tensor, "K D"]
) -> Float[Tensor, "K D"]:
    """Move each centre to the mean direction of its tokens; a centre without tokens stays."""
    members = F.one_hot(labels, centres.shape[0]).T.to(tokens.dtype)  # (K, L)
    means = F.normalize(members @ tokens, dim=1)  # (K, D)
    return torch.where(members.any(dim=1, keepdim=True), means, centres)


def _number_by_size(labels: Int64[Tensor, " L"]) -> Int64[Tensor, " L"]:
    """Renumber groups so that 0 is the largest; empty numbers disappear."""
    order = labels.bincount().argsort(descending=True, stable=True)  # old numbers, largest group first
    place = torch.empty_like(order)
    place[order] = torch.arange(order.shape[0], device=order.device)
    return place[labels]
