"""Keep the image embedding what it was: the term beside CLIPSelf's (Sec. 3.2) that the paper does not have.

CLIPSelf trains the blocks for the dense embedding alone, and the image embedding, which shares them, drifts. The
teacher embeds crops in every step anyway: here the student embeds a few of the same crops as images, and should arrive
at the same place.

    crops --teacher.encode_image--> (K, D) --+
      +-----student.encode_image--> (K, D) --+--> 1 - mean cosine

Deliberately absent: images of its own (the targets cost nothing), and training of what the dense embedding does
without: queries and keys of the last block stay the teacher's.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foveate.clip.dense import last_block_use
from foveate.clip.model import Clip
from foveate.clip.names import Head
from foveate.clip.precision import using

Rows = dict[str, list[slice]]
"""By the names of a tower's fused tensors: which of their rows are trained."""


def keep_loss(
    student: Clip,
    crops: Float[Tensor, "R 3 S S"],
    targets: Float[Tensor, "R D"],
    *,
    counts: list[int],
    most: int,
    rows: Rows,
) -> Float[Tensor, ""]:
    """1 - mean over all crops of cos(student's image embedding, teacher's), from the first few crops of each image.

    An image counts by all its crops, whichever are embedded, so that the mean over several batches, each weighed by
    its crops, is that over their union.

    Args:
        student: learns.
        crops: normalised, at the native size, image by image in random order.
        targets: the teacher's embeddings of them, of length 1.
        counts: crops of each image, at least 1; R in all.
        most: crops of an image that the student embeds.
        rows: of `trained_rows`; the others get no gradient.

    Returns:
        The loss, in [0, 2].
    """
    kept = [min(count, most) for count in counts]
    shares = [count / (len(crops) * some) for count, some in zip(counts, kept, strict=True) for _ in range(some)]
    chosen = torch.cat([part[:most] for part in crops.split(counts)])  # (K, 3, S, S)
    wanted = torch.cat([part[:most] for part in targets.split(counts)])  # (K, D)
    with using(student.visual, _alive(student.visual, rows)):
        found = student.encode_image(chosen)  # (K, D)
    cosines = (found * wanted).sum(dim=1)  # (K,)
    return 1 - cosines @ cosines.new_tensor(shares)


def trained_rows(visual: nn.Module, *, head: Head) -> Rows:
    """The fused matrices of the last block, and their biases, of which the dense embedding uses some rows only.

    Args:
        visual: an image tower `tower_sizes` accepts.
        head: the last block of the dense forward.
    """
    names, rows = {id(parameter): name for name, parameter in visual.named_parameters()}, Rows()
    for parameter, used in last_block_use(visual, head=head)[1]:
        weight = names[id(parameter)]
        for name in {weight, weight.removesuffix("weight") + "bias"} & {*names.values()}:
            rows.setdefault(name, []).append(used)
    return rows


def _alive(visual: nn.Module, rows: Rows) -> dict[str, Tensor]:
    """The tensors in these places now (copies in low precision, say), through which only some rows get gradients."""
    found = {}
    for name, used in rows.items():
        path, _, leaf = name.rpartition(".")
        tensor = visual.get_submodule(path)._parameters[leaf]
        assert tensor is not None, f"{name} is not there"
        is_used = torch.zeros(tensor.shape[0], *[1] * (tensor.ndim - 1), dtype=torch.bool, device=tensor.device)
        for one in used:
            is_used[one] = True
        found[name] = torch.where(is_used, tensor, tensor.detach())
    return found
