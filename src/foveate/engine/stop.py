"""How commands end early: by a signal, or where memory runs out.

`ended_in_order` is around every command: one line says what happened and what is kept, and the command to give again
follows. The exit status is 143 after SIGTERM, 130 after Ctrl-C, and 1 where memory ran out or a process died. Loops
that keep what they did take signals between two of their steps: `signals_caught`, or `until_stopped`.
"""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from foveate.errors import ExhaustedError, StoppedError, ran_out_of_memory

Item = TypeVar("Item")
SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def signals_caught() -> Iterator[list[signal.Signals]]:
    """Record SIGTERM and SIGINT in a list instead of ending the process; a second one has its usual effect.

    Not those that are ignored, as SIGINT in the background of a script; nor in a thread, which cannot set handlers.
    """
    caught: list[signal.Signals] = []
    is_main = threading.current_thread() is threading.main_thread()
    current = {number: signal.getsignal(number) for number in SIGNALS if is_main}
    handlers = {number: handler for number, handler in current.items() if handler != signal.SIG_IGN}

    def record(number: int, frame: FrameType | None) -> None:
        caught.append(signal.Signals(number))
        signal.signal(number, handlers[signal.Signals(number)])

    for number in handlers:
        signal.signal(number, record)
    try:
        yield caught
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def until_stopped(items: Iterable[Item]) -> Iterator[Item]:
    """Pass items on until a signal arrives, so that the work on each of them is done or not begun.

    Raises:
        StoppedError: a signal arrived, while the next item was awaited or the last one was worked on.
    """
    with signals_caught() as caught:
        for item in items:
            if caught:
                break
            yield item
    if caught:
        raise StoppedError(caught[0])


@contextmanager
def keeping(kept: Callable[[], str], *, verb: str = "resume") -> Iterator[None]:
    """Add to what ends the block early what is kept, for the line that `ended_in_order` prints; the innermost counts.

    Args:
        kept: called when it happened.
        verb: what the same command does then: resume, or start again.
    """
    try:
        yield
    except (KeyboardInterrupt, Exception) as error:
        if isinstance(error, KeyboardInterrupt) or is_exhausted(error):
            error.add_note(f"{kept()}. To {verb}, run")
        raise


@contextmanager
def ended_in_order(config: Any) -> Iterator[None]:
    """Run a command so that a signal, or memory that runs out, ends it with one line and the command to give again.

    Args:
        config: its flags; those that lower the memory are named.

    Raises:
        SystemExit: 143 after SIGTERM, 130 after Ctrl-C, 1 where memory ran out or a process died.
    """
    handlers = _raise_at_signals()
    try:
        yield
    except KeyboardInterrupt as stopped:
        number = stopped.number if isinstance(stopped, StoppedError) else signal.SIGINT
        if os.environ.get("RANK", "0") == "0":  # the first process speaks for all
            _print(f"stopped by {'Ctrl-C' if number == signal.SIGINT else number.name};", stopped)
        raise SystemExit(128 + number) from None
    except Exception as error:
        if not is_exhausted(error):
            raise
        _print(f"{describe_exhaustion(error)}. {lowering(config, error)}", error)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            sys.stdout.flush()
            os._exit(1)  # at once, since this process would wait for the others
        raise SystemExit(1) from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _raise_at_signals() -> dict[signal.Signals, Any]:
    """Let SIGTERM and SIGINT raise `StoppedError`, once; the handlers before."""
    if threading.current_thread() is not threading.main_thread():  # Python has signals in the main thread only
        return {}
    owner = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked process that has not set its own handlers yet
            os._exit(128 + number)
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
        raise StoppedError(signal.Signals(number))

    # not where they are ignored, as SIGINT in the background of a script
    handlers = {number: handler for number in SIGNALS if (handler := signal.getsignal(number)) != signal.SIG_IGN}
    for number in handlers:
        signal.signal(number, stop)
    return handlers


def _print(message: str, error: BaseException) -> None:
    """Print on one line what happened and what is kept, and below it the command to give again."""
    kept = getattr(error, "__notes__", ["nothing is kept. To start again, run"])[0]
    print(f"foveate: {message} {resume_command(kept)}", file=sys.stderr, flush=True)


def resume_command(start: str = "To resume, run") -> str:
    """How to resume: the command line that started this run, torchrun included."""
    size, nodes = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    local = os.environ.get("LOCAL_WORLD_SIZE", str(size))
    many = ["--nnodes", str(nodes)] if nodes > 1 else []
    program = ["torchrun", *many, "--nproc-per-node", local, "-m", "foveate.cli.main"] if size > 1 else ["foveate"]
    where = f" on each of the {nodes} nodes (with the same --rdzv options as before)" if nodes > 1 else ""
    return f"{start}{where}:\n  {shlex.join([*program, *sys.argv[1:]])}"


# -------------------------------------------------------------------------------------------------- memory that ran out


def is_exhausted(error: BaseException) -> bool:
    """Whether memory ran out, or a process died."""
    return isinstance(error, ExhaustedError) or ran_out_of_memory(error)


def describe_exhaustion(error: BaseException) -> str:
    """What ran out, on one line without a full stop."""
    if isinstance(error, ExhaustedError):
        return str(error)
    first = next(iter(str(error).splitlines()), "").strip().rstrip(".")
    return f"memory ran out ({type(error).__name__}{f': {first:.200}' if first else ''})"


def lowering(config: Any, error: BaseException) -> str:
    """Which of the flags that a command has would make it need less memory; ends a line, or "" where it has none."""
    is_gpu = type(error).__name__ == "OutOfMemoryError"
    is_decoding = isinstance(error, ExhaustedError)
    lower, add = [], []
    for name, least in {"workers": 0, "jobs": 1, "batch": 1, "size": 1, "max_regions": 1}.items():
        value = getattr(config, name, None)  # a flag may have no value yet, or several
        is_lowest = isinstance(value, int) and value <= least
        is_apart = (name in ("workers", "jobs") and is_gpu) or (name in ("size", "max_regions") and is_decoding)
        if hasattr(config, name) and not is_lowest and not is_apart:
            lower.append(f"--{name.replace('_', '-')}{f' ({value})' if isinstance(value, int) else ''}")
    if getattr(config, "checkpointing", True) is False and not is_decoding:
        add.append("--checkpointing")
    if getattr(config, "precision", None) == "float32" and is_gpu:
        add.append("--precision bfloat16")
    parts = [f"{verb} {' or '.join(flags)}" for verb, flags in (("lower", lower), ("add", add)) if flags]
    return f"{', or '.join(parts)};".capitalize() if parts else "Free some memory;"
