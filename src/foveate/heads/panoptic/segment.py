"""Open-vocabulary segmentation of an image: masks, classes by mask generator and CLIP, maps (Tab. 5).

    image --mask generator--> Q masks --class embeddings--> logits --+
    image --squashed--> CLIP --mean of the dense feature map, or ----+--fused--> class logits --merged--> maps
                                 masked attention, of each mask--> logits

The mask generator's input is the padded square, CLIP's is a square without padding (as ODISE's, whatever the aspect) or
has the image's aspect. There are no windows over large images and no tests on flipped images.
"""

from dataclasses import dataclass
from typing import Any, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from foveate.clip.model import Clip
from foveate.clip.names import Head
from foveate.errors import InputError
from foveate.heads.common.text import ClassEmbeddings
from foveate.heads.common.tower import clip_input
from foveate.heads.panoptic.fusion import PRESETS, FusionWeights, clip_logits, fuse, pool_mask_logits, touched_patches
from foveate.heads.panoptic.mask2former import MaskGenerator, Proposals, crop_padding
from foveate.heads.panoptic.merge import MIN_OVERLAP, Frame, instances, panoptic_map, semantic_map
from foveate.heads.panoptic.names import Region
from foveate.heads.panoptic.published import ClassMap, PublishedModel
from foveate.ops.resample import check_side
from foveate.types import Detections, PanopticMap, Sample


@dataclass(frozen=True)
class Query:
    """The K requested classes."""

    classes: ClassEmbeddings | None  # of the CLIP that classifies masks; None: no CLIP does
    generator_classes: ClassEmbeddings | ClassMap  # embedded for the mask generator; or mapped to a published model's
    is_thing: Bool[Tensor, " K"]
    is_seen: Bool[Tensor, " K"]  # of `fusion.seen_classes`

    def __post_init__(self) -> None:
        embedded = () if self.classes is None else (self.classes.count,)
        counts = (*embedded, self.count, len(self.is_thing), len(self.is_seen))
        if len(set(counts)) > 1:
            raise InputError(
                f"classes: need embeddings, things and seen classes of one number of classes; got {counts}."
            )

    @property
    def count(self) -> int:
        """K."""
        return self.generator_classes.count


@dataclass(frozen=True)
class Evidence:
    """The masks of an image with the logits of the mask generator and of CLIP, before fusion."""

    size: tuple[int, int]  # (H, W) of the image [pixels]
    masks: Float[Tensor, "Q h w"]  # logits, of the whole image, or of the padded input of `frame`
    generator: Float[Tensor, "Q K1"]  # logits of the classes and, last, of "no object"
    clip: Float[Tensor, "Q K"] | None  # None: not computed
    frame: Frame | None = None


@dataclass(frozen=True)
class ScoredMasks:
    """The masks of an image with their classes."""

    size: tuple[int, int]  # (H, W) of the image [pixels]
    class_logits: Float[Tensor, "Q K1"]  # of the classes and, last, of "no object"
    masks: Float[Tensor, "Q h w"]  # logits, of the whole image, or of the padded input of `frame`
    frame: Frame | None = None


class PanopticSegmenter:
    """Segments images with a mask generator and a CLIP."""

    def __init__(
        self,
        mask_generator: MaskGenerator | PublishedModel,
        clip: Clip | None,
        query: Query,
        *,
        weights: FusionWeights = PRESETS["odise-label"],
        region: Region = "dense",
        head: Head = "value",
        size: int | None = None,
        squash: bool = True,
        min_score: float = 0.0,
        overlap: float = MIN_OVERLAP,
    ) -> None:
        """Combine a mask generator and a CLIP.

        Args:
            mask_generator: trained, or a published model with its own classes.
            clip: classifies masks; the mask generator's or another. None: the mask generator alone classifies them.
            query: the classes.
            weights: fusion weights of CLIP.
            region: how CLIP embeds a mask.
            head: of the dense feature map.
            size: side of CLIP's square input, or longest side if the aspect is kept [pixels]; None: its native size.
            squash: resize images to a square for CLIP, as ODISE.
            min_score: see `merge.panoptic_map`; 0 is ODISE's, 0.8 that of Mask2Former's files for COCO.
            overlap: see `merge.panoptic_map`.

        Raises:
            InputError: a size or region that does not fit, fusion weights that the models do not allow, or a threshold
                outside [0, 1].
        """
        if clip is not None:
            size = clip.native_size if size is None else size
            check_side(size, patch=clip.patch_size, flag="--size")
        for flag, value in (("--min-score", min_score), ("--overlap", overlap)):
            if not 0 <= value <= 1:
                raise InputError(f"{flag}: must be in [0, 1]; got {value:g}.")
        if region not in get_args(Region):
            raise InputError(f"region: must be one of {', '.join(get_args(Region))}; got {region!r}.")
        check_shares(mask_generator, weights, has_clip=clip is not None)
        self.mask_generator, self.clip = mask_generator.eval(), None if clip is None else clip.eval()
        self.query, self.weights, self.region = query, weights, region
        self.head: Head = head
        self.size, self.squash, self.min_score, self.overlap = size, squash, min_score, overlap
        self.scale = 1.0 if clip is None else clip.model.logit_scale.exp().item()

    @torch.no_grad()
    def score(self, sample: Sample) -> ScoredMasks:
        """Propose the masks of an image and classify them; its segments are ignored."""
        (proposals,) = self.mask_generator.propose([sample])
        return self.score_proposals(sample, proposals)

    @torch.no_grad()
    def score_proposals(self, sample: Sample, proposals: Proposals) -> ScoredMasks:
        """Classify masks; there may be none."""
        uses_clip = bool(self.weights.seen or self.weights.unseen)
        return self.fuse(self.gather_evidence(sample, proposals, clip=uses_clip), self.weights)

    @torch.no_grad()
    def gather_evidence(self, sample: Sample, proposals: Proposals, *, clip: bool = True) -> Evidence:
        """Compute the logits of the mask generator and, if `clip`, of CLIP."""
        query, masks = self.query, proposals.masks
        mask_generator: Any = self.mask_generator  # each kind takes its own kind of classes
        generator_logits, logits = mask_generator.class_logits(proposals, query.generator_classes), None
        if not len(masks):
            logits = generator_logits[:, :-1]  # (0, K)
        elif clip:
            assert query.classes is not None, "the query has no class embeddings for CLIP"
            cropped = masks if proposals.frame is None else crop_padding(masks, proposals.frame)
            logits = clip_logits(self.embed(sample, cropped), query.classes, scale=self.scale)
        return Evidence((proposals.height, proposals.width), masks, generator_logits, logits, proposals.frame)

    def fuse(self, evidence: Evidence, weights: FusionWeights) -> ScoredMasks:
        """Fuse both logits with these weights; the evidence has CLIP's logits unless they are 0."""
        check_shares(self.mask_generator, weights, has_clip=self.clip is not None)
        logits = fuse(evidence.generator, evidence.clip, self.query.is_seen, weights)
        return ScoredMasks(evidence.size, logits, evidence.masks, evidence.frame)

    @torch.no_grad()
    def embed(self, sample: Sample, masks: Float[Tensor, "Q h w"]) -> Float[Tensor, "Q D"]:
        """CLIP's embeddings of masks: logits, of the whole image."""
        assert self.clip is not None and self.size is not None, "there is no CLIP"
        image, patch = clip_input(self.clip, sample, size=self.size, squash=self.squash)[None], self.clip.patch_size
        if self.region == "dense":
            return pool_mask_logits(self.clip.encode_dense(image, head=self.head)[0], masks)
        grid = (image.shape[2] // patch, image.shape[3] // patch)
        return self.clip.encode_masks(image, [touched_patches(masks, grid=grid, patch=patch)], head="masked")

    def panoptic(self, scored: ScoredMasks) -> PanopticMap:
        """The panoptic map."""
        rule = {"min_score": self.min_score, "overlap": self.overlap}
        return panoptic_map(
            scored.class_logits, scored.masks, self.query.is_thing, size=scored.size, frame=scored.frame, **rule
        )

    def semantic(self, scored: ScoredMasks) -> Float[Tensor, "K H W"]:
        """A score per class and pixel."""
        return semantic_map(scored.class_logits, scored.masks, size=scored.size, frame=scored.frame)

    def instances(self, scored: ScoredMasks) -> Detections:
        """Objects, best first."""
        return instances(scored.class_logits, scored.masks, self.query.is_thing, size=scored.size, frame=scored.frame)


def check_shares(
    mask_generator: MaskGenerator | PublishedModel, weights: FusionWeights, *, has_clip: bool = True
) -> None:
    """Refuse fusion weights that the models do not allow.

    Raises:
        InputError: the mask generator does not classify, and CLIP's weights are not 1; or there is no CLIP, and its
            weights are not 0.
    """
    if not has_clip and (weights.seen or weights.unseen):
        raise InputError(
            f"--fusion: need 0 for seen and unseen classes (`generator`) where no CLIP classifies masks; got "
            f"{weights.seen:g} and {weights.unseen:g}. Give one with --classifier."
        )
    if not mask_generator.knows_classes and weights != PRESETS["clip"]:
        raise InputError(
            f"fusion weights: need 1 for seen and unseen classes (`clip`) with a mask generator that was trained "
            f"without class names; got {weights.seen:g} and {weights.unseen:g}."
        )
