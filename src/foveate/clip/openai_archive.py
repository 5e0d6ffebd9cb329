"""The tensors of a TorchScript archive, OpenAI's own files, read without running or importing anything in it.

Such a file is a zip with compiled code, which is left alone, and a pickle that describes a tree of modules. Absent:
everything else a TorchScript archive can hold (quantised and sparse tensors, tensors in lists, compressed tensors).
"""

import zipfile
from pathlib import Path
from typing import Any

from torch import Tensor

from foveate.clip.checkpoint_file import Placeholder, read_checkpoint
from foveate.errors import InputError

_MOST_NAMES, _DEEPEST = 100_000, 32


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, and not one of `torch.save` nor a damaged one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") or "/code/" in name for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        return False


def read_archive(path: Path) -> dict[str, Tensor]:
    """Read the parameters and buffers of a TorchScript archive by their dotted names.

    Args:
        path: of the archive.

    Returns:
        Tensors on the CPU, views of the mapped file.

    Raises:
        InputError: damaged, lying about its sizes, or holding anything but a tree of modules (which is not run).
    """
    root = read_checkpoint(path)
    try:
        return _walk(root)
    except ValueError as error:
        raise InputError(f"{path}: need the modules of a TorchScript archive; it was not run ({error}).") from error


def _walk(root: Any) -> dict[str, Tensor]:
    """Collect the tensors of a tree of modules by their dotted names."""
    if not _is_module(root):
        raise ValueError(f"it holds {root if isinstance(root, Placeholder) else f'a {type(root).__name__}'}")
    found: dict[str, Tensor] = {}
    waiting, visited = [("", root, 0)], 0
    while waiting:
        prefix, module, depth = waiting.pop()
        if not isinstance(module.state, dict) or not all(isinstance(key, str) for key in module.state):
            raise ValueError(f"the state of {prefix or 'its root'} is not a dictionary by name")
        visited += 1 + len(module.state)
        if visited > _MOST_NAMES or depth > _DEEPEST:
            raise ValueError("its modules are not a tree, or too many")
        for key, value in module.state.items():
            if isinstance(value, Tensor):
                found[prefix + key] = value
            elif _is_module(value):
                waiting.append((f"{prefix}{key}.", value, depth + 1))
    if not found:
        raise ValueError("there is no tensor in it")
    return found


def _is_module(value: Any) -> bool:
    return isinstance(value, Placeholder) and value.name.startswith("__torch__.")
