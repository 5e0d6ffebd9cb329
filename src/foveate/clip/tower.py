"""What a family of image towers offers, so that every dense head is written once (Sec. 3.1).

A family is a module of this room (`vit`, `eva`, `resnet`, `siglip`) with the functions below: its tokens and positions,
and each step of its attention blocks, as free functions over the library's own modules. The heads (`heads`) put them
together. What attention sees beside that (padding, windows, rotary tables) travels in a `Layout`.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

Table = tuple[Float[Tensor, "..."], Float[Tensor, "..."]] | tuple[Tensor, Tensor, Shaped[Tensor, "..."]]
"""Cosines and signed sines of a rotary embedding, (T, d) or one (1, T, d) a picture; the class token's row comes first
and turns nothing. In a `Layout`, outside of compilers, the same as complex numbers beside them."""


@dataclass(frozen=True)
class Windows:
    """Window attention of the dense path (Sec. 4.4): which blocks look only inside windows, and how large these are.

    The last block has attention under the head "attention" alone; only there does a window on it matter.
    """

    size: int  # side of a window [tokens]; 16 in the paper
    blocks: tuple[int, ...]  # counted from 0; in the paper all but the last of each quarter


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a batch stand, and which of them attention sees."""

    grid: tuple[int, int]  # (h, w) of the patches of the batch, padding included
    prefix: int  # tokens before the patches: 1 class token (of a residual network the mean), or none
    table: Table | None  # rotary embedding of the whole grid; None: the family has none
    valid: Bool[Tensor, "B T"] | None  # tokens that are a picture's own; None: all are
    windowed: tuple[int, ...] = ()  # blocks that attend in windows
    window: tuple[int, int] = (0, 0)  # height and width of these windows [tokens]
    window_table: Table | None = None  # rotary embedding inside one window
    gates: Float[Tensor, " G"] | None = None  # what `values3` multiplies heads by, block by block; None: nothing


@runtime_checkable
class Family(Protocol):
    """The functions of a family's module; `visual` is the tower, `block` one of its `blocks`."""

    def refusal(self, visual: Any) -> str | None:
        """Say which part of a tower is not supported, or None."""
        ...

    def sizes(self, visual: Any) -> tuple[tuple[int, int], tuple[int, int], int]:
        """Native image size (height, width) [pixels], patch size (height, width) [pixels], embedding size."""
        ...

    def prefix_tokens(self, visual: Any) -> int:
        """Tokens before the patches: 1 class token (of a residual network the mean), or 0."""
        ...

    def stages(self, visual: Any) -> list[nn.Module]:
        """What is trained and tapped, first to last; the last one is what a head changes."""
        ...

    def blocks(self, visual: Any) -> list[Any]:
        """The stages that are attention over tokens, first to last."""
        ...

    def positions(self, visual: Any, grid: tuple[int, int]) -> Float[Tensor, "T C"]:
        """The position embedding of each token on a grid."""
        ...

    def table(self, visual: Any, grid: tuple[int, int], *, whole: tuple[int, int] | None = None) -> Table | None:
        """The rotary embedding of each token on a grid, the top left of a `whole` one where that is given; or None."""
        ...

    def embed(self, visual: Any, images: Tensor, positions: Float[Tensor, "*B T C"]) -> Float[Tensor, "B T C"]:
        """Pictures to the tokens that enter the first of the blocks."""
        ...

    def query_token(self, visual: Any, tokens: Float[Tensor, "B T C"]) -> Float[Tensor, "B 1 C"]:
        """The token that gathers the picture: in the last block its answer is the image embedding."""
        ...

    def heads(self, block: Any) -> int:
        """How many attention heads a block has."""
        ...

    def project_in(self, visual: Any, block: Any, tokens: Float[Tensor, "B T C"], part: str) -> tuple[Tensor, ...]:
        """The block's first norm and its projections: one (B, T, C) tensor a letter of part: q, k, v, kv or qkv."""
        ...

    def project_out(self, block: Any, mixed: Float[Tensor, "B T C"]) -> Float[Tensor, "B T X"]:
        """What attention mixed, brought to what is added to the tokens."""
        ...

    def add(self, block: Any, tokens: Float[Tensor, "B T C"], update: Float[Tensor, "B T X"]) -> Float[Tensor, "B T X"]:
        """The residual around attention; a layer that pools has none."""
        ...

    def add_mlp(self, block: Any, tokens: Float[Tensor, "B T X"]) -> Float[Tensor, "B T X"]:
        """The MLP and the residual around it; a layer without MLP gives the tokens back."""
        ...

    def finish(self, visual: Any, tokens: Float[Tensor, "B T X"]) -> Float[Tensor, "B T D"]:
        """Final norm and projection."""
        ...

    def unused(
        self, visual: Any, *, part: str, mlp: bool
    ) -> tuple[list[nn.Parameter], list[tuple[nn.Parameter, slice]]]:
        """Parameters of the last block that are not used when only `part` of the projections is, with or without MLP;
        and the matrices of which only some rows are used, with those rows."""
        ...
