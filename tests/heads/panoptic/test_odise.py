"""ODISE's encoder on a tiny random Stable Diffusion; some parts without diffusers."""

import importlib.util
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import diffusion, write_diffusion
from torch import nn

from foveate.cli.main import main
from foveate.data.world.write import WorldSize, write_world
from foveate.errors import InputError
from foveate.heads.panoptic import odise
from foveate.heads.panoptic.criterion import LossWeights
from foveate.heads.panoptic.mask2former import MaskGenerator
from foveate.heads.panoptic.odise import ImplicitCaptioner, OdiseEncoder, decode, denoise, encode, read_odise, starts
from foveate.types import Batch

HAS_DIFFUSERS = importlib.util.find_spec("diffusers") is not None
needs_diffusers = pytest.mark.skipif(not HAS_DIFFUSERS, reason="needs diffusers, which is not installed")


class Block(nn.Module):
    """A convolution that takes the time's embedding and does not look at it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1)

    def forward(self, state, _=None):
        return self.conv(state)


class Level(nn.Module):
    """A level of a VAE, or, with a caption of `told` numbers, of a UNet's way down or up (`skips`: what it takes)."""

    def __init__(self, inputs, outputs, *, change, skips=None, told=0, blocks=2) -> None:
        super().__init__()
        skips = skips or [0] * blocks
        widths = [inputs, *[outputs] * (len(skips) - 1)]
        self.resnets = nn.ModuleList(Block(a + b, outputs) for a, b in zip(widths, skips, strict=True))
        self.downsamplers = [nn.AvgPool2d(2)] if change == "down" else None
        self.upsamplers = [nn.Upsample(scale_factor=2)] if change == "up" else None
        if told:
            self.attentions = nn.Linear(told, outputs)

    def forward(self, hidden_states, temb, res_hidden_states_tuple=None, encoder_hidden_states=None):
        state, kept = hidden_states + temb.mean(), []
        for place, block in enumerate(self.resnets):
            own = () if res_hidden_states_tuple is None else (res_hidden_states_tuple[-1 - place],)
            state = block(torch.cat([state, *own], dim=1))
            if encoder_hidden_states is not None:
                state = state + self.attentions(encoder_hidden_states).mean(dim=1)[:, :, None, None]
            kept.append(state)
        for change in self.downsamplers or self.upsamplers or ():
            state = change(state)
            kept.append(state)
        return state if res_hidden_states_tuple is not None else (state, kept)


class Middle(Block):
    def forward(self, state, _=None, encoder_hidden_states=None):
        return self.conv(state)


def stand_in():
    """The parts of diffusers' models that are run by hand, with convolutions of one pixel in their blocks."""
    torch.manual_seed(0)
    widths = (4, 4, 8, 12)
    ends = {"conv_norm_out": nn.Identity(), "conv_act": nn.SiLU()}

    def module(**parts) -> nn.Module:
        made = nn.Module()
        for name, part in parts.items():
            setattr(made, name, part)
        return made

    down = [Level(a, b, change="" if b == 12 else "down") for a, b in zip((4, *widths), widths, strict=False)]
    coarse_to_fine = widths[::-1]
    up = [Level(a, b, change="up", blocks=3) for a, b in zip((12, *coarse_to_fine), coarse_to_fine, strict=False)]
    vae = module(
        encoder=module(conv_in=Block(3, 4), down_blocks=nn.ModuleList(down), mid_block=Block(12, 12), **ends),
        decoder=module(conv_in=Block(4, 12), mid_block=Block(12, 12), up_blocks=nn.ModuleList(up)),
        quant_conv=Block(8, 8),
        post_quant_conv=Block(4, 4),
        config=SimpleNamespace(block_out_channels=widths, scaling_factor=0.18215),
    )
    vae.encoder.conv_out = Block(12, 8)
    changes, told = ("down", "down", "down", ""), (12, 12, 12, 0)
    widths = (8, 8, 16, 16)
    rows = zip((8, *widths), widths, changes, told, strict=False)
    down = [Level(a, b, change=change, told=words) for a, b, change, words in rows]
    # what was kept on the way down: 8 | 8 8 8 | 8 8 8 | 16 16 16 | 16 16, taken three by three from the end
    skips, changes = ([16, 16, 16], [16, 16, 8], [8, 8, 8], [8, 8, 8]), ("up", "up", "up", "")
    rows = zip((16, 16, 16, 8), (16, 16, 8, 8), changes, skips, told[::-1], strict=True)
    up = [Level(a, b, change=change, skips=own, told=words) for a, b, change, own, words in rows]
    unet = module(
        time_proj=lambda time: time[:, None].float().cos(),
        time_embedding=nn.Linear(1, 1),
        conv_in=Block(4, 8),
        down_blocks=nn.ModuleList(down),
        mid_block=Middle(16, 16),
        up_blocks=nn.ModuleList(up),
        config=SimpleNamespace(block_out_channels=widths),
    )
    return vae, unet


SOURCES = [pytest.param(stand_in, id="stand-in"), pytest.param(diffusion, id="diffusers", marks=needs_diffusers)]


def encoder_of(clip, source) -> OdiseEncoder:
    vae, unet = source()
    embedding = unet.time_embedding
    width = (embedding if isinstance(embedding, nn.Linear) else embedding.linear_2).out_features
    captioner = ImplicitCaptioner(clip, empty=torch.randn(5, 12), time_width=width)
    return OdiseEncoder(vae, unet, captioner, alpha=0.99915, channels=128)


def test_the_gate_starts_at_zero_and_then_passes_the_image_embedding(tiny_clip):
    clip = tiny_clip()
    captioner = ImplicitCaptioner(clip, empty=torch.randn(5, 12), time_width=3).train()
    images = 255 * torch.rand(2, 3, 32, 32)  # the native size, so nothing is resized
    caption, moment = captioner(images)
    assert torch.equal(caption, captioner.empty.expand(2, -1, -1)) and torch.equal(moment, torch.zeros(2, 3))
    with torch.no_grad():
        captioner.gate.fill_(0.5)
        captioner.time_gate.fill_(-0.2)
    seen = clip.encode_image((images / 255 - 0.5) / 0.25, normalize=False)
    expected = captioner.empty + torch.tensor(0.5).tanh() * (captioner.project(seen)[:, None] + captioner.places)
    caption, moment = captioner(images)
    assert torch.allclose(caption, expected, atol=1e-4)
    assert torch.allclose(moment, torch.tensor(-0.2).tanh() * (captioner.time(seen) + captioner.time_place), atol=1e-4)
    (caption.sum() + moment.sum()).backward()
    assert captioner.gate.grad is not None and all(one.grad is None for one in clip.parameters()) and not clip.training


@pytest.mark.skipif(HAS_DIFFUSERS, reason="diffusers is installed")
def test_the_message_without_diffusers(tiny_clip, tmp_path):
    with pytest.raises(InputError, match=r"needs diffusers .*foveate\[seg\]"):
        read_odise(tmp_path, tiny_clip())


@needs_diffusers
def test_features_equal_those_of_diffusers():
    vae, unet = diffusion()
    images, caption = torch.randn(2, 3, 64, 64), torch.randn(2, 5, 12)
    with torch.no_grad():
        kept, latent = encode(vae, images)
        assert torch.allclose(latent, vae.encode(images).latent_dist.mode() * 0.18215, atol=1e-5)
        assert [tuple(one.shape[1:]) for one in kept] == [(8, 16, 16), (12, 8, 8)]
        *_, last = denoise(unet, latent, caption, torch.zeros(2, 32))
        expected = unet(latent, 0, encoder_hidden_states=caption).sample
        assert torch.allclose(unet.conv_out(unet.conv_act(unet.conv_norm_out(last))), expected, atol=1e-5)
        state = decode(vae, latent)[-1]
        for up in vae.decoder.up_blocks[1].upsamplers:
            state = up(state)
        for level in vae.decoder.up_blocks[2:]:
            state = level(state)
        drawn = vae.decoder.conv_out(vae.decoder.conv_act(vae.decoder.conv_norm_out(state)))
        assert torch.allclose(drawn, vae.decode(latent / 0.18215).sample, atol=1e-5)


@pytest.mark.parametrize("source", SOURCES)
def test_four_maps_fixed_noise_and_trained_parameters(tiny_clip, source):
    encoder = encoder_of(tiny_clip(), source).train()
    images = torch.randn(2, 3, 64, 128)
    maps = encoder(images)
    assert [tuple(one.shape[1:]) for one in maps] == [(128, 16, 32), (128, 8, 16), (128, 4, 8), (128, 2, 4)]
    alone = encoder(images[1:])
    assert all(torch.allclose(one[1:], other, atol=1e-4) for one, other in zip(maps, alone, strict=True))
    sum(one.sum() for one in maps).backward()
    learned = {name for name, one in encoder.named_parameters() if one.grad is not None}
    assert {name.split(".")[0] for name in learned} == {"bottlenecks", "captioner"}
    assert "captioner.gate" in learned and not encoder.unet.training and not encoder.vae.training


def test_a_larger_image_is_processed_in_crops(tiny_clip, monkeypatch):
    assert (
        starts(512, window=512) == [0] and starts(1088, window=512) == [0, 512, 576] and starts(64, window=512) == [0]
    )
    encoder = encoder_of(tiny_clip(), stand_in).eval()
    images = torch.randn(1, 3, 64, 192)
    whole = encoder(images)
    monkeypatch.setattr(odise, "WINDOW", 128)
    with torch.no_grad():
        left, right = encoder._encode_crop(images[..., :128]), encoder._encode_crop(images[..., 64:])
        seen = encoder(images)
    for one, a, b, full in zip(seen, left, right, whole, strict=True):
        half = a.shape[3] // 2  # the crops have half of their width in common
        assert one.shape == full.shape
        assert torch.allclose(one[..., :half], a[..., :half]) and torch.allclose(one[..., 2 * half :], b[..., half:])
        assert torch.allclose(one[..., half : 2 * half], (a[..., half:] + b[..., :half]) / 2, atol=1e-6)


def test_padding_is_black(tiny_clip, tiny_decoder, scenes, monkeypatch):
    model = MaskGenerator(encoder_of(tiny_clip(), stand_in), tiny_decoder((128,) * 4), is_novel=torch.zeros(3) > 0,
                          size=64)  # fmt: skip
    inputs = []
    see = OdiseEncoder.forward
    monkeypatch.setattr(OdiseEncoder, "forward", lambda self, images: inputs.append(images) or see(self, images))
    (sample,) = scenes(1)
    tall = replace(sample, image=sample.image[:, :, :32])
    model.propose([tall])
    model.longest = 192
    (proposals,) = model.propose([tall])
    (square,), (framed,) = inputs
    assert square.shape == (3, 64, 64) and square.min() == -1 and bool((square[:, :, 20:] == -1).all())
    height, width = sample.image.shape[1], 32
    fitted = (round(64 * height / width), 64) if 64 * height / width <= 192 else (192, round(192 * width / height))
    assert proposals.frame is not None and proposals.frame.fitted == fitted
    assert framed.shape[1] % 64 == 0 and framed.shape[2] == 64 and bool((framed[:, fitted[0] :] == -1).all())
    assert bool((framed[:, :, fitted[1] :] == -1).all()) and len(proposals.masks) == 8


@pytest.mark.parametrize("source", SOURCES)
def test_a_mask_generator_on_it(tiny_clip, tiny_decoder, scenes, source):
    weights, novel = LossWeights(points=128), torch.zeros(64) > 0
    encoder = encoder_of(tiny_clip(), source)
    model = MaskGenerator(encoder, tiny_decoder((128,) * 4), is_novel=novel, size=64, weights=weights)
    assert model(Batch(scenes(1), [])).isfinite() and len(model.propose(scenes(1))[0].masks) == 8


@needs_diffusers
def test_reading_a_folder(tiny_clip, tmp_path):
    unet = write_diffusion(tmp_path)
    encoder = read_odise(tmp_path, tiny_clip(), channels=128)
    assert encoder.alpha == pytest.approx(0.99915) and encoder.captioner.empty.shape == (5, 12)
    assert torch.equal(encoder.unet.conv_in.weight, unet.conv_in.weight)
    with pytest.raises(InputError, match="need a folder with a Stable Diffusion"):
        read_odise(tmp_path / "nowhere", tiny_clip())


@needs_diffusers
def test_the_command_line_trains_and_evaluates_a_mask_generator(tmp_path, capsys):
    folder = tmp_path / "sd"
    folder.mkdir()
    write_diffusion(folder)
    world = tmp_path / "w"
    write_world(world, WorldSize(train=2, val=2, test=0, pairs=0, seed=0), processes=1)
    small = ["--size", "64", "--channels", "128", "--queries", "4", "--depth", "1", "--steps", "2"]
    where = ["--batch", "1", "--workers", "0", "--device", "cpu"]
    main(
        ["train-panoptic", "--data", str(world), "--out", str(tmp_path / "g"), "--encoder", str(folder), *small, *where]
    )
    model = ["--data", str(world), "--model", str(tmp_path / "g/model"), "--workers", "0", "--device", "cpu"]
    main(["evaluate", "panoptic", *model, "--out", str(tmp_path / "r.json")])
    assert json.loads((tmp_path / "r.json").read_text())["images"] == 2
    state = load_file(tmp_path / "g/model/generator.safetensors")
    assert not any(name.startswith(("encoder.unet", "encoder.vae")) for name in state)  # the frozen are not copied

    folder.rename(tmp_path / "moved")
    main(["evaluate", "panoptic", *model, "--encoder", str(tmp_path / "moved"), "--out", str(tmp_path / "again.json")])
    first, again = (json.loads((tmp_path / name).read_text()) for name in ("r.json", "again.json"))
    assert first["shares"] == again["shares"]
