"""`teacher`: image embeddings of packed crops, ours beside the library's own whole forward.

    python benchmarks/teacher.py --model EVA02-B-16 --batch 2 --crops 12

Ours runs the last block for the class token alone and attention as one kernel.
"""

import torch
import torch.nn.functional as F

from foveate.clip.load import load
from inputs import photographs
from measure import arguments, read, report, take_turns
from sides import PARITY, plain_images, stacked


def main() -> None:
    """Measure and print."""
    options = read(arguments(__doc__))
    clip = load(options.model, seed=0, device=options.device)
    images = plain_images(photographs(options.batch, crops=options.crops, data=options.data), clip, size=64)
    _, boxes, crops = stacked(images)
    crops = crops.flatten(0, 1)[boxes.flatten(0, 1)[:, 4] > 0.5].to(options.device)  # (R, 3, S, S)
    encode = torch.compile(clip.encode_image) if options.compile else clip.encode_image

    def run(function):
        with torch.no_grad(), torch.autocast(
            crops.device.type, dtype=torch.bfloat16, enabled=options.precision == "bfloat16"
        ):  # fmt: skip
            return function()

    sides = {"ours": lambda: encode(crops), "plain": lambda: F.normalize(clip.visual(crops).float(), dim=1)}
    with torch.no_grad():
        exact, wanted = clip.encode_image(crops), sides["plain"]()
    apart = float((exact - wanted).norm() / wanted.norm())
    assert apart <= PARITY, f"the sides differ by {apart}"
    taken = take_turns(
        {side: lambda function=function: run(function) for side, function in sides.items()},
        repeats=options.repeats,
        device=options.device,
    )
    report(
        "teacher",
        options,
        ours=taken["ours"],
        plain=taken["plain"],
        ratio=taken["plain"] / taken["ours"],
        unit=f"seconds for {len(crops)} crops",
        crops_per_second=len(crops) / taken["ours"],
        parity={"embeddings": apart},
    )


if __name__ == "__main__":
    main()
