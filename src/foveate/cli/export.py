"""`foveate export`: a CLIP's image tower as one ONNX or torch.export file, compared with PyTorch before it is kept.

Torch is imported only when something is exported, so that help and typing errors answer at once.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from foveate.clip.names import Head
from foveate.errors import InputError
from foveate.io.files import check_target

_ENDINGS = {"onnx": ".onnx", "torch": ".pt2"}
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a CLIP's image tower as a file other runtimes open.

    The file is compared with PyTorch at three shapes and only kept where no number differs by more than 1e-4. Batch,
    height and width (multiples of the patch size, two patches and more) are free, unless --size fixes height and
    width. Beside it, FILE.json says how to prepare pictures.
    """

    model: str
    """Name of a CLIP, or a folder with one (OUT/model of a run)."""
    out: Path
    """File to write (.onnx or .pt2), or a folder for WHAT.onnx or WHAT.pt2."""
    pretrained: str | None = None
    """Weights file or open_clip tag, where `model` is the name of an architecture."""
    what: Literal["dense", "regions", "image"] = "dense"
    """dense: pictures to dense maps. regions: pictures and boxes to region embeddings. image: image embeddings."""
    format: Literal["onnx", "torch"] = "onnx"
    """onnx: ONNX Runtime and others. torch: opened by torch.export.load."""
    head: Head = "value"
    """What becomes of the last block: value is the paper's; sclip, clearclip and naclip are the training-free ones."""
    size: int | None = None
    """FIX height and width to this [pixels], for runtimes that want fixed shapes; default: both stay free."""
    opset: int = 20
    """Of ONNX, from 18 on."""


def run(config: Export) -> dict[str, Any]:
    """Export, say what was written, and return its description."""
    path = target_of(config)
    if config.format == "onnx":
        _check_onnx(config.opset)
    from foveate.clip.load import load
    from foveate.export.write import export_clip

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
        print(f"  height and width are FIXED to {config.size}; only the numbers of pictures and regions are free")
    size = sum(path.with_name(name).stat().st_size for name in description["files"])
    together = " and ".join(description["files"])
    print(f"wrote {path} ({together}: {size / 1e6:,.1f} MB) and {path.name}.json")
    return description


def target_of(config: Export) -> Path:
    """Choose the file to write, and refuse it where it cannot be written.

    Raises:
        InputError: an ending of the other format, or a place that cannot be written.
    """
    ending = _ENDINGS[config.format]
    if config.out.suffix in _ENDINGS.values() and not config.out.is_dir():
        if config.out.suffix != ending:
            raise InputError(f"--out: a file of --format {config.format} ends in {ending}; got {config.out}.")
        path = config.out
    else:
        path = config.out / f"{config.what}{ending}"
    for one in (path, path.with_name(f"{path.name}.json")):
        check_target(one, flag="--out")
    return path


def _check_onnx(opset: int) -> None:
    """Refuse missing packages and impossible opsets before a model is loaded."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"--format onnx: needs {', '.join(missing)}, not installed here: pip install {' '.join(missing)}. "
            "--format torch needs nothing more."
        )
    from onnx.defs import onnx_opset_version

    if not 18 <= opset <= onnx_opset_version():
        raise InputError(
            f"--opset: need 18 to {onnx_opset_version()}, the newest the installed onnx knows; got {opset}."
        )
