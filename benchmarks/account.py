"""`account`: FLOPs, operators, bytes moved and activations saved of one training step, by counting, without a GPU.

    python benchmarks/account.py --model EVA02-B-16 --size 1024 --precision bfloat16

Both steps run on tensors without content (FakeTensorMode), so the numbers are the same on every machine and take no
memory. What is counted: teacher, student, loss, backward, optimizer; where `--precision bfloat16`, the plain side under
autocast with a GPU's rule that norms are computed in float32 (a CPU's autocast leaves them as they come). Not counted:
cutting and resizing of images, which the plain side does on loader workers and ours on the device (`data_feed`).
Bytes moved are operands and results of every operator that is no view: what a device without fusion would read and
write.
"""

import argparse
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from counting import Account, counting
from foveate.clip.load import load
from foveate.clip.model import Clip
from foveate.ops.grid import grid_boxes
from foveate.types import Batch, Sample
from measure import arguments, read, report
from sides import Ours, plain_step

LIMITS = {"flops": 1.0, "operators": 0.45, "bytes_moved": 0.62, "bytes_saved": 0.6}  # of the plain path, at most
IMAGE = (480, 640)


def accounts(options: argparse.Namespace) -> dict[str, Account]:
    """Count one step of each side, the optimizer's state being there already."""
    columns = next(n for n in range(1, options.crops + 1) if n * n >= options.crops)
    height, width = IMAGE
    boxes = grid_boxes(-(-options.crops // columns), columns, height=height, width=width)[: options.crops]
    bfloat16 = options.precision == "bfloat16"
    with FakeTensorMode(allow_non_fake_inputs=True):
        found = {"ours": _ours(options, boxes, bfloat16), "plain": _plain(options, boxes, bfloat16)}
    return found


def _ours(options: argparse.Namespace, boxes: Tensor, bfloat16: bool) -> Account:
    student, teacher = _fake(options.model), _fake(options.model, torch.bfloat16 if bfloat16 else torch.float32)
    ours = Ours(student, teacher, size=options.size, bfloat16=bfloat16)
    samples = [Sample(str(i), torch.empty(3, *IMAGE, dtype=torch.uint8), boxes) for i in range(options.batch)]

    def crops(image: Any, boxes: Any, *, size: int) -> Tensor:
        return torch.empty(len(boxes), 3, size, size)

    def squares(images: list[Any], *, size: int, **_: Any) -> Tensor:
        return torch.empty(len(images), 3, size, size)

    with (
        mock.patch("foveate.objectives.clipself.crop_and_resize", crops),  # they look at numbers, of which there are
        mock.patch("foveate.objectives.clipself.square_inputs", squares),  # none here
    ):
        ours.step(Batch(samples, []))  # makes the optimizer's state
        with counting() as account:
            ours.step(Batch(samples, []))
    return account


def _plain(options: argparse.Namespace, boxes: Tensor, bfloat16: bool) -> Account:
    student, teacher = _fake(options.model), _fake(options.model)
    plain = plain_step(student, teacher, bfloat16=bfloat16)
    images = torch.empty(options.batch, 3, options.size, options.size)
    side = teacher.native_size
    crops = torch.empty(options.batch * len(boxes), 3, side, side)
    fitted = [boxes * (options.size / max(IMAGE))] * options.batch
    with mock.patch("torch.nn.functional.layer_norm", _as_on_a_gpu) if bfloat16 else nullcontext():
        plain.update(plain.loss(images, fitted, crops))
        with counting() as account:
            plain.update(plain.loss(images, fitted, crops))
    return account


_layer_norm = F.layer_norm


def _as_on_a_gpu(x: Tensor, shape: list[int], weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    return _layer_norm(x.float(), shape, weight, bias, eps)


def _fake(name: str, dtype: torch.dtype = torch.float32) -> Clip:
    """A model whose tensors have no content; to be called inside FakeTensorMode."""
    with unset_fake_temporarily(), torch.device("meta"):
        clip = load(name, device="meta")
    return emptied(clip, dtype)


def emptied(clip: Clip, dtype: torch.dtype) -> Clip:
    """Replace all tensors by some of the mode at hand."""
    for module in clip.modules():
        for key, parameter in module._parameters.items():
            module._parameters[key] = None if parameter is None else nn.Parameter(_empty(parameter, dtype))
        for key, buffer in module._buffers.items():
            module._buffers[key] = None if buffer is None else _empty(buffer, dtype)
    return clip


def _empty(like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(like.shape, dtype=dtype if like.is_floating_point() else like.dtype)


def ratios(found: dict[str, Account]) -> dict[str, float]:
    """Ours to plain, of what the limits are about."""
    ours, plain = asdict(found["ours"]), asdict(found["plain"])
    return {name: ours[name] / plain[name] for name in LIMITS}


def largest(counted: dict[str, int], *, first: int = 15) -> dict[str, int]:
    """The largest entries, by size."""
    return dict(sorted(counted.items(), key=lambda pair: -pair[1])[:first])


def main() -> None:
    """Count and print."""
    options = read(arguments(__doc__, size=1024, precision="bfloat16"))
    found = accounts(options)
    shares = ratios(found)
    profile = {side: largest(account.calls) for side, account in found.items()}
    moved = {side: {name: value / 1e9 for name, value in largest(one.moved).items()} for side, one in found.items()}
    numbers = {side: {name: asdict(account)[name] for name in LIMITS} for side, account in found.items()}
    report(
        "account",
        options,
        ours=found["ours"].operators,
        plain=found["plain"].operators,
        ratio=shares["operators"],
        unit="operators a step",
        ratios=shares,
        limits=LIMITS,
        all_reached=all(shares[name] <= limit for name, limit in LIMITS.items()),
        counted=numbers,
        peak_ratio=found["ours"].peak_bytes / found["plain"].peak_bytes,
        operators=profile,
        gigabytes=moved,
    )


if __name__ == "__main__":
    main()
