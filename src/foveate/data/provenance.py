"""What region proposals were trained on, and refusing those that have seen what is to be novel (Sec. 3.2; A.3).

Proposals are class-agnostic, but whoever trained them on boxes of a novel class has shown it to the method. So
`foveate proposals` writes its training classes into its file, and `foveate distill --regions FILE` looks there:

    {"info": {"provenance": {"training_categories": [names], "novel_categories": [names], "rule": ..., ...}}, ...}

Names are compared without regard to case, and `_` is a space. Deliberately absent: proof. A file without provenance is
taken with a note, and synonyms (LVIS's "sofa", COCO's "couch") are not known to be one.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from foveate.data.strict import parse, short
from foveate.errors import InputError, listed


@dataclass(frozen=True)
class Provenance:
    """What a file of proposals says about its making."""

    training_categories: tuple[str, ...]  # whose boxes its maker learned from
    novel_categories: tuple[str, ...]  # which its maker held back


def read_provenance(path: Path) -> Provenance | None:
    """Read what a file of boxes says about its making.

    Args:
        path: a JSON file in any form that `boxes.py` reads; only COCO's can say anything.

    Returns:
        What it says; None where it says nothing.

    Raises:
        InputError: no such file, not JSON, or a provenance without its lists of names.
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
        novel: names of the novel classes of the data; None where it has none, then those that the file names itself.
        known: names of all the data's classes, where these are known.
    Returns:
        What the user must be told, or None.

    Raises:
        InputError: training classes of the file are novel; names the file, the classes and what to do. Or as
            `read_provenance`.
    """
    found = read_provenance(path)
    if found is None:
        return (
            f"--regions {path}: does not say what it was trained on (info.provenance), so nobody can tell whether it "
            "has seen novel classes; `foveate proposals` writes files that do"
        )
    unseen = {_plain(name) for name in (found.novel_categories if novel is None else novel)}
    leaked = [name for name in found.training_categories if _plain(name) in unseen]
    if not leaked:
        return _doubt(path, found.training_categories, known)
    raise InputError(
        f"--regions {path}: need proposals trained on base classes alone; these were trained on {len(leaked)} novel "
        f"classes: {listed(leaked)}. Make others with `foveate proposals`, or, where nothing is to be novel, remove "
        "the entry info.provenance from the file."
    )


def _doubt(path: Path, training: Collection[str], known: Collection[str]) -> str | None:
    """Why nobody can tell by these names whether a novel class was seen; None where they can be compared."""
    if not training:
        reason = "has an empty training_categories: it says that it was trained on no class at all"
    elif known and not {_plain(name) for name in training} & {_plain(name) for name in known}:
        some, own = next(iter(training)), next(iter(known))
        reason = (
            f"was trained on {len(training)} classes (such as {some!r}), none of which is among the {len(known)} of "
            f"the data (such as {own!r})"
        )
    else:
        return None
    return (
        f"WARNING   --regions {path}: {reason}, so nobody can tell whether it has seen novel classes. Are these the "
        "proposals of this data? `foveate proposals` makes some"
    )


def _plain(name: str) -> str:
    return name.replace("_", " ").casefold().strip()
