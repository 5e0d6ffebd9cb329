"""`annotations`: what it takes to open COCO's or LVIS's training annotations, and what a loader's worker adds.

    python benchmarks/annotations.py --folder /data/scratch --kind lvis --masks

A synthetic file of the same number of images and objects, with polygons, is written once and opened twice, each time by
a process of its own: the first parses it, the second finds the cache. Seconds are of one start. Of a
worker it is the private memory that a forked process gains while it visits all records in a random order, and the bytes
that one that is not forked receives. Linux only.
"""

import argparse
import json
import os
import pickle
import random
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from subprocess import PIPE, run

from foveate.data.records import Record
from foveate.data.sources import open_data

COUNTS = {
    "coco": (118_287, 860_001, 80, 21),
    "lvis": (100_170, 1_270_141, 1_203, 38),
}  # images, objects, classes, corners
SIDE = 640  # of the images [pixels]


def write(path: Path, kind: str, *, share: float) -> None:
    """Write a file as large as the original times `share`."""
    images, objects, classes, corners = COUNTS[kind]
    images, objects, dice = int(images * share), int(objects * share), random.Random(0)
    outlines = []  # with their extents: boxes that are not those of their masks are refused
    for _ in range(999):
        count = dice.randint(3, 2 * corners - 3)
        xs, ys = ([round(dice.uniform(0, SIDE), 2) for _ in range(count)] for _ in "xy")
        sides = (max(xs) - min(xs), max(ys) - min(ys))
        box = f"[{min(xs)}, {min(ys)}, {sides[0]:.2f}, {sides[1]:.2f}]"
        outlines.append((", ".join(f"{x}, {y}" for x, y in zip(xs, ys, strict=True)), box, sides[0] * sides[1] / 2))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        lists = {
            "images": _images(images, kind, dice),
            "annotations": _objects(images, objects, classes, outlines, dice),
        }
        file.write('{"info": {"version": "1"}, "licenses": []')
        for key, entries in lists.items() if kind == "coco" else reversed(lists.items()):
            file.write(f', "{key}": [{next(entries)}')
            file.writelines(f", {entry}" for entry in entries)
            file.write("]")
        frequency = {"frequency": "f", "synonyms": ["a"]} if kind == "lvis" else {}
        categories = [{"id": number, "name": f"c{number}", **frequency} for number in range(1, classes + 1)]
        file.write(f', "categories": {json.dumps(categories)}}}')


def _images(count: int, kind: str, dice: random.Random) -> Iterator[str]:
    for number in range(1, count + 1):
        name, url = f"{number:012}.jpg", f"http://images.cocodataset.org/train2017/{number:012}.jpg"
        image = {"id": number, "height": SIDE, "width": SIDE, "license": 1, "coco_url": url}
        absent = {"neg_category_ids": dice.sample(range(1, 1204), 8), "not_exhaustive_category_ids": []}
        yield json.dumps(image | ({"file_name": name} if kind == "coco" else absent))


def _objects(
    images: int, count: int, classes: int, outlines: list[tuple[str, str, float]], dice: random.Random
) -> Iterator[str]:
    for number in range(1, count + 1):
        outline, box, area = outlines[number % 999]
        yield (
            f'{{"segmentation": [[{outline}]], "area": {area:.4f}, "iscrowd": 0, "image_id": '
            f'{dice.randint(1, images)}, "bbox": {box}, "category_id": {dice.randint(1, classes)}, "id": {number}}}'
        )


def opened(root: Path, *, masks: bool) -> dict[str, float]:
    """Open the data and visit its records in a worker."""
    imported, started = _memory("status", "VmHWM"), time.perf_counter()
    dataset = open_data(root, split="train", annotations="masks" if masks else "instances")
    taken, peak = time.perf_counter() - started, _memory("status", "VmHWM")
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=_visit, args=(dataset.records, sender))
    worker.start()
    growth = receiver.recv()
    worker.join()
    return {
        "seconds": taken,
        "peak_mb": peak,
        "imports_mb": imported,
        "worker_mb": growth,
        "pickled_mb": len(ForkingPickler.dumps(dataset.records, pickle.HIGHEST_PROTOCOL)) / 1e6,
    }


def _visit(records: Sequence[Record], sender: Connection) -> None:
    indices = list(range(len(records)))
    random.Random(0).shuffle(indices)
    for index in indices[:100]:  # the code's own pages
        assert records[index].boxes is not None
    before = _memory("smaps_rollup", "Private_")
    for index in indices:
        assert records[index].boxes is not None
    sender.send(_memory("smaps_rollup", "Private_") - before)


def _memory(file: str, name: str) -> float:
    """The sum of the lines of a file of /proc/self with a name [MB]."""
    lines = Path("/proc/self", file).read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the files: 2 GB")
    parser.add_argument("--kind", choices=COUNTS, default="coco")
    parser.add_argument("--masks", action="store_true", help="read the masks too")
    parser.add_argument("--share", type=float, default=1.0, help="of the images and objects of the original")
    parser.add_argument("--only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    root = options.folder / f"{options.kind}{options.share:g}"
    if options.only:
        print(json.dumps(opened(root, masks=options.masks)))
        return
    name = "instances_train2017.json" if options.kind == "coco" else "lvis_v1_train.json"
    file = root / "annotations" / name
    if not file.is_file():
        write(file, options.kind, share=options.share)
        (root / "train2017").mkdir(exist_ok=True)
        (root / "train2017" / f"{1:012}.jpg").touch()
    cache = root / "cache"
    run(["rm", "-rf", cache], check=True)
    command = [sys.executable, __file__, *sys.argv[1:], "--only"]
    starts = {}
    for start in ("first", "second"):
        done = run(command, env={**os.environ, "FOVEATE_CACHE": str(cache)}, stdout=PIPE, text=True, check=True)
        starts[start] = {key: round(value, 2) for key, value in json.loads(done.stdout).items()}
    row = {"benchmark": "annotations", "kind": options.kind, "masks": options.masks}
    print(json.dumps({**row, "file_mb": round(file.stat().st_size / 1e6), **starts}))


if __name__ == "__main__":
    main()
