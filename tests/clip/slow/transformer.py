"""Whole blocks, window attention, every dense head and the region head, for any family of pre-norm transformers."""

from typing import Protocol

import torch
from torch import Tensor

from slow.common import attend, nearness

Place = tuple[int, int] | None  # row and column of a patch; None for the class token
Windows = tuple[int, tuple[int, ...]]  # side of a window [tokens], and the blocks that attend in windows


class Block(Protocol):
    """What a family says about one of its blocks."""

    heads: int

    def norm(self, x: Tensor) -> Tensor:
        """n: the LayerNorm before attention."""
        ...

    def project(self, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v of a normalised token, not rotated."""
        ...

    def turn(self, x: Tensor, place: Place, grid: tuple[int, int]) -> Tensor:
        """Rotate a query or key to its place."""
        ...

    def out(self, x: Tensor) -> Tensor:
        """o: all that follows attention, up to the residual."""
        ...

    def rest(self, x: Tensor) -> Tensor:
        """m: x + MLP(norm2(x))."""
        ...


class Asked:
    """Queries, keys and values of the tokens that enter a block, turned to their places."""

    def __init__(self, block: Block, tokens: list[Tensor], places: list[Place], grid: tuple[int, int]) -> None:
        projected = [block.project(block.norm(token)) for token in tokens]
        self.q = [block.turn(q, place, grid) for (q, _, _), place in zip(projected, places, strict=True)]
        self.k = [block.turn(k, place, grid) for (_, k, _), place in zip(projected, places, strict=True)]
        self.v = [v for _, _, v in projected]


def whole(
    block: Block, tokens: list[Tensor], places: list[Place], grid: tuple[int, int], window: int | None
) -> list[Tensor]:
    """One block as it was trained, or attending in windows with a copy of the class token in each."""
    outputs: list[list[Tensor]] = [[] for _ in tokens]
    for members, local, extent in groups(places, grid, window):
        asked = Asked(block, [tokens[i] for i in members], local, extent)
        for question, i in zip(asked.q, members, strict=True):
            heard = block.out(attend(question, asked.k, asked.v, block.heads, None))
            outputs[i].append(block.rest(tokens[i] + heard))
    # a patch is in one window; the class token has a copy in each, which are averaged after the whole block
    return [sum(copies) / len(copies) for copies in outputs]


def groups(
    places: list[Place], grid: tuple[int, int], window: int | None
) -> list[tuple[list[int], list[Place], tuple[int, int]]]:
    """Who sees whom: for each window its tokens, their places in it, and its extent."""
    if window is None:
        return [(list(range(len(places))), places, grid)]
    found = []
    for top in range(0, grid[0], window):
        for left in range(0, grid[1], window):
            members, local = [], []
            for i, place in enumerate(places):
                inside = place is None or (0 <= place[0] - top < window and 0 <= place[1] - left < window)
                if inside:
                    members.append(i)
                    local.append(None if place is None else (place[0] - top, place[1] - left))
            found.append((members, local, (window, window)))
    return found


class Tower:
    """An image's tokens before the first block (the class token, if any, first), the blocks, and f."""

    def __init__(self, tokens: list[Tensor], grid: tuple[int, int], blocks: list[Block], has_class: bool) -> None:
        self.grid, self.blocks, self.tokens = grid, blocks, tokens
        patches = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
        self.places: list[Place] = [None] * has_class + patches
        assert len(self.places) == len(tokens), f"{len(tokens)} tokens, {len(self.places)} places"
        self.seen: dict[Windows | None, list[list[Tensor]]] = {}

    def finish(self, x: Tensor) -> Tensor:
        """f: the final norm and what follows it."""
        raise NotImplementedError

    def run(self, windows: Windows | None = None) -> list[list[Tensor]]:
        """Tokens entering each block, and last those that leave the tower; kept for the next head."""
        if windows not in self.seen:
            states = [self.tokens]
            for number, block in enumerate(self.blocks):
                window = windows[0] if windows is not None and number in windows[1] else None
                states.append(whole(block, states[-1], self.places, self.grid, window))
            self.seen[windows] = states
        return self.seen[windows]

    def image(self) -> Tensor:
        """The class token after all blocks (D,)."""
        return self.finish(self.run()[-1][0])

    def dense(self, head: str, windows: Windows | None = None) -> Tensor:
        """Patches under one of the seven dense heads (D, h, w), not normalised. Windows end before the last block."""
        assert windows is None or len(self.blocks) - 1 not in windows[1], "heads are defined on a whole last block"
        *entering, final = self.run(windows)
        block, tokens = self.blocks[-1], entering[-1]
        asked = Asked(block, tokens, self.places, self.grid)
        found = []
        for i, place in enumerate(self.places):
            if place is None:
                continue
            x, v = tokens[i], asked.v

            def ask(vectors: list[Tensor], near: list[float] | None = None, i: int = i) -> Tensor:
                return attend(vectors[i], vectors, asked.v, block.heads, near)

            match head:
                case "value":
                    y = block.rest(x + block.out(v[i]))
                case "value_cls":
                    y = block.rest(tokens[0] + block.out(v[i]))
                case "value_only":
                    y = block.out(v[i])
                case "attention":
                    y = final[i]
                case "sclip":
                    y = block.rest(x + block.out(ask(asked.q) + ask(asked.k)))
                case "clearclip":
                    y = block.out(ask(asked.q))
                case "naclip":
                    y = block.out(ask(asked.k, nearness(place, self.places)))
                case "values3":
                    last = list(zip(self.blocks, entering, strict=True))[-3:]
                    y = sum(one.out(one.project(one.norm(state[i]))[2]) for one, state in last)
                case _:
                    raise ValueError(head)
            found.append(self.finish(y))
        return torch.stack(found, dim=1).reshape(-1, *self.grid)

    def masked(self, cells: list[tuple[int, int]]) -> Tensor:
        """A copy of the class token that sees some patches and the class token, from the first block on (D,)."""
        copy = self.tokens[0]
        seen = [i for i, place in enumerate(self.places) if place is None or place in cells]
        for block, tokens in zip(self.blocks, self.run()[:-1], strict=True):
            asked = Asked(block, [tokens[i] for i in seen], [self.places[i] for i in seen], self.grid)
            question = block.project(block.norm(copy))[0]
            copy = block.rest(copy + block.out(attend(question, asked.k, asked.v, block.heads, None)))
        return self.finish(copy)
