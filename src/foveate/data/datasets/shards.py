"""Tar shards in webdataset layout (KEY.jpg beside KEY.txt), read in place: nothing is unpacked, nothing executed.

A shard's headers are scanned once into an index of the offsets of each key's image and text. An image in a shard is
then an image in a file (`Record.member`), so a training run shuffles, splits and resumes shards exactly as a folder.
Members of other kinds are never opened; a key is a name up to the first dot of its last part, and its image and text
may be anywhere in the shard. An image with more dots in its name (IMG_2024.01.02.jpg) has no kind by that rule: its key
ends at the last dot, unless its key has an image or several keys have such a member (0001.mask.png), which are further
fields, ignored and counted. Compressed shards, which cannot be read at an offset, are not supported.
"""

import hashlib
import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from foveate.data.images import SUFFIXES, read_image
from foveate.data.records import Dataset, IgnoredEntries, LazySequence, Member, Record
from foveate.data.validation import UNTRUSTED_FILE, count_ignored, escapes, fail
from foveate.errors import InputError
from foveate.io.files import reason_of, write_whole
from foveate.progress import image_bar

MAX_TEXT = 1_000_000  # bytes
BLOCK = 512  # bytes; of a tar file
INDEX_VERSION = 2  # a cached index of another version is not used
NO_IMAGE = "key has no image"
NO_FILE = "member is a link or a device"
FURTHER = "member is a further image of its key (KEY.field.png), by its name"
WORD = re.compile(r"[A-Za-z][A-Za-z_-]*\d?")  # the name of a field, as in 0001.mask.png


@dataclass(frozen=True)
class Index:
    """The offsets of the images and texts of one shard, in the order in which the keys appear first."""

    keys: tuple[str, ...]
    images: np.ndarray  # (K, 2) int64: first byte and number of bytes; -1 -1 if a key has none
    texts: np.ndarray  # (K, 2), the same
    ignored: dict[str, IgnoredEntries]  # members with the name of an image or a text; the first by its name


def read_shards(paths: Sequence[Path], *, name: str, cache: Path | None, progress: bool = False) -> Dataset:
    """List the images of tar shards as records without annotations.

    Args:
        paths: the shards, in the order of their images.
        name: of the data set.
        cache: folder of the cached indices; None: scan the shards every time.
        progress: show a bar while they are scanned; the first scan of a million images takes a minute.

    Returns:
        Records whose id is SHARD:KEY; SHARD is the file name, or the path if two shards share a name. Keys without an
        image, and links, are counted in `ignored`.

    Raises:
        InputError: no image, or a shard that is not a whole tar file or contradicts itself; names shard and member.
    """
    labels = [path.name for path in paths]
    if len(set(labels)) < len(labels):
        labels = [str(path) for path in paths]
    ignored: dict[str, IgnoredEntries] = {}
    indices = []
    with image_bar(show=progress) as bar:
        for label, path in bar.track(list(zip(labels, paths, strict=True)), description=f"shards of {name}"):
            index = index_shard(path, cache=cache)
            for i in np.flatnonzero(index.images[:, 1] < 0):
                count_ignored(ignored, NO_IMAGE, f"{label}:{index.keys[i]}")
            for reason, entries in index.ignored.items():
                entries = IgnoredEntries(entries.count, f"{label}:{entries.first}")
                ignored[reason] = ignored[reason] + entries if reason in ignored else entries
            indices.append(index)
    records = ShardRecords(tuple(zip(labels, paths, strict=True)), indices)
    if not len(records):
        kinds = " ".join(SUFFIXES)
        but = "".join(f"; {entries.count}: {reason}, such as {entries.first}" for reason, entries in ignored.items())
        raise InputError(f"{name}: need images ({kinds}) in the shards; got none in {len(paths)}{but}. Check the path.")
    return Dataset(name, (), records, ignored)


class ShardRecords(LazySequence[Record]):
    """The images of many shards, 36 bytes and the key for each; records are created, and texts read, on demand."""

    def __init__(self, shards: Sequence[tuple[str, Path]], indices: Sequence[Index]) -> None:
        """Concatenate the indices of shards, given as (label, path)."""
        self._shards = tuple(shards)
        has_image = [index.images[:, 1] >= 0 for index in indices]
        counts = [int(mask.sum()) for mask in has_image]
        self._shard_of = np.repeat(np.arange(len(indices), dtype=np.int32), counts)  # (N,)
        empty = np.empty((0, 2), np.int64)
        rows = list(zip(indices, has_image, strict=True))
        self._images = np.concatenate([empty, *(index.images[mask] for index, mask in rows)])  # (N, 2)
        self._texts = np.concatenate([empty, *(index.texts[mask] for index, mask in rows)])  # (N, 2)
        # all keys in one string of bytes, and where each ends: a list of Python strings would take more memory
        keys = [key.encode() for index, mask in rows for key, has in zip(index.keys, mask, strict=True) if has]
        self._keys = b"".join(keys)
        self._ends = np.cumsum([0, *map(len, keys)], dtype=np.int64)  # (N + 1,)

    def __len__(self) -> int:
        return len(self._shard_of)

    def item(self, index: int) -> Record:
        """Make the record of one image."""
        label, path = self._shards[self._shard_of[index]]
        key = self._keys[self._ends[index] : self._ends[index + 1]].decode()
        offset, size = self._images[index].tolist()
        return Record(f"{label}:{key}", path, member=Member(key, offset, size))

    def texts(self) -> "ShardTexts":
        """The texts beside the images, in the same order."""
        return ShardTexts(self, [path for _, path in self._shards], self._shard_of, self._texts)


class ShardTexts(LazySequence[tuple[str, ...]]):
    """The text KEY.txt beside each image KEY.jpg of many shards, read on demand; () if there is none."""

    def __init__(
        self, records: Sequence[Record], shards: Sequence[Path], shard_of: np.ndarray, parts: np.ndarray
    ) -> None:
        """Store the offsets.

        Args:
            records: the images, for messages.
            shards: paths.
            shard_of: (N,) index of the shard of each text.
            parts: (N, 2) its first byte and number of bytes; -1 -1 if there is none.
        """
        self._records, self._shards, self._shard_of, self._parts = records, shards, shard_of, parts

    def __len__(self) -> int:
        return len(self._parts)

    def has_text(self) -> np.ndarray:
        """Whether each image has a text of at least one byte, (N,); none is read."""
        return self._parts[:, 1] > 0

    def item(self, index: int) -> tuple[str, ...]:
        """Read the text of one image; empty where it has none."""
        first, size = self._parts[index].tolist()
        if size <= 0:
            return ()
        text = _read_text(self._shards[self._shard_of[index]], first, size, str(self._records[index].id))
        return (text,) if text else ()


# ------------------------------------------------------------------------------------------------------------ the index


def index_shard(path: Path, *, cache: Path | None = None) -> Index:
    """Scan the headers of an uncompressed tar file, or load the cached index of an earlier scan.

    Args:
        path: of the shard.
        cache: folder of the cached indices; one is used if the shard's size, modification time and first bytes are
            unchanged. None: scan.

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
        raise InputError(f"{path}: need a tar shard; {reason_of(error)}. Check the path.") from error
    resolved = str(path.resolve())
    identity = [INDEX_VERSION, resolved, status.st_size, status.st_mtime_ns, hashlib.sha256(head).hexdigest()]
    name = hashlib.sha256(resolved.encode(errors="surrogateescape")).hexdigest()[:32]
    cached = cache / "shards" / f"{name}.index.npz"
    index = _load_index(cached, json.dumps(identity))
    if index is None:
        index = _scan(path)
        _save_index(cached, index, json.dumps(identity))
    return index


def split_name(name: str) -> tuple[str, str]:
    """Split a member's name into key and suffix as webdataset does: at the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    stem, _, suffix = last.partition(".")
    return f"{folder}{slash}{stem}", suffix.lower()


class _Found(NamedTuple):
    """A member with the name of an image or a text."""

    name: str
    offset: int  # [bytes]
    size: int  # [bytes]
    is_file: bool


def _scan(path: Path) -> Index:
    members: list[_Found] = []
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                name = member.name.encode(errors="surrogateescape").decode(errors="backslashreplace")
                if split_name(name)[0].rpartition("/")[2] and name.lower().endswith((*SUFFIXES, ".txt")):
                    if escapes(name):
                        where = f"{path}: member {name!r}"
                        fail(where, "a name inside the shard", "one that leads elsewhere", UNTRUSTED_FILE)
                    is_file = member.isreg() and not member.issparse()
                    members.append(_Found(name, member.offset_data, member.size, is_file))
            file.seek(tar.offset)
            if file.read(BLOCK) != bytes(BLOCK):  # tarfile takes a damaged header, or a truncated file, for the end
                raise tarfile.ReadError(f"it is truncated or damaged at byte {tar.offset:,}, before its end mark")
    except InputError:
        raise
    except Exception as error:  # tarfile raises exceptions of many kinds on a damaged file
        raise InputError(
            f"{path}: need a whole tar file, not compressed; {type(error).__name__}: {error}. Fetch or write it again."
        ) from error
    return _index(path, members)


def _index(path: Path, members: list[_Found]) -> Index:
    """The images and texts among members, by key."""
    images: dict[str, tuple[int, int]] = {}
    texts: dict[str, tuple[int, int]] = {}
    keys: dict[str, None] = {}  # in order of appearance
    ignored: dict[str, IgnoredEntries] = {}
    key_of = _keys([member.name for member in members])
    for member in members:
        key, is_text = key_of[member.name], _is_text(member.name)
        parts = texts if is_text else images
        if key is None:
            if not is_text:
                count_ignored(ignored, FURTHER, member.name)
        elif not member.is_file:
            count_ignored(ignored, NO_FILE, key)
        elif key in parts:
            where = f"{path}: member {member.name!r}"
            fail(where, "one image and one text per key", "a second one", "Use unique keys.")
        else:
            parts[key] = (member.offset, member.size)
            keys[key] = None
    offsets, text_offsets = (
        np.array([parts.get(key, (-1, -1)) for key in keys], dtype=np.int64).reshape(-1, 2) for parts in (images, texts)
    )
    return Index(tuple(keys), offsets, text_offsets, ignored)


def _keys(names: list[str]) -> dict[str, str | None]:
    """The key of each image or text, by its name; None: it is a further field of its key."""
    keys, middles = dict[str, str | None](), dict[str, str]()  # middles: what is between the first dot and the last
    for name in names:
        key, kind = split_name(name)
        if "." in kind:
            middles[name] = kind.rpartition(".")[0]
        else:
            keys[name] = key
    with_image = {key for name, key in keys.items() if not _is_text(name)}
    counts = Counter(middle for name, middle in middles.items() if not _is_text(name))
    fields = {middle for middle, count in counts.items() if count > 1 and WORD.fullmatch(middle)}
    for name, middle in middles.items():
        if not _is_text(name):
            key = split_name(name)[0]
            is_further = key in with_image or (middle in fields and len(fields) > 1)
            keys[name] = None if is_further else key if middle in fields else name.rpartition(".")[0]
    with_image = {key for name, key in keys.items() if not _is_text(name)}
    for name in middles:
        if _is_text(name):
            key = name.rpartition(".")[0]
            keys[name] = key if key in with_image else None
    return keys


def _is_text(name: str) -> bool:
    return name.lower().endswith(".txt")


def _load_index(path: Path, identity: str) -> Index | None:
    """The cached index if it is of this very shard; a damaged one is ignored."""
    try:
        with np.load(path, allow_pickle=False) as saved:
            if str(saved["facts"]) != identity:
                return None
            keys = tuple(json.loads(bytes(saved["keys"])))
            members = json.loads(str(saved["ignored"]))
            ignored = {reason: IgnoredEntries(*entries) for reason, entries in members.items()}
            index = Index(keys, saved["images"], saved["texts"], ignored)
    except Exception:  # missing, or damaged in any way: scan again
        return None
    shape = (len(keys), 2)
    return index if index.images.shape == shape == index.texts.shape else None


def _save_index(path: Path, index: Index, identity: str) -> None:
    """Cache an index; if that fails, later runs scan again."""
    buffer = io.BytesIO()
    keys = np.frombuffer(json.dumps(index.keys).encode(), dtype=np.uint8)
    ignored = json.dumps({reason: [entries.count, entries.first] for reason, entries in index.ignored.items()})
    np.savez(buffer, facts=identity, keys=keys, images=index.images, texts=index.texts, ignored=ignored)
    with suppress(OSError):
        write_whole(path, buffer.getvalue(), shared=True)


# ------------------------------------------------------------------------------------------------------------ the pairs


def read_pairs(folder: Path, *, side: int) -> tuple[UInt8[Tensor, "B 3 S S"], list[str], list[str]]:
    """Read all image-caption pairs of a folder of shards into memory (small sets of small images).

    Args:
        folder: of *.tar.
        side: height and width of the images [pixels]; images of another size are resized.

    Returns:
        The images, their captions and their names SHARD:KEY, in the order of the sorted shards.

    Raises:
        InputError: no shard, no pair, an incomplete pair, or an unreadable one; names shard and key.
    """
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise InputError(
            f"{folder}: need a folder with *.tar shards of KEY.jpg + KEY.txt; found none. "
            "Make some: foveate world DIR --pairs 60000"
        )
    images, captions, names = [], [], []
    for shard in shards:
        index = index_shard(shard)
        for key, image, text in zip(index.keys, index.images.tolist(), index.texts.tolist(), strict=True):
            name = f"{shard}:{key}"
            if image[1] < 0 or text[1] < 0:
                missing = "image" if image[1] < 0 else "caption (.txt)"
                raise InputError(f"{name}: need an image and a text; the {missing} is missing. Write the shard again.")
            images.append(_resize(read_image(shard, part=(image[0], image[1]), name=name), side))
            captions.append(_read_text(shard, text[0], text[1], name))
            names.append(f"{shard.name}:{key}")
    if not images:
        raise InputError(f"{folder}: need pairs of KEY.jpg + KEY.txt in its shards; got none in {len(shards)}.")
    return torch.stack(images), captions, names  # (B, 3, S, S)


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
