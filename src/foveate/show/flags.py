"""The flags of `foveate show`, one dataclass per command; imports no torch, so that `--help` answers at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from tyro.conf import Positional

from foveate.clip.names import Head, Pad, TemplateName
from foveate.errors import InputError
from foveate.io.outputs import FileFlags, Target


@dataclass(frozen=True, kw_only=True)
class MapFlags(FileFlags):
    """The flags of the commands that draw maps of images."""

    data: Path
    """An image, a folder of images, or a COCO root."""
    model: str
    """Name of a CLIP, or path to a CLIP folder (OUT/model of a run)."""
    out: Path
    """PNG to write."""
    reference: str | None = None
    """CLIP to draw for comparison, such as the one --model was distilled from, or an architecture with its weights,
    such as ViT-B-16:openai."""
    pretrained: str | None = None
    """Weights file or open_clip tag, where --model is the name of an architecture."""
    split: str = "val"
    """train, val or test of a COCO root."""
    limit: int = 6
    """Number of images, evenly spaced over the data."""
    size: int | None = None
    """Side of the dense input [pixels]; default: four times the model's native size."""
    head: Head = "value"
    """How the last block makes the dense map: value is the paper's; sclip, clearclip and naclip are the training-free
    ones."""
    pad: Pad | None = None
    """Padding of the dense input: black before colour normalisation, or zero after it; default: each model's own."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto uses CUDA if available."""

    def targets(self) -> list[Target]:
        """See `FileFlags`."""
        return [self.target("--out", self.out)]


@dataclass(frozen=True, kw_only=True)
class KMeans(MapFlags):
    """Draw K-means clusters of the dense map (Fig. 4 of the paper)."""

    made_by: ClassVar[str] = "foveate show kmeans"
    clusters: int = 8
    """Maximum number of clusters per image."""
    seed: int = 0
    """Seed of the initial centres."""


@dataclass(frozen=True, kw_only=True)
class Similarity(MapFlags):
    """Draw the similarity of each image location to a text."""

    made_by: ClassVar[str] = "foveate show similarity"
    vocab: str
    """Class names or short phrases separated by commas, or in a .txt or .json file; every image is drawn for each."""
    templates: TemplateName = "none"
    """Prompt templates: none embeds the text as given; vild (63) and clip (80) are for class names."""
    limit: int = 3
    """Number of images, evenly spaced over the data."""


@dataclass(frozen=True, kw_only=True)
class Sizes(FileFlags):
    """Draw accuracy against input size from results of `foveate evaluate regions` (Fig. 2, 3 and A1 of the paper)."""

    made_by: ClassVar[str] = "foveate show sizes"
    results: Positional[tuple[str, ...]]
    """NAME=FILE.json each, one per model; without NAME= the file's name is used."""
    out: Path
    """PNG to write."""
    what: Literal["boxes", "things", "stuff"] = "boxes"
    """Regions to show: thing boxes, or masks of things or of stuff."""

    def targets(self) -> list[Target]:
        """See `FileFlags`."""
        return [self.target("--out", self.out)]


def split_named(entry: str) -> tuple[str, Path]:
    """Split NAME=PATH; without NAME= the path gives the name: a file its stem, RUN/model its RUN."""
    name, equals, path = entry.partition("=")
    if equals and name and path and "/" not in name:
        return name, Path(path)
    path = Path(entry)
    return (path.parent.name if path.name == "model" and path.parent.name else path.stem), path


def check_png(path: Path, *, flag: str) -> None:
    """Refuse what is not the name of a PNG file."""
    if path.suffix.lower() != ".png":
        raise InputError(f"{flag}: need the name of a PNG file; got {path}.")
