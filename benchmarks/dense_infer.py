"""`dense_infer`: the dense map of one large image, beside what open_clip offers for it (`forward_intermediates`).

    python benchmarks/dense_infer.py --model EVA02-B-16 --size 1024 --repeats 3

Both sides hold the same random weights and give one CLIP embedding a patch: ours by `encode_dense` (the paper's head:
no attention in the last block), theirs by the last block's tokens, normed and projected. Sides take turns in one
process, timed in CPU seconds on a CPU and by events on a GPU; memory is how far a second call raises the peak of a
process that runs one side alone (on a CPU: Linux only). Prints one JSON line; `plain` is open_clip there.
"""

import argparse
import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from foveate.clip.load import load
from measure import alone, arguments, passed_on, read, report, rise, take_turns
from plain.towers import interpolate

SIDES = ("ours", "plain")


def build(options: argparse.Namespace, sides: tuple[str, ...]) -> dict[str, Callable[[Tensor], Tensor]]:
    """The sides' functions from a batch of images to the embeddings of its patches."""
    clip = load(options.model, seed=0, device=options.device).to(getattr(torch, options.precision))
    made: dict[str, Callable[[Tensor], Tensor]] = {}
    if "ours" in sides:
        made["ours"] = lambda images: clip.encode_dense(images, normalize=False)
    if "compiled" in sides:
        made["compiled"] = torch.compile(lambda images: clip.encode_dense(images, normalize=False))
    if "plain" in sides:
        visual: Any = deepcopy(clip.visual) if len(sides) > 1 else clip.visual
        is_eva = isinstance(visual, TimmModel)
        if is_eva:  # open_clip's towers are bound to one size
            visual.trunk.set_input_size((options.size, options.size))
        else:
            grid = (options.size // clip.patch_size, options.size // clip.patch_size)
            visual.positional_embedding = nn.Parameter(interpolate(visual.positional_embedding, visual.grid_size, grid))
        project = visual.trunk.head if is_eva else lambda tokens: tokens @ visual.proj

        def theirs(images: Tensor) -> Tensor:
            maps = visual.forward_intermediates(
                images, indices=1, normalize_intermediates=True, intermediates_only=True, output_fmt="NLC"
            )
            return project(maps["image_intermediates"][0])

        made["plain"] = theirs
    return made


def make_images(options: argparse.Namespace) -> Tensor:
    """A batch of random numbers."""
    shape = (options.batch, 3, options.size, options.size)
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return numbers.to(options.device, getattr(torch, options.precision))


@torch.inference_mode()
def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, size=1024, batch=1, crops=0, repeats=3)
    parser.add_argument("--only", choices=SIDES, help=argparse.SUPPRESS)
    options = read(parser)
    images = make_images(options)
    if options.only:
        [function] = build(options, (options.only,)).values()
        function(images)  # loads the library's code, which is nobody's tensors
        print(json.dumps(rise(lambda: function(images), options.device)))
        return
    memory = {side: int(alone(__file__, [*passed_on(options), "--only", side])) for side in SIDES}
    functions = build(options, (*SIDES, "compiled") if options.compile else SIDES)
    taken = take_turns(
        {side: lambda function=function: function(images) for side, function in functions.items()},
        repeats=options.repeats,
        device=options.device,
    )
    report(
        "dense_infer",
        options,
        **taken,
        ratio=taken["plain"] / taken["ours"],
        unit="seconds a call",
        peak_megabytes={side: value / 1e6 for side, value in memory.items()},
        memory_ratio=memory["plain"] / max(1, memory["ours"]),
    )


if __name__ == "__main__":
    main()
