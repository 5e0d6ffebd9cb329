"""`foveate embed`: features of images in one file, for other programs."""

import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from foveate.clip.dense import check_head
from foveate.clip.io.digest import digest_state
from foveate.clip.load import load
from foveate.clip.model import Clip
from foveate.data.boxes import ImageBoxes, read_boxes
from foveate.data.consistency import check_file_boxes
from foveate.data.listing import list_files
from foveate.data.records import Dataset
from foveate.engine.distributed import choose_device
from foveate.engine.stop import keeping
from foveate.errors import InputError
from foveate.io.files import bad_lines, versions, write_whole
from foveate.io.listing import Listing, changes_between
from foveate.io.outputs import MARK
from foveate.io.store import Part, claim_parts, find_parts, hold_target, refuse_another, remove_parts
from foveate.io.tensors import MAX_HEADER, header_size, join_tensors, read_header
from foveate.ops.resample import check_side
from foveate.predict.features import Features, box_features, dense_features, image_features, make_parts
from foveate.predict.flags import Embed
from foveate.predict.images import list_images
from foveate.types import Sample

OWNER = Embed.made_by  # in the manifest of the parts
BATCH = {"image": 64, "dense": 8, "boxes": 8}


def run(config: Embed) -> Path:
    """Embed the images, print what was written, and return the file's path.

    Raises:
        InputError: flags that do not fit together, no readable image, damaged boxes, or existing files of another
            command.
    """
    _check(config)
    with hold_target(config.out):
        return _embed(config)


def _embed(config: Embed) -> Path:
    started = time.perf_counter()
    dataset = list_images(config.images)
    if config.boxes is not None:
        dataset = _with_boxes(dataset, config.boxes, accept=config.accept_annotations)
    clip = load(config.model, pretrained=config.pretrained, device=choose_device(config.device, local_rank=None))
    if config.features != "image" and config.head != "masked":
        check_head(clip.visual, config.head)
    size = _size(config, clip)
    _check_header(config, dataset, clip, size)
    listing = list_files(dataset.records)
    identity = _identity(config, dataset, clip, size, images=listing.identity)
    notes, folder = config.out.with_suffix(".json"), Path(f"{config.out}.parts")
    changes = partial(_changes, notes, listing)
    if config.out.exists() and _is_complete(config.out, notes, identity, changes, overwrite=config.overwrite):
        remove_parts(folder, identity, owner=OWNER)  # if the last run was killed between its last two steps
        print(f"{config.out}: is already complete; skipped")
        return config.out
    parts = claim_parts(folder, identity, owner=OWNER, listing=listing)
    done = parts[-1].stop if parts else 0
    resumed = f"; {done} are done already" if done else ""
    count = len(dataset.records)
    for line in dataset.ignored_lines():
        print(line, file=sys.stderr)
    print(f"{count} images to embed with {config.model}{resumed}; unfinished work is in {folder}", flush=True)
    # with --strict, images that an earlier run without it skipped count too
    if config.strict and (bad := [note for part in parts for note in part.notes["bad"]]):
        raise InputError(f"image {bad[0]['id']}: {bad[0]['reason']} (--strict stops at the first)")
    began = time.perf_counter()
    with keeping(lambda: _kept_line(folder, count)):
        parts += make_parts(
            _compute(config, clip, size),
            dataset,
            folder,
            title=f"{config.features} embeddings",
            dtype=getattr(torch, config.dtype),
            batch=config.batch or BATCH[config.features],
            done=done,
            workers=config.workers,
            strict=config.strict,
        )
        seconds = time.perf_counter() - began
        _finish(config, dataset, parts, folder, identity)
    count -= done
    print(f"{count} images in {seconds:.1f} s, {count / seconds:.1f} per second, after {began - started:.1f} s to load")
    return config.out


def _kept_line(folder: Path, count: int) -> str:
    """How many of the images need not be embedded again."""
    done = sum(part.stop - part.start for part in find_parts(folder))
    return f"the features of {done} of {count} images are in {folder} (not used with another --batch or --size)"


def _check(config: Embed) -> None:
    """Refuse flags that cannot work before anything is loaded."""
    if config.features == "boxes" and config.boxes is None:
        raise InputError("--what boxes: need a file of boxes; got none. Add --boxes F.json.")
    if config.features != "boxes" and config.boxes is not None:
        raise InputError(f"--boxes: means --what boxes; got --what {config.what}. Remove one of them.")
    if config.features == "image" and config.size is not None:
        raise InputError("--size: is for dense and boxes; whole images are embedded at the model's native size.")
    if config.features == "dense" and config.head == "masked":
        raise InputError("--head masked: embeds boxes, not patches; use it with --what boxes.")
    if config.batch is not None and config.batch < 1:
        raise InputError(f"--batch: need at least 1 image; got {config.batch}.")
    if config.workers < 0:
        raise InputError(f"--workers: need 0 (decode in this process) or more; got {config.workers}.")


def _with_boxes(dataset: Dataset, path: Path, *, accept: bool) -> Dataset:
    """Give each image its boxes, none to images that are not in the file."""
    by_image = read_boxes(path, images=[str(record.id) for record in dataset.records])
    pairs = [(record, by_image[str(record.id)]) for record in dataset.records if str(record.id) in by_image]
    consistency = check_file_boxes(path, pairs, accept=accept)
    records = []
    for record in dataset.records:
        boxed = by_image.get(str(record.id), ImageBoxes())
        records.append(replace(record, boxes=boxed.boxes, height=boxed.height, width=boxed.width))
    return replace(dataset, records=tuple(records), consistency=consistency)


def _size(config: Embed, clip: Clip) -> int:
    """The side of the input [pixels]."""
    if config.features == "image":
        return clip.native_size
    size = 4 * clip.native_size if config.size is None else config.size
    check_side(size, patch=clip.patch_size, flag="--size")
    return size


def _check_header(config: Embed, dataset: Dataset, clip: Clip, size: int) -> None:
    """Refuse more images than the header of one safetensors file can list (several hundred thousand)."""
    if config.features == "image":
        return
    max_boxes = max((len(record.boxes) for record in dataset.records), default=0)
    side = size // clip.patch_size
    shape = [clip.embed_dim, side, side] if config.features == "dense" else [max_boxes, clip.embed_dim]
    need = header_size((f"{config.features}/{record.id}" for record in dataset.records), shape=shape)
    if need > MAX_HEADER:
        raise InputError(
            f"IMAGES: {len(dataset.records):,} images are too many for one safetensors file, whose header may have "
            f"{MAX_HEADER:,} bytes and would have up to {need:,}. Embed them in several commands."
        )


def _compute(config: Embed, clip: Clip, size: int) -> Callable[[list[Sample]], Features]:
    """The function that computes the features of a batch of images."""
    match config.features:
        case "image":
            return partial(image_features, clip)
        case "dense":
            assert config.head != "masked", "refused by _check"
            return partial(dense_features, clip, size=size, head=config.head)
        case "boxes":
            return partial(box_features, clip, size=size, head=config.head)


def _identity(config: Embed, dataset: Dataset, clip: Clip, size: int, *, images: dict[str, Any]) -> dict[str, str]:
    """What the features depend on; it becomes the file's metadata.

    Not compared: the number of threads, the machine, and the bytes of the images beyond length and time of change.

    Args:
        images: the identity of their listing.
    """
    boxes = hashlib.sha256()
    for record in dataset.records:
        boxes.update(json.dumps([record.size, record.boxes]).encode())
    identity = {
        "format": "pt",
        "what": config.features,
        "model": config.model,
        "description": _digest_description(clip.config),
        "weights": digest_state(clip.visual.state_dict()),
        "mean": json.dumps(clip.mean),
        "std": json.dumps(clip.std),
        "size": str(size),
        "patch_size": str(clip.patch_size),
        "dtype": config.dtype,
        "batch": str(config.batch or BATCH[config.features]),  # as the device, it can change the last bit of a sum
        "device": next(clip.parameters()).device.type,
        "input": f"{images['count']} images, names, lengths and times {images['sha256'][:16]}",
        **versions(),
    }
    if config.features != "image":
        identity["head"] = config.head
    if config.features == "boxes":
        identity["boxes"] = boxes.hexdigest()
    return identity


def _digest_description(config: dict[str, Any]) -> str:
    """The sha256 of a model's description (such as its windows) without its tokenizer's path: no text is used."""
    model = config["model_cfg"]
    text = {name: value for name, value in model["text_cfg"].items() if name != "hf_tokenizer_name"}
    described = {**config, "model_cfg": {**model, "text_cfg": text}}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _is_complete(
    out: Path, notes: Path, identity: dict[str, str], changes: Callable[[], str], *, overwrite: bool
) -> bool:
    """Whether an existing file is what this command would write; another is refused, unless it may be replaced.

    Args:
        changes: says which images differ from those of the file.
    """
    try:
        existing, _ = read_header(out)
    except ValueError as error:
        if overwrite:
            return False
        raise InputError(
            f"{out}: need a new file or a complete .safetensors file of this command; it cannot be read ({error}). "
            "Choose another --out, or add --overwrite to replace it."
        ) from None
    if overwrite and existing != identity:
        return False
    refuse_another(out, existing, identity, changes=changes)
    if not notes.is_file():
        raise InputError(f"{out}: is finished, but {notes} does not exist. Delete {out} and run again.")
    return True


def _changes(notes: Path, listing: Listing) -> str:
    """The images that a finished file has and the folder has not, or the other way round, by their names alone."""
    try:
        content = json.loads(notes.read_bytes())
        rows = [[note["id"]] for note in (*content["images"], *content["bad"])]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return changes_between(rows, listing, is_ordered=False)


def _finish(config: Embed, dataset: Dataset, parts: list[Part], folder: Path, identity: dict[str, str]) -> None:
    """Write both files, the tensors last, report them, and remove the parts."""
    images = [note for part in parts for note in part.notes["images"]]
    bad = [note for part in parts for note in part.notes["bad"]]
    if not images:
        remove_parts(folder, identity, owner=OWNER)
        raise InputError("\n".join(["IMAGES: all are unreadable", *bad_lines(bad, listed="nothing")]))
    notes = config.out.with_suffix(".json")
    dataset.remarks.update({note["id"]: note["remark"] for note in images if "remark" in note})
    ignored = dataset.ignored_lines()
    content: dict[str, Any] = {MARK: config.made_by, **identity, "images": images, "bad": bad}
    content |= {"ignored": ignored} if ignored else {}
    write_whole(notes, _one_a_line(content))
    tensors = [tensor for part in parts for tensor in part.tensors]
    join_tensors(tensors, config.out, metadata=identity, stacked=config.features == "image")
    print(f"wrote {config.out} ({config.out.stat().st_size:,} bytes) and {notes}")
    for line in [*ignored, *_dropped_lines(config, images), *bad_lines(bad, listed=str(notes))]:
        print(line, file=sys.stderr)
    remove_parts(folder, identity, owner=OWNER)


def _one_a_line(content: dict[str, Any]) -> bytes:
    """JSON with a line per field, and a line per image."""
    lines = []
    for name, value in content.items():
        text = json.dumps(value)
        if isinstance(value, list) and value:
            text = "[\n" + ",\n".join(f"  {json.dumps(entry)}" for entry in value) + "\n ]"
        lines.append(f" {json.dumps(name)}: {text}")
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _dropped_lines(config: Embed, images: list[dict[str, Any]]) -> list[str]:
    """How many boxes were embedded and ignored."""
    if config.features != "boxes":
        return []
    lines = [f"boxes embedded: {sum(note['boxes'] for note in images)}"]
    ignored = [f"{note['id']}, box {index}" for note in images for index in note["dropped"]]
    if ignored:
        lines.append(f"boxes under 1 pixel inside their image, ignored: {len(ignored)}; the first: {ignored[0]}")
    return lines
