"""CAT-Seg: segmentation with any vocabulary by aggregating a CLIP's cosines (Cho et al., CVPR 2024).

    image --tower--> dense map . texts --> cosines of places with prompts --aggregator--> a logit per location and class

It learns from maps of the classes of pixels, and the tower's attention learns with it a hundred times slower. What is
asked at test may be any texts (`embed_classes`). Two versions, between which the paper's numbers and CAT-Seg's own
stand apart:

    2024    one prompt per class, the CLIP tower guides, queries and values of both towers learn
    2023    80 prompts per class, an ImageNet network guides, attention and positions of the image tower learn

`residual` says what the values of the tower's last block are added to: "cls", as in the code of 2024, or "token", as in
that of 2023 and in CLIPSelf's own dense map. Deliberately absent: epochs, files, and the arg max over several images'
vocabularies.
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
    backbone: str | None  # timm's name of the guidance network under 2023; None under 2024
    size: int  # side of a training crop and of a window at test [pixels]
    clip_size: int  # side that a crop is resized to for the tower [pixels]: 384, and 336 with a ViT-L/14
    test_size: int  # an image's shortest edge at test, and side of the square it is then squashed to [pixels]
    longest: int  # most that the longest edge may be at test [pixels]; 4 times `test_size` is published
    stride: int  # from one window to the next [pixels]
    window: int  # side of the attention's windows [tokens]
    hidden: int  # channels per class
    guidance: int  # channels of the guidance of the aggregation
    decoder: tuple[int, int]  # channels per class after each step of the decoder
    decoder_guidance: tuple[int, int]  # channels of the guidance of these steps
    tower_guidance: tuple[int, int]  # channels of the tower's upsampled maps, under 2024
    heads: int  # of the aggregator's attention
    layers: int  # how often space and classes are aggregated
    most: int  # max classes per view at test, under 2024, those of the greatest cosine; fewer are padded


class CatSeg(nn.Module):
    """The objective (`loss = model(batch)`), and what it finds (`predict`, `label_maps`).

    Attributes:
        version: "2024" or "2023".
        head: of the dense map.
        partly: matrices of the CLIP of which only some rows learn, see `foveate.engine.optim.take_step`.
        parts: the loss of the last batch by name, detached, for the log.
    """

    def __init__(
        self,
        clip: Clip,
        network: Network,
        *,
        vocabulary: Vocabulary | Sequence[str],
        backbone: Backbone | None = None,
        is_varied: bool = True,
    ) -> None:
        """Put an aggregator on a CLIP, of which what does not learn is frozen here.

        Args:
            clip: a vision transformer; changed here.
            network: hyperparameters.
            vocabulary: K classes of the training data.
            backbone: the guidance network under 2023; None under 2024.
            is_varied: crop, mirror and colour training images at random; else they are squashed.

        Raises:
            InputError: a version, residual or tower there is not, sizes that do not fit, a backbone where none belongs
                or none where one does.
        """
        super().__init__()
        _check(clip, network, backbone)
        self.head: Head = HEADS[network.residual]
        self.version, self.size, self.clip_size = network.version, network.size, network.clip_size
        self.test_size, self.longest, self.stride = network.test_size, network.longest, network.stride
        self.most, self.is_varied = network.most, is_varied
        self.clip = clip.eval()
        is_2024 = network.version == "2024"
        self.partly = (unfreeze_queries_and_values if is_2024 else unfreeze_attention)(clip, head=self.head)
        stages = len(tower_stages(clip.visual))
        self.taps = (stages // 3 - 1, 2 * stages // 3 - 1, stages - 1)  # B: 3 and 7; L: 7 and 15; and the last
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
        tokens, self.words = self._tokenize(vocabulary)
        self.register_buffer("tokens", tokens, persistent=False)
        self.parts: dict[str, Tensor] = {}
        self.to(next(clip.parameters()).device)

    @cached_property
    def text(self) -> Float[Tensor, "K P D"]:
        """The classes to learn from, embedded once: under 2023 the text tower does not learn."""
        with torch.no_grad():
            return self._embed(self.tokens, self.words)

    def train(self, mode: bool = True) -> "CatSeg":
        """Switch to training; the tower stays in evaluation mode."""
        super().train(mode)
        self.clip.eval()
        return self

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        """The binary cross-entropy over all pixels of the crops and all classes.

        Args:
            batch: images with label maps, of the vocabulary given; a pixel of class -1 is of no class, as one of
                another class is, and not left out. Draws come from torch's global stream.

        Returns:
            The loss; where no image could be used, a zero that still reaches every trained parameter.
        """
        device = self.tokens.device
        views = [
            training_view(one, classes=len(self.words), size=self.size, is_varied=self.is_varied, device=device)
            for one in batch.samples
        ] or [(torch.zeros(3, self.size, self.size, device=device), self.tokens.new_full((self.size, self.size), -1))]
        images, labels = (torch.stack(part) for part in zip(*views, strict=True))
        text = self._embed(self.tokens, self.words) if self.version == "2024" else self.text
        loss = pixel_loss(_finer(self.logits(images, text), size=self.size), labels)
        self.parts = {"pixels": loss.detach()}
        return loss if batch.samples else loss * 0

    def logits(self, images: Float[Tensor, "B 3 S S"], text: Float[Tensor, "K P D"]) -> Float[Tensor, "B K H W"]:
        """The logits of some views, four times as fine as the dense map.

        Args:
            images: RGB in [0, 255], of the side `size`.
            text: of the classes asked about.
        """
        inputs = normalize(squash(images, size=self.clip_size), mean=self.clip.mean, std=self.clip.std)
        *taps, last = self.clip.features(inputs, layers=self.taps, head=self.head)
        dense = dense_of_last(self.clip.visual, last)  # (B, D, h, w)
        guidance = self._guidance(images, dense, taps)
        cost = cost_volume(dense, text)  # (B, K, P, h, w)
        words = F.normalize(F.normalize(text.float(), dim=2).mean(dim=1), dim=1).expand(
            len(images), -1, -1
        )  # (B, K, D)
        count = len(text)
        if self.training or self.version == "2023" or count <= self.most:
            return self.aggregator(cost, words, guidance)
        chosen = best_classes(cost, most=self.most)  # (B, M)
        found = self.aggregator(take_classes(cost, chosen), take_classes(words, chosen), guidance)
        return spread_classes(found, chosen, count=count)

    @torch.no_grad()
    def embed_classes(self, vocabulary: Vocabulary | Sequence[str]) -> Float[Tensor, "K P D"]:
        """Embed classes with the version's prompts, by the text tower as it is now.

        Args:
            vocabulary: a class's other words are left out under 2024 and averaged with the first under 2023.

        Raises:
            InputError: no class, or an empty name.
        """
        tokens, words = self._tokenize(vocabulary)
        return self._embed(tokens, words)

    @torch.no_grad()
    def predict(
        self, samples: Sequence[Sample], text: Float[Tensor, "K P D"], *, at_once: int = 5
    ) -> list[Float[Tensor, "K _ _"]]:
        """How likely each pixel is of each class, each class by itself.

        Args:
            samples: images of any size.
            text: of `embed_classes`.
            at_once: views of an image that are run together; fewer take less memory.

        Returns:
            Of each image (K, H, W) in [0, 1], at its own size.
        """
        return [torch.cat(list(self._found(sample, text, at_once))) for sample in samples]

    @torch.no_grad()
    def label_maps(
        self, samples: Sequence[Sample], text: Float[Tensor, "K P D"], *, at_once: int = 5
    ) -> list[LabelMap]:
        """The most likely class of each pixel; as `predict`, without holding all classes at once."""
        return [best_labels(self._found(sample, text, at_once)) for sample in samples]

    def parameter_groups(
        self, *, weight_decay: float, clip_scale: float = 0.01, backbone_scale: float = 0.01
    ) -> list[dict[str, Any]]:
        """Trained parameters in groups, see `foveate.heads.common.groups.parameter_groups`.

        Args:
            weight_decay: of matrices; vectors and matrices trained in part (`partly`) have none.
            clip_scale: factor of the CLIP's weights.
            backbone_scale: factor of the backbone's, where it is trained.
        """
        partly = {id(parameter) for parameter, _ in self.partly}
        parts = (
            ([self.aggregator, self.tower_guidance], 1.0),
            ([self.clip], clip_scale),
            ([self.backbone], backbone_scale),
        )
        return parameter_groups(
            [
                ([parameter for module in modules if module is not None for parameter in module.parameters()], scale)
                for modules, scale in parts
            ],
            weight_decay=weight_decay,
            decays=lambda parameter: parameter.ndim >= 2 and id(parameter) not in partly,
        )

    def _guidance(self, images: Tensor, dense: Tensor, taps: list[Tensor]) -> Guidance:
        if self.backbone is not None:
            return self.backbone(images)
        assert self.tower_guidance is not None, "what does not guide by a backbone guides by the tower"
        return self.tower_guidance(dense, taps)

    @property
    def _templates(self) -> TemplateSet:
        return template_set((PROMPT,) if self.version == "2024" else "clip")

    def _tokenize(self, vocabulary: Vocabulary | Sequence[str]) -> tuple[Int64[Tensor, "T context"], list[int]]:
        """All prompts, and how many words each class has."""
        classes = vocabulary.classes if isinstance(vocabulary, Vocabulary) else [(name,) for name in vocabulary]
        if not classes or isinstance(vocabulary, str):
            raise InputError(f"vocabulary: need a list with at least one class name; got {vocabulary!r}.")
        classes = [words[:1] for words in classes] if self.version == "2024" else classes
        texts = [text for words in classes for word in words for text in self._templates.fill(word)]
        return self.clip.tokenize(texts), [len(words) for words in classes]

    def _embed(self, tokens: Int64[Tensor, "T context"], words: list[int]) -> Float[Tensor, "K P D"]:
        """Embed prompts, those of a class's words averaged template by template."""
        each = torch.cat([self.clip.encode_text(part) for part in tokens.split(PROMPTS_AT_ONCE)])  # (T, D)
        own = each.unflatten(0, (-1, len(self._templates.templates))).split(words)  # (words, P, D) each
        return F.normalize(torch.stack([one.mean(dim=0) for one in own]), dim=2)

    def _found(self, sample: Sample, text: Tensor, at_once: int) -> Iterator[Float[Tensor, "k H W"]]:
        """Probabilities of some classes after others: windows folded, and the mean of that and the whole image."""
        assert not self.training, "classes meet on a coarser map in training; call eval() first"
        image = (
            resize_shortest(sample.image, shortest=self.test_size, longest=self.longest)[None].to(text.device).float()
        )
        square = squash(image, size=self.test_size)[0]  # (3, L, L)
        windows = cut_windows(square, window=self.size, stride=self.stride)
        views = torch.cat([windows, squash(image, size=self.size)])  # (n + 1, 3, S, S)
        logits = torch.cat([self.logits(some, text) for some in views.split(at_once)])  # (n + 1, K, H', W')
        for some in logits.split(classes_at_once(*sample.image.shape[1:]), dim=1):
            shares = _finer(some, size=self.size).sigmoid()  # (n + 1, k, S, S)
            folded = fold_average(shares[:-1], length=self.test_size, stride=self.stride)
            both = (folded[None] + _finer(shares[-1:], size=self.test_size)) / 2  # (1, k, L, L)
            yield F.interpolate(both, size=tuple(sample.image.shape[1:]), mode="bilinear", align_corners=False)[0]


def pixel_loss(logits: Float[Tensor, "B K H W"], labels: Int64[Tensor, "B H W"]) -> Float[Tensor, ""]:
    """The mean of the binary cross-entropy over all pixels and classes; no target is laid out in full.

    The loss of a logit x is softplus(x) where the pixel is not of the class and softplus(x) - x where it is.

    Args:
        logits: at the labels' size.
        labels: 0 to K - 1; -1: of no class, which counts as every class's no.
    """
    own = logits.gather(1, labels.clamp(min=0)[:, None])[:, 0]  # (B, H, W)
    return F.softplus(logits).mean() - (own * (labels >= 0)).sum() / logits.numel()


def _finer(maps: Float[Tensor, "B K h w"], *, size: int) -> Float[Tensor, "B K S S"]:
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
        wanted = "a guidance backbone (resnet101 with a ViT-B)" if version == "2023" else "no backbone"
        raise InputError(
            f"backbone: the version of {version} takes {wanted}; got {'none' if backbone is None else 'one'}."
        )
    _check_sizes(network, patch=clip.patch_size, has_backbone=backbone is not None)


def _check_sizes(network: Network, *, patch: int, has_backbone: bool) -> None:
    size, stride, test_size, window = network.size, network.stride, network.test_size, network.window
    check_side(network.clip_size, patch=patch, flag="--size, in proportion for the CLIP")
    grid = network.clip_size // patch
    if grid > window and grid % window:
        raise InputError(f"--window: need one that divides the {grid} places a side; got {window}.")
    if not 0 < stride <= size <= test_size or (test_size - size) % stride:
        raise InputError(
            f"test_size: need windows of {size} pixels every {stride} to end where the image does, at {size}, "
            f"{size + stride}, {size + 2 * stride}, ...; got {test_size}."
        )
    if has_backbone and size % STRIDE:
        raise InputError(f"--size: need a multiple of {STRIDE} pixels, a place of the backbone's map; got {size}.")
    if has_backbone and size // STRIDE != grid:
        raise InputError(
            f"--size: the backbone's map has {size // STRIDE} places a side and the tower's {grid}; need "
            f"{size // STRIDE * patch}."
        )
