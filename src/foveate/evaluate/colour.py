"""The colour-only bound: how much of region classification colour alone explains. Not in the paper.

A linear classifier sees only the mean colour of a box and its histograms of hue and of RGB. It is fitted on the thing
boxes of one split and scored on those of another by the mAcc of the model. Where it does well, a data set cannot show
that dense features mean anything; the bound is therefore shown beside every table made from rendered images.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from foveate.data.batches import LOADING, Batches, Loading
from foveate.data.records import Dataset
from foveate.errors import InputError
from foveate.evaluate.score import ranks_of, score

HUES = 24  # bins of the hue circle
LEVELS = 4  # bins of each of R, G, B in their joint histogram


def colour_bound(train: Dataset, test: Dataset, *, penalty: float = 1e-3, loading: Loading = LOADING) -> dict:
    """Fit a classifier of colour alone on one split, and score it on another.

    Args:
        penalty: weight of the squared coefficients in the loss.

    Returns:
        {"top1", "top5": mAcc over the thing classes of `test` in percent, "count": boxes scored, "train_count": boxes
        fitted, "classes": thing classes that compete}.

    Raises:
        InputError: the two splits have different categories, or one has no thing box.
    """
    if train.categories != test.categories:
        raise InputError(f"colour bound: need two splits with the same categories; {train.name} and {test.name} differ")
    things = torch.tensor([label for label, category in enumerate(train.categories) if category.is_thing])
    sets = []
    for dataset in (train, test):
        features, labels = _read(Batches(dataset, loading))
        if labels.numel() == 0:
            raise InputError(f"{dataset.name}: need thing boxes for the colour bound; got none")
        sets.append((features, torch.searchsorted(things, labels)))  # labels among things only
    (train_features, train_labels), (test_features, labels) = sets
    mean = train_features.mean(dim=0)  # (F,)
    spread = train_features.std(dim=0, correction=0).clamp(min=1e-6)  # (F,)
    weights = fit_linear((train_features - mean) / spread, train_labels, classes=len(things), penalty=penalty)
    ranks = ranks_of(_scores((test_features - mean) / spread, weights), labels)
    return {**score(ranks, labels, among=len(things)), "train_count": train_labels.numel(), "classes": len(things)}


def _read(batches: Batches) -> tuple[Float[Tensor, "R F"], Int64[Tensor, " R"]]:
    """Turn every thing box of a split into colour features."""
    features, labels = [], []
    for sample in batches.samples():
        segments = sample.segments
        assert segments is not None, f"image {sample.id} came without its annotation"
        features.append(colour_features(sample.image, segments.boxes[segments.is_thing]))
        labels.append(segments.labels[segments.is_thing])
    return torch.cat(features), torch.cat(labels)


def colour_features(image: UInt8[Tensor, "3 H W"], boxes: Float[Tensor, "N 4"]) -> Float[Tensor, "N F"]:
    """Describe each box by its colours alone.

    Args:
        boxes: xyxy, pixels of the image; every pixel a box touches counts.

    Returns:
        (N, 3 + 24 + 64): mean R, G, B in [0, 1]; the hue histogram, each pixel weighted by its chroma; the joint RGB
        histogram of 4 bins per channel. Histograms are fractions of the box's pixels, square-rooted to suit a linear
        rule.
    """
    pixels = image.float() / 255  # (3, H, W)
    hue, chroma = _hue_and_chroma(pixels)
    level = (pixels * LEVELS).long().clamp(max=LEVELS - 1)  # (3, H, W)
    joint = (level[0] * LEVELS + level[1]) * LEVELS + level[2]  # (H, W)
    rows = []
    corners = torch.cat([boxes[:, :2].floor(), boxes[:, 2:].ceil()], dim=1).long()  # (N, 4), of the pixels they touch
    for x1, y1, x2, y2 in corners.tolist():
        inside = (slice(y1, y2), slice(x1, x2))
        area = (y2 - y1) * (x2 - x1)
        hues = torch.bincount(hue[inside].flatten(), weights=chroma[inside].flatten(), minlength=HUES)  # (24,)
        levels = torch.bincount(joint[inside].flatten(), minlength=LEVELS**3)  # (64,)
        mean = pixels[(slice(None), *inside)].mean(dim=(1, 2))  # (3,)
        rows.append(torch.cat([mean, (hues / area).sqrt(), (levels / area).sqrt()]))
    return torch.stack(rows) if rows else pixels.new_zeros(0, 3 + HUES + LEVELS**3)


def _hue_and_chroma(pixels: Float[Tensor, "3 H W"]) -> tuple[Int64[Tensor, "H W"], Float[Tensor, "H W"]]:
    """Give each pixel's bin on the hue circle (bin 0 starts at red) and its chroma max - min, which is 0 for grey."""
    red, green, blue = pixels
    high, low = pixels.max(dim=0).values, pixels.min(dim=0).values  # (H, W) each
    chroma = high - low
    divisor = chroma.clamp(min=1e-6)
    sixth = torch.where(
        high == red,
        (green - blue) / divisor,
        torch.where(high == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )  # (H, W), in [-1, 5]
    return ((sixth % 6) * (HUES / 6)).long().clamp(max=HUES - 1), chroma


def fit_linear(
    features: Float[Tensor, "R F"], labels: Int64[Tensor, " R"], *, classes: int, penalty: float
) -> Float[Tensor, "K F+1"]:
    """Fit a multinomial logistic regression with balanced classes, as in mAcc.

    Convex, started from zero and solved by L-BFGS in double precision: the same data give the same weights.

    Args:
        features: standardised.
        classes: how many compete; a class without examples is only a negative.
        penalty: of the squared coefficients without the intercept.

    Returns:
        Coefficients, the intercept last.
    """
    features = features.double()
    balance = 1 / torch.bincount(labels, minlength=classes).double().clamp(min=1)  # (K,)
    weights = torch.zeros(classes, features.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weights], max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(_scores(features, weights), labels, weight=balance)
        value = value + penalty * weights[:, :-1].square().sum()
        value.backward()
        return value

    solver.step(loss)
    return weights.detach()


def _scores(features: Float[Tensor, "R F"], weights: Float[Tensor, "K F+1"]) -> Float[Tensor, "R K"]:
    return features.double() @ weights[:, :-1].T + weights[:, -1]
