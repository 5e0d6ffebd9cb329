"""Crops of many images in full batches of the image tower, although images have different numbers of regions."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from foveate.clip.model import Clip
from foveate.errors import InputError
from foveate.ops.resample import crop_and_resize, normalize


class CropPacker:
    """Embeds crops in full batches across images, in the order in which they are added."""

    def __init__(self, clip: Clip, *, batch: int) -> None:
        if batch < 1:
            raise InputError(f"crop_batch: need at least 1 crop; got {batch}.")
        self.clip, self.batch = clip, batch
        self.waiting: list[Float[Tensor, "N 3 S S"]] = []
        self.done: list[Float[Tensor, "N D"]] = []

    def add(self, image: UInt8[Tensor, "3 H W"], boxes: Float[Tensor, "N 4"]) -> None:
        """Crop an image's boxes (xyxy, pixels of the image), and embed each batch that is full."""
        if boxes.shape[0] == 0:
            return
        crops = crop_and_resize(image, boxes, size=self.clip.native_size)  # (N, 3, S, S)
        self.waiting.append(normalize(crops, mean=self.clip.mean, std=self.clip.std))
        while sum(len(crops) for crops in self.waiting) >= self.batch:
            self._embed(self.batch)

    def _embed(self, count: int) -> None:
        packed = torch.cat(self.waiting)
        self.done.append(self.clip.encode_image(packed[:count]))
        self.waiting = [packed[count:]]

    def finish(self) -> Float[Tensor, "R D"]:
        """Embed the remaining crops and return all embeddings, L2-normalised."""
        if remaining := sum(len(crops) for crops in self.waiting):
            self._embed(remaining)
        self.waiting = []
        return torch.cat(self.done) if self.done else torch.empty(0, self.clip.embed_dim)
