"""A CLIP with one API for images, dense maps, boxes, masks and text, at any input size (Sec. 3.1).

`Clip` wraps an open_clip model and re-implements none of its modules. Absent: where models come from
(`saccade.clip.load`), preprocessing of pictures (`saccade.ops.resample`) and everything that trains.
"""

from typing import Any

import open_clip
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from saccade.clip.dense import Head, class_embedding, dense_tokens, tower_sizes
from saccade.ops.boxes import check_boxes
from saccade.ops.pool import pool_boxes, pool_masks
from saccade.types import InputError


class Clip(nn.Module):
    """An image and a text tower with their statistics and sizes.

    Attributes:
        name: as given to `load`.
        model: open_clip's module, whose state dictionary is what is saved.
        tokenizer: texts to tokens.
        config: the content of open_clip_config.json, from which the model can be built again.
        mean, std: of the RGB channels of the pictures it was trained on, in [0, 1].
        native_size: side of the square images it was trained on [pixels].
        patch_size: P [pixels], also the stride of the dense map.
        embed_dim: D.
    """

    def __init__(self, model: open_clip.CLIP | open_clip.CustomTextCLIP, *, name: str, config: dict[str, Any]):
        """Wrap an open_clip model.

        Args:
            model: with both towers.
            name: what messages call it.
            config: {"model_cfg": ..., "preprocess_cfg": ...} as in open_clip_config.json.

        Raises:
            InputError: its image tower has no dense head here.
        """
        super().__init__()
        self.native_size, self.patch_size, self.embed_dim = tower_sizes(model.visual, name=name)
        self.name, self.model, self.config = name, model, config
        text = config["model_cfg"]["text_cfg"]
        self.tokenizer = open_clip.SimpleTokenizer(
            context_length=text.get("context_length", 77), **text.get("tokenizer_kwargs", {})
        )
        self.mean: tuple[float, float, float] = tuple(config["preprocess_cfg"]["mean"])
        self.std: tuple[float, float, float] = tuple(config["preprocess_cfg"]["std"])

    @property
    def visual(self) -> nn.Module:
        """The image tower."""
        return self.model.visual

    def encode_image(self, images: Float[Tensor, "B 3 H W"], *, normalize: bool = True) -> Float[Tensor, "B D"]:
        """Embed whole images as CLIP does (the teacher; Sec. 3.2). At the native size this is open_clip's own result.

        Args:
            images: normalised with `mean` and `std`; H and W multiples of the patch size.
            normalize: to length 1, in float32 whatever the arithmetic of the tower.

        Raises:
            InputError: H or W is not a multiple of the patch size.
        """
        self._check_images(images)
        embeddings = class_embedding(self.visual, images)
        return F.normalize(embeddings.float(), dim=1) if normalize else embeddings

    def encode_dense(
        self, images: Float[Tensor, "B 3 H W"], *, head: Head = "value", normalize: bool = True
    ) -> Float[Tensor, "B D h w"]:
        """Embed every patch of the images (the student; Sec. 3.1).

        Args:
            images: normalised with `mean` and `std`; H and W multiples of the patch size, of any aspect.
            head: what becomes of the last block; "value" is the paper's, see `saccade.clip.dense.dense_tokens`.
            normalize: each location to length 1, in float32 whatever the arithmetic of the tower.

        Returns:
            The dense map, h = H / P, w = W / P.

        Raises:
            InputError: H or W is not a multiple of the patch size, or another head.
        """
        self._check_images(images)
        tokens = dense_tokens(self.visual, images, head=head)  # (B, L, D)
        tokens = F.normalize(tokens.float(), dim=2) if normalize else tokens
        grid = (images.shape[2] // self.patch_size, images.shape[3] // self.patch_size)
        return tokens.mT.unflatten(2, grid)  # (B, D, L) -> (B, D, h, w)

    def encode_boxes(
        self, images: Float[Tensor, "B 3 H W"], boxes: list[Tensor], *, head: Head = "value"
    ) -> Float[Tensor, "R D"]:
        """Embed boxes of the images by pooling the dense map (Sec. 3.1).

        Args:
            images: normalised; H and W multiples of the patch size.
            boxes: one (N, 4) tensor an image; xyxy, pixels of `images`, x1 < x2; N may be 0.
            head: see `encode_dense`.

        Returns:
            One embedding of length 1 a box, image by image, in the order given.

        Raises:
            InputError: boxes that are not boxes, or not one tensor an image.
        """
        for i, one in enumerate(boxes):
            check_boxes(one, f"boxes[{i}]")
        return pool_boxes(self.encode_dense(images, head=head), boxes, stride=self.patch_size)

    def encode_masks(
        self, images: Float[Tensor, "B 3 H W"], masks: list[Bool[Tensor, "_ h w"]], *, head: Head = "value"
    ) -> Float[Tensor, "R D"]:
        """Embed masks of the images by averaging the dense map inside them (Sec. 4.1).

        Args:
            images: normalised; H and W multiples of the patch size.
            masks: one (N, h, w) tensor an image on the patch grid, h = H / P; from pixels by
                `saccade.ops.pool.shrink_masks`.
            head: see `encode_dense`.

        Returns:
            One embedding a mask, of length 1, or zero for a mask without a location.

        Raises:
            InputError: masks of another grid, or not one tensor an image.
        """
        dense = self.encode_dense(images, head=head)
        wrong = [tuple(one.shape) for one in masks if one.shape[1:] != dense.shape[2:]]
        if wrong:
            raise InputError(
                f"masks: need (N, {dense.shape[2]}, {dense.shape[3]}), the patch grid; got {wrong[0]}. "
                "Bring them there with saccade.ops.pool.shrink_masks."
            )
        return pool_masks(dense, masks)

    def encode_text(self, tokens: Int64[Tensor, "B T"], *, normalize: bool = True) -> Float[Tensor, "B D"]:
        """Embed texts.

        Args:
            tokens: of `tokenize`, on any device.
            normalize: to length 1.
        """
        return self.model.encode_text(tokens.to(self.model.logit_scale.device), normalize=normalize)

    def tokenize(self, texts: list[str]) -> Int64[Tensor, "B T"]:
        """Turn texts into tokens, cut or zero-padded to the context length."""
        return self.tokenizer(texts)

    def _check_images(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
            raise InputError(f"images: need (B, 3, H, W); got {tuple(images.shape)}.")
        height, width = images.shape[2:]
        if height % self.patch_size or width % self.patch_size:
            raise InputError(
                f"images: height and width must be multiples of the patch size {self.patch_size}; "
                f"got {height} x {width}. "
                "Pad them with saccade.ops.resample.pad_right_bottom."
            )
