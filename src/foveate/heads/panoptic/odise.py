r"""ODISE's encoder: four maps of an image from a frozen Stable Diffusion (Tab. 5).

    image --VAE encoder--> latent --noise of t = 0--> UNet, with CLIP's embedding as the caption --> maps
            \\ last block of its two coarsest levels          \\ output of each of its four levels
    latent --VAE decoder--> last block of its two coarsest levels
    each -> bottleneck with GroupNorm; the maps of a stride (4, 8, 16, 32) are added

The implicit caption is the embedding of the empty text, plus a gate that starts at 0 times the sum of CLIP's image
embedding through a linear layer and a vector per token; likewise for the embedding of the time. The noise is the same
for every image. Images larger than 512 pixels are processed in crops of 512, the last ones shifted back to end at the
edge; maps of overlapping crops are averaged. Needs diffusers. Not known from the paper and chosen here: the latent is
the mean of its distribution, the decoder's input has no noise, gates have one value per token and channel, and crops
overlap as little as possible.
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from foveate.clip.model import Clip
from foveate.errors import InputError
from foveate.heads.panoptic.decoder import LEVELS, Encoder
from foveate.ops.resample import normalize

SEED = 42  # of the noise
GROUPS = 32
STRIDES = (4, 8, 16, 32)  # of the maps [pixels]
WINDOW = 512  # side of a crop [pixels]


class ImplicitCaptioner(nn.Module):
    """CLIP's image embedding as a caption."""

    def __init__(self, clip: Clip, *, empty: Float[Tensor, "T C"], time_width: int) -> None:
        """Freeze a CLIP and make the layers on its image embedding.

        Args:
            clip: changed here.
            empty: the diffusion model's embedding of the empty text.
            time_width: of its embedding of the time.
        """
        super().__init__()
        self.clip = clip.requires_grad_(False).eval()
        self.project = nn.Linear(clip.embed_dim, empty.shape[1])
        self.places = nn.Parameter(nn.init.trunc_normal_(torch.empty_like(empty), std=0.02))
        self.gate = nn.Parameter(torch.zeros_like(empty))
        self.time = nn.Linear(clip.embed_dim, time_width)
        self.time_place = nn.Parameter(nn.init.trunc_normal_(torch.empty(time_width), std=0.02))
        self.time_gate = nn.Parameter(torch.zeros(time_width))
        self.empty: Tensor
        self.register_buffer("empty", empty.clone())

    def train(self, mode: bool = True) -> "ImplicitCaptioner":
        """Switch to training; CLIP stays in evaluation mode."""
        super().train(mode)
        self.clip.eval()
        return self

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B T C"], Float[Tensor, "B X"]]:
        """The caption of images in [0, 255], squashed for CLIP, and the offset of the embedding of the time."""
        side = self.clip.native_size
        with torch.no_grad():
            resized = F.interpolate(images, size=(side, side), mode="bicubic", antialias=True).clamp(0, 255)
            inputs = normalize(resized, mean=self.clip.mean, std=self.clip.std)
            embeddings = self.clip.encode_image(inputs, normalize=False).float()  # (B, D)
        caption = self.gate.tanh() * (self.project(embeddings)[:, None] + self.places)  # (B, T, C)
        return self.empty + caption, self.time_gate.tanh() * (self.time(embeddings) + self.time_place)


class OdiseEncoder(Encoder):
    """Maps of a frozen diffusion model; bottlenecks and captioner are trained."""

    def __init__(self, vae: Any, unet: Any, captioner: ImplicitCaptioner, *, alpha: float, channels: int = 512) -> None:
        """Freeze a diffusion model and make the bottlenecks.

        Args:
            vae: diffusers' AutoencoderKL.
            unet: diffusers' UNet2DConditionModel, of four levels.
            captioner: for the UNet's text.
            alpha: fraction of the latent's variance at t = 0 (the first of alphas_cumprod).
            channels: of each map; a multiple of 128.

        Raises:
            InputError: channels, or a diffusion model, that do not fit.
        """
        super().__init__()
        stride = 2 ** (len(vae.config.block_out_channels) - 1)  # of the latent [pixels]
        if len(unet.up_blocks) != LEVELS or stride != 8 or channels % (4 * GROUPS):
            raise InputError(
                f"odise: need a UNet of {LEVELS} levels, a VAE of stride 8 and channels in multiples of {4 * GROUPS}; "
                f"got {len(unet.up_blocks)}, {stride} and {channels}."
            )
        self.vae, self.unet = vae.requires_grad_(False).eval(), unet.requires_grad_(False).eval()
        self.captioner, self.alpha = captioner, alpha
        self.widths, self.multiple = (channels,) * LEVELS, 64
        self.mean = self.std = (0.5, 0.5, 0.5)
        self.pad = "black"
        fine, coarse = vae.config.block_out_channels[-2:]
        widths = [fine, coarse, *reversed(unet.config.block_out_channels), coarse, fine]
        self.bottlenecks = nn.ModuleList(Bottleneck(width, channels) for width in widths)
        self.strides = (4, 8, 32, 16, 8, 8, 8, 4)  # of the bottlenecks' inputs

    def train(self, mode: bool = True) -> "OdiseEncoder":
        """Switch to training; the diffusion model stays in evaluation mode."""
        super().train(mode)
        self.vae.eval()
        self.unet.eval()
        return self

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """The maps of normalised images, whose sides are multiples of 64."""
        height, width = images.shape[2:]
        if max(height, width) <= WINDOW:
            return self._encode_crop(images)
        totals = [images.new_zeros(len(images), self.widths[0], height // s, width // s) for s in STRIDES]
        counts = [total.new_zeros(total.shape[2:]) for total in totals]
        for top in starts(height, window=WINDOW):
            for left in starts(width, window=WINDOW):
                crop = images[:, :, top : top + WINDOW, left : left + WINDOW]
                for total, count, part, stride in zip(totals, counts, self._encode_crop(crop), STRIDES, strict=True):
                    h, w = part.shape[2:]
                    y, x = slice(top // stride, top // stride + h), slice(left // stride, left // stride + w)
                    total[:, :, y, x] += part
                    count[y, x] += 1
        return [total / count for total, count in zip(totals, counts, strict=True)]

    def _encode_crop(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """The maps of images that are no larger than a crop."""
        # features of the diffusion model
        caption, time_offset = self.captioner((images + 1) * 127.5)
        with torch.no_grad():
            encoded, latent = encode(self.vae, images)
            noisy = self.alpha**0.5 * latent + (1 - self.alpha) ** 0.5 * self._noise(latent)
            decoded = decode(self.vae, latent)
        denoised = denoise(self.unet, noisy, caption, time_offset)  # with gradients, for the captioner

        # the sum of the bottlenecks of each stride
        features = zip(self.bottlenecks, [*encoded, *denoised, *decoded], strict=True)
        maps = [(stride, layer(part)) for stride, (layer, part) in zip(self.strides, features, strict=True)]
        return [torch.stack([part for at, part in maps if at == stride]).sum(dim=0) for stride in STRIDES]

    def _noise(self, latent: Float[Tensor, "B Z h w"]) -> Float[Tensor, "1 Z h w"]:
        """The noise, the same for every image of a size and on every device."""
        generator = torch.Generator().manual_seed(SEED)
        return torch.randn(1, *latent.shape[1:], generator=generator).to(latent)


class Bottleneck(nn.Module):
    """Three convolutions, the middle one with a quarter of the output channels, and a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        narrow = outputs // 4
        self.body = nn.Sequential(
            *(nn.Conv2d(inputs, narrow, 1, bias=False), nn.GroupNorm(GROUPS, narrow), nn.ReLU()),
            *(nn.Conv2d(narrow, narrow, 3, padding=1, bias=False), nn.GroupNorm(GROUPS, narrow), nn.ReLU()),
            *(nn.Conv2d(narrow, outputs, 1, bias=False), nn.GroupNorm(GROUPS, outputs)),
        )
        self.past: nn.Module = nn.Identity()
        if inputs != outputs:
            self.past = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.GroupNorm(GROUPS, outputs))

    def forward(self, x: Float[Tensor, "B X h w"]) -> Float[Tensor, "B Y h w"]:
        """Transform a map; its size stays."""
        return (self.body(x) + self.past(x)).relu()


def starts(side: int, *, window: int) -> list[int]:
    """Where crops begin along a side [pixels]: one after another, the last one shifted back to end at the edge."""
    return [min(start, max(0, side - window)) for start in range(0, side, window)]


def read_odise(folder: Path, clip: Clip, *, channels: int = 512) -> OdiseEncoder:
    """Read a Stable Diffusion from a folder of diffusers, with unet, vae, text_encoder, tokenizer and scheduler.

    Args:
        clip: of the captioner.
        channels: of each map.

    Raises:
        InputError: diffusers is not installed, or no such folder.
    """
    try:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel  # pyright: ignore[reportMissingImports]
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError as error:
        raise InputError(
            "ODISE's encoder needs diffusers and transformers. Run: pip install diffusers transformers"
        ) from error
    safe: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
    try:
        plain = {**safe, "low_cpu_mem_usage": False}  # True needs accelerate
        vae = AutoencoderKL.from_pretrained(folder / "vae", **plain)
        unet = UNet2DConditionModel.from_pretrained(folder / "unet", **plain)
        text = CLIPTextModel.from_pretrained(folder / "text_encoder", **safe)
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        alpha = 1 - json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["beta_start"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{folder}: need a folder with a Stable Diffusion as diffusers writes it; {first}") from error
    tokens = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt")
    with torch.no_grad():
        empty = text(tokens.input_ids).last_hidden_state[0]  # (T, C)
    captioner = ImplicitCaptioner(clip, empty=empty, time_width=unet.time_embedding.linear_2.out_features)
    return OdiseEncoder(vae, unet, captioner, alpha=alpha, channels=channels)


# ---------------------------------------------------------------- diffusers' modules, for features between their layers


def encode(
    vae: Any, images: Float[Tensor, "B 3 H W"]
) -> tuple[list[Float[Tensor, "B _ _ _"]], Float[Tensor, "B Z h w"]]:
    """Encode images in [-1, 1] to a VAE's latent space.

    Returns:
        The output of the last block of its two coarsest levels, finer first (blocks 5 and 7 of 0 to 7); and the latent,
        in the UNet's scale.
    """
    encoder, outputs = vae.encoder, []
    state = encoder.conv_in(images)
    for level in encoder.down_blocks:
        for block in level.resnets:
            state = block(state, None)
        outputs.append(state)
        for down in level.downsamplers or ():
            state = down(state)
    state = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(encoder.mid_block(state))))
    mean = vae.quant_conv(state).chunk(2, dim=1)[0]  # the other half is the log-variance
    return outputs[-2:], mean * vae.config.scaling_factor


def decode(vae: Any, latent: Float[Tensor, "B Z h w"]) -> list[Float[Tensor, "B _ _ _"]]:
    """Decode latents (in the UNet's scale) half-way.

    Returns:
        The output of the last block of its two coarsest levels, coarser first (blocks 2 and 5 of 0 to 11).
    """
    decoder, outputs = vae.decoder, []
    state = decoder.mid_block(decoder.conv_in(vae.post_quant_conv(latent / vae.config.scaling_factor)))
    for level in decoder.up_blocks[:2]:
        for block in level.resnets:
            state = block(state, None)
        outputs.append(state)
        for up in level.upsamplers or ():
            state = up(state)
    return outputs


def denoise(
    unet: Any, latent: Float[Tensor, "B Z h w"], caption: Float[Tensor, "B T C"], time_offset: Float[Tensor, "B X"]
) -> list[Float[Tensor, "B _ _ _"]]:
    """Run a UNet at t = 0.

    Args:
        latent: with noise.
        caption: of each image.
        time_offset: added to the embedding of the time.

    Returns:
        The output of each upsampling level, coarsest first, upsampled for the next (blocks 2, 5, 8, 11 of 0 to 11).
    """
    # the way down
    time = torch.zeros(len(latent), dtype=torch.int64, device=latent.device)
    embedding = unet.time_embedding(unet.time_proj(time).to(latent.dtype)) + time_offset
    state = unet.conv_in(latent)
    residuals = [state]
    for level in unet.down_blocks:
        state, level_residuals = level(hidden_states=state, temb=embedding, **_caption_of(level, caption))
        residuals.extend(level_residuals)
    state = unet.mid_block(state, embedding, encoder_hidden_states=caption)

    # the way up
    outputs = []
    for level in unet.up_blocks:
        count = len(level.resnets)
        residuals, used = residuals[:-count], tuple(residuals[-count:])
        options = _caption_of(level, caption)
        state = level(hidden_states=state, temb=embedding, res_hidden_states_tuple=used, **options)
        outputs.append(state)
    return outputs


def _caption_of(level: Any, caption: Tensor) -> dict[str, Tensor]:
    """The caption, for a level with attention."""
    return {"encoder_hidden_states": caption} if "attentions" in dict(level.named_children()) else {}
