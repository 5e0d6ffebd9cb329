"""Weights as plain dictionaries of tensors: read from a file without running it, mixed, put into a model key by key.

Kinds of files are told apart by their content, never by their names. Nothing read from a file is imported or executed:
safetensors, or our own reader of torch's files (`foveate.clip.io.checkpoint_file`). Absent: pickles of whole modules,
which are refused, and what the names of tensors mean (`foveate.clip.io.layouts`).
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from foveate.clip.io.checkpoint_file import is_torchscript, read_archive, read_checkpoint
from foveate.clip.io.describe import read_json
from foveate.clip.io.pickle_reader import Placeholder
from foveate.errors import InputError, listed

Kind = Literal["index", "safetensors", "torchscript", "torch"]

_NESTED = ("state_dict", "model", "module", "model_state_dict")  # where training scripts put the weights
_PREFIXES = ("module.", "_orig_mod.", "model.")  # of data-parallel training, torch.compile and wrapping modules
_DEEPEST = 4  # of one nested in another


def file_kind(path: Path) -> Kind:
    """Tell what a weights file is from its content.

    Args:
        path: of the file.

    Returns:
        "index" of a sharded model, "safetensors", "torchscript" (OpenAI's own files), or "torch" for anything else.

    Raises:
        InputError: there is no such file, or nothing in it, or only what stands for one in a Git LFS clone.
    """
    if path.is_dir():
        raise InputError(f"{path}: need a weights file; this is a folder.")
    if not path.is_file():
        raise InputError(f"{path}: need a weights file (.safetensors, .pt, .pth, .bin); there is none here.")
    with path.open("rb") as file:
        head = file.read(40)
    if not head:
        raise InputError(f"{path}: need a weights file; this one is empty. Download or copy it again.")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: a Git LFS pointer stands here instead of the file. Fetch it with: git lfs pull.")
    if re.match(rb"\s*\{[\s\"}]", head) and b"\0" not in head[:8]:
        return "index"
    if head[8:9] == b"{":  # after the length of the header
        return "safetensors"
    return "torchscript" if head.startswith(b"PK") and is_torchscript(path) else "torch"


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a weights file on the CPU.

    Args:
        path: a safetensors file; one of `torch.save` that holds tensors by name, bare or under "state_dict", "model",
            "module" or "model_state_dict"; a TorchScript archive; or the index (*.index.json) of several such files.
            What it is called does not matter. What lies beside the weights, an optimizer say, is named on stderr,
            and neither built nor read.

    Returns:
        Tensors by name, without the "module.", "_orig_mod." and "model." that wrappers write before each name. Those
        of torch's files are views of the mapped file.

    Raises:
        InputError: missing, empty, damaged, or holding anything but tensors among the weights (which is not run).
    """
    path = Path(path)
    kind = file_kind(path)
    content = _weights_in(_read_shards(path) if kind == "index" else _read_file(path, kind), path)
    if not isinstance(content, dict) or not content:
        got = "one without entries" if isinstance(content, dict) else _kind_of(content)
        raise InputError(f"{path}: need a dictionary of tensors; got {got}. Save the model's state_dict().")
    strange = [key for key, value in content.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if strange:
        raise InputError(
            f"{path}: need tensors only, at the top or under {', '.join(_NESTED)}; {len(strange)} of {len(content)} "
            f"entries are something else, first {strange[0]!r} ({_kind_of(content[strange[0]])}). "
            f"It begins with {listed([repr(key) for key in content], 5)}. Save the model's state_dict() alone."
        )
    odd = [key for key, value in content.items() if value.is_complex()]
    if odd:
        raise InputError(f"{path}: need real numbers; {len(odd)} tensors are complex, first {odd[0]!r}.")
    while prefix := next((one for one in _PREFIXES if all(key.startswith(one) for key in content)), None):
        content = {key.removeprefix(prefix): value for key, value in content.items()}
    return content


def _weights_in(content: Any, path: Path) -> Any:
    """Look where training scripts put the weights, and name what lies beside them."""
    for _ in range(_DEEPEST):
        inner = next((key for key in _NESTED if isinstance(content, dict) and isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        beside = [repr(key) for key in content if key != inner]
        if beside:
            print(f"{path}: weights are read from {inner!r}; not read: {listed(beside)}.", file=sys.stderr)
        content = content[inner]
    return content


def _kind_of(value: Any) -> str:
    name = value.name if isinstance(value, Placeholder) else type(value).__name__
    return f"{name!r}; it was not run" if isinstance(value, Placeholder) else f"a {name}"


def _read_file(path: Path, kind: Kind) -> Any:
    match kind:
        case "safetensors":
            try:
                return load_file(path)
            except (SafetensorError, OSError, ValueError, KeyError) as error:
                raise InputError(
                    f"{path}: not a readable safetensors file ({error}). Download or copy it again."
                ) from error
        case "torchscript":
            return read_archive(path)
        case "torch":
            return read_checkpoint(path)
        case "index":
            raise InputError(f"{path}: is itself an index; an index must name files with tensors.")


def _read_shards(index: Path) -> dict[str, Tensor]:
    """Read a model whose weights lie in several files beside their index."""
    places = read_json(index, what="the index of a sharded model").get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise InputError(f'{index}: need a "weight_map" from names of tensors to files.')
    files = sorted(set(places.values()))
    outside = [name for name in files if Path(name).name != name or "\\" in name or name in ("", ".", "..")]
    if outside:
        raise InputError(f"{index}: need files of its own folder; it names {outside[0]!r}.")
    absent = [name for name in files if not (index.parent / name).is_file()]
    if absent:
        raise InputError(f"{index}: {len(absent)} of {len(files)} files are missing: {listed(absent)}. Download them.")
    state: dict[str, Tensor] = {}
    for name in files:
        shard = _read_file(index.parent / name, file_kind(index.parent / name))
        if not isinstance(shard, dict):
            raise InputError(f"{index.parent / name}: need a dictionary of tensors; got a {type(shard).__name__}.")
        state |= {key: value for key, value in shard.items() if places.get(key) == name}
    without = [key for key in places if key not in state]
    if without:
        raise InputError(f"{index}: {len(without)} tensors are not in its files: {listed(without)}.")
    return state


def mix_states(student: dict[str, Tensor], teacher: dict[str, Tensor], *, alpha: float) -> dict[str, Tensor]:
    """Mix two sets of weights, alpha * student + (1 - alpha) * teacher (the product of CLIPSelf; Sec. 3.2).

    Args:
        student: weights after training.
        teacher: weights before it, with the same names.
        alpha: 1 keeps the student, 0 the teacher; 0.7 for B/16 and 0.95 for L/14 in the paper.

    Returns:
        New tensors, computed in float32 and kept in the student's type; what is not floating point is the student's.

    Raises:
        InputError: alpha outside [0, 1], or the two do not have the same names and shapes.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha: must be in [0, 1], the student's share; got {alpha}.")
    problems = _describe(*_compare(teacher, student))
    if problems:
        raise InputError(f"student and teacher must be the same architecture to be mixed: {problems}.")
    mixed = {}
    for key, ours in student.items():
        theirs = teacher[key].to(ours.device)
        blend = torch.lerp(theirs.float(), ours.float(), alpha).to(ours.dtype) if ours.is_floating_point() else ours
        mixed[key] = blend.clone()
    return mixed


def put_state(
    model: nn.Module,
    state: dict[str, Tensor],
    *,
    source: str,
    name: str,
    allow_missing: bool = False,
    allow_extra: bool = False,
) -> None:
    """Copy weights into a model, all of them or none.

    Args:
        model: receives the values, in its own types.
        state: must have exactly the model's names and shapes, and finite numbers.
        source: the file, for the message.
        name: the model's, for the message.
        allow_missing: keep the model's numbers where the state has none, and say so on stderr.
        allow_extra: pass over what the model has no place for, and say so on stderr.

    Raises:
        InputError: missing, extra or mis-shaped entries (counts and the first few), or numbers that are not finite.
    """
    check_state(model, state, source=source, name=name, allow_missing=allow_missing, allow_extra=allow_extra)
    wanted = model.state_dict()
    used = {key: state[key] for key in wanted if key in state}
    whole = [key for key, value in used.items() if value.is_floating_point() != wanted[key].is_floating_point()]
    if whole:
        kinds = f"{used[whole[0]].dtype} instead of {wanted[whole[0]].dtype}"
        raise InputError(f"{source}: {len(whole)} tensors are of another kind, first {whole[0]}: {kinds}.")
    broken = [key for key, value in used.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise InputError(
            f"{source}: {len(broken)} of {len(state)} tensors hold NaN or infinity, first {broken[0]}. "
            "Use an earlier checkpoint."
        )
    left = _describe(*_compare(wanted, state))
    if left:
        print(f"{source}: as allowed, {left}.", file=sys.stderr)
    model.load_state_dict(used, strict=not left)


def check_state(
    model: nn.Module, state: dict[str, Tensor], *, source: str, name: str, allow_missing: bool, allow_extra: bool
) -> None:
    """Refuse weights that do not fit a model, by names and shapes alone; as `put_state`, whose arguments these are."""
    wanted = model.state_dict()
    missing, extra, shaped = _compare(wanted, state)
    none = len(missing) == len(wanted)  # allowing what is missing is no way to load nothing
    problems = _describe([] if allow_missing and not none else missing, [] if allow_extra else extra, shaped)
    if problems:
        allowed = ["allow_missing=True"] if missing and not allow_missing else []
        allowed += ["allow_extra=True"] if extra and not allow_extra else []
        way = f", or pass {' and '.join(allowed)}" if allowed and not shaped and not none else ""
        raise InputError(
            f"{source}: these are not weights of {name}: {problems}. Give the architecture the file was made with{way}."
        )


def differences(wanted: dict[str, Tensor], got: dict[str, Tensor], *, called: Callable[[str], str] = str) -> str:
    """Describe what keeps weights from being put into a model: what is missing, extra, of another shape, not finite.

    Args:
        wanted: of the model.
        got: in their place.
        called: gives what an entry is called in the file the weights are from.

    Returns:
        How many of each kind, with the first few; empty where they fit.
    """
    broken = [key for key, value in got.items() if value.is_floating_point() and not value.isfinite().all()]
    return _describe(*_compare(wanted, got, called=called), list(map(called, broken)))


def _compare(
    wanted: dict[str, Tensor], got: dict[str, Tensor], *, called: Callable[[str], str] = str
) -> tuple[list[str], list[str], list[str]]:
    missing = [called(key) for key in wanted if key not in got]
    extra = [called(key) for key in got if key not in wanted]
    shaped = [
        f"{called(key)} is {tuple(got[key].shape)} instead of {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in got and got[key].shape != value.shape
    ]
    return missing, extra, shaped


def _describe(*found: list[str]) -> str:
    kinds = ("missing", "extra", "of another shape", "not finite")
    return "; ".join(
        f"{len(keys)} {kind} ({listed(keys, 20)})" for kind, keys in zip(kinds, found, strict=False) if keys
    )
