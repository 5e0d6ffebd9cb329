"""Preserve the image embedding: a term beside CLIPSelf's (Sec. 3.2) that the paper does not have.

CLIPSelf trains the blocks for the dense embedding alone, and the image embedding, which shares them, drifts. The
teacher embeds crops in every step anyway: here the student embeds a few of the same crops as images, and is drawn to
the same embeddings.

    crops --teacher.encode_image--> (K, D) --+
      +-----student.encode_image--> (K, D) --+--> 1 - mean cosine

What the dense embedding does not use is not trained: queries and keys of the last block stay the teacher's.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foveate.clip.dense import last_block_use
from foveate.clip.model import Clip
from foveate.clip.names import Head
from foveate.clip.precision import using

Rows = dict[str, list[slice]]
"""Which rows of a tower's fused tensors are trained, by the tensors' names."""


@dataclass(frozen=True)
class CropKeeping:
    """The settings of the term."""

    weight: float
    max_crops: int = 4  # per image


def keep_loss(
    student: Clip,
    crops: Float[Tensor, "R 3 S S"],
    targets: Float[Tensor, "R D"],
    *,
    counts: list[int],
    max_crops: int,
    rows: Rows,
) -> Float[Tensor, ""]:
    """1 - mean over all crops of cos(student's image embedding, teacher's), from the first few crops of each image.

    An image is weighted by all its crops, whichever are embedded, so that the mean over several batches, each weighted
    by its crops, is that over their union.

    Args:
        crops: normalised, at the native size, image by image in random order.
        targets: the teacher's embeddings of them, L2-normalised.
        counts: crops of each image, at least 1; R in all.
        max_crops: crops per image that the student embeds.
        rows: of `trained_rows`; other rows get no gradient.

    Returns:
        The loss, in [0, 2].
    """
    chosen = torch.cat([part[:max_crops] for part in crops.split(counts)])  # (K, 3, S, S)
    expected = torch.cat([part[:max_crops] for part in targets.split(counts)])  # (K, D)
    pairs = [(count, min(count, max_crops)) for count in counts]
    weights = [count / (len(crops) * embedded) for count, embedded in pairs for _ in range(embedded)]  # K
    with using(student.visual, _trained_in_rows(student.visual, rows)):
        embeddings = student.encode_image(chosen)  # (K, D)
    cosines = (embeddings * expected).sum(dim=1)  # (K,)
    return 1 - cosines @ cosines.new_tensor(weights)


def trained_rows(visual: nn.Module, *, head: Head) -> Rows:
    """The fused matrices of the last block, and their biases, of which the dense embedding (`head`) uses some rows."""
    names, rows = {id(parameter): name for name, parameter in visual.named_parameters()}, Rows()
    for parameter, used in last_block_use(visual, head=head)[1]:
        weight = names[id(parameter)]
        for name in {weight, weight.removesuffix("weight") + "bias"} & {*names.values()}:
            rows.setdefault(name, []).append(used)
    return rows


def _trained_in_rows(visual: nn.Module, rows: Rows) -> dict[str, Tensor]:
    """The tower's tensors as they are now (low-precision copies, for example), with gradients in some rows only."""
    tensors = {}
    for name, slices in rows.items():
        path, _, leaf = name.rpartition(".")
        tensor = visual.get_submodule(path)._parameters[leaf]
        assert tensor is not None, f"{name} does not exist"
        is_used = torch.zeros(tensor.shape[0], *[1] * (tensor.ndim - 1), dtype=torch.bool, device=tensor.device)
        for used in slices:
            is_used[used] = True
        tensors[name] = torch.where(is_used, tensor, tensor.detach())
    return tensors
