"""The interface of a family of image towers, so that every dense head is written once (Sec. 3.1).

A family is one class (in `vit`, `eva`, `resnet`, `siglip`): its tokens and positions, and each step of its attention
blocks, over the modules of its library at any height and width. The heads (`heads`) combine these steps. Padding,
windows and rotary tables are passed in a `Layout`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

Table = tuple[Float[Tensor, "..."], Float[Tensor, "..."]] | tuple[Tensor, Tensor, Shaped[Tensor, "..."]]
"""Cosines and signed sines of a rotary embedding, (T, d) or (B, 1, T, d); the class token's row is first and does not
rotate. In a `Layout`, except when compiling, also the same as complex numbers."""


@dataclass(frozen=True)
class Windows:
    """Window attention of the dense path (Sec. 4.4): the blocks that have it, and the side of a window.

    On the last block it has an effect with the head "attention" alone.
    """

    size: int  # side of a window [tokens]; 16 in the paper
    blocks: tuple[int, ...]  # counted from 0; in the paper all but the last of each quarter


@dataclass(frozen=True)
class Layout:
    """The positions of the tokens of a batch, and the tokens that attention includes."""

    grid: tuple[int, int]  # (h, w) of the patches of the batch, with padding
    prefix: int  # tokens before the patches: 1 class token (of a residual network the mean), or 0
    table: Table | None  # rotary embedding of the grid; None: the family has none
    valid: Bool[Tensor, "B T"] | None  # tokens that are not padding; None: no token is
    windowed: tuple[int, ...] = ()  # blocks with window attention
    window: tuple[int, int] = (0, 0)  # height and width of a window [tokens]
    window_table: Table | None = None  # rotary embedding of a window
    gates: Float[Tensor, " G"] | None = None  # of the attention heads in `values3`, block by block


class ImageTower(ABC):
    """An image tower of open_clip (not copied); the methods most families share have their implementation here.

    T is the number of tokens of the batch, X the width of the output of a block.
    """

    prefix = 1  # tokens before the patches: 1 class token (of a residual network the mean), or 0
    has_patch_queries = True  # whether the last block computes a query of each patch
    adds_to_class_token = True  # whether the last block has a residual around attention for the class token
    takes_mixed_sizes = True  # whether a batch may have images of several sizes: attention can mask padding

    def __init__(self, visual: Any) -> None:
        self.visual = visual

    @abstractmethod
    def refusal(self) -> str | None:
        """The part of this tower that is not supported, or None."""

    @property
    @abstractmethod
    def sizes(self) -> tuple[tuple[int, int], tuple[int, int], int]:
        """Native image size (height, width) [pixels], patch size (height, width) [pixels], embedding size."""

    @property
    @abstractmethod
    def blocks(self) -> list[Any]:
        """The stages with attention over tokens, first to last."""

    @property
    def stages(self) -> list[nn.Module]:
        """All stages, first to last; a dense head replaces the last."""
        return self.blocks

    @property
    def windowable(self) -> int:
        """The number of blocks, from the first, that can have window attention."""
        return len(self.blocks)

    @abstractmethod
    def positions(self, grid: tuple[int, int]) -> Float[Tensor, "T C"]:
        """The position embedding of each token on a grid."""

    def table(self, grid: tuple[int, int], *, whole: tuple[int, int] | None = None) -> Table | None:
        """The rotary embedding of each token on a grid, which is the top left of the grid `whole` if given; or None."""
        return None

    @abstractmethod
    def embed(self, images: Float[Tensor, "B 3 H W"], positions: Float[Tensor, "*B T C"]) -> Float[Tensor, "B T C"]:
        """The inputs of the first block."""

    def query_token(self, tokens: Float[Tensor, "B T C"]) -> Float[Tensor, "B 1 C"]:
        """The token whose output of the last block is the image embedding."""
        return tokens[:, :1]

    def heads(self, block: Any) -> int:
        """The number of attention heads of a block."""
        return block.attn.num_heads

    @abstractmethod
    def project_in(self, block: Any, tokens: Float[Tensor, "B T C"], part: str) -> tuple[Tensor, ...]:
        """The first norm and projections of a block: a (B, T, C) tensor per letter of `part`: q, k, v, kv or qkv."""

    @abstractmethod
    def project_out(self, block: Any, mixed: Float[Tensor, "B T C"]) -> Float[Tensor, "B T X"]:
        """The output projection."""

    def add(self, block: Any, tokens: Float[Tensor, "B T C"], update: Float[Tensor, "B T X"]) -> Float[Tensor, "B T X"]:
        """The residual around attention; a pool has none."""
        return tokens + update

    @abstractmethod
    def add_mlp(self, block: Any, tokens: Float[Tensor, "B T X"]) -> Float[Tensor, "B T X"]:
        """The MLP and its residual; the identity for a layer without MLP."""

    @abstractmethod
    def finish(self, tokens: Float[Tensor, "B T X"]) -> Float[Tensor, "B T D"]:
        """Final norm and projection."""

    @abstractmethod
    def unused(self, *, part: str, mlp: bool) -> tuple[list[nn.Parameter], list[tuple[nn.Parameter, slice]]]:
        """The parameters of the last block that are unused with only `part` of its projections, with or without MLP.

        The second value is the matrices of which only some rows are used, with these rows.
        """


def split_rows(width: int, part: str, *, letters: str = "qkv") -> slice:
    """The rows of a fused projection for some of its letters."""
    start = letters.index(part)
    return slice(start * width, (start + len(part)) * width)


def parameters_of(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """The parameters of several modules, in order."""
    return [parameter for module in modules for parameter in module.parameters()]
