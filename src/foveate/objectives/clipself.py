"""CLIPSelf (Sec. 3.2): the student's dense features of a region learn to equal the teacher's embedding of that region
cut out as an image of its own.

    images --crop, resize--> teacher.encode_image ------------------------> (R, D) --+
        +----resize, pad-----> student.encode_dense --pool_boxes at regions-> (R, D) --+--> 1 - mean cosine

Both towers start from the same weights; the teacher never changes. Images arrive as uint8 and are cut, resized and
normalised on the device of the towers. Deliberately absent: augmentation, a queue of old embeddings, the text tower (no
text is used), and alpha mixing, which is for the product and not for training (`foveate.clip.io.states.mix_states`).
Terms that may be added, each with a weight: `foveate.objectives.keep` and `foveate.objectives.correlation`.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import groupby
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from foveate.clip.dense import blocks_run_whole, check_head, last_block_use, open_gates, tower_stages
from foveate.clip.model import Clip
from foveate.clip.names import Head, Pad
from foveate.clip.precision import low_precision_copies, using
from foveate.errors import InputError
from foveate.objectives.correlation import correlation_losses
from foveate.objectives.keep import keep_loss, trained_rows
from foveate.objectives.student import check_student, compiled_blocks, student_blocks
from foveate.ops.boxes import boxes_on_input, enlarge_boxes
from foveate.ops.pool import pool_boxes
from foveate.ops.resample import crop_and_resize, fitted_size, normalize, square_inputs
from foveate.types import Batch, Sample


class ClipSelf(nn.Module):
    """The objective: `loss = objective(batch)`. DistributedDataParallel wraps this module and nothing else."""

    def __init__(
        self,
        student: Clip,
        teacher: Clip,
        *,
        student_size: int,
        pad: Pad = "black",
        head: Head = "value",
        enlarge: float = 1.0,
        tokens: Literal["all", "valid"] = "all",
        keep: float = 0.0,
        keep_crops: int = 4,
        correlation: float = 0.0,
        correlation_head: Head = "naclip",
        correlation_temperature: float = 0.1,
        low_precision: bool = False,
        compiled: bool = False,
        checkpointing: bool = False,
        chunk: int = 128,
        compare: nn.Module | None = None,
    ) -> None:
        """Pair a student with its frozen teacher.

        Args:
            student: learns; which of its parameters do is set by `train_layers`.
            teacher: frozen here; the student's equal at the start.
            student_size: side of the student's square input [pixels]; a multiple of its patch size.
            pad: black = black before colour normalisation (published code), zero = zeros after it (the paper's text).
            head: the last block of the student's dense forward.
            enlarge: teacher crops are boxes enlarged by this about their centre (1 for patches, 1.5 for proposals).
            tokens: of the student's padded square: "all" (paper), or "valid", those that hold some of the image; the
                padding is then neither computed nor seen.
            keep: weight of `keep_loss`; 0 leaves it out.
            keep_crops: of an image, at most, in that loss.
            correlation: weight of `correlation_losses`; 0 leaves it out.
            correlation_head: the last block of the teacher's dense map in that loss.
            correlation_temperature: of the similarities in it.
            low_precision: the student computes with bfloat16 copies of its weights, which stay as they are.
            compiled: run the blocks of both towers through torch.compile.
            checkpointing: keep only what enters each of the student's blocks, and run them again in the backward pass.
            chunk: teacher crops encoded at once, which bounds their memory.
            compare: (regions, crops), both (R, D) of length 1 -> the loss, in place of 1 - mean cosine; see
                `foveate.objectives.region_text`.

        Raises:
            InputError: the size is not a multiple of the patch size, the towers embed differently or take other
                images, the teacher cannot have the head of `correlation`, or a residual network is to be compiled or
                checkpointed, which would change nothing.
        """
        super().__init__()
        check_student(student, size=student_size, compiled=compiled, checkpointing=checkpointing)
        if student.embed_dim != teacher.embed_dim:
            raise InputError(
                f"teacher: must embed as the student does ({student.embed_dim} numbers); got {teacher.embed_dim}."
            )
        inputs = [(one.native_size, one.mean, one.std) for one in (student, teacher)]
        if keep and inputs[0] != inputs[1]:
            raise InputError(
                f"--keep: student and teacher must take the same images (side, mean, std); got {inputs[0]} and "
                f"{inputs[1]}. Leave it out."
            )
        if correlation:
            check_head(teacher.visual, correlation_head)
        self.student, self.teacher = student, teacher.requires_grad_(False).eval()
        self.keep, self.keep_crops = keep, keep_crops
        self.correlation, self.correlation_temperature = correlation, correlation_temperature
        self.correlation_head: Head = correlation_head
        self._rows = trained_rows(student.visual, head=head) if keep else {}  # by name: sharding replaces parameters
        self.student_size, self.enlarge, self.chunk = student_size, enlarge, chunk
        self.pad: Pad = pad
        self.tokens: Literal["all", "valid"] = tokens
        self.head: Head = head
        self.compare = compare
        self.low_precision, self.compiled, self.checkpointing = low_precision, compiled, checkpointing
        run = compiled_blocks(compiled)
        teacher.run_block = run
        student.run_block = student_blocks(run, low_precision=low_precision, checkpointing=checkpointing)

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        """1 - mean over ALL regions of the batch of cos(student region, teacher crop), or `compare`'s loss; and terms.

        Args:
            batch: images with the boxes of their regions; bad samples are left out.

        Returns:
            The loss, of cosines in [0, 2] without terms; where the batch has no region, a zero that still reaches every
            trained parameter.
        """
        samples = [sample for sample in batch.samples if len(sample.boxes)] or [_blank(self.student.patch_size)]
        samples = [replace(sample, image=sample.image.to(self._device, non_blocking=True)) for sample in samples]
        groups = [list(group) for _, group in groupby(sorted(samples, key=self._seen), key=self._seen)]
        samples = [sample for group in groups for sample in group]
        counts = [len(sample.boxes) for sample in samples]
        with torch.no_grad():
            targets, crops = self._encode_crops(samples)  # (R, D), (R, 3, S, S)
        with self._outside_the_blocks():
            regions, apart = zip(*(self._encode_regions(group) for group in groups), strict=True)  # (R, D), (B,)
            regions = torch.cat(regions)
            loss = 1 - (regions * targets).sum(dim=1).mean() if self.compare is None else self.compare(regions, targets)
            if self.keep:
                kept = keep_loss(self.student, crops, targets, counts=counts, most=self.keep_crops, rows=self._rows)
                loss = loss + self.keep * kept
        if self.correlation:  # an image counts by its regions, as it does in the loss
            shares = torch.tensor([count / sum(counts) for count in counts]).to(self._device, non_blocking=True)
            loss = loss + self.correlation * (torch.cat(apart) @ shares)
        return loss if count_regions(batch) else loss * 0

    def _encode_regions(self, samples: list[Sample]) -> tuple[Float[Tensor, "R D"], Float[Tensor, " B"]]:
        """The student's embedding of every region, from dense maps of one size; and where `correlation` has a weight,
        how far the likeness of each image's places is from the teacher's."""
        images, boxes = self._student_input(samples)
        height, width = self._seen(samples[0])
        images, patch = images[:, :, :height, :width], self.student.patch_size
        frame = (self.student_size, self.student_size) if self.tokens == "valid" else None
        dense = self.student.encode_dense(images, head=self.head, frame=frame)  # (B, D, h, w)
        regions = pool_boxes(dense, boxes, stride=patch)
        if not self.correlation:
            return regions, regions.new_zeros(0)
        with torch.no_grad():
            target = self.teacher.encode_dense(images, head=self.correlation_head, frame=frame)  # (B, D, h, w)
        grids = [(height // patch, width // patch) for height, width in map(self._holding, samples)]
        return regions, correlation_losses(dense, target, grids=grids, temperature=self.correlation_temperature)

    def _seen(self, sample: Sample) -> tuple[int, int]:
        """How much of its padded square the student sees of an image: (H, W) [pixels], in whole patches."""
        return (self.student_size, self.student_size) if self.tokens == "all" else self._holding(sample)

    def _holding(self, sample: Sample) -> tuple[int, int]:
        """How much of its padded square holds some of an image: (H, W) [pixels], in whole patches."""
        height, width = fitted_size(*sample.image.shape[1:], size=self.student_size)
        patch = self.student.patch_size
        return -(-height // patch) * patch, -(-width // patch) * patch

    def _outside_the_blocks(self) -> AbstractContextManager[None]:
        """The student with the weights it computes with, but for the blocks that have theirs where they run."""
        if not self.low_precision:
            return nullcontext()
        visual = self.student.visual
        return using(visual, low_precision_copies(visual, leave=blocks_run_whole(visual, head=self.head)))

    def _student_input(self, samples: list[Sample]) -> tuple[Float[Tensor, "B 3 H W"], list[Tensor]]:
        """The images resized and padded to one square, and their boxes in its pixels."""
        size, student = self.student_size, self.student
        images = [sample.image for sample in samples]
        inputs = square_inputs(images, size=size, mean=student.mean, std=student.std, pad=self.pad)  # (B, 3, H, W)
        boxes = []
        for sample in samples:
            height, width = sample.image.shape[1:]
            boxes.append(boxes_on_input(sample.boxes, height=height, width=width, size=size))
        return inputs, boxes

    def _encode_crops(self, samples: list[Sample]) -> tuple[Float[Tensor, "R D"], Float[Tensor, "_ 3 S S"]]:
        """The teacher's embedding of every region cut out of its full-resolution image, all images packed; and
        where `keep` has a weight, these crops."""
        crops = []
        for sample in samples:
            boxes = sample.boxes
            if self.enlarge != 1 and not sample.is_boxless:
                height, width = sample.image.shape[1:]
                boxes = enlarge_boxes(boxes, factor=self.enlarge, height=height, width=width)
            crops.append(crop_and_resize(sample.image, boxes, size=self.teacher.native_size))
        packed = normalize(torch.cat(crops), mean=self.teacher.mean, std=self.teacher.std)  # (R, 3, S, S)
        embeddings = [self.teacher.encode_image(part, normalize=False) for part in packed.split(self.chunk)]
        return F.normalize(torch.cat(embeddings).float(), dim=1), packed if self.keep else packed[:0].clone()

    @property
    def _device(self) -> torch.device:
        return next(self.student.parameters()).device


def _blank(side: int) -> Sample:
    """A black image with one region, so that a process without any takes every step the others take."""
    return Sample("", torch.zeros(3, side, side, dtype=torch.uint8), torch.tensor([[0.0, 0.0, side, side]]))


def count_regions(batch: Batch) -> int:
    """How many regions the loss of a batch is the mean over; known on the host, without asking the device."""
    return sum(len(sample.boxes) for sample in batch.samples)


def train_layers(
    student: Clip, last: int | None = None, *, head: Head | None = "value", gates: bool = False
) -> list[tuple[nn.Parameter, slice]]:
    """Make only transformer blocks trainable (Sec. 4.1), and of the last block only what the dense forward uses.

    Embeddings, positions, class token, final norm, projection, text tower and logit scale stay frozen. The last block's
    queries and keys are never computed, so they must not be trained: DistributedDataParallel would wait for their
    gradients, and weight decay would shrink them.

    Args:
        student: its `requires_grad` flags are set.
        last: train the last so many blocks; all when None.
        head: the last block of the dense forward; None: the image embedding is trained, which uses the block as it is.
        gates: train the gates of the heads too (of "values3", see `foveate.clip.heads`); where there are none they
            start open.

    Returns:
        Matrices that are trained in some rows only (a fused query-key-value projection), with those rows: the optimizer
        must not decay the others.

    Raises:
        InputError: `last` is 0 or below, or more than there are blocks; or the tower can have no gates.
    """
    blocks = tower_stages(student.visual)
    count = len(blocks) if last is None else last
    if not 1 <= count <= len(blocks):
        raise InputError(
            f"layers: must be 1 to {len(blocks)}, the blocks of {student.name}; got {last}. 0 would train nothing."
        )
    student.requires_grad_(False)
    for block in blocks[len(blocks) - count :]:
        block.requires_grad_(True)
    if gates:
        trained = open_gates(student.visual) if student.gates is None else student.gates.detach().unflatten(0, (3, -1))
        student.gates = trained  # a parameter anew, which requires gradients
    unused, partly = ([], []) if head is None else last_block_use(student.visual, head=head)
    for parameter in unused:
        parameter.requires_grad_(False)
    return partly
