"""CAT-Seg: open-vocabulary segmentation by aggregating a CLIP's cosines (Cho et al., CVPR 2024).

    image --tower--> dense feature map . text embeddings --> cosines --aggregator--> a logit per location and class

It learns from label maps; the tower's attention is trained with a hundredth of the learning rate. There are two
versions:

    2024    one prompt per class, guidance by the CLIP tower, queries and values of both towers trained
    2023    80 prompts per class, guidance by an ImageNet network, attention and positions of the image tower trained

The values of the tower's last block are added to the class token (`residual` "cls", in the code of 2024) or to each
token ("token", in the code of 2023 and in CLIPSelf's dense feature map).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn

from foveate.clip.dense import check_head, dense_of_last, tower_stages
from foveate.clip.model import Clip
from foveate.clip.names import Head
from foveate.clip.templates import TemplateSet, template_set
from foveate.clip.text import check_distinct, report_cut
from foveate.clip.vocabulary import Vocabulary
from foveate.errors import InputError
from foveate.heads.catseg.aggregate import Aggregator
from foveate.heads.catseg.cost import best_classes, cost_volume, spread_classes, take_classes
from foveate.heads.catseg.guidance import STRIDE, Backbone, Guidance, TowerGuidance
from foveate.heads.catseg.names import Residual, Version
from foveate.heads.catseg.tune import unfreeze_attention, unfreeze_queries_and_values
from foveate.heads.catseg.views import cut_windows, fold_average, squash, training_view
from foveate.heads.common.groups import parameter_groups
from foveate.heads.common.tower import tap_width
from foveate.ops.argmax import best_labels, classes_at_once
from foveate.ops.resample import check_side, normalize
from foveate.ops.shortest import resize_shortest
from foveate.types import Batch, LabelMap, Sample

HEADS: dict[Residual, Head] = {"token": "value", "cls": "value_cls"}
PROMPT = "A photo of a {} in the scene"
PROMPTS_AT_ONCE = 512


@dataclass(frozen=True)
class Network:
    """Hyperparameters of a CAT-Seg."""

    version: Version  # see the module
    residual: Residual  # see the module
    backbone: str | None  # timm's name of the guidance network in 2023; None in 2024
    size: int  # side of a training crop and of a window at test [pixels]
    clip_size: int  # side that a crop is resized to for the tower [pixels]: 384, and 336 with a ViT-L/14
    test_size: int  # shortest edge at test, and side of the square that the image is then squashed to [pixels]
    longest: int  # max longest edge at test [pixels]; 4 times `test_size` is published
    stride: int  # from one window to the next [pixels]
    window: int  # side of the attention's windows [tokens]
    hidden: int  # from here to `layers` see `Aggregator`
    guidance: int
    decoder: tuple[int, int]
    decoder_guidance: tuple[int, int]
    tower_guidance: tuple[int, int]  # channels of the tower's upsampled maps in 2024
    heads: int
    layers: int
    most: int  # max classes per view at test in 2024, those of the highest cosines; fewer are padded


class CatSeg(nn.Module):
    """The objective (`loss = model(batch)`) and the segmenter (`predict`, `label_maps`).

    Attributes:
        head: of the dense feature map.
        partly: matrices of the CLIP trained in some rows only, see `foveate.engine.optim.take_step`.
        parts: the loss of the last batch by name, detached, for the log.
    """

    def __init__(
        self,
        clip: Clip,
        network: Network,
        *,
        vocabulary: Vocabulary | Sequence[str],
        backbone: Backbone | None = None,
        augment: bool = True,
    ) -> None:
        """Put an aggregator on a CLIP, which is partly frozen here.

        Args:
            clip: a vision transformer; changed here.
            network: hyperparameters.
            vocabulary: K classes of the training data.
            backbone: the guidance network in 2023; None in 2024.
            augment: crop, mirror and colour training images at random; else they are squashed.

        Raises:
            InputError: the version, residual, tower, sizes and backbone do not go together.
        """
        super().__init__()
        _check(clip, network, backbone)
        self.head: Head = HEADS[network.residual]
        self.version, self.size, self.clip_size = network.version, network.size, network.clip_size
        self.test_size, self.longest, self.stride = network.test_size, network.longest, network.stride
        self.max_classes, self.augment = network.most, augment
        self.clip = clip.eval()
        is_2024 = network.version == "2024"
        self.partly = (unfreeze_queries_and_values if is_2024 else unfreeze_attention)(clip, head=self.head)
        stages = len(tower_stages(clip.visual))
        self.taps = (stages // 3 - 1, 2 * stages // 3 - 1, stages - 1)  # B: 3, 7 and 11; L: 7, 15 and 23
        self.backbone, self.tower_guidance = backbone, None
        if backbone is None:
            self.tower_guidance = TowerGuidance(tap_width(clip), channels=network.tower_guidance)
            guides = (clip.embed_dim, *network.tower_guidance)
        else:
            guides = backbone.channels
        self.aggregator = Aggregator(
            prompts=len(self._templates.templates),
            text_dim=clip.embed_dim,
            guides=guides,
            hidden=network.hidden,
            guidance=network.guidance,
            decoder=network.decoder,
            decoder_guidance=network.decoder_guidance,
            heads=network.heads,
            layers=network.layers,
            window=network.window,
            padding=network.most if is_2024 else 0,
        )
        self.tokens: Tensor
        tokens, self.synonym_counts = self._tokenize(vocabulary)
        self.register_buffer("tokens", tokens, persistent=False)
        self.parts: dict[str, Tensor] = {}
        self.to(next(clip.parameters()).device)

    @cached_property
    def text(self) -> Float[Tensor, "K P D"]:
        """Embeddings of the training classes, computed once: the text tower is frozen in 2023."""
        with torch.no_grad():
            return self._embed(self.tokens, self.synonym_counts)

    def train(self, mode: bool = True) -> "CatSeg":
        """Switch to training; the tower stays in evaluation mode."""
        super().train(mode)
        self.clip.eval()
        return self

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        """The binary cross-entropy over all pixels of the crops and all classes.

        Args:
            batch: images with label maps of the vocabulary; pixels of class -1 are negative for all classes. Random
                numbers come from torch's global stream.

        Returns:
            The loss; for a batch without images a zero with a gradient (of zero) for every trained parameter.
        """
        device, classes = self.tokens.device, len(self.synonym_counts)
        views = [
            training_view(sample, classes=classes, size=self.size, augment=self.augment, device=device)
            for sample in batch.samples
        ] or [(torch.zeros(3, self.size, self.size, device=device), self.tokens.new_full((self.size, self.size), -1))]
        images, labels = (torch.stack(part) for part in zip(*views, strict=True))
        text = self._embed(self.tokens, self.synonym_counts) if self.version == "2024" else self.text
        loss = pixel_loss(_resize(self.logits(images, text), size=self.size), labels)
        self.parts = {"pixels": loss.detach()}
        return loss if batch.samples else loss * 0

    def logits(self, images: Float[Tensor, "B 3 S S"], text: Float[Tensor, "K P D"]) -> Float[Tensor, "B K H W"]:
        """The logits of views, four times as fine as the dense feature map.

        Args:
            images: RGB in [0, 255], of side `size`.
            text: of `embed_classes`.
        """
        # cosines of all locations with all prompts
        inputs = normalize(squash(images, size=self.clip_size), mean=self.clip.mean, std=self.clip.std)
        *taps, last = self.clip.features(inputs, layers=self.taps, head=self.head)
        dense = dense_of_last(self.clip.visual, last)  # (B, D, h, w)
        guidance = self._guidance(images, dense, taps)
        cost = cost_volume(dense, text)  # (B, K, P, h, w)
        means = F.normalize(F.normalize(text.float(), dim=2).mean(dim=1), dim=1)  # (K, D)
        means = means.expand(len(images), -1, -1)  # (B, K, D)

        # aggregation, at test in 2024 of the best classes only
        if self.training or self.version == "2023" or len(text) <= self.max_classes:
            return self.aggregator(cost, means, guidance)
        chosen = best_classes(cost, max_classes=self.max_classes)  # (B, M)
        logits = self.aggregator(take_classes(cost, chosen), take_classes(means, chosen), guidance)
        return spread_classes(logits, chosen, count=len(text))

    @torch.no_grad()
    def embed_classes(self, vocabulary: Vocabulary | Sequence[str]) -> Float[Tensor, "K P D"]:
        """Embed classes with the version's prompts, by the text tower in its current state.

        Args:
            vocabulary: synonyms after the first are ignored in 2024 and averaged with it in 2023.

        Raises:
            InputError: no class, or an empty name.
        """
        return self._embed(*self._tokenize(vocabulary))

    @torch.no_grad()
    def predict(
        self, samples: Sequence[Sample], text: Float[Tensor, "K P D"], *, at_once: int = 5
    ) -> list[Float[Tensor, "K _ _"]]:
        """The probability of each class at each pixel, one class independent of another.

        Args:
            samples: images of any size.
            text: of `embed_classes`.
            at_once: views per forward pass; fewer take less memory.

        Returns:
            For each image (K, H, W) in [0, 1], at its size.
        """
        return [torch.cat(list(self._probabilities(sample, text, at_once))) for sample in samples]

    @torch.no_grad()
    def label_maps(
        self, samples: Sequence[Sample], text: Float[Tensor, "K P D"], *, at_once: int = 5
    ) -> list[LabelMap]:
        """The most likely class of each pixel; as `predict`, without holding all classes at once."""
        return [best_labels(self._probabilities(sample, text, at_once)) for sample in samples]

    def parameter_groups(
        self, *, weight_decay: float, clip_scale: float = 0.01, backbone_scale: float = 0.01
    ) -> list[dict[str, Any]]:
        """Trained parameters in groups, see `foveate.heads.common.groups.parameter_groups`.

        Args:
            weight_decay: of matrices; vectors and matrices trained in part (`partly`) have none.
            clip_scale: factor of the CLIP's learning rate.
            backbone_scale: factor of the backbone's.
        """
        partly = {id(parameter) for parameter, _ in self.partly}
        guidance = [] if self.tower_guidance is None else self.tower_guidance.parameters()
        return parameter_groups(
            [
                ([*self.aggregator.parameters(), *guidance], 1.0),
                (self.clip.parameters(), clip_scale),
                ([] if self.backbone is None else self.backbone.parameters(), backbone_scale),
            ],
            weight_decay=weight_decay,
            decays=lambda parameter: parameter.ndim >= 2 and id(parameter) not in partly,
        )

    def _guidance(self, images: Tensor, dense: Tensor, taps: list[Tensor]) -> Guidance:
        if self.backbone is not None:
            return self.backbone(images)
        assert self.tower_guidance is not None, "there is neither a backbone nor a tower guidance"
        return self.tower_guidance(dense, taps)

    @property
    def _templates(self) -> TemplateSet:
        return template_set((PROMPT,) if self.version == "2024" else "clip")

    def _tokenize(self, vocabulary: Vocabulary | Sequence[str]) -> tuple[Int64[Tensor, "T context"], list[int]]:
        """All prompts, and the number of synonyms of each class."""
        classes = vocabulary.classes if isinstance(vocabulary, Vocabulary) else [(name,) for name in vocabulary]
        if not classes or isinstance(vocabulary, str):
            raise InputError(f"vocabulary: need a list with at least one class name; got {vocabulary!r}.")
        classes = [names[:1] for names in classes] if self.version == "2024" else classes
        prompts = [prompt for names in classes for name in names for prompt in self._templates.fill(name)]
        tokens = self.clip.tokenize(prompts)
        report_cut(self.clip, prompts, tokens)
        check_distinct(classes, tokens, templates=len(self._templates.templates))
        return tokens, [len(names) for names in classes]

    def _embed(self, tokens: Int64[Tensor, "T context"], synonym_counts: list[int]) -> Float[Tensor, "K P D"]:
        """Embed prompts; those of a class's synonyms are averaged template by template."""
        embeddings = torch.cat([self.clip.encode_text(part) for part in tokens.split(PROMPTS_AT_ONCE)])  # (T, D)
        classes = embeddings.unflatten(0, (-1, len(self._templates.templates))).split(synonym_counts)  # (_, P, D) each
        return F.normalize(torch.stack([synonyms.mean(dim=0) for synonyms in classes]), dim=2)

    def _probabilities(self, sample: Sample, text: Tensor, at_once: int) -> Iterator[Float[Tensor, "k H W"]]:
        """Probabilities at the image's size, a chunk of classes at a time: the mean of windows and the whole image."""
        assert not self.training, "attention over classes pools in training; call eval() first"
        # views: overlapping windows, and the whole image
        image = resize_shortest(sample.image, shortest=self.test_size, longest=self.longest)
        image = image[None].to(text.device).float()
        square = squash(image, size=self.test_size)[0]  # (3, L, L)
        windows = cut_windows(square, window=self.size, stride=self.stride)
        views = torch.cat([windows, squash(image, size=self.size)])  # (n + 1, 3, S, S)
        logits = torch.cat([self.logits(part, text) for part in views.split(at_once)])  # (n + 1, K, H', W')

        # average, then resize
        for chunk in logits.split(classes_at_once(*sample.image.shape[1:]), dim=1):
            probabilities = _resize(chunk, size=self.size).sigmoid()  # (n + 1, k, S, S)
            folded = fold_average(probabilities[:-1], length=self.test_size, stride=self.stride)
            mean = (folded[None] + _resize(probabilities[-1:], size=self.test_size)) / 2  # (1, k, L, L)
            yield F.interpolate(mean, size=tuple(sample.image.shape[1:]), mode="bilinear", align_corners=False)[0]


def pixel_loss(logits: Float[Tensor, "B K H W"], labels: Int64[Tensor, "B H W"]) -> Float[Tensor, ""]:
    """The mean of the binary cross-entropy over all pixels and classes, without one-hot targets.

    The loss of a logit x is softplus(x) - x if the pixel is of the class, and softplus(x) otherwise.

    Args:
        logits: at the labels' size.
        labels: 0 to K - 1; -1: negative for all classes.
    """
    positive = logits.gather(1, labels.clamp(min=0)[:, None])[:, 0]  # (B, H, W)
    return F.softplus(logits).mean() - (positive * (labels >= 0)).sum() / logits.numel()


def _resize(maps: Float[Tensor, "B K h w"], *, size: int) -> Float[Tensor, "B K S S"]:
    return F.interpolate(maps.float(), size=(size, size), mode="bilinear", align_corners=False)


def _check(clip: Clip, network: Network, backbone: Backbone | None) -> None:
    """Refuse a tower, a version or a backbone that do not go together, and sizes that do not fit."""
    version, residual = network.version, network.residual
    if version not in get_args(Version):
        raise InputError(f"version: must be one of {', '.join(get_args(Version))}; got {version!r}.")
    if residual not in HEADS:
        raise InputError(f"residual: must be one of {', '.join(HEADS)}; got {residual!r}.")
    if isinstance(clip.visual, ModifiedResNet):
        raise InputError(f"{clip.name}: CAT-Seg needs a vision transformer; this is a residual network. Use a ViT.")
    if len(tower_stages(clip.visual)) < 3:
        raise InputError(f"{clip.name}: CAT-Seg taps two blocks before the last; this tower has fewer than 3.")
    try:
        check_head(clip.visual, HEADS[residual])
    except InputError as error:
        raise InputError(f"residual: {error} Here: --residual token.") from error
    if (backbone is None) == (version == "2023"):
        needed = "a guidance backbone (resnet101 with a ViT-B)" if version == "2023" else "no backbone"
        raise InputError(
            f"backbone: the version of {version} takes {needed}; got {'none' if backbone is None else 'one'}."
        )
    _check_sizes(network, patch=clip.patch_size, has_backbone=backbone is not None)


def _check_sizes(network: Network, *, patch: int, has_backbone: bool) -> None:
    size, stride, test_size, window = network.size, network.stride, network.test_size, network.window
    check_side(network.clip_size, patch=patch, flag="--size, in proportion for the CLIP")
    grid = network.clip_size // patch
    if grid > window and grid % window:
        raise InputError(
            f"--size: need a map whose side is a multiple of the attention window, {window}; got {grid} locations."
        )
    if not 0 < stride <= size <= test_size or (test_size - size) % stride:
        raise InputError(
            f"test_size: need windows of {size} pixels every {stride} to end at the image's edge, at {size}, "
            f"{size + stride}, {size + 2 * stride}, ...; got {test_size}."
        )
    if has_backbone and size % STRIDE:
        raise InputError(f"--size: need a multiple of {STRIDE} pixels, the backbone's stride; got {size}.")
    if has_backbone and size // STRIDE != grid:
        raise InputError(
            f"--size: the backbone's map has {size // STRIDE} locations per side and the tower's {grid}; need "
            f"{size // STRIDE * patch}."
        )
