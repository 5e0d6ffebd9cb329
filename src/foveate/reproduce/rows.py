"""The rows of the paper's tables, as data: what is trained, what is measured, what the paper printed, what it claims.

A run is a training command; a row measures a run (or the pretrained CLIP it starts from) and stands in one table; a
claim compares two rows, as the paper's text does. Sizes, steps, precision and the optimizer's settings are those of
`foveate.recipes`; a scale says which recipes, and what an ablation varies. Published numbers are of EVA-02 B/16 on
COCO, where they are known to us. Deliberately absent: how commands are run (`runner.py`) and the verdicts (`page.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from foveate.recipes import RECIPES

Table = Literal["tab1", "tab2", "tab8", "tabA1", "tabA3", "figs", "global", "terms", "ovd", "ovss", "ovps"]
TABLES: tuple[str, ...] = get_args(Table)
APPLICATIONS = ("ovd", "ovss", "ovps")  # of TABLES; not among "all", each takes about an hour of its own
Measure = Literal[
    "regions", "sweep", "masked", "retrieval", "global", "pareto", "detection", "cosines", "semantic", "panoptic"
]

# -------------------------------------------------------------------------------------------------------------- scales

DEFAULT_BATCH = 4  # of `foveate distill`
_RECIPES = {recipe.name: recipe for recipe in RECIPES}
_NOT_SHARED = ("model", "pretrained", "regions")  # which CLIP and which regions: rows say so themselves


@dataclass(frozen=True)
class Scale:
    """Which recipes the rows are run with, and what its ablations vary; the paper's are of B/16 at 1024 pixels."""

    distill: str  # name of the recipe that every distillation starts from
    detector: str  # likewise of `foveate train-fvit`
    catseg: str  # of `foveate train-catseg`
    generator: str  # of `foveate train-panoptic`
    sweep: tuple[int, ...]  # dense input sizes of Fig. 2, 3 and A1 [pixels]
    sizes: tuple[int, ...]  # smaller student inputs of Tab. 1; the paper's 320, 480, 640, 800 of 1024
    layers: tuple[int, ...]  # last blocks trained; the paper's 3, 6, 9 of 12
    blocks: int  # of the tower
    window: int  # side of the attention windows [patches]
    proposal_steps: int
    steps_given: int | None = None  # of a distillation in place of its recipe's; no other training takes more

    def fields(self, recipe: str) -> dict[str, Any]:
        """The settings of a recipe, without the CLIP it names."""
        fields = {name: value for name, value in _RECIPES[recipe].fields.items() if name not in _NOT_SHARED}
        if self.steps_given is not None and "steps" in fields:
            fields["steps"] = self.steps_given if recipe == self.distill else min(self.steps_given, fields["steps"])
        return fields

    @property
    def label_maps(self) -> tuple[str, ...]:
        """Flags that name the label maps which CAT-Seg's recipe is for."""
        return ("--kind", "stuff") if _RECIPES[self.catseg].data == "coco-stuff" else ()

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
        return self.fields(self.distill)["size"]

    @property
    def alpha(self) -> float:
        """Weight of the student in the mixture that is saved."""
        return self.fields(self.distill).get("alpha", 1.0)


# fmt: off
SMALL = Scale(
    "world-short", "world-fvit", "world-catseg", "world-panoptic",
    sweep=(64, 128, 192, 256), sizes=(64, 96, 120, 152),  # in proportion, on whole patches of 8
    layers=(2, 3, 5), blocks=6,  # half a block is rounded up
    window=6, proposal_steps=300,  # a quarter of the grid's side, as 16 is of 64
)
B16 = Scale(
    "clipself-b16-patches-1gpu", "fvit-ov-coco-b16", "catseg-2024", "panoptic-tower",
    sweep=(224, 320, 480, 640, 800, 1024), sizes=(320, 480, 640, 800),
    layers=(3, 6, 9), blocks=12, window=16, proposal_steps=20_000,
)
L14 = replace(
    B16, distill="clipself-l14-patches-1gpu", detector="fvit-ov-coco-l14",
    sweep=(224, 336, 448, 560, 672, 896), sizes=(280, 420, 560, 700),  # in proportion, on whole patches of 14
    layers=(6, 12, 18), blocks=24,
)
# fmt: on
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


# ---------------------------------------------------------------------------------------------------------------- runs


@dataclass(frozen=True)
class Run:
    """One training command, beside the data, the model, the steps and the seed that all of them share."""

    name: str
    flags: str = ""
    """Of `foveate distill`; {proposals} and {names} stand for files."""
    needs: tuple[str, ...] = ()
    """Which of proposals, pairs and captions it needs."""
    data: str = "{data}"
    """What --data is."""


def runs_of(scale: Scale) -> dict[str, Run]:
    """Every training command, by name."""
    image_text_steps = max(1, scale.steps * scale.batch // 16)  # 16 per step, to tell captions apart; as many images
    region_text = "--objective region-text --regions {proposals}"
    runs = [
        Run("clipself"),
        Run("m4", "--grid 4"),
        Run("m8", "--grid 8"),
        *(Run(f"last{count}", f"--layers {count}") for count in scale.layers),
        *(Run(f"size{size}", f"--size {size}") for size in scale.sizes),
        Run("image-text", f"--objective image-text --batch 16 --steps {image_text_steps}", ("captions",)),
        Run("proposals", "--regions {proposals}", ("proposals",)),
        Run("region-text", region_text, ("proposals", "captions")),
        Run("region-text-names", f"{region_text} --captions {{names}}", ("proposals",)),
        Run("window", f"--window {scale.window}"),
        Run("other-domain", "", ("pairs",), data="{data}/pairs"),
        Run("keep", "--keep 1"),
        Run("correlation", "--correlation 0.1"),
        Run("values3", "--head values3"),
        Run("values3-gates", "--head gated"),
        Run("values3-gates-correlation", "--head gated --correlation 0.1"),
    ]
    return {run.name: run for run in runs}


# ---------------------------------------------------------------------------------------------------------------- rows

DENSE = ("boxes", "things", "stuff")
CLASSES = ("novel", "base", "all")  # of F-ViT's boxes, and of pixels
HEADED = ("detection", "semantic", "panoptic")  # measures of a head, which is trained with each seed
PQ = ("novel", "base", "all", "things", "stuff")  # of segments
RETRIEVAL = ("region1", "region5", "image1", "image5")
GLOBAL = ("classes", "image-to-text", "text-to-image")
MIXED = ("boxes@0.25", "classes@0.25", "boxes@0.5", "classes@0.5", "boxes@0.75", "classes@0.75")


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    name: str
    table: str
    title: str
    run: str | None
    """The run that is measured; None: the pretrained CLIP. "cnn" is the residual CLIP."""
    measure: Measure = "regions"
    metrics: tuple[str, ...] = (*DENSE, "crops")
    """What the table shows, in this order; `page.py` says where each is found."""
    published: tuple[tuple[str, float], ...] = ()
    flags: str = ""
    """Of a head: further flags of its training."""
    shares: str = ""
    """Of a panoptic row: the fusion weights of classifier and CLIP that name a mask."""


# fmt: off
TOWERS = (  # name, title and run of what segmentation stands on; the paper has patches
    ("untouched", "the pretrained CLIP",        None),
    ("patches",   "CLIPSelf with image patches", "clipself"),
)


def rows_of(scale: Scale) -> tuple[Row, ...]:
    """Every row, in the tables' order; the scale says which numbers the titles name."""
    published = (("boxes", 72.1), ("things", 74.4), ("stuff", 46.8))
    window, few = f"{scale.window} x {scale.window}", scale.layers[0]
    return (
        # --- Tab. 1: what the method is made of
        Row("untouched",  "tab1", "pretrained CLIP", None, published=(("boxes", 18.2), ("crops", 68.4))),
        Row("image-text", "tab1", "#5: image-level supervision (captions), 16 images per step", "image-text"),
        Row("m4",         "tab1", "M = 4", "m4"),
        Row("m6",         "tab1", "M = 6, all blocks, largest input (CLIPSelf)", "clipself", published=published),
        Row("m8",         "tab1", "M = 8", "m8"),
        *(Row(f"layers{index}", "tab1", f"last {count} blocks trained (the paper's {paper} of 12)", f"last{count}")
          for index, (count, paper) in enumerate(zip(scale.layers, (3, 6, 9), strict=True))),
        *(Row(f"size{index}", "tab1", f"student input {size} px (the paper's {paper})", f"size{size}")
          for index, (size, paper) in enumerate(zip(scale.sizes, (320, 480, 640, 800), strict=True))),
        # --- Tab. 2: which regions
        Row("tab2-patches",   "tab2", "image patches", "clipself", published=published),
        Row("tab2-proposals", "tab2", "region proposals (trained on base categories)", "proposals"),
        # --- Tab. 8: against other training
        Row("tab8-region-text",  "tab8", "region-text pairs, on proposals, nouns of captions", "region-text"),
        Row("tab8-region-names", "tab8", "the same, category names as nouns (not in the paper)", "region-text-names"),
        Row("tab8-clipself",     "tab8", "CLIPSelf, on proposals", "proposals"),
        Row("tab8-global",       "tab8", "CLIPSelf, patches, global attention", "clipself", published=published),
        Row("tab8-window",       "tab8", f"CLIPSelf, patches, windows of {window} patches", "window"),
        Row("tab8-other",        "tab8", "CLIPSelf, patches, other images (CC3M in the paper)", "other-domain"),
        # --- Tab. A1: what each location retrieves
        Row("tabA1-untouched", "tabA1", "pretrained CLIP", None,       "retrieval", RETRIEVAL),
        Row("tabA1-clipself",  "tabA1", "CLIPSelf",         "clipself", "retrieval", RETRIEVAL),
        # --- Tab. A3: masked attention
        Row("tabA3-pooled",   "tabA3", "pretrained CLIP, pooled",           None,       "masked", DENSE),
        Row("tabA3-masked",   "tabA3", "pretrained CLIP, masked attention", None,       "masked",
            ("masked-boxes", "masked-things", "masked-stuff")),
        Row("tabA3-clipself", "tabA3", "CLIPSelf, pooled",                   "clipself", "masked", DENSE),
        # --- Fig. 2, 3, A1: over input sizes
        Row("figs-vit",      "figs", "pretrained ViT",    None,       "sweep", ("crops", "smallest", "largest")),
        Row("figs-cnn",      "figs", "pretrained CNN",    "cnn",      "sweep", ("crops", "smallest", "largest")),
        Row("figs-clipself", "figs", "ViT after CLIPSelf", "clipself", "sweep", ("crops", "smallest", "largest")),
        # --- what is kept of the whole image; not in the paper
        Row("global-untouched", "global", "pretrained CLIP",                   None,         "global", GLOBAL),
        Row("global-clipself",  "global", "CLIPSelf",                           "clipself",   "global", GLOBAL),
        Row("global-keep",      "global", "CLIPSelf --keep 1",                  "keep",       "global", GLOBAL),
        Row("global-layers",    "global", f"CLIPSelf --layers {few}",           f"last{few}", "global", GLOBAL),
        Row("kept",             "global", "CLIPSelf --keep 1, dense",           "keep"),
        Row("mixed-clipself",   "global", "alpha of 0.25, 0.5, 0.75: clipself", "clipself",   "pareto", MIXED),
        Row("mixed-keep",       "global", "alpha of 0.25, 0.5, 0.75: keep",     "keep",       "pareto", MIXED),
        # --- F-ViT on a frozen tower, trained on boxes of base categories
        *(Row(f"ovd-{name}", "ovd", f"F-ViT on {title}", run, "detection", CLASSES, (("novel", novel),))
          for name, title, run, novel in (
              ("untouched", "the pretrained CLIP",           None,        17.5),
              ("patches",   "CLIPSelf with image patches",    "clipself",  33.6),
              ("proposals", "CLIPSelf with region proposals", "proposals", 37.6),
          )),
        *(Row(f"ovd-{name}", "ovd", f"Tab. A6: {title}, on CLIPSelf with patches", "clipself", "detection", CLASSES, (),
              flags)
          for name, title, flags in (
              ("simple",   "ViTDet's pyramid on the last block",  "--pyramid simple"),
              ("fpn",      "a feature pyramid on the last block", "--pyramid fpn"),
              ("unfrozen", "the tower is trained too",                f"--layers {scale.blocks} --no-cache"),
          )),
        # --- classes of pixels, with nothing trained and with CAT-Seg trained on base classes
        *(Row(f"cosines-{name}", "ovss", f"cosines of the dense map: {title}", run, "cosines", CLASSES)
          for name, title, run in TOWERS),
        *(Row(f"ovss-{name}", "ovss", f"CAT-Seg on {title}", run, "semantic", CLASSES) for name, title, run in TOWERS),
        # --- things and stuff: masks of a generator trained on base classes, classified by it, by a CLIP, or by both
        Row("ovps-generator", "ovps", "the mask generator's classes", None, "panoptic", PQ, shares="generator"),
        *(Row(f"ovps-{name}{suffix}", "ovps", f"{prefix} {title}", run, "panoptic", PQ, shares=shares)
          for shares, suffix, prefix in (("clip", "", "classes of"), ("odise-label", "-fused", "fused:"))
          for name, title, run in TOWERS),
        # --- options of ours beyond the paper
        *(Row(f"terms-{run}", "terms", title, run) for run, title in (
            ("clipself",                  "CLIPSelf"),
            ("correlation",               "+ correlation with the pretrained CLIP's own naclip map (KL)"),
            ("values3",                   "head values3 (values of the last three blocks)"),
            ("values3-gates",             "... with a gate (a plain number) per attention head"),
            ("values3-gates-correlation", "... and the correlation above"),
        )),
    )
# fmt: on


# -------------------------------------------------------------------------------------------------------------- claims


@dataclass(frozen=True)
class Claim:
    """What the paper, or another source, says of the rows of a table."""

    table: str
    text: str
    source: str
    """Where it is said: a place in the paper, or another work."""
    pairs: tuple[tuple[str, str], ...]
    """It holds where each first number is larger than the second, each a "row.metric"."""


def _pairs(meaning: str) -> Iterator[tuple[str, str]]:
    for comparison in meaning.split("; "):
        rows, _, metrics = comparison.partition(": ")
        more, less = rows.split(" > ")
        if metrics:
            yield from ((f"{more}.{metric}", f"{less}.{metric}") for metric in metrics.split())
        else:
            yield more, less


# fmt: off
CLAIMS = tuple(Claim(table, text, source, tuple(_pairs(meaning))) for table, text, source, meaning in (
    # table, text, source, what it means: "row > row: metrics", or "row.metric > row.metric"
    ("tab1", "CLIPSelf makes dense features recognise regions", "Tab. 1", "m6 > untouched: boxes things stuff"),
    ("tab1", "captions of whole images help less", "Tab. 1, #5", "m6 > image-text: boxes things stuff"),
    ("tab1", "M = 6 is better than M = 4", "Tab. 1: the M chosen", "m6 > m4: boxes things"),
    ("tab1", "M = 6 is better than M = 8", "Tab. 1: the M chosen", "m6 > m8: boxes things"),
    ("tab1", "the more blocks are trained, the better", "Tab. 1",
     "layers1 > layers0: boxes; layers2 > layers1: boxes; m6 > layers2: boxes"),
    ("tab1", "the larger the student's input, the better", "Tab. 1",
     "size1 > size0: boxes; size2 > size1: boxes; size3 > size2: boxes; m6 > size3: boxes"),
    ("tab2", "proposals are better for things than patches", "Tab. 2", "tab2-proposals > tab2-patches: boxes things"),
    ("tab2", "proposals are worse for stuff than patches", "Tab. 2", "tab2-patches > tab2-proposals: stuff"),
    ("tab8", "CLIPSelf is better than region-text pairs on the same boxes", "Tab. 8",
     "tab8-clipself > tab8-region-text: boxes things"),
    ("tab8", "CLIPSelf works with window attention", "Sec. 4.4", "tab8-window > untouched: boxes things stuff"),
    ("tab8", "CLIPSelf works on images of another domain", "Tab. 8", "tab8-other > untouched: boxes things stuff"),
    ("tabA1", "CLIPSelf makes a location retrieve its region", "Tab. A1",
     "tabA1-clipself > tabA1-untouched: region1 region5"),
    ("tabA1", "CLIPSelf makes a location retrieve its image less often", "Tab. A1",
     "tabA1-untouched > tabA1-clipself: image1 image5"),
    ("tabA3", "masked attention recognises regions better than pooling", "Tab. A3",
     "tabA3-masked.masked-boxes > tabA3-pooled.boxes; tabA3-masked.masked-things > tabA3-pooled.things; "
     "tabA3-masked.masked-stuff > tabA3-pooled.stuff"),
    ("tabA3", "CLIPSelf is better than masked attention", "Tab. A3",
     "tabA3-clipself.boxes > tabA3-masked.masked-boxes; tabA3-clipself.things > tabA3-masked.masked-things; "
     "tabA3-clipself.stuff > tabA3-masked.masked-stuff"),
    ("figs", "a ViT recognises crops better than regions of its dense map", "Fig. 2",
     "figs-vit.crops > figs-vit.largest"),
    ("figs", "the dense map of a CNN is better than that of a ViT", "Fig. 2, A1", "figs-cnn > figs-vit: largest"),
    ("figs", "a CNN gains from a larger input", "Fig. 3, A1", "figs-cnn.largest > figs-cnn.smallest"),
    ("figs", "a ViT does not gain from a larger input", "Fig. 3, A1", "figs-vit.smallest > figs-vit.largest"),
    ("figs", "after CLIPSelf a ViT gains from a larger input", "Fig. 3",
     "figs-clipself.largest > figs-clipself.smallest"),
    ("global", "CLIPSelf forgets whole images", "its users",
     "global-untouched > global-clipself: classes image-to-text text-to-image"),
    ("global", "--keep retains them", "ours", "global-keep > global-clipself: classes image-to-text text-to-image"),
    ("global", "--keep raises dense accuracy", "ours", "kept > m6: boxes things"),
    ("ovd", "CLIPSelf makes F-ViT detect novel categories", "Tab. 3",
     "ovd-patches > ovd-untouched: novel; ovd-proposals > ovd-untouched: novel"),
    ("ovd", "taps of four blocks are better than the last block alone", "Tab. A6", "ovd-patches > ovd-fpn: novel base"),
    ("ovd", "a top-down path is better than ViTDet's pyramid", "Tab. A6", "ovd-fpn > ovd-simple: novel"),
    ("ovd", "training the tower too helps base categories", "Tab. A6", "ovd-unfrozen > ovd-patches: base"),
    ("ovd", "training the tower too hurts novel categories", "Tab. A6", "ovd-patches > ovd-unfrozen: novel"),
    ("ovd", "proposals are better than patches", "Tab. 3", "ovd-proposals > ovd-patches: novel"),
    ("ovss", "CLIPSelf makes CAT-Seg better on novel classes", "semantic segmentation",
     "ovss-patches > ovss-untouched: novel all"),
    ("ovss", "aggregation is better than the cosines it aggregates", "CAT-Seg",
     "ovss-patches > cosines-patches: all novel"),
    ("ovps", "CLIPSelf classifies masks better than the pretrained CLIP", "Tab. 5",
     "ovps-patches > ovps-untouched: all; ovps-patches-fused > ovps-untouched-fused: all"),
    ("ovps", "mask generator and CLIP fused are better than either", "ODISE",
     "ovps-patches-fused > ovps-generator: all; ovps-patches-fused > ovps-patches: all"),
    ("terms", "correlation with the pretrained CLIP's own map helps",
     "ours; not the term of R-SC or DenseRC, whose teacher is another",
     "terms-correlation > terms-clipself: boxes things stuff"),
    ("terms", "the values of the last three blocks are better than the paper's head", "ours",
     "terms-values3 > terms-clipself: boxes things stuff"),
))
# fmt: on
