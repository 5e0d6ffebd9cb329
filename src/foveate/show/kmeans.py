"""K-means maps: the clusters of the dense map, drawn over the image, before and after side by side (Fig. 4)."""

from pathlib import Path

import torch
from jaxtyping import Int64, UInt8
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from torch import Tensor

from foveate.clip.model import Clip
from foveate.clip.names import Head
from foveate.errors import InputError
from foveate.ops.kmeans import cosine_kmeans
from foveate.show.charts import write_figure
from foveate.show.maps import dense_map, extent_of, new_sheet
from foveate.show.palette import GROUPS


def kmeans_map(
    clip: Clip, image: UInt8[Tensor, "3 H W"], *, size: int, clusters: int = 8, seed: int = 0, head: Head = "value"
) -> Int64[Tensor, "h w"]:
    """Cluster the locations of one image's dense map, without padding, by cosine (Fig. 4).

    Args:
        size: side of the padded square input [pixels].

    Returns:
        The cluster of each location, 0 the largest.
    """
    dense = dense_map(clip, image, size=size, head=head)  # (D, h, w)
    generator = torch.Generator().manual_seed(seed)
    clusters = min(clusters, dense.shape[1] * dense.shape[2])
    labels = cosine_kmeans(dense.flatten(1).T, clusters=clusters, generator=generator)  # (L,)
    return labels.unflatten(0, dense.shape[1:])  # (h, w)


def match_labels(labels: Int64[Tensor, "h w"], reference: Int64[Tensor, "h w"]) -> Int64[Tensor, "h w"]:
    """Renumber clusters after the clusters of another map that they overlap most, so that colours can be compared.

    Pairs are matched by decreasing overlap; unmatched clusters get the remaining numbers.
    """
    count = int(max(labels.max(), reference.max())) + 1
    overlap = torch.bincount((labels * count + reference).flatten(), minlength=count**2).unflatten(0, (count, count))
    renamed = torch.full((count,), -1, dtype=torch.int64)
    for pair in overlap.flatten().argsort(descending=True, stable=True).tolist():
        group, number = divmod(pair, count)
        if renamed[group] < 0 and number not in renamed:
            renamed[group] = number
    return renamed[labels]


def kmeans_sheet(
    path: Path,
    images: list[tuple[str, UInt8[Tensor, "3 _ _"]]],
    *,
    models: list[tuple[str, Clip]],
    size: int,
    clusters: int = 8,
    seed: int = 0,
    head: Head = "value",
) -> None:
    """Draw the K-means maps of several images under several models as one PNG (Fig. 4).

    Args:
        images: a short title and RGB, one row each.
        models: a heading and a model, one column each, such as "before" and "after". Within a row, clusters that
            overlap share a colour from one panel to the next.
        size: side of the padded square input [pixels].
    """
    if not 1 <= clusters <= len(GROUPS):
        raise InputError(f"clusters: need 1 to {len(GROUPS)}, as many as there are distinct colours; got {clusters}")
    note = (
        f"K-means on cosine, at most {clusters} groups; input {size} px, head {head}. Colours name groups, not classes."
    )
    figure, panels = new_sheet(images, headings=[heading for heading, _ in models], size=size, note=note)
    for (_, image), row in zip(images, panels, strict=True):
        previous: Tensor | None = None
        for (_, clip), axes in zip(models, row, strict=True):
            labels = kmeans_map(clip, image, size=size, clusters=clusters, seed=seed, head=head)
            if previous is not None and previous.shape == labels.shape:
                labels = match_labels(labels, previous)
            previous = labels
            _draw_groups(axes, labels, patch=clip.patch_size)
    write_figure(figure, path, made_by="foveate show kmeans")


def _draw_groups(axes: Axes, labels: Int64[Tensor, "h w"], *, patch: int) -> None:
    """Lay the clusters over a faded image, with thin white lines between them."""
    colours = torch.tensor([to_rgb(colour) for colour in GROUPS])  # (12, 3)
    extent = extent_of(labels, patch=patch)
    axes.imshow([[1.0]], cmap="gray", vmin=0, vmax=1, alpha=0.25, extent=extent)
    axes.imshow(colours[labels].numpy(), alpha=0.62, extent=extent, interpolation="nearest")
    across = (labels[:, 1:] != labels[:, :-1]).nonzero()  # (E, 2): a vertical edge right of (row, column)
    down = (labels[1:] != labels[:-1]).nonzero()  # (E, 2): a horizontal edge below
    edges = [((c + 1, r), (c + 1, r + 1)) for r, c in across.tolist()]
    edges += [((c, r + 1), (c + 1, r + 1)) for r, c in down.tolist()]
    lines = [[(x * patch, y * patch) for x, y in edge] for edge in edges]
    axes.add_collection(LineCollection(lines, colors="white", linewidths=0.7, capstyle="round"), autolim=False)
