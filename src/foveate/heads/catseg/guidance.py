"""Guidance of CAT-Seg's aggregation: maps of the image at the cosines' grid, and twice and four times as fine.

In the version of 2024 they come from the CLIP tower: the dense feature map, and two earlier blocks upsampled by
transposed convolutions. In the version of 2023 they come from a network trained on ImageNet, with timm's weights or
those of a file (`read_backbone`). A Swin's maps are layer-normalised, which timm's feature maps are not.
"""

from pathlib import Path
from typing import Any, NamedTuple, cast

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from foveate.clip.io.states import read_state
from foveate.errors import InputError
from foveate.ops.resample import normalize

Statistics = tuple[float, float, float]
STRIDE = 16  # of a backbone's coarsest map that is used [pixels]


class Guidance(NamedTuple):
    """Maps of a batch of images."""

    coarse: Float[Tensor, "B X h w"]
    middle: Float[Tensor, "B Y _ _"]  # twice as fine
    fine: Float[Tensor, "B Z _ _"]  # four times as fine


class TowerGuidance(nn.Module):
    """The version of 2024: the dense feature map, and two taps of the tower, upsampled."""

    def __init__(self, width: int, *, channels: tuple[int, int]) -> None:
        """Make the layers.

        Args:
            width: channels of the taps.
            channels: of the middle and the fine map.
        """
        super().__init__()
        self.middle = nn.ConvTranspose2d(width, channels[0], kernel_size=2, stride=2)
        self.fine = nn.ConvTranspose2d(width, channels[1], kernel_size=4, stride=4)

    def forward(self, dense: Float[Tensor, "B D h w"], taps: list[Float[Tensor, "B C h w"]]) -> Guidance:
        """Make maps of three scales.

        Args:
            dense: not normalised.
            taps: two; the first becomes the middle map, the second the fine one.
        """
        return Guidance(dense, self.middle(taps[0]), self.fine(taps[1]))


class Backbone(nn.Module):
    """The version of 2023: a timm network at strides 16, 8 and 4 with fixed BatchNorm statistics.

    Attributes:
        channels: of the coarse, middle and fine map.
    """

    def __init__(
        self, name: str, *, size: int = 384, is_trained: bool, pretrained: bool | dict[str, Tensor] = True
    ) -> None:
        """Build a timm network.

        Args:
            name: "resnet101" with a ViT-B and "swin_base_patch4_window12_384" with a ViT-L in the paper.
            size: side of the square images [pixels].
            is_trained: whether it is trained; the paper's residual network is, its Swin is not.
            pretrained: True: timm's weights, cached or downloaded; False: random; or weights (`read_backbone`).

        Raises:
            InputError: timm has no such network, it has other strides, or its weights are not found or do not fit.
        """
        super().__init__()
        _check_name(name)
        sized: dict[str, Any] = {"img_size": size} if "swin" in name else {}
        with torch.device("meta"):
            whole: Any = timm.create_model(name, features_only=True, **sized)
        strides, needed = whole.feature_info.reduction(), [STRIDE // 4, STRIDE // 2, STRIDE]
        if not set(needed) <= set(strides):
            raise InputError(f"backbone: need maps at strides 4, 8 and 16; {name} has {strides}. Choose another.")
        indices = [strides.index(stride) for stride in needed]
        fine, middle, coarse = (whole.feature_info.channels()[index] for index in indices)
        self.channels: tuple[int, int, int] = (coarse, middle, fine)
        # without the later stages, whose parameters would get no gradient
        self.network = _with_weights(name, pretrained, {"features_only": True, "out_indices": indices, **sized})
        config: Any = self.network.default_cfg  # pyright: ignore[reportAttributeAccessIssue]
        self.mean, self.std = cast(Statistics, tuple(config["mean"])), cast(Statistics, tuple(config["std"]))
        norms = self.channels[::-1] if "swin" in name else ()  # as CAT-Seg's Swin has them, fine to coarse
        self.norms = nn.ModuleList(nn.LayerNorm(count) for count in norms)
        self.is_trained = is_trained
        self.requires_grad_(is_trained)
        self.eval()

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Guidance:
        """Make the maps of images in [0, 255]."""
        with torch.set_grad_enabled(self.is_trained and torch.is_grad_enabled()):
            maps = self.network(normalize(images, mean=self.mean, std=self.std))
            if self.norms:  # channels are last in a Swin's maps
                maps = [norm(level) for norm, level in zip(self.norms, maps, strict=True)]
        pairs = zip(reversed(maps), self.channels, strict=True)  # some networks put channels last
        return Guidance(*(level if level.shape[1] == count else level.permute(0, 3, 1, 2) for level, count in pairs))


def read_backbone(path: Path | str, name: str) -> dict[str, Tensor]:
    """Read weights of a timm network, in timm's names, with `foveate.clip.io.states.read_state`.

    Raises:
        InputError: timm has no such network, or the file is missing, damaged or of another network.
    """
    _check_name(name)
    state = read_state(path)
    with torch.device("meta"):
        whole: Any = timm.create_model(name)
    head = str(whole.default_cfg.get("classifier", ""))
    missing = [key for key, _ in whole.named_parameters() if key not in state and not key.startswith(head or " ")]
    if missing:
        raise InputError(
            f"{path}: need the weights of timm's {name}; {len(missing)} tensors are missing, such as {missing[0]}."
        )
    return state


def _check_name(name: str) -> None:
    if not timm.is_model(name):
        raise InputError(f"backbone: need a network of timm; got {name!r}. The paper's: resnet101 (B), "
                         "swin_base_patch4_window12_384 (L).")  # fmt: skip


def _with_weights(name: str, pretrained: bool | dict[str, Tensor], settings: dict[str, Any]) -> nn.Module:
    has_state = isinstance(pretrained, dict)
    if has_state:
        settings |= {"pretrained_cfg_overlay": {"state_dict": pretrained}}
    try:
        return timm.create_model(name, pretrained=has_state or pretrained, **settings)
    except (OSError, RuntimeError) as error:  # other shapes; no network, no weights of this name, a damaged cache
        if has_state:
            raise InputError(f"backbone: need the weights of timm's {name}; {_first_line(error)}") from error
        raise InputError(
            f"backbone: need timm's weights of {name}, from its cache (huggingface_hub's, HF_HOME) or downloaded; "
            f"{_first_line(error)} Give a file of them with --backbone-weights, or `none` for random weights."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
