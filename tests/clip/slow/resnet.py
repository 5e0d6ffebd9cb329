"""open_clip's ModifiedResNet: convolutions tap by tap, then the attention pool token by token."""

import torch
from torch import Tensor

from slow.common import attend, nearness, positions


def convolve(x: Tensor, kernel: Tensor, *, stride: int = 1) -> Tensor:
    """(C0, H, W) -> (C, H / stride, W / stride) with zeros around: the sum over taps of a matrix times a shift."""
    size = kernel.shape[-1]
    padded = torch.zeros(x.shape[0], x.shape[1] + size - 1, x.shape[2] + size - 1, dtype=x.dtype)
    padded[:, size // 2 : size // 2 + x.shape[1], size // 2 : size // 2 + x.shape[2]] = x
    out = 0
    for i in range(size):
        for j in range(size):
            shifted = padded[:, i : i + x.shape[1] : stride, j : j + x.shape[2] : stride]  # (C0, H', W')
            out = out + (kernel[:, :, i, j] @ shifted.reshape(len(x), -1)).reshape(-1, *shifted.shape[1:])
    return out


def shrink(x: Tensor, factor: int) -> Tensor:
    """Mean over squares of pixels."""
    return sum(x[:, i::factor, j::factor] for i in range(factor) for j in range(factor)) / factor**2


def batch_norm(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    scale = p[f"{name}.weight"] / (p[f"{name}.running_var"] + 1e-5) ** 0.5
    shift = p[f"{name}.bias"] - p[f"{name}.running_mean"] * scale
    return x * scale[:, None, None] + shift[:, None, None]


def relu(x: Tensor) -> Tensor:
    return x * (x > 0)


def bottleneck(x: Tensor, p: dict[str, Tensor], name: str, stride: int) -> Tensor:
    out = relu(batch_norm(convolve(x, p[f"{name}.conv1.weight"]), p, f"{name}.bn1"))
    out = relu(batch_norm(convolve(out, p[f"{name}.conv2.weight"]), p, f"{name}.bn2"))
    out = batch_norm(convolve(shrink(out, stride), p[f"{name}.conv3.weight"]), p, f"{name}.bn3")
    if f"{name}.downsample.0.weight" in p:
        x = batch_norm(convolve(shrink(x, stride), p[f"{name}.downsample.0.weight"]), p, f"{name}.downsample.1")
    return relu(out + x)


def trunk(p: dict[str, Tensor], image: Tensor) -> Tensor:
    """(3, H, W) -> (C, H / 32, W / 32)."""
    x = image
    for number in (1, 2, 3):
        x = convolve(x, p[f"conv{number}.weight"], stride=2 if number == 1 else 1)
        x = relu(batch_norm(x, p, f"bn{number}"))
    x = shrink(x, 2)
    for layer in (1, 2, 3, 4):
        for block in range(len({key.split(".")[1] for key in p if key.startswith(f"layer{layer}.")})):
            x = bottleneck(x, p, f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1)
    return x


class Resnet:
    """The tokens of the attention pool, the mean token first."""

    def __init__(self, state: dict[str, Tensor], image: Tensor, *, heads: int) -> None:
        p = {key.removeprefix("attnpool."): value for key, value in state.items() if key.startswith("attnpool.")}
        self.p, self.heads = p, heads
        last = trunk(state, image)  # (C, h, w)
        self.grid = (last.shape[1], last.shape[2])
        self.places = [None, *((row, column) for row in range(self.grid[0]) for column in range(self.grid[1]))]
        locations = [last[:, row, column] for row, column in self.places[1:]]
        table = p["positional_embedding"]
        tokens = [sum(locations) / len(locations) + table[0]]
        tokens += [x + place for x, place in zip(locations, positions(table[1:], *self.grid), strict=True)]
        self.q, self.k, self.v = (
            [p[f"{name}_proj.weight"] @ token + p[f"{name}_proj.bias"] for token in tokens] for name in "qkv"
        )

    def close(self, x: Tensor) -> Tensor:
        return self.p["c_proj.weight"] @ x + self.p["c_proj.bias"]

    def image(self) -> Tensor:
        return self.close(attend(self.q[0], self.k, self.v, self.heads, None))

    def dense(self, head: str, windows: None = None) -> Tensor:
        found = []
        for i, place in enumerate(self.places):
            if place is None:
                continue
            by_q = attend(self.q[i], self.q, self.v, self.heads, None)
            match head:
                case "value" | "value_only":
                    y = self.v[i]
                case "attention":
                    y = attend(self.q[i], self.k, self.v, self.heads, None)
                case "sclip":
                    y = by_q + attend(self.k[i], self.k, self.v, self.heads, None)
                case "clearclip":
                    y = by_q
                case "naclip":
                    y = attend(self.k[i], self.k, self.v, self.heads, nearness(place, self.places))
                case _:
                    raise ValueError(head)
            found.append(self.close(y))
        return torch.stack(found, dim=1).reshape(-1, *self.grid)

    def masked(self, cells: list[tuple[int, int]]) -> Tensor:
        """The mean token asks itself and some locations."""
        seen = [i for i, place in enumerate(self.places) if place is None or place in cells]
        keys, values = [self.k[i] for i in seen], [self.v[i] for i in seen]
        return self.close(attend(self.q[0], keys, values, self.heads, None))
