"""Every architecture of open_clip: supported, or refused and why; full-size ones beside it (docs/architectures.md).

    python benchmarks/architectures.py [--write docs/architectures.md] [--only RN50 ViT-H-14]

The full-size towers are filled with random numbers. At the native size the image embedding must equal open_clip's to
1e-5, and where the library gives the last block's tokens, the dense map of the head "attention" must equal them
normed and projected. At 1.5 x 1 times the native size the dense map must be finite. One JSON line a tower; the exit
status is 1 where a difference is too large. About ten minutes on two cores and 12 GB of memory for the largest.
"""

import argparse
import json
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.clip.load import load
from foveate.clip.model import Clip
from foveate.errors import InputError
from foveate.io.files import check_target, write_whole

LIMIT = 1e-5
FULL = (
    "EVA02-B-16", "EVA02-L-14", "EVA02-L-14-336", "ViT-B-32-quickgelu", "ViT-B-16-quickgelu", "ViT-L-14-quickgelu",
    "ViT-L-14-336-quickgelu", "ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14", "RN50", "RN101", "RN50x4",
    "RN50x16", "RN50x64", "ViT-B-16-SigLIP", "ViT-B-16-SigLIP2",
)  # fmt: skip


@torch.inference_mode()
def measure(name: str) -> dict[str, Any]:
    """Build one tower and compare it with the library at its native size."""
    start = time.perf_counter()
    clip = load(name, seed=0)
    _liven(clip)
    side = clip.native_size
    coarse = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    images = F.interpolate(coarse, size=(side, side), mode="bilinear")  # noise of every pixel would average out
    theirs, ours = clip.model.encode_image(images, normalize=True), clip.encode_image(images)
    tokens = _last_tokens(clip, images)
    tall = -(-3 * side // (2 * clip.patch_size)) * clip.patch_size
    oblong = torch.randn(1, 3, tall, side, generator=torch.Generator().manual_seed(1))
    dense = clip.encode_dense(oblong)
    return {
        "name": name,
        "native": side,
        "patch": clip.patch_size,
        "embedding": clip.embed_dim,
        "parameters": sum(one.numel() for one in clip.visual.parameters()),
        "image": float((ours - theirs).abs().max()),
        "two_images": float((theirs[0] - theirs[1]).abs().max()),
        "last_block": None if tokens is None else _distance(clip, images, tokens),
        "finite": bool(dense.isfinite().all()),
        "grid": list(dense.shape[2:]),
        "seconds": round(time.perf_counter() - start, 1),
    }


def _liven(clip: Clip) -> None:
    """Random numbers of a size that lets every part of a tower be seen in its output; fresh towers hide most of it."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in clip.visual.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:  # matrices, kernels, tables of positions: as wide as what they read
            inputs = parameter[0].numel() if parameter.ndim in (2, 4) else parameter.shape[-1]
            parameter.copy_(noise * inputs**-0.5)
        elif name.endswith("weight"):
            parameter.copy_(0.1 * noise + (0.3 if ".bn3." in name else 1))  # many ends of residuals add up
        else:
            parameter.copy_(0.1 * noise)


def _last_tokens(clip: Clip, images: Tensor) -> Tensor | None:
    """The library's tokens after its last block, normed and projected, (B, L, D); None where it does not give them."""
    visual: Any = clip.visual
    if "RN" in clip.name or "SigLIP" in clip.name:
        return None
    options = {"indices": 1, "normalize_intermediates": True, "intermediates_only": True, "output_fmt": "NLC"}
    tokens = visual.forward_intermediates(images, **options)["image_intermediates"][0]
    return visual.trunk.head(tokens) if "EVA" in clip.name else tokens @ visual.proj


def _distance(clip: Clip, images: Tensor, tokens: Tensor) -> float:
    ours = clip.encode_dense(images, head="attention").flatten(2).mT  # (B, L, D)
    return float((ours - F.normalize(tokens, dim=2)).abs().max())


def support() -> tuple[list[str], dict[str, list[str]]]:
    """Names that load, and those refused by reason; nothing is allocated."""
    supported, refused = [], {}
    for name in open_clip.list_models():
        try:
            with torch.device("meta"):
                load(name, device="meta")
            supported.append(name)
        except InputError as error:
            reason = str(error).removeprefix(f"{name}: this model is not supported: ")
            reason = reason.removeprefix(f"{name}: this tower is not supported: ").split(". Use ")[0]
            refused.setdefault(reason, []).append(name)
    return supported, refused


def table(rows: list[dict[str, Any]], supported: list[str], refused: dict[str, list[str]]) -> str:
    """All of it as Markdown."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "open_clip_torch", "timm"))
    lines = [
        "# Architectures",
        "",
        f"`python benchmarks/architectures.py --write docs/architectures.md` on {date.today()}:",
        f"{packages}, CPU, float32.",
        "",
        "Full size, random weights. *image*: largest difference of the image embedding from open_clip's at",
        "the native size; *apart*: how far two images lie from one another there; *last block*: difference of the",
        "dense map of the head `attention` from the library's own last tokens;",
        f"both of length 1, limit {LIMIT:g} (-: the library gives no such tokens). *dense*: grid of a map at 1.5",
        "times the native height [patches]; *native* and *patch* in pixels.",
        "",
        "| name | native | patch | D | parameters | image | apart | last block | dense |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        last = "-" if row["last_block"] is None else f"{row['last_block']:.1e}"
        lines.append(
            f"| {row['name']} | {row['native']} | {row['patch']} | {row['embedding']} "
            f"| {row['parameters'] / 1e6:.1f} M | {row['image']:.1e} | {row['two_images']:.1e} | {last} "
            f"| {row['grid'][0]} x {row['grid'][1]} |"
        )
    lines += ["", f"## The {len(supported)} names of open_clip that load", "", ", ".join(supported), ""]
    lines += [f"## The {sum(map(len, refused.values()))} that are refused", "", "| reason | names |", "|---|---|"]
    lines += [f"| {reason} | {', '.join(names)} |" for reason, names in refused.items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="Markdown file for the tables")
    parser.add_argument("--only", nargs="+", default=list(FULL), help="architectures to build at full size")
    options = parser.parse_args()
    if options.write is not None:
        check_target(options.write, flag="--write")
    rows = []
    for name in options.only:
        rows.append(measure(name))
        print(json.dumps(rows[-1]), flush=True)
    if options.write is not None:
        write_whole(options.write, table(rows, *support()).encode())
    far = [row for row in rows if not (row["finite"] and max(row["image"], row["last_block"] or 0) <= LIMIT)]
    for row in far:
        print(f"beyond {LIMIT:g}: {row}", file=sys.stderr)
    return int(bool(far))


if __name__ == "__main__":
    sys.exit(main())
