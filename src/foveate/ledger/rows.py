"""The rows of the ledger, as data: what is trained, what is measured, what the paper printed, what it says.

A run is a training command; a row measures a run (or the CLIP it starts from) and stands in one table; a claim compares
two rows, as the paper's text does. Published numbers are of EVA-02 B/16 on COCO, where they are known to us: a row
without one says so instead of leaving a guess. Deliberately absent: how commands are run (`jobs.py`) and the verdicts
(`results.py`).
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from foveate.ledger.scale import Scale

TABLES = ("tab1", "tab2", "tab8", "tabA1", "tabA3", "figs", "global", "terms", "ovd", "ovss", "ovps")
APPLICATIONS = ("ovd", "ovss", "ovps")  # of TABLES; not among "all", each takes about an hour of its own
REGION_TEXT = ("--objective", "region-text", "--boxes", "{proposals}")
AP50 = MIOU = ("novel", "base", "all")  # of F-ViT's boxes; of classes of pixels
PQ = ("novel", "base", "all", "things", "stuff")  # of segments
HEADED = ("detection", "semantic", "panoptic")  # measures of a head, which is trained with each seed
MIXED = ("boxes@0.25", "classes@0.25", "boxes@0.5", "classes@0.5", "boxes@0.75", "classes@0.75")
Measure = Literal[
    "regions", "sweep", "masked", "retrieval", "global", "pareto", "detection", "cosines", "semantic", "panoptic"
]


TAUGHT = (
    ("untouched", "the CLIP as it comes", None),
    ("patches", "CLIPSelf with image patches", "clipself"),
)  # name, title, run of what segmentation stands on; the paper has patches


@dataclass(frozen=True)
class Run:
    """One training command, beside the data, the model, the steps and the seed that all of them share."""

    name: str
    flags: tuple[str, ...] = ()
    """Words of `foveate distill`; {proposals}, {pairs} and {names} stand for files."""
    needs: tuple[str, ...] = ()
    """Names of the assets it needs: proposals, pairs, captions."""
    data: str = "{data}"
    """What --data is."""


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    name: str
    table: str
    title: str
    run: str | None
    """The run that is measured; None: the CLIP as it comes. "cnn" is the residual CLIP."""
    measure: Measure = "regions"
    metrics: tuple[str, ...] = ("boxes", "things", "stuff", "crops")
    """What the table shows, in this order; `results.py` says where each is found."""
    published: tuple[tuple[str, float], ...] = ()
    flags: tuple[str, ...] = ()
    """Of a head: further words of its training."""
    shares: str = ""
    """Of a panoptic row: whose word on the class of a mask counts."""


@dataclass(frozen=True)
class Claim:
    """What the paper, or somebody else, says of the rows of a table."""

    table: str
    text: str
    source: str
    """Where it is said: a place in the paper, or another work."""
    pairs: tuple[tuple[str, str], ...]
    """It holds where each first number is larger than the second, each a "row.metric"."""


def runs_of(scale: Scale) -> dict[str, Run]:
    """Every training command, by name.

    Args:
        scale: the numbers to fill in.
    """
    runs = [
        Run("clipself"),
        Run("m4", ("--grid", "4")),
        Run("m8", ("--grid", "8")),
        *(Run(f"last{count}", ("--layers", str(count))) for count in scale.layers),
        *(Run(f"size{size}", ("--student-size", str(size))) for size in scale.sizes),
        Run(
            "image-text",  # needs other captions to tell a picture's from: as many pictures, 16 a step
            ("--objective", "image-text", "--batch", "16", "--steps", str(max(1, scale.steps * scale.batch // 16))),
            needs=("captions",),
        ),
        Run("proposals", ("--boxes", "{proposals}"), needs=("proposals",)),
        Run("region-text", REGION_TEXT, needs=("proposals", "captions")),
        Run("region-text-names", (*REGION_TEXT, "--nouns", "{names}"), needs=("proposals",)),
        Run("window", ("--window", str(scale.window))),
        Run("other-domain", data="{pairs}", needs=("pairs",)),
        Run("keep", ("--keep", "1")),
        Run("correlation", ("--correlation", "0.1")),
        Run("values3", ("--head", "values3")),
        Run("values3-gates", ("--head", "values3", "--gates")),
        Run("values3-gates-correlation", ("--head", "values3", "--gates", "--correlation", "0.1")),
    ]
    return {run.name: run for run in runs}


def rows_of(scale: Scale) -> tuple[Row, ...]:
    """Every row, in the tables' order.

    Args:
        scale: the numbers that titles name.
    """
    published = (("boxes", 72.1), ("things", 74.4), ("stuff", 46.8))
    return (
        # --- Tab. 1: what the method is made of
        Row("untouched", "tab1", "CLIP as it comes", None, published=(("boxes", 18.2), ("crops", 68.4))),
        Row("image-text", "tab1", "#5: image-level supervision (captions), 16 pictures a step", "image-text"),
        Row("m4", "tab1", "M = 4", "m4"),
        Row("m6", "tab1", "M = 6, all blocks, largest input (CLIPSelf)", "clipself", published=published),
        Row("m8", "tab1", "M = 8", "m8"),
        *(
            Row(f"layers{index}", "tab1", f"last {blocks} blocks trained (the paper's {paper} of 12)", f"last{blocks}")
            for index, (blocks, paper) in enumerate(zip(scale.layers, (3, 6, 9), strict=True))
        ),
        *(
            Row(f"size{index}", "tab1", f"student input {size} px (the paper's {paper})", f"size{size}")
            for index, (size, paper) in enumerate(zip(scale.sizes, (320, 480, 640, 800), strict=True))
        ),
        # --- Tab. 2: which regions
        Row("tab2-patches", "tab2", "image patches", "clipself", published=published),
        Row("tab2-proposals", "tab2", "region proposals (trained on base categories)", "proposals"),
        # --- Tab. 8: against other training
        Row("tab8-region-text", "tab8", "region-text pairs, on proposals, nouns of captions", "region-text"),
        Row("tab8-region-names", "tab8", "the same, told the categories (not in the paper)", "region-text-names"),
        Row("tab8-clipself", "tab8", "CLIPSelf, on proposals", "proposals"),
        Row("tab8-global", "tab8", "CLIPSelf, patches, global attention", "clipself", published=published),
        Row("tab8-window", "tab8", f"CLIPSelf, patches, windows of {scale.window} x {scale.window} patches", "window"),
        Row("tab8-other", "tab8", "CLIPSelf, patches, other pictures (CC3M in the paper)", "other-domain"),
        # --- Tab. A1: what each location retrieves
        *(
            Row(f"tabA1-{name}", "tabA1", title, run, "retrieval", ("region1", "region5", "image1", "image5"))
            for name, title, run in (("untouched", "CLIP as it comes", None), ("clipself", "CLIPSelf", "clipself"))
        ),
        # --- Tab. A3: masked attention
        Row("tabA3-pooled", "tabA3", "CLIP as it comes, pooled", None, "masked", ("boxes", "things", "stuff")),
        Row(
            "tabA3-masked",
            "tabA3",
            "CLIP as it comes, masked attention",
            None,
            "masked",
            ("masked-boxes", "masked-things", "masked-stuff"),
        ),
        Row("tabA3-clipself", "tabA3", "CLIPSelf, pooled", "clipself", "masked", ("boxes", "things", "stuff")),
        # --- Fig. 2, 3, A1: over input sizes
        *(
            Row(f"figs-{name}", "figs", title, run, "sweep", ("crops", "smallest", "largest"))
            for name, title, run in (
                ("vit", "ViT as it comes", None),
                ("cnn", "CNN as it comes", "cnn"),
                ("clipself", "ViT after CLIPSelf", "clipself"),
            )
        ),
        # --- what is kept of the whole picture; not in the paper
        *(
            Row(f"global-{name}", "global", title, run, "global", ("classes", "image-to-text", "text-to-image"))
            for name, title, run in (
                ("untouched", "CLIP as it comes", None),
                ("clipself", "CLIPSelf", "clipself"),
                ("keep", "CLIPSelf --keep 1", "keep"),
                ("layers", f"CLIPSelf --layers {scale.layers[0]}", f"last{scale.layers[0]}"),
            )
        ),
        Row("kept", "global", "CLIPSelf --keep 1, dense", "keep"),
        *(
            Row(f"mixed-{run}", "global", f"alpha of 0.25, 0.5, 0.75: {run}", run, "pareto", MIXED)
            for run in ("clipself", "keep")
        ),
        # --- F-ViT on a frozen tower, trained on boxes of base categories
        *(
            Row(f"ovd-{name}", "ovd", title, run, "detection", AP50, (("novel", novel),))
            for name, title, run, novel in (
                ("untouched", "F-ViT on the CLIP as it comes", None, 17.5),
                ("patches", "F-ViT on CLIPSelf with image patches", "clipself", 33.6),
                ("proposals", "F-ViT on CLIPSelf with region proposals", "proposals", 37.6),
            )
        ),
        *(
            Row(
                f"ovd-{name}",
                "ovd",
                f"Tab. A6: {title}, on CLIPSelf with patches",
                "clipself",
                "detection",
                AP50,
                (),
                flags,
            )
            for name, title, flags in (
                ("simple", "ViTDet's pyramid on the last block", ("--pyramid", "simple")),
                ("fpn", "a feature pyramid on the last block", ("--pyramid", "fpn")),
                ("unfrozen", "the tower learns too", ("--layers", str(scale.blocks), "--no-cache")),
            )
        ),
        # --- classes of pixels, with nothing trained and with Cat-Seg trained on base classes
        *(
            Row(f"cosines-{name}", "ovss", f"cosines of the dense map: {title}", run, "cosines", MIOU)
            for name, title, run in TAUGHT
        ),
        *(Row(f"ovss-{name}", "ovss", f"CAT-Seg on {title}", run, "semantic", MIOU) for name, title, run in TAUGHT),
        # --- things and stuff: masks of a generator trained on base classes, named by it, by a CLIP, or by both
        Row("ovps-generator", "ovps", "the generator's classes", None, "panoptic", PQ, shares="generator"),
        *(
            Row(f"ovps-{name}{end}", "ovps", f"{said} {title}", run, "panoptic", PQ, shares=shares)
            for shares, end, said in (("clip", "", "classes of"), ("odise-label", "-fused", "both, fused:"))
            for name, title, run in TAUGHT
        ),
        # --- options of ours beyond the paper
        *(
            Row(f"terms-{name}", "terms", title, name)
            for name, title in (
                ("clipself", "CLIPSelf"),
                ("correlation", "+ correlation with the pretrained CLIP's own naclip map (KL)"),
                ("values3", "head of the last three blocks' values"),
                ("values3-gates", "... with a gate (a plain number) per attention head"),
                ("values3-gates-correlation", "... and the correlation above"),
            )
        ),
    )


def claims_of(scale: Scale) -> tuple[Claim, ...]:
    """What is said of the rows, in the tables' order.

    Args:
        scale: as for `rows_of`.
    """
    all_three = ("boxes", "things", "stuff")
    return (
        Claim("tab1", "CLIPSelf makes dense features recognise regions", "Tab. 1", _all("m6", "untouched", all_three)),
        Claim("tab1", "captions of whole pictures do less for them", "Tab. 1, #5", _all("m6", "image-text", all_three)),
        Claim("tab1", "M = 6 is better than M = 4", "Tab. 1: the M chosen", _all("m6", "m4", ("boxes", "things"))),
        Claim("tab1", "M = 6 is better than M = 8", "Tab. 1: the M chosen", _all("m6", "m8", ("boxes", "things"))),
        Claim("tab1", "the more blocks are trained, the better", "Tab. 1", _rising("layers", len(scale.layers))),
        Claim("tab1", "the larger the student's input, the better", "Tab. 1", _rising("size", len(scale.sizes))),
        Claim(
            "tab2",
            "proposals are better for things than patches",
            "Tab. 2",
            _all("tab2-proposals", "tab2-patches", ("boxes", "things")),
        ),
        Claim("tab2", "and worse for stuff", "Tab. 2", _all("tab2-patches", "tab2-proposals", ("stuff",))),
        Claim(
            "tab8",
            "CLIPSelf is better than region-text pairs on the same boxes",
            "Tab. 8",
            _all("tab8-clipself", "tab8-region-text", ("boxes", "things")),
        ),
        Claim("tab8", "it works with window attention", "Sec. 4.4", _all("tab8-window", "untouched", all_three)),
        Claim("tab8", "it works on pictures of another domain", "Tab. 8", _all("tab8-other", "untouched", all_three)),
        Claim(
            "tabA1",
            "a location comes to name its region",
            "Tab. A1",
            _all("tabA1-clipself", "tabA1-untouched", ("region1", "region5")),
        ),
        Claim(
            "tabA1",
            "and no longer its picture",
            "Tab. A1",
            _all("tabA1-untouched", "tabA1-clipself", ("image1", "image5")),
        ),
        Claim(
            "tabA3",
            "masked attention recognises regions better than pooling",
            "Tab. A3",
            tuple((f"tabA3-masked.masked-{kind}", f"tabA3-pooled.{kind}") for kind in all_three),
        ),
        Claim(
            "tabA3",
            "CLIPSelf is better than masked attention",
            "Tab. A3",
            tuple((f"tabA3-clipself.{kind}", f"tabA3-masked.masked-{kind}") for kind in all_three),
        ),
        Claim("figs", "a ViT knows crops and not places", "Fig. 2", (("figs-vit.crops", "figs-vit.largest"),)),
        Claim(
            "figs", "a CNN's places are better than a ViT's", "Fig. 2, A1", (("figs-cnn.largest", "figs-vit.largest"),)
        ),
        Claim("figs", "a CNN gains from a larger input", "Fig. 3, A1", (("figs-cnn.largest", "figs-cnn.smallest"),)),
        Claim("figs", "a ViT does not", "Fig. 3, A1", (("figs-vit.smallest", "figs-vit.largest"),)),
        Claim("figs", "after CLIPSelf it does", "Fig. 3", (("figs-clipself.largest", "figs-clipself.smallest"),)),
        Claim(
            "global",
            "CLIPSelf forgets whole pictures",
            "its users",
            _all("global-untouched", "global-clipself", ("classes", "image-to-text", "text-to-image")),
        ),
        Claim(
            "global",
            "--keep keeps them",
            "ours",
            _all("global-keep", "global-clipself", ("classes", "image-to-text", "text-to-image")),
        ),
        Claim("global", "and raises dense accuracy", "ours", _all("kept", "m6", ("boxes", "things"))),
        Claim(
            "ovd",
            "CLIPSelf makes F-ViT find novel categories",
            "Tab. 3",
            (("ovd-patches.novel", "ovd-untouched.novel"), ("ovd-proposals.novel", "ovd-untouched.novel")),
        ),
        Claim(
            "ovd",
            "taps of four blocks are better than the last block alone",
            "Tab. A6",
            (("ovd-patches.novel", "ovd-fpn.novel"), ("ovd-patches.base", "ovd-fpn.base")),
        ),
        Claim(
            "ovd",
            "a top-down path is better than ViTDet's pyramid",
            "Tab. A6",
            (("ovd-fpn.novel", "ovd-simple.novel"),),
        ),
        Claim(
            "ovd",
            "a tower that learns too helps base categories",
            "Tab. A6",
            (("ovd-unfrozen.base", "ovd-patches.base"),),
        ),
        Claim("ovd", "and hurts novel ones", "Tab. A6", (("ovd-patches.novel", "ovd-unfrozen.novel"),)),
        Claim("ovd", "proposals more than patches", "Tab. 3", (("ovd-proposals.novel", "ovd-patches.novel"),)),
        Claim(
            "ovss",
            "CLIPSelf makes CAT-Seg name novel classes",
            "semantic segmentation",
            (("ovss-patches.novel", "ovss-untouched.novel"), ("ovss-patches.all", "ovss-untouched.all")),
        ),
        Claim(
            "ovss",
            "aggregation is better than the cosines it aggregates",
            "Cat-Seg",
            (("ovss-patches.all", "cosines-patches.all"), ("ovss-patches.novel", "cosines-patches.novel")),
        ),
        Claim(
            "ovps",
            "CLIPSelf names masks better than the CLIP as it comes",
            "Tab. 5",
            (("ovps-patches.all", "ovps-untouched.all"), ("ovps-patches-fused.all", "ovps-untouched-fused.all")),
        ),
        Claim(
            "ovps",
            "generator and CLIP together are better than either",
            "ODISE",
            (("ovps-patches-fused.all", "ovps-generator.all"), ("ovps-patches-fused.all", "ovps-patches.all")),
        ),
        Claim(
            "terms",
            "correlation with the pretrained CLIP's own map helps",
            "ours; not the term of R-SC or DenseRC, whose teacher is another",
            _all("terms-correlation", "terms-clipself", all_three),
        ),
        Claim(
            "terms",
            "the values of the last three blocks are better than the paper's head",
            "ours",
            _all("terms-values3", "terms-clipself", all_three),
        ),
    )


def _all(more: str, less: str, metrics: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    return tuple((f"{more}.{metric}", f"{less}.{metric}") for metric in metrics)


def _rising(stem: str, count: int) -> tuple[tuple[str, str], ...]:
    """Each step of an ablation is better than the one before, and all of it best."""
    names = [*(f"{stem}{index}" for index in range(count)), "m6"]
    return tuple((f"{more}.boxes", f"{less}.boxes") for less, more in pairwise(names))
