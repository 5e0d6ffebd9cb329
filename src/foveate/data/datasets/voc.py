"""Pascal VOC 2007 and 2012 -> records.

    VOCdevkit/VOC2012/JPEGImages/ID.jpg    Annotations/ID.xml    ImageSets/Main/{train,val,trainval,test}.txt
                      SegmentationClass/ID.png                   ImageSets/Segmentation/{train,val,trainval}.txt

VOC's pixels start at 1 and the last one is included: xmin ymin xmax ymax becomes (xmin - 1, ymin - 1, xmax, ymax).
`Record.crowd` marks `difficult` objects, which an evaluation neither requires nor counts as errors; in training they
are objects like others. Boxes follow the rules of `validation.py`. XML with a DOCTYPE or an entity declaration is
refused. In label maps 1 to 20 are the classes, 0 is the background, 255 the border.
"""

from contextlib import suppress
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from foveate.data.consistency import Checks
from foveate.data.images import ImageError, shown_size
from foveate.data.labels import Labels
from foveate.data.records import Box, Dataset, Record
from foveate.data.semantic import NONE, Coding, SemanticData, pair_files
from foveate.data.validation import (
    UNTRUSTED_FILE,
    ListedImage,
    count_ignored,
    escapes,
    fail,
    image_paths,
    read_text,
    short,
)
from foveate.errors import InputError
from foveate.io.files import reason_of
from foveate.types import Category

NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
SPLITS = ("train", "val", "trainval", "test")
MAX_XML = 1_000_000  # bytes
MAX_LIST = 50_000_000  # bytes
NO_BOX = "object has no `bndbox`"
SIZE_OF_IMAGE = "annotation states no size (0 x 0): it is that of the image"
BORDER = 255  # of an object in a label map

Background = Literal["none", "last", "first"]


def read_voc(folder: Path | str, *, split: str, boxes: bool = True, with_images: bool = True) -> Dataset:
    """Read one year of Pascal VOC.

    Args:
        folder: of the year, such as VOCdevkit/VOC2012.
        split: "train", "val", "trainval" or "test".
        boxes: False: only list the images of the split, without opening XML files.
        with_images: False: the images need not exist.

    Returns:
        One record per image in the order of the split's list, its id the name without suffix; VOC's 20 categories.

    Raises:
        InputError: a file is missing or malformed; names the file, the entry and the reason.
    """
    folder = Path(folder)
    if split not in SPLITS:
        raise InputError(f'split: must be {", ".join(SPLITS)} for Pascal VOC; got "{split}".')
    list_path = folder / "ImageSets" / "Main" / f"{split}.txt"
    names = read_list(list_path)
    paths, notes = {name: folder / "JPEGImages" / f"{name}.jpg" for name in names}, list[str]()
    if with_images:
        jpegs: dict[int | str, str] = {name: path.name for name, path in paths.items()}
        paths = image_paths(list_path, jpegs, folder / "JPEGImages", notes=notes)
    categories = tuple(Category(number, name, True) for number, name in enumerate(NAMES, start=1))
    checks = Checks(folder / "Annotations", form="[x1, y1, x2, y2]")
    records = [
        _read_record(folder / "Annotations" / f"{name}.xml", name, paths[name], checks)
        if boxes
        else Record(name, paths[name])
        for name in names
    ]
    name, consistency = f"{folder.resolve().name} {split}", checks.finish()
    return Dataset(name, categories, tuple(records), checks.ignored, tuple(notes), consistency=consistency)


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
        split: "train", "val" or "trainval".
        background: pixels of no object are ignored ("none": 20 classes), or are the last class ("last": CAT-Seg's 20b)
            or the first ("first": 21 classes, as in ODISE).
        labels: other class names, ids 1 to 20 and 0 for the background; default: VOC's.
        maps: folder of the label maps within the year, such as one with more annotations, or an absolute path.
        with_images: as for `pair_files`.

    Raises:
        InputError: a list, an image or a map is missing, or the labels lack a class.
    """
    folder = Path(folder)
    match background:
        case "none":
            ids = [*range(1, 21)]
        case "last":
            ids = [*range(1, 21), 0]
        case "first":
            ids = [*range(21)]
        case _:
            raise InputError(f'background: must be "none", "last" or "first"; got "{background}".')
    if labels is None:
        labels = Labels(tuple(range(21)), (("background",), *((name,) for name in NAMES)))
    coding = {0: NONE} | {number: label for label, number in enumerate(ids)} | {BORDER: NONE}
    return pair_files(
        f"{folder.resolve().name} {split}",
        image_folder=folder / "JPEGImages",
        maps=folder / maps,
        labels=labels.choose(ids),
        coding=Coding(coding, bits=8),
        only=read_list(folder / "ImageSets" / "Segmentation" / f"{split}.txt"),
        with_images=with_images,
    )


def find_voc(root: Path, *, with_images: bool = True) -> list[Path]:
    """Find the years of Pascal VOC in a folder, with images or with annotations, and with lists of them."""
    return find_years(root, "JPEGImages" if with_images else "Annotations", "ImageSets/Main")


def find_years(root: Path, *folders: str) -> list[Path]:
    """Find the years of Pascal VOC with these folders: the root itself, or below it or its VOCdevkit."""
    years = [root, *sorted(root.glob("VOC20*")), *sorted(root.glob("VOCdevkit/VOC20*"))]
    return [year for year in years if all((year / folder).is_dir() for folder in folders)]


def only_year(root: Path, years: list[Path]) -> Path:
    """The single element of `years`; InputError if there are several."""
    if len(years) > 1:
        raise InputError(
            f"{root}: need one year of Pascal VOC; found {len(years)}. Give {' or '.join(map(str, years))}."
        )
    return years[0]


def read_list(path: Path) -> list[str]:
    """Read a split's list of image names, one per line.

    Raises:
        InputError: the file does not exist, or a line is repeated or not a name.
    """
    text = read_text(path, need="the list of the split's images", max_bytes=MAX_LIST)
    names = [line.strip() for line in text.split("\n") if line.strip()]
    seen: set[str] = set()
    for name in names:
        where = f"{path}: entry {short(name)}"
        if escapes(name) or len(name.split()) > 1:
            fail(where, "the name of one image inside JPEGImages", "another text", UNTRUSTED_FILE)
        if name in seen:
            fail(where, "every image once", "the same one twice")
        seen.add(name)
    return names


def _read_record(path: Path, name: str, image: Path, checks: Checks) -> Record:
    root = _parse(path)
    height, width = _read_size(path, root, image, checks)
    objects: list[tuple[Box, int, bool]] = []
    for index, entry in enumerate(root.findall("object")):
        where = f"{path}: object {index}"
        label, difficult = (entry.findtext("name") or "").strip(), (entry.findtext("difficult") or "0").strip()
        if label not in NAMES:
            fail(where, "`name`, one of VOC's 20 categories", short(label))
        if difficult not in ("0", "1"):
            fail(where, "`difficult`, 0 or 1", short(difficult))
        if entry.find("bndbox") is None:
            count_ignored(checks.ignored, NO_BOX, where)
            continue
        x1, y1, x2, y2 = (_number(where, entry, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
        number, sides = NAMES.index(label), (x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1)
        image_size = ListedImage(name, height, width)
        box = checks.see(where, sides, image_size, key=(name, number), crowd=difficult == "1")
        if isinstance(box, str):
            count_ignored(checks.ignored, box, where)
        else:
            objects.append((box, number, difficult == "1"))
    boxes, labels, crowd = zip(*objects, strict=True) if objects else ((), (), ())
    return Record(name, image, height, width, boxes, labels, crowd)


def _read_size(path: Path, root: ElementTree.Element, image: Path, checks: Checks) -> tuple[int, int]:
    """(height, width) [pixels]; 0 x 0, or no size, is unknown: that of the image as shown."""
    sides = {side: (root.findtext(f"size/{side}") or "0").strip() for side in ("height", "width")}
    if all(text in ("0", "0.0", "") for text in sides.values()):
        with suppress(ImageError):
            size = shown_size(image)
            count_ignored(checks.kinds, SIZE_OF_IMAGE, str(path))
            return size
    height, width = (_number(path, root, f"size/{side}") for side in ("height", "width"))
    if not all(side >= 1 and side % 1 == 0 for side in (height, width)):  # False for NaN and infinity too
        fail(str(path), "a size in integer pixels, at least 1", f"{height:g} x {width:g}")
    return int(height), int(width)


def _parse(path: Path) -> ElementTree.Element:
    """Parse a small XML file in UTF-8; entity declarations, which can expand to gigabytes, are refused unparsed."""
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
    except (ElementTree.ParseError, ValueError, RecursionError) as error:  # ValueError: another encoding
        raise InputError(f"{path}: need {need} in UTF-8; {error}. Correct the file, or fetch it again.") from error


def _number(where: str | Path, entry: ElementTree.Element, field: str) -> float:
    """A number of pixels, which may be NaN or infinite."""
    text = (entry.findtext(field) or "").strip()
    try:
        return float(text)
    except ValueError:
        fail(str(where), f"`{field}`, a number of pixels", short(text) if text else "no such field")
