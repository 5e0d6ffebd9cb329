"""`foveate segment`: the class of every pixel of pictures, or their things and stuff, for any vocabulary.

Torch is imported only when something is segmented, so that help and typing errors answer at once.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from foveate.cli.detection import file_names
from foveate.cli.segmenters import (
    CATSEG,
    GENERATOR,
    Segmenting,
    check_segmenting,
    finds_masks,
    learned_by,
    open_masks,
    open_pixels,
)
from foveate.errors import InputError
from foveate.io.files import bad_lines, check_target, versions, write_whole

if TYPE_CHECKING:
    from foveate.clip.vocabulary import Vocabulary
    from foveate.evaluate.feed import Feed

LABELS, PANOPTIC = "segments.json", "panoptic.json"  # what stands in OUT beside the pictures


@dataclass(frozen=True, kw_only=True)
class Segment(Segmenting):
    """Give every pixel of pictures a class of any vocabulary.

    OUT/ gets an overlay NAME.jpg and a label map NAME.png a picture (a pixel's number is the class's place in the
    vocabulary, from 0; 255 or 65535: none), and segments.json with the classes of each picture. With --panoptic things
    of one class are told apart, and NAME.png and panoptic.json are of COCO's panoptic form.
    """

    pictures: Positional[tuple[Path, ...]]
    """Pictures, and folders that are searched with all below them."""
    out: Path
    """Folder to write to."""
    vocab: str | None = None
    """Class names separated by commas, or a .txt or .json file of them with synonyms; when not given, the classes that
    the model was trained on."""
    panoptic: bool = False
    """Tell things of one class apart; needs a model of `foveate train-panoptic`, or a folder of transformers with a
    Mask2Former or MaskFormer."""
    stuff: str = ""
    """With --panoptic: names of the vocabulary that are stuff, separated by commas; those that the model was trained on
    as stuff are, as far as its folder tells."""
    min_score: float | None = None
    """With --panoptic: score that a mask must exceed; default: 0, and 0.8 for a folder of transformers."""
    overlap: float | None = None
    """With --panoptic: share of a mask that must be left where better ones lie over it; default: 0.8."""
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
    if config.panoptic and not finds_masks(Path(config.model)):
        raise InputError(
            f"--panoptic: need --model OUT/model of `foveate train-panoptic`, or a folder of transformers with a "
            f"Mask2Former or MaskFormer; got {config.model}."
        )
    for name in ("stuff", "min_score", "overlap"):
        given = getattr(config, name)
        if given not in ("", None) and not config.panoptic:
            raise InputError(f"--{name.replace('_', '-')}: goes with --panoptic; got {given!r} without it.")
    check_segmenting(config)
    path = config.out / (PANOPTIC if config.panoptic else LABELS)
    check_target(path, flag="--out")
    from foveate.clip.vocabulary import read_vocabulary
    from foveate.data.records import Dataset
    from foveate.embed.features import name_pictures
    from foveate.evaluate.feed import Feed

    dataset = Dataset("pictures", (), name_pictures(config.pictures), {})
    vocabulary = _learned(config) if config.vocab is None else read_vocabulary(config.vocab)
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
    content = (_things if config.panoptic else _classes)(config, vocabulary, feed, stems)
    facts = {"model": config.model, "bad": feed.bad_listed(), "versions": versions()}
    write_whole(path, (json.dumps({"info": facts, **content}, indent=1) + "\n").encode())
    for line in bad_lines(feed.bad_listed(), listed=str(path)):
        print(line, file=sys.stderr)
    print(f"{feed.pictures} pictures, {len(vocabulary.classes)} classes asked for; look at {config.out}")
    return path


def _classes(config: Segment, vocabulary: "Vocabulary", feed: "Feed", stems: dict[str, str]) -> dict[str, Any]:
    """Draw the class of each pixel, write the maps, and return what the record says."""
    from foveate.engine.distributed import choose_device
    from foveate.show.detections import write_picture
    from foveate.show.map_files import write_label_map
    from foveate.show.segmentation import draw_label_map

    segmenter = open_pixels(config, vocabulary, device=choose_device(config.device, local_rank=None))
    names, pictures = vocabulary.names, []
    for samples in feed:
        for sample, found in zip(samples, segmenter.label_maps(samples), strict=True):
            stem = stems[sample.id]
            write_picture(draw_label_map(sample.image, found, names=names), config.out / f"{stem}.jpg")
            write_label_map(config.out / f"{stem}.png", found, classes=len(names))
            height, width = found.labels.shape
            counts = found.labels[found.labels >= 0].bincount(minlength=len(names)).tolist()
            there = [(pixels, name) for name, pixels in zip(names, counts, strict=True) if pixels]
            shares = [
                {"name": name, "pixels": pixels, "share": round(pixels / (height * width), 4)}
                for pixels, name in sorted(there, reverse=True)
            ]
            picture = {"id": sample.id, "file_name": f"{stem}.png", "height": height, "width": width}
            pictures.append({**picture, "classes": shares})
    return {"classes": [list(words) for words in vocabulary.classes], "pictures": pictures}


def _things(config: Segment, vocabulary: "Vocabulary", feed: "Feed", stems: dict[str, str]) -> dict[str, Any]:
    """Draw things and stuff, write the maps, and return COCO's panoptic form."""
    from foveate.show.detections import write_picture
    from foveate.show.map_files import panoptic_categories, panoptic_png, panoptic_record
    from foveate.show.segmentation import draw_panoptic

    is_thing = _which_things(config, vocabulary)
    segmenter = open_masks(
        config,
        vocabulary,
        is_thing=is_thing,
        min_score=config.min_score,
        overlap=0.8 if config.overlap is None else config.overlap,
        device=config.device,
    )
    images, annotations = [], []
    for samples in feed:
        for sample, proposals in zip(samples, segmenter.generator.propose(samples), strict=True):
            stem, number = stems[sample.id], len(images) + 1
            found = segmenter.panoptic(segmenter.score_proposals(sample, proposals))
            write_picture(draw_panoptic(sample.image, found, names=vocabulary.names), config.out / f"{stem}.jpg")
            write_whole(config.out / f"{stem}.png", panoptic_png(found))
            height, width = found.ids.shape
            images.append({"id": number, "file_name": sample.id, "height": height, "width": width})
            annotations.append(panoptic_record(found, image_id=number, file_name=f"{stem}.png"))
    categories = panoptic_categories(vocabulary.names, is_thing)
    return {"images": images, "annotations": annotations, "categories": categories}


def _which_things(config: Segment, vocabulary: "Vocabulary") -> list[bool]:
    """Which classes are things: all but those that are named as stuff, or were learned as stuff.

    Raises:
        InputError: --stuff names what is no class.
    """
    from foveate.clip.vocabulary import compared

    named = {compared(word) for word in config.stuff.split(",") if word.strip()}
    words = [{compared(word) for word in one} for one in vocabulary.classes]
    unknown = named - set().union(*words)
    if unknown:
        raise InputError(f"--stuff: need names of the vocabulary; {min(unknown)!r} is none.")
    stuff = named | {compared(word) for word in _stuff_of(Path(config.model))}
    return [not one & stuff for one in words]


def _stuff_of(folder: Path) -> list[str]:
    """The words of the classes that a model was trained on as stuff, as far as its folder tells."""
    from foveate.cli.published import tell
    from foveate.heads.panoptic.described import describe, is_published
    from foveate.heads.panoptic.product import read_about

    if not is_published(folder):
        return [word for one in read_about(folder).classes if not one.is_thing for word in one.words]
    about = describe(folder)
    if about.is_thing is None:
        tell(f"{folder}: does not say which of its classes are stuff; all are things but those of --stuff")
    things = about.is_thing or (True,) * len(about.classes)
    return [word for words, is_thing in zip(about.classes, things, strict=True) if not is_thing for word in words]


def _learned(config: Segment) -> "Vocabulary":
    """The classes of the data that a model was trained on, seen or not."""
    from foveate.clip.vocabulary import Vocabulary

    folder = Path(config.model)
    if (folder / CATSEG).is_file():
        from foveate.heads.catseg.product import read_about

        about = read_about(folder)
        return Vocabulary((*about.classes, *((name,) for name in about.novel)))
    if (folder / GENERATOR).is_file():
        from foveate.heads.panoptic.product import read_about as read_generator

        return Vocabulary(tuple(one.words for one in read_generator(folder).classes))
    if finds_masks(folder):
        return learned_by(folder)
    raise InputError('--vocab: need the classes to ask for; a CLIP was trained on none. Try --vocab "grass, dog, sky".')
