"""The description of an exported file: preprocessing of images, axes, versions."""

from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from foveate.clip.model import Clip
from foveate.clip.names import Head
from foveate.export.flags import What
from foveate.export.graph import LEAST_PATCHES, Plan


def describe(
    clip: Clip, plan: Plan, *, what: What, format: str, head: Head, size: int | None, opset: int
) -> dict[str, Any]:
    """The description of a file, for JSON, with all that is needed to use it without this library.

    The arguments are those of `foveate.export.write.export_clip`. A fixed axis is a number; a free one is a name, or a
    formula of other axes.
    """
    patch = clip.patch_size
    types = {"images": "float32", "boxes": "float32", "image_index": "int64"}
    units = {
        "images": "RGB, normalised, see preprocessing",
        "boxes": "xyxy, pixels of images, x1 < x2, y1 < y2",
        "image_index": "index of the image of each box in the batch, from 0",
    }
    packages = ["foveate", "torch", "torchvision", "open_clip_torch", "timm"]
    packages += ["onnx", "onnxscript", "onnxruntime"] if format == "onnx" else []
    if size is None:
        sides = {"fixed": False, "multiple_of": patch, "least": LEAST_PATCHES * patch}
    else:
        sides = {"fixed": True, "height": size, "width": size}
    return {
        "what": what,
        "format": format,
        "opset": opset if format == "onnx" else None,
        "model": clip.name,
        "head": None if what == "image" else head,
        "windows": None if clip.windows is None or what == "image" else asdict(clip.windows),
        "gates": None if clip.gates is None or head != "values3" else clip.gates.tolist(),
        "inputs": {
            name: {"axes": axes, "dtype": types[name], "holds": units[name]} for name, axes in plan.inputs.items()
        },
        "output": {plan.output: {"axes": plan.axes, "dtype": "float32", "holds": "embeddings of length 1"}},
        "dynamic_axes": {name: [axis for axis in axes if isinstance(axis, str)] for name, axes in plan.inputs.items()},
        "sides": sides,
        "patch_size": patch,
        "native_size": clip.native_size,
        "embed_dim": clip.embed_dim,
        "preprocessing": _preprocessing(clip, what=what, size=size),
        "versions": {name: version(name) for name in packages},
    }


def _preprocessing(clip: Clip, *, what: What, size: int | None) -> dict[str, Any]:
    """The preprocessing of `foveate.ops.resample`."""
    if what == "image":
        longest = f"{size or clip.native_size} pixels"
        order, pad = ["resize", "pad", "normalise"], "black, equally around the image, to a square"
    else:
        longest = "any length" if size is None else f"{size} pixels"
        order, pad = ["resize", "normalise", "pad"], "zeros"
        if clip.pad == "black":
            order, pad = ["resize", "pad", "normalise"], "black"
        pad += ", at the right and bottom, to "
        pad += f"multiples of {clip.patch_size}" if size is None else f"{size} x {size} pixels"
    return {
        "order": order,
        "resize": f"longest side to {longest}, aspect kept; bicubic (a = -0.5), antialiased, clamped to 0..255",
        "normalise": "RGB, (value / 255 - mean) / std",
        "mean": list(clip.mean),
        "std": list(clip.std),
        "pad": pad,
    }
