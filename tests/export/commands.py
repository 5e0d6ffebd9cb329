"""Run by conftest.py in a process of its own, where no hook checks shapes: symbolic sizes are no integers to it.

Knows small random CLIPs by name ("vit", "eva", "eva-windows", "rn", "siglip"). Answers each JSON request of its input
by a line:

    {"arguments": [...]}  runs the command line; with "spoil": true the model changes once a .pt2 is written; with
                          "one_file": BYTES, larger weights lie beside an .onnx
    {"compile": FAMILY}   captures the dense path as one graph, and says how far its numbers are off
    {"train": FAMILY}     three steps' losses and gradients with compiled blocks: how far off, and how many graphs
"""

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from typing import Any

import torch
from slow.towers import build, register

import foveate.clip.load
from foveate.cli.main import main
from foveate.clip.load import load
from foveate.clip.model import Clip
from foveate.clip.tower import Windows
from foveate.export import write
from foveate.objectives.clipself import ClipSelf, train_layers
from foveate.objectives.student import Execution
from foveate.types import Batch, Sample

FAMILIES = ("vit", "eva", "rn", "siglip")


def twin(family: str) -> Clip:
    model, config = build(family, 0)
    return Clip(model, name=family, config=config)


def run(arguments: list[str], *, spoil: bool = False, one_file: int | None = None) -> dict[str, Any]:
    save, most = torch.export.save, write._MAX_FILE

    def save_and_spoil(program, *rest):
        save(program, *rest)
        with torch.no_grad():
            next(iter(program.state_dict.values())).mul_(1.01)  # the model's own memory

    torch.export.save = save_and_spoil if spoil else save
    write._MAX_FILE = most if one_file is None else one_file
    out, err, status = io.StringIO(), io.StringIO(), 0
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main(arguments)
    except SystemExit as done:
        status = done.code
    finally:
        torch.export.save, write._MAX_FILE = save, most
    return {"status": status, "out": out.getvalue(), "err": err.getvalue()}


def compiled(family: str) -> dict[str, float]:
    clip = twin(family)
    images = torch.randn(2, 3, 3 * clip.patch_size, 4 * clip.patch_size, generator=torch.Generator().manual_seed(0))
    whole = torch.compile(clip.encode_dense, backend="aot_eager", fullgraph=True, dynamic=False)
    with torch.no_grad():
        return {"difference": float((whole(images) - clip.encode_dense(images)).abs().max())}


def sample(height: int, width: int, regions: int) -> Sample:
    draw = torch.Generator().manual_seed(height + regions)
    corners = torch.rand(regions, 2, generator=draw) * 20
    image = torch.randint(0, 256, (3, height, width), generator=draw, dtype=torch.uint8)
    return Sample("", image, torch.cat([corners, corners + 16], dim=1))


def trained(family: str) -> dict[str, float]:
    batches = [Batch([sample(48, 64, 2 + n), sample(64, 48, 3)], []) for n in range(3)]  # other numbers of crops
    found = []
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # of what was compiled before
    for compiles in (False, True):
        student = twin(family)
        train_layers(student)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.mul_(1.1)  # away from the teacher
        objective = ClipSelf(
            student, twin(family), student_size=64, execution=Execution(compiled=compiles), tokens="valid"
        )
        losses = [objective(batch) for batch in batches]
        torch.stack(losses).sum().backward()
        found.append([*losses, *(p.grad for p in student.parameters() if p.grad is not None)])
    difference = max(float((a - b).detach().abs().max()) for a, b in zip(*found, strict=True))
    return {"difference": difference, "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"]}


def make(name: str, **settings: Any) -> Clip:
    """Replaces `load`: small CLIPs by name, besides its own names."""
    if name not in (*FAMILIES, "eva-windows"):
        return load(name, **settings)
    clip = twin(name.removesuffix("-windows"))
    clip.windows = Windows(size=2, blocks=(0, 1)) if name == "eva-windows" else None
    return clip


if __name__ == "__main__":
    torch.set_num_threads(1)
    register()
    foveate.clip.load.load = make
    for line in sys.stdin:
        request = json.loads(line)
        if "train" in request:
            compile_, torch.compile = torch.compile, partial(torch.compile, backend="aot_eager")
            answer = trained(request["train"])
            torch.compile = compile_
        else:
            answer = compiled(request["compile"]) if "compile" in request else run(**request)
        print(json.dumps(answer), flush=True)
