"""What guides CAT-Seg's aggregation: maps of the image at the dense map's grid, and twice and four times as fine.

The version of 2024 makes them of the CLIP tower itself: the dense map, and two earlier blocks made finer by transposed
convolutions. The version of 2023 asks a second network that was trained on ImageNet. Its weights are timm's own, or a
file's (`read_backbone`). A Swin's maps are layer-normalised, as timm's own feature maps are not. Deliberately absent:
networks that timm does not know.
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
    """The version of 2024: the dense map, and two taps of the tower made finer."""

    def __init__(self, width: int, *, channels: tuple[int, int] = (256, 128)) -> None:
        """Make what is trained.

        Args:
            width: of the taps.
            channels: of the middle and the fine map.
        """
        super().__init__()
        self.middle = nn.ConvTranspose2d(width, channels[0], kernel_size=2, stride=2)
        self.fine = nn.ConvTranspose2d(width, channels[1], kernel_size=4, stride=4)

    def forward(self, dense: Float[Tensor, "B D h w"], taps: list[Float[Tensor, "B C h w"]]) -> Guidance:
        """Bring the tower's maps to three scales.

        Args:
            dense: the dense map, not normalised.
            taps: two; the first becomes the middle map, the second the fine one.
        """
        return Guidance(dense, self.middle(taps[0]), self.fine(taps[1]))


class Backbone(nn.Module):
    """The version of 2023: a timm network at strides 16, 8 and 4; its BatchNorm statistics stay.

    Attributes:
        channels: of the coarse, middle and fine map.
        is_trained: whether it learns.
    """

    def __init__(
        self, name: str, *, size: int = 384, is_trained: bool, pretrained: bool | dict[str, Tensor] = True
    ) -> None:
        """Ask timm for a network.

        Args:
            name: "resnet101" is what goes with a ViT-B, "swin_base_patch4_window12_384" with a ViT-L.
            size: side of the square images [pixels].
            is_trained: the paper's residual network learns slowly, its Swin not at all.
            pretrained: True: timm's weights, of its cache or fetched; False: drawn; or weights (`read_backbone`).

        Raises:
            InputError: timm knows no such network, or it has no such strides, or its weights are not to be had or are
                another network's.
        """
        super().__init__()
        _check_name(name)
        sized: dict[str, Any] = {"img_size": size} if "swin" in name else {}
        with torch.device("meta"):
            whole: Any = timm.create_model(name, features_only=True, **sized)
        strides, wanted = whole.feature_info.reduction(), [STRIDE // 4, STRIDE // 2, STRIDE]
        if not set(wanted) <= set(strides):
            raise InputError(f"backbone: need maps at strides 4, 8 and 16; {name} has {strides}.")
        places = [strides.index(stride) for stride in wanted]
        fine, middle, coarse = (whole.feature_info.channels()[place] for place in places)
        self.channels: tuple[int, int, int] = (coarse, middle, fine)
        # without the stages that nobody asks for, which would hold parameters that never learn
        self.network = _with_weights(name, pretrained, {"features_only": True, "out_indices": places, **sized})
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
        """Make the maps.

        Args:
            images: RGB in [0, 255].
        """
        with torch.set_grad_enabled(self.is_trained and torch.is_grad_enabled()):
            maps = self.network(normalize(images, mean=self.mean, std=self.std))
            if self.norms:  # channels are last in a Swin's maps
                maps = [norm(one) for norm, one in zip(self.norms, maps, strict=True)]
        pairs = zip(reversed(maps), self.channels, strict=True)  # some networks put channels last
        return Guidance(*(one if one.shape[1] == count else one.permute(0, 3, 1, 2) for one, count in pairs))


def read_backbone(path: Path | str, name: str) -> dict[str, Tensor]:
    """Read weights of a timm network, named as timm's own file of it names them; nothing in the file is run.

    Args:
        path: as for `foveate.clip.io.states.read_state`.
        name: of the network.

    Raises:
        InputError: timm knows no such network, or the file is missing, damaged or of another network.
    """
    _check_name(name)
    state = read_state(path)
    with torch.device("meta"):
        whole: Any = timm.create_model(name)
    head = str(whole.default_cfg.get("classifier", ""))
    missing = [one for one, _ in whole.named_parameters() if one not in state and not one.startswith(head or " ")]
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
    """The network with what it is to know."""
    if isinstance(pretrained, dict):
        try:
            return timm.create_model(
                name, pretrained=True, pretrained_cfg_overlay={"state_dict": pretrained}, **settings
            )
        except RuntimeError as error:  # of other shapes
            raise InputError(f"backbone: need the weights of timm's {name}; {_first_line(error)}") from error
    try:
        return timm.create_model(name, pretrained=pretrained, **settings)
    except (OSError, RuntimeError) as error:  # no network, no weights of this name, a damaged cache
        raise InputError(
            f"backbone: need timm's weights of {name}, from its cache (that of huggingface_hub, HF_HOME) or fetched; "
            f"{_first_line(error)} Give a file of them with --backbone-weights, or `none` to begin from drawn ones."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
