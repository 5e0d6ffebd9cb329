"""The flags of `foveate convert` and `convert-maps`; nothing here imports torch, so that help answers at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from foveate.heads.catseg.names import Residual
from foveate.heads.fvit.names import Benchmark


@dataclass(frozen=True)
class Convert:
    """Convert a CLIP to another format, and check that the target library opens it and computes equal embeddings.

    Published checkpoints are converted to folders: an F-ViT (mmdet checkpoint) for `foveate detect` and `foveate
    evaluate detection`, a CAT-Seg (2024 or 2023) for `foveate segment` and `foveate evaluate semantic`, an ODISE (label
    model) for `foveate segment --panoptic` and `foveate evaluate panoptic`. The kind is detected from the content.
    """

    source: Positional[str]
    """A CLIP folder, weights file or training checkpoint (docs/checkpoints.md lists the formats), foveate-small, or,
    with --model, an open_clip tag of that architecture; or a published checkpoint of F-ViT, CAT-Seg or ODISE."""
    out: Positional[Path]
    """Folder to write; new or empty."""
    to: Literal["open_clip", "hf", "foveate"] = "foveate"
    """open_clip: a folder for local-dir:OUT. hf: for transformers' CLIPModel or SiglipModel. foveate: an open_clip
    folder with Foveate's additional settings, such as window attention and gates of attention heads."""
    model: str | None = None
    """Architecture of a tag, or of a weights file whose content does not determine it."""
    text_from: str | None = None
    """If SOURCE has only an image tower, or is an F-ViT to be converted to a CLIP: the CLIP whose text tower is added,
    a folder or a weights file (with --model also a tag)."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Data type of the written weights."""
    clip: str | None = None
    """F-ViT: the CLIP whose text tower it was trained with, a file or a folder, or an architecture with its weights,
    such as EVA02-B-16:merged2b_s8b_b131k. Its image tower is replaced by the checkpoint's if they differ. ODISE: the
    CLIP it was trained with, OpenAI's ViT-L-14-336."""
    annotations: Path | None = None
    """F-ViT: COCO's or LVIS's annotation file for the class names, which the checkpoint lacks; default: OV-COCO's 65.
    ODISE: COCO's panoptic annotation file, for names, things and stuff."""
    labels: Path | None = None
    """ODISE: file of the names of each class, as --labels of `foveate train-panoptic`; default: the names in
    --annotations."""
    encoder: Path | None = None
    """ODISE: diffusers folder of the Stable Diffusion (v1.3) it is based on."""
    novel: Path | None = None
    """F-ViT: JSON file {"base": [names], "novel": [names]}; default: LVIS's rare ones or OV-COCO's are novel."""
    benchmark: Benchmark | None = None
    """F-ViT: benchmark whose score fusion is used; default: OV-LVIS's if it predicts masks, else OV-COCO's."""
    size: int | None = None
    """F-ViT: side of the square input [pixels]; default: as published, 640 or (OV-LVIS) 1024 for patch size 16,
    896 for 14."""
    residual: Residual | None = None
    """CAT-Seg: what the values of the last block are added to, as --residual of `foveate train-catseg`; default:
    as in CAT-Seg's code of the version: cls in 2024, token in 2023."""
    vocab: str | None = None
    """CAT-Seg: the classes it was trained on, separated by commas or in a .txt or .json file; default: the 171
    of COCO-Stuff, which all published checkpoints were trained on."""


@dataclass(frozen=True)
class AdeFull:
    """Convert the full release of ADE20K, for A-847: 16-bit label maps and the list of classes.

    The classes are derived from the JSON files beside the images: the whole objects, without parts, that occur in both
    splits. They are written to OUT/labels.txt, `id:name,synonym` per line; pixel value 0 is the first line, 65535 no
    class. Convert the other split into the same folder. To evaluate, pass --data ROOT --kind ade-full --maps OUT.

    The same command resumes a stopped run.
    """

    root: Positional[Path]
    """The folder ADE20K_2021_17_01, with images/ADE/{training,validation}."""
    out: Path
    """Folder to write; new, empty, or holding maps of the same classes."""
    split: Literal["train", "val"] = "val"
    """Split to convert."""
    labels: Path | None = None
    """Class list instead of the derived one, `id:name,synonym` per line, with the ids of the release's index, from 1.
    Pixels of other objects get no class."""


@dataclass(frozen=True)
class Context:
    """Convert the .mat files of PASCAL Context, for PC-459 or, with --only, PC-59.

    The list of classes is written to OUT/labels.txt. To evaluate, pass --data VOC2010 --maps OUT and --kind context459
    or context59.

    The same command resumes a stopped run.
    """

    mats: Positional[Path]
    """Folder of the ID.mat files, `trainval` of the download."""
    out: Path
    """Folder to write; new, empty, or holding maps of the same classes."""
    labels: Path
    """labels.txt of the download, the 459 classes: "1: accordion" ..."""
    only: Path | None = None
    """59_labels.txt: write 8-bit maps of only these classes, matched with the 459 by name. Default: 16-bit maps of
    all."""
