"""A CLIP with one API for images, dense maps, boxes, masks and text, at any input size (Sec. 3.1).

`Clip` wraps an open_clip model and re-implements none of its modules. Absent: where models come from
(`foveate.clip.load`), preprocessing of images (`foveate.ops.resample`) and everything that trains.

**Images** come normalised with the model's statistics, as one tensor (B, 3, H, W) or as a list of (3, H_i, W_i) of
different sizes; sides are multiples of the patch size, of any aspect. What attention sees: in a tensor every token of
an image sees every other of the same image, also those of padding that the caller added before (the paper's padded
squares); in a list each image is embedded as if it were alone: padding up to the largest is seen by no token, and
positions are those of the image's own grid. Residual networks, whose convolutions would see that padding, embed a list
one image at a time.
"""

from collections.abc import Callable
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, get_args, overload

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from open_clip.tokenizer import HFTokenizer
from torch import Tensor, nn

from foveate.clip.attention import RunBlock, whole_block
from foveate.clip.dense import (
    check_gates,
    check_windows,
    class_embedding,
    dense_tokens,
    region_embedding,
    takes_mixed_sizes,
    tapped,
    tower_sizes,
    tower_stages,
)
from foveate.clip.inputs import (
    Images,
    PackedBatch,
    check_images,
    check_regions,
    image_grids,
    masks_on_grid,
    pack_images,
    pack_regions,
)
from foveate.clip.names import Head, Pad, RegionHead
from foveate.clip.tower import Windows
from foveate.errors import InputError
from foveate.ops.boxes import check_boxes, whole_patches
from foveate.ops.pool import pool_boxes, pool_masks


class Clip(nn.Module):
    """An image and a text tower with their statistics and sizes.

    Attributes:
        name: as given to `load`.
        model: open_clip's module, whose state dictionary is what is saved.
        tokenizer: texts to tokens.
        config: the content of open_clip_config.json, from which the model can be built again.
        mean, std: of the RGB channels of the images it was trained on, in [0, 1].
        native_size: side of the square images it was trained on [pixels].
        patch_size: P [pixels], also the stride of the dense map; 32 for residual networks.
        embed_dim: D.
        windows: which blocks of the dense path look inside windows only (Sec. 4.4); None: none. It is saved with the
            model; `foveate.clip.dense.default_windows` gives the paper's.
        gates: what the head "values3" multiplies each head's values by, (3 * heads,), the last three blocks in order;
            None: nothing. Set as (3, heads), it is saved with the model; trained in place, it must be set again.
        pad: what fills the padded square of the dense path, "black" or "zero"; black where nothing else is known. It is
            saved with the model, so that evaluation pads as training did.
        alpha: share of the student, below 1, where this is a mix of weights (Sec. 4.1); None: not known to be one. It
            is saved with the model.
        run_block: how the blocks before the last are run wherever a whole image is embedded (compiled, say); not saved.
    """

    def __init__(self, model: open_clip.CLIP | open_clip.CustomTextCLIP, *, name: str, config: dict[str, Any]):
        """Wrap an open_clip model.

        Args:
            model: with both towers.
            name: what messages call it.
            config: {"model_cfg": ..., "preprocess_cfg": ...} as in open_clip_config.json; what only Foveate knows
                stands under "foveate".

        Raises:
            InputError: its image tower has no dense head here, or no such windows.
        """
        super().__init__()
        self.native_size, self.patch_size, self.embed_dim = tower_sizes(model.visual, name=name)
        self.name, self.model, self.config = name, model, config
        self.mean: tuple[float, float, float] = tuple(config["preprocess_cfg"]["mean"])
        self.std: tuple[float, float, float] = tuple(config["preprocess_cfg"]["std"])
        windows = config.get("foveate", {}).get("windows")
        self._windows = None if windows is None else _read_windows(windows, model.visual, name)
        if self.pad not in get_args(Pad):
            raise InputError(f'{name}: "pad" must be one of {", ".join(get_args(Pad))}; got {self.pad!r}.')
        self._gates: nn.Parameter | None
        self.register_parameter("_gates", None)
        gates = config.get("foveate", {}).get("gates")
        if gates is not None:
            self.gates = gates
        self.run_block: RunBlock = whole_block

    def train(self, mode: bool = True) -> "Clip":
        """Switch to training; the statistics of residual networks' BatchNorm stay as they are, as CLIP's do."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    @property
    def visual(self) -> nn.Module:
        """The image tower."""
        return self.model.visual

    @property
    def windows(self) -> Windows | None:
        """Window attention of the dense path (Sec. 4.4)."""
        return self._windows

    @windows.setter
    def windows(self, windows: Windows | None) -> None:
        self._windows = None if windows is None else check_windows(self.visual, windows)
        self._know("windows", None if windows is None else {"size": windows.size, "blocks": list(windows.blocks)})

    @property
    def gates(self) -> nn.Parameter | None:
        """Gates of the heads under "values3"."""
        return self._gates

    @gates.setter
    def gates(self, gates: Float[Tensor, "3 H"] | list[list[float]] | None) -> None:
        if gates is None:
            self._gates = None
            self._know("gates", None)
            return
        checked = check_gates(self.visual, gates).detach().clone()
        self._gates = nn.Parameter(checked.to(next(self.visual.parameters()).device))
        self._know("gates", checked.unflatten(0, (3, -1)).tolist())

    @property
    def pad(self) -> Pad:
        """Padding of the dense path's square input (Sec. 3.2)."""
        return self.config.get("foveate", {}).get("pad", "black")

    @pad.setter
    def pad(self, pad: Pad) -> None:
        self._know("pad", pad)

    @property
    def alpha(self) -> float | None:
        """Share of the student in a mix of weights."""
        return self.config.get("foveate", {}).get("alpha")

    @alpha.setter
    def alpha(self, alpha: float | None) -> None:
        self._know("alpha", alpha)

    def _know(self, key: str, content: Any) -> None:
        """Write down what only Foveate knows of the model, or with None no longer."""
        known = {name: value for name, value in self.config.get("foveate", {}).items() if name != key}
        known |= {} if content is None else {key: content}
        self.config = {name: value for name, value in self.config.items() if name != "foveate"}
        self.config |= {"foveate": known} if known else {}

    @cached_property
    def tokenizer(self) -> Any:
        """Texts to tokens: CLIP's own byte pairs, or the Hugging Face tokenizer the description names."""
        text = self.config["model_cfg"]["text_cfg"]
        length, settings = text.get("context_length", 77), text.get("tokenizer_kwargs", {})
        name = text.get("hf_tokenizer_name")
        try:
            if not name:
                return open_clip.SimpleTokenizer(context_length=length, **settings)
            safe = {"trust_remote_code": False, "local_files_only": Path(name).is_dir()}
            return HFTokenizer(name, context_length=length, **safe, **settings)
        except ImportError as error:
            raise InputError(f"{self.name}: its tokenizer needs transformers: pip install transformers.") from error
        except Exception as error:  # damaged tokenizer files and odd settings fail in more ways than can be listed
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"{self.name}: its tokenizer {name or settings!r} could not be loaded ({first}). "
                "Load the model from a folder that holds its tokenizer files."
            ) from error

    def encode_image(self, images: Images, *, normalize: bool = True) -> Float[Tensor, "B D"]:
        """Embed whole images as CLIP does (the teacher; Sec. 3.2); at the native size as open_clip does.

        Args:
            images: normalised with `mean` and `std`; H and W multiples of the patch size; see the module about lists.
            normalize: to length 1, in float32 whatever the arithmetic of the tower.

        Raises:
            InputError: H or W is not a multiple of the patch size, or an image is not finite (looked at on the CPU).
        """
        parts = [class_embedding(self.visual, batch, run=self.run_block) for batch in self._pack(images)]
        embeddings = torch.cat(parts) if len(parts) > 1 else parts[0]  # (B, D)
        return F.normalize(embeddings.float(), dim=1) if normalize else embeddings

    @overload
    def encode_dense(
        self, images: Tensor, *, head: Head = ..., normalize: bool = ..., frame: tuple[int, int] | None = ...
    ) -> Tensor: ...
    @overload
    def encode_dense(self, images: list[Tensor], *, head: Head = ..., normalize: bool = ...) -> list[Tensor]: ...
    def encode_dense(
        self, images: Images, *, head: Head = "value", normalize: bool = True, frame: tuple[int, int] | None = None
    ) -> Float[Tensor, "B D h w"] | list[Float[Tensor, "D _ _"]]:
        """Embed every patch of the images (the student; Sec. 3.1).

        Args:
            images: normalised with `mean` and `std`; H and W multiples of the patch size, of any aspect; see the module
                about lists.
            head: what becomes of the last block; "value" is the paper's, see `foveate.clip.heads`.
            normalize: each location to length 1, in float32 whatever the arithmetic of the tower.
            frame: (H, W) [pixels] of the padded square whose top left `images` (a tensor) are: they get the positions
                they would have in it, and of its padding there is nothing. None: the images are whole.

        Returns:
            The dense map, h = H / P, w = W / P; for a list one (D, h_i, w_i) per image.

        Raises:
            InputError: H or W is not a multiple of the patch size, an image is not finite (looked at on the CPU), or
                another head than there are.
        """
        whole = None if frame is None else (frame[0] // self.patch_size, frame[1] // self.patch_size)
        maps: list[Tensor] = []
        for batch in self._pack(images):
            tokens = dense_tokens(
                self.visual, batch, head=head, frame=whole, windows=self.windows, gates=self.gates, run=self.run_block
            )
            tokens = F.normalize(tokens.float(), dim=2) if normalize else tokens  # (B, L, D)
            dense = tokens.mT.unflatten(2, self._grid(batch.images))  # (B, D, L) -> (B, D, h, w)
            maps += [dense] if isinstance(images, Tensor) else batch.cut(dense)
        return maps[0] if isinstance(images, Tensor) else maps

    def encode_boxes(self, images: Images, boxes: list[Tensor], *, head: RegionHead = "value") -> Float[Tensor, "R D"]:
        """Embed boxes of the images by pooling the dense map (Sec. 3.1), or by masked attention (Tab. A3).

        Args:
            images: normalised; H and W multiples of the patch size; see the module about lists.
            boxes: one (N, 4) tensor an image; xyxy, pixels of `images`, x1 < x2; N may be 0.
            head: see `encode_dense`; "masked": a copy of the class token for each box, which sees the patches from the
                one that holds its first corner up to, and without, the one that holds its second (as published).

        Returns:
            One embedding of length 1 a box, image by image, in the order given; zero for a box beside its image. Under
            "masked" a box without a patch, such as a small one, gets what its copy makes of the class token alone.

        Raises:
            InputError: boxes that are not boxes, or not one tensor per image.
        """
        check_images(images, self.patch_size)
        check_regions(boxes, images, "boxes")
        for i, own in enumerate(boxes):
            check_boxes(own, f"boxes[{i}]")
        if head == "masked":
            pairs = zip(image_grids(images, self.patch_size), boxes, strict=True)
            return self._masked(images, [whole_patches(own, grid=grid, stride=self.patch_size) for grid, own in pairs])
        return self._pooled(images, boxes, head, partial(pool_boxes, stride=self.patch_size))

    def encode_masks(
        self, images: Images, masks: list[Bool[Tensor, "_ _ _"]], *, head: RegionHead = "value"
    ) -> Float[Tensor, "R D"]:
        """Embed masks of the images by averaging the dense map inside them (Sec. 4.1), or by masked attention (A3).

        Args:
            images: normalised; H and W multiples of the patch size; see the module about lists.
            masks: one tensor per image, (N, H, W) of its pixels, brought to the patch grid by
                `foveate.ops.pool.shrink_masks`, or (N, h, w) on that grid; N may be 0.
            head: see `encode_dense`; "masked": a copy of the class token for each mask, which sees the patches in it.

        Returns:
            One embedding a mask, of length 1. A mask without a patch gives zero; under "masked" what its copy makes of
            the class token alone, where there is one.

        Raises:
            InputError: masks of another size, or not one tensor per image.
        """
        check_images(images, self.patch_size)
        check_regions(masks, images, "masks")
        pairs = enumerate(zip(masks, image_grids(images, self.patch_size), strict=True))
        masks = [masks_on_grid(own, grid, patch=self.patch_size, name=f"masks[{i}]") for i, (own, grid) in pairs]
        return self._masked(images, masks) if head == "masked" else self._pooled(images, masks, head, pool_masks)

    @overload
    def features(self, images: Tensor, *, layers: tuple[int, ...], head: Head = ...) -> list[Tensor]: ...
    @overload
    def features(self, images: list[Tensor], *, layers: tuple[int, ...], head: Head = ...) -> list[list[Tensor]]: ...
    def features(
        self, images: Images, *, layers: tuple[int, ...], head: Head = "value"
    ) -> list[Float[Tensor, "B C _ _"]] | list[list[Float[Tensor, "C _ _"]]]:
        """Take feature maps out of the image tower, such as the detector's pyramid (Sec. 3.3).

        Args:
            images: normalised; H and W multiples of the patch size; see the module about lists.
            layers: which stages, counted from 0 or, when negative, from the end: transformer blocks (SigLIP: and the
                pool), or the four residual stages (strides 4, 8, 16, 32) and the pool.
            head: what the last stage is replaced by; see `encode_dense`.

        Returns:
            What leaves each stage, in the order asked, before final norm and projection: the tokens' width and the
            dense map's grid (residual networks: each stage's own, and D for the pool). For a list of images, one list
            a layer.

        Raises:
            InputError: no such layer, or what `encode_dense` refuses.
        """
        count = len(tower_stages(self.visual))
        if not isinstance(layers, tuple | list) or not all(isinstance(layer, int) for layer in layers) or not layers:
            raise InputError(f"layers: need stages of {self.name}, a tuple of whole numbers; got {layers!r}.")
        if not all(-count <= layer < count for layer in layers):
            raise InputError(f"layers: need stages of {self.name}, {-count} to {count - 1}; got {layers}.")
        places = tuple(layer % count for layer in layers)
        maps: list[list[Tensor]] = [[] for _ in places]  # of each layer
        for batch in self._pack(images):
            parts = tapped(
                self.visual, batch, layers=places, head=head, windows=self.windows, gates=self.gates, run=self.run_block
            )
            for of_layer, part in zip(maps, parts, strict=True):
                of_layer += [part] if isinstance(images, Tensor) else batch.cut(part)
        return [of_layer[0] for of_layer in maps] if isinstance(images, Tensor) else maps

    def encode_text(self, tokens: Int64[Tensor, "B T"], *, normalize: bool = True) -> Float[Tensor, "B D"]:
        """Embed texts.

        Args:
            tokens: of `tokenize`, on any device.
            normalize: to length 1, in float32 whatever the arithmetic of the tower.
        """
        embeddings = self.model.encode_text(tokens.to(self.model.logit_scale.device))
        return F.normalize(embeddings.float(), dim=1) if normalize else embeddings

    def tokenize(self, texts: list[str]) -> Int64[Tensor, "B T"]:
        """Turn texts into tokens, cut or zero-padded to the context length."""
        return self.tokenizer(texts)

    def _pooled(
        self, images: Images, regions: list[Tensor], head: Head, pool: Callable[[Tensor, list[Tensor]], Tensor]
    ) -> Float[Tensor, "R D"]:
        """Embed regions by pooling the dense map."""
        dense = self.encode_dense(images, head=head)
        if not regions:
            return self._no_rows()
        if isinstance(dense, Tensor):
            return pool(dense, regions)
        return torch.cat([pool(own_map[None], [own]) for own_map, own in zip(dense, regions, strict=True)])

    def _masked(self, images: Images, regions: list[Bool[Tensor, "_ _ _"]]) -> Float[Tensor, "R D"]:
        """Embed regions, given on each image's own grid, by masked attention."""
        rest, parts = iter(regions), [self._no_rows()]
        for batch in self._pack(images):
            own_regions = [*islice(rest, len(batch.images))]
            if any(len(own) for own in own_regions):
                packed = pack_regions(own_regions, self._grid(batch.images)).to(batch.images.device)  # (B, Q, L)
                rows = region_embedding(self.visual, batch, packed, windows=self.windows)
                parts += [found[: len(own)] for found, own in zip(rows, own_regions, strict=True)]  # (N, D) each
        return F.normalize(torch.cat(parts).float(), dim=1)

    def _pack(self, images: Images) -> list[PackedBatch]:
        """The batches that the image tower runs; of a list one, or one an image where it cannot ignore padding."""
        like = next(self.visual.parameters())
        return pack_images(images, patch=self.patch_size, together=takes_mixed_sizes(self.visual), like=like)

    def _grid(self, batch: Tensor) -> tuple[int, int]:
        return batch.shape[2] // self.patch_size, batch.shape[3] // self.patch_size

    def _no_rows(self) -> Float[Tensor, "0 D"]:
        return torch.zeros(0, self.embed_dim, device=self.model.logit_scale.device)


def _read_windows(content: Any, visual: nn.Module, name: str) -> Windows:
    """Window attention as it stands in a description."""
    size, blocks = (content.get("size"), content.get("blocks")) if isinstance(content, dict) else (None, None)
    if type(size) is not int or not isinstance(blocks, list) or not all(type(one) is int for one in blocks):
        raise InputError(f'{name}: "windows" must be {{"size": tokens, "blocks": [places]}}; got {content!r}.')
    return check_windows(visual, Windows(size, tuple(blocks)))
