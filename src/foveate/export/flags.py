"""The flags of `foveate export`; nothing here imports torch, so that help answers at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from foveate.clip.names import Head

What = Literal["dense", "regions", "image"]
Format = Literal["onnx", "torch"]


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a CLIP's image tower as a file other runtimes open.

    The file is compared with PyTorch at three shapes and only kept where no number differs by more than 1e-4. Batch,
    height and width (multiples of the patch size, two patches and more) are free, unless --size fixes height and
    width. Beside it, FILE.json says how to prepare images.
    """

    model: str
    """Name of a CLIP, or a folder with one (OUT/model of a run)."""
    out: Path
    """File to write (.onnx or .pt2), or a folder for WHAT.onnx or WHAT.pt2."""
    pretrained: str | None = None
    """Weights file or open_clip tag, where `model` is the name of an architecture."""
    what: What = "dense"
    """dense: images to dense maps. regions: images and boxes to region embeddings. image: image embeddings."""
    format: Format = "onnx"
    """onnx: ONNX Runtime and others. torch: opened by torch.export.load."""
    head: Head = "value"
    """What becomes of the last block: value is the paper's; sclip, clearclip and naclip are the training-free ones."""
    size: int | None = None
    """FIX height and width to this [pixels], for runtimes that want fixed shapes; default: both stay free."""
    opset: int = 20
    """Of ONNX, from 18 on."""
