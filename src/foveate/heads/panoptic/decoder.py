"""From feature maps of four strides to masks: transformers' Mask2Former without its encoder, and encoders for it.

    encoder --4 maps--> pixel decoder (deformable attention) --3 maps, pixels--> queries, layer by layer --> masks

Encoders are the frozen tower of a CLIP with a trained pyramid (strides P/4 to 2P), the encoder of a transformers' model
in a folder, and Stable Diffusion (`odise`). The decoder is initialised at random or from that folder. It depends on
ratios of strides only, so P may be 14. transformers' class head and losses are not used; the losses need scipy.
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
from foveate.errors import InputError, listed
from foveate.heads.common.names import PyramidKind
from foveate.heads.common.pyramid import Pyramid
from foveate.heads.common.tower import Tower, tap_width
from foveate.heads.panoptic.described import IMAGENET
from foveate.heads.panoptic.inputs import Pad

LEVELS = 4
HEADS = ("class_predictor.", "mask_embedder.", "criterion.")  # weights beside the model, read by `published`
DERIVED = ("relative_position_index",)  # tables that transformers computes


class Encoder(nn.Module):
    """Makes four maps of images, finest first, each half the size of the one before.

    Attributes:
        widths: channels of the maps.
        multiple: of the sides of its input [pixels].
        mean, std: of the RGB channels, see `foveate.ops.resample.normalize`.
        pad: padding at test, see `foveate.heads.panoptic.inputs.framed_input`.
    """

    widths: tuple[int, ...]
    multiple: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pad: Pad = "zero"

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """The maps of normalised images."""
        raise NotImplementedError


class TowerEncoder(Encoder):
    """The frozen tower of a CLIP and F-ViT's pyramid, which is trained: maps at P/4, P/2, P and 2P."""

    def __init__(
        self, clip: Clip, *, channels: int = 256, kind: PyramidKind = "taps", taps: tuple[int, ...] | None = None
    ):
        """Freeze a CLIP's tower and make the pyramid; see `Tower` and `Pyramid`."""
        super().__init__()
        self.tower = Tower(clip, kind=kind, taps=taps)
        self.pyramid = Pyramid(tap_width(clip), channels=channels, kind=kind)
        self.widths, self.multiple = (channels,) * LEVELS, 2 * clip.patch_size
        self.mean, self.std = clip.mean, clip.std

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """The maps of normalised images."""
        return self.pyramid(self.tower(images).taps)[:LEVELS]


class LibraryEncoder(Encoder):
    """The frozen encoder of a transformers' model: maps at 4, 8, 16 and 32."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.widths, self.multiple = tuple(backbone.channels), 32
        self.mean, self.std = IMAGENET

    def train(self, mode: bool = True) -> "LibraryEncoder":
        """Switch to training; the backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """The maps of normalised images."""
        with torch.no_grad():
            return list(self.backbone(images).feature_maps)


@dataclass(frozen=True)
class DecoderOutput:
    """Queries and their masks, initially and after each layer."""

    states: list[Float[Tensor, "B Q C"]]
    masks: list[Float[Tensor, "B Q h w"]]  # logits, at the finest map's stride
    pixels: Float[Tensor, "B M h w"]  # features; masks are their products with the mask embeddings


class MaskDecoder(nn.Module):
    """The library's pixel decoder and transformer decoder."""

    def __init__(self, library: Any, config: Any) -> None:
        """Take the modules of `build_decoder` or `read_library`: `pixel_decoder` and `transformer`."""
        super().__init__()
        self.library = library
        self.width: int = config.hidden_dim
        self.mask_width: int = config.mask_feature_size
        self.queries: int = config.num_queries

    def forward(self, maps: list[Float[Tensor, "B _ _ _"]]) -> DecoderOutput:
        """Decode an encoder's maps."""
        pixels = self.library.pixel_decoder(maps)
        output = self.library.transformer(pixels.multi_scale_features, pixels.mask_features, output_hidden_states=True)
        states = [state.transpose(0, 1) for state in output.intermediate_hidden_states]  # (Q, B, C) -> (B, Q, C)
        return DecoderOutput(states, list(output.masks_queries_logits), pixels.mask_features)


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
    """Make a decoder with random weights.

    Args:
        widths: channels of the encoder's maps.
        queries: Q, masks per image.
        width: of all features; a multiple of 32.
        heads: of the attention.
        feedforward: width of the transformer decoder's MLPs.
        pixel_feedforward: width of the pixel decoder's MLPs.
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
        decoder_layers=layers + 1,  # the library counts the initial queries as a layer
    )
    library = modeling.Mask2FormerPreTrainedModel(config)
    library.pixel_decoder = modeling.Mask2FormerPixelDecoder(config, feature_channels=list(widths))
    library.transformer = modeling.Mask2FormerTransformerModule(in_features=width, config=config)
    library.post_init()  # draws the weights
    return MaskDecoder(library, config)


def read_library(folder: Path) -> tuple[LibraryEncoder, MaskDecoder]:
    """Read a Mask2Former of transformers from a folder, without its class head; see `read_pretrained`."""
    modeling, configuring = _library()
    model, config = read_pretrained(
        folder, configuring.Mask2FormerConfig, modeling.Mask2FormerModel, what="Mask2Former"
    )
    library = nn.Module()
    library.pixel_decoder = model.pixel_level_module.decoder
    library.transformer = model.transformer_module
    return LibraryEncoder(model.pixel_level_module.encoder), MaskDecoder(library, config)


def read_pretrained(folder: Path, configuration: Any, model: Any, *, what: str) -> tuple[Any, Any]:
    """Read a model of transformers from a folder; weights of its heads are ignored.

    Args:
        folder: with config.json and model.safetensors.
        configuration: transformers' class.
        model: likewise.
        what: its name in messages.

    Returns:
        The model and its configuration.

    Raises:
        InputError: no such model, or missing weights.
    """
    needed = f"{folder}: need a folder with a {what} of transformers, config.json and model.safetensors"
    if not (folder / "config.json").is_file():
        raise InputError(f"{needed}; {folder / 'config.json'} not found. Check the path.")
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it would warn of the heads; other problems are reported below
    try:
        config = configuration.from_pretrained(folder, local_files_only=True)
        network, report = model.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{needed}; {first}") from error
    finally:
        logging.set_verbosity(verbosity)
    if report["missing_keys"]:  # transformers initialises them at random
        missing = sorted(report["missing_keys"])
        raise InputError(f"{needed}; {len(missing)} of its weights are missing, such as {missing[0]}.")
    unknown = [
        key for key in sorted(report["unexpected_keys"]) if not key.startswith(HEADS) and not key.endswith(DERIVED)
    ]
    if unknown:
        print(f"{folder}: ignored {len(unknown)} tensors that are not its {what}'s: {listed(unknown)}", file=sys.stderr)
    return network, config


def _library() -> tuple[Any, Any]:
    """Transformers' Mask2Former, and its configuration."""
    try:
        from transformers.models.mask2former import configuration_mask2former, modeling_mask2former
    except ImportError as error:
        raise InputError(
            "Mask2Former needs transformers; it is not installed. Run: pip install transformers"
        ) from error
    return modeling_mask2former, configuration_mask2former
