"""Segmentation without training: each location of the dense feature map gets the class of the nearest text embedding.

This is MaskCLIP without its refinements (Zhou et al., ECCV 2022). There are no windows over large images, no smoothing,
and no background class.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from foveate.clip.model import Clip
from foveate.clip.names import Head
from foveate.heads.common.text import ClassEmbeddings, best_of_synonyms
from foveate.heads.common.tower import clip_input
from foveate.ops.argmax import best_labels, classes_at_once
from foveate.ops.resample import check_side
from foveate.types import LabelMap, Sample


class Cosines:
    """Classifies the locations of a CLIP's dense feature map."""

    def __init__(self, clip: Clip, *, size: int | None = None, head: Head = "value") -> None:
        """Set the input size.

        Args:
            clip: with any tower.
            size: of the longest side [pixels], a multiple of the patch size; None: four times the CLIP's native size.
            head: of the dense feature map.

        Raises:
            InputError: the size is no multiple of the patch size.
        """
        size = 4 * clip.native_size if size is None else size
        check_side(size, patch=clip.patch_size, flag="--size")
        self.clip, self.size = clip.eval(), size
        self.head: Head = head

    @torch.no_grad()
    def label_maps(self, samples: Sequence[Sample], classes: ClassEmbeddings) -> list[LabelMap]:
        """The class of each pixel; a class has the score of its best synonym."""
        return [best_labels(self._scores(sample, classes)) for sample in samples]

    def _scores(self, sample: Sample, classes: ClassEmbeddings) -> Iterator[Float[Tensor, "k H W"]]:
        """Cosines at the image's size, a chunk of classes at a time."""
        image = clip_input(self.clip, sample, size=self.size, squash=False)
        dense = self.clip.encode_dense(image[None], head=self.head)[0].float()  # (D, h, w)
        locations = F.normalize(dense, dim=0).flatten(1).T  # (h w, D)
        text = classes.embeddings.to(locations.device).float()  # (S, D)
        cosines = best_of_synonyms(locations @ text.T, classes)  # (h w, K)
        maps = cosines.T.unflatten(1, dense.shape[1:])  # (K, h, w)
        size = tuple(sample.image.shape[1:])
        for chunk in maps.split(classes_at_once(*size)):
            yield F.interpolate(chunk[None], size=size, mode="bilinear", align_corners=False)[0]
