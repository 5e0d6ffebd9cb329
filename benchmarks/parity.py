"""How far the towers are from the formulas: every family, head and size against loops in float64 (docs/parity.md).

    python benchmarks/parity.py [--write docs/parity.md]

Small random models of each family, one image a size, seven dense heads, windows, and the region head `masked`. One
JSON line a row on standard output; the exit status is 1 where a difference exceeds 1e-5. About 20 seconds on one core.
Absent: pretrained weights.
"""

import argparse
import json
import math
import platform
import sys
from collections.abc import Callable, Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "clip")]

from slow.reference import (  # noqa: E402
    DENSE_HEADS,
    SIZES,
    Reference,
    dense_heads,
    example_boxes,
    example_masks,
    kind,
    make_images,
)
from slow.towers import FAMILIES, build, register  # noqa: E402

from foveate.clip.model import Clip  # noqa: E402
from foveate.clip.tower import Windows  # noqa: E402
from foveate.io.files import check_target, write_whole  # noqa: E402

LIMIT = 1e-5
PLACES = ("native", "larger square", "larger rectangle")  # of `SIZES`
WINDOWED = "value in windows"  # of 2 x 2 tokens in the blocks 0 and 2
Row = dict[str, Any]  # family, head, what, input [H, W], max_abs_diff


@torch.no_grad()
def measure(family: str, size: tuple[int, int]) -> Iterator[Row]:
    """Compare one model on one image; all embeddings have length 1."""
    model, config = build(family, 0)
    clip = Clip(model, name=family, config=config)
    images = make_images(1, size)
    slow = Reference(family, model.visual, images[0])
    boxes = example_boxes(size, slow.stride)
    masks = example_masks(size, slow.tower.grid)

    def row(head: str, what: str, ours: torch.Tensor, wanted: torch.Tensor) -> Row:
        assert ours.shape == wanted.shape, f"{family} {head} {what}: {tuple(ours.shape)}, {tuple(wanted.shape)}"
        difference = float((ours.double() - wanted).abs().nan_to_num(nan=math.inf).max())
        return {"family": family, "head": head, "what": what, "input": list(size), "max_abs_diff": difference}

    yield row("image", "image", clip.encode_image(images)[0], slow.image())
    for head in dense_heads(family):
        yield row(head, "dense", clip.encode_dense(images, head=head)[0], slow.dense(head))
    if kind(family) in ("vit", "eva"):
        clip.windows = Windows(size=2, blocks=(0, 2))
        yield row(WINDOWED, "dense", clip.encode_dense(images)[0], slow.dense("value", (2, (0, 2))))
        clip.windows = None
    for head in (*dense_heads(family), "masked"):
        yield row(head, "boxes", clip.encode_boxes(images, [boxes], head=head), slow.boxes(boxes, head))
        ours = torch.cat([clip.encode_masks(images, [some], head=head) for some in masks])
        yield row(head, "masks", ours, torch.cat([slow.masks(some, head) for some in masks]))


def table(rows: list[Row]) -> str:
    """Write the rows as Markdown: heads, kinds of output and sizes, each by families."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "open_clip_torch", "timm"))
    heads = ("image", *DENSE_HEADS, WINDOWED, "masked")
    sizes = [", ".join(f"{height} x {width}" for height, width in SIZES[kind(family)]) for family in FAMILIES]
    lines = [
        "# Parity with the formulas",
        "",
        "Largest absolute difference between the float32 towers and forward passes written token by token in float64",
        f"(`tests/clip/slow`), over embeddings of length 1. The limit is {LIMIT:g}. The models are small and random.",
        "",
        f"`python benchmarks/parity.py --write docs/parity.md` on {date.today()}:",
        f"{packages}, Python {platform.python_version()}, {platform.machine()}, CPU.",
        "",
        "By head, over dense maps, boxes, masks and sizes (-: not defined for the family):",
        "",
        *by(lambda row: row["head"], heads, rows),
        "",
        "By output, over heads and sizes:",
        "",
        *by(lambda row: row["what"], ("image", "dense", "boxes", "masks"), rows),
        "",
        "By size, over heads and outputs:",
        "",
        *by(lambda row: PLACES[SIZES[kind(row["family"])].index(tuple(row["input"]))], PLACES, rows),
        "| height x width [pixels] | " + " | ".join(sizes) + " |",
    ]
    return "\n".join(lines) + "\n"


def by(label: Callable[[Row], str], labels: tuple[str, ...], rows: list[Row]) -> list[str]:
    """One line a label, one column a family, the largest difference in each cell."""
    worst: dict[tuple[str, str], float] = {}
    for row in rows:
        key = (label(row), row["family"])
        worst[key] = max(worst.get(key, 0.0), row["max_abs_diff"])
    cells = [[f"{worst[one, f]:.1e}" if (one, f) in worst else "-" for f in FAMILIES] for one in labels]
    lines = ["| | " + " | ".join(FAMILIES) + " |", "|---|" + "---|" * len(FAMILIES)]
    return lines + [f"| {one} | " + " | ".join(some) + " |" for one, some in zip(labels, cells, strict=True)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="Markdown file for the table")
    target = parser.parse_args().write
    if target is not None:
        check_target(target, flag="--write")
    register()
    rows = []
    for family in FAMILIES:
        for size in SIZES[kind(family)]:
            for row in measure(family, size):
                rows.append(row)
                print(json.dumps(row), flush=True)
    if target is not None:
        write_whole(target, table(rows).encode())
    too_far = [row for row in rows if not row["max_abs_diff"] <= LIMIT]
    for row in too_far:
        print(f"beyond {LIMIT:g}: {row}", file=sys.stderr)
    return int(bool(too_far))


if __name__ == "__main__":
    sys.exit(main())
