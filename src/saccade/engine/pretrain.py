"""Pretrain a small CLIP from nothing on picture-caption pairs: one flat stage, from shards to an open_clip folder.

The objective is the ordinary contrastive loss on whole pictures and nothing else, so that what the dense features lack
is what CLIP lacks. Matrices are trained with Muon and all else with AdamW (AdamW alone is much slower to start on so
few pictures). Resume = the same command; the state is kept in `OUT/last.pt`.

Deliberately absent: several processes, and any loss on regions.
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
from jaxtyping import Int64
from open_clip.transformer import PatchDropout
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from saccade.data.shards import read_pairs
from saccade.objectives.image_text import clamp_scale, contrastive_loss
from saccade.ops.augment import random_views
from saccade.types import InputError

Report = Callable[[dict[str, float]], None]


def pretrain(
    pairs: Path,
    config: Path,
    out: Path,
    *,
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
    report: Report | None = None,
) -> None:
    """Train a CLIP with the contrastive loss and write it as an open_clip folder, in fp16.

    Args:
        pairs: folder of tar shards, KEY.jpg + KEY.txt.
        config: open_clip_config.json of the model to build.
        out: receives open_clip_config.json, open_clip_model.safetensors, metrics.jsonl and, until done, last.pt.
        lr, lr_adam: peak learning rates of Muon and of AdamW; linear warm-up, cosine to 0.
        patch_dropout: share of each picture's patches left out (Li et al., "Scaling Language-Image Pre-training via
            Masking", 2023: twice the speed for the same pictures), but for the last whole_steps steps.
        save_every: steps between saved states.
        report: called each step with the step's numbers.
    """
    # -------------------------------------------------------------------------------------------------- setting up
    torch.manual_seed(seed)
    described = json.loads(config.read_text())
    side = described["model_cfg"]["vision_cfg"]["image_size"]
    model = open_clip.CLIP(**described["model_cfg"]).to(device).train()
    # On a CPU the fused kernel's bf16 backward over a few dozen tokens takes 0.4 of the step; the plain one 0.1.
    attention = [SDPBackend.MATH] if device == "cpu" else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    tokenizer = open_clip.SimpleTokenizer(context_length=described["model_cfg"]["text_cfg"]["context_length"])
    images, captions = read_pairs(pairs, side=side)
    numbers, tokens = _number_captions(captions, tokenizer)
    mean, std = (
        torch.tensor(described["preprocess_cfg"][k], device=device).view(3, 1, 1) * 255 for k in ("mean", "std")
    )
    optimizers = _optimizers(model, lr=lr, lr_adam=lr_adam)
    _check(steps=steps, batch=batch, pairs=len(images), patch_dropout=patch_dropout)
    dropout = PatchDropout(patch_dropout)
    settings = {
        "steps": steps,
        "batch": batch,
        "lr": lr,
        "lr_adam": lr_adam,
        "warmup": warmup,
        "patch_dropout": patch_dropout,
        "whole_steps": whole_steps,
        "seed": seed,
        "pairs": len(images),
    }
    out.mkdir(parents=True, exist_ok=True)
    step = _restore(out / "last.pt", model, optimizers, settings)
    # ----------------------------------------------------------------------------------------------------- the loop
    with (out / "metrics.jsonl").open("a") as log:
        while step < steps:
            started = time.perf_counter()
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * _schedule(step, steps=steps, warmup=warmup)
            chosen, generator = _draw(len(images), batch, seed=seed, step=step)
            torch.manual_seed(seed * 7_368_787 + step)
            model.visual.patch_dropout = dropout if step < steps - whole_steps else nn.Identity()
            views = (random_views(images[chosen].to(device), generator=generator) - mean) / std
            unique, place = numbers[chosen].unique(return_inverse=True)
            with sdpa_kernel(attention), torch.autocast(torch.device(device).type, torch.bfloat16):
                seen = model.encode_image(views, normalize=True)
                read = model.encode_text(tokens[unique].to(device), normalize=True)[place]
            loss = contrastive_loss(seen.float(), read.float(), place.to(device), scale=model.logit_scale.exp())
            if not math.isfinite(loss.item()):
                raise InputError(
                    f"step {step}: the loss is {loss.item()}. Lower the learning rate (--lr {lr} --lr-adam {lr_adam})."
                )
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            clamp_scale(model.logit_scale)
            step += 1
            row = {"step": step, "loss": round(loss.item(), 4), "scale": round(model.logit_scale.exp().item(), 2),
                   "seconds": round(time.perf_counter() - started, 3)}  # fmt: skip
            log.write(json.dumps(row) + "\n")
            log.flush()
            if report:
                report(row)
            if step % save_every == 0 or step == steps:
                _save(out / "last.pt", model, optimizers, settings, step)
    # -------------------------------------------------------------------------------------------------- the product
    weights = {name: value.detach().half().contiguous().cpu() for name, value in model.state_dict().items()}
    save_file(weights, out / "open_clip_model.safetensors")
    (out / "open_clip_config.json").write_text(config.read_text())


def _check(*, steps: int, batch: int, pairs: int, patch_dropout: float) -> None:
    """Refuse numbers that cannot train anything."""
    if steps < 1 or not 2 <= batch <= pairs:
        raise InputError(
            f"pretrain: need at least one step and a batch of 2 to {pairs} pairs; got {steps} and {batch}."
        )
    if not 0 <= patch_dropout < 1:
        raise InputError(f"pretrain: patch dropout must be in [0, 1); got {patch_dropout}.")


def _number_captions(
    captions: list[str], tokenizer: open_clip.SimpleTokenizer
) -> tuple[Int64[Tensor, " B"], Int64[Tensor, "U T"]]:
    """Give equal captions equal numbers, and the tokens of each number."""
    place: dict[str, int] = {}
    numbers = [place.setdefault(caption, len(place)) for caption in captions]
    return torch.tensor(numbers), tokenizer(list(place))


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
    """Muon for the transformers' matrices, AdamW for the rest."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "resblocks" in n]
    inner = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in inner]
    muon = torch.optim.Muon(
        [{"params": matrices, "peak": lr}], lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
    )
    return [
        muon,
        torch.optim.AdamW([{"params": rest, "peak": lr_adam}], lr=lr_adam, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def _save(
    path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], settings: dict[str, float], step: int
) -> None:
    state = {
        "model": model.state_dict(),
        "optimizers": [o.state_dict() for o in optimizers],
        "settings": settings,
        "step": step,
    }
    torch.save(state, path.with_suffix(".partial"))
    path.with_suffix(".partial").replace(path)


def _restore(path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], settings: dict[str, float]) -> int:
    """Load the last saved state, if there is one of the same settings; the step to go on from."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True, map_location="cpu")
    if state["settings"] != settings:
        raise InputError(
            f"{path.parent}: holds a run with {state['settings']}, not {settings}. Name another folder, or delete it."
        )
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["step"]
