"""What a family of image towers offers, so that every dense head is written once (Sec. 3.1).

A family is one class of this room (`vit`, `eva`, `resnet`, `siglip`): its tokens and positions, and each step of its
attention blocks, over the library's own modules at any height and width. The heads (`heads`) put these steps together.
What attention sees beside that (padding, windows, rotary tables) travels in a `Layout`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

Table = tuple[Float[Tensor, "..."], Float[Tensor, "..."]] | tuple[Tensor, Tensor, Shaped[Tensor, "..."]]
"""Cosines and signed sines of a rotary embedding, (T, d) or one (1, T, d) an image; the class token's row comes first
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
    valid: Bool[Tensor, "B T"] | None  # tokens that are an image's own; None: all are
    windowed: tuple[int, ...] = ()  # blocks that attend in windows
    window: tuple[int, int] = (0, 0)  # height and width of these windows [tokens]
    window_table: Table | None = None  # rotary embedding inside one window
    gates: Float[Tensor, " G"] | None = None  # what `values3` multiplies heads by, block by block; None: nothing


class ImageTower(ABC):
    """One image tower of open_clip, as its family runs it; what most families share is written here.

    A block is one of `blocks`, T the tokens of the batch, X the width of what leaves a block.
    """

    prefix = 1  # tokens before the patches: 1 class token (of a residual network the mean), or none
    has_patch_queries = True  # whether the last block makes a query of each patch
    adds_to_class_token = True  # whether the last block adds what it attended to onto a class token
    takes_mixed_sizes = True  # whether one batch may hold images of several sizes: attention can ignore padding

    def __init__(self, visual: Any) -> None:
        """Look at a tower of this family; nothing is copied."""
        self.visual = visual

    @abstractmethod
    def refusal(self) -> str | None:
        """Say which part of this tower is not supported, or None."""

    @property
    @abstractmethod
    def sizes(self) -> tuple[tuple[int, int], tuple[int, int], int]:
        """Native image size (height, width) [pixels], patch size (height, width) [pixels], embedding size."""

    @property
    @abstractmethod
    def blocks(self) -> list[Any]:
        """The stages that are attention over tokens, first to last."""

    @property
    def stages(self) -> list[nn.Module]:
        """What is trained and tapped, first to last; the last one is what a head changes."""
        return self.blocks

    @property
    def windowable(self) -> int:
        """How many of the first blocks can attend in windows."""
        return len(self.blocks)

    @abstractmethod
    def positions(self, grid: tuple[int, int]) -> Float[Tensor, "T C"]:
        """The position embedding of each token on a grid."""

    def table(self, grid: tuple[int, int], *, whole: tuple[int, int] | None = None) -> Table | None:
        """The rotary embedding of each token on a grid, the top left of a `whole` one where that is given; or None."""
        return None

    @abstractmethod
    def embed(self, images: Float[Tensor, "B 3 H W"], positions: Float[Tensor, "*B T C"]) -> Float[Tensor, "B T C"]:
        """Images to the tokens that enter the first of the blocks."""

    def query_token(self, tokens: Float[Tensor, "B T C"]) -> Float[Tensor, "B 1 C"]:
        """The token that gathers the image: in the last block its answer is the image embedding."""
        return tokens[:, :1]

    def heads(self, block: Any) -> int:
        """How many attention heads a block has."""
        return block.attn.num_heads

    @abstractmethod
    def project_in(self, block: Any, tokens: Float[Tensor, "B T C"], part: str) -> tuple[Tensor, ...]:
        """The block's first norm and its projections: one (B, T, C) tensor a letter of part: q, k, v, kv or qkv."""

    @abstractmethod
    def project_out(self, block: Any, mixed: Float[Tensor, "B T C"]) -> Float[Tensor, "B T X"]:
        """What attention mixed, brought to what is added to the tokens."""

    def add(self, block: Any, tokens: Float[Tensor, "B T C"], update: Float[Tensor, "B T X"]) -> Float[Tensor, "B T X"]:
        """The residual around attention; a layer that pools has none."""
        return tokens + update

    @abstractmethod
    def add_mlp(self, block: Any, tokens: Float[Tensor, "B T X"]) -> Float[Tensor, "B T X"]:
        """The MLP and the residual around it; a layer without MLP gives the tokens back."""

    @abstractmethod
    def finish(self, tokens: Float[Tensor, "B T X"]) -> Float[Tensor, "B T D"]:
        """Final norm and projection."""

    @abstractmethod
    def unused(self, *, part: str, mlp: bool) -> tuple[list[nn.Parameter], list[tuple[nn.Parameter, slice]]]:
        """Parameters of the last block that are not used when only `part` of the projections is, with or without MLP;
        and the matrices of which only some rows are used, with those rows."""


def split_rows(width: int, part: str, *, letters: str = "qkv") -> slice:
    """The rows of a fused projection that make some of its letters."""
    start = letters.index(part)
    return slice(start * width, (start + len(part)) * width)


def parameters_of(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """The parameters of several modules, in order."""
    return [parameter for module in modules for parameter in module.parameters()]
