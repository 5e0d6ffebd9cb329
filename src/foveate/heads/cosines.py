"""Segmentation that nobody trained: each place of the dense map is of the class whose words it is nearest to.

What MaskCLIP does without its refinements (Zhou et al., ECCV 2022), and the plainest question to ask a dense map: how
good are its classes before anything is learned on top? Deliberately absent: windows over large pictures, smoothing,
and a class for what is none.
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
    """Asks the dense map of a CLIP for classes."""

    def __init__(self, clip: Clip, *, size: int | None = None, head: Head = "value") -> None:
        """Choose how large it sees a picture.

        Args:
            clip: with any tower.
            size: of the longest side [pixels], a multiple of the patch; None: four times the CLIP's own, as for
                regions.
            head: of the dense map.

        Raises:
            InputError: a size that does not fit.
        """
        size = 4 * clip.native_size if size is None else size
        check_side(size, patch=clip.patch_size, flag="--size")
        self.clip, self.size = clip.eval(), size
        self.head: Head = head

    @torch.no_grad()
    def label_maps(self, samples: Sequence[Sample], words: ClassEmbeddings) -> list[LabelMap]:
        """The class of each pixel, by the best of a class's words.

        Args:
            samples: pictures of any size.
            words: of the K classes asked for.
        """
        return [best_labels(self._scores(sample, words)) for sample in samples]

    def _scores(self, sample: Sample, words: ClassEmbeddings) -> Iterator[Float[Tensor, "k H W"]]:
        """Cosines of some classes after others, at the picture's size."""
        image = clip_input(self.clip, sample, size=self.size, squash=False)
        dense = self.clip.encode_dense(image[None], head=self.head)[0].float()  # (D, h, w)
        places = F.normalize(dense, dim=0).flatten(1).T  # (h w, D)
        cosines = best_of_synonyms(places @ words.rows.to(places.device).float().T, words)  # (h w, K)
        maps = cosines.T.unflatten(1, dense.shape[1:])  # (K, h, w)
        size = tuple(sample.image.shape[1:])
        for some in maps.split(classes_at_once(*size)):
            yield F.interpolate(some[None], size=size, mode="bilinear", align_corners=False)[0]
