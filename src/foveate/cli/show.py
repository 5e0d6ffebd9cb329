"""`foveate show kmeans`, `similarity`: pictures of the dense map, before and after side by side; `sizes`: a sweep.

Torch is imported only when something is drawn, so that help and typing errors answer at once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from foveate.clip.names import Head, Pad, TemplateName
from foveate.errors import InputError
from foveate.io.files import check_target

if TYPE_CHECKING:
    from torch import Tensor

    from foveate.clip.model import Clip


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """The flags of the verbs that draw pictures."""

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
    head: Head = "value"
    """What becomes of the last block: value is the paper's; sclip, clearclip and naclip are the training-free ones."""
    pad: Pad | None = None
    """Padding of the dense input: black before colour normalisation, or zero after it; default: each model's own."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto = cuda where there is one."""


@dataclass(frozen=True, kw_only=True)
class KMeans(Drawing):
    """Draw what the dense map groups together (Fig. 4 of the paper)."""

    clusters: int = 8
    """At most so many groups a picture."""
    seed: int = 0
    """Of the starting centres."""


@dataclass(frozen=True, kw_only=True)
class Similarity(Drawing):
    """Draw where pictures answer to a text."""

    text: tuple[str, ...]
    """Class names or a few words each; every picture is asked for each of them."""
    templates: TemplateName = "none"
    """none asks for the words as they are typed; vild (63) and clip (80) write bare class names into sentences."""
    count: int = 3
    """Pictures, evenly spaced over the data."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Draw accuracy against input size from results of `foveate evaluate regions` (Fig. 2, 3 and A1 of the paper)."""

    results: tuple[str, ...]
    """NAME=FILE.json each, one a model; without NAME= the file's name stands for it."""
    out: Path
    """PNG to write."""
    kind: Literal["boxes", "things", "stuff"] = "boxes"
    """Regions to show: thing boxes, or masks of things or of stuff."""


def run_kmeans(config: KMeans) -> Path:
    """Draw the sheet of K-means maps, say where it lies, and return its path."""
    _check(config)
    from foveate.show.kmeans import kmeans_sheet

    models = _models(config)
    size, pictures = _size(config, models), _pictures(config)
    numbers = {"size": size, "clusters": config.clusters, "seed": config.seed}
    kmeans_sheet(config.out, pictures, models=models, head=config.head, **numbers)
    print(f"wrote {config.out}")
    return config.out


def run_similarity(config: Similarity) -> Path:
    """Draw the sheet of similarity maps, say where it lies, and return its path."""
    _check(config)
    if not all(text.strip() for text in config.text) or not config.text:
        raise InputError('--text: need at least one name or a few words, such as --text "a dog" cup; got none.')
    from foveate.show.similarity import similarity_sheet

    models = _models(config)
    size = _size(config, models)
    rows = [(text, image) for _, image in _pictures(config) for text in config.text]
    similarity_sheet(config.out, rows, models=models, size=size, head=config.head, templates=config.templates)
    print(f"wrote {config.out}")
    return config.out


def run_sizes(config: Sizes) -> Path:
    """Draw the sweep, say where it lies, and return its path."""
    check_png(config.out, flag="--out")
    from foveate.show.sizes import read_sweep, sizes_chart

    if not config.results:
        raise InputError("--results: need at least one NAME=FILE.json of foveate evaluate regions; got none.")
    sweeps = {}
    for entry in config.results:
        name, path = split_named(entry)
        if name in sweeps:
            raise InputError(f"--results: need different names; got {name!r} twice. Write NAME=FILE.json.")
        sweeps[name] = read_sweep(path, kind=config.kind)
    sizes_chart(config.out, sweeps, kind=config.kind)
    print(f"wrote {config.out}")
    return config.out


def split_named(entry: str) -> tuple[str, Path]:
    """Part NAME=PATH; without NAME= the path names itself: a file by its stem, RUN/model by RUN."""
    name, equals, path = entry.partition("=")
    if equals and name and path and "/" not in name:
        return name, Path(path)
    path = Path(entry)
    return (path.parent.name if path.name == "model" and path.parent.name else path.stem), path


def check_png(path: Path, *, flag: str) -> None:
    """Refuse what is no name of a PNG file that can be written."""
    if path.suffix.lower() != ".png":
        raise InputError(f"{flag}: need the name of a PNG file; got {path}.")
    check_target(path, flag=flag)


def _check(config: Drawing) -> None:
    """Refuse flags that cannot work before any model is loaded."""
    check_png(config.out, flag="--out")
    if config.count < 1:
        raise InputError(f"--count: need at least 1 picture; got {config.count}.")


def _pictures(config: Drawing) -> "list[tuple[str, Tensor]]":
    """Read the pictures asked for, evenly spaced over the data; a bad one is an error."""
    from foveate.data.pictures import read_picture
    from foveate.data.records import read_record
    from foveate.data.sources import open_data

    if config.data.is_file():
        return [(config.data.name, read_picture(config.data))]
    records = open_data(config.data, split=config.split, annotations="none").records
    count = min(config.count, len(records))
    chosen = [records[index * len(records) // count] for index in range(count)]
    return [(str(record.id), read_record(record)) for record in chosen]


def _models(config: Drawing) -> "list[tuple[str, Clip]]":
    """Load the models, each under its heading."""
    from foveate.cli.evaluate import load_model

    if config.before is None:
        return [(config.model, load_model(config.model, config.pretrained, config.device, pad=config.pad))]
    before = load_model(config.before, config.pretrained, config.device, pad=config.pad)
    return [("before", before), ("after", load_model(config.model, None, config.device, pad=config.pad))]


def _size(config: Drawing, models: "list[tuple[str, Clip]]") -> int:
    """The side of the dense input, judged before anything is drawn [pixels]."""
    from foveate.ops.resample import check_side

    size = 4 * models[-1][1].native_size if config.size is None else config.size
    for _, clip in models:
        check_side(size, patch=clip.patch_size, flag="--size")
    return size
