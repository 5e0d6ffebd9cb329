"""`foveate segment`: the class of every pixel of images, or things and stuff, for any vocabulary."""

from pathlib import Path
from typing import Any

from foveate.clip.vocabulary import Vocabulary, read_vocabulary
from foveate.data.batches import Batches
from foveate.engine.distributed import choose_device
from foveate.errors import InputError
from foveate.heads.panoptic.described import describe, is_published
from foveate.heads.panoptic.product import read_about
from foveate.heads.panoptic.segment import PanopticSegmenter
from foveate.io.files import write_whole
from foveate.io.store import hold_folder
from foveate.predict.flags import Segment
from foveate.predict.images import check_drawings, file_stems, keeping_files, open_images, write_record
from foveate.predict.masks import named_shares, open_segmenter, report
from foveate.predict.segmenters import (
    Segmenter,
    check_segmenting,
    finds_masks,
    known_classes,
    open_pixels,
)
from foveate.show.detections import write_image
from foveate.show.map_files import panoptic_categories, panoptic_png, panoptic_record, write_label_map
from foveate.show.segmentation import draw_label_map, draw_panoptic
from foveate.types import normalize_name


def run(config: Segment) -> Path:
    """Segment, draw, write the record, and return its path.

    Raises:
        InputError: a flag, the vocabulary, the model or its CLIP is wrong, or no image can be read.
    """
    _check(config)
    feed = open_images(config.images, batch=config.batch, workers=config.workers, strict=config.strict)
    check_drawings(config, feed, suffixes=(".jpg", ".png"))
    vocabulary = known_classes(Path(config.model)) if config.vocab is None else read_vocabulary(config.vocab)
    with hold_folder(config.out):
        return _segment(config, feed, vocabulary)


def _segment(config: Segment, feed: Batches, vocabulary: Vocabulary) -> Path:
    if config.panoptic:
        is_thing = find_things(vocabulary, Path(config.model), stuff=config.stuff)
        segmenter = open_segmenter(
            config,
            Path(config.model),
            vocabulary,
            is_thing,
            shares=named_shares(config.fusion),
            min_score=config.min_score,
            overlap=0.8 if config.overlap is None else config.overlap,
            device=config.device,
        )
        with keeping_files(config.out):
            content = write_panoptic_maps(segmenter, feed, config.out, names=vocabulary.names, is_thing=is_thing)
    else:
        pixels = open_pixels(config, vocabulary, device=choose_device(config.device, local_rank=None))
        with keeping_files(config.out):
            content = write_label_maps(pixels, feed, config.out, vocabulary=vocabulary)
    path = write_record(config, {"model": config.model}, content, feed, indent=1)
    print(f"{feed.count} images, {len(vocabulary.classes)} classes requested; see {config.out}")
    return path


def _check(config: Segment) -> None:
    """Refuse flags that do not fit the model or each other, before anything is read."""
    if config.out.exists() and not config.out.is_dir():
        raise InputError(f"--out {config.out}: need a folder; this is a file.")
    if config.panoptic and not finds_masks(Path(config.model)):
        raise InputError(
            f"--panoptic: need --model OUT/model of `foveate train-panoptic`, or a transformers folder with a "
            f"Mask2Former or MaskFormer; got {config.model}."
        )
    for name in ("stuff", "min_score", "overlap"):
        given = getattr(config, name)
        if given not in ("", None) and not config.panoptic:
            raise InputError(f"--{name.replace('_', '-')}: needs --panoptic; got {given!r} without it.")
    check_segmenting(config)


def write_label_maps(segmenter: Segmenter, batches: Batches, out: Path, *, vocabulary: Vocabulary) -> dict[str, Any]:
    """Write a drawing NAME.jpg and a label map NAME.png per image into the folder `out`.

    Returns:
        The classes, and for each image the classes in it with their pixels, the largest first.
    """
    names, stems, images = vocabulary.names, _stems(batches), []
    for samples in batches:
        for sample, label_map in zip(samples, segmenter.label_maps(samples), strict=True):
            stem = stems[sample.id]
            write_image(
                draw_label_map(sample.image, label_map, names=names), out / f"{stem}.jpg", made_by=Segment.made_by
            )
            write_label_map(out / f"{stem}.png", label_map, classes=len(names), made_by=Segment.made_by)
            height, width = label_map.labels.shape
            counts = label_map.labels[label_map.labels >= 0].bincount(minlength=len(names)).tolist()
            present = sorted(((count, name) for name, count in zip(names, counts, strict=True) if count), reverse=True)
            fractions = [
                {"name": name, "pixels": count, "share": round(count / (height * width), 4)} for count, name in present
            ]
            image = {"id": sample.id, "file_name": f"{stem}.png", "height": height, "width": width}
            images.append({**image, "classes": fractions})
    return {"classes": [list(synonyms) for synonyms in vocabulary.classes], "images": images}


def write_panoptic_maps(
    segmenter: PanopticSegmenter, batches: Batches, out: Path, *, names: tuple[str, ...], is_thing: list[bool]
) -> dict[str, Any]:
    """Write a drawing NAME.jpg and a panoptic map NAME.png per image into the folder `out`.

    Returns:
        COCO's panoptic form: images, annotations and categories.
    """
    stems, images, annotations = _stems(batches), [], []
    for samples in batches:
        for sample, proposals in zip(samples, segmenter.mask_generator.propose(samples), strict=True):
            stem, number = stems[sample.id], len(images) + 1
            panoptic = segmenter.panoptic(segmenter.score_proposals(sample, proposals))
            write_image(
                draw_panoptic(sample.image, panoptic, names=names), out / f"{stem}.jpg", made_by=Segment.made_by
            )
            write_whole(out / f"{stem}.png", panoptic_png(panoptic, made_by=Segment.made_by))
            height, width = panoptic.ids.shape
            images.append({"id": number, "file_name": sample.id, "height": height, "width": width})
            annotations.append(panoptic_record(panoptic, image_id=number, file_name=f"{stem}.png"))
    return {"images": images, "annotations": annotations, "categories": panoptic_categories(names, is_thing)}


def find_things(vocabulary: Vocabulary, folder: Path, *, stuff: str) -> list[bool]:
    """Which classes are things: all but those in `stuff` (names separated by commas) and the model's stuff classes.

    Raises:
        InputError: `stuff` has a name that is not in the vocabulary.
    """
    requested = {normalize_name(name) for name in stuff.split(",") if name.strip()}
    synonyms = [{normalize_name(name) for name in names} for names in vocabulary.classes]
    unknown = requested - set().union(*synonyms)
    if unknown:
        raise InputError(f"--stuff: need names in the vocabulary; {min(unknown)!r} is not.")
    all_stuff = requested | {normalize_name(name) for name in _stuff_of(folder)}
    return [not names & all_stuff for names in synonyms]


def _stuff_of(folder: Path) -> list[str]:
    """The names of a model's stuff classes, as far as its folder lists them."""
    if not is_published(folder):
        return [name for category in read_about(folder).classes if not category.is_thing for name in category.words]
    about = describe(folder)
    if about.is_thing is None:
        report(f"{folder}: does not list which of its classes are stuff; all are things except those of --stuff")
    things = about.is_thing or (True,) * len(about.classes)
    return [name for names, is_thing in zip(about.classes, things, strict=True) if not is_thing for name in names]


def _stems(batches: Batches) -> dict[str, str]:
    return file_stems([str(record.id) for record in batches.dataset.records])
