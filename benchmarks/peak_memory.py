"""`peak_memory`: how far a training step raises the peak of memory, an image; ours beside the plain path.

    python benchmarks/peak_memory.py --model EVA02-B-16 --size 512

Each side runs alone in a process of its own, on a CPU by the process's resident peak (Linux only), on a GPU by torch's.
Weights and the optimizer's state are there already and are not counted, nor are the loaded samples; gradients are. The
smaller the ratio the better.
"""

import argparse
import json

from inputs import photographs, to_batch
from measure import alone, arguments, passed_on, read, report, rise
from sides import Ours, plain_images, plain_step, stacked, towers


def side(name: str, options: argparse.Namespace) -> int:
    """Bytes one side's second step adds."""
    student, teacher = towers(options.model, options.device)
    items = photographs(options.batch, crops=options.crops, data=options.data)
    bfloat16 = options.precision == "bfloat16"
    if name == "ours":
        batch = to_batch(items)
        ours = Ours(student, teacher, size=options.size, bfloat16=bfloat16, compiled=options.compile)
        ours.step(batch)
        return rise(lambda: ours.step(batch), options.device)
    plain = plain_step(student, teacher, bfloat16=bfloat16)
    samples = stacked(plain_images(items, teacher, size=options.size))
    plain.step(*samples)
    plain.optimizer.zero_grad(set_to_none=True)
    return rise(lambda: plain.step(*samples), options.device)


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--only", choices=("ours", "plain"), help=argparse.SUPPRESS)
    options = read(parser)
    if options.only:
        print(json.dumps(side(options.only, options)))
        return
    found = {name: int(alone(__file__, [*passed_on(options), "--only", name])) for name in ("ours", "plain")}
    a_image = {name: value / options.batch / 1e9 for name, value in found.items()}
    report("peak_memory", options, **a_image, ratio=found["ours"] / found["plain"], unit="GB an image")


if __name__ == "__main__":
    main()
