"""`recipe_time`: how long the recipe "batch 2, 44,358 steps" takes, EXTRAPOLATED from a few steps; and where it goes.

    python benchmarks/recipe_time.py --model EVA02-B-16 --size 1024 --device cuda --precision bfloat16

Steps are whole ones of our side, images loaded by a worker beside it. The profile times the parts of other steps, the
device being waited for after each: data (in the worker: it hides behind the step), teacher, student's forward, the rest
of the forward (cutting, resizing, pooling, loss), backward, optimizer. On a CPU seconds are CPU seconds of all
threads, and hours those divided by the threads.
"""

import time
from typing import Any

import torch

from inputs import photographs, to_batch
from measure import Phases, arguments, read, report, take_turns
from sides import Ours, plain_images, plain_step, stacked, towers

STEPS = 44_358


def profile(ours: Ours, batch: Any, phases: Phases, *, repeats: int) -> dict[str, float]:
    """Seconds of each part of a step, averaged over the turns."""
    student, teacher = ours.objective.student, ours.objective.teacher
    before = student.encode_dense, teacher.encode_image
    student.encode_dense = phases.timed("student", before[0])
    teacher.encode_image = phases.timed("teacher", before[1])
    for _ in range(repeats):
        with phases.part("forward"):
            loss = ours.loss(batch)
        with phases.part("backward"):
            loss.backward()
        with phases.part("optimizer"):
            ours.update()
    student.encode_dense, teacher.encode_image = before
    parts = {name: value / repeats for name, value in phases.seconds.items()}
    parts["rest of forward"] = parts.pop("forward") - parts["student"] - parts["teacher"]
    return parts


def main() -> None:
    """Measure, extrapolate and print."""
    parser = arguments(__doc__, crops=13)
    parser.add_argument("--tokens", choices=("all", "valid"), default="all", help="valid: leave padding out")
    options = read(parser)
    student, teacher = towers(options.model, options.device)
    bfloat16 = options.precision == "bfloat16"
    items = photographs(options.batch, crops=options.crops, data=options.data)
    start = time.process_time()
    batch = to_batch(items)
    data = time.process_time() - start
    plain = plain_step(*towers(options.model, options.device), bfloat16=bfloat16)
    theirs = stacked(plain_images(items, teacher, size=options.size))
    ours = Ours(
        student, teacher, size=options.size, bfloat16=bfloat16, valid_tokens=options.tokens == "valid",
        compiled=options.compile,
    )  # fmt: skip
    taken = take_turns(
        {"ours": lambda: ours.step(batch), "plain": lambda: plain.step(*theirs)},
        repeats=options.repeats,
        device=options.device,
    )
    parts = {"data": data, **profile(ours, batch, Phases(options.device), repeats=max(1, options.repeats))}
    share = torch.get_num_threads() if options.device == "cpu" else 1
    hours = {side: value * STEPS / share / 3600 for side, value in taken.items()}
    report(
        "recipe_time",
        options,
        **hours,
        ratio=taken["plain"] / taken["ours"],
        unit=f"hours for {STEPS:,} steps, extrapolated",
        seconds_a_step=taken,
        profile_seconds=parts,
        tokens=options.tokens,
    )


if __name__ == "__main__":
    main()
