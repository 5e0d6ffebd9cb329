"""CLIP's contrastive objective on image-caption pairs.

Used to pretrain the small CLIP on the rendered world, and as the paper's control of image-level supervision (Tab. 1,
row 5): the student sees whole images at its dense size, and no regions.
Deliberately absent: gathering of embeddings over processes (a caption is compared with those of its own batch).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from foveate.clip.model import Clip
from foveate.clip.names import Pad
from foveate.objectives.student import Execution, computing_weights, prepare_student
from foveate.ops.resample import square_inputs
from foveate.types import Batch, blank_sample


class ImageText(nn.Module):
    """The objective: `loss = objective(batch)`; the student's image embeddings against its frozen text tower."""

    def __init__(
        self, student: Clip, *, student_size: int, pad: Pad = "black", execution: Execution | None = None
    ) -> None:
        """Set up a student; `train_layers(student, head=None)` sets which of its parameters are trained.

        Args:
            student: its text tower and temperature stay as they are.
            student_size: side of the square input [pixels], the dense one; a multiple of the patch size.
            pad: black = black before colour normalisation (published code), zero = zeros after it (the paper's text).
            execution: of the blocks before the last.

        Raises:
            InputError: as `prepare_student`.
        """
        super().__init__()
        self.student, self.student_size, self.execution = student, student_size, execution or Execution()
        self.pad: Pad = pad
        prepare_student(student, self.execution, size=student_size)

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        """CLIP's loss over the pairs of the batch; images with the same caption are positives of one another.

        Where the batch has no image, the result is a zero that still reaches every trained parameter.
        """
        student, device = self.student, self.student.model.logit_scale.device
        samples = batch.samples or [blank_sample(student.patch_size)]
        captions = [sample.caption or "" for sample in samples]
        assert all(captions) or not batch.samples, "the loader gives a caption with every image"
        numbers = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
        with torch.no_grad():
            texts = student.encode_text(student.tokenize(list(numbers)))  # (unique captions, D)
            scale = student.model.logit_scale.exp()
        labels = torch.tensor([numbers[caption] for caption in captions], device=device)  # (B,)
        images = [sample.image.to(device, non_blocking=True) for sample in samples]
        # "value" runs the last block in parts, as the image embedding does
        with computing_weights(student, self.execution, head="value"):
            inputs = square_inputs(images, size=self.student_size, mean=student.mean, std=student.std, pad=self.pad)
            embeddings = student.encode_image(inputs, normalize=False)  # (B, D)
        loss = contrastive_loss(F.normalize(embeddings.float(), dim=1), texts[labels], labels, scale=scale)
        return loss if batch.samples else loss * 0


def contrastive_loss(
    images: Float[Tensor, "B D"],
    texts: Float[Tensor, "B D"],
    captions: Int64[Tensor, " B"],
    *,
    scale: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Cross-entropy of each image over all captions and of each caption over all images, averaged.

    Pairs with the same caption are positives of one another and share the target evenly: with a few dozen categories
    such pairs are common, and would be false negatives.

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
