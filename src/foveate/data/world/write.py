"""Writes the rendered world in COCO's layout, so that it is read by the same loaders.

    DIR/train2017/*.jpg  val2017/  test2017/            scenes (test: for reporting)
    DIR/annotations/instances_SPLIT2017.json            boxes, RLE masks, area, iscrowd
    DIR/annotations/panoptic_SPLIT2017.json + folder    things and stuff, ids in PNG colours
    DIR/annotations/captions_SPLIT2017.json             one caption per scene
    DIR/annotations/splits.json                         names of the base and novel thing categories
    DIR/pairs/pairs-000000.tar ...                      64 px images with captions, webdataset layout
    DIR/world.json                                      the parameters; written last: a world without it is incomplete

The same seed gives the same bytes, whatever the number of processes.
"""

import io
import json
import signal
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from foveate.data.world.scenes import KINDS, THINGS, Scene, describe, draw_pair, draw_scene
from foveate.errors import ExhaustedError, InputError
from foveate.io.files import full_disk_named, require_free
from foveate.io.store import LOCK, hold_folder

SPLITS = ("train", "val", "test", "pairs")  # the index seeds the random generators
PAIRS_PER_SHARD = 10_000
CHUNK = 50  # images per task
SCENE_BYTES, PAIR_BYTES = 42_000, 6_600  # on the disk, 7 % more than measured with blocks of 4 KiB
MIN_AREA = 16  # pixels; smaller visible parts of a segment are unlabelled
Progress = Callable[[int, int], None]  # (images done, total)


@dataclass(frozen=True)
class WorldSize:
    """Numbers of scenes and pairs of a world; with the seed they determine every byte."""

    train: int
    val: int
    test: int
    pairs: int
    seed: int


def write_world(folder: Path, size: WorldSize, *, processes: int = 2, progress: Progress | None = None) -> None:
    """Render a world into a folder, or do nothing if the folder contains this very world.

    Args:
        folder: created if missing.
        size: numbers of scenes and pairs, and the seed.
        processes: number of processes that draw; the bytes do not depend on it.
        progress: called with (images done, total).

    Raises:
        InputError: the folder contains another world or other files, or the disk has too little space for it.
        ExhaustedError: a process that draws died.
    """
    parameters = {"format": 2, **asdict(size)}
    if _is_complete(folder, parameters):
        return
    with hold_folder(folder):
        _render(folder, size, parameters, processes=processes, progress=progress)


def _render(
    folder: Path, size: WorldSize, parameters: dict[str, int], *, processes: int, progress: Progress | None
) -> None:
    need = SCENE_BYTES * (size.train + size.val + size.test) + PAIR_BYTES * size.pairs
    drawn = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())  # before a kill; drawn over
    require_free(folder / "world.json", need=max(0, need - drawn))
    (folder / "annotations").mkdir(exist_ok=True)
    _write_json(folder / "world.partial", parameters)
    counts = asdict(size)
    done, total = 0, sum(counts[split] for split in SPLITS)
    with _pool(processes) as pool:
        for split in SPLITS:
            task = partial(_draw_pairs if split == "pairs" else _draw_scenes, str(folder), size.seed, split)
            parts = []
            for part in pool.map(task, _chunks(counts[split])):
                parts += part
                done += len(part)
                if progress:
                    progress(done, total)
            if split == "pairs":
                _write_shards(folder / "pairs", parts)
            else:
                _write_annotations(folder / "annotations", split, parts)
    _write_json(folder / "annotations" / "splits.json", base_and_novel())
    (folder / "world.partial").rename(folder / "world.json")


@contextmanager
def _pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """The processes that draw; Ctrl-C, which reaches them too, ends them with this one."""
    ignoring = (signal.SIGINT, signal.SIG_IGN)
    try:
        with ProcessPoolExecutor(processes, get_context("spawn"), signal.signal, ignoring) as pool:
            yield pool
    except BrokenProcessPool as error:
        raise ExhaustedError(
            f"one of the {processes} processes that draw was killed, as the system does where memory runs out"
        ) from error


def base_and_novel() -> dict[str, list[str]]:
    """Names of the base (24) and novel (8) thing categories."""
    return {
        "base": [kind.name for kind in THINGS if not kind.is_novel],
        "novel": [kind.name for kind in THINGS if kind.is_novel],
    }


def _is_complete(folder: Path, parameters: dict[str, int]) -> bool:
    """Whether the folder contains this world; an incomplete one of the same parameters is drawn again."""
    for name in ("world.json", "world.partial"):
        if (folder / name).exists():
            existing = json.loads((folder / name).read_text())
            differences = [
                f"{key} {existing.get(key)} instead of {parameters[key]}"
                for key in parameters
                if existing.get(key) != parameters[key]
            ]
            if differences:
                raise InputError(f"{folder}: need a folder for this world; it contains another one "
                                 f"({', '.join(differences)}). Choose another folder, or delete it.")  # fmt: skip
            return name == "world.json"
    if folder.exists() and any(path.name != LOCK for path in folder.iterdir()):
        raise InputError(f"{folder}: need an empty or new folder; it contains other files. Choose another folder.")
    return False


def _chunks(count: int) -> list[range]:
    return [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]


def _generator(seed: int, split: str, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, SPLITS.index(split), index])


# ------------------------------------------------------------------------------------------------------------- scenes


def _draw_scenes(folder: str, seed: int, split: str, indices: range) -> list[dict[str, Any]]:
    """Draw scenes, write their images and panoptic PNGs, and return the content of their annotations."""
    images = Path(folder, f"{split}2017")
    panoptic = Path(folder, "annotations", f"panoptic_{split}2017")
    images.mkdir(exist_ok=True)
    panoptic.mkdir(exist_ok=True)
    records = []
    for index in indices:
        rng = _generator(seed, split, index)
        scene = draw_scene(rng)
        image_id = SPLITS.index(split) * 1_000_000 + index + 1
        _write(images / f"{image_id:012d}.jpg", _encoded(Image.fromarray(scene.image)))
        height, width = scene.segments.shape
        segments = _segments(scene)
        _write(panoptic / f"{image_id:012d}.png", _encoded(_panoptic_png(scene, segments), kind="PNG"))
        records.append(
            {"id": image_id, "height": height, "width": width, "caption": describe(scene, rng), "segments": segments}
        )
    return records


def _segments(scene: Scene) -> list[dict[str, Any]]:
    segments = []
    for index, kind in enumerate(scene.kinds):
        visible = scene.segments == index
        if (area := int(visible.sum())) >= MIN_AREA:
            encoded = rle.encode(np.asfortranarray(visible.astype(np.uint8)))
            box = [float(x) for x in rle.toBbox(encoded)]
            counts = encoded["counts"].decode("ascii")  # pyright: ignore[reportAttributeAccessIssue]  pycocotools gives bytes
            segments.append({"index": index, "kind": kind, "area": area, "bbox": box, "counts": counts})
    return segments


def _colour_id(index: int) -> int:
    """A segment's id within its image, spread over the colours so that segments are visible in the PNG."""
    return (index + 1) * 0x4F6C3B % 0xFFFFFF


def _panoptic_png(scene: Scene, segments: list[dict[str, Any]]) -> Image.Image:
    ids = np.zeros(len(scene.kinds), np.int64)
    for segment in segments:
        ids[segment["index"]] = _colour_id(segment["index"])
    pixels = ids[scene.segments]
    return Image.fromarray(np.stack([pixels % 256, pixels // 256 % 256, pixels // 65536], -1).astype(np.uint8))


def _write_annotations(folder: Path, split: str, records: list[dict[str, Any]]) -> None:
    images = [
        {"id": r["id"], "file_name": f"{r['id']:012d}.jpg", "height": r["height"], "width": r["width"]} for r in records
    ]
    info = {"description": "Foveate's rendered world", "year": 2026, "licence": "CC0-1.0"}
    instances, panoptic, captions = [], [], []
    for record in records:
        size = [record["height"], record["width"]]
        infos = []
        for segment in record["segments"]:
            common = {"category_id": segment["kind"].id, "bbox": segment["bbox"], "area": segment["area"], "iscrowd": 0}
            infos.append({"id": _colour_id(segment["index"]), **common})
            if segment["kind"].is_thing:
                mask = {"size": size, "counts": segment["counts"]}
                number = record["id"] * 100 + segment["index"]
                instances.append({"id": number, "image_id": record["id"], **common, "segmentation": mask})
        name = f"{record['id']:012d}.png"
        panoptic.append({"image_id": record["id"], "file_name": name, "segments_info": infos})
        captions.append({"id": record["id"], "image_id": record["id"], "caption": record["caption"]})
    things = [{"id": k.id, "name": k.name, "supercategory": k.shape} for k in THINGS]
    everything = [
        {"id": k.id, "name": k.name, "supercategory": k.shape or "stuff", "isthing": int(k.is_thing)} for k in KINDS
    ]
    common = {"info": info, "images": images}
    _write_json(folder / f"instances_{split}2017.json", {**common, "categories": things, "annotations": instances})
    _write_json(folder / f"panoptic_{split}2017.json", {**common, "categories": everything, "annotations": panoptic})
    _write_json(folder / f"captions_{split}2017.json", {**common, "annotations": captions})


def _write_json(path: Path, content: object) -> None:
    _write(path, json.dumps(content, separators=(",", ":")).encode())


def _write(path: Path, content: bytes) -> None:
    with full_disk_named(path, need=len(content)):
        path.write_bytes(content)


def _encoded(image: Image.Image, *, kind: str = "JPEG") -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}))
    return content.getvalue()


# -------------------------------------------------------------------------------------------------------------- pairs


def _draw_pairs(_folder: str, seed: int, split: str, indices: range) -> list[tuple[str, bytes, str]]:
    pairs = []
    for index in indices:
        image, caption = draw_pair(_generator(seed, split, index))
        pairs.append((f"{index:09d}", _encoded(Image.fromarray(image)), caption))
    return pairs


def _write_shards(folder: Path, pairs: list[tuple[str, bytes, str]]) -> None:
    folder.mkdir(exist_ok=True)
    for start in range(0, len(pairs), PAIRS_PER_SHARD):
        path = folder / f"pairs-{start // PAIRS_PER_SHARD:06d}.tar"
        with full_disk_named(path), tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for key, jpeg, caption in pairs[start : start + PAIRS_PER_SHARD]:
                for name, content in ((f"{key}.jpg", jpeg), (f"{key}.txt", caption.encode())):
                    member = tarfile.TarInfo(name)  # without time and owner, so that the bytes depend on the seed only
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
