"""open_clip's VisionTransformer."""

import torch
from torch import Tensor

from slow.common import embed_patches, gelu, norm, positions
from slow.transformer import Place, Tower


class VitBlock:
    def __init__(self, p: dict[str, Tensor], heads: int, quick: bool) -> None:
        self.p, self.heads, self.quick = p, heads, quick

    def norm(self, x: Tensor) -> Tensor:
        return norm(x, self.p["ln_1.weight"], self.p["ln_1.bias"], 1e-5)

    def project(self, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (self.p["attn.in_proj_weight"] @ n + self.p["attn.in_proj_bias"]).split(len(n))
        return q, k, v

    def turn(self, x: Tensor, place: Place, grid: tuple[int, int]) -> Tensor:
        return x

    def out(self, x: Tensor) -> Tensor:
        return self.p.get("ls_1.gamma", 1.0) * (self.p["attn.out_proj.weight"] @ x + self.p["attn.out_proj.bias"])

    def rest(self, x: Tensor) -> Tensor:
        n = norm(x, self.p["ln_2.weight"], self.p["ln_2.bias"], 1e-5)
        hidden = self.p["mlp.c_fc.weight"] @ n + self.p["mlp.c_fc.bias"]
        hidden = hidden / (1 + torch.exp(-1.702 * hidden)) if self.quick else gelu(hidden)
        return x + self.p.get("ls_2.gamma", 1.0) * (self.p["mlp.c_proj.weight"] @ hidden + self.p["mlp.c_proj.bias"])


class Vit(Tower):
    def __init__(self, state: dict[str, Tensor], image: Tensor, *, heads: int, quick: bool) -> None:
        self.state = state
        patches = embed_patches(image, state["conv1.weight"])
        size = state["conv1.weight"].shape[-1]
        grid = (image.shape[1] // size, image.shape[2] // size)
        table = state["positional_embedding"]
        tokens = [state["class_embedding"] + table[0]]
        tokens += [patch + place for patch, place in zip(patches, positions(table[1:], *grid), strict=True)]
        tokens = [norm(token, state["ln_pre.weight"], state["ln_pre.bias"], 1e-5) for token in tokens]
        blocks = [VitBlock(p, heads, quick) for p in split_blocks(state, "transformer.resblocks.")]
        super().__init__(tokens, grid, blocks, has_class=True)

    def finish(self, x: Tensor) -> Tensor:
        return norm(x, self.state["ln_post.weight"], self.state["ln_post.bias"], 1e-5) @ self.state["proj"]


def split_blocks(state: dict[str, Tensor], prefix: str) -> list[dict[str, Tensor]]:
    """Parameters of each block under their names within it."""
    count = 1 + max(int(key.removeprefix(prefix).split(".")[0]) for key in state if key.startswith(prefix))
    starts = [f"{prefix}{number}." for number in range(count)]
    return [{key.removeprefix(start): p for key, p in state.items() if key.startswith(start)} for start in starts]
