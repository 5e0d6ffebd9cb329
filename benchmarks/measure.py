"""What every benchmark shares: its arguments, turns and clocks, memory of a process, and the one JSON line.

Two implementations run in one process and take turns, so that what else the machine does hits both; the best of the
turns counts. A CPU is read in CPU seconds, of this process and of the loader workers it has waited for; a GPU by its
own events. Set OMP_WAIT_POLICY=PASSIVE (`run.py` does): else torch's threads spin while they wait for one another, and
that counts as CPU seconds, six times the work's own where other programs want the same cores.
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

TARGETS: dict[str, tuple[float, float] | None] = {
    # of each row: at least (or, where marked, at most) this ratio; on a CPU, on a GPU; None: the ratio is only told
    "data_feed": (10.0, 10.0),
    "step_exact": (1.0, 1.6),
    "step_valid": (1.35, 1.45),
    "teacher": (1.10, 1.5),
    "eval_regions": (1.75, 1.75),
    "dense_infer": (1.0, 1.0),
    "account": (0.45, 0.45),  # at most; operators
    "peak_memory": (0.6, 0.6),  # at most
    "ddp": (1.07, 1.07),  # at most
    "recipe_time": (1.0, 1.6),
    "segmentation": None,
    "detector": None,
}
AT_MOST = ("account", "peak_memory", "ddp")


def arguments(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """The arguments all rows have; `defaults` are the row's own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="EVA02-B-16", help="an EVA-02 or ViT of open_clip, or a folder")
    parser.add_argument("--size", type=int, default=512, help="side of the student's square [pixels]")
    parser.add_argument("--batch", type=int, default=2, help="images a step")
    parser.add_argument("--crops", type=int, default=12, help="regions an image, at most 20 (paper: 13.0 on average)")
    parser.add_argument("--data", type=Path, help="a folder of images or a COCO root; default: images made here")
    parser.add_argument("--repeats", type=int, default=2, help="turns of each side, after one that does not count")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"), help="bfloat16: autocast")
    parser.add_argument("--compile", action="store_true", help="our towers under torch.compile")
    parser.add_argument("--threads", type=int, default=0, help="of torch on the CPU; 0: as many as torch takes")
    parser.set_defaults(**defaults)
    return parser


def read(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line and set the threads."""
    import torch

    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: there is no GPU here; take cpu.")
    return options


# ------------------------------------------------------------------------------------------------------------- clocks


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def seconds(function: Callable[[], Any], device: str) -> float:
    """Of one call: CPU seconds, or the GPU's own."""
    if device == "cpu":
        start = cpu_seconds()
        function()
        return cpu_seconds() - start
    import torch

    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def take_turns(sides: dict[str, Callable[[], Any]], *, repeats: int, device: str) -> dict[str, float]:
    """Seconds of each side, the best of its turns; a first turn does not count."""
    taken: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(repeats + 1):
        for side, function in sides.items():
            value = seconds(function, device)
            if turn or repeats == 0:
                taken[side].append(value)
    return {side: min(values) for side, values in taken.items()}


class Phases:
    """Adds up the seconds of named parts of a step."""

    def __init__(self, device: str) -> None:
        self.device, self.seconds = device, {}

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a block; a GPU is waited for, so a profile is not a timing."""
        start = self._now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - start

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return timed

    def _now(self) -> float:
        if self.device == "cpu":
            return time.process_time()
        import torch

        torch.cuda.synchronize()
        return time.perf_counter()


# ------------------------------------------------------------------------------------------------------------- memory


def rise(function: Callable[[], Any], device: str) -> int:
    """How far a call raises the peak of this process [bytes]; a call before it should have warmed everything up."""
    if device != "cpu":
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    import gc

    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak of building the model
    before = peak_resident()
    function()
    return peak_resident() - before


def peak_resident() -> int:
    """The most memory this process has held since the peak was forgotten [bytes]."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def alone(file: str, arguments: list[str]) -> dict[str, Any]:
    """Run a benchmark's file in a process of its own and read the JSON it prints last."""
    given_back = {"MALLOC_MMAP_THRESHOLD_": "262144"}  # else what building the model freed would hide what a call takes
    command = [sys.executable, file, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **given_back})
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def passed_on(options: argparse.Namespace) -> list[str]:
    """The common arguments as they stand, for a process that runs one side."""
    names = ("model", "size", "batch", "crops", "device", "precision", "threads", "data")
    words = [
        word for name in names if getattr(options, name) is not None for word in (f"--{name}", getattr(options, name))
    ]
    return [str(word) for word in words] + ["--compile"] * options.compile


# -------------------------------------------------------------------------------------------------------------- words


def report(row: str, options: argparse.Namespace, **facts: Any) -> dict[str, Any]:
    """Print the row's one JSON line: `ours`, `plain`, `ratio`, whether the target is reached, and how it was run."""
    import torch

    targets, ratio, reached = TARGETS[row], facts.get("ratio"), None
    target = None if targets is None else targets[options.device != "cpu"]
    if ratio is not None and target is not None:
        reached = bool(ratio <= target if row in AT_MOST else ratio >= target)
    line = {
        "row": row,
        **facts,
        "target": "none" if target is None else f"{'<=' if row in AT_MOST else '>='} {target:g}",
        "reached": reached,
        "model": str(options.model),
        "size": options.size,
        "batch": options.batch,
        "crops": options.crops,
        "data": "made here" if options.data is None else options.data.name,
        "device": device_name(options.device),
        "precision": options.precision,
        "compile": options.compile,
        "repeats": options.repeats,
        "threads": torch.get_num_threads(),
        "waiting": os.environ.get("OMP_WAIT_POLICY", "active").lower(),
        "versions": {name: version(name) for name in ("torch", "torchvision", "timm", "open_clip_torch", "pillow")},
        "python": platform.python_version(),
    }
    print(json.dumps(rounded(line)), flush=True)
    return line


def rounded(value: Any) -> Any:
    """Four significant digits."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {str(key): rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list | tuple) else value


def device_name(device: str) -> str:
    """What the machine calls the processor."""
    if device != "cpu":
        import torch

        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"
