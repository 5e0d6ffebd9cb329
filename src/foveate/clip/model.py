"""A CLIP with one API for images, dense feature maps, boxes, masks and text, at any input size (Sec. 3.1).

`Clip` wraps an open_clip model and re-implements none of its modules. Models come from `foveate.clip.load`; images are
preprocessed by `foveate.ops.resample`.

**Images** are normalised with the statistics of the model, as one tensor (B, 3, H, W) or as a list of (3, H_i, W_i) of
different sizes; heights and widths are multiples of the patch size. In a tensor, attention includes all tokens of an
image, also those of padding that the caller added (the paper's padded squares). In a list, each image is embedded as if
it were alone: padding up to the largest image is masked, and positions are those of the image's own grid. Residual
networks, whose convolutions cannot mask padding, embed a list one image at a time.
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
    feature_maps,
    region_embedding,
    tower_of,
    tower_sizes,
    tower_stages,
)
from foveate.clip.inputs import (
    Images,
    PackedBatch,
    check_images,
    check_regions,
    check_tokens,
    image_grids,
    masks_on_grid,
    pack_images,
    pack_regions,
    warn_unnormalised,
)
from foveate.clip.names import Head, Pad, RegionHead
from foveate.clip.tower import Windows
from foveate.errors import InputError
from foveate.ops.boxes import check_boxes, whole_patches
from foveate.ops.pool import pool_boxes, pool_masks


class Clip(nn.Module):
    """The image and text towers of a CLIP with their statistics and sizes; built by `foveate.load`.

    Attributes:
        name: as given to `load`.
        model: open_clip's module, whose state dictionary is saved.
        tokenizer: converts texts to tokens.
        config: the content of open_clip_config.json, from which the model can be built again.
        mean, std: of the RGB channels of the training images, in [0, 1].
        native_size: side of the square training images [pixels].
        patch_size: P [pixels], also the stride of the dense feature map; 32 for residual networks.
        embed_dim: D.
        windows: blocks of the dense path with window attention (Sec. 4.4); None: no block. Saved with the model;
            `foveate.clip.dense.default_windows` returns the paper's.
        gates: weights of the attention heads in the dense head "values3", (3 * heads,), the last three blocks in order;
            None: no weights. Set as (3, heads) and saved with the model; set them again after training in place.
        pad: padding of the square input of the dense path, "black" (the default) or "zero". Saved with the model.
        alpha: weight of the student, below 1, if the weights are a mix (Sec. 4.1); None: unknown. Saved with the model.
        run_block: runs the blocks before the last (compiled, for example); not saved.

    Example::

        >>> clip = foveate.load("foveate-small")
        >>> clip.patch_size, clip.native_size, clip.embed_dim
        (8, 64, 128)
        >>> images = torch.randn(2, 3, 64, 96)  # normalised with clip.mean and clip.std
        >>> clip.encode_image(images).shape
        torch.Size([2, 128])
        >>> clip.encode_dense(images).shape
        torch.Size([2, 128, 8, 12])
    """

    def __init__(self, model: open_clip.CLIP | open_clip.CustomTextCLIP, *, name: str, config: dict[str, Any]):
        """Wrap an open_clip model with both towers.

        Args:
            name: of the model, for messages.
            config: {"model_cfg": ..., "preprocess_cfg": ...} as in open_clip_config.json; "foveate" holds the windows,
                gates, padding and alpha.

        Raises:
            InputError: the image tower is not supported, or cannot have these windows or gates.
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
        if (gates := config.get("foveate", {}).get("gates")) is not None:
            self.gates = gates
        self.run_block: RunBlock = whole_block
        self._has_seen_images = False  # and warned if they are not normalised

    def train(self, mode: bool = True) -> "Clip":
        """Set the training mode; BatchNorm layers of residual networks keep their statistics, as in CLIP."""
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
        """Window attention of the dense path (Sec. 4.4), or None."""
        return self._windows

    @windows.setter
    def windows(self, windows: Windows | None) -> None:
        self._windows = None if windows is None else check_windows(self.visual, windows)
        self._store("windows", None if windows is None else {"size": windows.size, "blocks": list(windows.blocks)})

    @property
    def gates(self) -> nn.Parameter | None:
        """Weights of the attention heads in the dense head "values3", (3 * heads,), or None."""
        return self._gates

    @gates.setter
    def gates(self, gates: Float[Tensor, "3 H"] | list[list[float]] | None) -> None:
        if gates is None:
            self._gates = None
            self._store("gates", None)
            return
        checked = check_gates(self.visual, gates).detach().clone()
        self._gates = nn.Parameter(checked.to(next(self.visual.parameters()).device))
        self._store("gates", checked.unflatten(0, (3, -1)).tolist())

    @property
    def pad(self) -> Pad:
        """Padding of the square input of the dense path (Sec. 3.2)."""
        return self.config.get("foveate", {}).get("pad", "black")

    @pad.setter
    def pad(self, pad: Pad) -> None:
        self._store("pad", pad)

    @property
    def alpha(self) -> float | None:
        """Weight of the student in a mix of weights, or None."""
        return self.config.get("foveate", {}).get("alpha")

    @alpha.setter
    def alpha(self, alpha: float | None) -> None:
        self._store("alpha", alpha)

    def _store(self, key: str, value: Any) -> None:
        """Store a setting of Foveate in the config, or remove it if it is None; the old config is not changed."""
        settings = {name: setting for name, setting in self.config.get("foveate", {}).items() if name != key}
        settings |= {} if value is None else {key: value}
        self.config = {name: part for name, part in self.config.items() if name != "foveate"}
        self.config |= {"foveate": settings} if settings else {}

    @cached_property
    def tokenizer(self) -> Any:
        """Converts texts to tokens: CLIP's byte pairs, or the Hugging Face tokenizer that the config names."""
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
        except Exception as error:  # damaged files and unknown settings raise errors of any kind
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"{self.name}: its tokenizer {name or settings!r} could not be loaded ({reason}). "
                "Load the model from a folder that holds its tokenizer files."
            ) from error

    def encode_image(self, images: Images, *, normalize: bool = True) -> Float[Tensor, "B D"]:
        """Embed whole images as CLIP does (the teacher; Sec. 3.2).

        At the native size the result equals open_clip's; at other sizes position embeddings are resized.

        Args:
            images: tensor (B, 3, H, W), or list of B tensors (3, H_i, W_i), normalised with `mean` and `std`; heights
                and widths are multiples of `patch_size`.
            normalize: scale each embedding to length 1, in float32.

        Returns:
            Embeddings (B, D).

        Raises:
            InputError: a height or width is not a multiple of `patch_size`, or an image on the CPU is not finite.

        Example::

            >>> clip = foveate.load("foveate-small")
            >>> clip.encode_image(torch.randn(2, 3, 64, 64)).shape
            torch.Size([2, 128])
            >>> clip.encode_image([torch.randn(3, 64, 96), torch.randn(3, 48, 48)]).shape
            torch.Size([2, 128])
        """
        batches = [class_embedding(self.visual, batch, run=self.run_block) for batch in self._pack(images)]
        embeddings = torch.cat(batches) if len(batches) > 1 else batches[0]  # (B, D)
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
        """Compute the dense feature map: one embedding per patch (the student; Sec. 3.1).

        Args:
            images: tensor (B, 3, H, W), or list of B tensors (3, H_i, W_i), normalised with `mean` and `std`; heights
                and widths are multiples of `patch_size`.
            head: replacement of the last block: "value" (the paper's), "value_only", "value_cls", "attention",
                "sclip", "clearclip", "naclip" or "values3"; see `foveate.clip.heads`.
            normalize: scale the embedding of each location to length 1, in float32.
            frame: (H, W) [pixels] of the padded square of which `images` (a tensor) are the top left, without its
                padding: they get the positions that they have in it. None: the images are whole.

        Returns:
            Tensor (B, D, h, w), h = H / P, w = W / P; for a list, B tensors (D, h_i, w_i).

        Raises:
            InputError: a height or width is not a multiple of `patch_size`, an image on the CPU is not finite, or the
                head is unknown or not defined for this tower.

        Example::

            >>> clip = foveate.load("foveate-small")
            >>> dense = clip.encode_dense(torch.randn(1, 3, 64, 96))
            >>> dense.shape
            torch.Size([1, 128, 8, 12])
            >>> text = clip.encode_text(clip.tokenize(["a photo of a cat", "a photo of a dog"]))
            >>> torch.einsum("bdhw,kd->bkhw", dense, text).argmax(dim=1).shape  # the class of each location
            torch.Size([1, 8, 12])
        """
        grid = None if frame is None else (frame[0] // self.patch_size, frame[1] // self.patch_size)
        maps: list[Tensor] = []
        for batch in self._pack(images):
            tokens = dense_tokens(
                self.visual, batch, head=head, frame=grid, windows=self.windows, gates=self.gates, run=self.run_block
            )
            tokens = F.normalize(tokens.float(), dim=2) if normalize else tokens  # (B, L, D)
            dense = tokens.mT.unflatten(2, self._grid(batch.images))  # (B, D, L) -> (B, D, h, w)
            maps += [dense] if isinstance(images, Tensor) else batch.unpad(dense)
        return maps[0] if isinstance(images, Tensor) else maps

    def encode_boxes(self, images: Images, boxes: list[Tensor], *, head: RegionHead = "value") -> Float[Tensor, "R D"]:
        """Embed boxes by pooling the dense feature map (RoIAlign; Sec. 3.1), or by masked attention (Tab. A3).

        Args:
            images: tensor (B, 3, H, W), or list of B tensors (3, H_i, W_i), normalised with `mean` and `std`; heights
                and widths are multiples of `patch_size`.
            boxes: list of B tensors (N_i, 4); xyxy, pixels of `images`, x1 < x2 and y1 < y2. N_i may be 0.
            head: a dense head, see `encode_dense`; or "masked": a copy of the class token per box attends to the
                patches from that of the first corner up to, and excluding, that of the second (as published).

        Returns:
            Embeddings (R, D) of length 1, image by image in the order given, R = sum of N_i. A box outside its image is
            zero. With "masked", a box without patches is the output of its copy for the class token alone.

        Raises:
            InputError: `boxes` is not a list of one tensor per image, a box is not finite or has no area, or an error
                of `encode_dense`.

        Example::

            >>> clip = foveate.load("foveate-small")
            >>> images = torch.randn(2, 3, 64, 64)
            >>> boxes = [torch.tensor([[0.0, 0.0, 32.0, 48.0]]), torch.zeros(0, 4)]
            >>> clip.encode_boxes(images, boxes).shape
            torch.Size([1, 128])
        """
        check_images(images, self.patch_size)
        check_regions(boxes, images, "boxes")
        for i, image_boxes in enumerate(boxes):
            check_boxes(image_boxes, f"boxes[{i}]")
        if head == "masked":
            pairs = zip(boxes, image_grids(images, self.patch_size), strict=True)
            return self._masked(
                images, [whole_patches(part, grid=grid, stride=self.patch_size) for part, grid in pairs]
            )
        return self._pooled(images, boxes, head, partial(pool_boxes, stride=self.patch_size))

    def encode_masks(
        self, images: Images, masks: list[Bool[Tensor, "_ _ _"]], *, head: RegionHead = "value"
    ) -> Float[Tensor, "R D"]:
        """Embed masks by averaging the dense feature map inside them (Sec. 4.1), or by masked attention (Tab. A3).

        Args:
            images: tensor (B, 3, H, W), or list of B tensors (3, H_i, W_i), normalised with `mean` and `std`; heights
                and widths are multiples of `patch_size`.
            masks: list of B bool tensors, (N_i, H_i, W_i) in pixels, which are resized to the patch grid by
                `foveate.ops.pool.shrink_masks`, or (N_i, h_i, w_i) on that grid. N_i may be 0.
            head: a dense head, see `encode_dense`; or "masked": a copy of the class token per mask attends to its
                patches.

        Returns:
            Embeddings (R, D) of length 1, image by image in the order given, R = sum of N_i. A mask without patches is
            zero; with "masked", the output of its copy for the class token alone, in towers that have one.

        Raises:
            InputError: `masks` is not a list of one tensor per image, has other sizes or is not bool, or an error of
                `encode_dense`.

        Example::

            >>> clip = foveate.load("foveate-small")
            >>> mask = torch.zeros(1, 64, 64, dtype=torch.bool)
            >>> mask[:, 16:48, 8:40] = True
            >>> clip.encode_masks(torch.randn(1, 3, 64, 64), [mask]).shape
            torch.Size([1, 128])
        """
        check_images(images, self.patch_size)
        check_regions(masks, images, "masks")
        pairs = enumerate(zip(masks, image_grids(images, self.patch_size), strict=True))
        masks = [masks_on_grid(part, grid, patch=self.patch_size, name=f"masks[{i}]") for i, (part, grid) in pairs]
        return self._masked(images, masks) if head == "masked" else self._pooled(images, masks, head, pool_masks)

    @overload
    def features(self, images: Tensor, *, layers: tuple[int, ...], head: Head = ...) -> list[Tensor]: ...
    @overload
    def features(self, images: list[Tensor], *, layers: tuple[int, ...], head: Head = ...) -> list[list[Tensor]]: ...
    def features(
        self, images: Images, *, layers: tuple[int, ...], head: Head = "value"
    ) -> list[Float[Tensor, "B C _ _"]] | list[list[Float[Tensor, "C _ _"]]]:
        """Extract feature maps of intermediate stages, for example for the pyramid of a detector (Sec. 3.3).

        Args:
            images: tensor (B, 3, H, W), or list of B tensors (3, H_i, W_i), normalised with `mean` and `std`; heights
                and widths are multiples of `patch_size`.
            layers: indices of stages, negative ones from the end. Stages are the transformer blocks (of SigLIP also the
                pool), or the four residual stages (strides 4, 8, 16 and 32) and the pool.
            head: replacement of the last stage; see `encode_dense`.

        Returns:
            For each layer, in the order of `layers`, its output before the final norm and projection: (B, C, h, w) with
            the width C of the tokens (of residual networks: the width and grid of the stage, and D for the pool). For a
            list of images, a list of (C, h_i, w_i) per layer.

        Raises:
            InputError: `layers` is empty or not in the range of the stages, or an error of `encode_dense`.

        Example::

            >>> clip = foveate.load("foveate-small")
            >>> middle, last = clip.features(torch.randn(1, 3, 64, 96), layers=(2, -1))
            >>> middle.shape, last.shape
            (torch.Size([1, 160, 8, 12]), torch.Size([1, 160, 8, 12]))
        """
        count = len(tower_stages(self.visual))
        if not isinstance(layers, tuple | list) or not all(isinstance(layer, int) for layer in layers) or not layers:
            raise InputError(f"layers: need stages of {self.name}, a tuple of whole numbers; got {layers!r}.")
        if not all(-count <= layer < count for layer in layers):
            raise InputError(f"layers: need stages of {self.name}, {-count} to {count - 1}; got {layers}.")
        indices = tuple(layer % count for layer in layers)
        maps: list[list[Tensor]] = [[] for _ in indices]  # of each layer
        for batch in self._pack(images):
            outputs = feature_maps(
                self.visual,
                batch,
                layers=indices,
                head=head,
                windows=self.windows,
                gates=self.gates,
                run=self.run_block,
            )
            for layer_maps, output in zip(maps, outputs, strict=True):
                layer_maps += [output] if isinstance(images, Tensor) else batch.unpad(output)
        return [layer_maps[0] for layer_maps in maps] if isinstance(images, Tensor) else maps

    def encode_text(self, texts: Int64[Tensor, "B T"] | list[str], *, normalize: bool = True) -> Float[Tensor, "B D"]:
        """Embed texts.

        Args:
            texts: a list of B texts, or their tokens: int64 tensor (B, T) of `tokenize`, on any device; T is the
                context length.
            normalize: scale each embedding to length 1, in float32.

        Returns:
            Embeddings (B, D), on the device of the model.

        Raises:
            InputError: a single text that is not in a list, tokens of another type or length, or tokens on the CPU that
                the text tower does not have.

        Example::

            >>> clip = foveate.load("foveate-small")
            >>> clip.encode_text(["a photo of a cat", "a photo of a dog"]).shape
            torch.Size([2, 128])
        """
        tokens = texts if isinstance(texts, Tensor) else self._tokens_of(texts)
        check_tokens(tokens, self.config["model_cfg"]["text_cfg"])
        embeddings = self.model.encode_text(tokens.to(self.model.logit_scale.device))
        return F.normalize(embeddings.float(), dim=1) if normalize else embeddings

    def tokenize(self, texts: list[str]) -> Int64[Tensor, "B T"]:
        """Convert texts to tokens, truncated or zero-padded to the context length T."""
        return self.tokenizer(texts)

    def _tokens_of(self, texts: list[str]) -> Int64[Tensor, "B T"]:
        """The tokens of a list of texts, of which too long ones are cut."""
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts) or not texts:
            raise InputError(
                f"encode_text: need a list of texts, or a tensor of tokens; got {texts!r:.80}. Write "
                '["a dog"], or tokenize(["a dog"]).'
            )
        return self.tokenize([*texts])

    def _pooled(
        self, images: Images, regions: list[Tensor], head: Head, pool: Callable[[Tensor, list[Tensor]], Tensor]
    ) -> Float[Tensor, "R D"]:
        """Embed regions by pooling the dense feature map."""
        dense = self.encode_dense(images, head=head)
        if not regions:
            return self._no_embeddings()
        if isinstance(dense, Tensor):
            return pool(dense, regions)
        return torch.cat([pool(image_map[None], [part]) for image_map, part in zip(dense, regions, strict=True)])

    def _masked(self, images: Images, regions: list[Bool[Tensor, "_ _ _"]]) -> Float[Tensor, "R D"]:
        """Embed regions, on the patch grid of each image, by masked attention."""
        remaining, embeddings = iter(regions), [self._no_embeddings()]
        for batch in self._pack(images):
            batch_regions = [*islice(remaining, len(batch.images))]
            if any(len(part) for part in batch_regions):
                packed = pack_regions(batch_regions, self._grid(batch.images)).to(batch.images.device)  # (B, Q, L)
                rows = region_embedding(self.visual, batch, packed, windows=self.windows)  # (B, Q, D)
                embeddings += [row[: len(part)] for row, part in zip(rows, batch_regions, strict=True)]  # (N, D) each
        return F.normalize(torch.cat(embeddings).float(), dim=1)

    def _pack(self, images: Images) -> list[PackedBatch]:
        """The batches that the image tower runs: one, or one per image of a list where it cannot mask padding."""
        like = next(self.visual.parameters())
        if not self._has_seen_images and warn_unnormalised(images, mean=self.mean, std=self.std):
            self._has_seen_images = True
        return pack_images(images, patch=self.patch_size, together=tower_of(self.visual).takes_mixed_sizes, like=like)

    def _grid(self, batch: Tensor) -> tuple[int, int]:
        return batch.shape[2] // self.patch_size, batch.shape[3] // self.patch_size

    def _no_embeddings(self) -> Float[Tensor, "0 D"]:
        return torch.zeros(0, self.embed_dim, device=self.model.logit_scale.device)


def _read_windows(content: Any, visual: nn.Module, name: str) -> Windows:
    """Window attention as stored in a config."""
    size, blocks = (content.get("size"), content.get("blocks")) if isinstance(content, dict) else (None, None)
    if type(size) is not int or not isinstance(blocks, list) or not all(type(index) is int for index in blocks):
        raise InputError(f'{name}: "windows" must be {{"size": tokens, "blocks": [indices]}}; got {content!r}.')
    return check_windows(visual, Windows(size, tuple(blocks)))
