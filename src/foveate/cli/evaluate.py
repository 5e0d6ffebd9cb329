"""`foveate evaluate regions`, `agreement` and `retrieval`: measure a model's dense map, print a table, write JSON.

Torch is imported only when something is measured, so that help and typing errors answer at once.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from foveate.clip.names import Head, Pad, TemplateName
from foveate.io.files import bad_lines, check_target, default_cache, versions, write_whole

if TYPE_CHECKING:
    from rich.table import Table

    from foveate.clip.model import Clip
    from foveate.data.records import Dataset, Dropped


class Passed(TypedDict):
    """The flags of `Cropping` that every measurement takes by these names."""

    batch: int
    crop_batch: int
    limit: int | None
    strict: bool
    workers: int
    progress: bool


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The flags of every verb that reads pictures and measures."""

    data: Path
    """Folder of pictures, or COCO root."""
    split: str = "val"
    """train, val or test of a COCO root."""
    limit: int | None = None
    """Only the first so many pictures."""
    batch: int = 8
    """Pictures a dense batch."""
    workers: int = 2
    """Processes that decode pictures; 0 = none besides this one."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto = cuda where there is one."""
    strict: bool = False
    """End at the first picture that cannot be read, instead of counting it."""
    out: Path | None = None
    """Write the result to this JSON file."""


@dataclass(frozen=True, kw_only=True)
class Cropping(Reading):
    """The flags of the verbs that embed crops too."""

    crop_batch: int = 128
    """Crops an image batch."""

    def reading(self) -> Passed:
        """How pictures are read, as keywords of the measurements."""
        return {
            "batch": self.batch,
            "crop_batch": self.crop_batch,
            "limit": self.limit,
            "strict": self.strict,
            "workers": self.workers,
            "progress": True,
        }


@dataclass(frozen=True, kw_only=True)
class Evaluation(Cropping):
    """The flags of the verbs that measure the dense map of one model."""

    model: str
    """Name of a CLIP, or a folder with one (OUT/model of a run): its dense map is measured."""
    pretrained: str | None = None
    """Weights file or open_clip tag, where `model` is the name of an architecture."""
    head: Head = "value"
    """What becomes of the last block: value is the paper's; sclip, clearclip and naclip are the training-free ones."""
    pad: Pad | None = None
    """Padding of the dense input: black before colour normalisation, or zero after it; default: what the model was
    trained with, black where it does not say."""


@dataclass(frozen=True, kw_only=True)
class Regions(Evaluation):
    """Classify annotated regions from the dense map and from crops (Fig. 2, 3 and Tab. 1 of the paper)."""

    data: Path
    """COCO root with panoptic annotations, or a world written by `foveate world`."""
    head: Head = "value"
    """What becomes of the last block: value is the paper's; sclip, clearclip and naclip are the training-free ones. The
    rows of --masked and the crops do not depend on it."""
    sizes: tuple[int, ...] = ()
    """Sides of the dense input [pixels]; default: the model's own size, twice and four times it."""
    crops: bool = True
    """Also classify crops with the image tower."""
    masked: bool = False
    """Also classify regions by masked attention at each size (Tab. A3)."""
    crowd: bool = True
    """Keep segments marked as crowds, as the published evaluation does."""
    templates: TemplateName = "vild"
    """What class names are written into: ViLD's 63 templates (the paper), CLIP's 80 for ImageNet, or nothing. Their
    embeddings are kept in $FOVEATE_CACHE, else ~/.cache/foveate; FOVEATE_CACHE="" keeps none."""


@dataclass(frozen=True, kw_only=True)
class Agreement(Evaluation):
    """Compare the dense map with the model's own crops, without labels, on any folder of pictures."""

    reference: str | None = None
    """CLIP that embeds the crops, such as the one `model` was distilled from; default: `model` itself."""
    reference_pretrained: str | None = None
    """Weights file or open_clip tag, where `reference` is the name of an architecture."""
    size: int | None = None
    """Side of the dense input [pixels]; default: four times the model's own size."""
    grid: int = 6
    """Most rows and columns of the grid laid over a picture."""
    keep: int = 20
    """Most patches of a picture."""
    gallery: int = 50
    """Pictures whose crops a patch chooses among."""
    seed: int = 0
    """Decides grids and galleries, together with each picture's id."""


@dataclass(frozen=True, kw_only=True)
class Retrieval(Evaluation):
    """Let every location of the dense map find its picture and its region among others (Tab. A1 of the paper)."""

    data: Path
    """COCO root with panoptic annotations, or with --no-regions any pictures."""
    reference: str | None = None
    """CLIP whose image embeddings are searched, such as the one `model` was distilled from; default: `model` itself."""
    reference_pretrained: str | None = None
    """Weights file or open_clip tag, where `reference` is the name of an architecture."""
    size: int | None = None
    """Side of the dense input [pixels]; default: four times the model's own size."""
    regions: bool = True
    """Also search for the crops of annotated regions."""
    crowd: bool = True
    """Keep segments marked as crowds, as the published evaluation does."""
    gallery: int = 50
    """Pictures, and regions, that a location chooses among."""
    seed: int = 0
    """Decides the galleries, together with each picture's id."""


def run_regions(config: Regions) -> dict[str, Any]:
    """Classify regions, print a table, write JSON where asked, and return the result."""
    if config.out is not None:
        check_target(config.out, flag="--out")
    started = time.perf_counter()
    from foveate.data.sources import open_data
    from foveate.evaluate.regions import evaluate_regions

    dataset = open_data(config.data, split=config.split, annotations="panoptic")
    clip = load_model(config.model, config.pretrained, config.device, pad=config.pad)
    result = evaluate_regions(
        clip,
        dataset,
        sizes=list(config.sizes) or [clip.native_size, 2 * clip.native_size, 4 * clip.native_size],
        crops=config.crops,
        masked=config.masked,
        crowd=config.crowd,
        head=config.head,
        templates=config.templates,
        text_cache=default_cache(),
        **config.reading(),
    )
    return finish(result, _regions_table(result, config.model), config, datasets=[dataset], started=started)


def _regions_table(result: dict[str, Any], model: str) -> "Table":
    from rich.table import Table

    title = f"mAcc [%] of {model}: {result['pictures']} pictures, {result['classes']} classes, head {result['head']}"
    table = Table(title=title, title_justify="left")
    table.add_column("region features", no_wrap=True)
    kinds = ("boxes", "things", "stuff", "stuff_boxes")
    for kind in kinds:
        for top in ("top-1", "top-5"):
            table.add_column(f"{kind.replace('_', ' ')}\n{top}", justify="right")
    rows = {f"dense, {size} px": scores for size, scores in result["dense"].items()}
    for size, scores in (result["masked"] or {}).items():
        rows[f"masked attention, {size} px"] = scores
    if result["crop"] is not None:
        rows["crops"] = result["crop"]
    for name, scores in rows.items():
        values = [scores[kind][top] for kind in kinds for top in ("top1", "top5")]
        table.add_row(name, *("-" if value is None else f"{value:.1f}" for value in values))
    first = next(iter(rows.values()))
    counts = [str(first[kind]["count"]) for kind in kinds]
    table.add_section()
    table.add_row("regions", *(cell for count in counts for cell in (count, "")))
    return table


def run_agreement(config: Agreement) -> dict[str, Any]:
    """Compare dense map and crops, print a table, write JSON where asked, and return the result."""
    from foveate.data.sources import open_data
    from foveate.evaluate.agreement import evaluate_agreement

    if config.out is not None:
        check_target(config.out, flag="--out")
    started = time.perf_counter()
    dataset = open_data(config.data, split=config.split, annotations="none")
    student = load_model(config.model, config.pretrained, config.device, pad=config.pad)
    reference = student
    if config.reference is not None:
        reference = load_model(config.reference, config.reference_pretrained, config.device)
    result = evaluate_agreement(
        student,
        reference,
        dataset,
        size=4 * student.native_size if config.size is None else config.size,
        head=config.head,
        grid=config.grid,
        keep=config.keep,
        gallery=config.gallery,
        seed=config.seed,
        **config.reading(),
    )
    return finish(result, _agreement_table(result, config), config, datasets=[dataset], started=started)


def _agreement_table(result: dict[str, Any], config: Agreement) -> "Table":
    from rich.table import Table

    table = Table(title=f"{config.model} against crops of {config.reference or config.model}", title_justify="left")
    table.add_column("dense features")
    for heading in ("mean cosine", f"R@1 [%]\namong {result['crops']:.0f} crops", "regions", "pictures"):
        table.add_column(heading, justify="right")
    name = f"{result['size']} px, head {result['head']}"
    numbers = f"{result['cosine']:.3f}", f"{result['recall']:.1f}", str(result["regions"]), str(result["pictures"])
    table.add_row(name, *numbers)
    return table


def run_retrieval(config: Retrieval) -> dict[str, Any]:
    """Search by locations, print a table, write JSON where asked, and return the result."""
    if config.out is not None:
        check_target(config.out, flag="--out")
    started = time.perf_counter()
    from foveate.data.sources import open_data
    from foveate.evaluate.retrieval import evaluate_retrieval

    kind = "panoptic" if config.regions else "none"
    dataset = open_data(config.data, split=config.split, annotations=kind)
    student = load_model(config.model, config.pretrained, config.device, pad=config.pad)
    reference = student
    if config.reference is not None:
        reference = load_model(config.reference, config.reference_pretrained, config.device)
    result = evaluate_retrieval(
        student,
        reference,
        dataset,
        size=4 * student.native_size if config.size is None else config.size,
        head=config.head,
        regions=config.regions,
        crowd=config.crowd,
        gallery=config.gallery,
        seed=config.seed,
        **config.reading(),
    )
    return finish(result, _retrieval_table(result, config), config, datasets=[dataset], started=started)


def _retrieval_table(result: dict[str, Any], config: Retrieval) -> "Table":
    from rich.table import Table

    title = (
        f"R@K [%] of the locations of {config.model}, {result['size']} px, head {result['head']}: "
        f"{result['pictures']} pictures embedded by {config.reference or config.model}"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("a location finds")
    for heading in ("R@1", "R@5", "R@10", "asked"):
        table.add_column(heading, justify="right")
    rows = {f"its picture among {result['gallery']}": result["image"]}
    if result["region"] is not None:
        rows[f"its region's crop among {result['region_gallery']}"] = result["region"]
    for name, found in rows.items():
        shares = ("-" if found[key] is None else f"{found[key]:.1f}" for key in ("r1", "r5", "r10"))
        table.add_row(name, *shares, str(found["count"]))
    return table


def finish(
    result: dict[str, Any], table: "Table", config: Reading, *, datasets: "list[Dataset]", started: float
) -> dict[str, Any]:
    """Print the table and what was left out, and write the result with how it was made."""
    from rich.console import Console

    dropped: dict[str, Dropped] = {}
    for reason, one in (item for dataset in datasets for item in dataset.dropped.items()):
        dropped[reason] = dropped[reason] + one if reason in dropped else one
    result["dropped"] = {reason: asdict(one) for reason, one in dropped.items()}
    result["seconds"] = round(time.perf_counter() - started, 1)
    Console().print(table)
    told = [line for dataset in datasets for line in dataset.dropped_lines()]
    for line in [*told, *bad_lines(result["bad"], listed="--out FILE")]:
        print(line, file=sys.stderr)
    if config.out is not None:
        content = {**result, "config": _plain(config), "versions": versions()}
        write_whole(config.out, (json.dumps(content, indent=2) + "\n").encode())
    return result


def load_model(name: str, pretrained: str | None, device: str, *, pad: Pad | None = None) -> "Clip":
    """Load a model to the device that the flag names; its inputs are padded as it says, or as `pad` does."""
    from foveate.clip.load import load
    from foveate.engine.distributed import choose_device

    clip = load(name, pretrained=pretrained, device=choose_device(device, local_rank=None))
    if pad is not None:
        clip.pad = pad
    return clip


def _plain(config: Reading) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(config).items()}
