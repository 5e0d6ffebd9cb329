"""CAT-Seg's views of an image: one random crop in training, overlapping windows and the whole image at test.

At test an image is resized as in CAT-Seg's code: first its shortest edge by Pillow's filter (detectron2's
`ResizeShortestEdge`), then into squares by a bilinear filter without antialiasing, whatever the aspect.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Num
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from foveate.errors import InputError
from foveate.types import Sample

PROBABILITY = 0.5  # of mirroring, and of each change of colour


def augmentation(*, size: int) -> v2.Compose:
    """Resize the short side, crop a square, mirror, change colours as SSD (Liu et al., ECCV 2016).

    Args:
        size: of the short side and of the square [pixels].
    """
    colours = [
        v2.ColorJitter(brightness=32 / 255),
        v2.ColorJitter(contrast=0.5),
        v2.ColorJitter(saturation=0.5),
        v2.ColorJitter(hue=18 / 360),
    ]
    return v2.Compose(
        [
            v2.Resize(size, antialias=True),
            v2.RandomCrop(size),
            v2.RandomHorizontalFlip(PROBABILITY),
            *(v2.RandomApply([colour], p=PROBABILITY) for colour in colours),
        ]
    )


def training_view(
    sample: Sample, *, classes: int, size: int, augment: bool, device: torch.device
) -> tuple[Float[Tensor, "3 size size"], Int64[Tensor, "size size"]]:
    """A square of an image with the class of each pixel.

    Args:
        sample: with a label map; -1 is no class.
        classes: their number.
        size: of the square [pixels].
        augment: `augmentation`, with random numbers from torch's global stream; else the whole image is squashed.
        device: of the result.

    Returns:
        RGB in [0, 255], and classes.

    Raises:
        InputError: no label map, one of another size, or with an unknown class.
    """
    if sample.label_map is None:
        raise InputError(f"image {sample.id}: need the class of each pixel; got no label map.")
    labels = sample.label_map.labels
    if labels.shape != sample.image.shape[1:]:
        raise InputError(f"image {sample.id}: its label map must have its size {tuple(sample.image.shape[1:])}; got "
                         f"{tuple(labels.shape)}.")  # fmt: skip
    if labels.max() >= classes:
        raise InputError(f"image {sample.id}: need classes below {classes}, as the vocabulary has; got "
                         f"{int(labels.max())}.")  # fmt: skip
    move = augmentation(size=size) if augment else v2.Resize((size, size), antialias=True)
    image, mask = move(tv_tensors.Image(sample.image.to(device)), tv_tensors.Mask(labels.to(device)))
    return image.as_subclass(Tensor).float(), mask.as_subclass(Tensor)


def squash(images: Num[Tensor, "B 3 H W"], *, size: int) -> Float[Tensor, "B 3 size size"]:
    """Resize images to a square, whatever their aspect, by a bilinear filter without antialiasing."""
    if images.shape[2:] == (size, size):
        return images.float()
    return F.interpolate(images.float(), size=(size, size), mode="bilinear", align_corners=False)


def offsets(*, length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along a side of `length`, which they cover to its end [pixels]."""
    assert stride <= window <= length and (length - window) % stride == 0, (
        f"{window} by {stride} leaves some of {length}"
    )
    return list(range(0, length - window + 1, stride))


def cut_windows(image: Float[Tensor, "3 L L"], *, window: int, stride: int) -> Float[Tensor, "n 3 window window"]:
    """Cut a square into overlapping windows, row by row; `stride` is from one window to the next [pixels]."""
    starts = offsets(length=image.shape[1], window=window, stride=stride)
    return torch.stack([image[:, y : y + window, x : x + window] for y in starts for x in starts])


def fold_average(windows: Float[Tensor, "n K S S"], *, length: int, stride: int) -> Float[Tensor, "K L L"]:
    """The inverse of `cut_windows` for a square of side `length`; overlapping windows are averaged."""
    side = windows.shape[2]
    starts = offsets(length=length, window=side, stride=stride)
    total = windows.new_zeros(windows.shape[1], length, length)
    count = windows.new_zeros(length, length)
    corners = [(y, x) for y in starts for x in starts]
    for (y, x), window in zip(corners, windows, strict=True):
        total[:, y : y + side, x : x + side] += window
        count[y : y + side, x : x + side] += 1
    return total / count
