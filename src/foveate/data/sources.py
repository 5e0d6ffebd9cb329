"""The one place that recognises a data set, by what lies on disk.

    annotations/instances_SPLIT2017.json + SPLIT2017/     COCO, and the rendered world        `coco.py`
    annotations/lvis_v1_SPLIT.json + {train,val}2017/     LVIS v1                             `lvis.py`
    [VOCdevkit/]VOC2012/{JPEGImages,ImageSets/Main}       Pascal VOC                          `voc.py`
    [annotations/]zhiyuan_objv2_SPLIT.json                Objects365                          `objects365.py`
    *.tar, "shards-{000..331}.tar", URLs                  tar shards in webdataset layout     `shards.py`
    anything else                                         a folder of images                `folder.py`

Deliberately absent: reading any of them, and guessing between two.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from foveate.data.datasets.coco import list_things, read_panoptic
from foveate.data.datasets.folder import read_folder
from foveate.data.datasets.lvis import file_categories, is_lvis, list_lvis, read_lvis
from foveate.data.datasets.objects365 import find_objects365, is_objects365, list_objects365, read_objects365
from foveate.data.datasets.shards import read_shards
from foveate.data.datasets.voc import find_voc, only_year, read_voc
from foveate.data.fetch import expand, fetch_all, is_pattern
from foveate.data.images import SUFFIXES
from foveate.data.layout import box_files, find_coco, find_images
from foveate.data.records import Dataset
from foveate.data.validation import list_categories, load, short
from foveate.errors import InputError
from foveate.io.files import default_cache
from foveate.types import Category

ADE_PANOPTIC = "ade20k_panoptic_val"  # written by Mask2Former's tools into ADEChallengeData2016

Kind = Literal["instances", "masks", "panoptic", "none"]


def open_data(
    path: Path | str,
    *,
    split: str,
    annotations: Kind = "instances",
    annotation_file: Path | None = None,
    shard_cache: Path | None = None,
    progress: bool = False,
) -> Dataset:
    """Read a data set of any kind that the module's table shows.

    Args:
        path: a folder, a tar file, or a pattern of shards.
        split: "train", "val" or "test" ("trainval" for VOC); folders of images and shards have none, there it is not
            looked at.
        annotations: what to read of annotated data; "masks" are instances with their masks, of COCO and LVIS alone;
            "panoptic" is COCO's alone; "none" lists the images of the split
            (ids are their names in the split's folder), whatever the annotations are.
        annotation_file: read this file instead of the one that lies in the standard place; its content says whether it
            is COCO's, LVIS's or Objects365's, and it says which images there are.
        shard_cache: where fetched shards are kept; $FOVEATE_CACHE/shards when not given.
        progress: show a bar while shards are fetched and scanned.

    Raises:
        InputError: it is none of them or may be two, or a file is not what it must be.
    """
    cache = default_cache()
    kept = cache / "shards" if shard_cache is None and cache is not None else shard_cache
    shards = _find_shards(path, kept, progress=progress)
    path = Path(path)
    if annotation_file is not None or annotations == "panoptic":
        if shards:
            raise InputError(f"{path}: need a folder of annotated images; these are tar shards, which have no boxes.")
        if annotation_file is None:
            return _open_coco_panoptic(path, split, with_images=True)
        return _open_annotated(path, annotation_file, split, with_masks=annotations == "masks")
    if shards:
        name = path.name if path.is_dir() else str(path)
        return read_shards(shards, name=name, cache=cache, progress=progress)
    kinds = _recognise(path, split)
    if len(kinds) > 1:
        raise InputError(
            f"{path}: may be read as {' or as '.join(kinds)}. Say which: name the folder of one of them, or its "
            "annotation file with --annotations."
        )
    match kinds:
        case ["COCO"] if annotations == "none":
            return read_folder(find_images(path, split))
        case ["COCO"]:
            return _open_coco(path, split, with_masks=annotations == "masks")
        case [other] if annotations == "masks":
            raise InputError(f"{path}: need masks of objects, as COCO and LVIS have; this is {other}.")
        case ["Pascal VOC"]:
            return read_voc(only_year(path, find_voc(path)), split=split, boxes=annotations == "instances")
        case ["Objects365"] if annotations == "none" and (path / split).is_dir():
            return read_folder(path / split)
        case ["Objects365"]:
            return read_objects365(find_objects365(path, split)[0], path, split=split)
    return read_folder(path)


def open_annotations(root: Path | None, *, split: str, annotation_file: Path | None = None) -> Dataset:
    """Read what is annotated without the images, which need not be there: what files of results are scored against.

    Args:
        root: a COCO, LVIS, VOC or Objects365 root; not looked at where there is an annotation file.
        split: "train", "val" or "test" ("trainval" for VOC) of the root.
        annotation_file: COCO, LVIS or Objects365 JSON.

    Raises:
        InputError: neither is given, the root has none or two kinds, or a file is not what it must be.
    """
    if annotation_file is not None:
        return _read_annotations(annotation_file)
    if root is None:
        raise InputError("data: need annotations to score against; got none. Name an annotation file, or a root.")
    years = find_voc(root, with_images=False)
    names = box_files(root, split)
    found = [*years, *(file for file in names if file.is_file()), *find_objects365(root, split)[:1]]
    if len(found) != 1:
        wanted = ", ".join(map(str, [*names, root / "VOCdevkit/VOC2007"]))
        got = " and ".join(map(str, found)) or "none"
        raise InputError(f"{root}: need one of {wanted} or Objects365's file; got {got}. Name the annotation file.")
    return read_voc(years[0], split=split, with_images=False) if years else _read_annotations(found[0])


def open_panoptic(root: Path, split: str, *, with_images: bool = True) -> Dataset:
    """The images of a root with panoptic annotations, COCO's layout or ADE20K's; the images may be absent.

    Raises:
        InputError: it has none, or they are damaged.
    """
    file = root / f"{ADE_PANOPTIC}.json"
    if not file.is_file():
        return _open_coco_panoptic(root, split, with_images=with_images)
    if split != "val":
        raise InputError(f"--split: must be val for ADE20K; got {split}.")
    dataset = read_panoptic(file, root / "images" / "validation" if with_images else None, root / ADE_PANOPTIC)
    return replace(dataset, categories=tuple(_separate_synonyms(category) for category in dataset.categories))


def _open_coco_panoptic(root: Path, split: str, *, with_images: bool) -> Dataset:
    """Read the panoptic annotations of COCO's layout."""
    pngs = root / "annotations" / f"panoptic_{split}2017"
    file = pngs.with_suffix(".json")
    if not (file.is_file() and pngs.is_dir()):
        raise InputError(f"{root}: need panoptic annotations of split {split}: {file} and the folder {pngs}; not both "
                         "are there. Check the path and the split.")  # fmt: skip
    return read_panoptic(file, find_images(root, split) if with_images else None, pngs)


def _separate_synonyms(category: Category) -> Category:
    """A class of ADE20K, whose name is a list of words: "windowpane, window "."""
    words = [word.strip() for word in category.name.split(",")]
    return replace(category, name=words[0], synonyms=(*words[1:], *category.synonyms))


def _read_annotations(file: Path) -> Dataset:
    content = load(file, kind="an annotation")
    dataset = list_things(file, content, None, categories=file_categories(file, content), name_of=_any_name)
    return replace(dataset, ignored={})  # measures take the file's own boxes, see `evaluate.ground_truth`


def _any_name(where: str, entry: dict[str, Any]) -> str:
    """What an image is called where nobody opens it."""
    return str(entry.get("file_name") or entry.get("coco_url") or short(entry.get("id")))


def _find_shards(path: Path | str, cache: Path | None, *, progress: bool) -> list[Path]:
    """The shards that a path or pattern means; none: it is something else."""
    if is_pattern(str(path)):
        return fetch_all(expand(str(path)), cache, progress=progress)
    path = Path(path)
    if path.is_file() and path.suffix == ".tar":
        return [path]
    shards = sorted(path.glob("*.tar")) if path.is_dir() else []
    if shards and any(one.suffix.lower() in SUFFIXES for one in path.iterdir()):
        raise InputError(f"{path}: holds tar shards and images side by side. Put either into a folder of its own.")
    return shards


def _recognise(root: Path, split: str) -> list[str]:
    """The names of the layouts that a folder has."""
    splits = [f"{name}2017" for name in ("train", "val", "test")]
    found = {
        "COCO": (root / "annotations").is_dir() or any((root / name).is_dir() for name in splits),
        "Pascal VOC": bool(find_voc(root)),
        "Objects365": bool(find_objects365(root, split)),
    }
    if found["Objects365"] and not any((root / name).is_dir() for name in splits):
        found["COCO"] = False  # its `annotations` folder alone
    return [name for name, there in found.items() if there]


def _open_coco(root: Path, split: str, *, with_masks: bool) -> Dataset:
    """The boxes of a COCO root: its instances, or LVIS's where only they are there."""
    instances, lvis = box_files(root, split)
    if lvis.is_file():
        if instances.is_file():
            raise InputError(f"{root}: holds {instances} and {lvis}. Say which with --annotations.")
        return read_lvis(lvis, root, with_masks=with_masks)
    files = find_coco(root, split)
    if files.instances is None:
        raise InputError(f"{root}: need {instances}; it is not there. To use only the images, name {files.images}.")
    content = load(files.instances, kind="a COCO instances")
    if is_lvis(content):
        return list_lvis(files.instances, content, root, with_masks=with_masks)
    categories = list_categories(files.instances, content["categories"])
    return list_things(files.instances, content, files.images, categories=categories, with_masks=with_masks)


def _open_annotated(root: Path, file: Path, split: str, *, with_masks: bool) -> Dataset:
    """Read the file that the user named, by what it holds."""
    content = load(file, kind="an annotation")
    if is_lvis(content):
        return list_lvis(file, content, root, with_masks=with_masks)
    if is_objects365(content):
        if with_masks:
            raise InputError(f"--annotations {file}: need masks of objects; Objects365 has none.")
        return list_objects365(file, content, root, split=split)
    categories = list_categories(file, content["categories"])
    folder = _folder_of(content, root, split)
    return list_things(file, content, folder, categories=categories, with_masks=with_masks)


def _folder_of(content: dict[str, Any], root: Path, split: str) -> Path:
    """What the names of a COCO file are relative to: the folder named, or its images of the split."""
    images = root / f"{split}2017"
    names = [one["file_name"] for one in content["images"][:100] if isinstance(one, dict) and "file_name" in one]
    there = any(isinstance(name, str) and "\0" not in name and (root / name).is_file() for name in names)
    return images if images.is_dir() and not there else root
