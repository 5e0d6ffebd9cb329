"""Text embeddings of class names: the normalised mean of the normalised embeddings of all prompts (Sec. 4.1).

Thousands of prompts take a large text tower minutes on a CPU, so that the embeddings can be cached in a folder.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from open_clip.tokenizer import SimpleTokenizer
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
    each_name: bool = False,
    batch: int = 512,
    cache: Path | None = None,
) -> Float[Tensor, "K D"]:
    """Embed classes as the zero-shot classifier of Sec. 4.1: the mean over all templates and synonyms of a class.

    Args:
        vocabulary: of `foveate.clip.vocabulary.read_vocabulary`, or class names.
        templates: "vild", "clip", "none", or custom ones; see `foveate.clip.templates.template_set`.
        background: name of an additional class, the last, for what belongs to no class ("background").
        normalize: scale the embedding of each prompt and their mean to length 1; ODISE does neither.
        each_name: return a row for every name and synonym, class by class, instead of one for every class.
        batch: prompts embedded at once.
        cache: folder that stores the embeddings for calls with the same text tower, prompts, batch, device and number
            of threads; the result has the same bits with and without it. None: no cache.

    Returns:
        (K, D) on the device of the model; K + 1 rows with a background. Prompts that exceed the context length are cut
        and reported.

    Raises:
        InputError: no names, an empty name, unknown templates, a batch below 1, a background that is a class, or two
            classes of different names with the same tokens.
    """
    classes = _class_names(vocabulary, background)
    prompts = template_set(templates)
    if batch < 1:
        raise InputError(f"batch: need at least 1 prompt; got {batch}.")
    texts = [text for names in classes for name in names for text in prompts.fill(name)]
    tokens = clip.tokenize(texts)  # (T, context)
    report_cut(clip, texts, tokens)
    check_distinct(classes, tokens, templates=len(prompts.templates))
    rows = [(name,) for names in classes for name in names] if each_name else classes
    counts = [len(names) * len(prompts.templates) for names in rows]
    if cache is None:
        return _embed(clip, tokens, counts, normalize=normalize, batch=batch)
    key = _cache_key(clip, tokens, counts, normalize=normalize, batch=batch)
    path = cache / f"text-{key}.safetensors"
    cached = _read_cached(path, key=key, shape=(len(rows), clip.embed_dim))
    if cached is not None:
        return cached.to(clip.model.logit_scale.device)
    embeddings = _embed(clip, tokens, counts, normalize=normalize, batch=batch)
    _write_cached(path, embeddings.cpu(), key=key)
    return embeddings


def report_cut(clip: Clip, texts: list[str], tokens: Int64[Tensor, "T context"], *, what: str = "prompts") -> None:
    """Report to stderr how many texts are cut at the context length, and the first of them; nothing if none is."""
    length = tokens.shape[1]
    pad = 0 if isinstance(clip.tokenizer, SimpleTokenizer) else clip.tokenizer.tokenizer.pad_token_id
    full = (tokens[:, -2:] != pad).any(dim=1).nonzero()[:, 0].tolist()  # their last tokens are not padding, or one is
    if not full:
        return
    longer = clip.tokenizer([texts[index] for index in full], context_length=length + 1)
    is_cut = (longer[:, :length] != tokens[full]).any(dim=1).tolist()
    cut = [texts[index] for index, beyond in zip(full, is_cut, strict=True) if beyond]
    if cut:
        print(
            f"{len(cut)} of {len(texts)} {what} exceed the {length} tokens of {clip.name} and are cut, first "
            f"{cut[0]!r:.80}",
            file=sys.stderr,
        )


def check_distinct(classes: Sequence[Sequence[str]], tokens: Int64[Tensor, "T context"], *, templates: int) -> None:
    """Refuse classes of different names that have the same tokens, as cut ones may; they could not be told apart.

    Args:
        tokens: of each name of each class in each of `templates` templates.

    Raises:
        InputError: names both classes.
    """
    prompts = iter(tokens.cpu().numpy().reshape(-1, templates * tokens.shape[1]))  # one row per name
    known: dict[frozenset[bytes], Sequence[str]] = {}
    for names in classes:
        other = known.setdefault(frozenset(next(prompts).tobytes() for _ in names), names)
        if {*map(normalize_name, names)} != {*map(normalize_name, other)}:
            raise InputError(
                f"classes: need prompts that differ; those of {other[0]!r:.80} and {names[0]!r:.80} have the same "
                f"{tokens.shape[1]} tokens. Shorten or change these names, or use shorter templates."
            )


def _class_names(vocabulary: Vocabulary | Sequence[str], background: str | None) -> list[tuple[str, ...]]:
    """The name and synonyms of each class, the background last."""
    if isinstance(vocabulary, Mapping):
        raise InputError(
            "vocabulary: need a list of names or a Vocabulary; got a dictionary. Write synonyms as "
            "Vocabulary(((name, synonym, ...), ...)) or in a .json file."
        )
    if isinstance(vocabulary, str):
        raise InputError(f"vocabulary: need a list of names; got the text {vocabulary!r}. Use read_vocabulary for it.")
    classes = [*vocabulary.classes] if isinstance(vocabulary, Vocabulary) else [(name,) for name in vocabulary]
    if not classes:
        raise InputError("vocabulary: need at least one class name; got none.")
    if background is None:
        return classes
    same = [names[0] for names in classes if normalize_name(background) in map(normalize_name, names)]
    if same:
        raise InputError(
            f"background: need a name that differs from all classes; {background!r} is class {same[0]!r}. Change it."
        )
    return [*classes, (background,)]


def _embed(
    clip: Clip, tokens: Int64[Tensor, "T context"], counts: list[int], *, normalize: bool, batch: int
) -> Float[Tensor, "K D"]:
    """Embed all prompts and average those of each class."""
    embedded = torch.cat(
        [clip.encode_text(part, normalize=normalize).float() for part in tokens.split(batch)]
    )  # (T, D)
    means = torch.stack([part.mean(dim=0) for part in embedded.split(counts)])  # (K, D)
    return F.normalize(means, dim=1) if normalize else means


# ---------------------------------------------------------------------------------------------------------------- cache


def _cache_key(clip: Clip, tokens: Tensor, counts: list[int], *, normalize: bool, batch: int) -> str:
    """Digest of everything that the bits of the embeddings depend on: text tower, tokens, arithmetic."""
    state = clip.model.state_dict()
    tower = digest_state({name: tensor for name, tensor in state.items() if not name.startswith("visual.")})
    description = {name: value for name, value in clip.config["model_cfg"].items() if name != "vision_cfg"}
    prompts = digest_state({"tokens": tokens, "counts": torch.tensor(counts)})
    device = clip.model.logit_scale.device.type
    precision = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else ""
    arithmetic = [device, precision, torch.__version__, torch.get_num_threads(), batch]
    arithmetic += [] if normalize else ["raw"]  # older caches keep their keys
    identity = json.dumps([tower, description, prompts, list(tokens.shape), arithmetic], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()


def _read_cached(path: Path, *, key: str, shape: tuple[int, int]) -> Tensor | None:
    """Read cached embeddings; None if the file does not exist, is damaged or is another."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata, rows = file.metadata() or {}, file.get_tensor("rows")
    except (OSError, SafetensorError):
        return None
    is_whole = (
        rows.shape == shape and rows.dtype == torch.float32 and metadata.get("sha256") == digest_state({"": rows})
    )
    return rows if is_whole and metadata.get("key") == key else None


def _write_cached(path: Path, rows: Tensor, *, key: str) -> None:
    """Cache embeddings; a failure is reported and not an error."""
    try:
        write_whole(path, save({"rows": rows}, {"key": key, "sha256": digest_state({"": rows})}))
    except OSError as error:
        print(f"text embeddings could not be cached in {path.parent}: {error}", file=sys.stderr)
