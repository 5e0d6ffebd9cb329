"""A digest of a set of tensors: for the identity of caches, checkpoints and feature files, and inside our products."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from foveate.errors import InputError
from foveate.io.files import reason_of
from foveate.io.tensors import sort_metadata

DIGEST = "foveate_sha256"  # key in the metadata of a safetensors file


def digest_state(state: Mapping[str, Tensor]) -> str:
    """The sha256 of all tensors and their names, at about 1 GB per second."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_tensors(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a safetensors file of contiguous tensors with their digest, which `read_tensors` checks."""
    save_file({**state}, path, {"format": "pt", DIGEST: _digest(state)})
    with path.open("r+b") as file:
        sort_metadata(file)


def save_tensors(state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """The content of such a file, with other metadata."""
    content = io.BytesIO(save({**state}, {**(metadata or {}), DIGEST: _digest(state)}))
    sort_metadata(content)
    return content.getvalue()


def read_tensors(path: Path, *, need: str) -> dict[str, Tensor]:
    """Read a safetensors file, and check the digest in its metadata.

    A file without a digest is read as it is: of other programs, of older versions, or saved again by a library.

    Args:
        need: what the file must be, for the message.

    Raises:
        InputError: the file cannot be read, is damaged, or has tensors other than those of its digest.
    """
    try:
        path.open("rb").close()  # safetensors calls a file that may not be read missing
        state = load_file(path)
        with safe_open(path, framework="pt") as file:
            expected = (file.metadata() or {}).get(DIGEST)
    except OSError as error:
        raise InputError(f"{path}: need {need}; {reason_of(error)}.") from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(
            f"{path}: need {need}; not a readable safetensors file ({error}). Download or copy it again."
        ) from error
    if expected is not None and expected != _digest(state):
        raise InputError(
            f"{path}: need the tensors it was written with; they have another sha256 than its metadata. The file is "
            f"damaged: copy or make it again. If a program changed the tensors on purpose, save them without {DIGEST}."
        )
    return state


def _digest(state: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and values."""
    return digest_state({f"{name} {value.dtype} {list(value.shape)}": value for name, value in state.items()})
