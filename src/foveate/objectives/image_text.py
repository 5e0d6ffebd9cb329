"""CLIP's contrastive objective on image-caption pairs.

Used to pretrain the small CLIP on the rendered world, and as the paper's control of image-level supervision (Tab. 1,
row 5): the student sees whole images at its dense size, and no region is ever named.
Deliberately absent: gathering of embeddings over processes (a caption is told from the others of its own batch).
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from foveate.clip.dense import blocks_run_whole
from foveate.clip.model import Clip
from foveate.clip.names import Pad
from foveate.clip.precision import low_precision_copies, using
from foveate.objectives.student import check_student, compiled_blocks, student_blocks
from foveate.ops.resample import square_inputs
from foveate.types import Batch, Sample, blank_sample


class ImageText(nn.Module):
    """The objective: `loss = objective(batch)`; the student's image embeddings against its frozen text tower."""

    def __init__(
        self,
        student: Clip,
        *,
        student_size: int,
        pad: Pad = "black",
        low_precision: bool = False,
        compiled: bool = False,
        checkpointing: bool = False,
    ) -> None:
        """Take a student; `train_layers(student, head=None)` says which of its parameters learn.

        Args:
            student: its text tower and temperature stay as they are.
            student_size: side of the square input [pixels], the dense one; a multiple of the patch size.
            pad: black = black before colour normalisation (published code), zero = zeros after it (the paper's text).
            low_precision: compute with bfloat16 copies of the image tower's weights, which stay as they are.
            compiled: run the blocks before the last through torch.compile.
            checkpointing: keep only what enters these blocks, and run them again in the backward pass.

        Raises:
            InputError: the size is not a multiple of the patch size, or a residual network is to be compiled or
                checkpointed, which would change nothing.
        """
        super().__init__()
        check_student(student, size=student_size, compiled=compiled, checkpointing=checkpointing)
        self.student, self.student_size = student, student_size
        self.pad: Pad = pad
        self.low_precision, self.compiled, self.checkpointing = low_precision, compiled, checkpointing
        run = compiled_blocks(compiled)
        student.run_block = student_blocks(run, low_precision=low_precision, checkpointing=checkpointing)

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        """CLIP's loss over the pairs of the batch; images with the same caption are positives of one another.

        Args:
            batch: images with a caption each; bad samples are left out.

        Returns:
            The loss; where the batch has no image, a zero that still reaches every trained parameter.
        """
        samples = batch.samples or [blank_sample(self.student.patch_size)]
        captions = [sample.caption or "" for sample in samples]
        assert all(captions) or not batch.samples, "the loader gives a caption with every image"
        number = {caption: place for place, caption in enumerate(dict.fromkeys(captions))}
        device = self.student.model.logit_scale.device
        with torch.no_grad():
            texts = self.student.encode_text(self.student.tokenize(list(number)))  # (captions that differ, D)
            scale = self.student.model.logit_scale.exp()
        numbers = torch.tensor([number[caption] for caption in captions], device=device)  # (B,)
        with self._outside_the_blocks():
            images = self.student.encode_image(self._inputs(samples), normalize=False)  # (B, D)
        loss = contrastive_loss(F.normalize(images.float(), dim=1), texts[numbers], numbers, scale=scale)
        return loss if batch.samples else loss * 0

    def _inputs(self, samples: list[Sample]) -> Float[Tensor, "B 3 H W"]:
        """The images resized and padded to one square."""
        student = self.student
        images = [sample.image.to(student.model.logit_scale.device, non_blocking=True) for sample in samples]
        return square_inputs(images, size=self.student_size, mean=student.mean, std=student.std, pad=self.pad)

    def _outside_the_blocks(self) -> AbstractContextManager[None]:
        """The student with the weights it computes with, but for the blocks that have theirs where they run."""
        if not self.low_precision:
            return nullcontext()
        visual = self.student.visual  # "value" takes the last block in parts, as the image's embedding does
        return using(visual, low_precision_copies(visual, leave=blocks_run_whole(visual, head="value")))


def contrastive_loss(
    images: Float[Tensor, "B D"],
    texts: Float[Tensor, "B D"],
    captions: Int64[Tensor, " B"],
    *,
    scale: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Cross-entropy of each image over all captions and of each caption over all images, averaged.

    Pairs with the very same caption are positives of one another and share the target evenly: with a few dozen
    categories such pairs are common, and to call them negatives would be false.

    Args:
        images, texts: L2-normalised embeddings of the pairs.
        captions: a number for each pair's caption; equal numbers are equal captions.
        scale: CLIP's learned inverse temperature (already exponentiated).
    """
    logits = scale * images @ texts.T  # (B, B)
    same = (captions[:, None] == captions[None, :]).float()
    target = same / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def clamp_scale(logit_scale: Float[Tensor, ""]) -> None:
    """Keep CLIP's logit_scale within [0, log 100], in place (as CLIP's training does after each step)."""
    with torch.no_grad():
        logit_scale.clamp_(0, 4.6052)
