"""The flags of `foveate export`; nothing here imports torch, so that help answers at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from foveate.clip.names import Head
from foveate.errors import InputError
from foveate.io.outputs import FileFlags, Target, has_mark

What = Literal["dense", "regions", "image"]
Format = Literal["onnx", "torch"]
_ENDINGS: dict[Format, str] = {"onnx": ".onnx", "torch": ".pt2"}


@dataclass(frozen=True, kw_only=True)
class Export(FileFlags):
    """Export a CLIP's image tower for other runtimes.

    The file is compared with PyTorch at three shapes and kept only if no output differs by more than 1e-4. Batch,
    height and width (multiples of the patch size, at least two patches) are dynamic, unless --size fixes height and
    width. FILE.json, beside it, describes the preprocessing.
    """

    made_by: ClassVar[str] = "foveate export"
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

    @property
    def path(self) -> Path:
        """The path of the file to write.

        Raises:
            InputError: the suffix is that of the other format.
        """
        ending = _ENDINGS[self.format]
        if self.out.suffix not in _ENDINGS.values() or self.out.is_dir():
            return self.out / f"{self.what}{ending}"
        if self.out.suffix != ending:
            raise InputError(f"--out: a file of --format {self.format} ends in {ending}; got {self.out}.")
        return self.out

    def targets(self) -> list[Target]:
        """See `FileFlags`; the mark of all files is in the description."""
        described = self.path.with_name(f"{self.path.name}.json")
        files = (self.path, described, self.path.with_name(f"{self.path.name}.data"))
        return [Target("--out", path, lambda _: has_mark(described, self.made_by)) for path in files]
