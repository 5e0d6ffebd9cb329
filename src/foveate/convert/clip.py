"""`foveate convert` of a CLIP: saved in another layout and opened by the library of the layout.

The opened model must embed a random image and text as the input does; otherwise nothing is saved.
"""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from foveate.clip.io.describe import describe_architecture, holds_tokenizer
from foveate.clip.io.weights import save_clip, save_huggingface
from foveate.clip.load import load
from foveate.clip.model import Clip
from foveate.convert.flags import Convert
from foveate.errors import InputError
from foveate.io.files import folder_written_whole

Pair = tuple[Float[Tensor, "1 D"], Float[Tensor, "1 D"]]  # embeddings of an image and a text, of length 1

TOLERANCE = 1e-4  # of embeddings of length 1, in float32
_DENSE_SETTINGS = ("windows", "gates")  # of Foveate alone


def convert_clip(config: Convert) -> None:
    """Load, save, open and compare.

    Raises:
        InputError: the input does not load, the layout cannot express it, or the result differs.
    """
    if config.to == "hf" and find_spec("transformers") is None:
        raise InputError("--to hf: needs transformers to open the result: pip install transformers.")
    if config.model:
        clip = load(config.model, pretrained=config.source, text_from=config.text_from)
    else:
        clip = load(config.source, text_from=config.text_from)
    image, text = _inputs(clip)
    exact = _embed(clip, image, text)
    dtype = getattr(torch, config.dtype)
    _round_weights(clip, dtype)  # so that only errors of the conversion itself remain
    before = _embed(clip, image, text)
    if config.to != "foveate":
        _remove_settings(clip, config.to)

    # save, open and compare
    with folder_written_whole(config.out) as partial:
        (save_huggingface if config.to == "hf" else save_clip)(clip, partial, dtype=dtype)
        after = _embed_again(partial, config.to, image, text)
        images, texts = _distances(before, after)
        if not max(images, texts) <= TOLERANCE:
            raise InputError(
                f"{config.out}: not saved, since the opened result embeds differently: an image by {images:.1e}, "
                f"a text by {texts:.1e}; need at most {TOLERANCE:.0e}. "
                + ("open_clip may lack this model's activation; use --to foveate." if config.to == "open_clip" else "")
            )

    # report
    tokenizer = clip.config["model_cfg"]["text_cfg"].get("hf_tokenizer_name")
    if tokenizer and not holds_tokenizer(config.out):
        source = "" if Path(tokenizer).is_dir() else f" of {tokenizer}"
        print(f"the input has no tokenizer files: copy those{source} to {config.out}", file=sys.stderr)
    print(f"{config.out}: {', '.join(sorted(path.name for path in config.out.iterdir()))}")
    print(f"embeddings of the opened result differ by {images:.1e} (image) and {texts:.1e} (text)")
    if config.dtype != "float32":
        images, texts = _distances(exact, after)
        print(f"from the input, with {config.dtype}: {images:.1e} and {texts:.1e}")


def check_weights(name: str, *, flag: str, cure: str | None = None) -> None:
    """Refuse the name of an architecture without weights (InputError)."""
    if describe_architecture(name) is not None:
        cure = cure or f"Give {flag} {name}:PRETRAINED, or a file."
        raise InputError(f"{flag} {name}: names an architecture without weights. {cure}")


def _round_weights(clip: Clip, dtype: torch.dtype) -> None:
    with torch.no_grad():
        for tensor in (*clip.parameters(), *clip.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(tensor.to(dtype))


def _remove_settings(clip: Clip, layout: str) -> None:
    """Remove the settings of Foveate from a CLIP's config, and print those that are lost."""
    removed = [key for key in clip.config.get("foveate", {}) if layout == "open_clip" or key in _DENSE_SETTINGS]
    clip.config = {key: value for key, value in clip.config.items() if key != "foveate"}
    if removed:
        library = "open_clip" if layout == "open_clip" else "transformers"
        print(f"not saved, since {library} cannot express it: {', '.join(removed)}", file=sys.stderr)


def _inputs(clip: Clip) -> tuple[Float[Tensor, "1 3 H W"], Int64[Tensor, "1 T"]]:
    """An image of noise at the native size, and a text of random tokens with the end token of this CLIP."""
    generator = torch.Generator().manual_seed(0)
    text = clip.config["model_cfg"]["text_cfg"]
    token_count = text.get("vocab_size", 49408)
    tokens = torch.randint(3, token_count - 2, (1, text.get("context_length", 77)), generator=generator)
    tokens[0, -1] = text["eos_id"] if text.get("pool_type") == "eos" else token_count - 1
    return torch.randn(1, 3, clip.native_size, clip.native_size, generator=generator), tokens


def _embed(clip: Clip, image: Tensor, text: Tensor) -> Pair:
    with torch.no_grad():
        return clip.encode_image(image), clip.encode_text(text)


def _embed_again(folder: Path, layout: str, image: Tensor, text: Tensor) -> Pair:
    """Open the result with the library of the layout, and embed."""
    with torch.no_grad():
        if layout == "foveate":
            return _embed(load(folder), image, text)
        if layout == "open_clip":
            opened: Any = open_clip.create_model_from_pretrained(f"local-dir:{folder}", return_transform=False)
            images, texts = opened.eval().encode_image(image), opened.encode_text(text)
        else:
            from transformers import AutoModel
            from transformers.utils import logging

            logging.disable_progress_bar()

            opened = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
            images = opened.get_image_features(pixel_values=image).pooler_output
            texts = opened.get_text_features(input_ids=text).pooler_output
        return F.normalize(images, dim=1), F.normalize(texts, dim=1)


def _distances(before: Pair, after: Pair) -> tuple[float, float]:
    """The largest differences of the image embedding and of the text embedding."""
    image, text = (float((old - new).abs().max()) for old, new in zip(before, after, strict=True))
    return image, text
