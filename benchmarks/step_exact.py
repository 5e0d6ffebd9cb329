"""`step_exact`: one training step, padding kept: teacher, student, backward, optimizer; ours beside the plain path.

    python benchmarks/step_exact.py --model EVA02-B-16 --size 512 --batch 2

The plain side starts from its loader's float32 crops, ours from uint8 images: cutting and resizing are in our time
and not in its (`data_feed` has the other half). Parity is checked first. The JSON line holds seconds a step, FLOP/s
are left to whoever knows the peak of the device.
"""

import torch

from inputs import photographs, to_batch
from measure import arguments, read, report, take_turns
from sides import Ours, copy_of, parity, plain_images, plain_step, stacked, towers


def main() -> None:
    """Measure and print."""
    options = read(arguments(__doc__))
    agreement = parity(options)
    student, teacher = towers(options.model, options.device)
    bfloat16 = options.precision == "bfloat16"
    items = photographs(options.batch, crops=options.crops, data=options.data)
    plain = plain_step(copy_of(student), copy_of(teacher), bfloat16=bfloat16)
    theirs, batch = stacked(plain_images(items, teacher, size=options.size)), to_batch(items)
    ours = Ours(student, teacher, size=options.size, bfloat16=bfloat16, compiled=options.compile)
    with torch.no_grad():
        losses = float(ours.loss(batch)), float(plain.loss(theirs[0].to(plain.device), *valid(plain, theirs)))
    taken = take_turns(
        {"ours": lambda: ours.step(batch), "plain": lambda: plain.step(*theirs)},
        repeats=options.repeats,
        device=options.device,
    )
    report(
        "step_exact",
        options,
        ours=taken["ours"],
        plain=taken["plain"],
        ratio=taken["plain"] / taken["ours"],
        unit="seconds a step",
        images_per_second=options.batch / taken["ours"],
        parity=agreement,
        losses={"ours": losses[0], "plain": losses[1]},
    )


def valid(plain, theirs):
    """Boxes and crops without the loader's padding, on the device."""
    return plain.valid(theirs[1].to(plain.device), theirs[2].to(plain.device))


if __name__ == "__main__":
    main()
