"""The flags of `foveate export`; nothing here imports torch, so that help answers at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from foveate.clip.names import Head

What = Literal["dense", "regions", "image"]
Format = Literal["onnx", "torch"]


@dataclass(frozen=True, kw_only=True)
class Export:
    """Export a CLIP's image tower for other runtimes.

    The file is compared with PyTorch at three shapes and kept only if no output differs by more than 1e-4. Batch,
    height and width (multiples of the patch size, at least two patches) are dynamic, unless --size fixes height and
    width. FILE.json, beside it, describes the preprocessing.
    """

    model: str
    """Name of a CLIP, or path to a CLIP folder (OUT/model of a run)."""
    out: Path
    """File to write (.onnx or .pt2), or a folder for WHAT.onnx or WHAT.pt2."""
    pretrained: str | None = None
    """Weights file or open_clip tag, where --model is the name of an architecture."""
    what: What = "dense"
    """dense: images to dense maps. regions: images and boxes to region embeddings. image: image embeddings."""
    format: Format = "onnx"
    """onnx: ONNX Runtime and others. torch: opened by torch.export.load."""
    head: Head = "value"
    """How the last block makes the dense map: value is the paper's; sclip, clearclip and naclip are training-free."""
    size: int | None = None
    """Fix height and width [pixels], for runtimes that need static shapes; default: dynamic."""
    opset: int = 20
    """ONNX opset version, at least 18."""
