"""timm's VisionTransformer as in SigLIP: no class token, the image pooled by a learned query."""

import torch
from torch import Tensor

from slow.common import attend, embed_patches, gelu, nearness, norm, positions
from slow.transformer import Place, Tower
from slow.vit import split_blocks


class SiglipBlock:
    def __init__(self, p: dict[str, Tensor], heads: int) -> None:
        self.p, self.heads = p, heads

    def norm(self, x: Tensor) -> Tensor:
        return norm(x, self.p["norm1.weight"], self.p["norm1.bias"], 1e-6)

    def project(self, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (self.p["attn.qkv.weight"] @ n + self.p["attn.qkv.bias"]).split(len(n))
        return q, k, v

    def turn(self, x: Tensor, place: Place, grid: tuple[int, int]) -> Tensor:
        return x

    def out(self, x: Tensor) -> Tensor:
        return self.p["attn.proj.weight"] @ x + self.p["attn.proj.bias"]

    def rest(self, x: Tensor) -> Tensor:
        return x + mlp(self.p, norm(x, self.p["norm2.weight"], self.p["norm2.bias"], 1e-6))


def mlp(p: dict[str, Tensor], n: Tensor) -> Tensor:
    return p["mlp.fc2.weight"] @ gelu(p["mlp.fc1.weight"] @ n + p["mlp.fc1.bias"]) + p["mlp.fc2.bias"]


class Siglip(Tower):
    def __init__(self, state: dict[str, Tensor], image: Tensor, *, heads: int) -> None:
        self.state, self.heads = state, heads
        patches = embed_patches(image, state["patch_embed.proj.weight"])
        size = state["patch_embed.proj.weight"].shape[-1]
        grid = (image.shape[1] // size, image.shape[2] // size)
        places = positions(state["pos_embed"][0], *grid)
        tokens = [patch + state["patch_embed.proj.bias"] + place for patch, place in zip(patches, places, strict=True)]
        super().__init__(tokens, grid, [SiglipBlock(p, heads) for p in split_blocks(state, "blocks.")], has_class=False)
        self.p = {key.removeprefix("attn_pool."): p for key, p in state.items() if key.startswith("attn_pool.")}

    def finish(self, x: Tensor) -> Tensor:
        return norm(x, self.state["norm.weight"], self.state["norm.bias"], 1e-6)

    def pooled(self) -> tuple[list[Tensor], list[Tensor]]:
        """The pool's keys and values of all patches."""
        answers = [self.p["kv.weight"] @ self.finish(x) + self.p["kv.bias"] for x in self.run()[-1]]
        width = len(answers[0]) // 2
        return [answer[:width] for answer in answers], [answer[width:] for answer in answers]

    def project(self, x: Tensor) -> Tensor:
        return self.p["proj.weight"] @ x + self.p["proj.bias"]

    def refine(self, x: Tensor) -> Tensor:
        return x + mlp(self.p, norm(x, self.p["norm.weight"], self.p["norm.bias"], 1e-6))

    def image(self) -> Tensor:
        return self.masked([place for place in self.places if place is not None])

    def dense(self, head: str, windows: None = None) -> Tensor:
        keys, values = self.pooled()
        match head:
            case "value":
                found = [self.refine(self.project(v)) for v in values]
            case "value_only":
                found = [self.project(v) for v in values]
            case "naclip":
                found = [
                    self.project(attend(key, keys, values, self.heads, nearness(place, self.places)))
                    for key, place in zip(keys, self.places, strict=True)
                ]
            case _:
                raise ValueError(head)
        return torch.stack(found, dim=1).reshape(-1, *self.grid)

    def masked(self, cells: list[tuple[int, int]]) -> Tensor:
        """The latent asks some patches; none gives zero."""
        if not cells:
            return torch.zeros_like(self.p["proj.bias"])
        keys, values = self.pooled()
        question = self.p["q.weight"] @ self.p["latent"][0, 0] + self.p["q.bias"]
        seen = [i for i, place in enumerate(self.places) if place in cells]
        answer = attend(question, [keys[i] for i in seen], [values[i] for i in seen], self.heads, None)
        return self.refine(self.project(answer))
