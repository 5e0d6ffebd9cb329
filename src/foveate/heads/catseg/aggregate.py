"""The aggregator of CAT-Seg: maps of cosines become one map of logits per class (Cho et al., CVPR 2024).

    cosines (P per class) --7x7 conv--> C per class --[2 blocks in space, 1 block over classes] x layers--> decoder

In space, each class attends within windows; the second block's windows are shifted. Queries and keys are guided by the
image (`guidance`), values come from the cost alone. Over classes, each location uses linear attention guided by the
text embeddings, whose cost is linear in the number of classes; in training on a map averaged 2x2. As in CAT-Seg's code
there are no relative positions, no output projection of the attention over classes, and no drop path.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from foveate.heads.catseg.decoder import Decoder
from foveate.heads.catseg.guidance import Guidance
from foveate.ops.windows import merge_windows, split_windows

MLP_RATIO = 4
POOL = 2  # side of average pooling before attention over classes, in training


def linear_attention(
    q: Float[Tensor, "B T C"],
    k: Float[Tensor, "B L C"],
    v: Float[Tensor, "B L X"],
    *,
    heads: int,
    counts: Float[Tensor, " L"] | None = None,
) -> Float[Tensor, "B T X"]:
    """Attention with weights f(q) . f(k), f(x) = elu(x) + 1 (Katharopoulos et al., ICML 2020).

    Args:
        q: queries.
        k: keys.
        v: values.
        heads: C and X are multiples of it.
        counts: multiplicity of each key; None: 1.
    """
    q, k, v = (x.unflatten(2, (heads, -1)) for x in (F.elu(q) + 1, F.elu(k) + 1, v))  # (B, T or L, heads, d) each
    k = k if counts is None else k * counts[:, None, None]
    mixed = torch.einsum("blhd,blhe->bhde", k, v)
    total = torch.einsum("bthd,bhd->bth", q, k.sum(dim=1))
    return (torch.einsum("bthd,bhde->bthe", q, mixed) / (total[..., None] + 1e-6)).flatten(2)  # (B, T, X)


def shifted_window_mask(grid: tuple[int, int], *, size: tuple[int, int], shift: int) -> Bool[Tensor, "n S S"]:
    """Which tokens of a window may attend to each other after the grid was rolled: former neighbours.

    Args:
        grid: (h, w).
        size: of a window.
        shift: rows and columns that were rolled from the top to the bottom, from the left to the right.
    """
    rows, columns = (torch.arange(length) >= length - shift for length in grid)  # True: wrapped around
    part = 2 * rows[:, None].long() + columns  # (h, w)
    part = split_windows(part.flatten()[None, :, None], grid=grid, size=size)[0, ..., 0]  # (n, S)
    return part[:, :, None] == part[:, None]


class WindowBlock(nn.Module):
    """A block of aggregation in space: attention in windows, then an MLP."""

    def __init__(self, width: int, *, guidance: int, heads: int, window: int, is_shifted: bool) -> None:
        """Make the block.

        Args:
            width: of the tokens.
            guidance: width of the guidance of queries and keys.
            heads: of the attention.
            window: side [tokens]; a smaller grid is one window and is not shifted.
            is_shifted: by half a window.
        """
        super().__init__()
        self.heads, self.window, self.is_shifted = heads, window, is_shifted
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k = nn.Linear(width + guidance, width), nn.Linear(width + guidance, width)
        self.v, self.proj = nn.Linear(width, width), nn.Linear(width, width)
        self.mlp = Mlp(width, MLP_RATIO * width)

    def forward(
        self, x: Float[Tensor, "B L C"], guidance: Float[Tensor, "B L G"], *, grid: tuple[int, int]
    ) -> Float[Tensor, "B L C"]:
        """Aggregate the tokens of each window, of a grid (h, w) row by row."""
        x = x + self.proj(self._attend(self.norm1(x), guidance, grid))
        return x + self.mlp(self.norm2(x))

    def _attend(self, x: Tensor, guidance: Tensor, grid: tuple[int, int]) -> Tensor:
        size = (min(self.window, grid[0]), min(self.window, grid[1]))
        shift = self.window // 2 if self.is_shifted and min(grid) > self.window else 0

        # queries, keys and values of each window
        guided = torch.cat([x, guidance], dim=2)  # (B, L, C + G)
        rolled = [_roll(part, grid, -shift) for part in (self.q(guided), self.k(guided), self.v(x))]
        windows = [split_windows(part, grid=grid, size=size) for part in rolled]  # (B, n, S, C) each
        batch, count = windows[0].shape[:2]
        q, k, v = (
            part.flatten(0, 1).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in windows
        )  # (B n, heads, S, d)

        # attention
        mask = None
        if shift:
            mask = shifted_window_mask(grid, size=size, shift=shift).to(x.device)
            mask = mask.expand(batch, *mask.shape).flatten(0, 1)[:, None]  # (B n, 1, S, S)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)  # (B n, S, C)
        return _roll(merge_windows(mixed.unflatten(0, (batch, count)), grid=grid, size=size), grid, shift)


class ClassBlock(nn.Module):
    """A block of aggregation over classes: linear attention at each location, then an MLP.

    In the version of 2024 fewer than `padding` classes are padded with copies of one learned token with one learned
    text embedding. They are keys and values only; instead of copies, the token is counted.
    """

    def __init__(self, width: int, *, guidance: int, heads: int, padding: int) -> None:
        """Make the block.

        Args:
            width: of the tokens.
            guidance: width of the text embeddings.
            heads: of the attention.
            padding: least number of classes; 0: no padding.
        """
        super().__init__()
        self.heads, self.least = heads, padding
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k = nn.Linear(width + guidance, width), nn.Linear(width + guidance, width)
        self.v = nn.Linear(width, width)
        self.mlp = Mlp(width, MLP_RATIO * width, act_layer=nn.ReLU)  # the window blocks have a GELU
        self.padding, self.padding_text = None, None
        if padding:
            self.padding, self.padding_text = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(guidance))

    def forward(self, x: Float[Tensor, "B K C h w"], text: Float[Tensor, "B K G"]) -> Float[Tensor, "B K C h w"]:
        """Aggregate over classes, in training on a map averaged 2x2."""
        # pool, and bring classes into the sequence
        batch, count, _, h, w = x.shape
        side = (min(POOL, h), min(POOL, w)) if self.training else (1, 1)
        pooled = F.avg_pool2d(x.flatten(0, 1), side)  # (B K, C, h', w')
        grid = pooled.shape[2:]
        rows = pooled.unflatten(0, (batch, count)).permute(0, 3, 4, 1, 2).flatten(0, 2)  # (B h' w', K, C)

        # attention and MLP
        rows = rows + self._attend(rows, text.repeat_interleave(grid.numel(), dim=0))
        rows = rows + self.mlp(self.norm2(rows))

        # back to maps
        maps = rows.unflatten(0, (batch, *grid)).permute(0, 3, 4, 1, 2).flatten(0, 1)  # (B K, C, h', w')
        if side != (1, 1):
            maps = F.interpolate(maps, size=(h, w), mode="bilinear", align_corners=True)
        return x + maps.unflatten(0, (batch, count))

    def _attend(self, rows: Float[Tensor, "N K C"], text: Float[Tensor, "N K G"]) -> Float[Tensor, "N K C"]:
        count, counts = rows.shape[1], None
        if self.padding is not None and self.padding_text is not None:
            rows = torch.cat([rows, self.padding.expand(len(rows), 1, -1)], dim=1)  # (N, K + 1, C)
            text = torch.cat([text, self.padding_text.expand(len(rows), 1, -1)], dim=1)
            counts = F.pad(rows.new_ones(count), (0, 1), value=float(max(0, self.least - count)))  # (K + 1,)
        rows = self.norm1(rows)
        guided = torch.cat([rows, text], dim=2)
        return linear_attention(
            self.q(guided[:, :count]), self.k(guided), self.v(rows), heads=self.heads, counts=counts
        )


class Layer(nn.Module):
    """Two blocks of aggregation in space, then one over classes."""

    def __init__(self, width: int, *, guidance: int, heads: int, window: int, padding: int) -> None:
        """Make the blocks; see `WindowBlock` and `ClassBlock`."""
        super().__init__()
        self.guidance_norm = nn.LayerNorm(guidance)
        self.space = nn.ModuleList(
            WindowBlock(width, guidance=guidance, heads=heads, window=window, is_shifted=is_shifted)
            for is_shifted in (False, True)
        )
        self.classes = ClassBlock(width, guidance=guidance, heads=heads, padding=padding)

    def forward(
        self, x: Float[Tensor, "B K C h w"], image: Float[Tensor, "B G h w"], text: Float[Tensor, "B K G"]
    ) -> Float[Tensor, "B K C h w"]:
        """Aggregate in space, guided by the image, and over classes, guided by the text embeddings."""
        batch, count, _, *grid = x.shape
        guide = self.guidance_norm(image.flatten(2).mT).repeat_interleave(count, dim=0)  # (B K, L, G)
        tokens = x.flatten(0, 1).flatten(2).mT  # (B K, L, C)
        for block in self.space:
            tokens = block(tokens, guide, grid=(grid[0], grid[1]))
        return self.classes(tokens.mT.unflatten(2, grid).unflatten(0, (batch, count)), text)


class Aggregator(nn.Module):
    """The network between cosines and logits, which published parameter counts are of."""

    def __init__(
        self,
        *,
        prompts: int,
        text_dim: int,
        guides: tuple[int, int, int],
        hidden: int = 128,
        guidance: int = 128,
        decoder: tuple[int, int] = (64, 32),
        decoder_guidance: tuple[int, int] = (32, 16),
        heads: int = 4,
        layers: int = 2,
        window: int = 12,
        padding: int = 256,
    ) -> None:
        """Make the network.

        Args:
            prompts: P, cosines per class and location.
            text_dim: D.
            guides: channels of the guidance maps, coarse, middle and fine.
            hidden: channels per class.
            guidance: channels of the guidance of the aggregation.
            decoder: channels per class after each step of the decoder.
            decoder_guidance: channels of the guidance of each step.
            heads: of all attention.
            layers: number of `Layer`s.
            window: side of the windows [tokens].
            padding: see `ClassBlock`.
        """
        super().__init__()
        self.embed = nn.Conv2d(prompts, hidden, kernel_size=7, padding=3)
        # `picture` is the name in product files
        self.picture = nn.Sequential(nn.Conv2d(guides[0], guidance, kernel_size=3, padding=1), nn.ReLU())
        self.text = nn.Sequential(nn.Linear(text_dim, guidance), nn.ReLU())
        self.layers = nn.ModuleList(
            Layer(hidden, guidance=guidance, heads=heads, window=window, padding=padding) for _ in range(layers)
        )
        self.decoder = Decoder(hidden, guides=guides[1:], widths=decoder, guidance=decoder_guidance)

    def forward(
        self, cost: Float[Tensor, "B K P h w"], text: Float[Tensor, "B K D"], guidance: Guidance
    ) -> Float[Tensor, "B K H W"]:
        """Turn cosines into logits, four times as fine.

        Args:
            cost: see `cost_volume`.
            text: L2-normalised embeddings of each image's classes.
            guidance: of the same images.
        """
        x = self.embed(cost.flatten(0, 1)).unflatten(0, (len(cost), -1))  # (B, K, C, h, w)
        image_guide, text_guide = self.picture(guidance.coarse), self.text(text)  # (B, G, h, w), (B, K, G)
        for layer in self.layers:
            x = layer(x, image_guide, text_guide)
        return self.decoder(x, guidance.middle, guidance.fine)


def _roll(tokens: Float[Tensor, "B L C"], grid: tuple[int, int], shift: int) -> Float[Tensor, "B L C"]:
    if shift == 0:
        return tokens
    return tokens.unflatten(1, grid).roll((shift, shift), dims=(1, 2)).flatten(1, 2)
