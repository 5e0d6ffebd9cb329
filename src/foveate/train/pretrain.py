"""`foveate pretrain`: a small CLIP from scratch, or all but its text tower, on image-caption pairs.

The objective is the ordinary contrastive loss on whole images and nothing else, so that what the dense features lack
is what CLIP lacks. The transformers' matrices are trained with Muon and all else, a residual tower too, with AdamW
(AdamW alone starts a transformer much more slowly on so few images). The text tower may be that of another CLIP,
locked (Zhai et al., "LiT", 2022). OUT is an open_clip folder, in fp16. Deliberately absent: several processes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import PatchDropout, VisionTransformer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from foveate.clip.io.describe import CONFIG_FILE, Module, build, read_config
from foveate.clip.io.weights import WEIGHTS_FILE, save_clip
from foveate.clip.load import load
from foveate.clip.model import Clip
from foveate.data.datasets.shards import read_pairs
from foveate.data.loader import epoch_order
from foveate.engine.distributed import Processes
from foveate.engine.fit import Update
from foveate.errors import InputError
from foveate.io.listing import Listing, checksum
from foveate.objectives.image_text import clamp_scale, contrastive_loss
from foveate.ops.augment import random_views
from foveate.train import run as driver
from foveate.train.batches import count_images
from foveate.train.checks import check_pretrain
from foveate.train.flags import SMALL_CONFIG, Pretrain
from foveate.train.report import Report
from foveate.train.run import Trainable, require_one_process
from foveate.types import Batch, Sample

RESIDUAL = SMALL_CONFIG.with_name("resnet.json")


def run(config: Pretrain) -> None:
    """Pretrain, or resume, and write the CLIP; see `foveate.train.run.run`."""
    check_pretrain(config)
    driver.run(config, prepare)


def prepare(config: Pretrain, processes: Processes, report: Report) -> Trainable:
    """Pairs, towers and objective; see `foveate.train.run.Prepare`."""
    require_one_process(processes, "pretrain")
    # pairs at the size of the described tower
    description = read_config(RESIDUAL if config.config == Path("residual") else config.config)
    side = description["model_cfg"]["vision_cfg"]["image_size"]
    images, captions, names = read_pairs(config.data, side=side)
    listings = {"data": _listing(images, captions, names)}
    if config.batch > len(images):
        raise InputError(
            f"{config.data}: need at least one batch of {config.batch} pairs; got {len(images)}. Lower --batch."
        )
    # the towers, from scratch; the text tower may be locked
    clip = Clip(build(description, name=str(config.out), seed=config.seed), name=str(config.out), config=description)
    clip.to(processes.device)
    if config.text_from is not None:
        _lock_text(clip.model, description, config.text_from)
    if config.compile:
        _compile(clip)
    # the objective tokenizes all captions once
    held_out, texts, notes = None, captions, list[str]()
    if config.validate is not None:
        pairs = read_pairs(Path(config.validate), side=side)
        trained = {hash(image.numpy().tobytes()) for image in images}
        shared = sum(hash(image.numpy().tobytes()) in trained for image in pairs[0])
        if shared:
            notes.append(f"WARNING   --validate: {shared} of the {len(pairs[0])} held-out images are training images")
        held_out, texts = [_held_out(*pairs[:2])], [*captions, *pairs[1]]
        listings["validate"] = _listing(*pairs)
    objective = Contrastive(
        clip,
        texts,
        seed=config.seed,
        patch_dropout=config.patch_dropout,
        whole_from=config.steps - config.whole_steps,
    )

    def save(tensors: dict[str, Tensor]) -> str:
        clamp_scale(clip.model.logit_scale)
        save_clip(clip, config.out, dtype=torch.float16)
        return f"foveate distill --model {config.out} --data ..."

    return Trainable(
        name=config.config.stem,
        objective=objective,
        optimizer=MuonAndAdamW(clip.model, lr=config.lr),
        update=Update(partial(_learning_rate, peak=config.lr, warmup=config.warmup, steps=config.steps)),
        count=count_images,
        images=len(images),
        listings=listings,
        batches=lambda taken, steps: _batches(images, captions, config, first=taken // config.batch, steps=steps),
        held_out=held_out,
        notes=notes,
        save=save,
        product=config.out,
        files=(config.out / WEIGHTS_FILE, config.out / CONFIG_FILE),
        product_bytes=2 * sum(parameter.numel() for parameter in clip.parameters()),  # fp16
        metadata={"model": description},
        may_change=("pairs",),  # their number, in the records of earlier versions
    )


# ----------------------------------------------------------------------------------------------------------- the pairs


@dataclass(frozen=True)
class PairBatch(Batch):
    """The pairs of one step."""

    step: int | None = None  # from 0; None: held-out pairs


def _listing(images: UInt8[Tensor, "B 3 H W"], captions: list[str], names: list[str]) -> Listing:
    """The pairs with a checksum of their pixels and caption, which are in memory."""
    return Listing(
        lambda: (
            [name, checksum(image.numpy().data, caption.encode())]
            for name, image, caption in zip(names, images, captions, strict=True)
        )
    )


def _batches(
    images: UInt8[Tensor, "B 3 H W"], captions: list[str], config: Pretrain, *, first: int, steps: int
) -> Iterator[PairBatch]:
    """The batches of `steps` steps, from (seed, step) alone: epochs of shuffled pairs without incomplete batches."""
    per_epoch = len(images) // config.batch
    for step in range(first, first + steps):
        epoch = torch.Generator().manual_seed(config.seed * 1_000_003 + step // per_epoch)
        start = step % per_epoch * config.batch
        indices = torch.randperm(len(images), generator=epoch)[start : start + config.batch].tolist()
        yield PairBatch([_pair(images, captions, index) for index in indices], [], step)


def _held_out(images: UInt8[Tensor, "B 3 H W"], captions: list[str], *, count: int = 256) -> PairBatch:
    """The same held-out pairs in every run, as one batch: the loss depends on the number of pairs in it."""
    indices = epoch_order(len(images), seed=0, epoch=0)[:count]
    return PairBatch([_pair(images, captions, index) for index in indices], [])


def _pair(images: UInt8[Tensor, "B 3 H W"], captions: list[str], index: int) -> Sample:
    return Sample(str(index), images[index], torch.zeros(0, 4), caption=captions[index])


# ------------------------------------------------------------------------------------------------------- the objective


class Contrastive(nn.Module):
    """CLIP's loss over the pairs of a batch, on random views of the images; all draws come from (seed, step)."""

    def __init__(self, clip: Clip, captions: list[str], *, seed: int, patch_dropout: float, whole_from: int) -> None:
        """Set up the towers.

        Args:
            clip: on its device; parameters with `requires_grad` are trained.
            captions: all that batches may have, with duplicates.
            patch_dropout: fraction of each image's patches that is dropped (Li et al., "Scaling Language-Image
                Pre-training via Masking", 2023: twice the speed for the same images); by open_clip's ViTs only.
            whole_from: step from which no patches are dropped.
        """
        super().__init__()
        self.clip, self.seed, self.whole_from = clip, seed, whole_from
        self.dropout = PatchDropout(patch_dropout)
        clip.model.train()
        if isinstance(clip.visual, ModifiedResNet):
            clip.visual.to(memory_format=torch.channels_last)  # 0.75 of the time of a step on a CPU
        self.numbers = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
        self.tokens = clip.tokenize(list(self.numbers))  # (U, T)
        self.device = clip.model.logit_scale.device
        # on a CPU the fused kernel's bf16 backward over a few dozen tokens takes 43 % of a step: plain is faster
        is_cpu = self.device.type == "cpu"
        self.attention = [SDPBackend.MATH] if is_cpu else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]

    def forward(self, batch: PairBatch) -> Float[Tensor, ""]:
        """The loss; images with the same caption are positives of one another."""
        model = self.clip.model
        clamp_scale(model.logit_scale)  # as the optimizer left it
        numbers = torch.tensor([self.numbers[sample.caption or ""] for sample in batch.samples])  # (B,)
        unique, labels = numbers.unique(return_inverse=True)
        views = self._views(batch)
        with sdpa_kernel(self.attention), torch.autocast(self.device.type, torch.bfloat16):
            images = model.encode_image(views, normalize=True)  # (B, D)
            texts = model.encode_text(self.tokens[unique].to(self.device), normalize=True)[labels]  # (B, D)
        return contrastive_loss(images.float(), texts.float(), labels.to(self.device), scale=model.logit_scale.exp())

    def _views(self, batch: PairBatch) -> Float[Tensor, "B 3 H W"]:
        """Normalised images: random views in training, held-out ones unchanged; sets the dropout of patches."""
        images = torch.stack([sample.image for sample in batch.samples]).to(self.device)
        is_whole = batch.step is None or batch.step >= self.whole_from
        if isinstance(self.clip.visual, VisionTransformer):
            self.clip.visual.patch_dropout = nn.Identity() if is_whole else self.dropout
        views = images.float()
        if batch.step is not None:
            seed = self.seed * 7_368_787 + batch.step
            torch.manual_seed(seed)  # for the dropout
            views = random_views(images, generator=torch.Generator().manual_seed(seed))
        statistics = (self.clip.mean, self.clip.std)
        mean, std = (torch.tensor(values, device=self.device).view(3, 1, 1) * 255 for values in statistics)
        return (views - mean) / std


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon for the transformers' matrices, AdamW for the rest of what is trained, as one optimizer."""

    def __init__(self, model: nn.Module, *, lr: float, adam_scale: float = 0.5) -> None:
        """Group the trained parameters of a CLIP.

        The loop sets rates relative to `lr`, Muon's peak; AdamW's peak is `adam_scale` of it.
        """
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        matrices = [p for name, p in trained if p.ndim == 2 and "resblocks" in name]
        inner = {id(p) for p in matrices}
        rest = {"params": [p for _, p in trained if id(p) not in inner], "lr_scale": adam_scale}
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:  # none in a residual tower beside a locked text tower, and Muon refuses an empty list
            self.parts.append(torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"))
        self.parts.append(torch.optim.AdamW([rest], lr=adam_scale * lr, betas=(0.9, 0.98), weight_decay=0.01))
        super().__init__([p for _, p in trained], {})
        # the parts share groups and states, which the loop sets and checkpoints restore
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        for part in self.parts:
            part.state = self.state
        self.found_inf: Tensor | None = None  # set by `take_step`

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Step all parts, or none where the gradient is not finite."""
        if self.found_inf is None or not self.found_inf.item():
            for part in self.parts:
                part.step()


def _learning_rate(step: int, *, peak: float, warmup: int, steps: int) -> float:
    """Linear warm-up to `peak`, then a cosine to zero."""
    if step < warmup:
        return peak * ((step + 1) / warmup)
    return peak * (0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))))


# ---------------------------------------------------------------------------------------------------------- the towers


def _lock_text(model: Module, description: dict[str, Any], source: str) -> None:
    """Give a model the frozen text tower of another CLIP; the logit scale stays the model's."""
    clip = load(source)
    expected, got = (
        {key: value for key, value in config["model_cfg"].items() if key != "vision_cfg"}
        for config in (clip.config, description)
    )
    if expected != got:
        raise InputError(
            f"--text-from {source}: --config must describe its text tower and embedding, {expected}; got {got}. "
            "Change all but vision_cfg."
        )
    trained = ("visual.", "logit_")
    text = {key: value for key, value in clip.model.state_dict().items() if not key.startswith(trained)}
    model.load_state_dict(model.state_dict() | text)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(trained))


def _compile(clip: Clip) -> None:
    """Run the blocks of both towers through torch.compile."""
    if isinstance(clip.visual, ModifiedResNet):
        raise InputError("--compile: acts on transformer blocks; a residual tower has none. Remove it.")
    for part in clip.model.modules():
        if isinstance(part, nn.ModuleList):
            for block in part:
                block.compile()
