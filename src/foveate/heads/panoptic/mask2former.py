"""A mask generator of things and stuff: Mask2Former on any encoder (ODISE; Tab. 5).

    images --jitter, pad--> encoder --maps--> decoder --> Q queries: a mask, and an embedding or its objectness

With class embeddings it learns the base class of a mask: the pixel features pooled inside the mask and the query become
an embedding, compared with the text embeddings of the classes and a learned one of "no object". Without them it learns
objectness only. Novel segments and crowds are no targets: a mask there counts as "no object", with a tenth of the
weight. ODISE's alternative, learning from captions instead of labels, is not implemented.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from foveate.errors import InputError
from foveate.heads.common.groups import parameter_groups
from foveate.heads.common.inputs import check_masks, choose_jitter, evaluating, jittered_inputs
from foveate.heads.common.text import ClassEmbeddings, best_of_synonyms
from foveate.heads.panoptic.criterion import LossWeights, Target, mask_losses
from foveate.heads.panoptic.decoder import DecoderOutput, Encoder, MaskDecoder
from foveate.heads.panoptic.inputs import framed_input, run_by_size
from foveate.heads.panoptic.merge import Frame
from foveate.ops.jitter import Jitter, jitter_masks, no_jitter
from foveate.ops.resample import check_side
from foveate.types import Batch, Sample, blank_sample

MAX_SCALE = 100.0


@dataclass(frozen=True)
class Proposals:
    """Possible segments of one image."""

    id: str
    height: int  # of the image [pixels]
    width: int
    masks: Float[Tensor, "Q h w"]  # logits, of the whole image, or of the padded input of `frame`
    embeddings: Float[Tensor, "Q E"] | None = None  # of a mask generator with class embeddings
    objectness: Float[Tensor, "Q 2"] | None = None  # of one without: logits of object and "no object"
    class_logits: Float[Tensor, "Q J1"] | None = None  # of a published model: its J classes and, last, "no object"
    frame: Frame | None = None


class MaskGenerator(nn.Module):
    """The objective (`loss = mask_generator(batch)`) and the mask generator (`propose`).

    Attributes:
        parts: the losses of the last batch by name, summed over all layers, detached, for the log.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: MaskDecoder,
        *,
        is_novel: Bool[Tensor, " K"],
        size: int,
        classes: ClassEmbeddings | None = None,
        no_object: Float[Tensor, " D"] | None = None,
        joint: int = 256,
        weights: LossWeights | None = None,
        jitter: tuple[float, float] | None = (0.1, 2.0),
        flip: bool = True,
        longest: int | None = None,
    ) -> None:
        """Put a class head on a decoder.

        Args:
            encoder: see `foveate.heads.panoptic.decoder`.
            decoder: for the encoder's widths.
            is_novel: classes of the data that are not learned from: novel ones, and those a split leaves out.
            size: side of the square input; with `longest`, shortest edge at test [pixels].
            classes: the K classes; None: learn objectness only.
            no_object: initial embedding of "no object"; ODISE's is that of the empty text. None: random.
            joint: width of the space in which masks and classes are compared.
            weights: of the losses; None: Mask2Former's.
            jitter: smallest and largest scale of the large-scale jitter in training; None: no jitter.
            flip: mirror half of the images in training.
            longest: max longest edge at test, where the shortest is resized to `size` (ODISE: 1024 and 2560) [pixels];
                None: images are fitted into the square, as in training.

        Raises:
            InputError: a size that does not fit, another number of classes, or no base class.
        """
        super().__init__()
        check_side(size, patch=encoder.multiple, flag="--size")
        if bool(is_novel.all()):
            raise InputError("is_novel: need at least one base class; all are novel or ignored.")
        if classes is not None and classes.count != len(is_novel):
            raise InputError(f"classes: need embeddings of {len(is_novel)} classes; got {classes.count}.")
        self.encoder, self.decoder = encoder, decoder
        self.size, self.longest, self.jitter, self.flip = size, longest, jitter, flip
        self.weights = LossWeights() if weights is None else weights
        self.head = (
            nn.Linear(decoder.width, 2)
            if classes is None
            else ClassHead(decoder, text_dim=classes.embeddings.shape[1], joint=joint, no_object=no_object)
        )
        self.is_novel: Tensor
        self.register_buffer("is_novel", is_novel.clone())
        self.base_classes = None if classes is None else _select_classes(classes, ~is_novel)
        self.parts: dict[str, Tensor] = {}
        self.to(next(encoder.parameters()).device)

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        """The sum of the losses after all layers.

        Args:
            batch: images with `segments`, things and stuff: labels 0 to K - 1 are classes, K is a crowd. An image
                without segments has no targets. Random numbers come from torch's global stream.

        Returns:
            The loss; for a batch without images a zero with a gradient (of zero) for every trained parameter.
        """
        # inputs and targets
        samples = batch.samples or [blank_sample()]
        jitters = [
            choose_jitter(sample, size=self.size, scales=self.jitter, flip=self.flip, training=self.training)
            for sample in samples
        ]
        targets = [self._target(sample, jitter) for sample, jitter in zip(samples, jitters, strict=True)]
        decoded = self.decoder(self.encoder(self._inputs(samples, jitters)))

        # losses of all layers
        layers = [
            mask_losses(logits, masks, targets, self.weights)
            for logits, masks in zip(self._class_logits(decoded), decoded.masks, strict=True)
        ]
        parts = {name: torch.stack([layer[name] for layer in layers]).sum() for name in layers[0]}
        self.parts = {name: part.detach() for name, part in parts.items()}
        loss = torch.stack(list(parts.values())).sum()
        return loss if batch.samples else loss * 0

    @torch.no_grad()
    def propose(self, samples: list[Sample]) -> list[Proposals]:
        """Propose Q masks per image, without a vocabulary; the images' segments are ignored."""
        if not samples:
            return []
        with evaluating(self):
            if self.longest is None:
                return self._in_squares(samples)
            encoder, device = self.encoder, self.is_novel.device
            options: dict[str, Any] = {"mean": encoder.mean, "std": encoder.std, "pad": encoder.pad, "device": device}
            options |= {"shortest": self.size, "longest": self.longest, "multiple": encoder.multiple}
            return propose_framed(samples, self._last_layer, **options)

    def _in_squares(self, samples: list[Sample]) -> list[Proposals]:
        """Propose masks of images that are fitted into the square."""
        jitters = [no_jitter(*sample.image.shape[1:], size=self.size) for sample in samples]
        images = self._inputs(samples, jitters)
        if self.encoder.pad == "black":
            black = [-mean / std for mean, std in zip(self.encoder.mean, self.encoder.std, strict=True)]
            for image, jitter in zip(images, jitters, strict=True):
                (h, w), value = jitter.fitted, images.new_tensor(black)[:, None, None]
                image[:, h:], image[:, :, w:] = value, value
        square, proposals = (self.size, self.size), []
        for sample, jitter, outputs in zip(samples, jitters, self._last_layer(images), strict=True):
            outputs["masks"] = crop_padding(outputs["masks"], Frame(square, jitter.fitted))
            height, width = sample.image.shape[1:]
            proposals.append(Proposals(sample.id, height, width, frame=None, **outputs))
        return proposals

    def _last_layer(self, images: Float[Tensor, "B 3 H W"]) -> list[dict[str, Tensor]]:
        """Masks, and embeddings or objectness, of each image from the last layer, as fields of `Proposals`."""
        decoded, head = self.decoder(self.encoder(images)), self.head
        state, masks = decoded.states[-1], decoded.masks[-1]
        if isinstance(head, ClassHead):
            name, values = "embeddings", head(state, masks, decoded.pixels)
        else:
            name, values = "objectness", head(state)
        return [{"masks": part, name: value} for part, value in zip(masks, values, strict=True)]

    @property
    def knows_classes(self) -> bool:
        """Whether it classifies masks; else it returns their objectness."""
        return self.base_classes is not None

    def class_logits(self, proposals: Proposals, classes: ClassEmbeddings) -> Float[Tensor, "Q K1"]:
        """The mask generator's logits (step 1 of the fusion).

        Args:
            proposals: of one image.
            classes: K classes, embedded as those it learned from.

        Returns:
            Of the classes and, last, of "no object". Without class embeddings all classes have the same logit.
        """
        if isinstance(self.head, ClassHead):
            assert proposals.embeddings is not None, "proposals of a class head have embeddings"
            return self.head.compare(proposals.embeddings, classes)
        assert proposals.objectness is not None, "proposals without embeddings have an objectness"
        is_object, no_object = proposals.objectness.split(1, dim=1)  # (Q, 1) each
        shared = is_object - math.log(classes.count)  # the classes' probabilities sum to the objectness
        return torch.cat([shared.expand(-1, classes.count), no_object], dim=1)

    def parameter_groups(self, *, weight_decay: float) -> list[dict[str, Any]]:
        """Trained parameters in groups, see `foveate.heads.common.groups.parameter_groups`; vectors have no decay."""
        parts = [(self.parameters(), 1.0)]
        return parameter_groups(parts, weight_decay=weight_decay, decays=lambda parameter: parameter.ndim >= 2)

    def _class_logits(self, decoded: DecoderOutput) -> list[Float[Tensor, "B Q K1"]]:
        """Logits of the base classes after each layer."""
        head = self.head
        if not isinstance(head, ClassHead):
            return [head(state) for state in decoded.states]
        assert self.base_classes is not None, "a class head has class embeddings"
        layers = zip(decoded.states, decoded.masks, strict=True)
        return [head.compare(head(state, masks, decoded.pixels), self.base_classes) for state, masks in layers]

    def _target(self, sample: Sample, jitter: Jitter) -> Target:
        """The visible base segments, with their indices among the base classes as labels."""
        segments, count, device = sample.segments, len(self.is_novel), self.is_novel.device
        if segments is None or not len(segments.labels):
            empty = torch.zeros(0, self.size, self.size, dtype=torch.bool, device=device)
            return Target(empty, torch.zeros(0, dtype=torch.int64, device=device))
        assert int(segments.labels.max()) <= count, f"image {sample.id}: a label beyond {count}"
        check_masks(sample)

        # without novel segments and crowds (label K)
        is_base = ~torch.cat([self.is_novel, self.is_novel.new_ones(1)])[segments.labels.to(device)]  # (N,)
        masks = jitter_masks(segments.masks[is_base.cpu()].to(device), jitter, size=self.size)
        is_visible = masks.flatten(1).any(dim=1)
        labels = segments.labels.to(device)[is_base][is_visible]
        base_index = (~self.is_novel).cumsum(dim=0) - 1  # (K,)
        return Target(masks[is_visible], base_index[labels] if self.knows_classes else torch.zeros_like(labels))

    def _inputs(self, samples: list[Sample], jitters: list[Jitter]) -> Float[Tensor, "B 3 H W"]:
        options = {"size": self.size, "mean": self.encoder.mean, "std": self.encoder.std}
        return jittered_inputs(samples, jitters, device=self.is_novel.device, **options)


class ClassHead(nn.Module):
    """Embeddings of masks, compared with text embeddings (ODISE's pooled mask embedding)."""

    def __init__(
        self, decoder: MaskDecoder, *, text_dim: int, joint: int, no_object: Float[Tensor, " D"] | None
    ) -> None:
        """Make the layers; see `MaskGenerator` for `joint` and `no_object`."""
        super().__init__()
        width = decoder.width
        self.pooled = nn.Sequential(nn.LayerNorm(decoder.mask_width), nn.Linear(decoder.mask_width, width))
        hidden = [nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
        self.mask = nn.Sequential(nn.LayerNorm(width), *hidden, nn.Linear(width, joint))
        self.text = nn.Linear(text_dim, joint)
        start = F.normalize(torch.randn(text_dim), dim=0) if no_object is None else no_object.detach().float().clone()
        self.nothing = nn.Parameter(start)  # the embedding of "no object"
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def forward(
        self, states: Float[Tensor, "B Q C"], masks: Float[Tensor, "B Q h w"], pixels: Float[Tensor, "B M h w"]
    ) -> Float[Tensor, "B Q E"]:
        """Embed masks.

        Args:
            states: of the queries.
            masks: logits; pixels above 0 are inside.
            pixels: features of the same grid.
        """
        inside = (masks > 0).to(pixels.dtype)  # (B, Q, h, w)
        total = torch.einsum("bqhw,bmhw->bqm", inside, pixels)
        pooled = total / (inside.sum(dim=(2, 3))[:, :, None] + 1e-8)
        return self.mask(self.pooled(pooled) + states)

    def compare(self, embeddings: Float[Tensor, "*B E"], classes: ClassEmbeddings) -> Float[Tensor, "*B K1"]:
        """Logits of classes, each its best synonym's, and, last, of "no object"."""
        text = torch.cat([classes.embeddings.to(self.nothing.device).float(), self.nothing[None]])  # (S + 1, D)
        scale = self.log_scale.exp().clamp(max=MAX_SCALE)
        with torch.autocast(text.device.type, enabled=False):  # bfloat16 has steps of a quarter at logits of 100
            projected = F.normalize(self.text(text), dim=1)
            scores = scale * F.normalize(embeddings.float(), dim=-1) @ projected.T  # (..., S + 1)
        return torch.cat([best_of_synonyms(scores[..., :-1], classes), scores[..., -1:]], dim=-1)


def propose_framed(
    samples: list[Sample], run: Callable[[Tensor], list[dict[str, Tensor]]], **options: Any
) -> list[Proposals]:
    """Propose masks of images whose shortest edge is resized.

    Args:
        samples: the images.
        run: a batch of inputs -> the fields of each image's `Proposals`.
        options: of `framed_input`.
    """
    inputs = [framed_input(sample.image, **options) for sample in samples]
    proposals = []
    for sample, (_, frame), fields in zip(samples, inputs, run_by_size(inputs, run), strict=True):
        height, width = sample.image.shape[1:]
        proposals.append(Proposals(sample.id, height, width, **fields, frame=frame))
    return proposals


def crop_padding(masks: Float[Tensor, "Q h w"], frame: Frame) -> Float[Tensor, "Q _ _"]:
    """Crop masks of a padded input to the image, at about the same resolution.

    They are read bilinearly, since padding may begin between two cells.
    """
    sides = zip(frame.fitted, frame.padded, masks.shape[1:], strict=True)
    y, x = (_centres(part / whole, -(-part * count // whole), masks.device) for part, whole, count in sides)
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=2)  # (h', w', 2), x before y
    return F.grid_sample(masks[None].float(), grid[None], padding_mode="border", align_corners=False)[0]


def _centres(fraction: float, count: int, device: torch.device) -> Float[Tensor, " count"]:
    """The centres of `count` cells over the first `fraction` of an axis, which is -1 to 1 in `grid_sample`."""
    return 2 * fraction * (torch.arange(count, device=device, dtype=torch.float32) + 0.5) / count - 1


def _select_classes(classes: ClassEmbeddings, chosen: Bool[Tensor, " K"]) -> ClassEmbeddings:
    """Some of the classes, renumbered."""
    rows, index = chosen[classes.labels], chosen.cumsum(dim=0) - 1
    return ClassEmbeddings(
        classes.embeddings[rows.to(classes.embeddings.device)].detach(), index[classes.labels[rows]], int(chosen.sum())
    )
