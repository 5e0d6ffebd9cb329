"""`step_valid`: the training step without the student's padding tokens, beside the same step with them.

    python benchmarks/step_valid.py --model EVA02-B-16 --size 512

Both sides are ours: leaving padding out changes the method (patches no longer see it), so it is a named option. A
image of 4:3 fills three quarters of its square.
"""

from inputs import photographs, to_batch
from measure import arguments, read, report, take_turns
from sides import Ours, copy_of, towers


def main() -> None:
    """Measure and print."""
    options = read(arguments(__doc__))
    student, teacher = towers(options.model, options.device)
    batch = to_batch(photographs(options.batch, crops=options.crops, data=options.data))
    common = {"size": options.size, "bfloat16": options.precision == "bfloat16", "compiled": options.compile}
    whole = Ours(copy_of(student), copy_of(teacher), **common)
    ours = Ours(student, teacher, **common, valid_tokens=True)
    taken = take_turns(
        {"ours": lambda: ours.step(batch), "plain": lambda: whole.step(batch)},
        repeats=options.repeats,
        device=options.device,
    )
    report(
        "step_valid",
        options,
        ours=taken["ours"],
        plain=taken["plain"],
        ratio=taken["plain"] / taken["ours"],
        unit="seconds a step; plain: our step with padding",
        images_per_second=options.batch / taken["ours"],
    )


if __name__ == "__main__":
    main()
