"""Retrieval by single locations: does a place of the dense map know its picture, and its region? (Tab. A1)

Each location of the student's map chooses (a) among the image embeddings of its picture and of 49 others, and (b) among
the embeddings of its region's crop and of 49 other regions' crops. A map that speaks of the whole picture everywhere
does well in (a) and badly in (b). Locations that hold nothing of the picture do not ask (the published code lets
them). Pictures are read twice: the galleries need all embeddings, and all dense maps would not fit in memory.
Deliberately absent: pooled regions against crops, which need no annotation (`agreement.py`).
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from foveate.clip.model import Clip
from foveate.clip.names import Head
from foveate.data.records import Dataset
from foveate.errors import InputError
from foveate.evaluate.feed import CropPacker, Feed
from foveate.evaluate.gallery import draw_others
from foveate.evaluate.regions import counting_segments, crop_boxes, picture_locations, to_device
from foveate.evaluate.score import ranks_of, recall
from foveate.ops.pool import shrink_and_pad_masks
from foveate.ops.resample import check_side, square_inputs
from foveate.types import Sample


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
    batch: int = 8,
    crop_batch: int = 128,
    limit: int | None = None,
    strict: bool = False,
    workers: int = 0,
    progress: bool = False,
) -> dict:
    """Let each location of the student's dense map retrieve its picture and its region's crop (Tab. A1).

    A picture's embedding is the reference's of the whole picture in a padded square, a region's that of its crop as in
    `evaluate_regions`. A location belongs to every region whose mask, shrunk to the grid, holds it.

    Args:
        student: whose dense map is measured.
        reference: whose image embeddings are the galleries; may be the same model.
        dataset: pictures; with panoptic annotations where regions are wanted.
        size: side of the student's padded square input [pixels].
        head: how the student's last block makes dense tokens.
        regions: also (b), of the segments that count in `evaluate_regions`.
        crowd: keep segments marked as crowds.
        gallery: pictures, and regions, to choose among, its own included; all of them where there are fewer.
        seed: with the picture's id, or the region's place in it, it decides whom else.
        batch: pictures a dense batch.
        crop_batch: crops an image batch.
        limit: only the first so many pictures.
        strict: raise on the first bad picture instead of listing it.
        workers: processes that decode.
        progress: show a bar on stderr.

    Returns:
        {"image": S, "region": S or None, "gallery": pictures chosen among, "region_gallery": regions chosen among,
        "regions": how many there are, "pictures", "size", "head", "seed", "bad": [{"id", "reason"}]}, where S = {"r1",
        "r5", "r10": percent of "count", None where as many may be named as there are; "count": locations that ask, for
        regions pairs of a region and a location in it}.

    Raises:
        InputError: models of different embedding size, a size the tower cannot take, gallery below 2, no annotations
            where regions are wanted, or no picture that can be read.
    """
    _check(student, reference, dataset, size=size, regions=regions, gallery=gallery)
    student.eval()
    reference.eval()
    chosen = counting_segments(dataset, crowd=crowd) if regions else dataset
    feed, again = (
        Feed(chosen, masks=regions, batch=batch, limit=limit, workers=workers, strict=strict, progress=progress)
        for _ in range(2)
    )
    known = _embed_galleries(reference, feed, regions=regions, crop_batch=crop_batch, gallery=gallery, seed=seed)
    by_picture, by_region = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, dtype=torch.int64)]
    for samples in again:
        for sample, dense in zip(samples, _dense_maps(student, samples, size=size, head=head), strict=True):
            height, width = sample.image.shape[1:]
            inside = picture_locations(height=height, width=width, size=size, patch=student.patch_size)
            by_picture.append(picture_ranks(dense, inside, known.pictures_for(sample.id)).cpu())
            if regions:
                _, segments = to_device(sample, dense.device)
                masks = shrink_and_pad_masks(segments.masks, side=size // student.patch_size)
                by_region.append(region_ranks(dense, masks, known.regions_for(sample.id)).cpu())
    return {
        "image": recall(torch.cat(by_picture), among=min(gallery, feed.pictures)),
        "region": recall(torch.cat(by_region), among=min(gallery, len(known.regions))) if regions else None,
        "gallery": min(gallery, feed.pictures),
        "region_gallery": min(gallery, len(known.regions)) if regions else None,
        "regions": len(known.regions) if regions else None,
        "pictures": feed.pictures,
        "size": size,
        "head": head,
        "pad": student.pad,
        "seed": seed,
        "bad": feed.bad_listed(),
    }


def _check(student: Clip, reference: Clip, dataset: Dataset, *, size: int, regions: bool, gallery: int) -> None:
    """Refuse what cannot work before any picture is read."""
    if student.embed_dim != reference.embed_dim:
        raise InputError(
            f"reference: need the student's embedding size {student.embed_dim}; got {reference.embed_dim}. "
            "Compare a model with the CLIP it was distilled from."
        )
    if gallery < 2:
        raise InputError(f"--gallery: need at least 2 to choose among; got {gallery}.")
    if regions and not dataset.categories:
        raise InputError(
            f"{dataset.name}: need annotated segments to retrieve regions; got pictures without annotations. "
            "Pictures alone are retrieved with --no-regions."
        )
    check_side(size, patch=student.patch_size, flag="--size")


# -------------------------------------------------------------------------------------------------------- the galleries


class Galleries:
    """The embeddings to choose among, and who draws which of them."""

    def __init__(
        self,
        pictures: dict[str, Float[Tensor, " D"]],
        regions: dict[tuple[str, int], Float[Tensor, " D"]],
        *,
        gallery: int,
        seed: int,
    ) -> None:
        """Sort all by name, so that the order of reading does not matter.

        Args:
            pictures: embeddings by id.
            regions: embeddings by the picture's id and the region's place in it.
            gallery: how many to choose among, at most.
            seed: of the choice.
        """
        self.gallery, self.seed = gallery, seed
        self.names, self.keys = sorted(pictures), sorted(regions)
        self.pictures = torch.stack([pictures[name] for name in self.names])  # (M, D)
        like = self.pictures.new_empty(0, self.pictures.shape[1])
        self.regions = torch.stack([regions[key] for key in self.keys]) if regions else like  # (R, D)
        self._labels = [f"{picture}/{place}" for picture, place in self.keys]
        self._place = {name: index for index, name in enumerate(self.names)}
        self._places: dict[str, list[int]] = {}  # of a picture's regions among all
        for index, (picture, _) in enumerate(self.keys):
            self._places.setdefault(picture, []).append(index)

    def pictures_for(self, picture: str) -> Float[Tensor, "G D"]:
        """The gallery of a picture, its own embedding first."""
        place = self._place[picture]
        others = draw_others(self.names, place, count=self.gallery - 1, seed=self.seed)
        return self.pictures[[place, *others]]

    def regions_for(self, picture: str) -> Float[Tensor, "N G D"]:
        """The galleries of a picture's regions, one each, its own embedding first."""
        rows = [
            [place, *draw_others(self._labels, place, count=self.gallery - 1, seed=self.seed, purpose="regions")]
            for place in self._places.get(picture, [])
        ]
        width = min(self.gallery, len(self.keys))
        return self.regions[torch.tensor(rows, dtype=torch.int64).reshape(len(rows), width)]


def _embed_galleries(
    reference: Clip, feed: Feed, *, regions: bool, crop_batch: int, gallery: int, seed: int
) -> Galleries:
    """Embed every picture as a whole, and the crops of its regions."""
    device = next(reference.parameters()).device
    whole, cut = CropPacker(reference, batch=crop_batch), CropPacker(reference, batch=crop_batch)
    names: list[str] = []
    keys: list[tuple[str, int]] = []
    for sample in (sample for samples in feed for sample in samples):
        image, (height, width) = sample.image.to(device), sample.image.shape[1:]
        names.append(sample.id)
        whole.add(image, torch.tensor([[0.0, 0.0, width, height]]))
        if regions:
            assert sample.segments is not None, f"picture {sample.id} came without segments although asked for"
            boxes = crop_boxes(sample.segments, height=height, width=width)  # (N, 4)
            cut.add(image, boxes)
            keys += [(sample.id, place) for place in range(len(boxes))]
    pictures = dict(zip(names, whole.finish(), strict=True))
    return Galleries(pictures, dict(zip(keys, cut.finish(), strict=True)), gallery=gallery, seed=seed)


# ------------------------------------------------------------------------------------------------------------ the ranks


def _dense_maps(student: Clip, samples: list[Sample], *, size: int, head: Head) -> Float[Tensor, "B D h w"]:
    device = next(student.parameters()).device
    images = [sample.image.to(device) for sample in samples]
    return student.encode_dense(
        square_inputs(images, size=size, mean=student.mean, std=student.std, pad=student.pad), head=head
    )


def picture_ranks(
    dense: Float[Tensor, "D h w"], inside: Bool[Tensor, "h w"], candidates: Float[Tensor, "G D"]
) -> Int64[Tensor, " L"]:
    """Rank each location's own picture among the candidates; ties count against it.

    Args:
        dense: of one picture, L2-normalised per location.
        inside: the locations that ask.
        candidates: image embeddings, the picture's own first.

    Returns:
        How many others score at least as high, row by row.
    """
    asking = dense.flatten(1).T[inside.flatten().to(dense.device)]  # (L, D)
    scores = asking @ candidates.to(asking).T  # (L, G)
    return ranks_of(scores, torch.zeros(len(scores), dtype=torch.int64, device=scores.device))


def region_ranks(
    dense: Float[Tensor, "D h w"], masks: Bool[Tensor, "N h w"], candidates: Float[Tensor, "N G D"]
) -> Int64[Tensor, " L"]:
    """Rank, for each location of each region, the region's own crop among the region's candidates.

    Args:
        dense: of one picture, L2-normalised per location.
        masks: the locations of each region.
        candidates: crop embeddings, one gallery a region, its own first.

    Returns:
        How many others score at least as high, region by region.
    """
    tokens, ranks = dense.flatten(1).T, [dense.new_zeros(0, dtype=torch.int64)]  # (h * w, D)
    for mask, gallery in zip(masks.flatten(1).to(dense.device), candidates.to(dense), strict=True):
        scores = tokens[mask] @ gallery.T  # (l, G)
        ranks.append(ranks_of(scores, torch.zeros(len(scores), dtype=torch.int64, device=scores.device)))
    return torch.cat(ranks)
