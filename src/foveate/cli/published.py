"""Folders of transformers with a Mask2Former or MaskFormer, as --model of `segment` and `evaluate panoptic`."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from foveate.errors import InputError
from foveate.heads.panoptic.described import Described, describe

if TYPE_CHECKING:
    import torch

    from foveate.clip.vocabulary import Vocabulary
    from foveate.heads.panoptic.published import ClassMap, Published


def open_published(
    folder: Path, vocabulary: "Vocabulary", *, input: tuple[int, int] | None, has_clip: bool, device: "torch.device"
) -> "tuple[Published, ClassMap]":
    """Read a folder of transformers, match its classes with those asked for, and tell what has no partner.

    Args:
        folder: the model's.
        vocabulary: the classes asked for.
        input: shortest and longest edge of its input [pixels]; None: the folder's.
        has_clip: whether a CLIP names masks too.
        device: where the model goes.

    Raises:
        InputError: a damaged folder, sizes that cannot be, or no class in common.
    """
    from foveate.heads.panoptic.published import match_classes, read_published

    about = describe(folder)
    if input is not None:
        if not 1 <= input[0] <= input[1]:
            raise InputError(f"--input: must be the shortest edge and then the longest, in pixels; got {input[0]} "
                             f"{input[1]}.")  # fmt: skip
        about = replace(about, shortest=input[0], longest=input[1], notes=())
    for line in about.notes:
        tell(line)
    own = vocabulary_of(about, vocabulary, folder)
    mapped = match_classes(own, vocabulary, is_open=has_clip)
    left = [name for name, place in zip(own.names, mapped.owner.tolist(), strict=True) if place < 0]
    unknown = [name for name, is_known in zip(vocabulary.names, mapped.known, strict=True) if not is_known]
    for names, what in (
        (left, "of the model are not asked for: masks of them " + ("go to CLIP" if has_clip else "are left out")),
        (unknown, "asked for are none of the model's: " + ("CLIP alone names them" if has_clip else "none is found")),
    ):
        if names:
            tell(f"{len(names)} classes {what} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})")
    return read_published(folder, described=about, device=device), mapped


def vocabulary_of(about: Described, asked: "Vocabulary", folder: Path) -> "Vocabulary":
    """The classes of a folder of transformers; in the order of those asked for where it only numbers as many.

    Raises:
        InputError: it only numbers its classes, and has not as many.
    """
    from foveate.clip.vocabulary import Vocabulary

    if about.has_names:
        return Vocabulary(about.classes)
    if len(about.classes) != len(asked.classes):
        raise InputError(
            f"{folder}: need the names of its classes, or as many as are asked for; config.json numbers "
            f"{len(about.classes)} without names, and {len(asked.classes)} are asked for. Write the names into "
            "id2label."
        )
    tell(f"{folder}: has no names of its {len(about.classes)} classes; they are taken in the order of those asked for")
    return asked


def tell(message: str) -> None:
    """Say something beside the result."""
    print(message, file=sys.stderr, flush=True)
