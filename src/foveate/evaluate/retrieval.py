"""Retrieval by single locations: does a location of the dense map retrieve its image, and its region (Tab. A1)?

Each location of the student's map is a query (a) among the image embeddings of its image and of 49 others, and (b)
among the embeddings of its region's crop and of 49 other regions' crops. A map that describes the whole image
everywhere has high recall in (a) and low recall in (b). Locations with only padding are excluded (in the published code
they are not). Images are read twice: the galleries need all embeddings, and all dense maps would not fit in memory.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from foveate.clip.model import Clip
from foveate.clip.names import Head
from foveate.data.batches import LOADING, Batches, Loading
from foveate.data.records import Dataset
from foveate.errors import InputError
from foveate.evaluate.agreement import check_comparable, encode_samples
from foveate.evaluate.crops import CropPacker
from foveate.evaluate.gallery import draw_others
from foveate.evaluate.score import ranks_of, recall
from foveate.evaluate.segments import counting_segments, crop_boxes, image_locations, to_device
from foveate.ops.pool import shrink_and_pad_masks
from foveate.ops.resample import check_side


@torch.inference_mode()
def evaluate_retrieval(
    student: Clip,
    reference: Clip,
    dataset: Dataset,
    *,
    size: int,
    head: Head = "value",
    regions: bool = True,
    crowd: bool = True,
    gallery: int = 50,
    seed: int = 0,
    loading: Loading = LOADING,
) -> dict:
    """Let each location of the student's dense map retrieve its image and its region's crop (Tab. A1).

    An image's embedding is the reference's of the whole image in a padded square, a region's that of its crop as in
    `evaluate_regions`. A location belongs to every region whose mask, shrunk to the grid, holds it.

    Args:
        reference: its image embeddings are the galleries; may be the same model.
        dataset: images; with panoptic annotations for `regions`.
        size: side of the student's padded square input [pixels].
        regions: also (b), of the segments that count in `evaluate_regions`.
        gallery: images, and regions, to rank, including its own; all of them if there are fewer.
        seed: together with the image's id, and the region's index in it, it determines the galleries.

    Returns:
        {"image": S, "region": S or None, "gallery": images ranked, "region_gallery": regions ranked, "regions",
        "images", "size", "head", "seed", "bad": [{"id", "reason"}]}, where S is of `recall`; the queries of regions are
        pairs of a region and a location in it.

    Raises:
        InputError: models of different embedding size, a size the tower cannot take, gallery below 2, `regions` without
            annotations, or no readable image.
    """
    check_comparable(student, reference)
    if gallery < 2:
        raise InputError(f"--gallery: need at least 2 to rank; got {gallery}.")
    if regions and not dataset.categories:
        raise InputError(
            f"{dataset.name}: need annotated segments to retrieve regions; got images without annotations. "
            "Use --no-crops to retrieve only images."
        )
    check_side(size, patch=student.patch_size, flag="--size")
    student.eval()
    reference.eval()
    chosen = counting_segments(dataset, crowd=crowd) if regions else dataset
    # first pass: the embeddings to search; second pass: the dense maps that search them
    batches, second_pass = (Batches(chosen, loading, masks=regions) for _ in range(2))
    images, crops = _embed_images(reference, batches, regions=regions, crop_batch=loading.crop_batch)
    galleries = Galleries(images, crops, gallery=gallery, seed=seed)
    by_image, by_region = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, dtype=torch.int64)]
    for samples in second_pass:
        for sample, dense in zip(samples, encode_samples(student, samples, size=size, head=head), strict=True):
            height, width = sample.image.shape[1:]
            inside = image_locations(height=height, width=width, size=size, patch=student.patch_size)
            by_image.append(image_ranks(dense, inside, galleries.images_for(sample.id)).cpu())
            if regions:
                _, segments = to_device(sample, dense.device)
                masks = shrink_and_pad_masks(segments.masks, side=size // student.patch_size)
                by_region.append(region_ranks(dense, masks, galleries.regions_for(sample.id)).cpu())
    return {
        "image": recall(torch.cat(by_image), among=min(gallery, batches.count)),
        "region": recall(torch.cat(by_region), among=min(gallery, len(galleries.regions))) if regions else None,
        "gallery": min(gallery, batches.count),
        "region_gallery": min(gallery, len(galleries.regions)) if regions else None,
        "regions": len(galleries.regions) if regions else None,
        "images": batches.count,
        "size": size,
        "head": head,
        "pad": student.pad,
        "seed": seed,
        "bad": batches.bad_listed(),
    }


# -------------------------------------------------------------------------------------------------------- the galleries


class Galleries:
    """The embeddings to search, and which of them each query ranks."""

    def __init__(
        self,
        images: dict[str, Float[Tensor, " D"]],
        regions: dict[tuple[str, int], Float[Tensor, " D"]],
        *,
        gallery: int,
        seed: int,
    ) -> None:
        """Sort images by id, and regions by (image's id, index in it), to be independent of the order of reading."""
        self.gallery, self.seed = gallery, seed
        self.names, self.keys = sorted(images), sorted(regions)
        self.images = torch.stack([images[name] for name in self.names])  # (M, D)
        self.regions = torch.stack([regions[key] for key in self.keys]) if regions else self.images[:0]  # (R, D)
        self.labels = [f"{image}/{number}" for image, number in self.keys]
        self.index = {name: index for index, name in enumerate(self.names)}
        self.indices: dict[str, list[int]] = {}  # of an image's regions among all
        for index, (image, _) in enumerate(self.keys):
            self.indices.setdefault(image, []).append(index)

    def images_for(self, image: str) -> Float[Tensor, "G D"]:
        """The gallery of an image, its own embedding first."""
        index = self.index[image]
        return self.images[[index, *draw_others(self.names, index, count=self.gallery - 1, seed=self.seed)]]

    def regions_for(self, image: str) -> Float[Tensor, "N G D"]:
        """The galleries of an image's regions, one each, its own embedding first."""
        rows = [
            [index, *draw_others(self.labels, index, count=self.gallery - 1, seed=self.seed, purpose="regions")]
            for index in self.indices.get(image, [])
        ]
        width = min(self.gallery, len(self.keys))
        return self.regions[torch.tensor(rows, dtype=torch.int64).reshape(len(rows), width)]


def _embed_images(
    reference: Clip, batches: Batches, *, regions: bool, crop_batch: int
) -> tuple[dict[str, Float[Tensor, " D"]], dict[tuple[str, int], Float[Tensor, " D"]]]:
    """Embed every image as a whole, by its id, and the crops of its regions, by (image's id, index in it)."""
    device = next(reference.parameters()).device
    whole, crops = CropPacker(reference, batch=crop_batch), CropPacker(reference, batch=crop_batch)
    names: list[str] = []
    keys: list[tuple[str, int]] = []
    for sample in batches.samples():
        image, (height, width) = sample.image.to(device), sample.image.shape[1:]
        names.append(sample.id)
        whole.add(image, torch.tensor([[0.0, 0.0, width, height]]))
        if regions:
            assert sample.segments is not None, f"image {sample.id} came without segments"
            boxes = crop_boxes(sample.segments, height=height, width=width)  # (N, 4)
            crops.add(image, boxes)
            keys += [(sample.id, number) for number in range(len(boxes))]
    return dict(zip(names, whole.finish(), strict=True)), dict(zip(keys, crops.finish(), strict=True))


# ------------------------------------------------------------------------------------------------------------ the ranks


def image_ranks(
    dense: Float[Tensor, "D h w"], inside: Bool[Tensor, "h w"], candidates: Float[Tensor, "G D"]
) -> Int64[Tensor, " L"]:
    """Rank each location's own image among the candidates; ties count against it.

    Args:
        dense: of one image, L2-normalised per location.
        inside: the locations that are queries.
        candidates: image embeddings, the image's own first.

    Returns:
        For each location, row by row, how many candidates score at least as high.
    """
    queries = dense.flatten(1).T[inside.flatten().to(dense.device)]  # (L, D)
    scores = queries @ candidates.to(queries).T  # (L, G)
    return ranks_of(scores, torch.zeros(len(scores), dtype=torch.int64, device=scores.device))


def region_ranks(
    dense: Float[Tensor, "D h w"], masks: Bool[Tensor, "N h w"], candidates: Float[Tensor, "N G D"]
) -> Int64[Tensor, " L"]:
    """Rank, for each location of each region, the region's own crop among the region's candidates.

    Args:
        candidates: crop embeddings, one gallery per region, its own first.

    Returns:
        For each location, region by region, how many candidates score at least as high.
    """
    tokens, ranks = dense.flatten(1).T, [dense.new_zeros(0, dtype=torch.int64)]  # (h * w, D)
    for mask, gallery in zip(masks.flatten(1).to(dense.device), candidates.to(dense), strict=True):
        scores = tokens[mask] @ gallery.T  # (l, G)
        ranks.append(ranks_of(scores, torch.zeros(len(scores), dtype=torch.int64, device=scores.device)))
    return torch.cat(ranks)
