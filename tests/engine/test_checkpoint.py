"""Checkpoints survive a kill at any moment, and any damaged byte is detected."""

import ctypes
import errno
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from foveate.engine import checkpoint
from foveate.engine.checkpoint import (
    clean_checkpoints,
    collect,
    digest_module,
    find_best,
    list_complete,
    load_latest,
    load_together,
    require_space,
    restore,
    save_checkpoint,
)
from foveate.engine.distributed import Processes
from foveate.errors import InputError


def state(step: int) -> dict[str, torch.Tensor]:
    return {"parameter/a": torch.full((40, 50), float(step)), "optimizer/step/a": torch.tensor(float(step))}


def save(folder: Path, step: int, keep: int = 2) -> Path:
    return save_checkpoint(folder, step=step, tensors=state(step), facts={"bad": {"7": "cut short"}}, keep=keep)


def is_whole(folder: Path) -> int:
    """The step of the newest whole checkpoint, after checking that its tensors are that step's."""
    loaded = load_latest(folder, report=str)
    assert loaded is not None
    for name, tensor in state(loaded.step).items():
        assert torch.equal(loaded.tensors[name], tensor)
    return loaded.step


def test_saved_checkpoints_are_loaded_and_old_ones_removed(tmp_path):
    assert load_latest(tmp_path / "none") is None
    for step in (2, 4, 6):
        save(tmp_path, step)
    assert [path.name for path in list_complete(tmp_path)] == ["step_00000004", "step_00000006"]
    assert is_whole(tmp_path) == 6
    loaded = load_latest(tmp_path)
    assert loaded is not None and loaded.facts == {"bad": {"7": "cut short"}}


def trained(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    module[0].bias.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.1, fused=True)
    for _ in range(seed):
        module(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return module, optimizer


def test_collect_and_restore_are_inverses(tmp_path):
    module, optimizer = trained(seed=3)
    save_checkpoint(tmp_path, step=3, tensors=collect(module, optimizer), facts={})
    other, other_optimizer = trained(seed=1)
    loaded = load_latest(tmp_path)
    assert loaded is not None and "parameter/0.bias" not in loaded.tensors  # frozen: not saved
    restore(other, other_optimizer, loaded.tensors)
    for name, tensor in collect(module, optimizer).items():
        assert torch.equal(collect(other, other_optimizer)[name], tensor), name
    sizes = {key: value.dtype for key, value in other_optimizer.state[other[0].weight].items()}
    assert sizes == {key: value.dtype for key, value in optimizer.state[module[0].weight].items()}


def normed(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A frozen BatchNorm before a trained one."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4), nn.BatchNorm1d(4))
    module[0].requires_grad_(False)
    return module, torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.1, fused=True)


def move(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        module(torch.randn(5, 3, generator=generator)).exp().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_running_statistics_are_resumed_to_the_bit(tmp_path):
    module, optimizer = normed(seed=0)
    module[0].eval()
    move(module, optimizer, range(2))
    save_checkpoint(tmp_path, step=2, tensors=collect(module, optimizer), facts={})
    move(module, optimizer, range(2, 4))
    loaded = load_latest(tmp_path)
    assert loaded is not None
    buffers = sorted(name for name in loaded.tensors if name.startswith("buffer/"))  # of the trained one alone
    assert buffers == [f"buffer/2.{key}" for key in ("num_batches_tracked", "running_mean", "running_var")]
    other, other_optimizer = normed(seed=1)
    other[0].eval()
    restore(other, other_optimizer, loaded.tensors)
    move(other, other_optimizer, range(2, 4))
    assert other[2].num_batches_tracked == 4 and not torch.equal(other[2].running_mean, torch.zeros(4))
    for name, tensor in collect(module, optimizer).items():
        assert torch.equal(collect(other, other_optimizer)[name], tensor), name


def test_a_checkpoint_from_before_statistics_were_saved_still_loads():
    module, optimizer = normed(seed=0)
    move(module, optimizer, range(2))
    tensors = collect(module, optimizer)
    old = {name: tensor for name, tensor in tensors.items() if not name.startswith("buffer/")}
    other, other_optimizer = normed(seed=1)
    restore(other, other_optimizer, old)
    assert torch.equal(other[1].weight, module[1].weight) and other[2].num_batches_tracked == 0
    with pytest.raises(InputError, match=r"missing 1 \['2.running_var'\], extra 0"):
        restore(other, other_optimizer, {name: one for name, one in tensors.items() if "running_var" not in name})


def test_restore_refuses_another_module():
    module, optimizer = trained(seed=1)
    tensors = collect(module, optimizer)
    wrong = {
        "parameter/0.weight": torch.zeros(9, 9),
        "parameter/new": torch.zeros(1),
        "parameter/1.bias": tensors["parameter/1.bias"],
    }
    with pytest.raises(InputError, match=r"missing 1 \['1.weight'\], extra 1 \['new'\], other shape 1 \['0.weight'\]"):
        restore(module, optimizer, wrong)


class Killed(BaseException):
    """Stands for kill -9: nothing in the code under test may catch it."""


def test_a_kill_at_any_file_operation_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    """Every call that touches the disk is, in turn, the last one that happens; some leave it half done."""
    names = [(os, "fsync"), (os, "open"), (Path, "mkdir"), (Path, "rename"), (Path, "open"), (Path, "unlink")]
    names.append((checkpoint, "save_file"))
    for killed_at in range(100):
        folder = tmp_path / str(killed_at)
        save(folder, 1)
        calls, finished = 0, False
        with monkeypatch.context() as patch:

            def watched(original, last=killed_at):
                def call(*args, **kwargs):
                    nonlocal calls
                    calls += 1
                    if calls - 1 == last:
                        if original is save_file:
                            Path(args[1]).write_bytes(b"half")
                        raise Killed
                    return original(*args, **kwargs)

                return call

            for owner, name in names:
                patch.setattr(owner, name, watched(getattr(owner, name)))
            with suppress(Killed):
                save(folder, 2, keep=1)
                finished = True
        assert is_whole(folder) in (1, 2)
        clean_checkpoints(folder)
        assert is_whole(folder) in (1, 2)
        assert set(folder.iterdir()) == set(list_complete(folder))  # no leftovers
        save(folder, 3, keep=1)  # and the run goes on
        assert [path.name for path in folder.iterdir()] == ["step_00000003"]
        if finished:  # nothing was killed: every operation had its turn
            break
    assert finished and killed_at >= 10


def _save_for_ever(folder: Path) -> None:
    torch.set_num_threads(1)
    for step in range(2, 100_000):
        save(folder, step)


@pytest.mark.parametrize("seed", range(8))
def test_kill_9_while_saving(tmp_path, seed):
    save(tmp_path, 1)
    child = multiprocessing.get_context("fork").Process(target=_save_for_ever, args=(tmp_path,))
    child.start()
    time.sleep(0.05 + 0.1 * random.Random(seed).random())
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    newest = int(list_complete(tmp_path)[-1].name[5:])
    assert is_whole(tmp_path) == newest
    clean_checkpoints(tmp_path)
    assert set(tmp_path.iterdir()) == set(list_complete(tmp_path))


def test_any_flipped_bit_is_detected_and_the_previous_checkpoint_used(tmp_path):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    draw = random.Random(0)
    for file in ("state.safetensors", "manifest.json", "COMPLETE"):
        whole = (newest / file).read_bytes()
        for _ in range(34):
            damaged = bytearray(whole)
            damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            (newest / file).write_bytes(damaged)
            messages = []
            loaded = load_latest(tmp_path, report=messages.append)
            assert loaded is not None and loaded.step == 1
            assert len(messages) == 1 and "step_00000002" in messages[0] and "damaged" in messages[0]
            assert "Using the previous checkpoint instead" in messages[0]
        (newest / file).write_bytes(whole)
    assert is_whole(tmp_path) == 2


def test_a_truncated_or_missing_file_is_detected(tmp_path):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    whole = (newest / "state.safetensors").read_bytes()
    (newest / "state.safetensors").write_bytes(whole[:-1])
    assert is_whole(tmp_path) == 1
    (newest / "state.safetensors").unlink()
    assert is_whole(tmp_path) == 1


def test_only_damaged_checkpoints_are_an_error_and_not_a_fresh_start(tmp_path):
    (save(tmp_path, 1) / "state.safetensors").unlink()
    with pytest.raises(InputError, match="none of its 1 checkpoints is complete"):
        load_latest(tmp_path, report=str)


def test_values_that_are_not_finite_are_refused(tmp_path):
    save(tmp_path, 1)
    save_checkpoint(tmp_path, step=2, tensors={"parameter/a": torch.tensor([1.0, float("nan")])}, facts={})
    messages = []
    loaded = load_latest(tmp_path, report=messages.append)
    assert loaded is not None and loaded.step == 1
    assert "not finite, in parameter/a" in messages[0]


def test_a_full_disk_is_named_and_the_previous_checkpoint_stays(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def full(tensors, path):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    # 2000 + 1 float32 = 8004 bytes
    with pytest.raises(InputError, match=r"8,004 bytes.*No space left.*ENOSPC.*same command"):
        save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    assert is_whole(tmp_path) == 1


def in_a_child(act) -> int:
    """Run in a forked process that may change its own mounts and limits; its exit status."""
    child = multiprocessing.get_context("fork").Process(target=act)
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def save_until_full(folder: Path, output: Path, make_full) -> None:
    """Save one checkpoint, then one that does not fit."""
    torch.set_num_threads(1)
    save(folder, 1)
    (before,) = (checkpoint.hashlib.sha256((path / "state.safetensors").read_bytes()) for path in list_complete(folder))
    make_full()
    try:
        large = {"parameter/a": torch.zeros(1000, 1000)}  # 4,000,000 bytes
        save_checkpoint(folder, step=2, tensors=large, facts={})
    except InputError as error:
        output.write_text(str(error))
    (after,) = (checkpoint.hashlib.sha256((path / "state.safetensors").read_bytes()) for path in folder.iterdir())
    assert after.digest() == before.digest() and is_whole(folder) == 1
    save(folder, 2)  # smaller: there is room for it, as after freeing some


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's mounts")
def test_a_really_full_disk(tmp_path):
    """A file system of 1 MB, seen by the child alone."""
    output, disk = tmp_path / "output.txt", tmp_path / "disk"
    disk.mkdir()

    def act() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        new_mounts, private = 0x20000, 0x44000  # CLONE_NEWNS; MS_REC | MS_PRIVATE
        if libc.unshare(new_mounts) or libc.mount(None, b"/", None, private, None):
            os._exit(77)
        if libc.mount(b"none", os.fsencode(disk), b"tmpfs", 0, b"size=1m"):
            os._exit(77)
        with pytest.raises(InputError, match=r"needs 24,000,000 free bytes.*the disk has 1,048,576"):
            # 4 MB a copy of a weight, and two moments: 12 MB a checkpoint
            require_space(disk, module=nn.Linear(1000, 1000, bias=False), copies=1)
        save_until_full(disk / "checkpoints", output, lambda: None)

    status = in_a_child(act)
    if status == 77:
        pytest.skip("this process may not mount")
    assert status == 0
    assert "4,000,000 bytes" in output.read_text() and "The disk is full (ENOSPC)" in output.read_text()


def test_a_file_size_limit(tmp_path):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    assert in_a_child(lambda: save_until_full(tmp_path / "run", tmp_path / "output.txt", limit)) == 0
    assert "4,000,000 bytes" in (tmp_path / "output.txt").read_text()


def test_the_best_checkpoint_is_kept_however_old(tmp_path):
    for step, loss in enumerate((3.0, 1.0, None, 1.0, 2.0, float("nan")), start=1):
        facts = {} if step == 5 else {"held_out_loss": loss}
        save_checkpoint(tmp_path, step=step, tensors=state(step), facts=facts, keep=1)
    assert find_best(tmp_path) == tmp_path / "step_00000002"  # the earlier of two equal ones
    assert [path.name for path in list_complete(tmp_path)] == ["step_00000002", "step_00000006"]
    assert is_whole(tmp_path) == 6  # to go on from: the newest, not the best
    save_checkpoint(tmp_path, step=7, tensors=state(7), facts={"held_out_loss": 0.5}, keep=1)
    assert [path.name for path in list_complete(tmp_path)] == ["step_00000007"]
    (tmp_path / "step_00000007" / "manifest.json").write_text("{")
    assert find_best(tmp_path) is None and find_best(tmp_path / "none") is None


def test_a_run_that_would_not_fit_is_refused(tmp_path, monkeypatch):
    module = nn.Linear(10, 10, bias=False)  # 100 float32 and two moments: 1200 bytes
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 3599}))
    with pytest.raises(InputError, match=r"needs 3,600 free bytes.*has 3,599"):
        require_space(tmp_path, module=module, copies=3)
    require_space(tmp_path, module=module, copies=2)
    with pytest.raises(InputError, match=r"needs 2,856 free bytes.*2 checkpoints of 1,200 bytes and a model of 456"):
        monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 2855}))
        require_space(tmp_path, module=module, copies=2, product=456)


def test_a_run_that_fitted_is_resumed(tmp_path, monkeypatch):
    module = nn.Linear(10, 10, bias=False)  # 1200 bytes a checkpoint, as above
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 3600 - 2 * 1200}))
    require_space(tmp_path, module=module, copies=3, existing=2)  # of 3,600 bytes the first two took 2,400
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1199}))
    with pytest.raises(InputError, match="needs 1,200 free bytes, for 1 checkpoints of"):
        require_space(tmp_path, module=module, copies=3, existing=5)  # fewer are requested now; one is still to come


class Apart(Processes):
    """One of two processes, the other of which sees an empty folder."""

    def gather(self, thing):
        return [thing, 0 if isinstance(thing, int) else None]


def test_processes_that_find_different_checkpoints_are_refused(tmp_path):
    apart = Apart(0, 2, torch.device("cpu"))
    assert load_together(tmp_path, processes=apart) is None
    save(tmp_path, 4)
    with pytest.raises(InputError, match=r"by rank they are at steps \[4, 0\] .* an --out that all machines share"):
        load_together(tmp_path, processes=apart)


def test_the_digest_depends_on_every_value_and_name():
    module = nn.Linear(3, 2)
    before = digest_module(module)
    assert digest_module(module) == before
    with torch.no_grad():
        module.bias[1] += 1e-6
    assert digest_module(module) != before
