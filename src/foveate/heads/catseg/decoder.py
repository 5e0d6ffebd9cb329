"""The decoder of CAT-Seg: each class's map becomes four times as fine, guided by finer maps of the image.

C --up 2x, guidance, two 3x3 convs--> 64 --up 2x, guidance, two 3x3 convs--> 32 --3x3 conv--> 1 logit
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

GROUP_CHANNELS = 16  # of GroupNorm


class Up(nn.Module):
    """Upsampling by 2, concatenation with the guidance, and two convolutions."""

    def __init__(self, width: int, out: int, *, source: int, guidance: int) -> None:
        """Make the step.

        Args:
            width: input channels, and those of the convolutions' input.
            out: output channels.
            source: channels of the image's map.
            guidance: channels that it is projected to.
        """
        super().__init__()
        self.guide = nn.Sequential(nn.Conv2d(source, guidance, kernel_size=3, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(width, width - guidance, kernel_size=2, stride=2)
        self.convs = nn.Sequential(*_conv(width, out), *_conv(out, out))

    def forward(self, x: Float[Tensor, "B K C h w"], image: Float[Tensor, "B X H W"]) -> Float[Tensor, "B K Y H W"]:
        """Double the map of each class; H = 2 h."""
        batch, count = x.shape[:2]
        guide = self.guide(image).repeat_interleave(count, dim=0)  # (B K, guidance, H, W)
        x = torch.cat([self.up(x.flatten(0, 1)), guide], dim=1)  # (B K, C, H, W)
        return self.convs(x).unflatten(0, (batch, count))


class Decoder(nn.Module):
    """Two steps of upsampling, and a logit."""

    def __init__(
        self, width: int, *, guides: tuple[int, int], widths: tuple[int, int], guidance: tuple[int, int]
    ) -> None:
        """Make the decoder.

        Args:
            width: input channels per class.
            guides: channels of the image's maps, middle and fine.
            widths: channels per class after each step.
            guidance: channels that each map is projected to.
        """
        super().__init__()
        self.first = Up(width, widths[0], source=guides[0], guidance=guidance[0])
        self.second = Up(widths[0], widths[1], source=guides[1], guidance=guidance[1])
        self.logit = nn.Conv2d(widths[1], 1, kernel_size=3, padding=1)

    def forward(
        self, x: Float[Tensor, "B K C h w"], middle: Float[Tensor, "B X _ _"], fine: Float[Tensor, "B Y H W"]
    ) -> Float[Tensor, "B K H W"]:
        """Logits of each class; H = 4 h. The image's maps are twice and four times as fine as `x`."""
        x = self.second(self.first(x, middle), fine)
        return self.logit(x.flatten(0, 1)).unflatten(0, x.shape[:2])[:, :, 0]


def _conv(width: int, out: int) -> tuple[nn.Module, ...]:
    """A 3x3 convolution with GroupNorm, so without bias."""
    conv = nn.Conv2d(width, out, kernel_size=3, padding=1, bias=False)
    return conv, nn.GroupNorm(max(1, out // GROUP_CHANNELS), out), nn.ReLU()
