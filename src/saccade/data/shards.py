"""Picture-caption pairs from tar shards in webdataset layout (KEY.jpg beside KEY.txt).

Members are read in memory and never extracted, so a hostile name cannot reach the disk; only pictures and texts are
opened. Deliberately absent: streaming and URLs (small sets of small pictures are held in memory whole).
"""

import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from saccade.types import InputError

MAX_MEMBER = 20_000_000  # bytes


def read_pairs(folder: Path, *, side: int) -> tuple[UInt8[Tensor, "B 3 S S"], list[str]]:
    """Read all pairs of a folder of shards into memory.

    Args:
        folder: holds *.tar.
        side: the pictures' height and width, pixels; pictures of another size are resized.

    Returns:
        The pictures, and the caption of each, in the order of the sorted shards.

    Raises:
        InputError: no shard, no pair, one that is not complete, or one that cannot be read; names shard and member.
    """
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise InputError(
            f"{folder}: need a folder with *.tar shards of KEY.jpg + KEY.txt; found none. "
            "Make some: saccade world DIR --pairs 60000"
        )
    pictures, captions = [], []
    for shard in shards:
        for key, pair in _read_shard(shard).items():
            if len(pair) != 2:
                missing = "picture" if "txt" in pair else "caption (.txt)"
                raise InputError(f"{shard}: {key} has no {missing}. Each KEY needs a picture and a text.")
            pictures.append(_decode(pair["picture"], side, f"{shard}: {key}"))
            captions.append(_read_text(pair["txt"], f"{shard}: {key}"))
    if not pictures:
        raise InputError(f"{folder}: need pairs of KEY.jpg + KEY.txt in its shards; the {len(shards)} hold none.")
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(), captions  # (B, 3, S, S)


def _read_shard(shard: Path) -> dict[str, dict[str, bytes]]:
    """The pictures and texts of a shard, by key; other members are passed over unread."""
    halves: dict[str, dict[str, bytes]] = {}
    try:
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, kind = member.name.rpartition(".")
                if not member.isfile() or kind not in ("jpg", "png", "txt"):
                    continue
                if member.size > MAX_MEMBER:
                    raise InputError(f"{shard}: {member.name} has {member.size} bytes; at most {MAX_MEMBER} are read.")
                content = tar.extractfile(member)
                assert content is not None, f"{member.name} is a file"
                halves.setdefault(key, {})["txt" if kind == "txt" else "picture"] = content.read()
    except InputError:
        raise
    except Exception as error:  # the readers of tar and its compressions let many kinds out of a damaged file
        raise InputError(f"{shard}: need a whole tar file; {error}. Fetch or write it again.") from error
    return halves


def _decode(content: bytes, side: int, name: str) -> np.ndarray:
    try:
        picture = Image.open(io.BytesIO(content), formats=("JPEG", "PNG")).convert("RGB")
    except Exception as error:  # Pillow's readers let every kind of exception out of a damaged file
        raise InputError(f"{name}: need a JPEG or PNG picture; {type(error).__name__}: {error}") from error
    if picture.size != (side, side):
        picture = picture.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def _read_text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: need a caption in UTF-8; {error}. Write the text again.") from error
