"""Mask2Former's decoders as its paper and its own module names have them: small, slow, and without transformers.

Written for the tests alone, to make state dicts in the original layout whose numbers are known. The pixel decoder looks
at three maps by deformable attention and adds the finest; the transformer decoder takes the maps in turn, cross
attention inside the masks before self-attention. Post-norm everywhere.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS, POINTS = 8, 4


class Mlp(nn.Module):
    """Three linear layers, ReLU between."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        widths = [inputs, hidden, hidden, outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


class ConvNorm(nn.Conv2d):
    """A convolution whose GroupNorm is its child `norm`, as in detectron2."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.GroupNorm(32, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


def positions(x: Tensor, width: int) -> Tensor:
    """Sines and cosines of the place, y before x, scaled to 2 pi over the map. (B, width, h, w)"""
    h, w = x.shape[2:]
    y = torch.arange(1, h + 1)[:, None].expand(h, w) / (h + 1e-6) * 2 * math.pi
    over = torch.arange(1, w + 1)[None].expand(h, w) / (w + 1e-6) * 2 * math.pi
    count = width // 2
    divisor = 10000 ** (2 * (torch.arange(count) // 2) / count)
    parts = []
    for place in (y, over):
        angle = place[:, :, None] / divisor
        parts.append(torch.stack([angle[:, :, 0::2].sin(), angle[:, :, 1::2].cos()], dim=3).flatten(2))
    return torch.cat(parts, dim=2).permute(2, 0, 1)[None].expand(len(x), -1, -1, -1)


class DeformableAttention(nn.Module):
    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        self.levels = levels
        self.sampling_offsets = nn.Linear(width, HEADS * levels * POINTS * 2)
        self.attention_weights = nn.Linear(width, HEADS * levels * POINTS)
        self.value_proj, self.output_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, query: Tensor, places: Tensor, value: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        batch, length, width = query.shape
        split = (batch, length, HEADS, self.levels, POINTS)
        offsets = self.sampling_offsets(query).view(*split, 2)
        weights = self.attention_weights(query).view(batch, length, HEADS, -1).softmax(dim=3).view(split)
        values = self.value_proj(value).view(batch, length, HEADS, width // HEADS)
        out = torch.zeros(batch, length, HEADS, width // HEADS)
        start = 0
        for level, (h, w) in enumerate(shapes):
            own = values[:, start : start + h * w].view(batch, h, w, HEADS, -1)
            start += h * w
            at = places[None, :, None, None] + offsets[:, :, :, level] / torch.tensor(
                [w, h]
            )  # (B, L, heads, points, 2)
            for head in range(HEADS):
                grid = 2 * at[:, :, head] - 1  # (B, L, points, 2)
                seen = F.grid_sample(own[:, :, :, head].permute(0, 3, 1, 2), grid, align_corners=False)
                out[:, :, head] += (seen * weights[:, None, :, head, level]).sum(dim=3).mT
        return self.output_proj(out.flatten(2))


class EncoderLayer(nn.Module):
    def __init__(self, width: int, hidden: int, levels: int) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(width, levels)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor, where: Tensor, places: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        x = self.norm1(x + self.self_attn(x + where, places, x, shapes))
        return self.norm2(x + self.linear2(self.linear1(x).relu()))


class PixelDecoder(nn.Module):
    def __init__(self, widths: list[int], width: int, hidden: int, layers: int) -> None:
        super().__init__()
        coarse = widths[:0:-1]  # of res5, res4, res3
        self.width = width
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(one, width, 1), nn.GroupNorm(32, width)) for one in coarse
        )
        self.transformer = nn.Module()
        self.transformer.level_embed = nn.Parameter(torch.randn(len(coarse), width))
        self.transformer.encoder = nn.Module()
        blocks = [EncoderLayer(width, hidden, len(coarse)) for _ in range(layers)]
        self.transformer.encoder.layers = nn.ModuleList(blocks)
        self.mask_features = nn.Conv2d(width, width, 1)
        self.adapter_1, self.layer_1 = ConvNorm(widths[0], width, 1), ConvNorm(width, width, 3)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        coarse = [project(one) for project, one in zip(self.input_proj, maps[:0:-1], strict=True)]
        shapes = [tuple(one.shape[2:]) for one in coarse]
        levels = self.transformer.level_embed
        where = [positions(one, self.width) + level[:, None, None] for one, level in zip(coarse, levels, strict=True)]
        x, at = (torch.cat([one.flatten(2).mT for one in some], dim=1) for some in (coarse, where))
        places = []
        for h, w in shapes:
            y, over = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
            places.append(torch.stack([over, y], dim=2).flatten(0, 1))
        for layer in self.transformer.encoder.layers:
            x = layer(x, at, torch.cat(places), shapes)
        parts = x.split([h * w for h, w in shapes], dim=1)
        out = [part.mT.unflatten(2, shape) for part, shape in zip(parts, shapes, strict=True)]
        fine = self.adapter_1(maps[0])
        fine = fine + F.interpolate(out[-1], size=fine.shape[2:], mode="bilinear", align_corners=False)
        return self.mask_features(self.layer_1(fine).relu()), out


class Attention(nn.Module):
    def __init__(self, width: int, name: str) -> None:
        super().__init__()
        self.name = name
        setattr(self, name, nn.MultiheadAttention(width, HEADS, batch_first=True))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.norm(x + getattr(self, self.name)(query, key, value, attn_mask=mask)[0])


class Feedforward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.linear2(self.linear1(x).relu()))


class Predictor(nn.Module):
    def __init__(self, width: int, hidden: int, layers: int, queries: int) -> None:
        super().__init__()
        self.width = width
        self.query_feat, self.query_embed = nn.Embedding(queries, width), nn.Embedding(queries, width)
        self.level_embed = nn.Embedding(3, width)
        cross = [Attention(width, "multihead_attn") for _ in range(layers)]
        self.transformer_cross_attention_layers = nn.ModuleList(cross)
        self.transformer_self_attention_layers = nn.ModuleList(Attention(width, "self_attn") for _ in range(layers))
        self.transformer_ffn_layers = nn.ModuleList(Feedforward(width, hidden) for _ in range(layers))
        self.decoder_norm = nn.LayerNorm(width)
        self.mask_embed = Mlp(width, width, width)

    def forward(self, maps: list[Tensor], pixels: Tensor) -> tuple[Tensor, Tensor]:
        values = [
            (one + level[:, None, None]).flatten(2).mT for one, level in zip(maps, self.level_embed.weight, strict=True)
        ]
        where = [positions(one, self.width).flatten(2).mT for one in maps]
        own = self.query_embed.weight
        x = self.query_feat.weight[None].expand(len(pixels), -1, -1)
        for place, cross in enumerate(self.transformer_cross_attention_layers):
            level = place % 3
            mask = self.masks(x, pixels)
            small = F.interpolate(mask, size=maps[level].shape[2:], mode="bilinear", align_corners=False)
            outside = (small.sigmoid() < 0.5).flatten(2)
            outside = outside & ~outside.all(dim=2, keepdim=True)
            x = cross(x, x + own, values[level] + where[level], values[level], outside.repeat_interleave(HEADS, dim=0))
            x = self.transformer_self_attention_layers[place](x, x + own, x + own, x)
            x = self.transformer_ffn_layers[place](x)
        return self.decoder_norm(x), self.masks(x, pixels)

    def masks(self, x: Tensor, pixels: Tensor) -> Tensor:
        return torch.einsum("bqc,bchw->bqhw", self.mask_embed(self.decoder_norm(x)), pixels)


class PooledMaskEmbed(nn.Module):
    """ODISE's: the mask's part of the pixel features and the query become an embedding."""

    def __init__(self, width: int, joint: int) -> None:
        super().__init__()
        self.pool_proj = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.mask_embed = nn.Sequential(nn.LayerNorm(width), Mlp(width, width, joint))
        self.logit_scale = nn.Parameter(torch.tensor(2.5))

    def forward(self, queries: Tensor, masks: Tensor, pixels: Tensor) -> Tensor:
        inside = (masks.sigmoid() > 0.5).float()
        pooled = torch.einsum("bqhw,bchw->bqc", inside, pixels) / (inside.sum(dim=(2, 3))[:, :, None] + 1e-8)
        return self.mask_embed(self.pool_proj(pooled) + queries)


class Bottleneck(nn.Module):
    """detectron2's, with GroupNorm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.shortcut = None if inputs == outputs else ConvNorm(inputs, outputs, 1)
        self.conv1 = ConvNorm(inputs, outputs // 4, 1)
        self.conv2 = ConvNorm(outputs // 4, outputs // 4, 3)
        self.conv3 = ConvNorm(outputs // 4, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = self.conv3(self.conv2(self.conv1(x).relu()).relu())
        return (found + (x if self.shortcut is None else self.shortcut(x))).relu()


class PositionalLinear(nn.Module):
    def __init__(self, inputs: int, outputs: int, places: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.positional_embedding = nn.Parameter(torch.randn(1, places, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)[:, None] + self.positional_embedding


class Odise(nn.Module):
    """All that is trained of ODISE's label model, under its names; what it stands on is not in it."""

    def __init__(
        self, features: list[int], *, channels: int, width: int, hidden: int, layers: int, queries: int, joint: int,
        text: int, clip: int, caption: tuple[int, int], time: int, pixel_layers: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.feature_projections = nn.ModuleList(nn.Sequential(Bottleneck(one, channels)) for one in features)
        extractor = self.backbone.feature_extractor = nn.Module()
        places, told = caption
        extractor.clip_project = PositionalLinear(clip, told, places)
        extractor.alpha_cond = nn.Parameter(torch.randn(1, places, told))
        extractor.time_embed_project = PositionalLinear(clip, time, 1)
        extractor.alpha_cond_time_embed = nn.Parameter(torch.randn(time))
        self.sem_seg_head = nn.Module()
        self.sem_seg_head.pixel_decoder = PixelDecoder([channels] * 4, width, hidden // 2, pixel_layers)
        self.sem_seg_head.predictor = Predictor(width, hidden, layers, queries)
        self.sem_seg_head.predictor.post_mask_embed = PooledMaskEmbed(width, joint)
        self.category_head = nn.Module()
        self.category_head.text_proj = nn.Linear(text, joint)
        self.category_head.null_embed = nn.Parameter(torch.randn(1, text))
        self.criterion = nn.Module()
        self.criterion.register_buffer("empty_weight", torch.ones(3))

    def find(self, maps: list[Tensor], words: Tensor) -> tuple[Tensor, Tensor]:
        """Masks, and logits of words and, last, of nothing."""
        head = self.sem_seg_head.predictor
        pixels, coarse = self.sem_seg_head.pixel_decoder(maps)
        queries, masks = head(coarse, pixels)
        embeddings = F.normalize(head.post_mask_embed(queries, masks, pixels), dim=2)
        known = F.normalize(self.category_head.text_proj(torch.cat([words, self.category_head.null_embed])), dim=1)
        return masks, head.post_mask_embed.logit_scale.exp().clamp(max=100) * embeddings @ known.T
