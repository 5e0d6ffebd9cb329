"""Checkpoints that survive being killed at any moment, and that are trusted only where every byte is right.

    FOLDER/step_00000200/state.safetensors   the trained tensors and the optimizer's (never alpha-mixed), and the
                                             running statistics of trained BatchNorms
                         manifest.json       step, facts of the run, size and sha256 of each file
                         COMPLETE            sha256 of the manifest; written last

A checkpoint is written to `step_00000200.partial`, synced, renamed, and marked complete; without the mark it does not
exist. Loading returns the newest complete one. Tensors are safetensors: nothing in a checkpoint can be executed.
The newest few are kept, and the one with the lowest `held_out_loss`. With several processes, the first one's running
statistics are saved: those of SyncBatchNorm are equal in all; plain ones differ, but training does not depend on them.
Deliberately absent: random states (the loop derives them from seed, process and step) and sharded writing.
"""

import fcntl
import hashlib
import json
import math
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
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
from foveate.io.files import is_disk_full, sync_to_disk, write_whole


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint that was read."""

    step: int  # steps done
    tensors: dict[str, Tensor]
    facts: dict[str, Any]  # the JSON that was saved with it


def save_checkpoint(
    folder: Path, *, step: int, tensors: dict[str, Tensor], facts: dict[str, Any], keep: int = 2
) -> Path:
    """Write one checkpoint; once it is complete, remove all but the newest `keep` and the best.

    Args:
        step: steps done.
        tensors: from `collect`.
        facts: small JSON, returned by `load_latest`; its `held_out_loss` is what `find_best` reads.
        keep: newest checkpoints to keep, this one included.

    Returns:
        The checkpoint's folder.

    Raises:
        InputError: it could not be written (a full disk, for example); the earlier checkpoints are untouched.
    """
    final = folder / f"step_{step:08d}"
    partial = final.with_name(final.name + ".partial")
    try:
        # leftovers of a killed save
        for leftover in (partial, final):
            if leftover.exists():
                shutil.rmtree(leftover)
        partial.mkdir(parents=True)
        # all files, synced
        path = partial / "state.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        sync_to_disk(path)
        files = {path.name: {"bytes": path.stat().st_size, "sha256": _digest(path)}}
        manifest = json.dumps({"step": step, "facts": facts, "files": files}, indent=1).encode()
        write_whole(partial / "manifest.json", manifest, sync=True)
        sync_to_disk(partial)
        # rename, then mark complete: without the mark the checkpoint does not exist
        partial.rename(final)
        sync_to_disk(folder)
        write_whole(final / "COMPLETE", hashlib.sha256(manifest).hexdigest().encode(), sync=True)
        sync_to_disk(final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        need = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        is_full = is_disk_full(error, folder)
        advice = "The disk is full (ENOSPC): free some space" if is_full else "Check the folder"
        raise InputError(
            f"{final}: cannot write a checkpoint of {need:,} bytes: {error}. {advice}, then run the same command again."
        ) from error
    # remove old ones, the mark first
    best = find_best(folder)
    for path in list_complete(folder)[:-keep]:
        if path != best:
            (path / "COMPLETE").unlink()
            shutil.rmtree(path)
    return final


def list_complete(folder: Path) -> list[Path]:
    """The complete checkpoints, oldest first."""
    return sorted(path.parent for path in folder.glob("step_*/COMPLETE"))


def newest_step(folder: Path) -> int:
    """The steps done of the newest complete checkpoint; 0 where there is none."""
    return max((int(path.name.removeprefix("step_")) for path in list_complete(folder)), default=0)


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one process at a time be in the block; the folder is created if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def find_best(folder: Path) -> Path | None:
    """The checkpoint with the lowest finite held-out loss, the earliest of equal ones.

    The loss is read from the checkpoints themselves, so that a kill leaves no wrong pointer.
    """
    losses = {path: _held_out_loss(path) for path in list_complete(folder)}
    return min((path for path in losses if losses[path] < math.inf), key=losses.__getitem__, default=None)


def _held_out_loss(path: Path) -> float:
    """Of a complete checkpoint; infinite where it has none, or where its manifest is damaged."""
    try:
        loss = json.loads((path / "manifest.json").read_bytes())["facts"]["held_out_loss"]
    except (OSError, ValueError, KeyError, TypeError):
        return math.inf
    return loss if isinstance(loss, float) and math.isfinite(loss) else math.inf


def clean_checkpoints(folder: Path) -> int:
    """Remove what a killed save left behind; the number of leftovers."""
    complete = set(list_complete(folder))
    leftovers = [path for path in folder.glob("step_*") if path not in complete]
    for path in leftovers:
        shutil.rmtree(path)
    return len(leftovers)


# ------------------------------------------------------------------------------------------------------------- reading


def load_latest(folder: Path, *, report: Callable[[str], object] = print) -> Checkpoint | None:
    """The newest checkpoint that is not damaged; None where none was ever saved.

    Args:
        report: prints which file of a skipped checkpoint is wrong, and how.

    Raises:
        InputError: all checkpoints are damaged.
    """
    paths = list_complete(folder)
    for path in reversed(paths):
        try:
            return load_checkpoint(path)
        except InputError as error:
            report(f"{error} Using the previous checkpoint instead.")
    if paths:
        raise InputError(
            f"{folder}: none of its {len(paths)} checkpoints is complete; remove the folder to start from scratch."
        )
    return None


def load_together(folder: Path, *, processes: Processes, report: Callable[[str], object] = print) -> Checkpoint | None:
    """`load_latest` in every process of a run, which must all resume from the same step.

    Raises:
        InputError: as `load_latest`, for any process; or the processes found different steps.
    """
    with processes.together():
        saved = load_latest(folder, report=report)
    steps = processes.gather(0 if saved is None else saved.step)
    if len(set(steps)) > 1:
        raise InputError(
            f"{folder}: all processes must find the same checkpoint; by rank they are at steps {steps} (0: none). "
            "Give an --out that all machines share, and check that each of them can read it."
        )
    return saved


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint and verify its hashes.

    Raises:
        InputError: a file is missing or differs from what was written, or a tensor is not finite; names the file.
    """
    try:
        manifest = (path / "manifest.json").read_bytes()
        if hashlib.sha256(manifest).hexdigest().encode() != (path / "COMPLETE").read_bytes():
            raise InputError(f"{path / 'manifest.json'}: damaged (its sha256 is not the one in COMPLETE).")
        content = json.loads(manifest)
        for name, expected in content["files"].items():
            file, size = path / name, (path / name).stat().st_size
            if size != expected["bytes"]:
                raise InputError(f"{file}: damaged (must have {expected['bytes']:,} bytes, has {size:,}).")
            if _digest(file) != expected["sha256"]:
                raise InputError(f"{file}: damaged (its sha256 is not the one in the manifest).")
        tensors = load_file(path / "state.safetensors")
    except InputError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({error}).") from error
    wrong = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if wrong:
        raise InputError(f"{path / 'state.safetensors'}: holds values that are not finite, in {', '.join(wrong[:3])}.")
    return Checkpoint(step=content["step"], tensors=tensors, facts=content["facts"])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --------------------------------------------------------------------------------------------------- what is in a state


def collect(module: nn.Module, optimizer: torch.optim.Optimizer, *, hold: bool = True) -> dict[str, Tensor]:
    """The trained tensors, their optimizer state, and running statistics, by name; the inverse of `restore`.

    Args:
        module: if its weights are sharded, all processes must call.
        hold: False: only take part in gathering sharded tensors; the result is empty.
    """
    tensors = {}
    for name, parameter in _trained(module).items():
        moments = {f"optimizer/{key}/{name}": value for key, value in optimizer.state[parameter].items()}
        for label, tensor in {f"parameter/{name}": parameter, **moments}.items():
            whole = whole_tensor(tensor.detach())
            if hold:
                tensors[label] = whole.cpu()
    if hold:
        running = running_statistics(module)
        tensors |= {f"buffer/{name}": buffer.detach().cpu().clone() for name, buffer in running.items()}
    return tensors


@torch.no_grad()
def restore(module: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Write collected tensors back, in place; the inverse of `collect`.

    A checkpoint without any running statistics is older than their saving; the module's then stay unchanged.

    Raises:
        InputError: the tensors are not those of this module (missing, extra and mis-shaped ones are listed).
    """
    trained, running = _trained(module), running_statistics(module)
    kinds: dict[str, dict[str, Tensor]] = {"parameter": {}, "buffer": {}, "optimizer": {}}
    for label, tensor in tensors.items():
        kind, _, name = label.partition("/")
        kinds.setdefault(kind, {})[name] = tensor
    _check_names(trained, kinds["parameter"])
    if kinds["buffer"]:
        _check_names(running, kinds["buffer"])
    for name, parameter in trained.items():
        parameter.copy_(spread_like(kinds["parameter"][name], parameter))
    for name, buffer in kinds["buffer"].items():
        running[name].copy_(buffer)
    for label, tensor in kinds["optimizer"].items():
        key, _, name = label.partition("/")
        parameter = trained[name]
        is_spread = tensor.shape == parameter.shape  # the moments are, the counter of steps is not
        state = spread_like(tensor, parameter) if is_spread else tensor.to(parameter.device)
        optimizer.state[parameter][key] = state.clone()


def _check_names(expected: Mapping[str, Tensor], saved: dict[str, Tensor]) -> None:
    missing = sorted(expected.keys() - saved.keys())
    extra = sorted(saved.keys() - expected.keys())
    shaped = sorted(name for name in expected.keys() & saved.keys() if expected[name].shape != saved[name].shape)
    if missing or extra or shaped:
        raise InputError(
            "checkpoint: must hold exactly the tensors that this run trains; "
            f"missing {len(missing)} {missing[:3]}, extra {len(extra)} {extra[:3]}, "
            f"other shape {len(shaped)} {shaped[:3]}."
        )


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def running_statistics(module: nn.Module) -> dict[str, Tensor]:
    """Mean, variance and counter of every BatchNorm whose scale is trained; those of frozen ones never change."""
    return {
        f"{name}.{key}" if name else key: buffer
        for name, part in module.named_modules()
        if isinstance(part, _BatchNorm) and part.weight is not None and part.weight.requires_grad
        for key, buffer in part.named_buffers(recurse=False)
    }


def digest_module(module: nn.Module) -> str:
    """The sha256 over all tensors of a module, so that a run is never resumed with other initial weights."""
    return digest_state(module.state_dict())


def require_space(folder: Path, *, module: nn.Module, copies: int, existing: int = 0, product: int = 0) -> None:
    """Refuse to start where the checkpoints and the product would not fit on the disk.

    Args:
        module: three float tensors are saved for each of its trained ones (itself and two moments).
        copies: checkpoints that may exist at once.
        existing: of them, those that are written already; at least one more will be.
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
    """The packages that wrote a checkpoint; torch's version names the CUDA."""
    names = ("foveate", "open_clip_torch", "timm")
    installed = {name: metadata.version(name) for name in names if list(metadata.distributions(name=name))}
    return {"python": platform.python_version(), "torch": str(torch.__version__), **installed}
