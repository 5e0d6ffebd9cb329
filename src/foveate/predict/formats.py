"""Detections as the files of annotation tools, from COCO's form.

    coco           annotations.json; FiftyOne (COCODetectionDataset), CVAT and Label Studio's converter open it too
    yolo           data.yaml and labels/STEM.txt: class and box, or class and polygons where there are masks, in [0, 1]
    voc            annotations/STEM.xml, one per image: Pascal VOC's corners, which count pixels from 1
    cvat           annotations.xml: "CVAT for images 1.1", boxes, or polygons where there are masks
    label-studio   tasks.json: predictions in percent of the sides, to import as pre-annotations
    fiftyone       labels.json of FiftyOneImageDetectionDataset: boxes in [0, 1]

Scores stay where a format has a place for them: coco, label-studio, fiftyone, and cvat as an attribute. A mask is
written as the outlines of its parts; holes are lost, which coco's run lengths keep.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any, Literal
from urllib.parse import quote
from xml.etree import ElementTree

from foveate.errors import InputError

Format = Literal["coco", "yolo", "voc", "cvat", "label-studio", "fiftyone"]
Content = dict[str, Any]
"""Detections in COCO's form: "images", "annotations" with scores, and "categories"."""
Polygon = list[tuple[float, float]]  # x, y [pixels]


def write_format(content: Content, format: Format) -> dict[str, str]:
    """Convert detections to the files of a format.

    Args:
        content: COCO's form; boxes are [x, y, width, height] in pixels, masks compressed run lengths.
        format: one of the module's table.

    Returns:
        The text of each file by its path.

    Raises:
        InputError: another format, or two images with one stem where files are named after images.
    """
    if format not in WRITERS:
        raise InputError(f"format: must be one of {', '.join(WRITERS)}; got {format!r}.")
    return WRITERS[format](content)


def _write_coco(content: Content) -> dict[str, str]:
    return {"annotations.json": json.dumps(content) + "\n"}


def _write_yolo(content: Content) -> dict[str, str]:
    names, files = _names(content), {}
    for image, entries in _by_image(content):
        width, height, lines = image["width"], image["height"], []
        for entry in entries:
            label = entry["category_id"] - 1
            x, y, w, h = entry["bbox"]
            box = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
            outlines = [[part for x, y in outline for part in (x / width, y / height)] for outline in _outlines(entry)]
            lines += [" ".join([str(label), *(f"{value:.6g}" for value in values)]) for values in outlines or [box]]
        files[f"labels/{_stem(image, files, 'labels/{}.txt')}.txt"] = "".join(f"{line}\n" for line in lines)
    listed = "".join(f"  {label}: {json.dumps(name, ensure_ascii=False)}\n" for label, name in enumerate(names))
    return {"data.yaml": f"path: .\ntrain: images\nval: images\nnames:\n{listed}", **files}


def _write_voc(content: Content) -> dict[str, str]:
    names, files = _names(content), {}
    for image, entries in _by_image(content):
        root = ElementTree.Element("annotation")
        _add(root, "filename", image["file_name"])
        size = ElementTree.SubElement(root, "size")
        for name, value in (("width", image["width"]), ("height", image["height"]), ("depth", 3)):
            _add(size, name, value)
        for entry in entries:
            item = ElementTree.SubElement(root, "object")
            for name, value in (("name", names[entry["category_id"] - 1]), ("difficult", 0), ("truncated", 0)):
                _add(item, name, value)
            corners, (x, y, w, h) = ElementTree.SubElement(item, "bndbox"), entry["bbox"]
            pixels = (("xmin", x + 1), ("ymin", y + 1), ("xmax", x + w), ("ymax", y + h))  # inclusive, counted from 1
            for name, value in pixels:
                _add(corners, name, round(value))
        files[f"annotations/{_stem(image, files, 'annotations/{}.xml')}.xml"] = _xml(root)
    return files


def _write_cvat(content: Content) -> dict[str, str]:
    names = _names(content)
    root = ElementTree.Element("annotations")
    _add(root, "version", "1.1")
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    _add(task, "size", len(content["images"]))
    _add(task, "mode", "annotation")
    labels = ElementTree.SubElement(task, "labels")
    for name in names:
        label = ElementTree.SubElement(labels, "label")
        _add(label, "name", name)
        attribute = ElementTree.SubElement(ElementTree.SubElement(label, "attributes"), "attribute")
        for key, value in (("name", "score"), ("mutable", "False"), ("input_type", "text"), ("default_value", "")):
            _add(attribute, key, value)
    for number, (image, entries) in enumerate(_by_image(content)):
        sides = {"width": str(image["width"]), "height": str(image["height"])}
        parent = ElementTree.SubElement(root, "image", {"id": str(number), "name": image["file_name"], **sides})
        for entry in entries:
            shared = {"label": names[entry["category_id"] - 1], "source": "auto", "occluded": "0", "z_order": "0"}
            x, y, w, h = entry["bbox"]
            corners = {"xtl": x, "ytl": y, "xbr": x + w, "ybr": y + h}
            shapes = [("polygon", {"points": ";".join(f"{x:.2f},{y:.2f}" for x, y in outline)})
                      for outline in _outlines(entry)]  # fmt: skip
            for shape, values in shapes or [("box", {key: f"{value:.2f}" for key, value in corners.items()})]:
                element = ElementTree.SubElement(parent, shape, {**shared, **values})
                _add(element, "attribute", entry["score"]).set("name", "score")
    return {"annotations.xml": _xml(root)}


def _write_label_studio(content: Content) -> dict[str, str]:
    names, tasks = _names(content), []
    for image, entries in _by_image(content):
        width, height = image["width"], image["height"]
        shared = {"from_name": "label", "to_name": "image", "original_width": width, "original_height": height}
        results = []
        for entry in entries:
            label, (x, y, w, h) = names[entry["category_id"] - 1], entry["bbox"]
            box = {"x": 100 * x / width, "y": 100 * y / height, "width": 100 * w / width, "height": 100 * h / height}
            values = [("polygonlabels", {"points": [[100 * x / width, 100 * y / height] for x, y in outline]})
                      for outline in _outlines(entry)]  # fmt: skip
            for kind, value in values or [("rectanglelabels", {**box, "rotation": 0})]:
                number = f"{entry['id']}-{len(results)}"
                result = {"id": number, "type": kind, "value": {**value, kind: [label]}, "score": entry["score"]}
                results.append({**result, **shared, "image_rotation": 0})
        mean = sum(entry["score"] for entry in entries) / max(1, len(entries))
        # a path that the tool's local storage serves; change it to where the images are
        data = {"image": f"/data/local-files/?d={quote(image['file_name'])}"}
        tasks.append({"data": data, "predictions": [{"model_version": "foveate", "score": mean, "result": results}]})
    return {"tasks.json": json.dumps(tasks, indent=1) + "\n"}


def _write_fiftyone(content: Content) -> dict[str, str]:
    names, labels = _names(content), {}
    for image, entries in _by_image(content):
        width, height = image["width"], image["height"]
        stem = PurePosixPath(image["file_name"]).with_suffix("").as_posix()  # the images are data/STEM.SUFFIX
        if stem in labels:
            raise InputError(
                f"format: need image names that differ without their suffix; got {stem!r} twice. Rename one."
            )
        labels[stem] = [
            {"label": names[entry["category_id"] - 1], "confidence": entry["score"],
             "bounding_box": [x / width, y / height, w / width, h / height]}
            for entry in entries for x, y, w, h in [entry["bbox"]]
        ]  # fmt: skip
    return {"labels.json": json.dumps({"classes": names, "labels": labels}, indent=1) + "\n"}


WRITERS: dict[str, Callable[[Content], dict[str, str]]] = {
    "coco": _write_coco,
    "yolo": _write_yolo,
    "voc": _write_voc,
    "cvat": _write_cvat,
    "label-studio": _write_label_studio,
    "fiftyone": _write_fiftyone,
}


def _names(content: Content) -> list[str]:
    """The class names; category ids count from 1 in this order."""
    assert [category["id"] for category in content["categories"]] == [*range(1, len(content["categories"]) + 1)]
    return [category["name"] for category in content["categories"]]


def _by_image(content: Content) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Each image with its annotations."""
    entries = defaultdict(list)
    for entry in content["annotations"]:
        entries[entry["image_id"]].append(entry)
    for image in content["images"]:
        yield image, entries[image["id"]]


def _stem(image: dict[str, Any], files: dict[str, str], pattern: str) -> str:
    """The name of an image's file without its suffix; folders are kept, so that the tool finds the image."""
    stem = PurePosixPath(image["file_name"]).with_suffix("").as_posix()
    if pattern.format(stem) in files:
        raise InputError(f"format: need image names that differ without their suffix; got {stem!r} twice. Rename one.")
    return stem


def _outlines(entry: dict[str, Any]) -> list[Polygon]:
    """The outlines of a mask's parts [pixels]; empty: it has no mask."""
    if "segmentation" not in entry:
        return []
    import numpy as np
    from contourpy import contour_generator
    from pycocotools import mask as coco

    encoded: Any = entry["segmentation"]
    inside = np.pad(coco.decode(encoded).astype(np.float32), 1)  # (H + 2, W + 2), so that outlines are closed
    lines: list[Any] = [*contour_generator(z=inside).lines(0.5)]
    # pixel centres are at half numbers; an inner outline runs the other way
    return [[(float(x) - 0.5, float(y) - 0.5) for x, y in line[:-1]] for line in lines if _signed_area(line) > 0]


def _signed_area(line: Any) -> float:
    """Of a closed line (N, 2): positive for the outline of a part, negative for that of a hole."""
    x, y = line[:, 0], line[:, 1]
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def _add(parent: ElementTree.Element, name: str, value: object) -> ElementTree.Element:
    child = ElementTree.SubElement(parent, name)
    child.text = str(value)
    return child


def _xml(root: ElementTree.Element) -> str:
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"
