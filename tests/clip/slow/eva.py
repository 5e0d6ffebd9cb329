"""timm's Eva as in EVA-02 CLIP: rotary positions, an inner LayerNorm, a gated MLP, keys without bias."""

import cmath

import torch
from torch import Tensor

from slow.common import embed_patches, norm, positions
from slow.transformer import Place, Tower
from slow.vit import split_blocks


class EvaBlock:
    def __init__(self, p: dict[str, Tensor], heads: int, rotary: int) -> None:
        self.p, self.heads, self.rotary = p, heads, rotary

    def norm(self, x: Tensor) -> Tensor:
        return self._norm("norm1", x)

    def project(self, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = self.p["attn.q_proj.weight"] @ n + self.p["attn.q_proj.bias"]
        k = self.p["attn.k_proj.weight"] @ n
        v = self.p["attn.v_proj.weight"] @ n + self.p["attn.v_proj.bias"]
        return q, k, v

    def turn(self, x: Tensor, place: Place, grid: tuple[int, int]) -> Tensor:
        """Adjacent pairs as complex numbers: the first half of a head's pairs by the row, the second by the column."""
        if place is None:
            return x
        d = len(x) // self.heads
        bands = d // 4
        turned = []
        for channel in range(0, len(x), 2):
            pair = channel % d // 2
            axis = 0 if pair < bands else 1
            along = place[axis] / grid[axis] * self.rotary
            angle = along * 10000.0 ** (-(pair % bands) / bands)
            number = complex(float(x[channel]), float(x[channel + 1])) * cmath.exp(1j * angle)
            turned += [number.real, number.imag]
        return torch.tensor(turned, dtype=torch.float64)

    def out(self, x: Tensor) -> Tensor:
        return self.p["attn.proj.weight"] @ self._norm("attn.norm", x) + self.p["attn.proj.bias"]

    def rest(self, x: Tensor) -> Tensor:
        n = self._norm("norm2", x)
        gate = self.p["mlp.fc1_g.weight"] @ n + self.p["mlp.fc1_g.bias"]
        hidden = gate / (1 + torch.exp(-gate)) * (self.p["mlp.fc1_x.weight"] @ n + self.p["mlp.fc1_x.bias"])
        return x + self.p["mlp.fc2.weight"] @ self._norm("mlp.norm", hidden) + self.p["mlp.fc2.bias"]

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return norm(x, self.p[f"{name}.weight"], self.p[f"{name}.bias"], 1e-6)


class Eva(Tower):
    def __init__(self, state: dict[str, Tensor], image: Tensor, *, heads: int, rotary: int) -> None:
        """`rotary` is the side of the range that places are squeezed into (16 for EVA-02 CLIP)."""
        self.state = state
        patches = embed_patches(image, state["patch_embed.proj.weight"])
        size = state["patch_embed.proj.weight"].shape[-1]
        grid = (image.shape[1] // size, image.shape[2] // size)
        table = state["pos_embed"][0]
        tokens = [state["cls_token"][0, 0] + table[0]]
        for patch, place in zip(patches, positions(table[1:], *grid), strict=True):
            tokens.append(patch + state["patch_embed.proj.bias"] + place)
        blocks = [EvaBlock(p, heads, rotary) for p in split_blocks(state, "blocks.")]
        super().__init__(tokens, grid, blocks, has_class=True)

    def finish(self, x: Tensor) -> Tensor:
        n = norm(x, self.state["norm.weight"], self.state["norm.bias"], 1e-6)
        return self.state["head.weight"] @ n + self.state["head.bias"]
