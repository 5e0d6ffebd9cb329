"""What `foveate distill` minimises: CLIPSelf (Sec. 3.2), or one of the two baselines it is compared with, which learn
from text (Tab. 1, row 5; A.4).

Deliberately absent: the loop, and everything the three have in common (`distill.py`).
"""

import hashlib
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

from foveate.clip.dense import default_windows
from foveate.clip.model import Clip
from foveate.clip.names import Head
from foveate.clip.text import embed_vocabulary
from foveate.clip.vocabulary import Vocabulary, read_vocabulary
from foveate.data.nouns import count_nouns
from foveate.data.records import Dataset
from foveate.errors import InputError, listed
from foveate.io.files import default_cache, write_whole
from foveate.objectives.clipself import ClipSelf, count_regions
from foveate.objectives.image_text import ImageText
from foveate.objectives.region_text import RegionText
from foveate.train.batches import count_images
from foveate.train.defaults import nouns_file, regions_of
from foveate.train.flags import DistillConfig
from foveate.types import Batch

NOUN_TEMPLATES = ("a photo of {article} {}.",)  # one prompt per noun: 63 times some thousand nouns would take minutes
_SHOWN = 12  # nouns


@dataclass(frozen=True)
class Nouns:
    """The classes of region-text supervision, and how often each occurs in the captions, where they come from there."""

    vocabulary: Vocabulary
    counted: list[tuple[str, int]] | None

    def facts(self) -> dict[str, str]:
        """What makes a run with other nouns another run."""
        words = json.dumps([list(words) for words in self.vocabulary.classes])
        return {"vocabulary": hashlib.sha256(words.encode()).hexdigest()}

    def line(self) -> str:
        """For the user."""
        names = self.vocabulary.names
        return f"nouns     {len(names):,}{' in the captions' if self.counted else ''}: {listed(names, _SHOWN)}"

    def write(self, out: Path) -> None:
        """Keep what was counted in OUT/nouns.json, [noun, number] per line; a file given by the user exists already."""
        if self.counted is not None:
            lines = ",\n".join(json.dumps(pair, ensure_ascii=False) for pair in self.counted)
            write_whole(out / "nouns.json", f"[\n{lines}\n]\n".encode())


def trained_head(config: DistillConfig) -> Head | None:
    """The last block as it is trained; None: unchanged, which the embedding of whole images uses."""
    return None if config.objective == "image-text" else dense_head(config)


def dense_head(config: DistillConfig) -> Head:
    """The last block of the student's dense forward; gated is values3 with gates."""
    return "values3" if config.head == "gated" else config.head


def choose_nouns(config: DistillConfig, dataset: Dataset) -> Nouns | None:
    """The classes of region-text supervision, from a file or from the captions; other objectives have none.

    Args:
        config: flags.
        dataset: with its captions, where they are needed.

    Raises:
        InputError: the file is not what it must be, or no noun occurs often enough.
    """
    if config.objective != "region-text":
        return None
    file = nouns_file(config)
    if file is not None:
        try:
            return Nouns(read_vocabulary(file), None)
        except InputError as error:
            raise InputError(f"--captions {error}") from error
    counted = count_nouns(dataset.captions)
    return Nouns(Vocabulary(tuple((noun,) for noun, _ in counted)), counted)


def choose_count(config: DistillConfig) -> Callable[[Batch], int]:
    """What the loss of a batch is the mean over: its regions, or its images."""
    return count_images if config.objective == "image-text" else count_regions


def build_objective(
    config: DistillConfig, student: Clip, original: Clip, *, student_size: int, nouns: Nouns | None
) -> ClipSelf | ImageText:
    """Build what is minimised.

    Args:
        config: flags.
        student: what of it is trained is chosen already.
        original: the student before its first step; the teacher, or what the teacher is copied from.
        student_size: side of the student's square input [pixels].
        nouns: of `choose_nouns`.
    """
    low = config.precision == "bfloat16"
    if config.window is not None:
        student.windows = default_windows(student.visual, size=config.window)
    student.pad = config.pad
    if config.objective == "image-text":
        return ImageText(
            student,
            student_size=student_size,
            pad=config.pad,
            low_precision=low,
            compiled=config.compile,
            checkpointing=config.checkpointing,
        )
    teacher = deepcopy(original).bfloat16() if low else original  # before a tokenizer is made
    return ClipSelf(
        student,
        teacher,
        student_size=student_size,
        pad=config.pad,
        head=dense_head(config),
        enlarge=1.5 if regions_of(config) == "boxes" else 1.0,
        tokens=config.tokens,
        keep=config.keep,
        correlation=config.correlation,
        low_precision=low and not config.fsdp,  # FSDP gathers in bfloat16 itself
        compiled=config.compile,
        checkpointing=config.checkpointing,
        compare=None if nouns is None else _compare(student, nouns),
    )


def _compare(student: Clip, nouns: Nouns) -> RegionText:
    """Regions are told apart among nouns, as the student's own text tower embeds them."""
    rows = embed_vocabulary(student, nouns.vocabulary, templates=NOUN_TEMPLATES, cache=default_cache())  # (K, D)
    return RegionText(rows, scale=student.model.logit_scale.detach().exp())
