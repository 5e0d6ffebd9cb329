"""`foveate embed`: features of pictures into one file, for those who want to go on with them elsewhere.

Torch is imported only when something is embedded, so that help and typing errors answer at once.
"""

import hashlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from foveate.clip.names import RegionHead
from foveate.errors import InputError
from foveate.io.files import bad_lines, check_target, versions, write_whole
from foveate.io.store import Part, claim_parts, refuse_another, remove_parts
from foveate.io.tensors import MAX_HEADER, header_size, join_tensors, read_header

if TYPE_CHECKING:
    from foveate.clip.model import Clip
    from foveate.data.records import Dataset

OWNER = "foveate embed"  # in the manifest of the parts
BATCH = {"image": 64, "dense": 8, "boxes": 8}


@dataclass(frozen=True, kw_only=True)
class Embed:
    """Write features of pictures into F.safetensors, and F.json beside it.

    F.json lists the pictures in order (id, height, width) and those that could not be read. An id is the path within
    the folder that was named, or the name of the file that was. F.safetensors holds, all L2-normalised,

      --what image  image (B, D): row i is the i-th picture of F.json. The whole picture is fitted into a square of the
                    model's own size, black around it, as CLIPSelf's teacher sees its crops.
      --what dense  dense/ID (D, h, w): location (r, c) is the patch at (r, c) of the picture resized to `resized` of
                    F.json, [height, width]; the padding of the square input is left out.
      --what boxes  boxes/ID (N, D): a row a box in the order of --boxes. Boxes are clipped to the picture; those under
                    one pixel wide or high in it have no row, and F.json lists their places as `dropped`.

    The same command continues a stopped one (from F.safetensors.parts/); with as many threads it gives the same bytes.
    """

    pictures: Positional[tuple[Path, ...]]
    """Pictures, and folders that are searched with all below them."""
    out: Path
    """F.safetensors to write. F.json goes beside it, and unfinished work into F.safetensors.parts/."""
    what: Literal["image", "dense", "boxes"] | None = None
    """Which features, see above; default: boxes where --boxes is given, else image."""
    boxes: Path | None = None
    """Boxes to embed, in pixels of the picture: COCO's images and annotations, or {ID: [[x1, y1, x2, y2], ...]}."""
    model: str = "foveate-small"
    """Name of a CLIP, or a folder with one (OUT/model of a run)."""
    pretrained: str | None = None
    """Weights file or open_clip tag, where `model` is the name of an architecture."""
    size: int | None = None
    """Side of the square input of dense and boxes [pixels]; default: four times the model's own size."""
    head: RegionHead = "value"
    """What becomes of the last block, for dense and boxes; value is the paper's. masked is for boxes alone."""
    batch: int | None = None
    """Pictures embedded at once; default: 64 for image, 8 for dense and boxes."""
    workers: int = 2
    """Processes that decode pictures; 0 = none besides this one."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto = cuda where there is one."""
    dtype: Literal["float32", "float16"] = "float32"
    """Type in which features are stored; they are computed in float32."""
    strict: bool = False
    """End at the first picture that cannot be read, instead of listing it."""

    @property
    def asked(self) -> Literal["image", "dense", "boxes"]:
        """Which features, also where `what` was left out."""
        return self.what or ("image" if self.boxes is None else "boxes")


def run(config: Embed) -> Path:
    """Embed the pictures, say what was written, and return the file's path.

    Raises:
        InputError: flags that do not fit together, no picture that can be read, boxes that are not such, or files of
            another command in the way.
    """
    _check(config)
    started = time.perf_counter()
    import torch

    from foveate.clip.dense import check_head
    from foveate.clip.load import load
    from foveate.data.records import Dataset
    from foveate.embed.features import make_parts, name_pictures
    from foveate.engine.distributed import choose_device

    dataset = Dataset("pictures", (), name_pictures(config.pictures), {})
    if config.boxes is not None:
        dataset = _with_boxes(dataset, config.boxes)
    clip = load(config.model, pretrained=config.pretrained, device=choose_device(config.device, local_rank=None))
    if config.asked != "image" and config.head != "masked":
        check_head(clip.visual, config.head)
    size = _size(config, clip)
    _check_header(config, dataset, clip, size)
    identity = _identity(config, dataset, clip, size)
    notes, folder = config.out.with_suffix(".json"), Path(f"{config.out}.parts")
    if config.out.exists():
        _refuse_unless_ours(config.out, notes, identity)
        remove_parts(folder, identity, owner=OWNER)  # where a kill came between the last two steps
        print(f"{config.out}: is finished already; nothing was done")
        return config.out
    parts = claim_parts(folder, identity, owner=OWNER)
    done = parts[-1].stop if parts else 0
    _tell_start(config, len(dataset.records), done, folder)
    _stop_at_bad(config, parts)
    began = time.perf_counter()
    parts += make_parts(
        clip,
        dataset,
        folder,
        what=config.asked,
        size=size,
        head=config.head,
        dtype=getattr(torch, config.dtype),
        batch=config.batch or BATCH[config.asked],
        done=done,
        workers=config.workers,
        strict=config.strict,
    )
    seconds = time.perf_counter() - began
    _finish(config, parts, folder, identity)
    count = len(dataset.records) - done
    print(f"{count} pictures in {seconds:.1f} s, {count / seconds:.1f} a second, after {began - started:.1f} s to load")
    return config.out


def _check(config: Embed) -> None:
    """Refuse flags that cannot work before anything is loaded."""
    if config.out.suffix != ".safetensors":
        raise InputError(f"--out: need the name of a .safetensors file; got {config.out}.")
    check_target(config.out, flag="--out")
    check_target(config.out.with_suffix(".json"), flag="--out (the .json beside it)")
    if config.asked == "boxes" and config.boxes is None:
        raise InputError("--what boxes: need a file of boxes; got none. Add --boxes F.json.")
    if config.asked != "boxes" and config.boxes is not None:
        raise InputError(f"--boxes: means --what boxes; got --what {config.what}. Leave one of the two out.")
    if config.boxes is not None and config.boxes.absolute() == config.out.with_suffix(".json").absolute():
        raise InputError(f"--out: would overwrite the boxes in {config.boxes}; name another file.")
    if config.asked == "image" and config.size is not None:
        raise InputError("--size: is for dense and boxes; whole pictures are embedded at the model's own size.")
    if config.asked == "dense" and config.head == "masked":
        raise InputError("--head masked: embeds boxes, not patches; use it with --what boxes.")
    if config.batch is not None and config.batch < 1:
        raise InputError(f"--batch: need at least 1 picture; got {config.batch}.")
    if config.workers < 0:
        raise InputError(f"--workers: need 0 (decode in this process) or more; got {config.workers}.")


def _with_boxes(dataset: "Dataset", path: Path) -> "Dataset":
    """Give each picture its boxes; those of which the file says nothing get none."""
    from dataclasses import replace

    from foveate.data.boxes import Boxed, read_boxes

    found = read_boxes(path, pictures=[str(record.id) for record in dataset.records])
    records = []
    for record in dataset.records:
        own = found.get(str(record.id), Boxed())
        records.append(replace(record, boxes=own.boxes, height=own.height, width=own.width))
    return replace(dataset, records=tuple(records))


def _size(config: Embed, clip: "Clip") -> int:
    """The side of the input [pixels]."""
    from foveate.ops.resample import check_side

    if config.asked == "image":
        return clip.native_size
    size = 4 * clip.native_size if config.size is None else config.size
    check_side(size, patch=clip.patch_size, flag="--size")
    return size


def _check_header(config: Embed, dataset: "Dataset", clip: "Clip", size: int) -> None:
    """Refuse more pictures than the header of one safetensors file can name (several hundred thousand)."""
    if config.asked == "image":
        return
    most = max((len(record.boxes) for record in dataset.records), default=0)
    side = size // clip.patch_size
    shape = [clip.embed_dim, side, side] if config.asked == "dense" else [most, clip.embed_dim]
    need = header_size((f"{config.asked}/{record.id}" for record in dataset.records), shape=shape)
    if need > MAX_HEADER:
        raise InputError(
            f"PICTURES: {len(dataset.records):,} are too many for one safetensors file, whose header may have "
            f"{MAX_HEADER:,} bytes and would have up to {need:,}. Embed them in several commands."
        )


def _identity(config: Embed, dataset: "Dataset", clip: "Clip", size: int) -> dict[str, str]:
    """What tells this command's work from another's; it becomes the file's metadata.

    The bytes of the file depend on more: on the number of threads, on the machine, and on the pictures' own bytes, of
    which only the length and the time of their last change are looked at.
    """
    from foveate.clip.digest import digest_state

    pictures, boxes = hashlib.sha256(), hashlib.sha256()
    for record in dataset.records:
        try:
            found = record.path.stat()
            length, changed = found.st_size, found.st_mtime_ns
        except OSError:
            length, changed = -1, -1
        pictures.update(json.dumps([record.id, length, changed]).encode())
        boxes.update(json.dumps([record.size, record.boxes]).encode())
    facts = {
        "format": "pt",
        "what": config.asked,
        "model": config.model,
        "description": _digest_description(clip.config),
        "weights": digest_state(clip.visual.state_dict()),
        "mean": json.dumps(clip.mean),
        "std": json.dumps(clip.std),
        "size": str(size),
        "patch_size": str(clip.patch_size),
        "dtype": config.dtype,
        "batch": str(config.batch or BATCH[config.asked]),  # it can change the last bit of a sum, as can the device
        "device": next(clip.parameters()).device.type,
        "input": f"{len(dataset.records)} pictures, names, lengths and times {pictures.hexdigest()[:16]}",
        **versions(),
    }
    if config.asked != "image":
        facts["head"] = config.head
    if config.asked == "boxes":
        facts["boxes"] = boxes.hexdigest()
    return facts


def _digest_description(config: dict[str, Any]) -> str:
    """The sha256 of a model's description (such as its windows) without where its tokenizer lies: no text is used."""
    model = config["model_cfg"]
    text = {name: value for name, value in model["text_cfg"].items() if name != "hf_tokenizer_name"}
    described = {**config, "model_cfg": {**model, "text_cfg": text}}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _refuse_unless_ours(out: Path, notes: Path, identity: dict[str, str]) -> None:
    """Accept a file in the way only where it is what this command would write."""
    try:
        there, _ = read_header(out)
    except ValueError as error:
        raise InputError(f"{out}: is there and is no whole safetensors file ({error}). Choose another --out.") from None
    refuse_another(out, there, identity)
    if not notes.is_file():
        raise InputError(f"{out}: is finished, but {notes} beside it is missing. Delete {out} and run again.")


def _tell_start(config: Embed, count: int, done: int, folder: Path) -> None:
    resumed = f"; {done} are done already" if done else ""
    print(f"{count} pictures to embed with {config.model}{resumed}; unfinished work lies in {folder}", flush=True)


def _stop_at_bad(config: Embed, parts: list[Part]) -> None:
    """With --strict, pictures that an earlier run without it passed over count too."""
    bad = [one for part in parts for one in part.notes["bad"]]
    if config.strict and bad:
        raise InputError(f"picture {bad[0]['id']}: {bad[0]['reason']} (--strict ends at the first)")


def _finish(config: Embed, parts: list[Part], folder: Path, identity: dict[str, str]) -> None:
    """Write both files, the tensors last, say what there is now, and remove the parts."""
    pictures = [one for part in parts for one in part.notes["pictures"]]
    bad = [one for part in parts for one in part.notes["bad"]]
    if not pictures:
        remove_parts(folder, identity, owner=OWNER)
        raise InputError("\n".join(["PICTURES: none of them could be read", *bad_lines(bad, listed="nothing")]))
    notes = config.out.with_suffix(".json")
    content: dict[str, Any] = {**identity, "pictures": pictures, "bad": bad}
    write_whole(notes, _one_a_line(content))
    tensors = [tensor for part in parts for tensor in part.tensors]
    join_tensors(tensors, config.out, metadata=identity, stacked=config.asked == "image")
    print(f"wrote {config.out} ({config.out.stat().st_size:,} bytes) and {notes}")
    for line in [*_dropped_lines(config, pictures), *bad_lines(bad, listed=str(notes))]:
        print(line, file=sys.stderr)
    remove_parts(folder, identity, owner=OWNER)


def _one_a_line(content: dict[str, Any]) -> bytes:
    """JSON that can be read by eye: a line a field, and a line a picture."""
    lines = []
    for name, value in content.items():
        text = json.dumps(value)
        if isinstance(value, list) and value:
            text = "[\n" + ",\n".join(f"  {json.dumps(one)}" for one in value) + "\n ]"
        lines.append(f" {json.dumps(name)}: {text}")
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _dropped_lines(config: Embed, pictures: list[dict[str, Any]]) -> list[str]:
    """What boxes did not get a row."""
    if config.asked != "boxes":
        return []
    lines = [f"boxes embedded: {sum(one['boxes'] for one in pictures)}"]
    dropped = sum(len(one["dropped"]) for one in pictures)
    if dropped:
        first = next(one for one in pictures if one["dropped"])
        lines.append(
            f"boxes under 1 pixel inside their picture, left out: {dropped}; "
            f"the first: {first['id']}, box {first['dropped'][0]}"
        )
    return lines
