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
from saccade.cli.segmenters import GENERATOR, Segmenting, open_pixels
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
    """The classes that a model was trained on."""
    raise NotImplementedError


def _each(feed: "Feed", label_maps: Any) -> "Iterator[tuple[Sample, LabelMap]]":
    for samples in feed:
        yield from zip(samples, label_maps(samples), strict=True)


def _write_labels(
    out: Path, stem: str, sample: "Sample", found: "LabelMap", vocabulary: "Vocabulary"
) -> dict[str, Any]:
    """Draw a picture's classes, write its map, and return what the record says of it."""
    raise NotImplementedError
