"""The provenance of region proposals: refuses proposals that were trained on novel classes (Sec. 3.2; A.3).

Proposals are class-agnostic, but a proposal network that was trained on boxes of a novel class has seen that class.
So `foveate proposals` writes its training classes into its file, and `foveate distill --regions FILE` checks them:

    {"info": {"provenance": {"training_categories": [names], "novel_categories": [names], "rule": ..., ...}}, ...}

Names are compared as by `foveate.types.normalize_name`. A file without provenance is accepted with a note, and
synonyms (LVIS's "sofa", COCO's "couch") are not recognised.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from foveate.data.validation import parse, short
from foveate.errors import InputError, listed
from foveate.types import normalize_name


@dataclass(frozen=True)
class Provenance:
    """What a file of proposals was trained on."""

    training_categories: tuple[str, ...]
    novel_categories: tuple[str, ...]  # held back in training


def read_provenance(path: Path) -> Provenance | None:
    """Read the provenance of a file of boxes; None if it has none (only COCO's form can have one).

    Raises:
        InputError: not a JSON file, or a provenance without its lists of names.
    """
    content = parse(path, kind="a boxes")
    info = content.get("info") if isinstance(content, dict) else None
    facts = info.get("provenance") if isinstance(info, dict) else None
    if facts is None:
        return None
    lists = [facts.get(key) if isinstance(facts, dict) else None for key in ("training_categories", "novel_categories")]
    for names in lists:
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(
                f"{path}: info.provenance: need the lists of names `training_categories` and `novel_categories`; got "
                f"{short(facts)}. Make the file again with `foveate proposals`, or remove that entry."
            )
    training, novel = (tuple(names) for names in lists if names is not None)
    return Provenance(training, novel)


def check_provenance(path: Path, novel: Collection[str] | None, *, known: Collection[str] = ()) -> str | None:
    """Refuse proposals that were trained on a novel class.

    Args:
        path: the file of boxes.
        novel: novel class names of the data; None: the data has none, and those of the file are used.
        known: all class names of the data, if known.

    Returns:
        A line to report to the user, or None.

    Raises:
        InputError: a training class of the file is novel; or as `read_provenance`.
    """
    provenance = read_provenance(path)
    if provenance is None:
        return (
            f"--regions {path}: has no provenance (info.provenance), so it is not known whether it has seen novel "
            "classes; `foveate proposals` writes files with provenance"
        )
    held_out = {normalize_name(name) for name in (provenance.novel_categories if novel is None else novel)}
    leaked = [name for name in provenance.training_categories if normalize_name(name) in held_out]
    if not leaked:
        return _warning(path, provenance.training_categories, known)
    raise InputError(
        f"--regions {path}: need proposals trained on base classes only; these were trained on {len(leaked)} novel "
        f"classes: {listed(leaked)}. Make others with `foveate proposals`, or, where nothing is to be novel, remove "
        "the entry info.provenance from the file."
    )


def _warning(path: Path, training: Collection[str], known: Collection[str]) -> str | None:
    """A warning where the names do not show whether a novel class was seen; None where they can be compared."""
    if not training:
        reason = "has an empty list training_categories"
    elif known and not {normalize_name(name) for name in training} & {normalize_name(name) for name in known}:
        reason = (
            f"was trained on {len(training)} classes (such as {next(iter(training))!r}), none of which is among the "
            f"{len(known)} of the data (such as {next(iter(known))!r})"
        )
    else:
        return None
    return (
        f"WARNING   --regions {path}: {reason}, so it is not known whether it has seen novel classes. Are these the "
        "proposals of this data? `foveate proposals` makes some"
    )
