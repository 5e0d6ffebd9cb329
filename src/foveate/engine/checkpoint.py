"""Checkpoints that survive being killed at any moment, and that are believed only where every byte is right.

    FOLDER/step_00000200/state.safetensors   the trained tensors and the optimizer's, raw (never alpha-mixed), and the
                                             running statistics of trained BatchNorms
                         manifest.json       step, facts of the run, size and sha256 of each file
                         COMPLETE            sha256 of the manifest; written last

A checkpoint is written to `step_00000200.partial`, synced, renamed, and marked complete; without the mark it does not
exist. Loading goes back to the newest one that is whole. Tensors are safetensors: nothing in a checkpoint can run.
The newest few are kept, and the one whose facts have the lowest `held_out_loss`. Of several processes the first one's
running statistics are saved: SyncBatchNorm's are the same in all; plain ones differ by their images, but nothing in
training depends on them, so that what is saved at the end has the same bits, resumed or not. Deliberately absent:
random states (the loop derives them from seed, process and step) and sharded writing.
"""

import errno
import hashlib
import json
import math
import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from foveate.clip.io.digest import digest_state
from foveate.engine.distributed import Processes, spread_like, whole_tensor
from foveate.errors import InputError
from foveate.io.files import sync_to_disk, write_whole


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint, read back."""

    step: int  # steps done
    tensors: dict[str, Tensor]
    facts: dict[str, Any]  # whatever JSON was saved with it


def save_checkpoint(
    folder: Path, *, step: int, tensors: dict[str, Tensor], facts: dict[str, Any], keep: int = 2
) -> Path:
    """Write one checkpoint and, once it is whole, remove all but the newest `keep` and the best.

    Args:
        folder: holds the checkpoints of the run.
        step: steps done.
        tensors: from `collect`.
        facts: small JSON, returned by `load_latest`; a `held_out_loss` in it is what `find_best` looks at.
        keep: checkpoints to keep, this one included.

    Returns:
        The checkpoint's folder.

    Raises:
        InputError: it could not be written (a full disk, say); the earlier checkpoints are untouched.
    """
    final = folder / f"step_{step:08d}"
    partial = final.with_name(final.name + ".partial")
    try:
        for old in (partial, final):
            if old.exists():
                shutil.rmtree(old)
        partial.mkdir(parents=True)
        _write_tensors(partial / "state.safetensors", tensors)
        manifest = _manifest(partial, step, facts)
        write_whole(partial / "manifest.json", manifest, sync=True)
        sync_to_disk(partial)
        partial.rename(final)
        sync_to_disk(folder)
        write_whole(final / "COMPLETE", hashlib.sha256(manifest).hexdigest().encode(), sync=True)
        sync_to_disk(final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise InputError(_cannot_write(final, tensors, error)) from error
    best = find_best(folder)
    for old in list_complete(folder)[:-keep]:
        if old != best:
            (old / "COMPLETE").unlink()
            shutil.rmtree(old)
    return final


def list_complete(folder: Path) -> list[Path]:
    """The checkpoints that carry their completion mark, oldest first."""
    return sorted(path.parent for path in folder.glob("step_*/COMPLETE"))


def find_best(folder: Path) -> Path | None:
    """The checkpoint with the lowest held-out loss, the earliest of equal ones; none where none was validated.

    It is read off the checkpoints themselves, so that no kill can leave a mark that points to another.
    """
    losses = {path: _held_out_loss(path) for path in list_complete(folder)}
    return min((path for path in losses if losses[path] < math.inf), key=losses.__getitem__, default=None)


def clean_checkpoints(folder: Path) -> int:
    """Remove what a killed save left behind; the number of leftovers."""
    complete = set(list_complete(folder))
    leftovers = [path for path in folder.glob("step_*") if path not in complete]
    for path in leftovers:
        shutil.rmtree(path)
    return len(leftovers)


def load_latest(folder: Path, *, tell: Callable[[str], object] = print) -> Checkpoint | None:
    """The newest checkpoint that is whole; none where none was ever saved.

    Args:
        folder: holds the checkpoints of the run.
        tell: hears, for each newer checkpoint that is passed over, which file is wrong and how.

    Raises:
        InputError: there are checkpoints, but none is whole.
    """
    paths = list_complete(folder)
    for path in reversed(paths):
        try:
            return load_checkpoint(path)
        except InputError as error:
            tell(f"{error} Going back to the checkpoint before it.")
    if paths:
        raise InputError(f"{folder}: none of its {len(paths)} checkpoints is whole; remove the folder to start again.")
    return None


def load_together(folder: Path, *, processes: Processes, tell: Callable[[str], object] = print) -> Checkpoint | None:
    """`load_latest` by every process of a run, which must all go on from the same step.

    Args:
        folder: of the run's checkpoints, on a disk that all machines share.
        processes: of the run.
        tell: as in `load_latest`.

    Raises:
        InputError: as `load_latest`, for any process; or they found different steps.
    """
    with processes.together():
        saved = load_latest(folder, tell=tell)
    steps = processes.gather(0 if saved is None else saved.step)
    if len(set(steps)) > 1:
        raise InputError(
            f"{folder}: all processes must find the same checkpoint; by rank they are at steps {steps} (0: none). "
            "Give an --out that all machines share, and look whether one of them cannot read it."
        )
    return saved


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint, believing nothing that its hashes do not confirm.

    Raises:
        InputError: a file is missing or differs from what was written, or a tensor is not finite; names the file.
    """
    try:
        manifest = (path / "manifest.json").read_bytes()
        if hashlib.sha256(manifest).hexdigest().encode() != (path / "COMPLETE").read_bytes():
            raise InputError(f"{path / 'manifest.json'}: damaged (its sha256 is not the one in COMPLETE).")
        content = json.loads(manifest)
        for name, expected in content["files"].items():
            _check_file(path / name, expected)
        tensors = load_file(path / "state.safetensors")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read ({error}).") from error
    wrong = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if wrong:
        raise InputError(f"{path / 'state.safetensors'}: holds values that are not finite, in {', '.join(wrong[:3])}.")
    return Checkpoint(step=content["step"], tensors=tensors, facts=content["facts"])


def collect(module: nn.Module, optimizer: torch.optim.Optimizer, *, hold: bool = True) -> dict[str, Tensor]:
    """The trained tensors, their optimizer state, and running statistics, by name; the inverse of `restore`.

    Args:
        module: where its weights are spread over the processes, all of these must call.
        optimizer: over its trained parameters.
        hold: False: help to put spread tensors together, and keep nothing.
    """
    tensors = {}
    for name, parameter in _trained(module).items():
        found = {f"parameter/{name}": parameter, **_moments(optimizer, name, parameter)}
        for label, tensor in found.items():
            whole = whole_tensor(tensor.detach())
            if hold:
                tensors[label] = whole.cpu()
    if hold:
        running = running_statistics(module)
        tensors |= {f"buffer/{name}": buffer.detach().cpu().clone() for name, buffer in running.items()}
    return tensors


def _moments(optimizer: torch.optim.Optimizer, name: str, parameter: nn.Parameter) -> dict[str, Tensor]:
    return {f"optimizer/{key}/{name}": value for key, value in optimizer.state[parameter].items()}


@torch.no_grad()
def restore(module: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put collected tensors back, in place; the inverse of `collect`.

    A checkpoint without any running statistics was written before they were saved, by networks whose statistics never
    move: these then stay as they are.

    Raises:
        InputError: the tensors are not those of this module (missing, extra and mis-shaped ones are listed).
    """
    trained, running = _trained(module), running_statistics(module)
    parameters = {name.split("/", 1)[1]: tensor for name, tensor in tensors.items() if name.startswith("parameter/")}
    buffers = {name.split("/", 1)[1]: tensor for name, tensor in tensors.items() if name.startswith("buffer/")}
    _check_names(trained, parameters)
    if buffers:
        _check_names(running, buffers)
    for name, parameter in trained.items():
        parameter.copy_(spread_like(parameters[name], parameter))
    for name, buffer in buffers.items():
        running[name].copy_(buffer)
    for label, tensor in tensors.items():
        if not label.startswith("optimizer/"):
            continue
        _, key, name = label.split("/", 2)
        parameter = trained[name]
        is_spread = tensor.shape == parameter.shape  # the moments are, the counter of steps is not
        optimizer.state[parameter][key] = (
            spread_like(tensor, parameter) if is_spread else tensor.to(parameter.device)
        ).clone()


def digest_module(module: nn.Module) -> str:
    """The sha256 of every tensor of a module, so that a run never goes on from other weights than it began with."""
    return digest_state(module.state_dict())


def require_space(folder: Path, *, module: nn.Module, copies: int, existing: int = 0, product: int = 0) -> None:
    """Refuse to start where the checkpoints and the product would not fit.

    Args:
        folder: on the disk that is asked.
        module: three float tensors are saved for each of its trained ones (itself and two moments).
        copies: checkpoints that may exist at once.
        existing: of them, that an earlier part of the run has written; there is always one more to write.
        product: what is written once, at the end [bytes].

    Raises:
        InputError: bytes needed, bytes free.
    """
    state = sum(3 * parameter.numel() * parameter.element_size() for parameter in _trained(module).values())
    state += sum(buffer.numel() * buffer.element_size() for buffer in running_statistics(module).values())
    count = max(1, max(2, copies) - existing)
    need, free = count * state + product, shutil.disk_usage(folder).free
    if free < need:
        raise InputError(
            f"{folder}: needs {need:,} free bytes, for {count} checkpoints of {state:,} bytes and a model of "
            f"{product:,}; the disk has {free:,}. Free some, keep fewer checkpoints, or choose another folder."
        )


def versions() -> dict[str, str]:
    """What wrote a checkpoint, to be read by people where results differ."""
    names = ("foveate", "open_clip_torch", "timm")
    found = {name: metadata.version(name) for name in names if list(metadata.distributions(name=name))}
    return {"python": platform.python_version(), "torch": str(torch.__version__), **found}  # torch's names the CUDA


def _held_out_loss(path: Path) -> float:
    """Of a complete checkpoint; infinite where it has none, or where its manifest is damaged."""
    try:
        loss = json.loads((path / "manifest.json").read_bytes())["facts"]["held_out_loss"]
    except (OSError, ValueError, KeyError, TypeError):
        return math.inf
    return loss if isinstance(loss, float) and math.isfinite(loss) else math.inf


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def running_statistics(module: nn.Module) -> dict[str, Tensor]:
    """Mean, variance and counter of every BatchNorm whose scale is trained; of frozen ones nothing moves."""
    return {
        f"{name}.{key}" if name else key: buffer
        for name, part in module.named_modules()
        if isinstance(part, _BatchNorm) and part.weight is not None and part.weight.requires_grad
        for key, buffer in part.named_buffers(recurse=False)
    }


def _check_names(trained: Mapping[str, Tensor], found: dict[str, Tensor]) -> None:
    missing = sorted(trained.keys() - found.keys())
    extra = sorted(found.keys() - trained.keys())
    shaped = sorted(name for name in trained.keys() & found.keys() if trained[name].shape != found[name].shape)
    if missing or extra or shaped:
        raise InputError(
            "checkpoint: must hold exactly the tensors that this run trains; "
            f"missing {len(missing)} {missing[:3]}, extra {len(extra)} {extra[:3]}, "
            f"other shape {len(shaped)} {shaped[:3]}."
        )


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    sync_to_disk(path)


def _manifest(folder: Path, step: int, facts: dict[str, Any]) -> bytes:
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _digest(path)} for path in sorted(folder.iterdir())}
    return json.dumps({"step": step, "facts": facts, "files": files}, indent=1).encode()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_file(path: Path, expected: dict[str, Any]) -> None:
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise InputError(f"{path}: damaged (must have {expected['bytes']:,} bytes, has {size:,}).")
    if _digest(path) != expected["sha256"]:
        raise InputError(f"{path}: damaged (its sha256 is not the one in the manifest).")


def _cannot_write(path: Path, tensors: dict[str, Tensor], error: Exception) -> str:
    need = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    full = (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left" in str(error)
    advice = "The disk is full (ENOSPC): free some space" if full else "Check the folder"
    return f"{path}: cannot write a checkpoint of {need:,} bytes: {error}. {advice}, then run the same command again."
