"""A generator of masks of things and stuff, whatever they are called: Mask2Former on any encoder (ODISE; Tab. 5).

    images --jitter, pad--> encoder --maps--> decoder --> Q queries: a mask, and an embedding or "is something"

With words it learns which base class a mask is: the mask's part of the pixel features, pooled, and its query become an
embedding, compared with the classes' words and a learned one for nothing. Without words it learns only that something
is there. Novel segments and crowds are left out of what it learns from: a mask there counts as nothing, with a tenth of
the weight. Deliberately absent: ODISE's captions, from which it can learn instead of labels; fusion with CLIP
(`segment`).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from foveate.errors import InputError
from foveate.heads.common.groups import parameter_groups
from foveate.heads.common.inputs import check_masks, choose_jitter
from foveate.heads.common.text import ClassEmbeddings, best_of_synonyms
from foveate.heads.panoptic.criterion import Target, Weights, mask_losses
from foveate.heads.panoptic.decoder import Decoded, Encoder, MaskDecoder
from foveate.heads.panoptic.inputs import framed_input, run_by_size
from foveate.heads.panoptic.merge import Frame
from foveate.ops.jitter import Jitter, jitter_image, jitter_masks, no_jitter
from foveate.ops.resample import check_side
from foveate.types import Batch, Sample, blank_sample

MAX_SCALE = 100.0


@dataclass(frozen=True)
class Proposals:
    """What may be a segment of one image."""

    id: str
    height: int  # of the image [pixels]
    width: int
    masks: Float[Tensor, "Q h w"]  # logits, of the whole image
    embeddings: Float[Tensor, "Q E"] | None  # to be compared with words; None: the generator knows none
    something: Float[Tensor, "Q 2"] | None  # logits of something and of nothing; None: words say so
    own: Float[Tensor, "Q J1"] | None = None  # logits of a published model's own classes and, last, of nothing
    frame: Frame | None = None  # of masks of a padded input; None: they are of the whole image


class MaskGenerator(nn.Module):
    """The objective (`loss = generator(batch)`), and what it finds (`propose`).

    Attributes:
        parts: the losses of the last batch by name, over all layers, detached, for the log.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: MaskDecoder,
        *,
        is_novel: Bool[Tensor, " K"],
        size: int,
        words: ClassEmbeddings | None = None,
        nothing: Float[Tensor, " D"] | None = None,
        joint: int = 256,
        weights: Weights | None = None,
        jitter: tuple[float, float] | None = (0.1, 2.0),
        flip: bool = True,
        longest: int | None = None,
    ) -> None:
        """Put what learns classes of masks behind a decoder.

        Args:
            encoder: of `foveate.heads.panoptic.decoder`, made for the decoder's widths.
            decoder: likewise.
            is_novel: classes of the data not to be learned from: novel ones, and those a split leaves out.
            size: side of the square input; with `longest`, of the shortest edge at test [pixels].
            words: of the K classes; None: learn only that something is there.
            nothing: where the embedding of nothing starts; ODISE's is that of the empty text. None: drawn.
            joint: width in which masks and words are compared.
            weights: of the losses; None: Mask2Former's.
            jitter: least and greatest scale of the large-scale jitter in training; None: images as they are.
            flip: mirror half of the images in training.
            longest: most that the longest edge may have at test, where the shortest becomes `size` (ODISE: 1024 and
                2560) [pixels]; None: images are fitted into the square, as in training.

        Raises:
            InputError: a size that does not fit, words of another number of classes, no base class.
        """
        super().__init__()
        check_side(size, patch=encoder.multiple, flag="--size")
        if bool(is_novel.all()):
            raise InputError("is_novel: need at least one class to learn from; all are novel or left out.")
        if words is not None and words.count != len(is_novel):
            raise InputError(f"words: need those of {len(is_novel)} classes; got {words.count}.")
        self.encoder, self.decoder = encoder, decoder
        self.size, self.longest, self.jitter, self.flip = size, longest, jitter, flip
        self.weights = Weights() if weights is None else weights
        self.head = (
            nn.Linear(decoder.width, 2)
            if words is None
            else WordHead(decoder, text_dim=words.rows.shape[1], joint=joint, nothing=nothing)
        )
        self.is_novel: Tensor
        self.register_buffer("is_novel", is_novel.clone())
        self.words = None if words is None else _only(words, ~is_novel)
        self.parts: dict[str, Tensor] = {}
        self.to(next(encoder.parameters()).device)

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        """The sum of the losses after all layers.

        Args:
            batch: images with `segments`, things and stuff: labels 0 to K - 1 are classes, K stands for a crowd. A
                image without segments holds nothing. Draws come from torch's global stream.

        Returns:
            The loss; where no image could be used, a zero that still reaches every trained parameter.
        """
        samples = batch.samples or [blank_sample()]
        jitters = [self._jitter(sample) for sample in samples]
        targets = [self._target(sample, jitter) for sample, jitter in zip(samples, jitters, strict=True)]
        found = self.decoder(self.encoder(self._inputs(samples, jitters)))
        layers = [
            mask_losses(logits, masks, targets, self.weights)
            for logits, masks in zip(self._class_logits(found), found.masks, strict=True)
        ]
        parts = {name: torch.stack([layer[name] for layer in layers]).sum() for name in layers[0]}
        self.parts = {name: part.detach() for name, part in parts.items()}
        loss = torch.stack(list(parts.values())).sum()
        return loss if batch.samples else loss * 0

    @torch.no_grad()
    def propose(self, samples: list[Sample]) -> list[Proposals]:
        """Find what may be a segment; no vocabulary is needed.

        Args:
            samples: decoded images; their segments are not looked at.

        Returns:
            One record per image, Q masks each.
        """
        if not samples:
            return []
        was_training = self.training
        self.eval()
        proposals = self._in_squares(samples) if self.longest is None else self._framed(samples, longest=self.longest)
        self.train(was_training)
        return proposals

    def _in_squares(self, samples: list[Sample]) -> list[Proposals]:
        """Propose masks of images that are fitted into the square."""
        jitters = [no_jitter(*sample.image.shape[1:], size=self.size) for sample in samples]
        images = self._inputs(samples, jitters)
        if self.encoder.pad == "black":
            black = [-mean / std for mean, std in zip(self.encoder.mean, self.encoder.std, strict=True)]
            for image, jitter in zip(images, jitters, strict=True):
                (h, w), value = jitter.fitted, images.new_tensor(black)[:, None, None]
                image[:, h:], image[:, :, w:] = value, value
        return [
            _proposals(sample, of_image(masks, jitter, size=self.size), embeddings, something)
            for sample, jitter, (masks, embeddings, something) in zip(
                samples, jitters, self._last_layer(images), strict=True
            )
        ]

    def _framed(self, samples: list[Sample], *, longest: int) -> list[Proposals]:
        """Propose masks of images whose shortest edge is resized."""
        encoder, device = self.encoder, self.is_novel.device
        options: dict[str, Any] = {"mean": encoder.mean, "std": encoder.std, "pad": encoder.pad, "device": device}
        options |= {"shortest": self.size, "longest": longest, "multiple": encoder.multiple}
        inputs = [framed_input(sample.image, **options) for sample in samples]
        results = run_by_size(inputs, self._last_layer)
        return [
            _proposals(sample, *result, frame=frame)
            for sample, result, (_, frame) in zip(samples, results, inputs, strict=True)
        ]

    def _last_layer(self, images: Float[Tensor, "B 3 H W"]) -> list[tuple[Tensor, Tensor | None, Tensor | None]]:
        """Per image its masks, their embeddings, and the logits of something and nothing, from the last layer."""
        decoded, head = self.decoder(self.encoder(images)), self.head
        state, masks, absent = decoded.states[-1], decoded.masks[-1], [None] * len(images)
        embeddings = head(state, masks, decoded.pixels) if isinstance(head, WordHead) else absent
        something = absent if isinstance(head, WordHead) else head(state)
        return list(zip(masks, embeddings, something, strict=True))

    @property
    def knows_classes(self) -> bool:
        """Whether it says what a mask is, or only that something is there."""
        return self.words is not None

    def class_logits(self, proposals: Proposals, words: ClassEmbeddings) -> Float[Tensor, "Q K1"]:
        """What the generator says of its masks (step 1 of the fusion).

        Args:
            proposals: of one image.
            words: of the K classes requested, embedded as those it learned from.

        Returns:
            Of the classes and, last, of nothing. Without words of its own it finds all classes alike.
        """
        if isinstance(self.head, WordHead):
            assert proposals.embeddings is not None, "proposals of a generator with words have embeddings"
            return self.head.compare(proposals.embeddings, words)
        assert proposals.something is not None, "proposals of a generator without words say whether something is there"
        something, nothing = proposals.something.split(1, dim=1)  # (Q, 1) each
        alike = something - math.log(words.count)  # together as probable as something
        return torch.cat([alike.expand(-1, words.count), nothing], dim=1)

    def parameter_groups(self, *, weight_decay: float) -> list[dict[str, Any]]:
        """Trained parameters in groups, see `foveate.heads.common.groups.parameter_groups`.

        Args:
            weight_decay: of matrices; vectors have none.
        """
        parts = [(self.parameters(), 1.0)]
        return parameter_groups(parts, weight_decay=weight_decay, decays=lambda parameter: parameter.ndim >= 2)

    def _class_logits(self, decoded: Decoded) -> list[Float[Tensor, "B Q K1"]]:
        """Logits of the base classes after each layer."""
        head = self.head
        if not isinstance(head, WordHead):
            return [head(state) for state in decoded.states]
        assert self.words is not None, "a word head has text embeddings to learn from"
        layers = zip(decoded.states, decoded.masks, strict=True)
        return [head.compare(head(state, masks, decoded.pixels), self.words) for state, masks in layers]

    def _jitter(self, sample: Sample) -> Jitter:
        scales = self.jitter if self.training else None
        return choose_jitter(sample, size=self.size, scales=scales, flip=self.flip and self.training)

    def _target(self, sample: Sample, jitter: Jitter) -> Target:
        """The visible base segments, with their indices among the base classes as labels."""
        segments, count, device = sample.segments, len(self.is_novel), self.is_novel.device
        if segments is None or not len(segments.labels):
            empty = torch.zeros(0, self.size, self.size, dtype=torch.bool, device=device)
            return Target(empty, torch.zeros(0, dtype=torch.int64, device=device))
        assert int(segments.labels.max()) <= count, f"image {sample.id}: a label beyond {count}"
        check_masks(sample)
        # novel segments and crowds (label K) are not learned from
        is_base = ~torch.cat([self.is_novel, self.is_novel.new_ones(1)])[segments.labels.to(device)]  # (N,)
        masks = jitter_masks(segments.masks[is_base.cpu()].to(device), jitter, size=self.size)
        is_visible = masks.flatten(1).any(dim=1)
        labels = segments.labels.to(device)[is_base][is_visible]
        base_index = (~self.is_novel).cumsum(dim=0) - 1  # (K,)
        return Target(masks[is_visible], base_index[labels] if self.words is not None else torch.zeros_like(labels))

    def _inputs(self, samples: list[Sample], jitters: list[Jitter]) -> Float[Tensor, "B 3 H W"]:
        options = {"size": self.size, "mean": self.encoder.mean, "std": self.encoder.std}
        images = [sample.image.to(self.is_novel.device) for sample in samples]
        return torch.stack(
            [jitter_image(image, jitter, **options) for image, jitter in zip(images, jitters, strict=True)]
        )


class WordHead(nn.Module):
    """Embeddings of masks, and what words they are near to (ODISE's pooled mask embedding)."""

    def __init__(self, decoder: MaskDecoder, *, text_dim: int, joint: int, nothing: Float[Tensor, " D"] | None) -> None:
        """Make what learns to embed masks.

        Args:
            decoder: whose queries and pixels are embedded.
            text_dim: D, of the words.
            joint: width in which they meet.
            nothing: where the embedding of nothing starts, as long as the words' embeddings; None: drawn.
        """
        super().__init__()
        width = decoder.width
        self.pooled = nn.Sequential(nn.LayerNorm(decoder.mask_width), nn.Linear(decoder.mask_width, width))
        hidden = [nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
        self.mask = nn.Sequential(nn.LayerNorm(width), *hidden, nn.Linear(width, joint))
        self.text = nn.Linear(text_dim, joint)
        start = F.normalize(torch.randn(text_dim), dim=0) if nothing is None else nothing.detach().float().clone()
        self.nothing = nn.Parameter(start)
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def forward(
        self, states: Float[Tensor, "B Q C"], masks: Float[Tensor, "B Q h w"], pixels: Float[Tensor, "B M h w"]
    ) -> Float[Tensor, "B Q E"]:
        """Embed masks.

        Args:
            states: of the queries.
            masks: their logits; what is above 0 belongs to them.
            pixels: features of the same places.
        """
        inside = (masks > 0).to(pixels.dtype)  # (B, Q, h, w)
        total = torch.einsum("bqhw,bmhw->bqm", inside, pixels)
        pooled = total / (inside.sum(dim=(2, 3))[:, :, None] + 1e-8)
        return self.mask(self.pooled(pooled) + states)

    def compare(self, embeddings: Float[Tensor, "*B E"], words: ClassEmbeddings) -> Float[Tensor, "*B K1"]:
        """Logits of classes, the best of their words each, and, last, of nothing."""
        rows = torch.cat([words.rows.to(self.nothing.device).float(), self.nothing[None]])  # (S + 1, D)
        scale = self.log_scale.exp().clamp(max=MAX_SCALE)
        with torch.autocast(rows.device.type, enabled=False):  # logits of up to 100 lose a quarter to bfloat16
            known = F.normalize(self.text(rows), dim=1)
            scores = scale * F.normalize(embeddings.float(), dim=-1) @ known.T  # (..., S + 1)
        return torch.cat([best_of_synonyms(scores[..., :-1], words), scores[..., -1:]], dim=-1)


def _proposals(
    sample: Sample, masks: Tensor, embeddings: Tensor | None, something: Tensor | None, *, frame: Frame | None = None
) -> Proposals:
    height, width = sample.image.shape[1:]
    return Proposals(sample.id, height, width, masks, embeddings, something, frame=frame)


def of_image(masks: Float[Tensor, "Q h w"], jitter: Jitter, *, size: int) -> Float[Tensor, "Q _ _"]:
    """Leave the padding of a square out of its masks.

    Args:
        masks: of the padded square.
        jitter: says which part of it the image fills.
        size: side of the square [pixels].

    Returns:
        Of the image alone, about as fine as before; read bilinearly where the padding begins between two places.
    """
    return cut_padding(masks, Frame((size, size), jitter.fitted))


def cut_padding(masks: Float[Tensor, "Q h w"], frame: Frame) -> Float[Tensor, "Q _ _"]:
    """Leave the padding of an input out of its masks; see `of_image`."""
    sides = zip(frame.fitted, frame.padded, masks.shape[1:], strict=True)
    y, x = (_places(part / whole, -(-part * count // whole), masks) for part, whole, count in sides)
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=2)  # (h', w', 2), x before y
    return F.grid_sample(masks[None].float(), grid[None], padding_mode="border", align_corners=False)[0]


def _places(share: float, count: int, like: Tensor) -> Float[Tensor, " count"]:
    """The centres of `count` cells over the first part of an axis, as `grid_sample` counts: -1 to 1 over all of it."""
    return 2 * share * (torch.arange(count, device=like.device, dtype=torch.float32) + 0.5) / count - 1


def _only(words: ClassEmbeddings, wanted: Bool[Tensor, " K"]) -> ClassEmbeddings:
    """The words of some of the classes, which are renumbered."""
    chosen, place = wanted[words.owner], wanted.cumsum(dim=0) - 1
    return ClassEmbeddings(
        words.rows[chosen.to(words.rows.device)].detach(), place[words.owner[chosen]], int(wanted.sum())
    )
