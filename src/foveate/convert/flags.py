"""The flags of `foveate convert` and `convert-maps`; nothing here imports torch, so that help answers at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from foveate.heads.catseg.names import Residual
from foveate.heads.fvit.names import Benchmark


@dataclass(frozen=True)
class Convert:
    """Write a CLIP in another layout, and check that its own library opens it and embeds the same.

    A published F-ViT (mmdet's checkpoint) becomes a folder for `foveate detect` and `foveate evaluate detection`, a
    CAT-Seg (2024 or 2023) one for `foveate segment` and `foveate evaluate semantic`, an ODISE (label model) one for
    `foveate segment --panoptic` and `foveate evaluate panoptic`; which of them a file is, its content tells.
    """

    source: Positional[str]
    """A CLIP's folder or weights file (a training checkpoint too; docs/checkpoints.md lists what opens), foveate-small,
    or, with --model, an open_clip tag of that architecture; or the file of a published F-ViT, CAT-Seg
    or ODISE."""
    out: Positional[Path]
    """Folder to write; new or empty."""
    to: Literal["open_clip", "hf", "foveate"] = "foveate"
    """open_clip: a folder for local-dir:OUT. hf: for transformers' CLIPModel or SiglipModel. foveate: open_clip's
    folder with what only Foveate knows, such as window attention and gates of heads."""
    model: str | None = None
    """Architecture of a weights file whose content leaves it open, or of a tag."""
    text_from: str | None = None
    """Where SOURCE is an image tower alone, or an F-ViT that is to become a CLIP: the CLIP whose text tower completes
    it, a folder or a weights file (with --model also a tag)."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the weights in the file."""
    clip: str | None = None
    """F-ViT: the CLIP whose text tower it was trained with, a file or a folder, or an architecture with its weights,
    such as EVA02-B-16:merged2b_s8b_b131k. Its image tower is replaced by the file's where they differ. ODISE: the CLIP
    it was trained with, OpenAI's ViT-L-14-336."""
    annotations: Path | None = None
    """F-ViT: COCO's or LVIS's annotation file for the class names, which the file does not hold; default:
    OV-COCO's 65. ODISE: COCO's panoptic annotation file, for names, things and stuff."""
    labels: Path | None = None
    """ODISE: file of the words of each class, as --labels of `foveate train-panoptic`; default: the names of
    --annotations."""
    encoder: Path | None = None
    """ODISE: folder of the Stable Diffusion (v1.3) it stands on, as diffusers writes it."""
    novel: Path | None = None
    """F-ViT: JSON file {"base": [names], "novel": [names]}; default: LVIS's rare ones or OV-COCO's are novel."""
    benchmark: Benchmark | None = None
    """F-ViT: whose score fusion it is asked with; default: OV-LVIS's where it finds masks, OV-COCO's else."""
    size: int | None = None
    """F-ViT: side of the square input [pixels]; default: the published one: 640 or (OV-LVIS) 1024 for patches of
    16, 896 for 14."""
    residual: Residual | None = None
    """CAT-Seg: what the values of the last block are added to, as --residual of `foveate train-catseg`; default:
    as in CAT-Seg's code of the version: cls in 2024, token in 2023."""
    vocab: str | None = None
    """CAT-Seg: the classes it was trained on, separated by commas or in a .txt or .json file; default: the 171
    of COCO-Stuff, which all published ones were trained on."""


@dataclass(frozen=True)
class AdeFull:
    """Convert the full release of ADE20K, for A-847: maps of 16 bits and the list of their classes.

    The classes are derived from the JSON files beside the images: the whole objects, no parts, that occur in both
    splits. They stand in OUT/labels.txt, "id:word,word" a line; map number 0 is the first line, 65535 no class. Convert
    the other split into the same folder. Measure then with --data ROOT --kind ade-full --maps OUT.

    Typing the same again goes on where a run stopped.
    """

    root: Positional[Path]
    """The folder ADE20K_2021_17_01, with images/ADE/{training,validation}."""
    out: Path
    """Folder to write; new, empty, or holding maps of the same classes."""
    split: Literal["train", "val"] = "val"
    """Which images."""
    labels: Path | None = None
    """List of the classes instead of the derived one, "id:word,word" a line, ids as the release's index counts them,
    from 1. Pixels of other objects get no class."""


@dataclass(frozen=True)
class Context:
    """Convert the .mat files of PASCAL Context, for PC-459 or, with --only, PC-59.

    The list of the classes comes to lie in OUT/labels.txt. Measure then with --data VOC2010 --maps OUT and --kind
    context459 or context59.

    Typing the same again goes on where a run stopped.
    """

    mats: Positional[Path]
    """Folder of the files ID.mat, `trainval` of the download."""
    out: Path
    """Folder to write; new, empty, or holding maps of the same classes."""
    labels: Path
    """labels.txt of the download, the 459 classes: "1: accordion" ..."""
    only: Path | None = None
    """59_labels.txt: write maps of 8 bits of these classes alone, found among the 459 by their words. Without it, maps
    of 16 bits of all."""
