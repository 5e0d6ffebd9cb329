"""Pretrain a small CLIP from nothing on picture-caption pairs: one flat stage, from shards to an open_clip folder.

The objective is the ordinary contrastive loss on whole pictures and nothing else, so that what the dense features lack
is what CLIP lacks. The transformers' matrices are trained with Muon and all else, a whole residual tower too, with
AdamW (AdamW alone is much slower to start a transformer on so few pictures). The text tower may be another CLIP's,
locked (Zhai et al., "LiT", 2022). Resume = the same command; the state is kept in `OUT/last.pt`.

Deliberately absent: several processes, and any loss on regions.
"""

import math
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import PatchDropout, VisionTransformer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from foveate.clip.describe import Module, build, read_config
from foveate.clip.load import load
from foveate.clip.model import Clip
from foveate.clip.weights import save_clip
from foveate.data.shards import read_pairs
from foveate.engine.folder import claim_folder
from foveate.engine.log import Log
from foveate.errors import InputError
from foveate.objectives.image_text import clamp_scale, contrastive_loss
from foveate.ops.augment import random_views


def pretrain(
    pairs: Path,
    config: Path,
    out: Path,
    *,
    text_from: str | None,
    steps: int,
    batch: int,
    lr: float,
    lr_adam: float,
    warmup: int,
    patch_dropout: float,
    whole_steps: int,
    seed: int,
    save_every: int,
    device: str,
) -> None:
    """Train a CLIP with the contrastive loss and write it as an open_clip folder, in fp16.

    Args:
        pairs: folder of tar shards, KEY.jpg + KEY.txt.
        config: open_clip_config.json of the model to build.
        out: receives open_clip_config.json, open_clip_model.safetensors, metrics.jsonl, and last.pt to go on from.
        text_from: name or folder of a CLIP whose text tower is taken and stays as it is; None trains one.
        lr, lr_adam: peak learning rates of Muon and of AdamW; linear warm-up, cosine to 0.
        patch_dropout: share of each picture's patches left out (Li et al., "Scaling Language-Image Pre-training via
            Masking", 2023: twice the speed for the same pictures), but for the last whole_steps steps; only
            open_clip's ViTs do so, other towers see whole pictures.
        save_every: steps between saved states.
        device: cpu or cuda.

    Raises:
        InputError: numbers that cannot train, a config or pairs that cannot be used, a text tower of another kind, an
            output folder of another run, or a loss that is not finite (the last saved state is good).
    """
    # -------------------------------------------------------------------------------------------------- setting up
    _check(steps=steps, batch=batch, patch_dropout=patch_dropout, save_every=save_every)
    described = read_config(config)
    images, captions = read_pairs(pairs, side=described["model_cfg"]["vision_cfg"]["image_size"])
    if batch > len(images):
        raise InputError(f"{pairs}: need at least one batch of {batch} pairs; got {len(images)}. Lower --batch.")
    clip = Clip(build(described, name=str(out), seed=seed), name=str(out), config=described).to(device)
    model = clip.model.train()
    if text_from is not None:
        _lock_text(model, described, text_from)
    if isinstance(model.visual, ModifiedResNet):
        model.visual.to(memory_format=torch.channels_last)  # 0.75 of a step's time on a CPU
    dropout = PatchDropout(patch_dropout)
    # On a CPU the fused kernel's bf16 backward over a few dozen tokens takes 43 % of a step; plain attention is faster.
    attention = [SDPBackend.MATH] if device == "cpu" else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    numbers, tokens = _number_captions(captions, clip)
    mean, std = (torch.tensor(statistic, device=device).view(3, 1, 1) * 255 for statistic in (clip.mean, clip.std))
    optimizers = _optimizers(model, lr=lr, lr_adam=lr_adam)
    record = {"steps": steps, "batch": batch, "lr": lr, "lr_adam": lr_adam, "warmup": warmup, "seed": seed,
              "patch_dropout": patch_dropout, "whole_steps": whole_steps, "pairs": len(images),
              "model": described}  # fmt: skip
    if text_from is not None:
        record["text_from"] = text_from
    claim_folder(out, record)
    step = _restore(out / "last.pt", model, optimizers)
    # ----------------------------------------------------------------------------------------------------- the loop
    with Log(out / "metrics.jsonl", steps=steps, start_step=step, every=1) as log:
        while step < steps:
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * _schedule(step, steps=steps, warmup=warmup)
            chosen, generator = _draw(len(images), batch, seed=seed, step=step)
            torch.manual_seed(seed * 7_368_787 + step)
            if isinstance(model.visual, VisionTransformer):
                model.visual.patch_dropout = dropout if step < steps - whole_steps else nn.Identity()
            views = (random_views(images[chosen].to(device), generator=generator) - mean) / std
            unique, place = numbers[chosen].unique(return_inverse=True)
            with sdpa_kernel(attention), torch.autocast(torch.device(device).type, torch.bfloat16):
                seen = model.encode_image(views, normalize=True)
                read = model.encode_text(tokens[unique].to(device), normalize=True)[place]
            loss = contrastive_loss(seen.float(), read.float(), place.to(device), scale=model.logit_scale.exp())
            model.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).item()
            if not (math.isfinite(loss.item()) and math.isfinite(norm)):
                raise InputError(
                    f"step {step + 1}: the loss and its gradient must be finite; got {loss.item()} and {norm}. "
                    f"Lower the learning rates (--lr {lr} --lr-adam {lr_adam})."
                )
            for optimizer in optimizers:
                optimizer.step()
            clamp_scale(model.logit_scale)
            step += 1
            rate = optimizers[0].param_groups[0]["lr"]
            log.step(step, loss=loss.item(), lr=rate, gradient_norm=norm, pictures=batch, items=batch)
            if step % save_every == 0 or step == steps:
                _save(out / "last.pt", model, optimizers, step)
    # -------------------------------------------------------------------------------------------------- the product
    save_clip(clip, out, dtype=torch.float16)


def _check(*, steps: int, batch: int, patch_dropout: float, save_every: int) -> None:
    """Refuse numbers that cannot train anything, before anything is read."""
    if min(steps, save_every) < 1 or batch < 2:
        raise InputError(
            "pretrain: need at least 1 step, 1 step between saved states and a batch of 2 pairs; "
            f"got --steps {steps} --save-every {save_every} --batch {batch}."
        )
    if not 0 <= patch_dropout < 1:
        raise InputError(f"pretrain: --patch-dropout must be in [0, 1); got {patch_dropout}.")


def _lock_text(model: Module, described: dict[str, Any], source: str) -> None:
    """Give a model the text tower of another CLIP, not to be trained; the logit scale is the model's own."""
    other = load(source)
    there, here = (
        {key: value for key, value in config["model_cfg"].items() if key != "vision_cfg"}
        for config in (other.config, described)
    )
    if there != here:
        raise InputError(
            f"--text-from {source}: --config must describe its text tower and embedding, {there}; got {here}. "
            "Change all but vision_cfg."
        )
    own = ("visual.", "logit_")
    text = {key: value for key, value in other.model.state_dict().items() if not key.startswith(own)}
    model.load_state_dict(model.state_dict() | text)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(own))


def _number_captions(captions: list[str], clip: Clip) -> tuple[Int64[Tensor, " B"], Int64[Tensor, "U T"]]:
    """Give equal captions equal numbers, and the tokens of each number."""
    place: dict[str, int] = {}
    numbers = [place.setdefault(caption, len(place)) for caption in captions]
    return torch.tensor(numbers), clip.tokenize(list(place))


def _draw(count: int, batch: int, *, seed: int, step: int) -> tuple[Int64[Tensor, " B"], torch.Generator]:
    """The pictures of a step and its generator, from (seed, step) alone: epochs of shuffled pictures without a gap."""
    per_epoch = count // batch
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + step // per_epoch))
    place = step % per_epoch * batch
    return order[place : place + batch], torch.Generator().manual_seed(seed * 7_368_787 + step)


def _schedule(step: int, *, steps: int, warmup: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def _optimizers(model: nn.Module, *, lr: float, lr_adam: float) -> list[torch.optim.Optimizer]:
    """Muon for the transformers' matrices, AdamW for the rest of what is trained."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in trained if p.ndim == 2 and "resblocks" in name]
    inner = {id(p) for p in matrices}
    rest = [p for _, p in trained if id(p) not in inner]
    adam = torch.optim.AdamW([{"params": rest, "peak": lr_adam}], lr=lr_adam, betas=(0.9, 0.98), weight_decay=0.01)
    if not matrices:  # a residual tower beside a locked text tower; Muon refuses an empty list
        return [adam]
    muon = torch.optim.Muon(
        [{"params": matrices, "peak": lr}], lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, adam]


def _save(path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], step: int) -> None:
    """Replace the saved state, whole or not at all."""
    state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step}
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _restore(path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> int:
    """Load the saved state, if there is one; the step to go on from."""
    if not path.exists():
        return 0
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except (RuntimeError, EOFError, pickle.UnpicklingError, OSError) as error:
        raise InputError(f"{path}: need the saved state of this run; {error}. Delete it to start afresh.") from error
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["step"]
