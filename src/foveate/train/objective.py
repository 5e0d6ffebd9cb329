"""The objectives of `foveate distill`: CLIPSelf (Sec. 3.2), or a baseline that learns from text (Tab. 1, row 5; A.4).

What the three have in common is in `distill.py`.
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
from foveate.objectives.correlation import Correlation
from foveate.objectives.image_text import ImageText
from foveate.objectives.keep import CropKeeping
from foveate.objectives.region_text import RegionText
from foveate.objectives.student import Execution
from foveate.train.batches import count_images
from foveate.train.defaults import nouns_file, regions_of
from foveate.train.flags import DistillConfig
from foveate.types import Batch

NOUN_TEMPLATES = ("a photo of {article} {}.",)  # one prompt per noun: 63 for some thousand nouns take minutes
_MAX_LISTED = 12


@dataclass(frozen=True)
class Nouns:
    """The classes of region-text supervision."""

    vocabulary: Vocabulary
    counts: list[tuple[str, int]] | None  # how often each occurs in the captions; None: they are from a file

    def metadata(self) -> dict[str, str]:
        """What identifies a run with these nouns."""
        names = json.dumps([list(names) for names in self.vocabulary.classes])
        return {"vocabulary": hashlib.sha256(names.encode()).hexdigest()}

    def line(self) -> str:
        """For the user."""
        names = self.vocabulary.names
        return f"nouns     {len(names):,}{' in the captions' if self.counts else ''}: {listed(names, _MAX_LISTED)}"

    def write(self, out: Path) -> None:
        """Write the nouns of the captions to OUT/nouns.json, [noun, count] per line."""
        if self.counts is not None:
            lines = ",\n".join(json.dumps(pair, ensure_ascii=False) for pair in self.counts)
            write_whole(out / "nouns.json", f"[\n{lines}\n]\n".encode())


def trained_head(config: DistillConfig) -> Head | None:
    """The last block of the trained forward; None: unchanged, for the embedding of whole images."""
    return None if config.objective == "image-text" else dense_head(config)


def dense_head(config: DistillConfig) -> Head:
    """The last block of the student's dense forward; gated is values3 with gates."""
    return "values3" if config.head == "gated" else config.head


def choose_nouns(config: DistillConfig, dataset: Dataset) -> Nouns | None:
    """The classes of region-text supervision, from a file or from the captions; None for other objectives.

    Raises:
        InputError: the file is wrong, or no noun occurs often enough.
    """
    if config.objective != "region-text":
        return None
    file = nouns_file(config)
    if file is not None:
        try:
            return Nouns(read_vocabulary(file), None)
        except InputError as error:
            raise InputError(f"--captions {error}") from error
    counts = count_nouns(dataset.captions)
    return Nouns(Vocabulary(tuple((noun,) for noun, _ in counts)), counts)


def choose_count(config: DistillConfig) -> Callable[[Batch], int]:
    """Counts what the loss of a batch is the mean over: its regions, or its images."""
    return count_images if config.objective == "image-text" else count_regions


def build_objective(
    config: DistillConfig, student: Clip, baseline: Clip, *, student_size: int, nouns: Nouns | None
) -> ClipSelf | ImageText:
    """Build the objective.

    Args:
        student: after `train_layers`.
        baseline: the student before its first step; the teacher, or what it is copied from.
        student_size: side of the student's square input [pixels].
    """
    low = config.precision == "bfloat16"
    execution = Execution(
        low_precision=low and not config.fsdp,  # FSDP gathers in bfloat16 itself
        compiled=config.compile,
        checkpointing=config.checkpointing,
    )
    # what the student is saved with
    if config.window is not None:
        student.windows = default_windows(student.visual, size=config.window)
    student.pad = config.pad
    if config.objective == "image-text":
        return ImageText(student, student_size=student_size, pad=config.pad, execution=execution)
    # CLIPSelf, with another loss or further terms if requested
    compare = None
    teacher = deepcopy(baseline).bfloat16() if low else baseline  # before a tokenizer exists
    if nouns is not None:  # embedded by the student's own text tower
        rows = embed_vocabulary(student, nouns.vocabulary, templates=NOUN_TEMPLATES, cache=default_cache())  # (K, D)
        compare = RegionText(rows, scale=student.model.logit_scale.detach().exp())
    return ClipSelf(
        student,
        teacher,
        student_size=student_size,
        pad=config.pad,
        tokens=config.tokens,
        head=dense_head(config),
        enlarge=1.5 if regions_of(config) == "boxes" else 1.0,
        keep=CropKeeping(config.keep) if config.keep else None,
        correlation=Correlation(config.correlation) if config.correlation else None,
        execution=execution,
        compare=compare,
    )
