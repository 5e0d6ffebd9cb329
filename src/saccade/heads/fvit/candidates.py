"""What one pass of the detector leaves of a picture (replaced when merged)."""

from dataclasses import dataclass

from jaxtyping import Float, Float16, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Candidates:
    """Proposals of one picture before any vocabulary."""

    id: str
    height: int
    width: int
    proposals: Float[Tensor, "N 4"]
    objectness: Float[Tensor, " N"]
    boxes: Float[Tensor, "N 4"]
    detector: Float16[Tensor, "N D"]
    clip: Float16[Tensor, "N D"]
    masks: UInt8[Tensor, "N 28 28"] | None
