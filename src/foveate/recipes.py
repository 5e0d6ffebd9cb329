"""Named settings of `foveate distill`, of what trains on it and of its measures, as data: the paper's, its ablations.

Two recipes stand behind one row of the paper. Its text says 16 pictures a step (2 on each of 8 GPUs), 6 epochs of COCO:
the -sync16 rows. The published code never averages its gradients over the GPUs, so its numbers come from 2 pictures a
step, for as many steps: the -1gpu rows, and every row below them. Published numbers stand only where their run is ours.
Times marked "estimate" are aims for the hardware named, not measured. Deliberately absent: code; `foveate.cli.recipes`
reads these rows.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from foveate.data.names import DataKind

Verb = Literal[
    "distill",
    "train-fvit",
    "evaluate detection",
    "train-catseg",
    "evaluate semantic",
    "train-panoptic",
    "evaluate panoptic",
]


@dataclass(frozen=True)
class Recipe:
    """One row."""

    name: str
    where: str
    """Place in the paper."""
    what: str
    """One line."""
    fields: dict[str, Any]
    """Fields of the verb's flags that differ from their defaults."""
    time: str
    """How long it takes, and whether that is published or an estimate."""
    published: dict[str, float] | None = None
    """Published numbers, each under what it is; none where the paper's run is another or its number is not known."""
    how: str = ""
    """How to split the batch over processes, and what else to mind."""
    needs: dict[str, str] = field(default_factory=dict)
    """Flags without which the row cannot run, beside --data and --out, each with what stands for its value."""
    verb: Verb = "distill"
    """Whose settings these are."""
    data: DataKind = "any"
    """The data that its numbers are for; a training by the recipe's name refuses another."""


def words_of(fields: dict[str, Any]) -> list[str]:
    """Settings as words of a command line.

    Args:
        fields: values by the name of the field, such as student_size.
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

STEPS = 44_358  # 6 epochs of COCO's 118,287 training pictures at 16 a step
PAPER: dict[str, Any] = {
    "steps": STEPS,
    "lr": 1e-5,
    "weight_decay": 0.1,
    "warmup": 1000,
    "precision": "bfloat16",
    "save_every": 2000,
}
ONE = {**PAPER, "batch": 2}
SYNCHRONISED = {**PAPER, "batch": 16}  # batch x accumulate x processes; flags split it
B16 = {"model": "EVA02-B-16", "pretrained": "merged2b_s8b_b131k", "student_size": 1024, "alpha": 0.7}
L14 = {"model": "EVA02-L-14-336", "pretrained": "merged2b_s6b_b61k", "student_size": 896, "alpha": 0.95}
OPENAI = {"pretrained": "openai", "betas": (0.9, 0.98), "eps": 1e-6}
LVIS_STEPS = 37_566  # 6 x 6,261: LVIS v1's 100,170 training images at 16 a step
PROPOSALS_NEED = {"boxes": "FILE"}
COCO_STEPS = 5_052  # 3 epochs of OV-COCO's 107,761 training pictures at 64 a step
LVIS_EPOCH = 1_565  # steps: LVIS v1's 100,170 training pictures at 64 a step
DETECTOR: dict[str, Any] = {"accumulate": 8, "precision": "bfloat16"}  # of 8 pictures each
OV_COCO: dict[str, Any] = {**DETECTOR, "steps": COCO_STEPS, "benchmark": "ov-coco", "background_weight": 0.6}
OV_LVIS: dict[str, Any] = {
    **DETECTOR,
    "steps": 48 * LVIS_EPOCH,
    "milestones": (32 * LVIS_EPOCH, 44 * LVIS_EPOCH),
    "masks": True,
    "norm": True,
    "match_low_quality": True,
    "background_weight": 0.9,
    "save_every": 2000,
}
DETECTOR_NEEDS = {"model": "RUN/model"}
ODISE: dict[str, Any] = {
    "steps": 92_188,
    "accumulate": 8,  # of 8 pictures each
    "milestones": (81_945, 88_773),
    "precision": "bfloat16",
    "save_every": 2000,
}
CATSEG: dict[str, Any] = {"steps": 80_000, "save_every": 2000}
DETECTOR_TIME = "not measured"

MAPS_NEED = {**DETECTOR_NEEDS, "maps": "MAPS"}
LABELS_NEED = {**DETECTOR_NEEDS, "labels": "FILE"}
TRANSFERS: tuple[tuple[DataKind, str, dict[str, Any], dict[str, float] | None], ...] = (
    ("coco", "COCO", {}, {"AP": 40.5, "AP50": 63.8, "AP75": 44.3}),
    ("objects365", "Objects365 v1", {}, {"AP": 19.5, "AP50": 31.3, "AP75": 20.7}),
    ("voc", "VOC07 test", {"split": "test", "style": "voc07"}, None),
)
SEMANTIC_DATA: dict[str, DataKind] = {
    "ade-full": "ade20k",
    "context459": "pascal-context",
    "ade150": "ade20k",
    "context59": "pascal-context",
    "voc20": "voc",
    "voc20b": "voc",
}
VERSIONS = ("2023, B", "2023, L", "2024, B", "2024, L")

B16_TIME = "2 h on one of 8 A100-80G (published); 25 min on one H200 (estimate)"
L14_TIME = "6 h on one of 8 A100-80G (published); 80 min on one H200 (estimate)"
B16_SYNCHRONISED_TIME = "2 h on 8 A100-80G (published); 2.6 h on one H200 (estimate)"  # 16 x STEPS at 75 pictures/s
L14_SYNCHRONISED_TIME = "6 h on 8 A100-80G (published); 9.4 h on one H200 (estimate)"  # at 21 pictures/s
B16_LESS = "less than 25 min on one H200 (estimate)"
B16_LIKE = "25 min on one H200 (estimate, as EVA-02 B/16)"
L14_LIKE = "80 min on one H200 (estimate, as EVA-02 L/14)"

HOW_ONE = "One process, 2 pictures a step. More processes would make another recipe: see the -sync16 rows."
HOW_SYNCHRONISED = (
    "16 pictures a step in all: batch x accumulate x processes = 16. torchrun with 8 processes: --batch 2. "
    "One process: --batch 4 --accumulate 4, or what fits (--dry-run says what does)."
)
HOW_DETECTOR = (
    "64 pictures a step in all: batch x accumulate x processes = 64; BatchNorm sees those of one pass (of all "
    "processes, on GPUs). --model: OUT/model of a distillation, or the CLIP as it comes to compare with."
)
HOW_WORLD = "One process. --model: foveate-small, or OUT/model of a distillation of it."
HOW_PROPOSALS = (
    " --boxes: COCO form or a list of results. For OV-COCO they must come from a proposal network that was trained on "
    "the 48 base classes only."
)

# ---------------------------------------------------------------------------------------------------------------- rows

RECIPES: tuple[Recipe, ...] = (
    Recipe(
        name="clipself-b16-patches-1gpu",
        where="Sec. 3.2, 4.1; Tab. 1, 2",
        what="EVA-02 B/16 on COCO, grid patches; what the published numbers came from.",
        fields={**ONE, **B16},
        published={
            "COCO boxes, top-1 mAcc [%]": 72.1,
            "COCO thing masks, top-1 mAcc [%]": 74.4,
            "COCO stuff masks, top-1 mAcc [%]": 46.8,
            "OV-COCO, novel AP50": 33.6,
        },
        time=B16_TIME,
        how=HOW_ONE,
    ),
    Recipe(
        name="clipself-b16-patches-sync16",
        where="Sec. 3.2, 4.1",
        what="EVA-02 B/16 on COCO, grid patches; what the paper's text says, gradients averaged.",
        fields={**SYNCHRONISED, **B16},
        time=B16_SYNCHRONISED_TIME,
        how=HOW_SYNCHRONISED,
    ),
    Recipe(
        name="clipself-l14-patches-1gpu",
        where="Sec. 3.2, 4.1",
        what="EVA-02 L/14 on COCO, grid patches; what the published numbers came from.",
        fields={**ONE, **L14},
        published={"OV-COCO, novel AP50": 38.4},
        time=L14_TIME,
        how=HOW_ONE,
    ),
    Recipe(
        name="clipself-l14-patches-sync16",
        where="Sec. 3.2, 4.1",
        what="EVA-02 L/14 on COCO, grid patches; what the paper's text says, gradients averaged.",
        fields={**SYNCHRONISED, **L14},
        time=L14_SYNCHRONISED_TIME,
        how=HOW_SYNCHRONISED,
    ),
    Recipe(
        name="clipself-b16-proposals-1gpu",
        where="Sec. 3.2, 4.1; Tab. 2",
        what="EVA-02 B/16 on COCO, region proposals: better for things, worse for stuff.",
        fields={**ONE, **B16},
        published={"OV-COCO, novel AP50": 37.6},
        time=B16_TIME,
        how=HOW_ONE + HOW_PROPOSALS,
        needs=PROPOSALS_NEED,
    ),
    Recipe(
        name="clipself-b16-proposals-sync16",
        where="Sec. 3.2, 4.1",
        what="EVA-02 B/16 on COCO, region proposals; gradients averaged.",
        fields={**SYNCHRONISED, **B16},
        time=B16_SYNCHRONISED_TIME,
        how=HOW_SYNCHRONISED + HOW_PROPOSALS,
        needs=PROPOSALS_NEED,
    ),
    Recipe(
        name="clipself-l14-proposals-1gpu",
        where="Sec. 3.2, 4.1",
        what="EVA-02 L/14 on COCO, region proposals: better for things, worse for stuff.",
        fields={**ONE, **L14},
        published={"OV-COCO, novel AP50": 44.3},
        time=L14_TIME,
        how=HOW_ONE + HOW_PROPOSALS,
        needs=PROPOSALS_NEED,
    ),
    Recipe(
        name="clipself-l14-proposals-sync16",
        where="Sec. 3.2, 4.1",
        what="EVA-02 L/14 on COCO, region proposals; gradients averaged.",
        fields={**SYNCHRONISED, **L14},
        time=L14_SYNCHRONISED_TIME,
        how=HOW_SYNCHRONISED + HOW_PROPOSALS,
        needs=PROPOSALS_NEED,
    ),
    *(
        Recipe(
            name=f"clipself-{size}-lvis",
            where="Sec. 3.3, A.3",
            what=f"EVA-02 {title} for OV-LVIS: grid patches of the pictures of COCO train, which are LVIS's too.",
            fields={**ONE, **tower, "steps": LVIS_STEPS},
            published={"OV-LVIS, APr": rare},
            time=time,
            how=f"{HOW_ONE} LVIS holds out some images of COCO train: its annotation file says which.",
            needs={"annotations": "lvis_v1_train.json"},
            data="lvis",
        )
        for size, title, tower, rare, time in (
            ("b16", "B/16", B16, 25.3, B16_LIKE),
            ("l14", "L/14", L14, 34.9, L14_LIKE),
        )
    ),
    *(
        Recipe(
            name=f"clipself-{size}-cc3m",
            where="Sec. 4",
            what=f"EVA-02 {title} on web pictures without annotations: CC3M as tar shards, the same steps.",
            fields={**ONE, **tower},
            time=time,
            how=f"{HOW_ONE} --data: the folder of the shards.",
        )
        for size, title, tower, time in (("b16", "B/16", B16, B16_LIKE), ("l14", "L/14", L14, L14_LIKE))
    ),
    *(
        Recipe(
            name=f"openai-{size}-patches",
            where="Tab. A3",
            what=f"OpenAI's {model} on COCO, grid patches.",
            fields={**ONE, **tower, **OPENAI, "model": f"{model}-quickgelu"},
            time=time,
            how=HOW_ONE,
        )
        for size, model, tower, time in (
            ("b16", "ViT-B-16", B16, B16_LIKE),
            ("l14", "ViT-L-14", L14, L14_LIKE),
            ("l14-336", "ViT-L-14-336", L14, L14_LIKE),
        )
    ),
    *(
        Recipe(
            name=f"clipself-{size}-window",
            where="Sec. 4.4",
            what=f"EVA-02 {title} on COCO, grid patches; the student attends within windows of 16 x 16 patches.",
            fields={**ONE, **tower, "window": 16},
            time=time,
            how=HOW_ONE,
        )
        for size, title, tower, time in (("b16", "B/16", B16, B16_LIKE), ("l14", "L/14", L14, L14_LIKE))
    ),
    # --- what the method is compared with, and options of its objective; not of the paper's numbers
    *(
        Recipe(
            name=f"clipself-b16-{name}" if own else f"{name}-b16",
            where=where,
            what=what,
            fields={**ONE, **B16, **change},
            time=B16_LIKE,
            how=f"Compare with clipself-b16-{compared}-1gpu. {HOW_ONE}{how}",
            needs=needs,
        )
        for name, own, where, what, change, compared, how, needs in (
            (
                "region-text",
                False,
                "Tab. 8; A.4",
                "Baseline: proposals are told apart among the nouns of the captions.",
                {"objective": "region-text"},
                "proposals",
                f"{HOW_PROPOSALS} Captions: COCO's; --nouns FILE in place of parsing them.",
                PROPOSALS_NEED,
            ),
            (
                "keep",
                True,
                "none",
                "The student's own image embedding is held to the teacher's.",
                {"keep": 1.0},
                "patches",
                "",
                {},
            ),
            (
                "correlation",
                True,
                "none",
                "Similarities of locations are held to those of the pretrained CLIP's own map; ours, not R-SC's term.",
                {"correlation": 0.1},
                "patches",
                "",
                {},
            ),
            (
                "values3-gates",
                True,
                "none",
                "The last three blocks' values with a weight per attention head, as DenseRC's head; without its loss.",
                {"head": "values3", "gates": True},
                "patches",
                " Measure it with --head values3.",
                {},
            ),
        )
    ),
    Recipe(
        name="image-text-b16",
        where="Tab. 1, #5",
        what="Baseline: CLIP's own contrastive loss on captions of whole pictures, at the same input size.",
        fields={**PAPER, **B16, "objective": "image-text", "batch": 16, "steps": STEPS // 8},
        time=B16_LIKE,
        how="One process, 16 pictures a step, as many as 2 x 44,358. Captions are COCO's.",
    ),
    # --- ablations: clipself-b16-patches-1gpu but for one flag
    *(
        Recipe(
            name=f"clipself-b16-{name}",
            where=where,
            what=f"Ablation: {what}.",
            fields={**ONE, **B16, **change},
            time=time,
            how=f"Compare with clipself-b16-patches-1gpu. {HOW_ONE}",
        )
        for name, where, what, change, time in (
            ("last3", "Sec. 4", "only the last 3 of 12 blocks are trained", {"layers": 3}, B16_LESS),
            ("last6", "Sec. 4", "only the last 6 of 12 blocks are trained", {"layers": 6}, B16_LESS),
            ("last9", "Sec. 4", "only the last 9 of 12 blocks are trained", {"layers": 9}, B16_LESS),
            ("m4", "Sec. 4", "grids of at most 4 x 4 patches", {"grid": 4}, B16_LESS),
            ("m8", "Sec. 4", "grids of at most 8 x 8 patches", {"grid": 8}, B16_LIKE),
            (
                "all-grids",
                "Sec. 3.2",
                "all 36 grids of the paper's text, not its code's 24",
                {"grid_rule": "all"},
                B16_LIKE,
            ),
            (
                "pad-zero",
                "Sec. 3.2",
                "the student's input is padded with zeros, as the paper's text says",
                {"pad": "zero"},
                B16_LIKE,
            ),
            ("size320", "Sec. 4", "the student's input is 320 pixels", {"student_size": 320}, B16_LESS),
            ("size480", "Sec. 4", "the student's input is 480 pixels", {"student_size": 480}, B16_LESS),
            ("size640", "Sec. 4", "the student's input is 640 pixels", {"student_size": 640}, B16_LESS),
            ("size800", "Sec. 4", "the student's input is 800 pixels", {"student_size": 800}, B16_LESS),
        )
    ),
    # --- F-ViT on a frozen, distilled tower
    *(
        Recipe(
            name=f"fvit-{name}",
            where=where,
            what=what,
            fields=settings,
            published=published,
            time=DETECTOR_TIME,
            how=HOW_DETECTOR,
            needs=DETECTOR_NEEDS,
            verb="train-fvit",
            data="lvis" if "lvis" in name else "coco",
        )
        for name, where, what, settings, published in (
            (
                "ov-coco-b16",
                "Tab. 3; A.3",
                "F-ViT on B/16, OV-COCO: 48 base classes, 17 novel.",
                {**OV_COCO, "size": 640},
                {"novel AP50, EVA-02 as it comes": 17.5, "patches": 33.6, "proposals": 37.6},
            ),
            (
                "ov-coco-l14",
                "Tab. 3; A.3",
                "F-ViT on L/14, OV-COCO.",
                {**OV_COCO, "size": 896},
                {"novel AP50, EVA-02 as it comes": 24.7, "patches": 38.4, "proposals": 44.3},
            ),
            (
                "ov-lvis-b16",
                "Tab. 4; A.3",
                "F-ViT on B/16 with masks, OV-LVIS: 866 base classes, 337 rare ones are novel.",
                {**OV_LVIS, "size": 1024, "benchmark": "ov-lvis-b"},
                {"mask APr, EVA-02 as it comes": 11.5, "patches": 25.3},
            ),
            (
                "ov-lvis-l14",
                "Tab. 4; A.3",
                "F-ViT on L/14 with masks, OV-LVIS.",
                {**OV_LVIS, "size": 896, "benchmark": "ov-lvis-l"},
                {"mask APr, EVA-02 as it comes": 24.2, "patches": 34.9},
            ),
            (
                "ov-coco-b16-simple",
                "Tab. A6",
                "Ablation: ViTDet's pyramid on the last block.",
                {**OV_COCO, "size": 640, "pyramid": "simple"},
                None,
            ),
            (
                "ov-coco-b16-fpn",
                "Tab. A6",
                "Ablation: a feature pyramid on the last block.",
                {**OV_COCO, "size": 640, "pyramid": "fpn"},
                None,
            ),
            (
                "ov-coco-b16-unfrozen",
                "Tab. A6",
                "Ablation: the tower learns too, each block slower than the one behind it.",
                {**OV_COCO, "size": 640, "layers": 12},
                None,
            ),
        )
    ),
    *(
        Recipe(
            name=f"transfer-{name}",
            where="A.3, transfer",
            what=f"F-ViT on L/14 trained on OV-LVIS, measured on {title} without more training; T = 50.",
            fields={"benchmark": f"transfer-{name}", **more},
            published=published,
            time=DETECTOR_TIME,
            how="--model: OUT/model of fvit-ov-lvis-l14. --data: the other data set's root.",
            needs={"model": "RUN/model"},
            verb="evaluate detection",
            data=name,
        )
        for name, title, more, published in TRANSFERS
    ),
    # --- Cat-Seg on a distilled tower
    *(
        Recipe(
            name=f"catseg{name}",
            where="semantic segmentation",
            what=what,
            fields={**CATSEG, **settings},
            published=published,
            time=DETECTOR_TIME,
            how="--data: COCO-Stuff's root. --model: OUT/model of a distilled OpenAI CLIP. 4 pictures a step in all.",
            needs=DETECTOR_NEEDS,
            verb="train-catseg",
            data="coco-stuff",
        )
        for name, what, settings, published in (
            ("-2024", "CAT-Seg of 2024 on any ViT, 171 classes of COCO-Stuff.", {"residual": "cls"}, None),
            (
                "-2024-token",
                "CAT-Seg of 2024 with CLIPSelf's last block: values are added to each token, not to the class token.",
                {"residual": "token"},
                None,
            ),
            (
                "-2023-b16",
                "CAT-Seg of 2023 on B/16, the paper's, as its authors changed it: guided by a ResNet-101.",
                {"version": "2023", "residual": "cls", "backbone": "resnet101"},
                {"ADE-150 mIoU, patches": 29.0},
            ),
            (
                "-2023-l14",
                "CAT-Seg of 2023 on L/14, guided by a Swin-B.",
                {"version": "2023", "residual": "cls", "backbone": "swin_base_patch4_window12_384"},
                {"ADE-150 mIoU, patches": 34.5},
            ),
        )
    ),
    *(
        Recipe(
            name=f"semantic-{kind}",
            where="semantic segmentation",
            what=f"mIoU on {title} of what was trained on COCO-Stuff.",
            fields={"kind": kind, **({"every_word": True} if kind == "voc20b" else {})},
            published={
                f"Cat-Seg of {which}, without CLIPSelf": number for which, number in zip(VERSIONS, numbers, strict=True)
            },
            time=DETECTOR_TIME,
            how="--model: OUT/model of a catseg row. --data: the other data set's root; " + how,
            needs=needs,
            verb="evaluate semantic",
            data=SEMANTIC_DATA[kind],
        )
        for kind, title, numbers, needs, how in (
            (
                "ade-full",
                "ADE20K's 847 classes",
                (8.9, 11.4, 12.0, 16.0),
                MAPS_NEED,
                "--maps: of `foveate convert-maps`.",
            ),
            (
                "context459",
                "PASCAL Context's 459 classes",
                (16.6, 20.4, 19.0, 23.8),
                MAPS_NEED,
                "--maps: of `foveate convert-maps`.",
            ),
            ("ade150", "ADE20K's 150 classes", (27.2, 31.5, 31.8, 37.9), DETECTOR_NEEDS, "ADEChallengeData2016."),
            (
                "context59",
                "PASCAL Context's 59 classes",
                (57.5, 62.0, 57.5, 63.3),
                DETECTOR_NEEDS,
                "VOC2010 with the official 59_context_labels.",
            ),
            ("voc20", "VOC's 20 classes", (93.7, 96.6, 94.6, 97.0), DETECTOR_NEEDS, "VOCdevkit/VOC2012."),
            (
                "voc20b",
                "VOC's 20 classes and all else as one",
                (78.3, 81.8, 77.3, 82.5),
                LABELS_NEED,
                "--labels: VOC's classes, and the other classes of PASCAL Context's 59 as words of the background.",
            ),
        )
    ),
    # --- masks with classes of generator and CLIP
    Recipe(
        name="panoptic-odise",
        where="Tab. 5",
        what="ODISE's generator of masks with class words, on Stable Diffusion's features, COCO's 133 classes.",
        fields=ODISE,
        time=DETECTOR_TIME,
        how="--encoder: Stable Diffusion 1.3 as diffusers writes it. 64 pictures a step: 8 x 8 passes on one process.",
        needs={"encoder": "SD", "labels": "FILE"},
        verb="train-panoptic",
        data="coco-panoptic",
    ),
    Recipe(
        name="panoptic-tower",
        where="none",
        what="The same on the frozen tower of a distilled CLIP: one network is encoder and classifier.",
        fields=ODISE,
        time=DETECTOR_TIME,
        how="--model: OUT/model of a distillation. 64 pictures a step: 8 x 8 passes on one process.",
        needs=DETECTOR_NEEDS,
        verb="train-panoptic",
        data="coco-panoptic",
    ),
    Recipe(
        name="panoptic-ade",
        where="Tab. 5",
        what="PQ on ADE20K of masks that CLIPSelf's dense map names together with ODISE.",
        fields={"shares": ("odise-label", "clip", "generator"), "size": 672, "semantic": True},
        published={"PQ, fused, OpenAI L/14": 23.7},
        time=DETECTOR_TIME,
        how="--clip-with: OUT/model of a distilled OpenAI L/14. --size 336 is its own input.",
        needs={**DETECTOR_NEEDS, "clip_with": "RUN/model", "labels": "FILE"},
        verb="evaluate panoptic",
        data="ade20k",
    ),
    Recipe(
        name="world",
        where="none",
        what="The shipped small CLIP on the rendered world (`foveate world DIR`): what `foveate demo` distils.",
        fields={"steps": 260, "student_size": 192},
        time="2.5 min on two CPU cores (estimate, from one run of the demo)",
        how="One process, 4 pictures a step.",
    ),
    # --- the same on the rendered world, small enough for a CPU: what `foveate reproduce` runs
    Recipe(
        name="world-short",
        where="none",
        what="The shipped small CLIP, distilled on the rendered world: a row of `foveate reproduce`.",
        fields={"steps": 200, "student_size": 192},
        time="2.5 min on one CPU core (estimate, from the rows of results/)",
        how="One process, 4 images per step.",
    ),
    Recipe(
        name="world-fvit",
        where="none",
        what="F-ViT on the rendered world, two epochs of whole images: a row of `foveate reproduce`.",
        fields={
            "steps": 150,
            "lr": 1e-3,
            "warmup": 20,
            "size": 192,
            "jitter": (1.0, 1.0),  # none, so that feature maps are computed once
            "flip": False,
            "cache": True,
            "proposals": 300,
            "rois": 64,
        },
        time=DETECTOR_TIME,
        how=HOW_WORLD,
        needs=DETECTOR_NEEDS,
        verb="train-fvit",
    ),
    Recipe(
        name="world-catseg",
        where="none",
        what="CAT-Seg on the rendered world: a row of `foveate reproduce`.",
        fields={"steps": 250},
        time=DETECTOR_TIME,
        how=HOW_WORLD,
        needs=DETECTOR_NEEDS,
        verb="train-catseg",
    ),
    Recipe(
        name="world-panoptic",
        where="none",
        what="Masks of things and stuff on the rendered world: what panoptic rows of `foveate reproduce` share.",
        fields={"steps": 1000, "batch": 2, "milestones": (850,), "warmup": 20},
        time=DETECTOR_TIME,
        how=HOW_WORLD,
        needs=DETECTOR_NEEDS,
        verb="train-panoptic",
    ),
)
