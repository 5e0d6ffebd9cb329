"""Class-agnostic regions of a dense feature map, without training: adjacent locations merged by Ward's criterion.

Regions begin as single locations. In each round, every two adjacent regions that are each other's nearest are merged,
until one is left; the distance is the growth of the variance within regions (Ward, JASA 1963), as in hierarchical
grouping of superpixels (Selective Search, Uijlings et al., IJCV 2013), here of a CLIP's dense features alone. Every
region of the tree is a candidate. It scores high if its embedding differs from the locations around it, if it touches
little of the image's border, and, weakly, if it is large.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torchvision.ops import nms

MIN_LOCATIONS = 4
MAX_FRACTION = 0.35  # of the map
AREA_POWER = 0.3


@dataclass(frozen=True)
class Regions:
    """The N candidate regions of a dense map, best first."""

    boxes: Float[Tensor, "N 4"]  # xyxy, locations of the map: the extent of each region
    scores: Float[Tensor, " N"]  # that a region is an object, in [0, 2]; comparable within a map only
    embeddings: Float[Tensor, "N D"]  # mean over the region's locations, of length 1
    masks: Bool[Tensor, "N h w"]


@torch.no_grad()
def find_regions(dense: Float[Tensor, "D h w"], *, keep: int = 100, overlap: float = 0.7) -> Regions:
    """Find regions of a dense map that may be objects.

    Args:
        dense: L2-normalised per location.
        keep: max regions.
        overlap: IoU of boxes above which the worse of two regions is removed.

    Returns:
        At most `keep` regions; none of a map with fewer than `MIN_LOCATIONS` locations.
    """
    height, width = dense.shape[1:]
    tree = _Tree(dense)
    while tree.merge():
        pass
    usable = (tree.sizes >= MIN_LOCATIONS) & (tree.sizes <= MAX_FRACTION * height * width)
    rows = usable.nonzero()[:, 0]
    rows = rows[nms(tree.boxes[rows], tree.scores[rows], overlap)[:keep]]
    return Regions(tree.boxes[rows], tree.scores[rows], F.normalize(tree.sums[rows], dim=1), tree.masks(rows))


class _Tree:
    """The regions, numbered in the order in which they are made: first the L locations, row by row; 2 L - 1 in all."""

    def __init__(self, dense: Float[Tensor, "D h w"]) -> None:
        self.height, self.width = dense.shape[1:]
        self.locations = dense.flatten(1).T.float()  # (L, D)
        self.count = count = len(self.locations)
        index = torch.arange(count, device=dense.device)
        self.labels = index.clone()  # (L,), the present region of each location
        rows, columns = index // self.width, index % self.width
        # of all regions; those to be made are zero
        more = count - 1
        self.sums = F.pad(self.locations, (0, 0, 0, more))
        self.sizes = F.pad(torch.ones_like(self.locations[:, 0]), (0, more))
        self.boxes = F.pad(torch.stack([columns, rows, columns + 1, rows + 1], dim=1).float(), (0, 0, 0, more))
        self.scores = torch.zeros_like(self.sizes)
        self.children: list[tuple[int, int]] = []
        # pairs of adjacent locations, in both orders
        grid = index.view(self.height, self.width)
        below, beside = (grid[:-1], grid[1:]), (grid[:, :-1], grid[:, 1:])
        pairs = [torch.stack(pair, dim=-1).view(-1, 2) for pair in (below, beside)]
        self.pairs = torch.cat([*pairs, *(pair.flip(1) for pair in pairs)])  # (2 E, 2)
        self.border = (rows == 0) | (rows == self.height - 1) | (columns == 0) | (columns == self.width - 1)

    def merge(self) -> bool:
        """Merge all pairs of mutually nearest regions; whether there were any."""
        edges = self.labels[self.pairs]
        first, second = _unique_pairs(edges[edges[:, 0] != edges[:, 1]])
        if not len(first):
            return False
        present = first.unique()  # sorted; every region has a neighbour
        first, second = torch.searchsorted(present, first), torch.searchsorted(present, second)
        # Ward's distance of adjacent regions
        sizes = self.sizes[present]
        means = self.sums[present] / sizes[:, None]
        gap = (means[first] - means[second]).square().sum(dim=1)
        distance = gap * sizes[first] * sizes[second] / (sizes[first] + sizes[second])
        # the nearest of each; of equal distances the lowest pair, so that at least one pair is mutual
        order = torch.argsort(torch.minimum(first, second) * len(present) + torch.maximum(first, second))
        order = order[torch.argsort(distance[order], stable=True)]
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device)
        best = torch.full_like(present, len(order)).scatter_reduce(0, first, rank, "amin")
        nearest = second[order[best]]
        index = torch.arange(len(present), device=order.device)
        left = ((nearest[nearest] == index) & (index < nearest)).nonzero()[:, 0]
        self._add(present[left], present[nearest[left]])
        return True

    def _add(self, left: Int64[Tensor, " M"], right: Int64[Tensor, " M"]) -> None:
        """Make a region of each pair."""
        new = slice(self.count, self.count + len(left))
        renamed = torch.arange(self.count, device=left.device)
        renamed[left] = renamed[right] = torch.arange(new.start, new.stop, device=left.device)
        self.labels = renamed[self.labels]
        self.sums[new] = self.sums[left] + self.sums[right]
        self.sizes[new] = self.sizes[left] + self.sizes[right]
        self.boxes[new, :2] = torch.minimum(self.boxes[left, :2], self.boxes[right, :2])
        self.boxes[new, 2:] = torch.maximum(self.boxes[left, 2:], self.boxes[right, 2:])
        self.children += zip(left.tolist(), right.tolist(), strict=True)
        self.count = new.stop
        self.scores[new] = self._score(new)

    def _score(self, new: slice) -> Float[Tensor, " M"]:
        """How much new regions look like objects."""
        sums, sizes, boxes = self.sums[new], self.sizes[new], self.boxes[new]
        # contrast: how unlike the region the locations next to it are, each counted once
        inside, around = self.labels[self.pairs[:, 0]], self.pairs[:, 1]
        is_rim = (inside >= new.start) & (self.labels[around] != inside)
        region, rim = _unique_pairs(torch.stack([inside[is_rim] - new.start, around[is_rim]], dim=1))
        likeness = (self.locations[rim] * F.normalize(sums, dim=1)[region]).sum(dim=1)
        total = torch.zeros_like(sizes).index_add_(0, region, likeness)
        contrast = 1 - total / region.bincount(minlength=len(sizes)).clamp(min=1)
        # the part of the extent's perimeter that lies on the image's border
        own = self.labels[self.border]
        touched = (own[own >= new.start] - new.start).bincount(minlength=len(sizes))
        perimeter = 2 * (boxes[:, 2:] - boxes[:, :2]).sum(dim=1)
        return contrast * (1 - touched / perimeter).clamp(min=0) * (sizes / len(self.locations)) ** AREA_POWER

    def masks(self, rows: Int64[Tensor, " N"]) -> Bool[Tensor, "N h w"]:
        """The locations of regions."""
        first = len(self.locations)
        masks = torch.zeros(len(rows), first, dtype=torch.bool)
        for mask, row in zip(masks, rows.tolist(), strict=True):
            stack, members = [row], []
            while stack:
                region = stack.pop()
                if region < first:
                    members.append(region)
                else:
                    stack += self.children[region - first]
            mask[members] = True
        return masks.view(-1, self.height, self.width).to(rows.device)


def _unique_pairs(pairs: Int64[Tensor, "E 2"]) -> tuple[Int64[Tensor, " U"], Int64[Tensor, " U"]]:
    """The distinct pairs, sorted."""
    base = int(pairs.max()) + 1 if len(pairs) else 1
    keys = (pairs[:, 0] * base + pairs[:, 1]).unique()
    return keys // base, keys % base
