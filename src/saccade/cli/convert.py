"""`saccade convert`: from any weights that load to a folder for open_clip, Hugging Face transformers, or Saccade; and
from published files of heads to folders that the other commands take (`saccade.cli.convert_fvit`).

What was written is opened by the library it is meant for, which must embed a fixed random picture and text as the input
did; only then does the folder get its name.
"""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from saccade.errors import InputError
from saccade.files import check_target
from saccade.heads.fvit.names import Benchmark

if TYPE_CHECKING:
    from jaxtyping import Float, Int64
    from torch import Tensor

    from saccade.clip.model import Clip

    Pair = tuple[Float[Tensor, "1 D"], Float[Tensor, "1 D"]]  # embeddings of a picture and a text, of length 1

_OF_DENSE = ("windows", "gates")  # what only Saccade knows, and no other library has a word for
TOLERANCE = 1e-4  # of embeddings of length 1, in float32


@dataclass(frozen=True)
class Convert:
    """Write a CLIP in another layout, and check that its own library opens it and embeds the same.

    A published F-ViT (mmdet's checkpoint) becomes a folder for `saccade detect` and `saccade evaluate detection`; which
    of the two a file is, its content tells.
    """

    source: Positional[str]
    """A CLIP's folder or weights file, saccade-small, or, with --model, an open_clip tag of that architecture; or a
    published F-ViT's file."""
    out: Positional[Path]
    """Folder to write; new or empty."""
    to: Literal["open_clip", "hf", "saccade"] = "saccade"
    """open_clip: a folder for local-dir:OUT. hf: for transformers' CLIPModel or SiglipModel. saccade: open_clip's
    folder with what only Saccade knows, such as window attention and gates of heads."""
    model: str | None = None
    """Architecture of a weights file whose content leaves it open, or of a tag."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the weights in the file."""
    clip: str | None = None
    """F-ViT: the CLIP whose text tower it was trained with, a file or a folder, or an architecture with --pretrained.
    Its image tower is replaced by the file's where they differ."""
    pretrained: str | None = None
    """F-ViT: an open_clip tag or a file of weights for --clip."""
    annotations: Path | None = None
    """F-ViT: COCO's or LVIS's annotation file for the class names, which the file does not hold; when not given,
    OV-COCO's 65."""
    novel: Path | None = None
    """F-ViT: JSON file {"base": [names], "novel": [names]}; when not given, LVIS's rare ones or OV-COCO's are novel."""
    benchmark: Benchmark | None = None
    """F-ViT: whose score fusion it is asked with; when not given, OV-LVIS's where it finds masks, OV-COCO's else."""
    size: int | None = None
    """F-ViT: side of the square input [pixels]; when not given, the published one: 640 or (OV-LVIS) 1024 for patches of
    16, 896 for 14."""


def run(config: Convert) -> None:
    """Load, write, open again, compare; or hand a published head over.

    Raises:
        InputError: the input does not load, the layout has no place for it, OUT holds something, or the result differs.
    """
    _check_out(config.out)
    _check_weights(config)
    head = _published_head(config)
    if head is not None:
        from saccade.cli.convert_fvit import run as run_fvit

        run_fvit(config, head)
        return
    if config.to == "hf":
        _check_transformers()
    import torch

    from saccade.clip.describe import holds_tokenizer
    from saccade.clip.load import load
    from saccade.clip.weights import save_clip, save_huggingface

    clip = load(config.model, pretrained=config.source) if config.model else load(config.source)
    picture, text = _inputs(clip)
    exact = _embed_ours(clip, picture, text)
    dtype = getattr(torch, config.dtype)
    with torch.no_grad():  # what the file can hold; comparing with this leaves the conversion's own error
        for tensor in (*clip.parameters(), *clip.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(tensor.to(dtype))
    before = _embed_ours(clip, picture, text)
    if config.to != "saccade":
        known = [key for key in clip.config.get("saccade", {}) if config.to == "open_clip" or key in _OF_DENSE]
        clip.config = {key: value for key, value in clip.config.items() if key != "saccade"}
        if known:
            library = "open_clip has" if config.to == "open_clip" else "transformers have"
            print(f"left out, since {library} no word for it: {', '.join(known)}", file=sys.stderr)
    partial = config.out.absolute().with_name(f".{config.out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (save_huggingface if config.to == "hf" else save_clip)(clip, partial, dtype=dtype)
        after = _embed_again(partial, config.to, picture, text)
        images, texts = (_distance(one, other) for one, other in zip(before, after, strict=True))
        if not max(images, texts) <= TOLERANCE:
            raise InputError(
                f"{config.out}: not written, since opened again it embeds differently: a picture by {images:.1e}, "
                f"a text by {texts:.1e}; need at most {TOLERANCE:.0e}. "
                + ("open_clip may lack this model's activation; use --to saccade." if config.to == "open_clip" else "")
            )
        if config.out.is_dir():
            config.out.rmdir()  # it is empty
        partial.replace(config.out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
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
    from saccade.clip.describe import describe_architecture

    if config.model is None and describe_architecture(config.source) is not None:
        raise InputError(
            f"SOURCE: {config.source} names an architecture without weights. Give a weights file or a tag as SOURCE, "
            f"and --model {config.source}."
        )


def _published_head(config: Convert) -> "dict[str, Tensor] | None":
    """The state dictionary of a published F-ViT; None where the source is something else."""
    from saccade.clip.states import file_kind
    from saccade.heads.fvit.published import is_published_fvit

    if not Path(config.source).is_file() or file_kind(Path(config.source)) != "torch":
        return None
    from torch import Tensor

    from saccade.clip.checkpoint_file import read_checkpoint

    content = read_checkpoint(config.source)
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        return None
    state = {name: one for name, one in state.items() if isinstance(one, Tensor)}
    return state if is_published_fvit(state) else None


def _check_transformers() -> None:
    from importlib.util import find_spec

    if find_spec("transformers") is None:
        raise InputError('--to hf: needs transformers, to open the result: pip install "saccade[hf]".')


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

    from saccade.clip.load import load

    with torch.no_grad():
        if layout == "saccade":
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
