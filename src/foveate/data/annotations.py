"""The annotations of a data set as flat arrays, from which records are created on demand.

COCO's 860,000 training boxes take 37 MB, where a tuple for each takes 20 times as much. The arrays are cached as one
safetensors file for each annotation file, which all processes of a machine map into their memory: a worker receives its
path, and nothing is copied. A cached file of another content of the annotation file, or a damaged one, is ignored.
"""

import hashlib
import json
import mmap
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from foveate.data.annotation_file import cache_path, identity_of
from foveate.data.records import Box, LazySequence, Record
from foveate.errors import InputError
from foveate.io.files import written_whole
from foveate.io.tensors import read_header

Arrays = Mapping[str, np.ndarray]
DTYPES = {"F64": np.float64, "I64": np.int64, "I32": np.int32, "U8": np.uint8, "BOOL": np.bool_}
REMOVED = -1  # new label of an object that is removed
PATH = "\0"  # the path of the annotation file in cached texts


class Stored(NamedTuple):
    """Where arrays are cached, and the identity of what is expected there."""

    path: Path
    identity: str


# --------------------------------------------------------------------------------------------------------- the records


class AnnotatedRecords(LazySequence[Record]):
    """The images of an annotation file; entry i of "labels" and so on belongs to object i of all images.

    Arrays, of N images with M objects: "ends" (N + 1,) where the objects of each image begin, and M; "sizes" (N, 2)
    height and width [pixels]; "boxes" (M, 4) xyxy [pixels]; "labels", "crowd" (M,); and texts, see `packed`: "ids" (in
    JSON) and "names" (N,); "masks" (M,) if requested; "segments" (M,) and the texts "pngs" (N,) if panoptic.
    """

    def __init__(self, arrays: Arrays, *, folders: Sequence[Path | None], stored: Stored | None = None) -> None:
        """Store the arrays.

        Args:
            arrays: see the class.
            folders: the folders that the images' names and the PNGs' are relative to; None: the names are paths.
            stored: where the arrays are cached; None: they are in the memory of this process only.
        """
        self.arrays, self.folders, self.stored = arrays, folders, stored

    def __reduce__(self) -> tuple:
        """What a worker that is not forked receives: where the arrays are cached."""
        return _reopened, (self.arrays if self.stored is None else self.stored, self.folders)

    def __len__(self) -> int:
        return len(self.arrays["sizes"])

    def item(self, index: int) -> Record:
        """Make the record of one image."""
        arrays = self.arrays
        first, end = arrays["ends"][index : index + 2].tolist()
        height, width = arrays["sizes"][index].tolist()
        record = Record(
            json.loads(text_at(arrays, "ids", index)),
            self._path("names", index),
            height,
            width,
            tuple(map(tuple, arrays["boxes"][first:end].tolist())),
            tuple(arrays["labels"][first:end].tolist()),
            tuple(arrays["crowd"][first:end].tolist()),
        )
        if "segments" in arrays:
            segments = tuple(arrays["segments"][first:end].tolist())
            return replace(record, segment_ids=segments, panoptic=self._path("pngs", index))
        if "masks" in arrays:
            return replace(record, masks=tuple(_bytes(arrays, "masks", i) for i in range(first, end)))
        return record

    def names(self, key: str) -> dict[int | str, str]:
        """The "names" or "pngs" of all images by id."""
        texts = ((text_at(self.arrays, "ids", i), text_at(self.arrays, key, i)) for i in range(len(self)))
        return {json.loads(key): name for key, name in texts}

    def _path(self, key: str, index: int) -> Path:
        folder, name = self.folders[key == "pngs"], text_at(self.arrays, key, index)
        return Path(name) if folder is None else folder / name


class IdSet:
    """A set of ids; 256 neighbouring integers share a number, so that a million take a hundredth of a set's memory."""

    def __init__(self) -> None:
        self._words: dict[int, int] = {}
        self._texts: set[object] = set()

    def __contains__(self, key: object) -> bool:
        return bool(self._words.get(key >> 8, 0) >> (key & 255) & 1) if isinstance(key, int) else key in self._texts

    def add(self, key: int | str) -> None:
        """Add an id."""
        if isinstance(key, int):
            self._words[key >> 8] = self._words.get(key >> 8, 0) | 1 << (key & 255)
        else:
            self._texts.add(key)


class ObjectList:
    """Collects the objects of a file in its order, which need not be that of the images."""

    def __init__(self) -> None:
        self._images, self._labels, self._segments = array("i"), array("i"), array("i")
        self._boxes, self._crowd, self._masks, self._lengths = array("d"), array("b"), bytearray(), array("i")

    def add(self, image: int, box: Box, label: int, *, crowd: bool, mask: bytes = b"", segment: int = 0) -> None:
        """Append an object of an image, given by its index; `segment` is the id of a panoptic one."""
        self._images.append(image)
        self._boxes.extend(box)
        self._labels.append(label)
        self._crowd.append(crowd)
        if segment:
            self._segments.append(segment)
        if mask:
            self._lengths.append(len(mask))
            self._masks += mask

    def arrays(self, images: int, *, masks: bool = False, segments: bool = False) -> dict[str, np.ndarray]:
        """The arrays of objects of `AnnotatedRecords`, in the order of the images."""
        of = np.frombuffer(self._images, dtype=np.int32)  # (M,)
        order = np.argsort(of, kind="stable")
        arrays = {
            "ends": _ends(np.bincount(of, minlength=images)),
            "boxes": np.frombuffer(self._boxes).reshape(-1, 4)[order],
            "labels": np.frombuffer(self._labels, dtype=np.int32)[order],
            "crowd": np.frombuffer(self._crowd, dtype=np.bool_)[order],
        }
        if segments:
            arrays["segments"] = np.frombuffer(self._segments, dtype=np.int32)[order]
        if masks:
            lengths = np.frombuffer(self._lengths, dtype=np.int32)
            content, in_order = memoryview(self._masks), bytearray()
            firsts = _ends(lengths)
            for first, length in zip(firsts[order].tolist(), lengths[order].tolist(), strict=True):
                in_order += content[first : first + length]
            arrays |= {"masks": np.frombuffer(in_order, dtype=np.uint8), "masks_ends": _ends(lengths[order])}
        return arrays


def packed(key: str, texts: Iterable[str]) -> dict[str, np.ndarray]:
    """Texts as one array of bytes, and where each begins and the last ends."""
    parts = [text.encode(errors="surrogatepass") for text in texts]
    ends = _ends(np.fromiter(map(len, parts), dtype=np.int64, count=len(parts)))
    return {key: np.frombuffer(b"".join(parts), dtype=np.uint8), f"{key}_ends": ends}


def _ends(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def _bytes(arrays: Arrays, key: str, index: int) -> bytes:
    first, end = arrays[f"{key}_ends"][index : index + 2].tolist()
    return arrays[key][first:end].tobytes()


def text_at(arrays: Arrays, key: str, index: int) -> str:
    """One of the texts of `packed`."""
    return _bytes(arrays, key, index).decode(errors="surrogatepass")


# ----------------------------------------------------------------------------------------------------------- the cache


def stored_arrays(
    path: Path, variant: str, read: Callable[[], tuple[Arrays, dict[str, Any]]]
) -> tuple[Arrays, dict[str, Any], Stored | None]:
    """The arrays of an annotation file: cached ones, or those that `read` returns, which are then cached.

    Args:
        path: of the annotation file.
        variant: which of its content is read, and how; arrays of several variants are cached.
        read: reads the file: the arrays, and in the types of JSON what else is known of it, such as what was ignored;
            raises InputError.

    Returns:
        The arrays, what else is known, and where they are cached, if they are.
    """
    identity = identity_of(path)
    cached = cache_path(path, f"{hashlib.sha256(variant.encode()).hexdigest()[:16]}.safetensors")
    stored = None if identity is None or cached is None else Stored(cached, json.dumps([identity, variant]))
    found = None if stored is None else open_arrays(stored)
    if found is None:
        arrays, facts = read()
        # not cached: a file that was changed while it was read, and what was read from other files too
        if stored is None or facts.get("decoded") or identity != identity_of(path):
            return arrays, facts, None
        save_arrays(stored, arrays, _respelled(facts, str(path), PATH))
        found = open_arrays(stored)
        if found is None:
            return arrays, facts, None
    arrays, facts = found
    return arrays, _respelled(facts, PATH, str(path)), stored


def _respelled(value: Any, old: str, new: str) -> Any:
    """A value of JSON whose texts name another path: that of the file as this command was given it."""
    match value:
        case str():
            return value.replace(f"{old}: ", f"{new}: ")
        case dict():
            return {key: _respelled(item, old, new) for key, item in value.items()}
        case list() | tuple():
            return [_respelled(item, old, new) for item in value]
    return value


def open_arrays(stored: Stored) -> tuple[Arrays, dict[str, Any]] | None:
    """Map cached arrays into memory; None: they are missing, damaged or of another file."""
    try:
        metadata, tensors = read_header(stored.path)
        if metadata["identity"] != stored.identity:
            return None
        with stored.path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        arrays = {}
        for tensor in tensors:
            dtype = np.dtype(DTYPES[tensor.dtype])
            flat = np.frombuffer(content, dtype, (tensor.end - tensor.begin) // dtype.itemsize, tensor.begin)
            arrays[tensor.name] = flat.reshape(tensor.shape)
        # the digest touches all pages of this process's map, which workers then share
        return (arrays, json.loads(metadata["facts"])) if metadata["digest"] == _digest(arrays, metadata) else None
    except Exception:  # damaged in any way
        return None


def save_arrays(stored: Stored, arrays: Arrays, facts: dict[str, Any]) -> None:
    """Cache arrays; if that fails, later runs read the annotation file again."""
    metadata = {"identity": stored.identity, "facts": json.dumps(facts)}
    metadata["digest"] = _digest(arrays, metadata)
    with suppress(OSError), written_whole(stored.path, shared=True) as partial:
        save_file(dict(arrays), partial, metadata=metadata)


def _digest(arrays: Arrays, metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(metadata["facts"].encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def reopen_arrays(stored: Stored) -> Arrays:
    """The arrays in a worker."""
    found = open_arrays(stored)
    if found is None:
        raise InputError(
            f"{stored.path}: need the cached list that the run started with; they were removed or replaced. "
            "Start the command again."
        )
    return found[0]


def _reopened(stored: Stored | Arrays, folders: Sequence[Path | None]) -> AnnotatedRecords:
    if isinstance(stored, Stored):
        return AnnotatedRecords(reopen_arrays(stored), folders=folders, stored=stored)
    return AnnotatedRecords(stored, folders=folders)


# ------------------------------------------------------------------------------------------------ choosing and changing


class Objects(NamedTuple):
    """What is annotated in a sequence of N records with M objects, as arrays."""

    ends: np.ndarray  # (N + 1,) where the objects of each image begin, and M
    boxes: np.ndarray  # (M, 4) float64, xyxy
    labels: np.ndarray  # (M,); empty for boxes without a class
    crowd: np.ndarray  # (M,); empty, too

    def any_per_image(self, flags: np.ndarray) -> np.ndarray:
        """Whether the flag of any object of each image is set, (N,) of (M,)."""
        counts = _ends(flags)
        return counts[self.ends[1:]] > counts[self.ends[:-1]]


def objects_of(records: Sequence[Record]) -> Objects:
    """The objects of records; of `AnnotatedRecords`, no record is created."""
    if isinstance(records, RelabelledRecords):
        return records.objects()
    if isinstance(records, AnnotatedRecords):
        return Objects(*(records.arrays[key] for key in Objects._fields))
    return Objects(
        _ends(np.array([len(record.boxes) for record in records], dtype=np.int64)),
        np.array([box for record in records for box in record.boxes], dtype=np.float64).reshape(-1, 4),
        np.array([label for record in records for label in record.labels], dtype=np.int32),
        np.array([crowd for record in records for crowd in record.crowd], dtype=np.bool_),
    )


class RelabelledRecords(LazySequence[Record]):
    """Some of the records of a sequence, with new labels and without the objects whose new label is `REMOVED`."""

    def __init__(self, records: Sequence[Record], labels: np.ndarray, *, images: np.ndarray | None = None) -> None:
        """Store the labels.

        Args:
            records: with labels.
            labels: (M,) the new label of each of their objects, or `REMOVED`.
            images: (N,) indices of the records that are used; None: all.
        """
        self._records, self._labels = records, labels.astype(np.int32)
        self._ends = objects_of(records).ends
        self._images = np.arange(len(records)) if images is None else images

    def __len__(self) -> int:
        return len(self._images)

    def item(self, index: int) -> Record:
        """Make the record of one image."""
        image = int(self._images[index])
        record, labels = self._records[image], self._labels[self._ends[image] : self._ends[image + 1]].tolist()
        used = [i for i, label in enumerate(labels) if label != REMOVED]
        return replace(
            record,
            boxes=tuple(record.boxes[i] for i in used),
            labels=tuple(labels[i] for i in used),
            crowd=tuple(record.crowd[i] for i in used),
            segment_ids=tuple(record.segment_ids[i] for i in used) if record.segment_ids else (),
            masks=tuple(record.masks[i] for i in used) if record.masks else (),
        )

    def objects(self) -> Objects:
        """The objects of these records."""
        objects, count = objects_of(self._records), np.diff(self._ends)[self._images]
        # the objects of the chosen images, in their order
        chosen = np.arange(count.sum()) + np.repeat(self._ends[self._images] - _ends(count)[:-1], count)
        is_used = self._labels[chosen] != REMOVED
        ends = _ends(is_used)[_ends(count)]
        chosen = chosen[is_used]
        return Objects(ends, objects.boxes[chosen], self._labels[chosen], objects.crowd[chosen])
