"""Export with parity: trace, convert, compare with PyTorch, and rename.

The file is written to a temporary folder, opened by its runtime (ONNX Runtime or PyTorch), run at several shapes, and
renamed if its results are those of the model. Deliberately absent: half precision, which runtimes convert better than
a trace does.
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
from foveate.export.flags import Export, Format, What
from foveate.export.graph import Plan, example_inputs, plan_export
from foveate.io.files import folder_written_whole, is_disk_full
from foveate.io.outputs import MARK

Run = Callable[[tuple[Tensor, ...]], Tensor]

MAX_DIFFERENCE = 1e-4  # of embeddings of length 1
OPSET = 20

_MAX_FILE = 1_500_000_000  # bytes of weights in one ONNX file, which is limited to 2 GiB


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
    """Export the image tower to one file with a description, after a comparison with PyTorch.

    Args:
        clip: float32, on the CPU, in evaluation mode.
        path: of the file; weights of 1.5 GB and more are in PATH.data beside an ONNX file. The description is
            PATH.json.
        what: "dense", "regions" or "image", see `foveate.export.graph`.
        format: "onnx" (ONNX Runtime and others) or "torch" (`torch.export.load`).
        head: of the dense feature map.
        size: fixed height and width [pixels]; None: both are free.
        opset: of ONNX.
        progress: print each step and its time.

    Returns:
        The description.

    Raises:
        InputError: the exporter does not support the model, or the results of the file differ; nothing is written.
    """
    plan = plan_export(clip, what=what, head=head, size=size)
    with folder_written_whole(path.parent) as partial:
        with _timed(progress, "traced"), _quiet(), torch.no_grad():
            example = example_inputs(plan, plan.shapes[0])
            program = torch.export.export(plan.module, example, dynamic_shapes=plan.dynamic, strict=False)
        with _timed(progress, f"written as {format}"), _quiet(), torch.no_grad():
            run = _save(program, partial / path.name, plan, format=format, opset=opset)
        with _timed(progress, "compared with PyTorch"):
            parity = compare(plan, run)
        if progress:
            for record in parity:
                difference = record["max_abs_difference"]
                print(f"  images {tuple(record['images'])}: largest difference {difference:.1e}", flush=True)
        _refuse_differences(parity, path)
        files = sorted(file.name for file in partial.iterdir())
        description = describe(clip, plan, what=what, format=format, head=head, size=size, opset=opset)
        description = {MARK: Export.made_by, **description, "file": path.name, "files": files}
        description["parity"] = {"limit": MAX_DIFFERENCE, "shapes": parity}
        (partial / f"{path.name}.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    if f"{path.name}.data" not in files:
        path.with_name(f"{path.name}.data").unlink(missing_ok=True)  # of an earlier, larger model
    return description


def compare(plan: Plan, run: Run) -> list[dict[str, Any]]:
    """Run a graph in its runtime and the model on the same inputs, at every shape of a plan.

    Returns:
        One record per shape: the shapes of the inputs, and the largest absolute difference (infinite, with its message,
        if the runtime fails).
    """
    records = []
    for shape in plan.shapes:
        inputs = example_inputs(plan, shape)
        record: dict[str, Any] = {name: list(value.shape) for name, value in zip(plan.inputs, inputs, strict=True)}
        with torch.no_grad():
            expected = plan.module(*inputs)
            try:
                output = run(inputs)
            except Exception as error:  # runtimes raise errors of any kind
                records.append(record | {"max_abs_difference": float("inf"), "error": str(error)[:300]})
                continue
        is_comparable = output.shape == expected.shape and bool(output.isfinite().all())
        record["max_abs_difference"] = float((output - expected).abs().max()) if is_comparable else float("inf")
        records.append(record)
    return records


def _save(program: ExportedProgram, path: Path, plan: Plan, *, format: Format, opset: int) -> Run:
    """Write a traced program, and open the file with its runtime."""
    match format:
        case "torch":
            torch.export.save(program, path)
            loaded = torch.export.load(path).module()
            return lambda inputs: loaded(*inputs)
        case "onnx":
            return _save_onnx(program, path, plan, opset=opset)


def _save_onnx(program: ExportedProgram, path: Path, plan: Plan, *, opset: int) -> Run:
    import onnxruntime

    weights = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    try:
        torch.onnx.export(
            program,
            (),
            str(path),
            input_names=list(plan.inputs),
            output_names=[plan.output],
            dynamic_shapes=plan.dynamic,  # for the names of the axes
            opset_version=opset,
            external_data=weights > _MAX_FILE,
            dynamo=True,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        if is_disk_full(error, path):
            raise  # `folder_written_whole` names it
        raise InputError(
            f"{path.name}: PyTorch's exporter cannot convert this model to ONNX ({str(error).splitlines()[0]}). "
            "Try another --opset, or --format torch."
        ) from error
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4  # errors are raised
    try:
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common class
        raise InputError(
            f"{path.name}: ONNX Runtime cannot open it ({str(error)[:300]}). Try another --opset."
        ) from error

    def run(inputs: tuple[Tensor, ...]) -> Tensor:
        arrays = {name: value.numpy() for name, value in zip(plan.inputs, inputs, strict=True)}
        return torch.from_numpy(session.run([plan.output], arrays)[0])

    return run


def _refuse_differences(parity: list[dict[str, Any]], path: Path) -> None:
    worst = max(parity, key=lambda record: record["max_abs_difference"])
    if worst["max_abs_difference"] > MAX_DIFFERENCE:
        reason = f" ({worst['error']})" if "error" in worst else ""
        raise InputError(
            f"{path}: not written, since its results differ from the model's by {worst['max_abs_difference']:.1e} at "
            f"images {worst['images']}{reason}; need at most {MAX_DIFFERENCE:.0e}. Try another --format or --opset."
        )


@contextmanager
def _timed(progress: bool, done: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    if progress:
        print(f"{done} in {time.perf_counter() - started:.1f} s", flush=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the warnings of the exporters, which a user cannot act on."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
