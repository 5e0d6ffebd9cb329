"""Agreement of the dense map with crops, without any label: what CLIPSelf's loss measures (Sec. 3.2; compare Tab. A1).

For grid patches of any images: the mean cosine between a patch pooled from the student's dense map and the reference
model's embedding of its crop, and R@1 of its crop among those of its image and of 49 others. A constant map can have a
high cosine, but not a high recall. The retrieval by single locations of the paper's Tab. A1 is in `retrieval.py`.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from foveate.clip.model import Clip
from foveate.clip.names import Head
from foveate.data.batches import LOADING, Batches, Loading
from foveate.data.records import Dataset
from foveate.errors import InputError
from foveate.evaluate.crops import CropPacker
from foveate.evaluate.gallery import draw_others, named_stream
from foveate.ops.boxes import boxes_on_input
from foveate.ops.grid import sample_grid
from foveate.ops.pool import pool_boxes
from foveate.ops.resample import check_side, square_inputs
from foveate.types import Sample


@torch.inference_mode()
def evaluate_agreement(
    student: Clip,
    reference: Clip,
    dataset: Dataset,
    *,
    size: int,
    head: Head = "value",
    grid: int = 6,
    rule: str = "published",
    keep: int = 20,
    gallery: int = 50,
    seed: int = 0,
    loading: Loading = LOADING,
) -> dict:
    """Compare each grid patch of the student's dense map with the reference's embedding of its crop (Sec. 3.2).

    Args:
        reference: may be the same model.
        dataset: images; annotations are not used.
        size: side of the student's padded square input [pixels].
        grid: maximum rows and columns of an image's grid.
        rule: which grids, see `foveate.ops.grid.grid_pairs`.
        keep: maximum patches per image.
        gallery: images whose crops a patch is ranked among, including its own; all of them if there are fewer.
        seed: together with the image's id it determines the grid and the gallery.

    Returns:
        {"cosine": mean over regions, "recall": R@1 in percent over regions, "regions", "images", "gallery": images
        in a gallery, "crops": mean number of crops in a gallery, "size", "head", "seed", "bad": [{"id", "reason"}]}.

    Raises:
        InputError: models of different embedding size, a size the tower cannot take, gallery below 1, or no readable
            image.
    """
    check_comparable(student, reference)
    if gallery < 1:
        raise InputError(f"--gallery: need at least 1 image; got {gallery}.")
    check_side(size, patch=student.patch_size, flag="--size")
    student.eval()
    reference.eval()
    packer = CropPacker(reference, batch=loading.crop_batch)
    regions: list[Tensor] = []
    counts: dict[str, int] = {}  # id of an image -> its regions, in the order read
    device = next(student.parameters()).device
    batches = Batches(dataset, loading)
    for samples in batches:
        scaled = []  # the patches on the student's input
        for sample in samples:
            patches = patches_of(sample, grid=grid, rule=rule, keep=keep, seed=seed)
            counts[sample.id] = len(patches)
            packer.add(sample.image.to(device), patches)
            height, width = sample.image.shape[1:]
            scaled.append(boxes_on_input(patches, height=height, width=width, size=size))
        dense = encode_samples(student, samples, size=size, head=head)  # (B, D, h, w)
        regions.append(pool_boxes(dense, scaled, stride=student.patch_size))
    dense, crops = torch.cat(regions), packer.finish()  # (R, D) each
    recall, choices = recall_at_1(dense, crops, counts, gallery=gallery, seed=seed)
    return {
        "cosine": (dense * crops).sum(dim=1).double().mean().item(),
        "recall": recall,
        "regions": len(crops),
        "images": batches.count,
        "gallery": min(gallery, batches.count),
        "crops": choices,
        "size": size,
        "head": head,
        "pad": student.pad,
        "seed": seed,
        "bad": batches.bad_listed(),
    }


def check_comparable(student: Clip, reference: Clip) -> None:
    """Refuse two models whose embeddings differ in size."""
    if student.embed_dim != reference.embed_dim:
        raise InputError(
            f"reference: need the student's embedding size {student.embed_dim}; got {reference.embed_dim}. "
            "Compare a model with the CLIP it was distilled from."
        )


def patches_of(sample: Sample, *, grid: int, rule: str, keep: int, seed: int) -> Float[Tensor, "N 4"]:
    """Draw an image's grid patches; they depend only on the seed and the image's id."""
    generator = named_stream(seed, "patches", sample.id)
    height, width = sample.image.shape[1:]
    return sample_grid(height=height, width=width, limit=grid, rule=rule, keep=keep, generator=generator)


def encode_samples(clip: Clip, samples: list[Sample], *, size: int, head: Head) -> Float[Tensor, "B D h w"]:
    """Dense feature maps of a batch, each image padded to a square of `size` pixels."""
    device = next(clip.parameters()).device
    images = [sample.image.to(device) for sample in samples]
    return clip.encode_dense(square_inputs(images, size=size, mean=clip.mean, std=clip.std, pad=clip.pad), head=head)


def recall_at_1(
    dense: Float[Tensor, "R D"], crops: Float[Tensor, "R D"], counts: dict[str, int], *, gallery: int, seed: int
) -> tuple[float, float]:
    """How often a region is closer to its crop than to every other crop of its gallery.

    The gallery of an image's regions holds the crops of that image and of `gallery` - 1 others, see `draw_others`. A
    tie counts as a miss.

    Args:
        dense: region embeddings, image by image, L2-normalised.
        counts: id of an image -> number of its regions, in that order.

    Returns:
        R@1 in percent, and the mean number of crops a region was ranked among.
    """
    first, rows = 0, {}
    for image, count in counts.items():
        rows[image] = torch.arange(first, first + count, device=dense.device)  # (N,)
        first += count
    names = sorted(counts)
    hits, ranked = dense.new_zeros((), dtype=torch.int64), 0
    for index, image in enumerate(names):
        regions = rows[image]  # (N,)
        distractors = draw_others(names, index, count=gallery - 1, seed=seed)
        candidates = torch.cat([regions, *(rows[names[number]] for number in distractors)])  # (M,), own crops first
        scores = dense[regions] @ crops[candidates].T  # (N, M)
        best = scores.diagonal()[:, None]  # (N, 1), each region with its own crop
        hits += ((scores >= best).sum(dim=1) == 1).sum()
        ranked += len(regions) * len(candidates)
    return 100 * hits.item() / first, ranked / first
