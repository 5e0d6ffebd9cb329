"""`foveate export`: the image tower of a CLIP as one ONNX or torch.export file."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from foveate.clip.load import load
from foveate.errors import InputError
from foveate.export.flags import Export
from foveate.export.write import export_clip
from foveate.io.files import check_target

_ENDINGS = {"onnx": ".onnx", "torch": ".pt2"}
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def run(config: Export) -> dict[str, Any]:
    """Export, print the files, and return their description.

    Raises:
        InputError: a flag, the model or the path of the file is wrong, a package is missing, or the results of the file
            differ from the model's.
    """
    path = target_of(config)
    if config.format == "onnx":
        _check_onnx(config.opset)
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


def target_of(config: Export) -> Path:
    """The path of the file to write.

    Raises:
        InputError: the suffix is that of the other format, or the file cannot be written.
    """
    ending = _ENDINGS[config.format]
    if config.out.suffix in _ENDINGS.values() and not config.out.is_dir():
        if config.out.suffix != ending:
            raise InputError(f"--out: a file of --format {config.format} ends in {ending}; got {config.out}.")
        path = config.out
    else:
        path = config.out / f"{config.what}{ending}"
    for target in (path, path.with_name(f"{path.name}.json")):
        check_target(target, flag="--out")
    return path


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
