"""Recognises a data set by its files and opens it.

    annotations/instances_SPLIT2017.json + SPLIT2017/     COCO, and the rendered world        `coco.py`
    annotations/lvis_v1_SPLIT.json + {train,val}2017/     LVIS v1                             `lvis.py`
    [VOCdevkit/]VOC2012/{JPEGImages,ImageSets/Main}       Pascal VOC                          `voc.py`
    [annotations/]zhiyuan_objv2_SPLIT.json                Objects365                          `objects365.py`
    annotations/instances_{default,SPLIT}.json + images/  COCO's form as CVAT exports it      `coco.py`
    labels.json + data/                                   COCO's form as FiftyOne exports it  `coco.py`
    [SPLIT/]_annotations.coco.json beside the images      COCO's form as Roboflow exports it  `coco.py`
    images/[SPLIT/] + labels/[SPLIT/]*.txt                YOLO's text files                   `yolo.py`
    *.tar, "shards-{000..331}.tar", URLs                  tar shards in webdataset layout     `shards.py`
    anything else                                         a folder of images                  `folder.py`

A folder that may be two of them is refused.
"""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from foveate.data.annotation_file import load
from foveate.data.consistency import accepted
from foveate.data.datasets.coco import list_things, read_panoptic
from foveate.data.datasets.folder import read_folder
from foveate.data.datasets.lvis import file_categories, is_lvis, read_lvis
from foveate.data.datasets.objects365 import find_objects365, is_objects365, read_objects365
from foveate.data.datasets.shards import read_shards
from foveate.data.datasets.voc import find_voc, only_year, read_voc
from foveate.data.datasets.yolo import read_yolo
from foveate.data.fetch import expand, fetch_all, is_pattern
from foveate.data.file_names import relative_name
from foveate.data.images import COMPRESSED_SHARDS, SUFFIXES
from foveate.data.layout import Export, box_files, choose_subset, find_coco, find_exports, find_images
from foveate.data.records import Dataset, IgnoredEntries
from foveate.data.splits import SPLITS
from foveate.data.validation import count_ignored, escapes, list_categories, short
from foveate.errors import InputError
from foveate.io.files import default_cache
from foveate.types import Category

ADE_PANOPTIC = "ade20k_panoptic_val"  # written by Mask2Former's tools into ADEChallengeData2016

AnnotationKind = Literal["instances", "masks", "panoptic", "none"]
Layout = Literal["COCO", "Pascal VOC", "Objects365"] | Export
"""Recognised roots, by the names that messages give them; LVIS is a COCO root with another annotation file."""


def open_data(
    path: Path | str,
    *,
    split: str,
    annotations: AnnotationKind = "instances",
    annotation_file: Path | None = None,
    accept: bool = False,
    progress: bool = False,
) -> Dataset:
    """Read a data set of any kind in the module's table.

    Args:
        path: a folder, a tar file, or a pattern of shards.
        split: "train", "val" or "test" ("trainval" for VOC); ignored for folders of images and shards, which have none.
        annotations: "instances": boxes; "masks": boxes and masks, of COCO and LVIS; "panoptic": of COCO; "none": only
            list the images of the split, whose ids are their names in its folder.
        annotation_file: read this file instead of that of the standard layout; its content shows whether it is COCO's,
            LVIS's or Objects365's, and it defines the images.
        accept: read boxes that contradict their images although they are the rule; see `consistency.py`.
        progress: show a bar while shards are fetched (into $FOVEATE_CACHE/shards) and scanned.

    Raises:
        InputError: the data set is not recognised or may be two, a file is malformed, or its boxes contradict their
            images.
    """
    dataset = _open_any(path, split, annotations, annotation_file, progress=progress)
    return dataset if annotations == "none" and annotation_file is None else accepted(dataset, accept=accept)


def _open_any(
    path: Path | str, split: str, annotations: AnnotationKind, annotation_file: Path | None, *, progress: bool
) -> Dataset:
    """`open_data` without the check of the boxes."""
    cache = default_cache()
    shards = _find_shards(path, None if cache is None else cache / "shards", progress=progress)
    path = Path(path)
    if annotation_file is not None or annotations == "panoptic":
        if shards:
            raise InputError(f"{path}: need a folder of annotated images; got tar shards, which have no boxes.")
        if annotation_file is None:
            return _open_coco_panoptic(path, split, with_images=True)
        return _open_annotated(path, annotation_file, split, with_masks=annotations == "masks")
    if shards:
        name = path.name if path.is_dir() else str(path)
        dataset = read_shards(shards, name=name, cache=cache, progress=progress)
        return replace(dataset, ignored={**dataset.ignored, **_beside_shards(path)})
    return _open_root(path, split, annotations)


def open_annotations(
    root: Path | None, *, split: str, annotation_file: Path | None = None, accept: bool = False
) -> Dataset:
    """Read annotations without the images, which need not exist: the ground truth of files of results.

    Args:
        root: a COCO, LVIS, VOC or Objects365 root; ignored if an annotation file is given.
        split: "train", "val" or "test" ("trainval" for VOC) of the root.
        annotation_file: COCO, LVIS or Objects365 JSON.
        accept: as for `open_data`.

    Raises:
        InputError: neither is given, the root has no annotations or two kinds, a file is malformed, or its boxes
            contradict their images.
    """
    if annotation_file is not None:
        return accepted(_read_annotations(annotation_file), accept=accept)
    if root is None:
        raise InputError("data: need annotations to score against; got none. Give an annotation file or a root.")
    years = find_voc(root, with_images=False)
    files = box_files(root, split)
    exports = [choose_subset(root, layout, split).annotations for layout in _exports(root) if layout != "YOLO"]
    found = [*years, *(file for file in files if file.is_file()), *find_objects365(root, split)[:1], *exports]
    if len(found) != 1:
        expected = ", ".join(map(str, [*files, root / "VOCdevkit/VOC2007"]))
        got = " and ".join(map(str, found)) or "none"
        raise InputError(f"{root}: need one of {expected} or Objects365's file; got {got}. Give the annotation file.")
    dataset = read_voc(years[0], split=split, with_images=False) if years else _read_annotations(found[0])
    return accepted(dataset, accept=accept)


def open_panoptic(root: Path, split: str, *, with_images: bool = True, accept: bool = False) -> Dataset:
    """Open a root with panoptic annotations, in COCO's layout or ADE20K's; the images need not exist.

    Args:
        accept: as for `open_data`.

    Raises:
        InputError: there are no panoptic annotations, they are malformed, or boxes contradict their images.
    """
    file = root / f"{ADE_PANOPTIC}.json"
    if not file.is_file():
        return accepted(_open_coco_panoptic(root, split, with_images=with_images), accept=accept)
    if split != "val":
        raise InputError(f"--split: must be val for ADE20K; got {split}.")
    dataset = read_panoptic(file, root / "images" / "validation" if with_images else None, root / ADE_PANOPTIC)
    dataset = replace(dataset, categories=tuple(_separate_synonyms(category) for category in dataset.categories))
    return accepted(dataset, accept=accept)


def _open_coco_panoptic(root: Path, split: str, *, with_images: bool) -> Dataset:
    pngs = root / "annotations" / f"panoptic_{split}2017"
    file = pngs.with_suffix(".json")
    if not (file.is_file() and pngs.is_dir()):
        raise InputError(f"{root}: need panoptic annotations of split {split}: {file} and the folder {pngs}; not both "
                         "exist. Check the path and the split.")  # fmt: skip
    return read_panoptic(file, find_images(root, split) if with_images else None, pngs)


def _separate_synonyms(category: Category) -> Category:
    """A class of ADE20K, whose name is a list of synonyms: "windowpane, window "."""
    names = [name.strip() for name in category.name.split(",")]
    return replace(category, name=names[0], synonyms=(*names[1:], *category.synonyms))


def _read_annotations(file: Path) -> Dataset:
    content = load(file, kind="an annotation")
    dataset = list_things(
        file, content, None, categories=file_categories(file, content), name_of=_any_name, naming="any"
    )
    return replace(dataset, ignored={})  # metrics use the boxes as they are in the file, see `evaluate.ground_truth`


def _any_name(where: str, entry: dict[str, Any]) -> str:
    """The name of an image that is not opened."""
    return str(entry.get("file_name") or entry.get("coco_url") or short(entry.get("id")))


def _find_shards(path: Path | str, cache: Path | None, *, progress: bool) -> list[Path]:
    """The shards of a path or pattern; empty: it is something else."""
    if is_pattern(str(path)):
        return fetch_all(expand(str(path)), cache, progress=progress)
    path = Path(path)
    if path.is_file() and path.suffix == ".tar":
        return [path]
    if path.is_file() and path.name.lower().endswith(COMPRESSED_SHARDS):
        raise InputError(f"{path}: need a tar shard that is not compressed; got a compressed one. Unpack it to .tar.")
    shards = sorted(path.glob("*.tar")) if path.is_dir() else []
    if shards and any(file.suffix.lower() in SUFFIXES for file in path.iterdir()):
        raise InputError(f"{path}: need shards or images; the folder has both. Put them into separate folders.")
    return shards


def _beside_shards(folder: Path) -> dict[str, IgnoredEntries]:
    """What is in a folder of shards and is not read."""
    ignored: dict[str, IgnoredEntries] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.lower().endswith(COMPRESSED_SHARDS):
            count_ignored(ignored, "compressed shard, which is not read: unpack it", path.name)
        elif path.is_dir() and not path.name.startswith("."):
            count_ignored(ignored, "folder beside shards, which is not entered", path.name)
    return ignored


def _open_root(root: Path, split: str, annotations: AnnotationKind) -> Dataset:
    """Recognise a folder and read it; a folder with no layout is a folder of images."""
    layouts = _recognise(root, split)
    if len(layouts) > 1:
        raise InputError(
            f"{root}: need one data set; this may be {' or '.join(layouts)}. Give the folder of one of them, or its "
            "annotation file with --annotations."
        )
    layout = layouts[0] if layouts else None
    # without a last `case _`, so that pyright reports a layout that has no case
    match layout:
        case None:
            return read_folder(root)
        case "COCO" if annotations == "none":
            return read_folder(find_images(root, split))
        case "COCO":
            return _open_coco(root, split, with_masks=annotations == "masks")
        case "CVAT" | "FiftyOne" | "Roboflow" | "YOLO" if annotations == "none":
            return read_folder(choose_subset(root, layout, split).images)
        case "CVAT" | "FiftyOne" | "Roboflow":
            file, images = choose_subset(root, layout, split)
            return _read_instances(file, images, root, with_masks=annotations == "masks")
        case _ if annotations == "masks":
            raise InputError(f"{root}: need masks of objects, which COCO and LVIS have; this is {layout}.")
        case "YOLO":
            labels, images = choose_subset(root, layout, split)
            return read_yolo(root, images=images, labels=labels)
        case "Pascal VOC":
            return read_voc(only_year(root, find_voc(root)), split=split, boxes=annotations == "instances")
        case "Objects365" if annotations == "none" and (root / split).is_dir():
            return read_folder(root / split)
        case "Objects365":
            return read_objects365(find_objects365(root, split)[0], root, split=split)


def _recognise(root: Path, split: str) -> list[Layout]:
    """The layouts that a folder has."""
    splits = [f"{name}2017" for name in ("train", "val", "test")]
    annotations = root / SPLITS.parent
    is_annotated = annotations.is_dir() and [*islice(annotations.iterdir(), 2)] != [root / SPLITS]  # of any layout
    found: dict[Layout, bool] = {
        "COCO": is_annotated or any((root / name).is_dir() for name in splits),
        "Pascal VOC": bool(find_voc(root)),
        "Objects365": bool(find_objects365(root, split)),
    }
    exports = _exports(root)
    if (found["Objects365"] or "CVAT" in exports) and not any((root / name).is_dir() for name in splits):
        found["COCO"] = False  # they have a folder `annotations` too
    return [*(name for name, is_found in found.items() if is_found), *exports]


def _exports(root: Path) -> list[Export]:
    """The layouts of tools that a folder has; none of them in a COCO root."""
    if any((root / f"{name}2017").is_dir() for name in ("train", "val", "test")):
        return []
    return [layout for layout, subsets in find_exports(root).items() if subsets]


def _open_coco(root: Path, split: str, *, with_masks: bool) -> Dataset:
    """The boxes of a COCO root: COCO's, or LVIS's if only these exist."""
    instances, lvis = box_files(root, split)
    if lvis.is_file():
        if instances.is_file():
            raise InputError(
                f"{root}: need one annotation file; found {instances} and {lvis}. Give one with --annotations."
            )
        return read_lvis(lvis, root, with_masks=with_masks)
    files = find_coco(root, split)
    if files.instances is None:
        raise InputError(f"{root}: need {instances}; not found. To use only the images, give {files.images}.")
    return _read_instances(files.instances, files.images, root, with_masks=with_masks)


def _read_instances(file: Path, images: Path, root: Path, *, with_masks: bool) -> Dataset:
    content = load(file, kind="a COCO instances")
    if is_lvis(content):
        return read_lvis(file, root, content=content, with_masks=with_masks)
    categories = list_categories(file, content)
    return list_things(file, content, images, categories=categories, with_masks=with_masks)


def _open_annotated(root: Path, file: Path, split: str, *, with_masks: bool) -> Dataset:
    """Read an annotation file that the user gave, by its content."""
    content = load(file, kind="an annotation")
    if is_lvis(content):
        return read_lvis(file, root, content=content, with_masks=with_masks)
    if is_objects365(content):
        if with_masks:
            raise InputError(f"--annotations {file}: need masks of objects; Objects365 has none.")
        return read_objects365(file, root, split=split, content=content)
    # COCO's names are relative to the root itself, or to its folder of the split
    names = [image.get("file_name") for image in islice(content["images"], 100) if isinstance(image, dict)]
    below = [relative_name(name, root) for name in names if isinstance(name, str)]
    is_below_root = any(not escapes(name) and (root / name).is_file() for name in below)
    images = root / f"{split}2017"
    folder = images if images.is_dir() and not is_below_root else root
    categories = list_categories(file, content)
    return list_things(file, content, folder, categories=categories, with_masks=with_masks)
