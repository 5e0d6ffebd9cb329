"""`saccade show kmeans` and `saccade show similarity`: pictures of the dense map, before and after side by side.

Torch is imported only when something is drawn, so that help and typing errors answer at once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from saccade.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from saccade.clip.model import Clip
    from saccade.data.coco import Dataset


@dataclass(frozen=True)
class KMeans:
    """Draw what the dense map groups together (Fig. 4 of the paper)."""

    data: Path
    """A picture, a folder of pictures, or a COCO root."""
    model: str
    """Name of a CLIP, or a folder with one (OUT/model of a run)."""
    out: Path
    """PNG to write."""
    before: str | None = None
    """Draw this CLIP beside it, such as the one `model` was distilled from."""
    pretrained: str | None = None
    """Weights file or open_clip tag, where `before` (or, without it, `model`) is the name of an architecture."""
    split: str = "val"
    """train, val or test of a COCO root."""
    count: int = 6
    """Pictures, evenly spaced over the data."""
    size: int | None = None
    """Side of the dense input [pixels]; default: four times the model's own size."""
    clusters: int = 8
    """At most so many groups a picture."""
    seed: int = 0
    """Of the starting centres."""
    head: Literal["value", "value_only", "attention"] = "value"
    """What becomes of the last block; value is the paper's."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto = cuda where there is one."""


@dataclass(frozen=True)
class Similarity:
    """Draw where pictures answer to a text."""

    data: Path
    """A picture, a folder of pictures, or a COCO root."""
    model: str
    """Name of a CLIP, or a folder with one (OUT/model of a run)."""
    query: tuple[str, ...]
    """Class names or a few words each; every picture is asked for each of them."""
    out: Path
    """PNG to write."""
    before: str | None = None
    """Draw this CLIP beside it, such as the one `model` was distilled from."""
    pretrained: str | None = None
    """Weights file or open_clip tag, where `before` (or, without it, `model`) is the name of an architecture."""
    split: str = "val"
    """train, val or test of a COCO root."""
    count: int = 3
    """Pictures, evenly spaced over the data."""
    size: int | None = None
    """Side of the dense input [pixels]; default: four times the model's own size."""
    head: Literal["value", "value_only", "attention"] = "value"
    """What becomes of the last block; value is the paper's."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto = cuda where there is one."""


def run_kmeans(config: KMeans) -> Path:
    """Draw the sheet of K-means maps, say where it lies, and return its path."""
    _check(config)
    from saccade.show.kmeans import kmeans_sheet

    pictures, models = _pictures(config), _models(config)
    size = config.size or 4 * models[-1][1].native_size
    numbers = {"size": size, "clusters": config.clusters, "seed": config.seed}
    kmeans_sheet(config.out, pictures, models=models, head=config.head, **numbers)
    print(f"wrote {config.out}")
    return config.out


def run_similarity(config: Similarity) -> Path:
    """Draw the sheet of similarity maps, say where it lies, and return its path."""
    _check(config)
    from saccade.show.similarity import similarity_sheet

    rows = [(query, image) for _, image in _pictures(config) for query in config.query]
    models = _models(config)
    size = config.size or 4 * models[-1][1].native_size
    similarity_sheet(config.out, rows, models=models, size=size, head=config.head)
    print(f"wrote {config.out}")
    return config.out


def _check(config: KMeans | Similarity) -> None:
    """Refuse flags that cannot work before any model is loaded."""
    if config.out.suffix.lower() != ".png":
        raise InputError(f"out: need the name of a PNG file; got {config.out}.")
    if config.count < 1:
        raise InputError(f"count: need at least 1 picture; got {config.count}.")


def _pictures(config: KMeans | Similarity) -> "list[tuple[str, Tensor]]":
    """Read the pictures asked for, evenly spaced over the data; a bad one is an error."""
    from saccade.data.pictures import read_picture

    if config.data.is_file():
        return [(config.data.name, read_picture(config.data))]
    records = _open(config.data, config.split).records
    count = min(config.count, len(records))
    chosen = [records[index * len(records) // count] for index in range(count)]
    return [(str(record.id), read_picture(record.path, expected_size=record.size)) for record in chosen]


def _open(path: Path, split: str) -> "Dataset":
    from saccade.data.loader import open_data

    return open_data(path, split=split)


def _models(config: KMeans | Similarity) -> "list[tuple[str, Clip]]":
    """Load the models, each under its heading."""
    import torch

    from saccade.clip.model import load

    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    if config.before is None:
        return [(config.model, load(config.model, pretrained=config.pretrained, device=device))]
    before = load(config.before, pretrained=config.pretrained, device=device)
    return [("before", before), ("after", load(config.model, device=device))]
