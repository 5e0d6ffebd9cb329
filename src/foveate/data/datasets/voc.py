"""Pascal VOC 2007 and 2012 as they lie on disk -> records.

    VOCdevkit/VOC2012/JPEGImages/ID.jpg    Annotations/ID.xml    ImageSets/Main/{train,val,trainval,test}.txt
                      SegmentationClass/ID.png                   ImageSets/Segmentation/{train,val,trainval}.txt

VOC counts pixels from 1 and includes the last, so xmin ymin xmax ymax becomes (xmin - 1, ymin - 1, xmax, ymax).
A `difficult` object keeps its box, and is marked in `Record.crowd`, as what an evaluation may find but need not:
training draws it as any other. Boxes are held to the same rules as COCO's (`validation.py`). No XML with a DOCTYPE or an
entity declaration is parsed.
Of segmentation a map's number is the class's place from 1, 0 is the background, 255 the border.
Deliberately absent: the masks of single objects, parts of persons, pose.
"""

from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from foveate.data.labels import Labels
from foveate.data.records import Box, Dataset, IgnoredEntries, Record
from foveate.data.semantic import NONE, Coding, SemanticData, pair_files
from foveate.data.validation import (
    UNTRUSTED_FILE,
    clip_box,
    count_ignored,
    escapes,
    fail,
    image_paths,
    read_text,
    reason_of,
    short,
)
from foveate.errors import InputError
from foveate.types import Category

NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
SPLITS = ("train", "val", "trainval", "test")
MAX_XML = 1_000_000  # bytes
MAX_LIST = 50_000_000
BORDER = 255  # of an object in a map

Background = Literal["none", "last", "first"]


def read_voc(folder: Path | str, *, split: str, boxes: bool = True, with_images: bool = True) -> Dataset:
    """Read one year of Pascal VOC.

    Args:
        folder: of the year, such as VOCdevkit/VOC2012.
        split: "train", "val", "trainval" or "test".
        boxes: False: list the images of the split and open no XML file.
        with_images: False: the images need not be there, nothing of them is read.

    Returns:
        One record an image in the order of the split's list, its id the name without suffix; VOC's 20 categories.

    Raises:
        InputError: a file is missing or not what it must be; names the file, the entry and the reason.
    """
    folder = Path(folder)
    if split not in SPLITS:
        raise InputError(f'split: must be {", ".join(SPLITS)} for Pascal VOC; got "{split}".')
    names = read_list(folder / "ImageSets" / "Main" / f"{split}.txt")
    paths = {name: folder / "JPEGImages" / f"{name}.jpg" for name in names}
    if with_images:
        listed = folder / "ImageSets" / "Main" / f"{split}.txt"
        paths = image_paths(listed, {name: path.name for name, path in paths.items()}, folder / "JPEGImages")
    categories = tuple(Category(number, name, True) for number, name in enumerate(NAMES, start=1))
    ignored: dict[str, IgnoredEntries] = {}
    records = [
        _read_record(folder / "Annotations" / f"{name}.xml", name, paths[name], ignored)
        if boxes
        else Record(name, paths[name])
        for name in names
    ]
    return Dataset(f"{folder.resolve().name} {split}", categories, tuple(records), ignored)


def read_voc_maps(
    folder: Path | str,
    *,
    split: str,
    background: Background = "none",
    labels: Labels | None = None,
    maps: Path | str = "SegmentationClass",
    with_images: bool = True,
) -> SemanticData:
    """Read the segmentation of one year of Pascal VOC (PAS-20, PAS-20b, PAS-21).

    Args:
        folder: of the year.
        split: "train", "val" or "trainval".
        background: pixels of no object are ignored ("none": 20 classes), or are a class of their own: the last ("last":
            what Cat-Seg calls 20b) or the first ("first": 21 classes, as ODISE has them).
        labels: other words for the classes, ids 1 to 20 and 0 for the background; VOC's own names when not given.
        maps: folder of the maps within the year, such as one with more annotations, or a whole path.
        with_images: as for `pair_files`.

    Raises:
        InputError: a list, an image or a map is missing, or the labels lack a class.
    """
    folder = Path(folder)
    order = [*range(1, 21)]
    match background:
        case "last":
            order = [*order, 0]
        case "first":
            order = [0, *order]
        case "none":
            pass
        case _:
            raise InputError(f'background: must be "none", "last" or "first"; got "{background}".')
    own = Labels(tuple(range(21)), (("background",), *((name,) for name in NAMES)))
    chosen = (labels or own).choose(order)
    places = {number: place for place, number in enumerate(order)} | {BORDER: NONE}
    return pair_files(
        f"{folder.resolve().name} {split}",
        image_folder=folder / "JPEGImages",
        maps=folder / maps,
        labels=chosen,
        coding=Coding({0: NONE} | places, bits=8),
        only=read_list(folder / "ImageSets" / "Segmentation" / f"{split}.txt"),
        with_images=with_images,
    )


def find_voc(root: Path, *, with_images: bool = True) -> list[Path]:
    """Find the years of Pascal VOC in a folder, with images or with annotations, and lists of them."""
    return find_years(root, "JPEGImages" if with_images else "Annotations", "ImageSets/Main")


def find_years(root: Path, *needed: str) -> list[Path]:
    """Find the years of Pascal VOC that have some folders: the root itself, or below it or its VOCdevkit."""
    years = [root, *sorted(root.glob("VOC20*")), *sorted(root.glob("VOCdevkit/VOC20*"))]
    return [year for year in years if all((year / folder).is_dir() for folder in needed)]


def only_year(root: Path, years: list[Path]) -> Path:
    """The one year that was found.

    Raises:
        InputError: there are several.
    """
    if len(years) > 1:
        raise InputError(f"{root}: holds {len(years)} years of Pascal VOC. Name one: {', '.join(map(str, years))}.")
    return years[0]


def read_list(path: Path) -> list[str]:
    """Read the names of a split's images, one a line.

    Raises:
        InputError: no such file, a line that is no name, or one twice.
    """
    text = read_text(path, need="the list of the split's images", max_bytes=MAX_LIST)
    names = [line.strip() for line in text.split("\n") if line.strip()]
    seen: set[str] = set()
    for name in names:
        if escapes(name) or len(name.split()) > 1:
            fail(
                f"{path}: entry {short(name)}",
                "the name of one image inside JPEGImages",
                "another text",
                UNTRUSTED_FILE,
            )
        if name in seen:
            fail(f"{path}: entry {short(name)}", "every image once", "this one twice")
        seen.add(name)
    return names


def _read_record(path: Path, name: str, image: Path, ignored: dict[str, IgnoredEntries]) -> Record:
    root = _parse(path)
    height, width = (_number(path, root, f"size/{side}") for side in ("height", "width"))
    if not all(side >= 1 and side % 1 == 0 for side in (height, width)):  # neither holds for what is not finite
        fail(str(path), "a size of whole pixels, at least 1", f"{height:g} x {width:g}")
    found: list[tuple[Box, int, bool]] = []
    for place, entry in enumerate(root.findall("object")):
        where = f"{path}: object {place}"
        label, difficult = (entry.findtext("name") or "").strip(), (entry.findtext("difficult") or "0").strip()
        if label not in NAMES:
            fail(where, "`name`, one of VOC's 20 categories", short(label))
        if difficult not in ("0", "1"):
            fail(where, "`difficult`, 0 or 1", short(difficult))
        x1, y1, x2, y2 = (_number(where, entry, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
        box = clip_box((x1 - 1, y1 - 1, x2, y2), height=int(height), width=int(width))
        if isinstance(box, str):
            count_ignored(ignored, box, where)
        else:
            found.append((box, NAMES.index(label), difficult == "1"))
    boxes, labels, crowd = zip(*found, strict=True) if found else ((), (), ())
    return Record(name, image, int(height), int(width), boxes, labels, crowd)


def _parse(path: Path) -> ElementTree.Element:
    """Parse a small XML file in UTF-8; declarations, which can make a few bytes into gigabytes, are refused unread."""
    need = "an annotation in XML"
    try:
        size = path.stat().st_size
        if size > MAX_XML:
            fail(str(path), f"at most {MAX_XML:,} bytes of XML", f"{size:,}")
        text = path.read_bytes().decode("utf-8-sig")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            fail(str(path), "XML without a DOCTYPE", "one", UNTRUSTED_FILE)
        return ElementTree.fromstring(text)
    except OSError as error:
        reason = reason_of(error)
        raise InputError(f"{path}: need {need}; {reason}. Fetch it again, or train without boxes.") from error
    except InputError:
        raise
    except (ElementTree.ParseError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or a false encoding
        raise InputError(f"{path}: need {need} in UTF-8; {error}. Correct the file, or fetch it again.") from error


def _number(where: str | Path, entry: ElementTree.Element, field: str) -> float:
    """A number of pixels, which need not be finite."""
    text = (entry.findtext(field) or "").strip()
    try:
        return float(text)
    except ValueError:
        fail(str(where), f"`{field}`, a number of pixels", short(text) if text else "no such field")
