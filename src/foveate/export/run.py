"""`foveate export`: the image tower of a CLIP as one ONNX or torch.export file."""

from importlib.util import find_spec
from typing import Any

from foveate.clip.load import load
from foveate.errors import InputError
from foveate.export.flags import Export
from foveate.export.write import export_clip
from foveate.io.store import hold_target

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def run(config: Export) -> dict[str, Any]:
    """Export, print the files, and return their description.

    Raises:
        InputError: a flag, the model or the path of the file is wrong, a package is missing, or the results of the file
            differ from the model's.
    """
    path = config.path
    if config.format == "onnx":
        _check_onnx(config.opset)
    with hold_target(path):
        clip = load(config.model, pretrained=config.pretrained)
        description = export_clip(
            clip,
            path,
            what=config.what,
            format=config.format,
            head=config.head,
            size=config.size,
            opset=config.opset,
            progress=True,
        )
    for name, axes in description["inputs"].items():
        print(f"  input {name}: {' x '.join(map(str, axes['axes']))} {axes['dtype']}")
    for name, axes in description["output"].items():
        print(f"  output {name}: {' x '.join(map(str, axes['axes']))} {axes['dtype']}")
    if config.size is not None:
        print(f"  height and width are fixed to {config.size}; only the numbers of images and regions are dynamic")
    size = sum(path.with_name(name).stat().st_size for name in description["files"])
    print(f"wrote {path} ({' and '.join(description['files'])}: {size / 1e6:,.1f} MB) and {path.name}.json")
    return description


def _check_onnx(opset: int) -> None:
    """Check packages and opset before a model is loaded."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise InputError(
            f"--format onnx: needs {', '.join(missing)}, not installed here: pip install {' '.join(missing)}. "
            "--format torch needs no other package."
        )
    from onnx.defs import onnx_opset_version

    if not 18 <= opset <= onnx_opset_version():
        raise InputError(
            f"--opset: need 18 to {onnx_opset_version()}, the newest that the installed onnx supports; got {opset}."
        )
