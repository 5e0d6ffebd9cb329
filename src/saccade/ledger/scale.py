"""The numbers that make one set of rows fit the rendered world, real pictures with the small CLIP, or the paper's size.

The paper's ablations are stated for a ViT-B/16 of 12 blocks that sees 1024 pixels; a smaller tower gets what is in
proportion. Deliberately absent: anything a flag of `saccade distill` decides by itself (learning rate, decay, warm-up).
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Scale:
    """What the rows of the ledger fill in."""

    steps: int
    batch: int
    size: int  # side of the student's and of the evaluation's dense input [pixels]
    sweep: tuple[int, ...]  # dense input sizes of Fig. 2, 3 and A1
    sizes: tuple[int, ...]  # smaller student inputs of Tab. 1; the paper's 320, 480, 640, 800 of 1024
    layers: tuple[int, ...]  # last so many blocks trained; the paper's 3, 6, 9 of 12
    window: int  # side of the attention windows [patches]
    proposal_steps: int
    detector_steps: int
    detector: tuple[str, ...]  # further flags of `saccade train-fvit`
    catseg_steps: int
    catseg: tuple[str, ...]  # further flags of `saccade train-catseg`
    generator_steps: int
    generator: tuple[str, ...]  # further flags of `saccade train-panoptic`
    alpha: float = 1.0


SMALL = Scale(
    steps=200,
    batch=4,
    size=192,
    sweep=(64, 128, 192, 256),
    sizes=(64, 96, 120, 152),  # in proportion, on whole patches of 8
    layers=(2, 3, 5),  # of 6; half a block is rounded up
    window=6,  # a quarter of the grid's side, as 16 is of 64
    proposal_steps=300,
    detector_steps=150,  # two epochs of the world; whole pictures, whose maps are computed once
    detector=(
        *("--batch", "8", "--lr", "1e-3", "--warmup", "20", "--proposals", "300", "--rois", "64"),
        *("--jitter", "1", "1", "--no-flip", "--cache"),
    ),
    catseg_steps=250,
    catseg=("--batch", "4"),
    generator_steps=1000,
    generator=("--batch", "2", "--milestones", "850", "--warmup", "20"),
)
B16 = Scale(
    steps=44_358,
    batch=2,
    size=1024,
    sweep=(224, 320, 480, 640, 800, 1024),
    sizes=(320, 480, 640, 800),
    layers=(3, 6, 9),
    window=16,
    proposal_steps=20_000,
    detector_steps=5_052,  # three epochs of OV-COCO
    detector=("--batch", "8", "--accumulate", "8"),
    catseg_steps=80_000,
    catseg=("--batch", "4"),
    generator_steps=92_188,
    generator=("--batch", "8", "--accumulate", "8"),
    alpha=0.7,
)
L14 = replace(
    B16,  # the paper's ablations are of B/16; here in proportion, on whole patches of 14
    size=896,
    sweep=(224, 336, 448, 560, 672, 896),
    sizes=(280, 420, 560, 700),
    layers=(6, 12, 18),
    alpha=0.95,
)


def scale_of(*, patch: int, native: int) -> Scale:
    """The numbers that go with a tower: the small CLIP's own, else the paper's for patches of 14 or of 16.

    Args:
        patch: side of its patches [pixels].
        native: side of the pictures it was trained on [pixels].
    """
    if native <= 64:
        return SMALL
    return L14 if patch == 14 else B16
