"""Weights as dictionaries of tensors: read from files without running them, mixed, and loaded into a model.

The kind of a file is recognised by its content, not its name. Nothing in a file is imported or executed: safetensors,
or our own reader of torch's files (`foveate.clip.io.checkpoint_file`). Pickles of whole modules are refused.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from foveate.clip.io.checkpoint_file import is_torchscript, read_archive, read_checkpoint
from foveate.clip.io.describe import read_json
from foveate.clip.io.digest import read_tensors
from foveate.clip.io.pickle_reader import Placeholder
from foveate.errors import InputError, listed
from foveate.io.files import reason_of

Kind = Literal["index", "safetensors", "torchscript", "torch"]

_NESTED = ("state_dict", "model", "module", "model_state_dict", "student")  # keys of the weights in checkpoints
_AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")  # likewise, if the file has no other dictionary
_PREFIXES = ("module.", "model.", "student.", "clip.")  # of data-parallel training and of wrapping modules
_WRAPPED = re.compile(
    r"(^|\.)(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+"
)  # anywhere in a name
_AVERAGED = "n_averaged"  # a counter beside the weights, of torch.optim.swa_utils.AveragedModel
_MAX_DEPTH = 4  # of such keys


def file_kind(path: Path) -> Kind:
    """Recognise a weights file by its content: "torchscript" are OpenAI's own files, "torch" anything unknown.

    Raises:
        InputError: the file does not exist, is empty or is a Git LFS pointer.
    """
    try:
        if path.is_dir():
            raise InputError(f"{path}: need a weights file; this is a folder. Name a file in it.")
        if not path.is_file():
            raise InputError(f"{path}: need a weights file (.safetensors, .pt, .pth, .bin); not found. Check the path.")
        with path.open("rb") as file:
            head = file.read(40)
    except OSError as error:
        raise InputError(f"{path}: need a weights file; {reason_of(error)}.") from error
    if not head:
        raise InputError(f"{path}: need a weights file; this one is empty. Download or copy it again.")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: need a weights file; this is a Git LFS pointer. Fetch it with: git lfs pull.")
    if re.match(rb"\s*\{[\s\"}]", head) and b"\0" not in head[:8]:
        return "index"
    if head[8:9] == b"{":  # follows the length of the header
        return "safetensors"
    return "torchscript" if head.startswith(b"PK") and is_torchscript(path) else "torch"


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a weights file on the CPU.

    Args:
        path: a safetensors file; a file of `torch.save` with tensors by name, at the top or under "state_dict",
            "model", "module", "model_state_dict", "student" or an average's key such as "ema"; a TorchScript archive;
            or the index (*.index.json) of such files. Other content, such as an optimizer, is not read; its keys are
            printed to stderr.

    Returns:
        Tensors by name, without the prefixes "module.", "model.", "student." and "clip." of wrappers, and "_orig_mod."
        and FSDP's anywhere. Those of torch's files are views of the mapped file.

    Raises:
        InputError: the file does not exist, is empty or damaged, or has anything but tensors among the weights.
    """
    path = Path(path)
    kind = file_kind(path)
    content = _find_weights(_read_shards(path) if kind == "index" else _read_file(path, kind), path)
    if not isinstance(content, dict) or not content:
        got = "one without entries" if isinstance(content, dict) else _kind_of(content)
        raise InputError(f"{path}: need a dictionary of tensors; got {got}. Save the model's state_dict().")
    # tensors of real numbers only
    invalid = [key for key, value in content.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if invalid:
        raise InputError(
            f"{path}: need tensors only, at the top or under {', '.join(_NESTED)}; {len(invalid)} of {len(content)} "
            f"entries are not tensors, first {invalid[0]!r} ({_kind_of(content[invalid[0]])}). "
            f"It begins with {listed([repr(key) for key in content], 5)}. Save the model's state_dict() alone."
        )
    complex_keys = [key for key, value in content.items() if value.is_complex()]
    if complex_keys:
        raise InputError(
            f"{path}: need real numbers; {len(complex_keys)} tensors are complex, first {complex_keys[0]!r}. "
            "Save the weights of a CLIP."
        )
    # prefixes of wrappers
    if _AVERAGED in content:
        print(f"{path}: the weights are an average; ignored: {_AVERAGED!r}.", file=sys.stderr)
        content = {key: value for key, value in content.items() if key != _AVERAGED}
    unwrapped = {_WRAPPED.sub(r"\1", key): value for key, value in content.items()}
    content = unwrapped if len(unwrapped) == len(content) else content
    while prefix := next((prefix for prefix in _PREFIXES if all(key.startswith(prefix) for key in content)), None):
        content = {key.removeprefix(prefix): value for key, value in content.items()}
    return content


def _find_weights(content: Any, path: Path) -> Any:
    """Find the weights in a training checkpoint, and print the keys that are ignored."""
    for _ in range(_MAX_DEPTH):
        nested = [key for key, value in content.items() if isinstance(value, dict)] if isinstance(content, dict) else []
        inner = next((key for key in _NESTED if key in nested), None)
        if inner is None and (len(nested) != 1 or nested[0] not in _AVERAGES):
            break
        inner = inner or nested[0]
        ignored = [repr(key) for key in content if key != inner]
        if ignored:
            print(f"{path}: weights are read from {inner!r}; ignored: {listed(ignored)}.", file=sys.stderr)
        content = content[inner]
    return content


def _kind_of(value: Any) -> str:
    return f"{value.name!r}; it was not run" if isinstance(value, Placeholder) else f"a {type(value).__name__}"


def _read_file(path: Path, kind: Kind) -> Any:
    match kind:
        case "safetensors":
            return read_tensors(path, need="weights")
        case "torchscript":
            return read_archive(path)
        case "torch":
            return read_checkpoint(path)
        case "index":
            raise InputError(f"{path}: need a file of tensors; this is an index too. Download the model again.")


def _read_shards(index: Path) -> dict[str, Tensor]:
    """Read weights from several files beside their index."""
    weight_map = read_json(index, what="the index of a sharded model").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise InputError(f'{index}: need a "weight_map" from names of tensors to files. Download the model again.')
    files = sorted(set(weight_map.values()))
    outside = [name for name in files if Path(name).name != name or "\\" in name or name in ("", ".", "..")]
    if outside:
        raise InputError(f"{index}: need files in its folder; it names {outside[0]!r}. Download the model again.")
    absent = [name for name in files if not (index.parent / name).is_file()]
    if absent:
        raise InputError(f"{index}: {len(absent)} of {len(files)} files are missing: {listed(absent)}. Download them.")
    state: dict[str, Tensor] = {}
    for name in files:
        shard = _read_file(index.parent / name, file_kind(index.parent / name))
        if not isinstance(shard, dict):
            raise InputError(f"{index.parent / name}: need a dictionary of tensors; got a {type(shard).__name__}.")
        state |= {key: value for key, value in shard.items() if weight_map.get(key) == name}
    missing = [key for key in weight_map if key not in state]
    if missing:
        raise InputError(f"{index}: {len(missing)} tensors are not in its files: {listed(missing)}. Download them.")
    return state


def mix_states(student: dict[str, Tensor], teacher: dict[str, Tensor], *, alpha: float) -> dict[str, Tensor]:
    """Mix weights after and before training, alpha * student + (1 - alpha) * teacher (Sec. 3.2).

    Args:
        alpha: in [0, 1]; 0.7 for B/16 and 0.95 for L/14 in the paper.

    Returns:
        New tensors, computed in float32, in the types of the student; integer tensors are copied from the student.

    Raises:
        InputError: alpha is outside [0, 1], or names or shapes differ.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha: must be in [0, 1], the weight of the student; got {alpha}.")
    problems = _describe(*_compare(teacher, student))
    if problems:
        raise InputError(f"student and teacher must be the same architecture to be mixed: {problems}.")
    mixed = {}
    for key, value in student.items():
        before = teacher[key].to(value.device)
        blend = torch.lerp(before.float(), value.float(), alpha).to(value.dtype) if value.is_floating_point() else value
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
    """Load weights into a model, in the model's types; all of them or none.

    Args:
        source: path of the weights, for the message.
        name: of the model, for the message.
        allow_missing: keep the model's values of missing tensors; their names are printed to stderr.
        allow_extra: ignore tensors that the model does not have; their names are printed to stderr.

    Raises:
        InputError: tensors are missing, extra or of another shape or type, or not finite; lists the first of them.
    """
    check_state(model, state, source=source, name=name, allow_missing=allow_missing, allow_extra=allow_extra)
    expected = model.state_dict()
    used = {key: state[key] for key in expected if key in state}
    # values, which `check_state` does not look at
    mistyped = [key for key, value in used.items() if value.is_floating_point() != expected[key].is_floating_point()]
    if mistyped:
        types = f"{used[mistyped[0]].dtype} instead of {expected[mistyped[0]].dtype}"
        raise InputError(
            f"{source}: {len(mistyped)} tensors have another dtype, first {mistyped[0]}: {types}. "
            "Give the weights of this architecture."
        )
    broken = _not_finite(used)
    if broken:
        raise InputError(
            f"{source}: {len(broken)} of {len(state)} tensors hold NaN or infinity, first {broken[0]}. "
            "Use an earlier checkpoint."
        )
    allowed = _describe(*_compare(expected, state))
    if allowed:
        print(f"{source}: as allowed, {allowed}.", file=sys.stderr)
    model.load_state_dict(used, strict=not allowed)


def check_state(
    model: nn.Module, state: dict[str, Tensor], *, source: str, name: str, allow_missing: bool, allow_extra: bool
) -> None:
    """Refuse weights whose names or shapes do not fit a model; the arguments are those of `put_state`."""
    expected = model.state_dict()
    missing, extra, misshapen = _compare(expected, state)
    is_all_missing = len(missing) == len(expected)  # never allowed
    problems = _describe(
        [] if allow_missing and not is_all_missing else missing, [] if allow_extra else extra, misshapen
    )
    if problems:
        options = ["allow_missing=True"] if missing and not allow_missing else []
        options += ["allow_extra=True"] if extra and not allow_extra else []
        option = f", or pass {' and '.join(options)}" if options and not misshapen and not is_all_missing else ""
        raise InputError(
            f"{source}: these are not weights of {name}: {problems}. "
            f"Give the architecture the file was made with{option}."
        )


def differences(expected: dict[str, Tensor], state: dict[str, Tensor], *, called: Callable[[str], str] = str) -> str:
    """Count and list the tensors that are missing, extra, of another shape or not finite; "" if there are none.

    Args:
        called: returns the name of a tensor in the file the weights are from.
    """
    return _describe(*_compare(expected, state, called=called), list(map(called, _not_finite(state))))


def _not_finite(state: dict[str, Tensor]) -> list[str]:
    return [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]


def _compare(
    expected: dict[str, Tensor], state: dict[str, Tensor], *, called: Callable[[str], str] = str
) -> tuple[list[str], list[str], list[str]]:
    missing = [called(key) for key in expected if key not in state]
    extra = [called(key) for key in state if key not in expected]
    misshapen = [
        f"{called(key)} is {tuple(state[key].shape)} instead of {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    return missing, extra, misshapen


def _describe(*problems: list[str]) -> str:
    kinds = ("missing", "extra", "of another shape", "not finite")
    counted = zip(kinds, problems, strict=False)
    return "; ".join(f"{len(keys)} {kind} ({listed(keys, 20)})" for kind, keys in counted if keys)
