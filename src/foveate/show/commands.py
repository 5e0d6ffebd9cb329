"""`foveate show kmeans` and `similarity` draw the dense map before and after; `sizes` draws accuracy by input size."""

from pathlib import Path

from torch import Tensor

from foveate.clip.load import load
from foveate.clip.model import Clip
from foveate.clip.vocabulary import read_vocabulary
from foveate.data.images import read_image
from foveate.data.records import read_record
from foveate.data.sources import open_data
from foveate.engine.distributed import choose_device
from foveate.errors import InputError
from foveate.ops.resample import check_side
from foveate.show.flags import KMeans, MapFlags, Similarity, Sizes, check_png, split_named
from foveate.show.kmeans import kmeans_sheet
from foveate.show.similarity import similarity_sheet
from foveate.show.sizes import read_sweep, sizes_chart


def run_kmeans(config: KMeans) -> Path:
    """Draw the sheet of K-means maps; its path."""
    _check(config)
    models = _load_models(config)
    size, images = _size(config, models), _read_images(config)
    kmeans_sheet(
        config.out, images, models=models, size=size, clusters=config.clusters, seed=config.seed, head=config.head
    )
    print(f"wrote {config.out}")
    return config.out


def run_similarity(config: Similarity) -> Path:
    """Draw the sheet of similarity maps; its path."""
    _check(config)
    texts = read_vocabulary(config.vocab).names
    models = _load_models(config)
    size = _size(config, models)
    rows = [(text, image) for _, image in _read_images(config) for text in texts]
    similarity_sheet(config.out, rows, models=models, size=size, head=config.head, templates=config.templates)
    print(f"wrote {config.out}")
    return config.out


def run_sizes(config: Sizes) -> Path:
    """Draw accuracy over input size; the chart's path."""
    check_png(config.out, flag="--out")
    if not config.results:
        raise InputError("need at least one NAME=FILE.json of foveate evaluate regions; got none.")
    sweeps = {}
    for entry in config.results:
        name, path = split_named(entry)
        if name in sweeps:
            raise InputError(f"need different names; got {name!r} twice. Write NAME=FILE.json.")
        sweeps[name] = read_sweep(path, kind=config.what)
    sizes_chart(config.out, sweeps, kind=config.what)
    print(f"wrote {config.out}")
    return config.out


def _check(config: MapFlags) -> None:
    """Refuse flags that cannot work before any model is loaded."""
    check_png(config.out, flag="--out")
    if config.limit < 1:
        raise InputError(f"--limit: need at least 1 image; got {config.limit}.")


def _read_images(config: MapFlags) -> list[tuple[str, Tensor]]:
    """Names and images, evenly spaced over the data."""
    if config.data.is_file():
        return [(config.data.name, read_image(config.data))]
    records = open_data(config.data, split=config.split, annotations="none").records
    count = min(config.limit, len(records))
    chosen = [records[index * len(records) // count] for index in range(count)]
    return [(str(record.id), read_record(record)) for record in chosen]


def _load_models(config: MapFlags) -> list[tuple[str, Clip]]:
    """The models, each under its heading."""
    device = choose_device(config.device, local_rank=None)
    clips = [] if config.reference is None else [load(config.reference, device=device)]
    clips.append(load(config.model, pretrained=config.pretrained, device=device))
    if config.pad is not None:
        for clip in clips:
            clip.pad = config.pad
    headings = [config.model] if config.reference is None else ["before", "after"]
    return list(zip(headings, clips, strict=True))


def _size(config: MapFlags, models: list[tuple[str, Clip]]) -> int:
    """The side of the dense input [pixels], checked before anything is drawn."""
    size = 4 * models[-1][1].native_size if config.size is None else config.size
    for _, clip in models:
        check_side(size, patch=clip.patch_size, flag="--size")
    return size
