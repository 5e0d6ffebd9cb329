"""`foveate convert`: from any weights that load to a folder for open_clip, Hugging Face transformers, or Foveate; and
from published files of heads to folders that the other commands take (`convert_fvit`, `convert_catseg`,
`convert_odise`).

What was written is opened by the library it is meant for, which must embed a fixed random picture and text as the input
did; only then does the folder get its name.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from foveate.errors import InputError
from foveate.heads.catseg.names import Residual
from foveate.heads.fvit.names import Benchmark
from foveate.io.files import check_target, folder_written_whole

if TYPE_CHECKING:
    from jaxtyping import Float, Int64
    from torch import Tensor

    from foveate.clip.model import Clip

    Pair = tuple[Float[Tensor, "1 D"], Float[Tensor, "1 D"]]  # embeddings of a picture and a text, of length 1

_OF_DENSE = ("windows", "gates")  # what only Foveate knows, and no other library has a word for
Head = Literal["F-ViT", "CAT-Seg", "ODISE"]
_TAKEN: dict[Head | None, tuple[str, ...]] = {
    None: ("to", "model", "text_from", "dtype"),
    "F-ViT": ("clip", "pretrained", "annotations", "novel", "benchmark", "size"),
    "CAT-Seg": ("residual", "classes"),
    "ODISE": ("clip", "pretrained", "annotations", "labels", "encoder"),
}  # flags of each kind of source; None: a CLIP
TOLERANCE = 1e-4  # of embeddings of length 1, in float32


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
    """F-ViT: the CLIP whose text tower it was trained with, a file or a folder, or an architecture with --pretrained.
    Its image tower is replaced by the file's where they differ. ODISE: the CLIP it was trained with, OpenAI's
    ViT-L-14-336."""
    pretrained: str | None = None
    """F-ViT, ODISE: an open_clip tag or a file of weights for --clip."""
    annotations: Path | None = None
    """F-ViT: COCO's or LVIS's annotation file for the class names, which the file does not hold; when not given,
    OV-COCO's 65. ODISE: COCO's panoptic annotation file, for names, things and stuff."""
    labels: Path | None = None
    """ODISE: file of the words of each class, as --labels of `foveate train-panoptic`; when not given, the names of
    --annotations."""
    encoder: Path | None = None
    """ODISE: folder of the Stable Diffusion (v1.3) it stands on, as diffusers writes it."""
    novel: Path | None = None
    """F-ViT: JSON file {"base": [names], "novel": [names]}; when not given, LVIS's rare ones or OV-COCO's are novel."""
    benchmark: Benchmark | None = None
    """F-ViT: whose score fusion it is asked with; when not given, OV-LVIS's where it finds masks, OV-COCO's else."""
    size: int | None = None
    """F-ViT: side of the square input [pixels]; when not given, the published one: 640 or (OV-LVIS) 1024 for patches of
    16, 896 for 14."""
    residual: Residual | None = None
    """CAT-Seg: what the values of the last block are added to, as --residual of `foveate train-catseg`; when not given,
    as in CAT-Seg's code of the version: cls in 2024, token in 2023."""
    classes: str | None = None
    """CAT-Seg: the classes it was trained on, separated by commas or in a .txt or .json file; when not given, the 171
    of COCO-Stuff, which all published ones were trained on."""


def run(config: Convert) -> None:
    """Load, write, open again, compare; or hand a published head over.

    Raises:
        InputError: the input does not load, the layout has no place for it, OUT holds something, or the result differs.
    """
    _check_out(config.out)
    _check_weights(config)
    head = published_head(Path(config.source))
    if head is not None and head[0] == "F-ViT" and config.text_from is not None:
        head = None  # its image tower is to become a CLIP
    _check_flags(config, None if head is None else head[0])
    if head is not None:
        from foveate.cli.convert_catseg import run as run_catseg
        from foveate.cli.convert_fvit import run as run_fvit
        from foveate.cli.convert_odise import run as run_odise

        kind, state = head
        {"F-ViT": run_fvit, "CAT-Seg": run_catseg, "ODISE": run_odise}[kind](config, state)
        return
    if config.to == "hf":
        _check_transformers()
    import torch

    from foveate.clip.describe import holds_tokenizer
    from foveate.clip.load import load
    from foveate.clip.weights import save_clip, save_huggingface

    if config.model:
        clip = load(config.model, pretrained=config.source, text_from=config.text_from)
    else:
        clip = load(config.source, text_from=config.text_from)
    picture, text = _inputs(clip)
    exact = _embed_ours(clip, picture, text)
    dtype = getattr(torch, config.dtype)
    with torch.no_grad():  # what the file can hold; comparing with this leaves the conversion's own error
        for tensor in (*clip.parameters(), *clip.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(tensor.to(dtype))
    before = _embed_ours(clip, picture, text)
    if config.to != "foveate":
        known = [key for key in clip.config.get("foveate", {}) if config.to == "open_clip" or key in _OF_DENSE]
        clip.config = {key: value for key, value in clip.config.items() if key != "foveate"}
        if known:
            library = "open_clip has" if config.to == "open_clip" else "transformers have"
            print(f"left out, since {library} no word for it: {', '.join(known)}", file=sys.stderr)
    with folder_written_whole(config.out) as partial:
        (save_huggingface if config.to == "hf" else save_clip)(clip, partial, dtype=dtype)
        after = _embed_again(partial, config.to, picture, text)
        images, texts = (_distance(one, other) for one, other in zip(before, after, strict=True))
        if not max(images, texts) <= TOLERANCE:
            raise InputError(
                f"{config.out}: not written, since opened again it embeds differently: a picture by {images:.1e}, "
                f"a text by {texts:.1e}; need at most {TOLERANCE:.0e}. "
                + ("open_clip may lack this model's activation; use --to foveate." if config.to == "open_clip" else "")
            )
    named = clip.config["model_cfg"]["text_cfg"].get("hf_tokenizer_name")
    if named and not holds_tokenizer(config.out):
        whose = "" if Path(named).is_dir() else f" of {named}"
        print(f"no tokenizer lay with the input: put the files{whose} into {config.out}", file=sys.stderr)
    print(f"{config.out}: {', '.join(sorted(path.name for path in config.out.iterdir()))}")
    print(f"opened again, its embeddings differ by {images:.1e} (a picture) and {texts:.1e} (a text)")
    if config.dtype != "float32":
        images, texts = (_distance(one, other) for one, other in zip(exact, after, strict=True))
        print(f"from the input, {config.dtype} included: {images:.1e} and {texts:.1e}")


def _check_out(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"OUT: need a folder that is new or empty; {out} holds something. Choose another.")
    if out.exists() and not out.is_dir():
        raise InputError(f"OUT: need a folder; {out} is a file.")
    check_target(out / "config.json", flag="OUT")


def _check_weights(config: Convert) -> None:
    from foveate.clip.describe import describe_architecture

    if config.model is None and describe_architecture(config.source) is not None:
        raise InputError(
            f"SOURCE: {config.source} names an architecture without weights. Give a weights file or a tag as SOURCE, "
            f"and --model {config.source}."
        )


def _check_flags(config: Convert, head: Head | None) -> None:
    """Refuse flags that the kind of file takes no notice of.

    Raises:
        InputError: names the flag, and what it goes with.
    """
    for name in sorted({flag for flags in _TAKEN.values() for flag in flags} - {*_TAKEN[head]}):
        given = getattr(config, name)
        if given != getattr(Convert, name):
            takers = [kind for kind, flags in _TAKEN.items() if name in flags]
            what = " or ".join("a CLIP" if kind is None else f"a published {kind}" for kind in takers)
            found = "a CLIP" if head is None else f"a published {head}"
            raise InputError(f"--{name.replace('_', '-')}: goes with {what}; {config.source} is {found}. Leave it out.")


def published_head(path: Path) -> "tuple[Head, dict[str, Tensor]] | None":
    """Which published head a file is, by its tensors' names, and these tensors; None where it is something else."""
    from foveate.clip.states import file_kind
    from foveate.heads.catseg.published import is_published as is_catseg
    from foveate.heads.fvit.published import is_published_fvit
    from foveate.heads.panoptic.odise_file import is_odise

    if not path.is_file() or file_kind(path) != "torch":
        return None
    from torch import Tensor

    from foveate.clip.checkpoint_file import read_checkpoint

    try:
        content = read_checkpoint(path)
    except InputError:  # whoever reads it as a CLIP says what is wrong with it
        return None
    if not isinstance(content, dict):
        return None
    tests: dict[Head, Any] = {"F-ViT": is_published_fvit, "CAT-Seg": is_catseg, "ODISE": is_odise}
    for part in (content.get("state_dict"), content.get("model"), content):  # mmdet's, detectron2's, bare
        entries = part if isinstance(part, dict) else {}
        state = {name: one for name, one in entries.items() if isinstance(one, Tensor)}
        kind: Head | None = next((one for one, is_such in tests.items() if is_such(state)), None)
        if kind is None:
            continue
        strange = [name for name in entries if name not in state]
        if strange:
            raise InputError(
                f"{path}: need tensors, as of a published {kind}; {len(strange)} entries are something else, such as "
                f"{strange[0]!r}. Download it again."
            )
        return kind, state
    return None


def _check_transformers() -> None:
    from importlib.util import find_spec

    if find_spec("transformers") is None:
        raise InputError("--to hf: needs transformers, to open the result: pip install transformers.")


def _inputs(clip: "Clip") -> "tuple[Float[Tensor, '1 3 H W'], Int64[Tensor, '1 T']]":
    """A picture of noise at the native size, and a text of random tokens that ends as texts of this CLIP do."""
    import torch

    generator = torch.Generator().manual_seed(0)
    text = clip.config["model_cfg"]["text_cfg"]
    words = text.get("vocab_size", 49408)
    tokens = torch.randint(3, words - 2, (1, text.get("context_length", 77)), generator=generator)
    tokens[0, -1] = text["eos_id"] if text.get("pool_type") == "eos" else words - 1
    return torch.randn(1, 3, clip.native_size, clip.native_size, generator=generator), tokens


def _embed_ours(clip: "Clip", picture: "Tensor", text: "Tensor") -> "Pair":
    import torch

    with torch.no_grad():
        return clip.encode_image(picture), clip.encode_text(text)


def _embed_again(folder: Path, layout: str, picture: "Tensor", text: "Tensor") -> "Pair":
    """Open what was written with the library it is meant for."""
    import open_clip
    import torch
    import torch.nn.functional as F

    from foveate.clip.load import load

    with torch.no_grad():
        if layout == "foveate":
            return _embed_ours(load(folder), picture, text)
        if layout == "open_clip":
            opened: Any = open_clip.create_model_from_pretrained(f"local-dir:{folder}", return_transform=False)
            images, texts = opened.eval().encode_image(picture), opened.encode_text(text)
        else:
            from transformers import AutoModel
            from transformers.utils import logging

            logging.disable_progress_bar()

            opened = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
            images = opened.get_image_features(pixel_values=picture).pooler_output
            texts = opened.get_text_features(input_ids=text).pooler_output
        return F.normalize(images, dim=1), F.normalize(texts, dim=1)


def _distance(one: "Tensor", other: "Tensor") -> float:
    return float((one - other).abs().max())
