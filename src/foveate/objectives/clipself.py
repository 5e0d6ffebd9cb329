"""CLIPSelf (Sec. 3.2): the student's feature of a region is trained to equal the teacher's embedding of its crop.

    images --crop, resize--> teacher.encode_image ------------------------> (R, D) --+
        +----resize, pad-----> student.encode_dense --pool_boxes at regions-> (R, D) --+--> 1 - mean cosine

Both towers start from the same weights; the teacher never changes. Images arrive as uint8 and are cropped, resized and
normalised on the device of the towers. Terms that may be added, each with a weight: `foveate.objectives.keep` and
`foveate.objectives.correlation`. Deliberately absent: augmentation, and alpha mixing, which is for the product and not
for training (`foveate.clip.io.states.mix_states`).
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from foveate.clip.dense import check_head, last_block_use, open_gates, tower_stages
from foveate.clip.model import Clip
from foveate.clip.names import Head, Pad
from foveate.errors import InputError
from foveate.objectives.correlation import Correlation, correlation_losses
from foveate.objectives.keep import CropKeeping, keep_loss, trained_rows
from foveate.objectives.student import Execution, computing_weights, prepare_student
from foveate.ops.boxes import boxes_on_input, enlarge_boxes
from foveate.ops.pool import pool_boxes
from foveate.ops.resample import crop_and_resize, fitted_size, normalize, square_inputs
from foveate.types import Batch, Sample, blank_sample

Compare = Callable[[Float[Tensor, "R D"], Float[Tensor, "R D"]], Float[Tensor, ""]]
"""(the student's regions, the teacher's crops), both L2-normalised -> the loss, a mean over the regions."""


class ClipSelf(nn.Module):
    """The objective: `loss = objective(batch)`. DistributedDataParallel wraps this module and nothing else."""

    crops_per_pass = 128
    """Teacher crops encoded at once, which bounds their memory."""

    def __init__(
        self,
        student: Clip,
        teacher: Clip,
        *,
        student_size: int,
        pad: Pad = "black",
        tokens: Literal["all", "valid"] = "all",
        head: Head = "value",
        enlarge: float = 1.0,
        keep: CropKeeping | None = None,
        correlation: Correlation | None = None,
        execution: Execution | None = None,
        compare: Compare | None = None,
    ) -> None:
        """Pair a student with its frozen teacher.

        Args:
            student: `train_layers` sets which of its parameters are trained.
            teacher: frozen here; the student's equal at the start.
            student_size: side of the student's square input [pixels]; a multiple of its patch size.
            pad: black = black before colour normalisation (published code), zero = zeros after it (the paper's text).
            tokens: of the student's padded square: "all" (paper), or "valid", those that hold some of the image; the
                padding is then neither computed nor attended to.
            head: the last block of the student's dense forward.
            enlarge: teacher crops are boxes enlarged by this about their centre (1 for patches, 1.5 for proposals).
            keep: adds `keep_loss`.
            correlation: adds `correlation_losses`.
            execution: of the blocks of both towers.
            compare: the loss in place of 1 - mean cosine: a pure function, or a module if it has state (such as
                `foveate.objectives.region_text.RegionText`).

        Raises:
            InputError: as `prepare_student`; or the towers have other embeddings or take other images, or the teacher
                cannot have the head of `correlation`.
        """
        super().__init__()
        self.execution = execution or Execution()
        teacher.run_block = prepare_student(student, self.execution, size=student_size)
        if student.embed_dim != teacher.embed_dim:
            raise InputError(
                f"teacher: must embed as the student does ({student.embed_dim} numbers); got {teacher.embed_dim}. "
                "Choose another."
            )
        inputs = [(clip.native_size, clip.mean, clip.std) for clip in (student, teacher)]
        if keep and inputs[0] != inputs[1]:
            raise InputError(
                f"--keep: student and teacher must take the same images (side, mean, std); got {inputs[0]} and "
                f"{inputs[1]}. Remove it."
            )
        if correlation:
            check_head(teacher.visual, correlation.head)
        self.student, self.teacher = student, teacher.requires_grad_(False).eval()
        self.keep, self.correlation, self.compare = keep, correlation, compare
        self._rows = trained_rows(student.visual, head=head) if keep else {}  # by name: sharding replaces parameters
        self.student_size, self.enlarge = student_size, enlarge
        self.pad: Pad = pad
        self.tokens: Literal["all", "valid"] = tokens
        self.head: Head = head

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        """1 - mean over ALL regions of the batch of cos(student region, teacher crop), or `compare`'s loss; and terms.

        Without terms it is in [0, 2]. Where the batch has no region, the result is a zero that still reaches every
        trained parameter.
        """
        samples = [sample for sample in batch.samples if len(sample.boxes)] or [_one_region(self.student.patch_size)]
        samples = [replace(sample, image=sample.image.to(self._device, non_blocking=True)) for sample in samples]
        # one forward pass of the student for each size of its input
        groups = [list(group) for _, group in groupby(sorted(samples, key=self._input_size), key=self._input_size)]
        samples = [sample for group in groups for sample in group]
        counts = [len(sample.boxes) for sample in samples]  # R in all
        with torch.no_grad():
            targets, crops = self._encode_crops(samples)  # (R, D), (R, 3, S, S)
        with computing_weights(self.student, self.execution, head=self.head):
            regions, correlations = zip(*(self._encode_regions(group) for group in groups), strict=True)
            regions = torch.cat(regions)  # (R, D)
            loss = 1 - (regions * targets).sum(dim=1).mean() if self.compare is None else self.compare(regions, targets)
            if self.keep:
                most, rows = self.keep.max_crops, self._rows
                term = keep_loss(self.student, crops, targets, counts=counts, max_crops=most, rows=rows)
                loss = loss + self.keep.weight * term
        if self.correlation:  # an image is weighted by its regions, as it is in the loss
            weights = torch.tensor([count / sum(counts) for count in counts])  # (B,)
            weights = weights.to(self._device, non_blocking=True)
            loss = loss + self.correlation.weight * (torch.cat(correlations) @ weights)
        return loss if count_regions(batch) else loss * 0

    def _encode_regions(self, samples: list[Sample]) -> tuple[Float[Tensor, "R D"], Float[Tensor, " B"]]:
        """The student's embedding of every region from dense maps of one size, and each image's correlation loss."""
        inputs, boxes = self._student_input(samples)
        # without padding, where it is not computed
        height, width = self._input_size(samples[0])
        inputs, patch = inputs[:, :, :height, :width], self.student.patch_size
        frame = (self.student_size, self.student_size) if self.tokens == "valid" else None
        dense = self.student.encode_dense(inputs, head=self.head, frame=frame)  # (B, D, h, w)
        regions = pool_boxes(dense, boxes, stride=patch)  # (R, D)
        if not self.correlation:
            return regions, regions.new_zeros(0)
        with torch.no_grad():
            target = self.teacher.encode_dense(inputs, head=self.correlation.head, frame=frame)  # (B, D, h, w)
        grids = [(height // patch, width // patch) for height, width in map(self._image_size, samples)]
        return regions, correlation_losses(dense, target, grids=grids, temperature=self.correlation.temperature)

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

    def _input_size(self, sample: Sample) -> tuple[int, int]:
        """The part of its padded square that the student computes: (H, W) [pixels], in whole patches."""
        return (self.student_size, self.student_size) if self.tokens == "all" else self._image_size(sample)

    def _image_size(self, sample: Sample) -> tuple[int, int]:
        """The part of its padded square that holds some of an image: (H, W) [pixels], in whole patches."""
        height, width = fitted_size(*sample.image.shape[1:], size=self.student_size)
        patch = self.student.patch_size
        return -(-height // patch) * patch, -(-width // patch) * patch

    def _encode_crops(self, samples: list[Sample]) -> tuple[Float[Tensor, "R D"], Float[Tensor, "_ 3 S S"]]:
        """The teacher's embedding of every region, cropped at full resolution; and, for `keep`, the crops."""
        crops = []
        for sample in samples:
            boxes = sample.boxes
            if self.enlarge != 1 and not sample.is_boxless:
                height, width = sample.image.shape[1:]
                boxes = enlarge_boxes(boxes, factor=self.enlarge, height=height, width=width)
            crops.append(crop_and_resize(sample.image, boxes, size=self.teacher.native_size))
        packed = normalize(torch.cat(crops), mean=self.teacher.mean, std=self.teacher.std)  # (R, 3, S, S)
        parts = packed.split(self.crops_per_pass)
        embeddings = torch.cat([self.teacher.encode_image(part, normalize=False) for part in parts])
        return F.normalize(embeddings.float(), dim=1), packed if self.keep else packed[:0].clone()

    @property
    def _device(self) -> torch.device:
        return next(self.student.parameters()).device


def _one_region(side: int) -> Sample:
    """A black image with one region, for a process without any, which must take every step with the others."""
    return replace(blank_sample(side), boxes=torch.tensor([[0.0, 0.0, side, side]]))


def count_regions(batch: Batch) -> int:
    """The regions that the loss of a batch is the mean over; known on the host."""
    return sum(len(sample.boxes) for sample in batch.samples)


def train_layers(
    student: Clip, last: int | None = None, *, head: Head | None = "value", gates: bool = False
) -> list[tuple[nn.Parameter, slice]]:
    """Train only transformer blocks (Sec. 4.1), and of the last block only what the dense forward uses.

    Embeddings, positions, class token, final norm, projection, text tower and logit scale stay frozen. The last block's
    queries and keys are never computed, so they must not be trained: DistributedDataParallel would wait for their
    gradients, and weight decay would shrink them.

    Args:
        student: its `requires_grad` flags are set.
        last: number of blocks at the end that are trained; None: all.
        head: the last block of the dense forward; None: the image embedding is trained, which uses the whole block.
        gates: train the gates of the attention heads too (of "values3", see `foveate.clip.heads`); new ones are open.

    Returns:
        Matrices that are trained in some rows only (a fused query-key-value projection), with those rows: the optimizer
        must not decay the others.

    Raises:
        InputError: `last` is not between 1 and the number of blocks, or the tower cannot have gates.
    """
    blocks = tower_stages(student.visual)
    count = len(blocks) if last is None else last
    if not 1 <= count <= len(blocks):
        raise InputError(
            f"layers: must be 1 to {len(blocks)}, the blocks of {student.name}; got {last}. Train at least 1 block."
        )
    student.requires_grad_(False)
    for block in blocks[len(blocks) - count :]:
        block.requires_grad_(True)
    if gates:
        trained = open_gates(student.visual) if student.gates is None else student.gates.detach().unflatten(0, (3, -1))
        student.gates = trained  # a new parameter, which requires gradients
    unused, partly = ([], []) if head is None else last_block_use(student.visual, head=head)
    for parameter in unused:
        parameter.requires_grad_(False)
    return partly
