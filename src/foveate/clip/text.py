"""Class names to classifier rows: every prompt's embedding normalised, averaged, normalised (Sec. 4.1).

Thousands of prompts through a large text tower take minutes on a CPU, so the rows can be kept in a folder. Absent:
templates (`foveate.clip.templates`) and vocabulary files (`foveate.clip.vocabulary`).
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from foveate.clip.io.digest import digest_state
from foveate.clip.model import Clip
from foveate.clip.names import TemplateName
from foveate.clip.templates import template_set
from foveate.clip.vocabulary import Vocabulary
from foveate.errors import InputError
from foveate.io.files import write_whole
from foveate.types import normalize_name


@torch.no_grad()
def embed_vocabulary(
    clip: Clip,
    vocabulary: Vocabulary | Sequence[str],
    *,
    templates: TemplateName | tuple[str, ...] = "vild",
    background: str | None = None,
    normalize: bool = True,
    batch: int = 512,
    cache: Path | None = None,
) -> Float[Tensor, "K D"]:
    """Embed classes as the zero-shot classifier of Sec. 4.1: the mean over templates.

    A class with synonyms is the mean over all templates of all its words: each prompt's embedding is normalised, they
    are averaged with equal weight, and the mean is normalised.

    Args:
        clip: whose text tower is asked.
        vocabulary: of `foveate.clip.vocabulary.read_vocabulary`, or the names of the classes.
        templates: "vild", "clip", "none", or one's own; see `foveate.clip.templates.template_set`.
        background: a word for what belongs to no class ("background"), embedded like a class.
        normalize: to length 1, each prompt's embedding and their mean; ODISE's generator has neither.
        batch: prompts embedded at once.
        cache: folder where the rows are kept for the next call with the same text tower, prompts, batch, device and
            number of threads; on one machine the result is the same to the bit with and without it. None: nothing is
            read or written.

    Returns:
        One embedding a class, of length 1 where normalised, on the device of the model; with a background one more, the
        last.

    Raises:
        InputError: no names, an empty name, unknown templates, a batch below 1, or a background that is a class.
    """
    classes = _classes(vocabulary, background)
    chosen = template_set(templates)
    if batch < 1:
        raise InputError(f"batch: need at least 1 prompt; got {batch}.")
    texts = [[text for word in words for text in chosen.fill(word)] for words in classes]
    tokens = clip.tokenize([text for one in texts for text in one])  # (T, context)
    counts = [len(one) for one in texts]  # prompts of each class
    device = clip.model.logit_scale.device
    if cache is None:
        return _embed(clip, tokens, counts, normalize=normalize, batch=batch)
    key = _cache_key(clip, tokens, counts, normalize=normalize, batch=batch)
    path = cache / f"text-{key}.safetensors"
    kept = _read_cached(path, key=key, shape=(len(classes), clip.embed_dim))
    if kept is not None:
        return kept.to(device)
    rows = _embed(clip, tokens, counts, normalize=normalize, batch=batch)
    _write_cached(path, rows.cpu(), key=key)
    return rows


def _classes(vocabulary: Vocabulary | Sequence[str], background: str | None) -> list[tuple[str, ...]]:
    """The words of each class, the background's last."""
    if isinstance(vocabulary, Mapping):
        raise InputError(
            "vocabulary: need a list of names or a Vocabulary; got a dictionary. Synonyms are written as "
            "Vocabulary(((name, synonym, ...), ...)) or in a .json file."
        )
    if isinstance(vocabulary, str):
        raise InputError(f"vocabulary: need a list of names; got the text {vocabulary!r}. Use read_vocabulary for it.")
    classes = [*vocabulary.classes] if isinstance(vocabulary, Vocabulary) else [(name,) for name in vocabulary]
    if not classes:
        raise InputError("vocabulary: need at least one class name; got none.")
    if background is None:
        return classes
    same = [words[0] for words in classes if normalize_name(background) in map(normalize_name, words)]
    if same:
        raise InputError(f"background: need a word that names no class; {background!r} is class {same[0]!r}.")
    return [*classes, (background,)]


def _embed(
    clip: Clip, tokens: Int64[Tensor, "T context"], counts: list[int], *, normalize: bool, batch: int
) -> Float[Tensor, "K D"]:
    """Embed all prompts and average those of each class."""
    each = torch.cat([clip.encode_text(part, normalize=normalize).float() for part in tokens.split(batch)])  # (T, D)
    means = torch.stack([own.mean(dim=0) for own in each.split(counts)])  # (K, D)
    return F.normalize(means, dim=1) if normalize else means


# ------------------------------------------------------------------------------------------------------------ the cache


def _cache_key(clip: Clip, tokens: Tensor, counts: list[int], *, normalize: bool, batch: int) -> str:
    """Digest whatever the rows depend on: the text tower, the prompts as tokens (so the tokenizer is in it), and what
    decides their last bits."""
    state = clip.model.state_dict()
    tower = digest_state({name: tensor for name, tensor in state.items() if not name.startswith("visual.")})
    description = {name: value for name, value in clip.config["model_cfg"].items() if name != "vision_cfg"}
    prompts = digest_state({"tokens": tokens, "counts": torch.tensor(counts)})
    device = clip.model.logit_scale.device.type
    precision = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else ""
    arithmetic = [device, precision, torch.__version__, torch.get_num_threads(), batch]
    arithmetic += [] if normalize else ["raw"]  # rows that were kept before keep their key
    facts = json.dumps([tower, description, prompts, list(tokens.shape), arithmetic], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()


def _read_cached(path: Path, *, key: str, shape: tuple[int, int]) -> Tensor | None:
    """Read rows that were kept; None where there are none, or the file is damaged or not ours."""
    try:
        with safe_open(path, framework="pt") as file:
            facts, rows = file.metadata() or {}, file.get_tensor("rows")
    except (OSError, SafetensorError):
        return None
    is_whole = rows.shape == shape and rows.dtype == torch.float32 and facts.get("sha256") == digest_state({"": rows})
    return rows if is_whole and facts.get("key") == key else None


def _write_cached(path: Path, rows: Tensor, *, key: str) -> None:
    """Keep rows; where that fails the work is not lost, only not kept, and says so."""
    try:
        write_whole(path, save({"rows": rows}, {"key": key, "sha256": digest_state({"": rows})}))
    except OSError as error:
        print(f"text embeddings could not be kept in {path.parent}: {error}", file=sys.stderr)
