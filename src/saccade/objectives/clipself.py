"""CLIPSelf (Sec. 3.2): the student's dense features of a region learn to equal the teacher's embedding of that region
cut out as a picture of its own.

    pictures --crop, resize--> teacher.encode_image ------------------------> (R, D) --+
        +----resize, pad-----> student.encode_dense --pool_boxes at regions-> (R, D) --+--> 1 - mean cosine

Both towers start from the same weights; the teacher never changes. Pictures arrive as uint8 and are cut, resized and
normalised on the device of the towers. Deliberately absent: augmentation, a queue of old embeddings, the text tower (no
text is used), and alpha mixing, which is for the product and not for training (`saccade.clip.weights.mix_states`).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from saccade.clip.dense import Head
from saccade.clip.model import Clip
from saccade.ops.boxes import enlarge_boxes
from saccade.ops.pool import pool_boxes
from saccade.ops.resample import crop_and_resize, fitted_size, normalize, pad_right_bottom, resize_longest
from saccade.types import Batch, InputError, Sample


class ClipSelf(nn.Module):
    """The objective: `loss = objective(batch)`. DistributedDataParallel wraps this module and nothing else."""

    def __init__(
        self,
        student: Clip,
        teacher: Clip,
        *,
        student_size: int,
        pad: Literal["zero", "black"] = "zero",
        head: Head = "value",
        enlarge: float = 1.0,
        chunk: int = 128,
    ) -> None:
        """Pair a student with its frozen teacher.

        Args:
            student: learns; which of its parameters do is set by `train_layers`.
            teacher: frozen here; the student's equal at the start.
            student_size: side of the student's square input [pixels]; a multiple of its patch size.
            pad: zero = zeros after colour normalisation (paper), black = black before it (published code).
            head: the last block of the student's dense forward.
            enlarge: teacher crops are boxes enlarged by this about their centre (1 for patches, 1.5 for proposals).
            chunk: teacher crops encoded at once.

        Raises:
            InputError: the size is not a multiple of the patch size, or the towers embed differently.
        """
        super().__init__()
        if student_size < 1 or student_size % student.patch_size:
            raise InputError(
                f"student size: must be a multiple of the patch size {student.patch_size}; got {student_size}. "
                f"Try {max(1, round(student_size / student.patch_size)) * student.patch_size}."
            )
        if student.embed_dim != teacher.embed_dim:
            raise InputError(
                f"teacher: must embed as the student does ({student.embed_dim} numbers); got {teacher.embed_dim}."
            )
        self.student, self.teacher = student, teacher.requires_grad_(False).eval()
        self.student_size, self.pad, self.enlarge, self.chunk = student_size, pad, enlarge, chunk
        self.head: Head = head

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        """1 - mean over ALL regions of the batch of cos(student region, teacher crop).

        Args:
            batch: pictures with the boxes of their regions; bad samples are left out.

        Returns:
            The loss, in [0, 2]; where the batch has no region, a zero that still reaches every trained parameter.
        """
        samples = [sample for sample in batch.samples if len(sample.boxes)]
        if not samples:
            return sum(p.sum() for p in self.parameters() if p.requires_grad) * torch.zeros((), device=self._device)
        images, boxes = self._student_input(samples)
        with torch.no_grad():
            targets = self._encode_crops(samples)  # (R, D)
        dense = self.student.encode_dense(images, head=self.head)  # (B, D, h, w)
        regions = pool_boxes(dense, boxes, stride=self.student.patch_size)  # (R, D)
        return 1 - (regions * targets).sum(dim=1).mean()

    def _student_input(self, samples: list[Sample]) -> tuple[Float[Tensor, "B 3 H W"], list[Tensor]]:
        """The pictures resized and padded to one square, and their boxes in its pixels."""
        size, student = self.student_size, self.student
        images, boxes = [], []
        for sample in samples:
            image = resize_longest(sample.image.to(self._device, non_blocking=True), size=size)  # (3, h', w')
            if self.pad == "zero":
                image = normalize(image, mean=student.mean, std=student.std)
            image = pad_right_bottom(image, height=size, width=size)
            images.append(image if self.pad == "zero" else normalize(image, mean=student.mean, std=student.std))
            boxes.append(_resize_boxes(sample, size=size).to(self._device, non_blocking=True))
        return torch.stack(images), boxes

    def _encode_crops(self, samples: list[Sample]) -> Float[Tensor, "R D"]:
        """The teacher's embedding of every region cut out of its full-resolution picture, all pictures packed."""
        crops = []
        for sample in samples:
            boxes = sample.boxes
            if self.enlarge != 1:
                height, width = sample.image.shape[1:]
                boxes = enlarge_boxes(boxes, factor=self.enlarge, height=height, width=width)
            image = sample.image.to(self._device, non_blocking=True)
            crops.append(crop_and_resize(image, boxes, size=self.teacher.native_size))
        packed = normalize(torch.cat(crops), mean=self.teacher.mean, std=self.teacher.std)  # (R, 3, S, S)
        embeddings = [self.teacher.encode_image(part, normalize=False) for part in packed.split(self.chunk)]
        return F.normalize(torch.cat(embeddings).float(), dim=1)

    @property
    def _device(self) -> torch.device:
        return next(self.student.parameters()).device


def count_regions(batch: Batch) -> int:
    """How many regions the loss of a batch is the mean over; known on the host, without asking the device."""
    return sum(len(sample.boxes) for sample in batch.samples)


def train_layers(student: Clip, last: int | None = None, *, head: Head = "value") -> list[tuple[nn.Parameter, slice]]:
    """Make only transformer blocks trainable (Sec. 4.1), and of the last block only what the dense forward uses.

    Embeddings, positions, class token, final norm, projection, text tower and logit scale stay frozen. The last block's
    queries and keys are never computed, so they must not be trained: DistributedDataParallel would wait for their
    gradients, and weight decay would shrink them.

    Args:
        student: its `requires_grad` flags are set.
        last: train the last so many blocks; all when None.
        head: the last block of the dense forward.

    Returns:
        Matrices that are trained in some rows only (a fused query-key-value projection), with those rows: the optimizer
        must not decay the others.

    Raises:
        InputError: `last` is 0 or below, or more than there are blocks.
    """
    blocks = _blocks(student)
    count = len(blocks) if last is None else last
    if not 1 <= count <= len(blocks):
        raise InputError(
            f"layers: must be 1 to {len(blocks)}, the blocks of {student.name}; got {last}. 0 would train nothing."
        )
    student.requires_grad_(False)
    for block in blocks[len(blocks) - count :]:
        block.requires_grad_(True)
    return [] if head == "attention" else _freeze_unused(blocks[-1], head=head)


def _resize_boxes(sample: Sample, *, size: int) -> Float[Tensor, "N 4"]:
    """A picture's boxes in the pixels of its student input; each axis by its own factor, since sides are rounded."""
    height, width = sample.image.shape[1:]
    fitted_height, fitted_width = fitted_size(height, width, size=size)
    across, down = fitted_width / width, fitted_height / height
    return sample.boxes * torch.tensor([across, down, across, down])


def _blocks(clip: Clip) -> list[nn.Module]:
    """The transformer blocks of an image tower, first to last."""
    match clip.visual:
        case VisionTransformer() as tower:
            return list(tower.transformer.resblocks)
        case TimmModel() as tower:
            return list(tower.trunk.get_submodule("blocks").children())
        case other:
            raise InputError(
                f"{clip.name}: must be a vision transformer to be distilled; got a {type(other).__name__}."
            )


def _freeze_unused(block: nn.Module, *, head: Head) -> list[tuple[nn.Parameter, slice]]:
    """Freeze what an attention-free last block does not use; the matrices it uses in part, with the rows it uses."""
    partly = []
    for name, parameter in block.named_parameters():
        parts = name.split(".")
        is_query_or_key = "q_proj" in parts or "k_proj" in parts
        is_beyond_value = parts[0] in ("mlp", "ln_2", "norm2", "ls_1", "ls_2")
        if is_query_or_key or (head == "value_only" and is_beyond_value):
            parameter.requires_grad_(False)
        elif name == "attn.in_proj_weight":  # queries, keys, values, a third each
            partly.append((parameter, slice(parameter.shape[0] // 3 * 2, None)))
    return partly
