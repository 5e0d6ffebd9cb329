"""`ddp`: two gloo processes of one thread each beside one such process: equal gradients, overhead of a step, scaling.

    python benchmarks/ddp.py --model EVA02-B-16 --size 224 --batch 2

Wall seconds of a step (the best of the turns), `--batch` images in all for the strong scaling and a process for the
weak one. The processes of this machine share its memory's bandwidth, so two of them that never talk are slower than one
alone, too: the overhead is that of DistributedDataParallel over two that run at once without it. The gradients of both
processes must be equal to the bit.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from foveate.engine.optim import take_step
from foveate.types import Batch
from inputs import photographs, to_batch
from measure import arguments, passed_on, read, report
from sides import Ours, towers

KINDS = ("alone", "apart", "weak", "strong")


def work(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What one of the two processes does: steps of every kind in turns; the best seconds and some gradients of each.

    alone: the first process works while the other waits. apart: both at once, without a word between them. weak and
    strong: under DistributedDataParallel, with as many images a process, or half as many.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    student, teacher = towers(options.model)
    ours = Ours(student, teacher, size=options.size)
    wrapped = DistributedDataParallel(ours.objective, broadcast_buffers=False)
    samples = to_batch(photographs(2 * options.batch, crops=options.crops, data=options.data)).samples
    found: dict[str, dict[str, Any]] = {kind: {"seconds": [], "prints": []} for kind in KINDS}
    for turn in range(options.repeats + 1):
        for kind, one in found.items():
            count = options.batch // 2 if kind == "strong" else options.batch
            batch = Batch(samples[count * rank : count * (rank + 1)], [])
            dist.barrier()
            if kind == "alone" and rank:
                continue
            start = time.perf_counter()
            objective = wrapped if kind in ("weak", "strong") else ours.objective
            objective(batch).backward()
            one["prints"].append(fingerprint(ours))
            take_step(ours.optimizer, lr=0.0, weight_decay=0.0, partly=ours.partly)  # moves nothing, costs the same
            ours.optimizer.zero_grad(set_to_none=True)
            if turn:
                one["seconds"].append(time.perf_counter() - start)
    dist.barrier()
    dist.destroy_process_group()
    return {kind: {"seconds": min(one["seconds"], default=0.0), "prints": one["prints"]} for kind, one in found.items()}


def fingerprint(ours: Ours) -> list[str]:
    """A few numbers of every gradient, exactly; the whole of them would take as long as the step."""
    gradients = [parameter.grad for parameter in ours.objective.parameters() if parameter.grad is not None]
    return [value.hex() for one in gradients[:: max(1, len(gradients) // 16)] for value in one.flatten()[:8].tolist()]


def together(options: argparse.Namespace) -> dict[str, tuple[float, bool]]:
    """Start two processes and wait; of each kind the seconds of the slower one, and whether gradients were equal."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, *passed_on(options), "--repeats", str(options.repeats), "--work"]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            command, env={**os.environ, **shared, "RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate() for process in processes]
    for process, (_, error) in zip(processes, said, strict=True):
        if process.returncode:
            raise RuntimeError(f"a process ended with status {process.returncode}:\n{error[-2000:]}")
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in said)
    return {
        kind: (
            max(first[kind]["seconds"], second[kind]["seconds"]),
            first[kind]["prints"] == second[kind]["prints"],
        )
        for kind in KINDS
    }


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, size=224, crops=4)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = read(parser)
    if options.work:
        print(json.dumps(work(options)))
        return
    assert options.device == "cpu" and options.batch % 2 == 0, "need --device cpu and an even --batch"
    found = together(options)
    taken = {kind: seconds for kind, (seconds, _) in found.items()}
    assert found["weak"][1] and found["strong"][1], "the processes' gradients differ"
    assert not found["apart"][1], "without synchronisation the gradients cannot be equal: nothing was compared"
    report(
        "ddp",
        options,
        ours=taken["weak"],
        plain=taken["apart"],
        ratio=taken["weak"] / taken["apart"],
        unit="wall seconds a step of two processes; plain: at once but not synchronised",
        gradient_difference=0,
        one_process=taken["alone"],
        strong=taken["strong"],
        weak_efficiency=taken["alone"] / taken["weak"],
        strong_speedup=taken["alone"] / taken["strong"],
        note="two processes of one thread share the memory bandwidth of one machine",
    )


if __name__ == "__main__":
    main()
