"""How commands end early: status, the line that is printed, and the command to give again."""

import os
import signal
import sys
from dataclasses import dataclass

import pytest
import torch

from foveate.engine.stop import ended_in_order, keeping, signals_caught, until_stopped
from foveate.errors import ExhaustedError, StoppedError


@dataclass
class Flags:
    workers: int = 2
    batch: int = 8
    size: int | None = None
    precision: str = "float32"


@pytest.fixture(autouse=True)
def command(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["foveate", "embed", "my images"])


def ending(error: BaseException | signal.Signals, *, kept: str | None = None, config: object = None) -> int:
    """The exit status of a command that is ended by an error or a signal."""

    def work() -> None:
        if isinstance(error, signal.Signals):
            os.kill(os.getpid(), error)
        else:
            raise error

    with pytest.raises(SystemExit) as done, ended_in_order(Flags() if config is None else config):
        if kept is None:
            work()
        with keeping(lambda: "an outer line"), keeping(lambda: str(kept)):
            work()
    return int(str(done.value.code))


@pytest.mark.parametrize(
    ("number", "status", "name"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")]
)
def test_a_signal_ends_a_command_with_its_status_and_one_line(monkeypatch, capsys, number, status, name):
    before = signal.signal(number, signal.default_int_handler)  # whatever the shell set
    assert ending(number) == status
    assert signal.signal(number, before) == signal.default_int_handler
    said = f"foveate: stopped by {name}; nothing is kept. To start again, run:\n  foveate embed 'my images'\n"
    assert capsys.readouterr().err == said
    assert ending(StoppedError(number), kept="3 of 4 are in x") == status
    assert f"stopped by {name}; 3 of 4 are in x. To resume, run:\n" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")  # the first process speaks for all
    assert ending(StoppedError(number)) == status and capsys.readouterr().err == ""


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with ended_in_order(None):
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.signal(signal.SIGINT, before) == signal.SIG_IGN


def test_a_forked_process_ends_without_a_word(capfd):
    with ended_in_order(None):
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 143 and capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "memory ran out (MemoryError). Lower --workers (2) or --batch (8) or --size; "),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
            "memory ran out (OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB). Lower --batch (8) or "
            "--size, or add --precision bfloat16; ",
        ),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
            "DefaultCPUAllocator: can't allocate memory). Lower --workers (2)",
        ),
        (OSError(12, "Cannot allocate memory"), "memory ran out (OSError: [Errno 12] Cannot allocate memory)"),
        (ExhaustedError("a worker was killed"), "a worker was killed. Lower --workers (2) or --batch (8); "),
    ],
)
def test_memory_that_runs_out_is_one_line_with_the_flags_that_lower_it(capsys, error, said):
    assert ending(error) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("foveate: ") and said in printed and printed.count("\n") == 2, printed
    assert printed.endswith("nothing is kept. To start again, run:\n  foveate embed 'my images'\n")


def test_flags_that_are_lowest_or_absent_are_not_named(capsys):
    assert ending(ExhaustedError("x"), config=Flags(workers=0, batch=1), kept="kept") == 1
    assert "foveate: x. Free some memory; kept. To resume, run:" in capsys.readouterr().err
    assert ending(MemoryError(), config=object()) == 1
    assert "memory ran out (MemoryError). Free some memory; " in capsys.readouterr().err


def test_other_errors_are_left_alone():
    for error in (RuntimeError("size mismatch"), OSError(28, "No space left on device"), ValueError("out of memory")):
        with pytest.raises(type(error)), ended_in_order(None), keeping(lambda: "kept"):
            raise error
        assert not hasattr(error, "__notes__")


def test_a_signal_is_raised_between_two_items():
    done = []
    with pytest.raises(StoppedError) as stopped:
        for item in until_stopped(range(5)):
            if item == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            done.append(item)
    assert done == [0, 1, 2] and stopped.value.number == signal.SIGTERM
    assert list(until_stopped("ab")) == ["a", "b"]


def test_a_second_signal_has_its_usual_effect():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), signals_caught() as caught:
        os.kill(os.getpid(), signal.SIGINT)
        assert caught == [signal.SIGINT]
        os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)
