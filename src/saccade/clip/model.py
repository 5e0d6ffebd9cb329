"""A CLIP with one API for images, dense maps, boxes, masks and text, at any input size (Sec. 3.1).

`Clip` wraps an open_clip model and re-implements none of its modules; `load` finds the architecture and the weights.
Absent: preprocessing of pictures (`saccade.ops.resample`) and everything that trains.
"""

import difflib
import json
import math
import sys
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model
from torch import Tensor, nn

from saccade.clip.dense import Head, class_embedding, dense_tokens, tower_sizes
from saccade.clip.states import put_state, read_state, rename_eva
from saccade.ops.boxes import check_boxes
from saccade.ops.pool import pool_boxes, pool_masks
from saccade.types import InputError

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
SMALL = "saccade-small"  # the small CLIP shipped in clip/small


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


def load(
    name: str, *, pretrained: str | Path | None = None, device: str | torch.device = "cpu", seed: int | None = None
) -> Clip:
    """Build a CLIP and fill it with weights.

    Args:
        name: an open_clip architecture ("EVA02-B-16", "ViT-B-16-quickgelu"), "saccade-small", or a folder holding
            open_clip_config.json and open_clip_model.safetensors.
        pretrained: a weights file or a folder as above, or an open_clip tag of that architecture (downloaded). None
            takes the folder's or the shipped weights; an architecture is then filled with random numbers, and says so.
        device: where it goes.
        seed: of the random numbers; None draws from torch's global generator.

    Returns:
        The model in evaluation mode, float32.

    Raises:
        InputError: unknown name or tag, weights of another architecture, damaged or unsafe files, unsupported towers.
    """
    config, weights = _find(name)
    if pretrained is not None:
        weights = _weights_of(name, str(pretrained), config)
    clip = Clip(build(config, name=name, seed=seed), name=name, config=config)
    if weights is not None:
        put_state(clip.model, rename_eva(read_state(weights)), source=str(weights), name=name)
    else:
        warning = f"{name}: no pretrained weights were given, so it is filled with RANDOM numbers. Pass pretrained=..."
        print(warning, file=sys.stderr)
    return clip.to(device).eval()


def _find(name: str) -> tuple[dict[str, Any], Path | None]:
    """Find the description of a model and, where it lies in a folder, its weights."""
    architecture = open_clip.get_model_config(name.replace("/", "-")) if ":" not in name else None
    if architecture is not None:
        statistics = {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)}
        return {"model_cfg": architecture, "preprocess_cfg": statistics}, None
    folder = Path(__file__).parent / "small" if name == SMALL else Path(name)
    if folder.is_dir():
        return read_config(folder / CONFIG_FILE), folder / WEIGHTS_FILE
    names = [SMALL, *open_clip.list_models()]
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.5) or [SMALL, "EVA02-B-16", "ViT-B-16", "ViT-L-14"]
    raise InputError(
        f"model: {name!r} is neither an open_clip architecture nor a folder with {CONFIG_FILE}. "
        f"Did you mean {', '.join(near)}?"
    )


def read_config(path: Path) -> dict[str, Any]:
    """Read and check open_clip's description of a model.

    Returns:
        {"model_cfg": ..., "preprocess_cfg": {"mean", "std", ...}}.

    Raises:
        InputError: it cannot be read, or is not such a description.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: need open_clip's description of a model; could not read it ({error}).") from error
    model = config.get("model_cfg") if isinstance(config, dict) else None
    if not isinstance(model, dict) or not all(
        isinstance(model.get(f"{kind}_cfg"), dict) for kind in ("vision", "text")
    ):
        raise InputError(f"{path}: need model_cfg with embed_dim, vision_cfg and text_cfg, as open_clip writes it.")
    statistics = config.get("preprocess_cfg") or {}
    if not isinstance(statistics, dict):
        raise InputError(f"{path}: preprocess_cfg must be a dictionary; got {statistics!r}.")
    statistics.setdefault("mean", list(open_clip.OPENAI_DATASET_MEAN))
    statistics.setdefault("std", list(open_clip.OPENAI_DATASET_STD))
    for key, least in (("mean", -math.inf), ("std", 0.0)):
        values = statistics[key]
        if not (isinstance(values, list) and len(values) == 3 and all(_is_above(value, least) for value in values)):
            raise InputError(f"{path}: {key} must be three numbers, one a channel, above {least}; got {values!r}.")
    return {"model_cfg": model, "preprocess_cfg": statistics}


def _is_above(value: Any, least: float) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > least


def _weights_of(name: str, pretrained: str, config: dict[str, Any]) -> Path:
    """Turn a file name or an open_clip tag into a file; a tag also sets the statistics it was trained with."""
    path = Path(pretrained)
    if path.exists():
        return path / WEIGHTS_FILE if path.is_dir() else path
    described = get_pretrained_cfg(name.replace("/", "-"), pretrained)
    if not described:
        tags = list_pretrained_tags_by_model(name.replace("/", "-"))
        raise InputError(
            f"pretrained: {pretrained!r} is neither a file nor a tag of {name}. Tags: {', '.join(tags) or 'none'}."
        )
    if bool(described.get("quick_gelu")) != bool(config["model_cfg"].get("quick_gelu")):
        other = name.removesuffix("-quickgelu") if name.endswith("-quickgelu") else f"{name}-quickgelu"
        raise InputError(f"pretrained: {pretrained!r} was trained with the other activation; use the model {other!r}.")
    config["preprocess_cfg"].update({key: list(described[key]) for key in ("mean", "std") if key in described})
    try:
        return Path(download_pretrained(described))
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"pretrained: could not download {pretrained!r} of {name} ({error}). Give a file.") from error


def _refusal(model: dict[str, Any]) -> str | None:
    """Say what in a description cannot be built here, or None; in particular what would be fetched by a name in it."""
    trunk, text = model["vision_cfg"].get("timm_model_name") or "", model["text_cfg"]
    if "siglip" in trunk:
        return "SigLIP has no class token and pools by attention, which needs a dense head of its own"
    if ":" in trunk:
        return f"its image tower would be fetched from {trunk}"
    if text.get("hf_model_name") or text.get("hf_tokenizer_name"):
        return "its text tower or tokenizer would be fetched from the Hugging Face hub"
    if "multimodal_cfg" in model:
        return "it is a captioning model (CoCa), which pools by attention"
    return None


def build(config: dict[str, Any], *, name: str, seed: int | None) -> open_clip.CLIP | open_clip.CustomTextCLIP:
    """Build the open_clip module a description asks for, with random numbers, reading nothing from the network."""
    model = json.loads(json.dumps(config["model_cfg"]))  # a copy: open_clip's constructors and we change it
    reason = _refusal(model)
    if reason is not None:
        raise InputError(f"{name}: this model is not supported: {reason}. Use a ViT or EVA-02 of open_clip.")
    model["vision_cfg"]["timm_model_pretrained"] = False
    kind = open_clip.CustomTextCLIP if model.pop("custom_text", False) else open_clip.CLIP
    try:
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            return kind(**model)
    except (TypeError, ValueError, ArithmeticError, RuntimeError, AssertionError) as error:
        raise InputError(f"{name}: its description is not one open_clip can build ({error}).") from error
