"""`foveate pretrain`: a small CLIP from nothing, or all but its text tower, on picture-caption pairs."""

from dataclasses import dataclass
from pathlib import Path

SMALL = Path(__file__).parent.parent / "clip" / "small" / "open_clip_config.json"
RESIDUAL = SMALL.with_name("resnet.json")


@dataclass(frozen=True)
class Pretrain:
    """Pretrain a CLIP on picture-caption pairs with the contrastive loss.

    The shipped small CLIP was made by this command (its card, clip/small/README.md, has the exact line and its log).
    The same command continues a stopped run.
    """

    pairs: Path
    """Folder of tar shards, KEY.jpg beside KEY.txt (`foveate world DIR --pairs 60000` writes DIR/pairs)."""
    out: Path
    """Folder for the model (an open_clip folder), metrics.jsonl and the state to resume from."""
    config: Path = SMALL
    """open_clip_config.json of the model to build; the small CLIP's by default. "residual" is its sibling with a CNN
    for an image tower (RN50's kind)."""
    text_from: str | None = None
    """A CLIP (foveate-small, or a saved model folder) whose text tower is taken and not trained, so that the new image
    tower shares its embedding space and learns sooner. When not given, a text tower is trained too."""
    steps: int = 2000
    """Optimizer steps."""
    batch: int = 256
    """Pairs a step."""
    lr: float = 2e-3
    """Highest learning rate of Muon, for the transformers' matrices."""
    lr_adam: float = 1e-3
    """Highest learning rate of AdamW, for everything else."""
    warmup: int = 50
    """Steps of linear warm-up before the cosine to zero."""
    patch_dropout: float = 0.5
    """Share of each picture's patches left out while training, twice the speed (ViTs only; a residual tower sees whole
    pictures)."""
    whole_steps: int = 300
    """The last so many steps see whole pictures."""
    seed: int = 0
    """Draws the weights, the order and the augmentation."""
    save_every: int = 100
    """Steps between saved states."""
    device: str = "auto"
    """cpu or cuda; auto = cuda where there is one."""


def run(config: Pretrain) -> None:
    """Pretrain, with a progress bar.

    Raises:
        InputError: no shards, an incomplete pair, or an output folder of another run.
    """
    from foveate.engine.distributed import choose_device
    from foveate.engine.pretrain import pretrain

    description = RESIDUAL if config.config == Path("residual") else config.config
    pretrain(
        config.pairs, description, config.out, text_from=config.text_from, steps=config.steps,
        batch=config.batch, lr=config.lr, lr_adam=config.lr_adam, warmup=config.warmup,
        patch_dropout=config.patch_dropout, whole_steps=config.whole_steps, seed=config.seed,
        save_every=config.save_every,
        device=choose_device(config.device, local_rank=None).type,
    )  # fmt: skip
    print(f"{config.out}: open_clip_config.json and open_clip_model.safetensors")
