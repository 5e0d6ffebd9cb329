"""Named settings of `foveate distill`, of what trains on it and of its measures, as data: the paper's, its ablations.

Two recipes stand behind one row of the paper. Its text says 16 images per step (2 on each of 8 GPUs), 6 epochs of COCO:
the -sync16 rows. The published code never averages its gradients over the GPUs, so its numbers come from 2 images per
step, for as many steps: the -1gpu rows, and every row below them. Published numbers stand only where their run is ours.
Times marked "estimate" are aims for the hardware named, not measured. Nothing here imports another room but for names:
the trainers look their recipe up here, and `foveate.reproduce` lists and runs them.
"""

import difflib
from dataclasses import dataclass, field
from typing import Any, Literal

from foveate.data.names import DataKind
from foveate.errors import InputError

Verb = Literal[
    "distill",
    "train-fvit",
    "evaluate detection",
    "train-catseg",
    "evaluate semantic",
    "train-panoptic",
    "evaluate panoptic",
]
Fields = dict[str, Any]
Published = dict[str, float]


@dataclass(frozen=True)
class Recipe:
    """One row."""

    name: str
    where: str
    """Place in the paper."""
    what: str
    """One line."""
    fields: Fields
    """Fields of the verb's flags that differ from their defaults."""
    time: str
    """How long it takes, and whether that is published or an estimate."""
    published: Published | None = None
    """Published numbers, each under what it is; none where the paper's run is another or its number is not known."""
    how: str = ""
    """How to split the batch over processes, and what else to mind."""
    needs: dict[str, str] = field(default_factory=dict)
    """Flags without which the row cannot run, beside --data and --out, each with what stands for its value."""
    verb: Verb = "distill"
    """Whose settings these are."""
    data: DataKind = "any"
    """The data that its numbers are for; a training by the recipe's name refuses another."""


def find_recipe(name: str, *, verb: str | None = None) -> Recipe:
    """The row of that name.

    Args:
        name: of the row.
        verb: whose settings it must be; None: any verb's.

    Raises:
        InputError: there is none; the message names near ones.
    """
    rows = {recipe.name: recipe for recipe in RECIPES if verb in (None, recipe.verb)}
    if name in rows:
        return rows[name]
    near = difflib.get_close_matches(name, rows, n=4, cutoff=0.5) or list(rows)[:4]
    raise InputError(
        f"recipe: must be one of those that `foveate recipes` lists; got {name!r}. Did you mean {', '.join(near)}?"
    )


def words_of(fields: Fields) -> list[str]:
    """Settings as words of a command line.

    Args:
        fields: values by the name of the field, such as max_regions.
    """
    words = []
    for name, value in fields.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words


# ------------------------------------------------------------------------------------------------------------ settings

STEPS = 44_358  # 6 epochs of COCO's 118,287 training images at 16 per step
LVIS_STEPS = 37_566  # 6 x 6,261: LVIS v1's 100,170 training images at 16 per step
COCO_STEPS = 5_052  # 3 epochs of OV-COCO's 107,761 training images at 64 per step
LVIS_EPOCH = 1_565  # steps: LVIS v1's 100,170 training images at 64 per step

# fmt: off
PAPER: Fields = {
    "steps": STEPS, "lr": 1e-5, "weight_decay": 0.1, "warmup": 1000, "precision": "bfloat16", "save_every": 2000,
}
B16 = {"model": "EVA02-B-16", "pretrained": "merged2b_s8b_b131k", "size": 1024, "alpha": 0.7}
L14 = {"model": "EVA02-L-14-336", "pretrained": "merged2b_s6b_b61k", "size": 896, "alpha": 0.95}
OPENAI = {"pretrained": "openai", "betas": (0.9, 0.98), "eps": 1e-6}
B16_ONE, L14_ONE = {**PAPER, "batch": 2, **B16}, {**PAPER, "batch": 2, **L14}
B16_SYNC, L14_SYNC = {**PAPER, "batch": 16, **B16}, {**PAPER, "batch": 16, **L14}  # batch x accumulate x processes

DETECTOR: Fields = {"accumulate": 8, "precision": "bfloat16"}  # of 8 images each
OV_COCO: Fields = {**DETECTOR, "steps": COCO_STEPS, "benchmark": "ov-coco", "background_weight": 0.6}
OV_COCO_B16 = {**OV_COCO, "size": 640}
OV_LVIS: Fields = {
    **DETECTOR, "steps": 48 * LVIS_EPOCH, "milestones": (32 * LVIS_EPOCH, 44 * LVIS_EPOCH), "masks": True,
    "lvis_heads": True, "background_weight": 0.9, "save_every": 2000,
}
CATSEG: Fields = {"steps": 80_000, "save_every": 2000}
CATSEG_2023 = {**CATSEG, "version": "2023", "residual": "cls"}
ODISE: Fields = {
    "steps": 92_188, "accumulate": 8, "milestones": (81_945, 88_773), "precision": "bfloat16", "save_every": 2000,
}
WORLD_FVIT: Fields = {
    "steps": 150, "lr": 1e-3, "warmup": 20, "size": 192,
    "augment": False, "cache": True,  # nothing varies, so that feature maps are computed once
}

B16_TIME = "2 h on one of 8 A100-80G (published); 25 min on one H200 (estimate)"
L14_TIME = "6 h on one of 8 A100-80G (published); 80 min on one H200 (estimate)"
B16_SYNC_TIME = "2 h on 8 A100-80G (published); 2.6 h on one H200 (estimate)"  # 16 x STEPS at 75 images/s
L14_SYNC_TIME = "6 h on 8 A100-80G (published); 9.4 h on one H200 (estimate)"  # at 21 images/s
B16_LESS = "less than 25 min on one H200 (estimate)"
B16_LIKE = "25 min on one H200 (estimate, as EVA-02 B/16)"
L14_LIKE = "80 min on one H200 (estimate, as EVA-02 L/14)"
NO_TIME = "not measured"

BOXES, MODEL = {"regions": "FILE"}, {"model": "RUN/model"}
MAPS, LABELS = {**MODEL, "maps": "MAPS"}, {**MODEL, "labels": "FILE"}
LVIS_FILE = {"annotations": "lvis_v1_train.json"}

HOW_ONE = "One process, 2 images per step. More processes make a different recipe: see the -sync16 rows."
HOW_SYNC = (
    "16 images a step in all: batch x accumulate x processes = 16. torchrun with 8 processes: --batch 2. "
    "One process: --batch 4 --accumulate 4, or whatever fits (--dry-run prints the largest batch)."
)
HOW_PROPOSALS = (
    " --regions: COCO form or a list of results. For OV-COCO they must come from a proposal network that was trained "
    "on the 48 base classes only."
)
HOW_LVIS = f"{HOW_ONE} LVIS holds out some images of COCO train: its annotation file says which."
HOW_SHARDS = f"{HOW_ONE} --data: the folder of the shards."
HOW_COMPARED = f"Compare with clipself-b16-patches-1gpu. {HOW_ONE}"
HOW_DETECTOR = (
    "64 images a step in all: batch x accumulate x processes = 64; BatchNorm sees those of one pass (of all "
    "processes, on GPUs). --model: OUT/model of a distillation, or the pretrained CLIP as a baseline."
)
HOW_TRANSFER = "--model: OUT/model of fvit-ov-lvis-l14. --data: the other data set's root."
HOW_CATSEG = "--data: COCO-Stuff's root. --model: OUT/model of a distilled OpenAI CLIP. 4 images a step in all."
HOW_SEMANTIC = "--model: OUT/model of a catseg row. --data: the other data set's root; "
HOW_MAPS = "--maps: of `foveate convert-maps`."
HOW_WORDS = "--labels: VOC's classes, and the other classes of PASCAL Context's 59 as synonyms of the background."
HOW_WORLD = "One process. --model: foveate-small, or OUT/model of a distillation of it."

# -------------------------------------------------------------------------------------------------------- distillation

DISTILLATIONS = (
    # name, place in the paper, what
    #     fields, time, published, how, needs[, verb, data]
    Recipe("clipself-b16-patches-1gpu", "Sec. 3.2, 4.1; Tab. 1, 2",
           "EVA-02 B/16 on COCO, image patches; the setting of the published numbers.",
           B16_ONE, B16_TIME,
           {"COCO boxes, top-1 mAcc [%]": 72.1, "COCO thing masks, top-1 mAcc [%]": 74.4,
            "COCO stuff masks, top-1 mAcc [%]": 46.8, "OV-COCO, novel AP50": 33.6}, HOW_ONE),
    Recipe("clipself-b16-patches-sync16", "Sec. 3.2, 4.1",
           "EVA-02 B/16 on COCO, image patches; gradients averaged over GPUs, as in the paper's text.",
           B16_SYNC, B16_SYNC_TIME, None, HOW_SYNC),
    Recipe("clipself-l14-patches-1gpu", "Sec. 3.2, 4.1",
           "EVA-02 L/14 on COCO, image patches; the setting of the published numbers.",
           L14_ONE, L14_TIME, {"OV-COCO, novel AP50": 38.4}, HOW_ONE),
    Recipe("clipself-l14-patches-sync16", "Sec. 3.2, 4.1",
           "EVA-02 L/14 on COCO, image patches; gradients averaged over GPUs, as in the paper's text.",
           L14_SYNC, L14_SYNC_TIME, None, HOW_SYNC),
    Recipe("clipself-b16-proposals-1gpu", "Sec. 3.2, 4.1; Tab. 2",
           "EVA-02 B/16 on COCO, region proposals: better for things, worse for stuff.",
           B16_ONE, B16_TIME, {"OV-COCO, novel AP50": 37.6}, HOW_ONE + HOW_PROPOSALS, BOXES),
    Recipe("clipself-b16-proposals-sync16", "Sec. 3.2, 4.1",
           "EVA-02 B/16 on COCO, region proposals; gradients averaged.",
           B16_SYNC, B16_SYNC_TIME, None, HOW_SYNC + HOW_PROPOSALS, BOXES),
    Recipe("clipself-l14-proposals-1gpu", "Sec. 3.2, 4.1",
           "EVA-02 L/14 on COCO, region proposals: better for things, worse for stuff.",
           L14_ONE, L14_TIME, {"OV-COCO, novel AP50": 44.3}, HOW_ONE + HOW_PROPOSALS, BOXES),
    Recipe("clipself-l14-proposals-sync16", "Sec. 3.2, 4.1",
           "EVA-02 L/14 on COCO, region proposals; gradients averaged.",
           L14_SYNC, L14_SYNC_TIME, None, HOW_SYNC + HOW_PROPOSALS, BOXES),
    Recipe("clipself-b16-lvis", "Sec. 3.3, A.3",
           "EVA-02 B/16 for OV-LVIS: image patches of the images of COCO train, which are LVIS's too.",
           {**B16_ONE, "steps": LVIS_STEPS}, B16_LIKE, {"OV-LVIS, APr": 25.3}, HOW_LVIS, LVIS_FILE, data="lvis"),
    Recipe("clipself-l14-lvis", "Sec. 3.3, A.3",
           "EVA-02 L/14 for OV-LVIS: image patches of the images of COCO train, which are LVIS's too.",
           {**L14_ONE, "steps": LVIS_STEPS}, L14_LIKE, {"OV-LVIS, APr": 34.9}, HOW_LVIS, LVIS_FILE, data="lvis"),
    Recipe("clipself-b16-cc3m", "Sec. 4",
           "EVA-02 B/16 on web images without annotations: CC3M as tar shards, the same steps.",
           B16_ONE, B16_LIKE, None, HOW_SHARDS),
    Recipe("clipself-l14-cc3m", "Sec. 4",
           "EVA-02 L/14 on web images without annotations: CC3M as tar shards, the same steps.",
           L14_ONE, L14_LIKE, None, HOW_SHARDS),
    Recipe("openai-b16-patches", "Tab. A3", "OpenAI's ViT-B-16 on COCO, image patches.",
           {**B16_ONE, **OPENAI, "model": "ViT-B-16-quickgelu"}, B16_LIKE, None, HOW_ONE),
    Recipe("openai-l14-patches", "Tab. A3", "OpenAI's ViT-L-14 on COCO, image patches.",
           {**L14_ONE, **OPENAI, "model": "ViT-L-14-quickgelu"}, L14_LIKE, None, HOW_ONE),
    Recipe("openai-l14-336-patches", "Tab. A3", "OpenAI's ViT-L-14-336 on COCO, image patches.",
           {**L14_ONE, **OPENAI, "model": "ViT-L-14-336-quickgelu"}, L14_LIKE, None, HOW_ONE),
    Recipe("clipself-b16-window", "Sec. 4.4",
           "EVA-02 B/16 on COCO, image patches; the student attends within windows of 16 x 16 patches.",
           {**B16_ONE, "window": 16}, B16_LIKE, None, HOW_ONE),
    Recipe("clipself-l14-window", "Sec. 4.4",
           "EVA-02 L/14 on COCO, image patches; the student attends within windows of 16 x 16 patches.",
           {**L14_ONE, "window": 16}, L14_LIKE, None, HOW_ONE),
    # --- what the method is compared with, and options of its objective; not of the paper's numbers
    Recipe("region-text-b16", "Tab. 8; A.4",
           "Baseline: proposals are classified among the nouns of the captions.",
           {**B16_ONE, "objective": "region-text"}, B16_LIKE, None,
           f"Compare with clipself-b16-proposals-1gpu. {HOW_ONE}{HOW_PROPOSALS} Captions: COCO's; --captions FILE of "
           "nouns in place of parsing them.", BOXES),
    Recipe("clipself-b16-keep", "none",
           "A loss term keeps the student's image embeddings close to the teacher's.",
           {**B16_ONE, "keep": 1.0}, B16_LIKE, None, HOW_COMPARED),
    Recipe("clipself-b16-correlation", "none",
           "A loss term preserves the similarities between locations of the pretrained CLIP's map; ours, not R-SC's.",
           {**B16_ONE, "correlation": 0.1}, B16_LIKE, None, HOW_COMPARED),
    Recipe("clipself-b16-values3-gates", "none",
           "The last three blocks' values with a weight per attention head, as DenseRC's head; without its loss.",
           {**B16_ONE, "head": "gated"}, B16_LIKE, None,
           f"{HOW_COMPARED} Measure it with --head values3."),
    Recipe("image-text-b16", "Tab. 1, #5",
           "Baseline: CLIP's contrastive loss on captions of whole images, at the same input size.",
           {**PAPER, **B16, "objective": "image-text", "batch": 16, "steps": STEPS // 8}, B16_LIKE, None,
           "One process, 16 images a step, as many as 2 x 44,358. Captions are COCO's."),
    # --- ablations: clipself-b16-patches-1gpu but for one flag
    *(Recipe(f"clipself-b16-{name}", where, f"Ablation: {what}.", {**B16_ONE, **change}, time, None, HOW_COMPARED)
      for name, where, what, change, time in (
          ("last3",     "Sec. 4",   "only the last 3 of 12 blocks are trained",        {"layers": 3},         B16_LESS),
          ("last6",     "Sec. 4",   "only the last 6 of 12 blocks are trained",        {"layers": 6},         B16_LESS),
          ("last9",     "Sec. 4",   "only the last 9 of 12 blocks are trained",        {"layers": 9},         B16_LESS),
          ("m4",        "Sec. 4",   "grids of at most 4 x 4 patches",                  {"grid": 4},           B16_LESS),
          ("m8",        "Sec. 4",   "grids of at most 8 x 8 patches",                  {"grid": 8},           B16_LIKE),
          ("all-grids", "Sec. 3.2", "all 36 grids of the paper's text, not its code's 24",
                                                                                       {"grid_rule": "all"},  B16_LIKE),
          ("pad-zero",  "Sec. 3.2", "the student's input is padded with zeros, as the paper's text says",
                                                                                       {"pad": "zero"},       B16_LIKE),
          ("size320",   "Sec. 4",   "the student's input is 320 pixels",               {"size": 320}, B16_LESS),
          ("size480",   "Sec. 4",   "the student's input is 480 pixels",               {"size": 480}, B16_LESS),
          ("size640",   "Sec. 4",   "the student's input is 640 pixels",               {"size": 640}, B16_LESS),
          ("size800",   "Sec. 4",   "the student's input is 800 pixels",               {"size": 800}, B16_LESS),
      )),
)

# ------------------------------------------------------------------------------------------- what is trained on a tower

VERSIONS = ("2023, B", "2023, L", "2024, B", "2024, L")  # of CAT-Seg: the columns of published mIoU below
FVIT: tuple[tuple[str, str, str, Fields, DataKind, Published | None], ...] = (
    ("ov-coco-b16", "Tab. 3; A.3", "F-ViT on B/16, OV-COCO: 48 base classes, 17 novel.", OV_COCO_B16, "coco",
     {"novel AP50, pretrained EVA-02": 17.5, "patches": 33.6, "proposals": 37.6}),
    ("ov-coco-l14", "Tab. 3; A.3", "F-ViT on L/14, OV-COCO.", {**OV_COCO, "size": 896}, "coco",
     {"novel AP50, pretrained EVA-02": 24.7, "patches": 38.4, "proposals": 44.3}),
    ("ov-lvis-b16", "Tab. 4; A.3", "F-ViT on B/16 with masks, OV-LVIS: 866 base classes, 337 rare ones are novel.",
     {**OV_LVIS, "size": 1024, "benchmark": "ov-lvis-b"}, "lvis",
     {"mask APr, pretrained EVA-02": 11.5, "patches": 25.3}),
    ("ov-lvis-l14", "Tab. 4; A.3", "F-ViT on L/14 with masks, OV-LVIS.",
     {**OV_LVIS, "size": 896, "benchmark": "ov-lvis-l"}, "lvis",
     {"mask APr, pretrained EVA-02": 24.2, "patches": 34.9}),
    ("ov-coco-b16-simple", "Tab. A6", "Ablation: ViTDet's pyramid on the last block.",
     {**OV_COCO_B16, "pyramid": "simple"}, "coco", None),
    ("ov-coco-b16-fpn", "Tab. A6", "Ablation: a feature pyramid on the last block.",
     {**OV_COCO_B16, "pyramid": "fpn"}, "coco", None),
    ("ov-coco-b16-unfrozen", "Tab. A6", "Ablation: the tower is trained too, with lower rates in earlier blocks.",
     {**OV_COCO_B16, "layers": 12}, "coco", None),
)
TRANSFERS: tuple[tuple[DataKind, str, Fields, Published | None], ...] = (
    ("coco",       "COCO",          {},                                   {"AP": 40.5, "AP50": 63.8, "AP75": 44.3}),
    ("objects365", "Objects365 v1", {},                                   {"AP": 19.5, "AP50": 31.3, "AP75": 20.7}),
    ("voc",        "VOC07 test",    {"split": "test", "style": "voc07"},  None),
)
SEMANTIC: tuple[tuple[str, DataKind, str, tuple[float, ...], dict[str, str], str], ...] = (
    ("ade-full",   "ade20k",         "ADE20K's 847 classes",          (8.9, 11.4, 12.0, 16.0),  MAPS, HOW_MAPS),
    ("context459", "pascal-context", "PASCAL Context's 459 classes",  (16.6, 20.4, 19.0, 23.8), MAPS, HOW_MAPS),
    ("ade150",     "ade20k",         "ADE20K's 150 classes",          (27.2, 31.5, 31.8, 37.9), MODEL,
     "ADEChallengeData2016."),
    ("context59",  "pascal-context", "PASCAL Context's 59 classes",   (57.5, 62.0, 57.5, 63.3), MODEL,
     "VOC2010 with the official 59_context_labels."),
    ("voc20",      "voc",            "VOC's 20 classes",              (93.7, 96.6, 94.6, 97.0), MODEL,
     "VOCdevkit/VOC2012."),
    ("voc20b",     "voc",            "VOC's 20 classes and all else as one", (78.3, 81.8, 77.3, 82.5), LABELS,
     HOW_WORDS),
)
HEADS = (
    # --- F-ViT on a frozen, distilled tower
    *(Recipe(f"fvit-{name}", where, what, fields, NO_TIME, published, HOW_DETECTOR, MODEL, "train-fvit", data)
      for name, where, what, fields, data, published in FVIT),
    *(Recipe(f"transfer-{data}", "A.3, transfer",
             f"F-ViT on L/14 trained on OV-LVIS, evaluated on {title} without further training; T = 50.",
             {"benchmark": f"transfer-{data}", **fields}, NO_TIME, published, HOW_TRANSFER, MODEL,
             "evaluate detection", data)
      for data, title, fields, published in TRANSFERS),
    # --- CAT-Seg on a distilled tower
    *(Recipe(f"catseg-{name}", "semantic segmentation", what, fields, NO_TIME, published, HOW_CATSEG, MODEL,
             "train-catseg", "coco-stuff")
      for name, what, fields, published in (
          ("2024", "CAT-Seg of 2024 on any ViT, 171 classes of COCO-Stuff.", {**CATSEG, "residual": "cls"}, None),
          ("2024-token",
           "CAT-Seg of 2024 with CLIPSelf's last block: values are added to each token, not to the class token.",
           {**CATSEG, "residual": "token"}, None),
          ("2023-b16", "CAT-Seg of 2023 on B/16, the paper's, as its authors changed it: guided by a ResNet-101.",
           {**CATSEG_2023, "backbone": "resnet101"}, {"ADE-150 mIoU, patches": 29.0}),
          ("2023-l14", "CAT-Seg of 2023 on L/14, guided by a Swin-B.",
           {**CATSEG_2023, "backbone": "swin_base_patch4_window12_384"}, {"ADE-150 mIoU, patches": 34.5}),
      )),
    *(Recipe(f"semantic-{kind}", "semantic segmentation", f"mIoU on {title} of what was trained on COCO-Stuff.",
             {"kind": kind, **({"all_synonyms": True} if kind == "voc20b" else {})}, NO_TIME,
             {f"CAT-Seg of {which}, without CLIPSelf": miou for which, miou in zip(VERSIONS, published, strict=True)},
             HOW_SEMANTIC + how, needs, "evaluate semantic", data)
      for kind, data, title, published, needs, how in SEMANTIC),
    # --- masks with classes of generator and CLIP
    Recipe("panoptic-odise", "Tab. 5",
           "ODISE's mask generator with class names, on Stable Diffusion's features, COCO's 133 classes.",
           ODISE, NO_TIME, None,
           "--encoder: Stable Diffusion 1.3 as diffusers writes it. 64 images a step: 8 x 8 passes on one process.",
           {"encoder": "SD", "labels": "FILE"}, "train-panoptic", "coco-panoptic"),
    Recipe("panoptic-tower", "none",
           "The same on the frozen tower of a distilled CLIP: it serves as both encoder and classifier.",
           ODISE, NO_TIME, None,
           "--model: OUT/model of a distillation. 64 images a step: 8 x 8 passes on one process.",
           MODEL, "train-panoptic", "coco-panoptic"),
    Recipe("panoptic-ade", "Tab. 5", "PQ on ADE20K of masks classified by CLIPSelf's dense map together with ODISE.",
           {"fusion": ("odise-label", "clip", "generator"), "size": 672, "metrics": ("pq", "miou")}, NO_TIME,
           {"PQ, fused, OpenAI L/14": 23.7},
           "--classifier: OUT/model of a distilled OpenAI L/14. --size 336 is its own input.",
           {**MODEL, "classifier": "RUN/model", "labels": "FILE"}, "evaluate panoptic", "ade20k"),
)

# ------------------------------------------------- on the rendered world, small enough for a CPU: `foveate demo` and
# ------------------------------------------------- what `foveate reproduce` runs

WORLD = (
    Recipe("world", "none",
           "The shipped small CLIP on the rendered world (`foveate world DIR`): what `foveate demo` distils.",
           {"steps": 260, "size": 192}, "2.5 min on two CPU cores (estimate, from one run of the demo)", None,
           "One process, 4 images a step."),
    Recipe("world-short", "none",
           "The shipped small CLIP, distilled on the rendered world: a row of `foveate reproduce`.",
           {"steps": 200, "size": 192}, "2.5 min on one CPU core (estimate, from the rows of results/)", None,
           "One process, 4 images per step."),
    Recipe("world-fvit", "none",
           "F-ViT on the rendered world, two epochs of whole images: a row of `foveate reproduce`.",
           WORLD_FVIT, NO_TIME, None, HOW_WORLD, MODEL, "train-fvit"),
    Recipe("world-catseg", "none", "CAT-Seg on the rendered world: a row of `foveate reproduce`.",
           {"steps": 250}, NO_TIME, None, HOW_WORLD, MODEL, "train-catseg"),
    Recipe("world-panoptic", "none",
           "Masks of things and stuff on the rendered world: what panoptic rows of `foveate reproduce` share.",
           {"steps": 1000, "batch": 2, "milestones": (850,), "warmup": 20}, NO_TIME, None, HOW_WORLD, MODEL,
           "train-panoptic"),
)
# fmt: on
RECIPES: tuple[Recipe, ...] = (*DISTILLATIONS, *HEADS, *WORLD)
