"""Trace, translate, compare with PyTorch, and only then publish (export with parity).

The file is written into a temporary folder beside its place, opened by the runtime that will use it (ONNX Runtime or
PyTorch's own loader), fed several shapes, and renamed when every number agrees with the model's own. Absent: tuning for
one runtime or device (each has its tools), and half precision, which runtimes make of this file better than a trace
does.
"""

import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from foveate.clip.model import Clip
from foveate.clip.names import Head
from foveate.errors import InputError
from foveate.export.describe import describe
from foveate.export.flags import Format, What
from foveate.export.graph import Plan, example_inputs, plan_export
from foveate.io.files import folder_written_whole

Run = Callable[[tuple[Tensor, ...]], Tensor]

LIMIT = 1e-4  # largest difference allowed between numbers of embeddings of length 1
OPSET = 20

_ONE_FILE = 1_500_000_000  # bytes of weights that surely fit one ONNX file, which ends at 2 GiB


def export_clip(
    clip: Clip,
    path: Path,
    *,
    what: What,
    format: Format,
    head: Head = "value",
    size: int | None = None,
    opset: int = OPSET,
    progress: bool = False,
) -> dict[str, Any]:
    """Export the image tower to one file, compare it with PyTorch, and publish it with its description.

    Args:
        clip: float32, on the CPU, in evaluation mode.
        path: of the file; weights of 1.5 GB and more go into PATH.data beside an ONNX file. The description is
            PATH.json.
        what: "dense", "regions" or "image", see `foveate.export.graph`.
        format: "onnx" (ONNX Runtime and others) or "torch" (`torch.export.load`).
        head: of the dense map.
        size: fixes height and width [pixels]; None leaves both free.
        opset: of ONNX.
        progress: print what is happening and how long it took.

    Returns:
        The description, as written.

    Raises:
        InputError: the exporter cannot translate it, or the file does not compute what the model computes; nothing is
            published then.
    """
    plan = plan_export(clip, what=what, head=head, size=size)
    with folder_written_whole(path.parent) as partial:
        with _told(progress, "traced"), _quiet(), torch.no_grad():
            example = example_inputs(plan, plan.shapes[0])
            program = torch.export.export(plan.module, example, dynamic_shapes=plan.dynamic, strict=False)
        with _told(progress, f"written as {format}"), _quiet(), torch.no_grad():
            run = _save(program, partial / path.name, plan, format=format, opset=opset)
        with _told(progress, "compared with PyTorch"):
            parity = compare(plan, run)
        if progress:
            print("\n".join(_parity_lines(parity)), flush=True)
        _refuse_differences(parity, path)
        files = sorted(one.name for one in partial.iterdir())
        description = describe(clip, plan, what=what, format=format, head=head, size=size, opset=opset)
        description |= {"file": path.name, "files": files, "parity": {"limit": LIMIT, "shapes": parity}}
        (partial / f"{path.name}.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    if f"{path.name}.data" not in files:
        path.with_name(f"{path.name}.data").unlink(missing_ok=True)  # of a larger model under this name
    return description


def compare(plan: Plan, run: Run) -> list[dict[str, Any]]:
    """Feed a graph and the model the same inputs at every shape of a plan.

    Args:
        plan: of `foveate.export.graph.plan_export`.
        run: the graph as its runtime executes it.

    Returns:
        One record a shape: the shapes of the inputs, and the largest absolute difference (infinite where the runtime
        failed, with what it said).
    """
    records = []
    for shape in plan.shapes:
        inputs = example_inputs(plan, shape)
        record: dict[str, Any] = {name: list(one.shape) for name, one in zip(plan.inputs, inputs, strict=True)}
        with torch.no_grad():
            wanted = plan.module(*inputs)
            try:
                got = run(inputs)
            except Exception as error:  # whatever a runtime raises, it does not run the file
                records.append(record | {"max_abs_difference": float("inf"), "error": str(error)[:300]})
                continue
        same = got.shape == wanted.shape and bool(got.isfinite().all())
        record["max_abs_difference"] = float((got - wanted).abs().max()) if same else float("inf")
        records.append(record)
    return records


def _save(program: ExportedProgram, path: Path, plan: Plan, *, format: Format, opset: int) -> Run:
    """Write a traced program, and open the file again with the runtime it is for."""
    match format:
        case "torch":
            torch.export.save(program, path)
            loaded = torch.export.load(path).module()
            return lambda inputs: loaded(*inputs)
        case "onnx":
            return _save_onnx(program, path, plan, opset=opset)


def _save_onnx(program: ExportedProgram, path: Path, plan: Plan, *, opset: int) -> Run:
    import onnxruntime

    weights = sum(one.numel() * one.element_size() for one in program.state_dict.values())
    try:
        torch.onnx.export(
            program,
            (),
            str(path),
            input_names=list(plan.inputs),
            output_names=[plan.output],
            dynamic_shapes=plan.dynamic,  # for the names of the axes
            opset_version=opset,
            external_data=weights > _ONE_FILE,
            dynamo=True,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise InputError(
            f"{path.name}: PyTorch's exporter cannot translate this model to ONNX ({str(error).splitlines()[0]}). "
            "Try another --opset, or --format torch."
        ) from error
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4  # what goes wrong comes as an exception
    try:
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no class in common
        raise InputError(
            f"{path.name}: ONNX Runtime cannot open it ({str(error)[:300]}). Try another --opset."
        ) from error

    def run(inputs: tuple[Tensor, ...]) -> Tensor:
        fed = {name: one.numpy() for name, one in zip(plan.inputs, inputs, strict=True)}
        return torch.from_numpy(session.run([plan.output], fed)[0])

    return run


def _refuse_differences(parity: list[dict[str, Any]], path: Path) -> None:
    worst = max(parity, key=lambda record: record["max_abs_difference"])
    if worst["max_abs_difference"] > LIMIT:
        said = f" ({worst['error']})" if "error" in worst else ""
        raise InputError(
            f"{path}: not written, since it does not compute what the model computes: the largest difference is "
            f"{worst['max_abs_difference']:.1e} at images {worst['images']}, allowed are {LIMIT:.0e}{said}. "
            "Try another --format or --opset."
        )


def _parity_lines(parity: list[dict[str, Any]]) -> list[str]:
    return [
        f"  images {tuple(record['images'])}: largest difference {record['max_abs_difference']:.1e}"
        for record in parity
    ]


@contextmanager
def _told(progress: bool, done: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    if progress:
        print(f"{done} in {time.perf_counter() - started:.1f} s", flush=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' warnings, which name nothing a user could change, off the screen."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
