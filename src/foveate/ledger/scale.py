"""Which recipes the rows are run with: on the rendered world, on COCO with the small CLIP, or at the paper's size.

Sizes, steps, precision and the optimizer's settings are those of `foveate.recipes`, so that a table and a recipe never
disagree; here is only what an ablation varies. The paper's ablations are of a ViT-B/16 of 12 blocks at 1024 pixels; a
smaller tower gets what is in proportion.
"""

from dataclasses import dataclass, replace
from typing import Any

from foveate.recipes import RECIPES

_FIELDS = {recipe.name: recipe.fields for recipe in RECIPES}
_DATA = {recipe.name: recipe.data for recipe in RECIPES}
_NOT_SHARED = ("model", "pretrained", "boxes")  # which CLIP and which regions: rows say so themselves
DEFAULT_BATCH = 4  # of `foveate distill`


@dataclass(frozen=True)
class Scale:
    """What the rows of the ledger fill in."""

    distill: str  # name of the recipe that every distillation starts from
    detector: str  # likewise of `foveate train-fvit`
    catseg: str  # of `foveate train-catseg`
    generator: str  # of `foveate train-panoptic`
    sweep: tuple[int, ...]  # dense input sizes of Fig. 2, 3 and A1
    sizes: tuple[int, ...]  # smaller student inputs of Tab. 1; the paper's 320, 480, 640, 800 of 1024
    layers: tuple[int, ...]  # last blocks trained; the paper's 3, 6, 9 of 12
    blocks: int  # of the tower
    window: int  # side of the attention windows [patches]
    proposal_steps: int
    steps_given: int | None = None  # of a distillation in place of its recipe's; no other training takes more

    def fields(self, recipe: str) -> dict[str, Any]:
        """The settings of a recipe, without the CLIP it names.

        Args:
            recipe: its name.
        """
        fields = {name: value for name, value in _FIELDS[recipe].items() if name not in _NOT_SHARED}
        if self.steps_given is not None and "steps" in fields:
            fields["steps"] = self.steps_given if recipe == self.distill else min(self.steps_given, fields["steps"])
        return fields

    @property
    def label_maps(self) -> tuple[str, ...]:
        """Flags that name the label maps which CAT-Seg's recipe is for."""
        return ("--kind", "stuff") if _DATA[self.catseg] == "coco-stuff" else ()

    @property
    def steps(self) -> int:
        """Of a distillation."""
        return self.fields(self.distill)["steps"]

    @property
    def batch(self) -> int:
        """Images per step of a distillation."""
        return self.fields(self.distill).get("batch", DEFAULT_BATCH)

    @property
    def size(self) -> int:
        """Side of the student's input, and of the dense input in evaluation [pixels]."""
        return self.fields(self.distill)["student_size"]

    @property
    def alpha(self) -> float:
        """Weight of the student in the mixture that is saved."""
        return self.fields(self.distill).get("alpha", 1.0)


SMALL = Scale(
    distill="world-short",
    detector="world-fvit",
    catseg="world-catseg",
    generator="world-panoptic",
    sweep=(64, 128, 192, 256),
    sizes=(64, 96, 120, 152),  # in proportion, on whole patches of 8
    layers=(2, 3, 5),  # half a block is rounded up
    blocks=6,
    window=6,  # a quarter of the grid's side, as 16 is of 64
    proposal_steps=300,
)
B16 = Scale(
    distill="clipself-b16-patches-1gpu",
    detector="fvit-ov-coco-b16",
    catseg="catseg-2024",
    generator="panoptic-tower",
    sweep=(224, 320, 480, 640, 800, 1024),
    sizes=(320, 480, 640, 800),
    layers=(3, 6, 9),
    blocks=12,
    window=16,
    proposal_steps=20_000,
)
L14 = replace(
    B16,  # the paper's ablations are of B/16; here in proportion, on whole patches of 14
    distill="clipself-l14-patches-1gpu",
    detector="fvit-ov-coco-l14",
    sweep=(224, 336, 448, 560, 672, 896),
    sizes=(280, 420, 560, 700),
    layers=(6, 12, 18),
    blocks=24,
)
OPENAI_B16 = replace(B16, distill="openai-b16-patches")
OPENAI_L14 = replace(L14, distill="openai-l14-patches")


def scale_of(*, patch: int, native: int, is_eva: bool = True) -> Scale:
    """The recipes that go with a tower: the small CLIP's own, else the paper's for patches of 14 or of 16.

    Args:
        patch: side of its patches [pixels].
        native: side of the images it was trained on [pixels].
        is_eva: whether it is an EVA-02 tower; others take OpenAI's optimizer settings (betas and eps).
    """
    if native <= 64:
        return SMALL
    if patch == 14:
        return L14 if is_eva else OPENAI_L14
    return B16 if is_eva else OPENAI_B16
