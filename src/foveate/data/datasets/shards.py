"""Tar shards in webdataset layout (KEY.jpg beside KEY.txt), read where they lie: nothing is unpacked, nothing executed.

A shard is scanned once, headers only, into an index: where each key's image and text begin. From then on an image in
a shard is an image in a file (`Record.member`), so a training run draws its order, splits it over processes and
resumes it exactly as over a folder. Members of other kinds are never opened, whatever they hold; a key is what a name
has before the first dot of its last part, and its image and text may lie anywhere in the shard.
Deliberately absent: compressed shards (no seeking in them), shuffling buffers, and URLs (`fetch.py`).
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from foveate.data.images import SUFFIXES, read_image
from foveate.data.records import Dataset, IgnoredEntries, Member, Record
from foveate.data.validation import UNTRUSTED_FILE, count_ignored, escapes, fail
from foveate.errors import InputError
from foveate.io.files import write_whole
from foveate.progress import image_bar

MAX_TEXT = 1_000_000  # bytes
BLOCK = 512  # bytes; of a tar file
RULE = 1  # of scanning; a kept index of another rule is not used
NO_IMAGE = "key has no image"
NO_FILE = "member is a link or a device"


@dataclass(frozen=True)
class Index:
    """Where the keys of one shard have their images and texts, in the order in which the keys appear first."""

    keys: tuple[str, ...]
    images: np.ndarray  # (K, 2) int64: first byte and bytes; -1 -1 where a key has none
    texts: np.ndarray  # (K, 2), the same
    links: int  # members with the name of an image or a text that are no files
    first_link: str


def read_shards(
    paths: Sequence[Path], *, name: str, cache: Path | None, labels: Sequence[str] = (), progress: bool = False
) -> Dataset:
    """List the images of tar shards as records without annotations.

    Args:
        paths: the shards, in the order of their images.
        name: of the data set.
        cache: folder where the indices are kept; None: every start scans again.
        labels: what messages call the shards; their file names when not given, their paths where two share one.
        progress: show a bar while they are scanned; the first scan of a million images takes a minute.

    Returns:
        Records whose id is SHARD:KEY; keys without an image, and links, are counted in `dropped`.

    Raises:
        InputError: no image, or a shard that is not a whole tar file or contradicts itself; names shard and member.
    """
    if not labels:
        labels = [path.name for path in paths]
        if len(set(labels)) < len(labels):
            labels = [str(path) for path in paths]
    ignored: dict[str, IgnoredEntries] = {}
    indices = []
    with image_bar(show=progress) as bar:
        for label, path in bar.track(list(zip(labels, paths, strict=True)), description=f"shards of {name}"):
            index = index_shard(path, cache=cache)
            for place in np.flatnonzero(index.images[:, 1] < 0):
                count_ignored(ignored, NO_IMAGE, f"{label}:{index.keys[place]}")
            if index.links:
                more = IgnoredEntries(index.links, f"{label}:{index.first_link}")
                ignored[NO_FILE] = ignored[NO_FILE] + more if NO_FILE in ignored else more
            indices.append(index)
    records = ShardRecords(tuple(zip(labels, paths, strict=True)), indices)
    if not len(records):
        kinds = " ".join(SUFFIXES)
        raise InputError(f"{name}: need images ({kinds}) in the shards; the {len(paths)} hold none. Check the path.")
    return Dataset(name, (), records, ignored)


class ShardRecords(Sequence[Record]):
    """The images of many shards, 36 bytes and its key for each; a `Record` is made, and a text read, when one is
    asked for."""

    def __init__(self, shards: Sequence[tuple[str, Path]], indices: Sequence[Index]) -> None:
        """Put the indices of shards behind one another.

        Args:
            shards: label and path of each.
            indices: of the same shards.
        """
        self._shards = tuple(shards)
        there = [index.images[:, 1] >= 0 for index in indices]
        self._numbers = np.repeat(np.arange(len(indices), dtype=np.int32), [int(one.sum()) for one in there])  # (N,)
        parts = [index.images[one] for index, one in zip(indices, there, strict=True)]
        self._parts = np.concatenate(parts) if parts else np.empty((0, 2), np.int64)  # (N, 2)
        texts = [index.texts[one] for index, one in zip(indices, there, strict=True)]
        self._texts = np.concatenate(texts) if texts else np.empty((0, 2), np.int64)  # (N, 2)
        keys = [
            key.encode()
            for index, one in zip(indices, there, strict=True)
            for key, has in zip(index.keys, one, strict=True)
            if has
        ]
        self._keys = b"".join(keys)
        self._ends = np.cumsum([0, *map(len, keys)], dtype=np.int64)  # (N + 1,)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Record, ...]: ...
    def __getitem__(self, place: int | slice) -> Record | tuple[Record, ...]:
        if isinstance(place, slice):
            return tuple(self[one] for one in range(*place.indices(len(self))))
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        place %= len(self)
        label, path = self._shards[self._numbers[place]]
        key = self._keys[self._ends[place] : self._ends[place + 1]].decode()
        offset, size = self._parts[place].tolist()
        return Record(f"{label}:{key}", path, member=Member(key, offset, size))

    def texts(self) -> "ShardTexts":
        """The texts beside the images, in the same order."""
        return ShardTexts(self, [path for _, path in self._shards], self._numbers, self._texts)


class ShardTexts(Sequence[tuple[str, ...]]):
    """The text beside each image of many shards, KEY.txt of KEY.jpg, read when it is asked for; () where an image
    has none."""

    def __init__(
        self, records: Sequence[Record], shards: Sequence[Path], numbers: np.ndarray, parts: np.ndarray
    ) -> None:
        """Remember where the texts are.

        Args:
            records: their images, for messages.
            shards: the shards' files.
            numbers: (N,) in which of them each text is.
            parts: (N, 2) its first byte there, and its bytes; -1 -1 where there is none.
        """
        self._records, self._shards, self._numbers, self._parts = records, shards, numbers, parts

    def __len__(self) -> int:
        return len(self._parts)

    def has_text(self) -> np.ndarray:
        """Whether each image has a text of at least one byte, (N,); none is read."""
        return self._parts[:, 1] > 0

    @overload
    def __getitem__(self, place: int) -> tuple[str, ...]: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[tuple[str, ...], ...]: ...
    def __getitem__(self, place: int | slice) -> tuple[str, ...] | tuple[tuple[str, ...], ...]:
        if isinstance(place, slice):
            return tuple(self[one] for one in range(*place.indices(len(self))))
        first, size = self._parts[place].tolist()
        if size <= 0:
            return ()
        text = _read_text(self._shards[self._numbers[place]], first, size, str(self._records[place].id))
        return (text,) if text else ()


# ------------------------------------------------------------------------------------------------------------ the index


def index_shard(path: Path, *, cache: Path | None = None) -> Index:
    """Scan a shard's headers, or take the index of an earlier scan.

    Args:
        path: of the shard, an uncompressed tar file.
        cache: folder where the index is kept; it is used again while the shard's size, time of change and first bytes
            are the same. None: scan.

    Raises:
        InputError: not a whole tar file, a key with two images or two texts, or a name that leads elsewhere.
    """
    if cache is None:
        return _scan(path)
    try:
        status = path.stat()
        with path.open("rb") as file:
            head = file.read(8 * BLOCK)
    except OSError as error:
        raise InputError(f"{path}: need a tar shard; {error}. Check the path.") from error
    facts = [RULE, str(path.resolve()), status.st_size, status.st_mtime_ns, hashlib.sha256(head).hexdigest()]
    name = hashlib.sha256(str(path.resolve()).encode(errors="surrogateescape")).hexdigest()[:32]
    kept = cache / "shards" / f"{name}.index.npz"
    index = _read_kept(kept, json.dumps(facts))
    if index is None:
        index = _scan(path)
        _keep(kept, index, json.dumps(facts))
    return index


def split_name(name: str) -> tuple[str, str]:
    """Part a member's name into key and kind as webdataset does: at the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    stem, _, kind = last.partition(".")
    return f"{folder}{slash}{stem}", kind.lower()


def _scan(path: Path) -> Index:
    places: tuple[dict[str, tuple[int, int]], ...] = ({}, {})  # images, texts
    keys: dict[str, None] = {}
    links: list[str] = []
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                name = member.name.encode(errors="surrogateescape").decode(errors="backslashreplace")
                key, kind = split_name(name)
                if not key.rpartition("/")[2] or (kind != "txt" and f".{kind}" not in SUFFIXES):
                    continue
                where = f"{path}: member {name!r}"
                if escapes(name):
                    fail(where, "a name inside the shard", "one that leads elsewhere", UNTRUSTED_FILE)
                if not member.isreg() or member.issparse():
                    links.append(key)
                    continue
                found = places[kind == "txt"]
                if key in found:
                    fail(where, "one image and one text a key", "a second one", "Give each its own key.")
                found[key] = (member.offset_data, member.size)
                keys[key] = None
            file.seek(tar.offset)
            if file.read(BLOCK) != bytes(BLOCK):  # the library takes a damaged header, and a cut, for the end
                raise tarfile.ReadError(f"it breaks off, or is damaged, at byte {tar.offset:,}, before its end mark")
    except InputError:
        raise
    except Exception as error:  # the library lets many kinds out of a damaged file
        raise InputError(
            f"{path}: need a whole tar file, not compressed; {type(error).__name__}: {error}. Fetch or write it again."
        ) from error
    images, texts = (
        np.array([found.get(key, (-1, -1)) for key in keys], dtype=np.int64).reshape(-1, 2) for found in places
    )
    return Index(tuple(keys), images, texts, len(links), links[0] if links else "")


def _read_kept(path: Path, facts: str) -> Index | None:
    """The index of an earlier scan, where it is of this very shard; a damaged one counts as none."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            if str(kept["facts"]) != facts:
                return None
            keys = tuple(json.loads(bytes(kept["keys"])))
            index = Index(keys, kept["images"], kept["texts"], int(kept["links"]), str(kept["first_link"]))
    except Exception:  # not there, or damaged in any way: a scan is always possible
        return None
    shape = (len(keys), 2)
    return index if index.images.shape == shape == index.texts.shape else None


def _keep(path: Path, index: Index, facts: str) -> None:
    """Write an index for later starts; where that cannot be done they scan again."""
    buffer = io.BytesIO()
    keys = np.frombuffer(json.dumps(index.keys).encode(), dtype=np.uint8)
    np.savez(
        buffer, facts=facts, keys=keys, images=index.images, texts=index.texts,
        links=index.links, first_link=index.first_link,
    )  # fmt: skip
    with suppress(OSError):
        write_whole(path, buffer.getvalue(), shared=True)


# ------------------------------------------------------------------------------------------------------------ the pairs


def read_pairs(folder: Path, *, side: int) -> tuple[UInt8[Tensor, "B 3 S S"], list[str]]:
    """Read all image-caption pairs of a folder of shards into memory (small sets of small images).

    Args:
        folder: holds *.tar.
        side: the images' height and width, pixels; images of another size are resized.

    Returns:
        The images, and the caption of each, in the order of the sorted shards.

    Raises:
        InputError: no shard, no pair, one that is not complete, or one that cannot be read; names shard and key.
    """
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise InputError(
            f"{folder}: need a folder with *.tar shards of KEY.jpg + KEY.txt; found none. "
            "Make some: foveate world DIR --pairs 60000"
        )
    images, captions = [], []
    for shard in shards:
        index = index_shard(shard)
        for key, span, text in zip(index.keys, index.images.tolist(), index.texts.tolist(), strict=True):
            if span[1] < 0 or text[1] < 0:
                missing = "image" if span[1] < 0 else "caption (.txt)"
                raise InputError(f"{shard}: {key} has no {missing}. Each KEY needs an image and a text.")
            image = read_image(shard, part=(span[0], span[1]), name=f"{shard}:{key}")
            images.append(_resize(image, side))
            captions.append(_read_text(shard, text[0], text[1], f"{shard}:{key}"))
    if not images:
        raise InputError(f"{folder}: need pairs of KEY.jpg + KEY.txt in its shards; the {len(shards)} hold none.")
    return torch.stack(images), captions  # (B, 3, S, S)


def _resize(image: Tensor, side: int) -> Tensor:
    if image.shape[1:] == (side, side):
        return image
    resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)  # (3, S, S)


def _read_text(shard: Path, first: int, size: int, name: str) -> str:
    if size > MAX_TEXT:
        raise InputError(f"{name}: need a caption of at most {MAX_TEXT:,} bytes; it has {size:,}. Shorten it.")
    with shard.open("rb") as file:
        file.seek(first)
        content = file.read(size)
    try:
        return content.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: need a caption in UTF-8; {error}. Write the text again.") from error
