"""`saccade segment`: the class of every pixel of pictures, or their things and stuff, for any vocabulary.

Torch is imported only when something is segmented, so that help and typing errors answer at once.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from saccade.cli.detection import file_names
from saccade.cli.segmenters import CATSEG, GENERATOR, Segmenting, open_pixels
from saccade.errors import InputError
from saccade.files import bad_lines, check_target, versions, write_whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from saccade.clip.vocabulary import Vocabulary
    from saccade.evaluate.feed import Feed
    from saccade.types import LabelMap, Sample

RECORD = "segments.json"


@dataclass(frozen=True, kw_only=True)
class Segment(Segmenting):
    """Give every pixel of pictures a class of any vocabulary.

    OUT/ gets an overlay NAME.jpg and a label map NAME.png a picture (a pixel's number is the class's place in the
    vocabulary, from 0; 255 or 65535: none), and segments.json with the classes of each picture. With --panoptic, also
    each thing on its own: NAME.png and panoptic.json are of COCO's panoptic form.
    """

    pictures: Positional[tuple[Path, ...]]
    """Pictures, and folders that are searched with all below them."""
    out: Path
    """Folder to write to."""
    vocab: str | None = None
    """Class names separated by commas, or a .txt or .json file of them with synonyms; when not given, the classes that
    the model was trained on."""
    panoptic: bool = False
    """Tell things of one class apart; needs a model of `saccade train-panoptic`."""
    stuff: str = ""
    """With --panoptic: names of the vocabulary that are stuff, separated by commas; those that the model was trained on
    as stuff are."""
    batch: int = 8
    """Pictures a batch."""
    workers: int = 2
    """Processes that decode pictures; 0 = none besides this one."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto = cuda where there is one."""
    strict: bool = False
    """End at the first picture that cannot be read, instead of listing it."""


def run(config: Segment) -> Path:
    """Segment, draw, write the record, and return its path.

    Raises:
        InputError: a flag, the vocabulary, the model or its CLIP is wrong, or no picture can be read.
    """
    if config.out.exists() and not config.out.is_dir():
        raise InputError(f"--out {config.out}: need a folder; this is a file.")
    if config.panoptic and not (Path(config.model) / GENERATOR).is_file():
        raise InputError(f"--panoptic: need --model OUT/model of `saccade train-panoptic`; got {config.model}.")
    check_target(config.out / RECORD, flag="--out")
    from saccade.clip.vocabulary import read_vocabulary
    from saccade.data.coco import Dataset
    from saccade.embed.features import name_pictures
    from saccade.engine.distributed import choose_device
    from saccade.evaluate.feed import Feed

    dataset = Dataset("pictures", (), name_pictures(config.pictures), {})
    vocabulary = _learned(config) if config.vocab is None else read_vocabulary(config.vocab)
    device = choose_device(config.device, local_rank=None)
    feed = Feed(
        dataset,
        masks=False,
        batch=config.batch,
        limit=None,
        workers=config.workers,
        strict=config.strict,
        progress=True,
    )
    stems = {key: Path(name).stem for key, name in file_names([str(one.id) for one in dataset.records]).items()}
    segmenter = open_pixels(config, vocabulary, device=device)
    pictures = [
        _write_labels(config.out, stems[sample.id], sample, found, vocabulary)
        for sample, found in _each(feed, segmenter.label_maps)
    ]
    content = {
        "model": config.model,
        "classes": [list(words) for words in vocabulary.classes],
        "pictures": pictures,
        "bad": feed.bad_listed(),
        "versions": versions(),
    }
    path = config.out / RECORD
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())
    for line in bad_lines(feed.bad_listed(), listed=str(path)):
        print(line, file=sys.stderr)
    print(f"{len(pictures)} pictures, {len(vocabulary.classes)} classes asked for; look at {config.out}")
    return path


def _learned(config: Segment) -> "Vocabulary":
    """The classes of the data that a model was trained on, seen or not."""
    from saccade.clip.vocabulary import Vocabulary

    folder = Path(config.model)
    if (folder / CATSEG).is_file():
        from saccade.heads.catseg.product import read_about

        about = read_about(folder)
        return Vocabulary((*about.classes, *((name,) for name in about.novel)))
    if (folder / GENERATOR).is_file():
        from saccade.heads.panoptic.product import read_about as read_generator

        return Vocabulary(tuple(one.words for one in read_generator(folder).classes))
    raise InputError('--vocab: need the classes to ask for; a CLIP was trained on none. Try --vocab "grass, dog, sky".')


def _each(feed: "Feed", label_maps: Any) -> "Iterator[tuple[Sample, LabelMap]]":
    for samples in feed:
        yield from zip(samples, label_maps(samples), strict=True)


def _write_labels(
    out: Path, stem: str, sample: "Sample", found: "LabelMap", vocabulary: "Vocabulary"
) -> dict[str, Any]:
    """Draw a picture's classes, write its map, and return what the record says of it."""
    from saccade.show.detections import write_picture
    from saccade.show.segmentation import draw_label_map, write_label_map

    names, (height, width) = vocabulary.names, found.labels.shape
    write_picture(draw_label_map(sample.image, found, names=names), out / f"{stem}.jpg")
    write_label_map(out / f"{stem}.png", found, classes=len(names))
    counts = found.labels[found.labels >= 0].bincount(minlength=len(names)).tolist()
    there = sorted(((pixels, name) for name, pixels in zip(names, counts, strict=True) if pixels), reverse=True)
    shares = [{"name": name, "pixels": pixels, "share": round(pixels / (height * width), 4)} for pixels, name in there]
    return {"id": sample.id, "file_name": f"{stem}.png", "height": height, "width": width, "classes": shares}
