"""One image, any vocabulary: proposals -> classes by generator and CLIP -> panoptic, semantic, instances (Tab. 5).

    image --generator--> Q masks --its words--> logits ----+
    image --squashed--> CLIP --mean of the dense map, or --+--fused--> class logits --merged--> maps
                                  masked attention inside each mask--> logits

The generator's input is the padded square, CLIP's is a square without padding (as ODISE's, aspect ignored) or keeps the
aspect. Both come from different towers in general, so nothing is shared. Deliberately absent: windows over large
images, tests with flipped images, measures (`foveate.evaluate`).
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
from foveate.heads.panoptic.fusion import PRESETS, Shares, clip_logits, fuse, pool_mask_logits, touched_patches
from foveate.heads.panoptic.mask2former import MaskGenerator, Proposals, cut_padding
from foveate.heads.panoptic.merge import OVERLAP, Frame, instances, panoptic_map, semantic_map
from foveate.heads.panoptic.names import Region
from foveate.heads.panoptic.published import ClassMap, Published
from foveate.ops.resample import check_side
from foveate.types import Detections, PanopticMap, Sample


@dataclass(frozen=True)
class Query:
    """The K classes that are requested."""

    words: ClassEmbeddings | None  # embedded by the CLIP that classifies; None: there is none
    generator_words: (
        ClassEmbeddings | ClassMap
    )  # as the generator learned them; of a published model, which of its own they are
    is_thing: Bool[Tensor, " K"]
    is_seen: Bool[Tensor, " K"]  # of `fusion.seen_classes`

    def __post_init__(self) -> None:
        words = () if self.words is None else (self.words.count,)
        counts = (*words, self.count, len(self.is_thing), len(self.is_seen))
        if len(set(counts)) > 1:
            raise InputError(f"classes: need words, things and seen classes of one number of classes; got {counts}.")

    @property
    def count(self) -> int:
        """K."""
        return self.generator_words.count


@dataclass(frozen=True)
class Evidence:
    """The masks of an image with the logits of the mask generator and of CLIP, before they are fused."""

    size: tuple[int, int]  # (H, W) of the image [pixels]
    masks: Float[Tensor, "Q h w"]  # logits, of the whole image
    generator: Float[Tensor, "Q K1"]  # logits of the classes and, last, of "no object"
    clip: Float[Tensor, "Q K"] | None  # None: not computed
    frame: Frame | None = None  # of masks of a padded input


@dataclass(frozen=True)
class ScoredMasks:
    """The masks of an image with their classes."""

    size: tuple[int, int]  # (H, W) of the image [pixels]
    class_logits: Float[Tensor, "Q K1"]  # of the classes and, last, of "no object"
    masks: Float[Tensor, "Q h w"]  # logits, of the whole image, or of a padded input
    frame: Frame | None = None  # then the image's position in it


class PanopticSegmenter:
    """Asks a generator's masks for classes."""

    def __init__(
        self,
        generator: MaskGenerator | Published,
        clip: Clip | None,
        query: Query,
        *,
        shares: Shares = PRESETS["odise-label"],
        region: Region = "dense",
        head: Head = "value",
        size: int | None = None,
        squash: bool = True,
        scale: float | None = None,
        min_score: float = 0.0,
        overlap: float = OVERLAP,
    ) -> None:
        """Put a generator and a CLIP together.

        Args:
            generator: trained, or a published model with classes of its own.
            clip: whose image tower classifies masks; another than the generator's, or the same. None: the generator
                alone says what they are.
            query: the classes.
            shares: CLIP's; see `fusion.PRESETS`.
            region: how it embeds a mask.
            head: of its dense map.
            size: side of its square input, or, with the aspect kept, of the longest side [pixels]; None: its own.
            squash: ignore the aspect, as ODISE.
            scale: of its logits; None: the one it was trained with.
            min_score: see `merge.panoptic_map`; 0 is ODISE's, .8 that of Mask2Former's files for COCO.
            overlap: likewise.

        Raises:
            InputError: a size that does not fit, no such region, a share that the generator or a missing CLIP cannot
                have, or a threshold outside [0, 1].
        """
        if clip is not None:
            size = clip.native_size if size is None else size
            check_side(size, patch=clip.patch_size, flag="--size")
        for flag, value in (("--min-score", min_score), ("--overlap", overlap)):
            if not 0 <= value <= 1:
                raise InputError(f"{flag}: must be in [0, 1]; got {value:g}.")
        if region not in get_args(Region):
            raise InputError(f"region: must be one of {', '.join(get_args(Region))}; got {region!r}.")
        check_shares(generator, shares, has_clip=clip is not None)
        self.generator, self.clip, self.query = generator.eval(), None if clip is None else clip.eval(), query
        self.min_score, self.overlap = min_score, overlap
        self.shares, self.region = shares, region
        self.head: Head = head
        self.size, self.squash = size, squash
        own = 1.0 if clip is None else clip.model.logit_scale.exp().item()
        self.scale = own if scale is None else scale

    @torch.no_grad()
    def score(self, sample: Sample) -> ScoredMasks:
        """Propose the masks of an image and classify them.

        Args:
            sample: decoded; its segments are ignored.
        """
        (proposals,) = self.generator.propose([sample])
        return self.score_proposals(sample, proposals)

    @torch.no_grad()
    def score_proposals(self, sample: Sample, proposals: Proposals) -> ScoredMasks:
        """Classify masks that were proposed before; there may be none."""
        uses_clip = bool(self.shares.seen or self.shares.unseen)
        return self.fuse(self.gather_evidence(sample, proposals, clip=uses_clip), self.shares)

    @torch.no_grad()
    def gather_evidence(self, sample: Sample, proposals: Proposals, *, clip: bool = True) -> Evidence:
        """Compute the logits of generator and CLIP, for any number of fusions.

        Args:
            sample: the image.
            proposals: of it; there may be none.
            clip: compute CLIP's logits.
        """
        query, masks = self.query, proposals.masks
        generator: Any = self.generator  # which takes its own kind of classes
        generator_logits = generator.class_logits(proposals, query.generator_words)
        logits = None
        if len(masks) and clip:
            assert query.words is not None, "a CLIP that classifies has text embeddings"
            whole = masks if proposals.frame is None else cut_padding(masks, proposals.frame)
            logits = clip_logits(self.embed(sample, whole), query.words, scale=self.scale)
        elif not len(masks):
            logits = generator_logits[:, :-1]  # (0, K)
        return Evidence((proposals.height, proposals.width), masks, generator_logits, logits, proposals.frame)

    def fuse(self, evidence: Evidence, shares: Shares) -> ScoredMasks:
        """Fuse both logits into one distribution.

        Args:
            evidence: of `gather_evidence`, with CLIP's part unless the shares are 0.
            shares: CLIP's; in place of the segmenter's own.
        """
        check_shares(self.generator, shares, has_clip=self.clip is not None)
        logits = fuse(evidence.generator, evidence.clip, self.query.is_seen, shares)
        return ScoredMasks(evidence.size, logits, evidence.masks, evidence.frame)

    @torch.no_grad()
    def embed(self, sample: Sample, masks: Float[Tensor, "Q h w"]) -> Float[Tensor, "Q D"]:
        """CLIP's embeddings of masks.

        Args:
            sample: the image.
            masks: logits, of the whole image.
        """
        assert self.clip is not None and self.size is not None, "masks are embedded by a CLIP"
        image, patch = clip_input(self.clip, sample, size=self.size, squash=self.squash)[None], self.clip.patch_size
        if self.region == "dense":
            return pool_mask_logits(self.clip.encode_dense(image, head=self.head)[0], masks)
        grid = (image.shape[2] // patch, image.shape[3] // patch)
        return self.clip.encode_masks(image, [touched_patches(masks, grid=grid, patch=patch)], head="masked")

    def panoptic(self, scored: ScoredMasks) -> PanopticMap:
        """One segment a pixel, or none."""
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


def check_shares(generator: MaskGenerator | Published, shares: Shares, *, has_clip: bool = True) -> None:
    """Refuse a share of a generator that knows no class, or of a CLIP that is none.

    Raises:
        InputError: it learned no words, and CLIP has less than all of the score; or there is no CLIP, and it has some.
    """
    if not has_clip and (shares.seen or shares.unseen):
        raise InputError(
            f"--fusion: need 0 for CLIP, seen and unseen (`generator`), where no CLIP names masks; got {shares.seen:g} "
            f"and {shares.unseen:g}. Name one with --classifier."
        )
    if not generator.knows_classes and shares != PRESETS["clip"]:
        raise InputError(
            f"shares: need 1 for CLIP, seen and unseen (`clip`), with a generator without words: it knows no class; "
            f"got {shares.seen:g} and {shares.unseen:g}."
        )
