"""`dense_infer`: the dense map of one large picture, beside what open_clip offers for it (`forward_intermediates`).

    python benchmarks/dense_infer.py --model EVA02-B-16 --size 1024 --repeats 3

Both sides hold the same random weights and give one CLIP embedding a patch: ours by `encode_dense` (the paper's head:
no attention in the last block), theirs by the last block's tokens, normed and projected. Sides take turns in one
process, timed in CPU seconds on a CPU and by events on a GPU; memory is how far a second call raises the peak of a
process that runs one side alone (on a CPU: Linux only). Prints one JSON line.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path

SIDES = ("saccade", "open_clip")


def build(model: str, size: int, device: str, precision: str, sides: tuple[str, ...]) -> dict:
    """Both sides' functions from a batch of pictures to the embeddings of its patches."""
    from copy import deepcopy

    import torch

    from saccade.clip.load import load

    clip = load(model, seed=0, device=device).to(getattr(torch, precision))
    made = {}
    if "saccade" in sides:
        made["saccade"] = lambda images: clip.encode_dense(images, normalize=False)
    if "compiled" in sides:
        made["compiled"] = torch.compile(lambda images: clip.encode_dense(images, normalize=False))
    if "open_clip" in sides:
        visual = deepcopy(clip.visual) if len(sides) > 1 else clip.visual
        visual.trunk.set_input_size((size, size))  # open_clip's towers are bound to one size

        def theirs(images):
            maps = visual.forward_intermediates(
                images, indices=1, normalize_intermediates=True, intermediates_only=True, output_fmt="NLC"
            )
            return visual.trunk.head(maps["image_intermediates"][0])

        made["open_clip"] = theirs
    return made


def measure(function, images, device: str) -> float:
    """Seconds of one call: CPU seconds of this process, or the GPU's own."""
    import torch

    if device == "cpu":
        start = time.process_time()
        function(images)
        return time.process_time() - start
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    function(images)
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def peak_memory(side: str, options: argparse.Namespace) -> int:
    """Bytes a side needs beyond its built model, from a process of its own."""
    command = [sys.executable, __file__, "--model", options.model, "--size", str(options.size), "--only", side]
    command += ["--device", options.device, "--batch", str(options.batch), "--precision", options.precision]
    given_back = {"MALLOC_MMAP_THRESHOLD_": "262144"}  # else what building the model freed would hide what a call takes
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **given_back})
    return int(done.stdout)


def run_alone(options: argparse.Namespace) -> int:
    """Run one side once and say how far its memory rose."""
    import torch

    [function] = build(options.model, options.size, options.device, options.precision, (options.only,)).values()
    images = pictures(options)
    with torch.inference_mode():
        function(images)  # loads the library's code, which is nobody's tensors
        if options.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            function(images)
            return torch.cuda.max_memory_allocated() - before
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak of building the model
        before = peak_resident()
        function(images)
        return peak_resident() - before


def peak_resident() -> int:
    """The most memory this process has held since the peak was forgotten [bytes]."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def pictures(options: argparse.Namespace):
    """A batch of random numbers."""
    import torch

    shape = (options.batch, 3, options.size, options.size)
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return numbers.to(options.device, getattr(torch, options.precision))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="EVA02-B-16", help="an EVA-02 of open_clip")
    parser.add_argument("--size", type=int, default=1024, help="side of the square picture [pixels]")
    parser.add_argument("--batch", type=int, default=1, help="pictures a call")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side, after one that does not count")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--compile", action="store_true", help="also measure our side under torch.compile")
    parser.add_argument("--only", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(run_alone(options))
        return
    import torch

    memory = {side: peak_memory(side, options) for side in SIDES}
    sides = (*SIDES, "compiled") if options.compile else SIDES
    functions = build(options.model, options.size, options.device, options.precision, sides)
    images, seconds = pictures(options), {side: [] for side in functions}
    with torch.inference_mode():
        for turn in range(options.repeats + 1):
            for side, function in functions.items():
                taken = measure(function, images, options.device)
                if turn:
                    seconds[side].append(taken)
    best = {side: min(values) for side, values in seconds.items()}
    print(json.dumps({
        "benchmark": "dense_infer", "model": options.model, "size": options.size, "batch": options.batch,
        "device": options.device, "precision": options.precision, "threads": torch.get_num_threads(),
        "seconds": {side: round(value, 3) for side, value in best.items()},
        "peak_megabytes": {side: round(value / 1e6) for side, value in memory.items()},
        "time_ratio": round(best["open_clip"] / best["saccade"], 3),
        "memory_ratio": round(memory["open_clip"] / max(1, memory["saccade"]), 3),
        "torch": torch.__version__,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
