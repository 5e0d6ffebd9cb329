"""ODISE's encoder: what a frozen Stable Diffusion makes of an image, as four maps (Tab. 5).

    image --VAE encoder--> latent --noise of t = 0--> UNet, told what CLIP sees --> maps
            \\ last block of its two coarsest levels      \\ what leaves each of its four levels
    latent --VAE decoder--> last block of its two coarsest levels
    each -> bottleneck with GroupNorm; those of one stride are added: 4, 8, 16, 32

What CLIP sees takes the place of a caption: its image embedding through a linear layer and a place's own vector, let in
by a gate that starts closed, is added to the embedding of the empty text, and likewise to that of the time. The noise
is the same for every image. An image larger than 512 pixels is seen in crops of 512, the last ones shifted back to
end at its edge; where crops overlap, their maps are averaged. Needs diffusers, which is imported where a folder is
read. Not known from the paper, and chosen here: the latent is the mean of its distribution, the decoder sees it without
noise, the gates have one number a place and channel, and crops overlap no more than they must. Deliberately absent: the
decoder's and encoder's last layers, whose output nobody reads.
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
    """What CLIP sees in an image, in the place of a caption."""

    def __init__(self, clip: Clip, *, empty: Float[Tensor, "T C"], time_width: int) -> None:
        """Freeze a CLIP and make what is trained on its image embedding.

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
        """Caption images.

        Args:
            images: in [0, 255]; their aspect is ignored.

        Returns:
            The caption, and what is added to the embedding of the time.
        """
        side = self.clip.native_size
        with torch.no_grad():
            resized = F.interpolate(images, size=(side, side), mode="bicubic", antialias=True).clamp(0, 255)
            seen = self.clip.encode_image(normalize(resized, mean=self.clip.mean, std=self.clip.std), normalize=False)
        caption = self.gate.tanh() * (self.project(seen.float())[:, None] + self.places)  # (B, T, C)
        return self.empty + caption, self.time_gate.tanh() * (self.time(seen.float()) + self.time_place)


class OdiseEncoder(Encoder):
    """A frozen diffusion model's maps; bottlenecks and captioner learn."""

    def __init__(
        self, vae: Any, unet: Any, captioner: ImplicitCaptioner, *, kept: float, channels: int = 512, seed: int = SEED
    ) -> None:
        """Freeze a diffusion model and make what is trained on it.

        Args:
            vae: diffusers' AutoencoderKL.
            unet: diffusers' UNet2DConditionModel, of four levels.
            captioner: for the UNet's text.
            kept: share of the latent's variance that t = 0 leaves (the first of alphas_cumprod).
            channels: of each map; a multiple of 128.
            seed: of the noise.

        Raises:
            InputError: channels, or a diffusion model, that do not fit.
        """
        super().__init__()
        latent = 2 ** (len(vae.config.block_out_channels) - 1)  # pixels a place of the latent, 8
        if len(unet.up_blocks) != LEVELS or latent != 8 or channels % (4 * GROUPS):
            raise InputError(
                f"odise: need a UNet of {LEVELS} levels, a VAE of stride 8 and channels in multiples of {4 * GROUPS}; "
                f"got {len(unet.up_blocks)}, {latent} and {channels}."
            )
        self.vae, self.unet = vae.requires_grad_(False).eval(), unet.requires_grad_(False).eval()
        self.captioner, self.kept, self.seed = captioner, kept, seed
        self.widths, self.multiple = (channels,) * LEVELS, 64
        self.mean = self.std = (0.5, 0.5, 0.5)
        self.pad = "black"
        fine, coarse = vae.config.block_out_channels[-2:]
        widths = [fine, coarse, *reversed(unet.config.block_out_channels), coarse, fine]
        self.bottlenecks = nn.ModuleList(Bottleneck(width, channels) for width in widths)
        self.strides = (4, 8, 32, 16, 8, 8, 8, 4)  # of what the bottlenecks see

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
            return self._see(images)
        maps = [images.new_zeros(len(images), self.widths[0], height // one, width // one) for one in STRIDES]
        counts = [one.new_zeros(one.shape[2:]) for one in maps]
        for top in starts(height, window=WINDOW):
            for left in starts(width, window=WINDOW):
                crop = images[:, :, top : top + WINDOW, left : left + WINDOW]
                for one, count, seen, stride in zip(maps, counts, self._see(crop), STRIDES, strict=True):
                    h, w = seen.shape[2:]
                    y, x = slice(top // stride, top // stride + h), slice(left // stride, left // stride + w)
                    one[:, :, y, x] += seen
                    count[y, x] += 1
        return [one / count for one, count in zip(maps, counts, strict=True)]

    def _see(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """The maps of images that are no larger than a crop."""
        caption, moment = self.captioner((images + 1) * 127.5)
        with torch.no_grad():
            encoded, latent = encode(self.vae, images)
            noisy = self.kept**0.5 * latent + (1 - self.kept) ** 0.5 * self._noise(latent)
            decoded = decode(self.vae, latent)
        within = denoise(self.unet, noisy, caption, moment)  # with gradients, which the captioner learns from
        seen = [
            bottleneck(one) for bottleneck, one in zip(self.bottlenecks, [*encoded, *within, *decoded], strict=True)
        ]
        return [
            torch.stack([one for one, own in zip(seen, self.strides, strict=True) if own == stride]).sum(dim=0)
            for stride in STRIDES
        ]

    def _noise(self, latent: Float[Tensor, "B Z h w"]) -> Float[Tensor, "1 Z h w"]:
        """The same for every image of a size, on every device."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(1, *latent.shape[1:], generator=generator).to(latent)


class Bottleneck(nn.Module):
    """Three convolutions of which the middle one is narrow; past them leads a fourth, or none where widths agree."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Make one.

        Args:
            inputs: channels.
            outputs: channels; a quarter of them is what the middle one has.
        """
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
        """What both ways give."""
        return (self.body(x) + self.past(x)).relu()


def starts(side: int, *, window: int) -> list[int]:
    """Where crops begin along a side [pixels]: one after another, the last one shifted back to end with it."""
    return [min(start, max(0, side - window)) for start in range(0, side, window)]


def read_odise(folder: Path, clip: Clip, *, channels: int = 512, seed: int = SEED) -> OdiseEncoder:
    """Read a Stable Diffusion from a folder as diffusers writes it.

    Args:
        folder: with unet, vae, text_encoder, tokenizer and scheduler.
        clip: of the captioner.
        channels: of each map.
        seed: of the noise.

    Raises:
        InputError: diffusers is not installed, or no such folder.
    """
    try:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel  # pyright: ignore[reportMissingImports]
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError as error:
        raise InputError(
            "ODISE's encoder needs diffusers and transformers: pip install diffusers transformers."
        ) from error
    safe: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
    try:
        plain = {**safe, "low_cpu_mem_usage": False}  # else it asks for accelerate
        vae = AutoencoderKL.from_pretrained(folder / "vae", **plain)
        unet = UNet2DConditionModel.from_pretrained(folder / "unet", **plain)
        text = CLIPTextModel.from_pretrained(folder / "text_encoder", **safe)
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        kept = 1 - json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["beta_start"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{folder}: need a folder with a Stable Diffusion as diffusers writes it; {first}") from error
    tokens = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt")
    with torch.no_grad():
        empty = text(tokens.input_ids).last_hidden_state[0]  # (T, C)
    captioner = ImplicitCaptioner(clip, empty=empty, time_width=unet.time_embedding.linear_2.out_features)
    return OdiseEncoder(vae, unet, captioner, kept=kept, channels=channels, seed=seed)


# --------------------------------------------- the library's modules, run by hand for what lies between their layers


def encode(
    vae: Any, images: Float[Tensor, "B 3 H W"]
) -> tuple[list[Float[Tensor, "B _ _ _"]], Float[Tensor, "B Z h w"]]:
    """Bring images to a VAE's latent space.

    Args:
        vae: diffusers' AutoencoderKL.
        images: in [-1, 1].

    Returns:
        What the last block of its two coarsest levels makes, finer first (blocks 5 and 7 of 0 to 7); and the latent, in
        the scale the UNet knows.
    """
    encoder, kept = vae.encoder, []
    state = encoder.conv_in(images)
    for level in encoder.down_blocks:
        for block in level.resnets:
            state = block(state, None)
        kept.append(state)
        for down in level.downsamplers or ():
            state = down(state)
    state = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(encoder.mid_block(state))))
    mean = vae.quant_conv(state).chunk(2, dim=1)[0]  # the other half is the logarithm of the variance
    return kept[-2:], mean * vae.config.scaling_factor


def decode(vae: Any, latent: Float[Tensor, "B Z h w"]) -> list[Float[Tensor, "B _ _ _"]]:
    """Bring latents half-way back.

    Args:
        vae: diffusers' AutoencoderKL.
        latent: in the scale the UNet knows.

    Returns:
        What the last block of its two coarsest levels makes, coarser first (blocks 2 and 5 of 0 to 11).
    """
    decoder, kept = vae.decoder, []
    state = decoder.mid_block(decoder.conv_in(vae.post_quant_conv(latent / vae.config.scaling_factor)))
    for level in decoder.up_blocks[:2]:
        for block in level.resnets:
            state = block(state, None)
        kept.append(state)
        for up in level.upsamplers or ():
            state = up(state)
    return kept


def denoise(
    unet: Any, latent: Float[Tensor, "B Z h w"], caption: Float[Tensor, "B T C"], moment: Float[Tensor, "B X"]
) -> list[Float[Tensor, "B _ _ _"]]:
    """Run a UNet at t = 0.

    Args:
        unet: diffusers' UNet2DConditionModel.
        latent: with noise.
        caption: of each image.
        moment: added to the embedding of the time.

    Returns:
        What leaves each level of its way up, coarsest first, made larger for the next (blocks 2, 5, 8, 11 of 0 to 11).
    """
    time = torch.zeros(len(latent), dtype=torch.int64, device=latent.device)
    embedding = unet.time_embedding(unet.time_proj(time).to(latent.dtype)) + moment
    state = unet.conv_in(latent)
    skipped, kept = [state], []
    for level in unet.down_blocks:
        state, more = level(hidden_states=state, temb=embedding, **_told(level, caption))
        skipped.extend(more)
    state = unet.mid_block(state, embedding, encoder_hidden_states=caption)
    for level in unet.up_blocks:
        count = len(level.resnets)
        skipped, own = skipped[:-count], tuple(skipped[-count:])
        state = level(hidden_states=state, temb=embedding, res_hidden_states_tuple=own, **_told(level, caption))
        kept.append(state)
    return kept


def _told(level: Any, caption: Tensor) -> dict[str, Tensor]:
    """The caption, for a level of a UNet that looks at it."""
    return {"encoder_hidden_states": caption} if "attentions" in dict(level.named_children()) else {}
