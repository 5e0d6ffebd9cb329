"""From feature maps of four strides to masks: transformers' Mask2Former without its encoder, and encoders for it.

    encoder --4 maps--> pixel decoder (deformable attention) --3 maps, pixels--> queries, layer by layer --> masks

The encoder is one's own choice: the frozen tower of a CLIP with a pyramid that learns (strides P/4 to 2P), the one of a
transformers' model in a folder, or Stable Diffusion (`odise`). The decoder starts from nothing or from that folder. It
knows ratios of strides alone, so P = 14 is as good. Deliberately absent: the library's classes of masks, and its
losses, which want scipy (`criterion`).
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn

from foveate.clip.model import Clip
from foveate.errors import InputError
from foveate.heads.common.names import PyramidKind
from foveate.heads.common.pyramid import Pyramid
from foveate.heads.common.tower import Tower, tap_width
from foveate.heads.panoptic.described import IMAGENET
from foveate.heads.panoptic.inputs import Pad

LEVELS = 4
HEADS = ("class_predictor.", "mask_embedder.", "criterion.")  # beside a model of the library, read by `published`
DERIVED = ("relative_position_index",)  # of weights that transformers computes by itself


class Encoder(nn.Module):
    """What makes four maps of pictures, finest first, each of half the size of the one before.

    Attributes:
        widths: of the maps.
        multiple: what the sides of its input must be multiples of [pixels].
        mean, std: what pictures are normalised with, see `foveate.ops.resample.normalize`.
        pad: what lies beside a picture at test, see `foveate.heads.panoptic.inputs.framed_input`.
    """

    widths: tuple[int, ...]
    multiple: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pad: Pad = "zero"

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """The maps of normalised pictures."""
        raise NotImplementedError


class TowerEncoder(Encoder):
    """The frozen tower of a CLIP and F-ViT's pyramid, which learns: maps at P/4, P/2, P and 2P."""

    def __init__(
        self, clip: Clip, *, channels: int = 256, kind: PyramidKind = "taps", taps: tuple[int, ...] | None = None
    ):
        """Freeze a tower and make what is trained on it.

        Args:
            clip: changed here; a vision transformer.
            channels: of each map.
            kind: see `foveate.heads.common.pyramid`.
            taps: see `Tower`.

        Raises:
            InputError: what `Tower` refuses.
        """
        super().__init__()
        self.tower = Tower(clip, kind=kind, taps=taps)
        self.pyramid = Pyramid(tap_width(clip), channels=channels, kind=kind)
        self.widths, self.multiple = (channels,) * LEVELS, 2 * clip.patch_size
        self.mean, self.std = clip.mean, clip.std

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """The maps of normalised pictures."""
        return self.pyramid(self.tower(images).taps)[:LEVELS]


class LibraryEncoder(Encoder):
    """The encoder of a transformers' model: maps at 4, 8, 16 and 32."""

    def __init__(self, backbone: Any, *, frozen: bool = True) -> None:
        """Take a backbone of the library.

        Args:
            backbone: with four stages.
            frozen: whether it learns nothing.
        """
        super().__init__()
        self.backbone, self.frozen = backbone, frozen
        self.backbone.requires_grad_(not frozen)
        self.widths, self.multiple = tuple(backbone.channels), 32
        self.mean, self.std = IMAGENET

    def train(self, mode: bool = True) -> "LibraryEncoder":
        """Switch to training; what is frozen stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """The maps of normalised pictures."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return list(self.backbone(images).feature_maps)


@dataclass(frozen=True)
class Decoded:
    """What the queries are and see: at the start, and after each layer."""

    states: list[Float[Tensor, "B Q C"]]
    masks: list[Float[Tensor, "B Q h w"]]  # logits, at the finest map's stride
    pixels: Float[Tensor, "B M h w"]  # what masks are cosines of


class MaskDecoder(nn.Module):
    """The library's pixel decoder and transformer decoder."""

    def __init__(self, library: Any, config: Any) -> None:
        """Take the library's modules; `build_decoder` and `read_library` make them.

        Args:
            library: a module with `pixel_decoder` and `transformer`.
            config: that they were made from.
        """
        super().__init__()
        self.library = library
        self.width: int = config.hidden_dim
        self.mask_width: int = config.mask_feature_size
        self.queries: int = config.num_queries

    def forward(self, maps: list[Float[Tensor, "B _ _ _"]]) -> Decoded:
        """Find masks on an encoder's maps."""
        seen = self.library.pixel_decoder(maps)
        found = self.library.transformer(seen.multi_scale_features, seen.mask_features, output_hidden_states=True)
        states = [state.transpose(0, 1) for state in found.intermediate_hidden_states]  # (Q, B, C) -> (B, Q, C)
        return Decoded(states, list(found.masks_queries_logits), seen.mask_features)


def build_decoder(
    widths: tuple[int, ...],
    *,
    queries: int = 100,
    width: int = 256,
    heads: int = 8,
    feedforward: int = 2048,
    pixel_feedforward: int = 1024,
    pixel_layers: int = 6,
    layers: int = 9,
) -> MaskDecoder:
    """Make a decoder that starts from nothing.

    Args:
        widths: of the encoder's maps.
        queries: Q, masks that are found of a picture.
        width: of everything in it; a multiple of 32.
        heads: of its attention.
        feedforward: width of the transformer decoder's MLPs.
        pixel_feedforward: of the pixel decoder's.
        pixel_layers: of the pixel decoder.
        layers: of the transformer decoder.

    Raises:
        InputError: widths that do not fit, or transformers is not installed.
    """
    if len(widths) != LEVELS or width < 1 or width % 32 or width % heads:
        raise InputError(
            f"decoder: need {LEVELS} maps and a width that is a positive multiple of 32 and of {heads} heads; got "
            f"{len(widths)} maps and a width of {width}."
        )
    modeling, configuring = _library()
    config = configuring.Mask2FormerConfig(
        feature_size=width,
        mask_feature_size=width,
        hidden_dim=width,
        num_queries=queries,
        num_attention_heads=heads,
        dim_feedforward=feedforward,
        encoder_feedforward_dim=pixel_feedforward,
        encoder_layers=pixel_layers,
        decoder_layers=layers + 1,  # the library counts what is predicted from the bare queries
    )
    library = modeling.Mask2FormerPreTrainedModel(config)
    library.pixel_decoder = modeling.Mask2FormerPixelDecoder(config, feature_channels=list(widths))
    library.transformer = modeling.Mask2FormerTransformerModule(in_features=width, config=config)
    library.post_init()  # draws the weights
    return MaskDecoder(library, config)


def read_library(folder: Path, *, frozen: bool = True) -> tuple[LibraryEncoder, MaskDecoder]:
    """Read a Mask2Former of transformers from a folder, without its classes.

    Args:
        folder: with config.json and model.safetensors.
        frozen: whether its encoder learns nothing.

    Raises:
        InputError: no such model, one that lacks weights, or transformers is not installed.
    """
    modeling, configuring = _library()
    model, config = read_pretrained(
        folder, configuring.Mask2FormerConfig, modeling.Mask2FormerModel, what="Mask2Former"
    )
    library = nn.Module()
    library.pixel_decoder = model.pixel_level_module.decoder
    library.transformer = model.transformer_module
    return LibraryEncoder(model.pixel_level_module.encoder, frozen=frozen), MaskDecoder(library, config)


def read_pretrained(folder: Path, configuration: Any, model: Any, *, what: str) -> tuple[Any, Any]:
    """Read a model of transformers from a folder; heads that the class does not have are passed over.

    Args:
        folder: with config.json and model.safetensors.
        configuration: the library's class of it.
        model: likewise.
        what: its name in messages.

    Returns:
        The model and its configuration.

    Raises:
        InputError: no such model, or one that lacks weights.
    """
    wanted = f"{folder}: need a folder with a {what} of transformers, config.json and model.safetensors"
    if not (folder / "config.json").is_file():
        raise InputError(f"{wanted}; there is no {folder / 'config.json'}. Check the path.")
    from transformers.utils import logging

    told = logging.get_verbosity()
    logging.set_verbosity_error()  # it would report the heads as unexpected; what matters is told below
    try:
        config = configuration.from_pretrained(folder, local_files_only=True)
        found, report = model.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{wanted}; {first}") from error
    finally:
        logging.set_verbosity(told)
    if report["missing_keys"]:  # the library would draw them
        missing = sorted(report["missing_keys"])
        raise InputError(f"{wanted}; {len(missing)} of its weights are not there, such as {missing[0]}.")
    left = [key for key in sorted(report["unexpected_keys"]) if not key.startswith(HEADS) and not key.endswith(DERIVED)]
    if left:
        some = ", ".join(left[:5])
        print(f"{folder}: passed over {len(left)} tensors that its {what} has no place for: {some}", file=sys.stderr)
    return found, config


def _library() -> tuple[Any, Any]:
    """transformers' Mask2Former, and its configuration."""
    try:
        from transformers.models.mask2former import configuration_mask2former, modeling_mask2former
    except ImportError as error:
        raise InputError(
            "Mask2Former needs transformers: pip install transformers. Masks from elsewhere do without it."
        ) from error
    return modeling_mask2former, configuration_mask2former
