"""The aggregator of CAT-Seg: maps of cosines become a map of logits a class (Cho et al., CVPR 2024).

    cosines (P per class) --7x7 conv--> C a class --[2 window blocks in space, 1 block over classes] x layers--> decoder

Space is aggregated class by class, by attention in windows of which every other block's are shifted; what a place asks
for and answers to knows the image (`guidance`), what it hands on is of the cost alone. Then each place is aggregated
over classes, by linear attention guided by the texts, whose cost grows with the number of classes and not with its
square; in training that happens on a map averaged 2x2. Sizes are arguments, so that a small one runs anywhere.
Deliberately absent: relative positions in windows, an output projection of the attention over classes, drop path.
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
POOL = 2  # side of what is averaged before classes meet, in training


def linear_attention(
    q: Float[Tensor, "B T C"],
    k: Float[Tensor, "B L C"],
    v: Float[Tensor, "B L X"],
    *,
    heads: int,
    counts: Float[Tensor, " L"] | None = None,
) -> Float[Tensor, "B T X"]:
    """Attention whose weights are f(q) . f(k), f(x) = elu(x) + 1 (Katharopoulos et al., ICML 2020).

    Args:
        q: one row an asking token.
        k: keys.
        v: values.
        heads: C and X are split into so many.
        counts: how often each key stands there; None: once.
    """
    q, k, v = (x.unflatten(2, (heads, -1)) for x in (F.elu(q) + 1, F.elu(k) + 1, v))  # (B, T or L, heads, d) each
    k = k if counts is None else k * counts[:, None, None]
    mixed = torch.einsum("blhd,blhe->bhde", k, v)
    total = torch.einsum("bthd,bhd->bth", q, k.sum(dim=1))
    return (torch.einsum("bthd,bhde->bthe", q, mixed) / (total[..., None] + 1e-6)).flatten(2)  # (B, T, X)


def windows_see(grid: tuple[int, int], *, size: tuple[int, int], shift: int) -> Bool[Tensor, "n S S"]:
    """Which tokens of a window see each other once the grid was rolled: those that were neighbours before.

    Args:
        grid: (h, w).
        size: of a window.
        shift: rows and columns that were rolled from the top to the bottom, from the left to the right.
    """
    rows, columns = (torch.arange(length) >= length - shift for length in grid)  # what came round
    side = 2 * rows[:, None].long() + columns  # (h, w)
    own = split_windows(side.flatten()[None, :, None], grid=grid, size=size)[0, ..., 0]  # (n, S)
    return own[:, :, None] == own[:, None]


class WindowBlock(nn.Module):
    """One block of aggregation in space: attention in windows, then an MLP."""

    def __init__(self, width: int, *, guidance: int, heads: int, window: int, is_shifted: bool) -> None:
        """Make the block.

        Args:
            width: of the tokens.
            guidance: width of what guides queries and keys.
            heads: of the attention.
            window: side [tokens]; a smaller grid is one window, and is not shifted.
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
        """Let each token gather from its window.

        Args:
            x: tokens of a grid, row by row.
            guidance: likewise.
            grid: (h, w).
        """
        x = x + self.proj(self._attend(self.norm1(x), guidance, grid))
        return x + self.mlp(self.norm2(x))

    def _attend(self, x: Tensor, guidance: Tensor, grid: tuple[int, int]) -> Tensor:
        size = (min(self.window, grid[0]), min(self.window, grid[1]))
        shift = self.window // 2 if self.is_shifted and min(grid) > self.window else 0
        guided = torch.cat([x, guidance], dim=2)  # (B, L, C + G)
        parts = [_roll(one, grid, -shift) for one in (self.q(guided), self.k(guided), self.v(x))]
        cut = [split_windows(one, grid=grid, size=size) for one in parts]  # (B, n, S, C) each
        batch, count = cut[0].shape[:2]
        q, k, v = (
            one.flatten(0, 1).unflatten(2, (self.heads, -1)).transpose(1, 2) for one in cut
        )  # (B n, heads, S, d)
        seen = None
        if shift:
            seen = windows_see(grid, size=size, shift=shift).to(x.device)
            seen = seen.expand(batch, *seen.shape).flatten(0, 1)[:, None]  # (B n, 1, S, S)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2)  # (B n, S, C)
        return _roll(merge_windows(mixed.unflatten(0, (batch, count)), grid=grid, size=size), grid, shift)


class ClassBlock(nn.Module):
    """One block of aggregation over classes: linear attention at each place, then an MLP.

    In the version of 2024 an image is never asked about fewer than `padding` classes: those that lack are so many
    copies of one learned token with one learned text. They only answer, and are counted instead of copied.
    """

    def __init__(self, width: int, *, guidance: int, heads: int, padding: int) -> None:
        """Make the block.

        Args:
            width: of the tokens.
            guidance: width of the texts.
            heads: of the attention.
            padding: least number of classes; 0: no padding.
        """
        super().__init__()
        self.heads, self.least = heads, padding
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k = nn.Linear(width + guidance, width), nn.Linear(width + guidance, width)
        self.v = nn.Linear(width, width)
        self.mlp = Mlp(width, MLP_RATIO * width, act_layer=nn.ReLU)  # the window blocks' is a GELU
        self.padding, self.padding_text = None, None
        if padding:
            self.padding, self.padding_text = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(guidance))

    def forward(self, x: Float[Tensor, "B K C h w"], text: Float[Tensor, "B K G"]) -> Float[Tensor, "B K C h w"]:
        """Let each class gather from the others, on a map averaged 2x2 in training.

        Args:
            x: of each class a map.
            text: of each class.
        """
        batch, count, _, h, w = x.shape
        side = (min(POOL, h), min(POOL, w)) if self.training else (1, 1)
        pooled = F.avg_pool2d(x.flatten(0, 1), side)  # (B K, C, h', w')
        grid = pooled.shape[2:]
        rows = pooled.unflatten(0, (batch, count)).permute(0, 3, 4, 1, 2).flatten(0, 2)  # (B h' w', K, C)
        rows = rows + self._attend(rows, text.repeat_interleave(grid.numel(), dim=0))
        rows = rows + self.mlp(self.norm2(rows))
        found = rows.unflatten(0, (batch, *grid)).permute(0, 3, 4, 1, 2).flatten(0, 1)  # (B K, C, h', w')
        if side != (1, 1):
            found = F.interpolate(found, size=(h, w), mode="bilinear", align_corners=True)
        return x + found.unflatten(0, (batch, count))

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
    """Aggregation in space by two blocks, then over classes by one."""

    def __init__(self, width: int, *, guidance: int, heads: int, window: int, padding: int) -> None:
        """Make the blocks; the arguments are theirs."""
        super().__init__()
        self.guidance_norm = nn.LayerNorm(guidance)
        self.space = nn.ModuleList(
            WindowBlock(width, guidance=guidance, heads=heads, window=window, is_shifted=shifted)
            for shifted in (False, True)
        )
        self.classes = ClassBlock(width, guidance=guidance, heads=heads, padding=padding)

    def forward(
        self, x: Float[Tensor, "B K C h w"], image: Float[Tensor, "B G h w"], text: Float[Tensor, "B K G"]
    ) -> Float[Tensor, "B K C h w"]:
        """Aggregate once.

        Args:
            x: of each class a map.
            image: what guides aggregation in space.
            text: what guides aggregation over classes.
        """
        batch, count, _, *grid = x.shape
        guide = self.guidance_norm(image.flatten(2).mT).repeat_interleave(count, dim=0)  # (B K, L, G)
        tokens = x.flatten(0, 1).flatten(2).mT  # (B K, L, C)
        for block in self.space:
            tokens = block(tokens, guide, grid=(grid[0], grid[1]))
        return self.classes(tokens.mT.unflatten(2, grid).unflatten(0, (batch, count)), text)


class Aggregator(nn.Module):
    """All between the cosines and the logits; what the published parameter counts count."""

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
            prompts: P, cosines a class.
            text_dim: D, of the texts.
            guides: channels of the maps that guide, coarse, middle and fine.
            hidden: channels per class.
            guidance: channels of what guides the aggregation.
            decoder: channels per class after each step of the decoder.
            decoder_guidance: channels of what guides each step.
            heads: of all attention.
            layers: how often space and classes are aggregated.
            window: side of the windows [tokens].
            padding: see `ClassBlock`.
        """
        super().__init__()
        self.embed = nn.Conv2d(prompts, hidden, kernel_size=7, padding=3)
        self.image = nn.Sequential(nn.Conv2d(guides[0], guidance, kernel_size=3, padding=1), nn.ReLU())
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
            cost: of each place with each class's prompts.
            text: of length 1; what was asked about each image.
            guidance: of the same images.
        """
        batch = len(cost)
        x = self.embed(cost.flatten(0, 1)).unflatten(0, (batch, -1))  # (B, K, C, h, w)
        image, words = self.image(guidance.coarse), self.text(text)  # (B, G, h, w), (B, K, G)
        for layer in self.layers:
            x = layer(x, image, words)
        return self.decoder(x, guidance.middle, guidance.fine)


def _roll(tokens: Float[Tensor, "B L C"], grid: tuple[int, int], shift: int) -> Float[Tensor, "B L C"]:
    if shift == 0:
        return tokens
    return tokens.unflatten(1, grid).roll((shift, shift), dims=(1, 2)).flatten(1, 2)
