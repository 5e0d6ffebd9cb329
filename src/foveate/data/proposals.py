"""Writes region proposals in COCO's form, with scores and provenance (Sec. 3.2; A.3).

`boxes.py` reads them, and `provenance.py` checks the provenance. Images are named by relative paths, so that no path of
this machine is in the file.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from foveate.data.records import Record
from foveate.errors import InputError
from foveate.io.files import write_whole
from foveate.types import Sample


def write_proposals(
    path: Path,
    found: Iterable[tuple[Record, Sample, list[list[float]], list[float]]],
    roots: Sequence[Path],
    *,
    facts: dict[str, Any],
) -> None:
    """Write proposals as COCO annotations of the category "object".

    Args:
        found: record, decoded sample, boxes (xyxy) and scores of each image.
        roots: of `file_name_of`.

    Raises:
        InputError: as `file_name_of`.
    """
    images, annotations = [], []
    for number, (record, sample, boxes, scores) in enumerate(found, start=1):
        key = record.id if isinstance(record.id, int) else number
        height, width = sample.image.shape[1:]
        name = file_name_of(record, roots)
        images.append({"id": key, "file_name": name, "height": height, "width": width})
        for (x1, y1, x2, y2), score in zip(boxes, scores, strict=True):
            xywh = [round(x1, 2), round(y1, 2), round(x2 - x1, 2), round(y2 - y1, 2)]
            entry = {"id": len(annotations) + 1, "image_id": key, "bbox": xywh, "score": round(score, 5)}
            annotations.append({**entry, "area": round(xywh[2] * xywh[3], 2), "iscrowd": 0, "category_id": 1})
    content = {
        "info": {"description": "class-agnostic region proposals", "provenance": facts},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "object"}],
    }
    write_whole(path, json.dumps(content).encode())


def file_name_of(record: Record, roots: Sequence[Path]) -> str:
    """The name of an image in a file of boxes, by which `data.regions` finds it again.

    Args:
        record: an image file, named by its path, or an image in a tar shard, named by its id SHARD:KEY (keys may repeat
            between shards).
        roots: the name is relative to the first of these that contains the image.

    Raises:
        InputError: none of them does, so that only an absolute path would be left.
    """
    if record.member is not None and not Path(str(record.id)).is_absolute():
        return str(record.id)
    for root in roots if record.member is None else ():
        if record.path.is_relative_to(root):
            return record.path.relative_to(root).as_posix()
    raise InputError(
        f"--images, --data: need images below {roots[-1]}, which their names are relative to; got {record.path}. "
        "Give the folder that contains them."
    )
