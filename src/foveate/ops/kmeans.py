"""K-means on cosine similarity over the tokens of one image (Fig. 4).

Lloyd's iterations from a k-means++ start; small clusters are dissolved. The same generator gives the same clusters.
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
    """Cluster tokens by direction (Fig. 4).

    Args:
        tokens: of one image; they need not be normalised.
        clusters: maximum number of clusters.
        generator: of the CPU; draws the initial centres.
        iterations: maximum; stops at convergence.
        smallest: clusters with a smaller share of the tokens, in [0, 1], are dissolved into the nearest remaining ones.

    Returns:
        The cluster of each token, 0 the largest; fewer clusters than requested where some were dissolved or empty.

    Raises:
        InputError: `clusters` is not in 1 .. L, or a token is not finite.
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
    is_large = share >= min(smallest, float(share.max()))  # (K,), at least the largest
    return _number_by_size(_nearest(tokens, centres[is_large & (share > 0)]))


def _spread_centres(tokens: Float[Tensor, "L D"], clusters: int, generator: torch.Generator) -> Float[Tensor, "K D"]:
    """Choose initial tokens far from each other: k-means++ with 1 - cosine as the squared distance."""
    indices = [int(torch.randint(tokens.shape[0], (), generator=generator))]
    distance = (1 - tokens @ tokens[indices[0]]).clamp(min=0)  # (L,)
    while len(indices) < clusters:
        odds = distance.cpu().double() + 1e-12  # identical tokens are still drawn when no others remain
        indices.append(int(torch.multinomial(odds, 1, generator=generator)))
        distance = torch.minimum(distance, (1 - tokens @ tokens[indices[-1]]).clamp(min=0))
    return tokens[indices]


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
    """Renumber clusters by size, 0 the largest."""
    order = labels.bincount().argsort(descending=True, stable=True)  # old numbers, largest cluster first
    rank = torch.empty_like(order)
    rank[order] = torch.arange(order.shape[0], device=order.device)
    return rank[labels]
