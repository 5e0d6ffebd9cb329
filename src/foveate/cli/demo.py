"""`foveate demo`: the whole path on the rendered world, from nothing to a report, offline, in minutes on two cores.

world -> the shipped small CLIP -> before -> CLIPSelf -> after -> OUT/report.html and OUT/result.json. Each stage is the
very code its own verb runs; the same command goes on where an earlier start of it stopped.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.errors import InputError
from foveate.io.files import write_whole
from foveate.io.store import claim_folder
from foveate.train.checks import check_distill
from foveate.train.flags import DistillConfig

if TYPE_CHECKING:
    from foveate.clip.model import Clip
    from foveate.data.records import Dataset

SIZE = 192  # longest side of the scenes, and of the dense input [pixels]


@dataclass(frozen=True)
class Demo:
    """The whole path on the rendered world: distil the shipped small CLIP and show what it learned.

    Writes OUT/report.html (one page to look at) and OUT/result.json. Needs no network, about five minutes on two cores.
    """

    out: Path = Path("runs/demo")
    """Folder of the demo; the same command continues a stopped one."""
    train: int = 600
    """Scenes to distil on."""
    test: int = 300
    """Scenes to report on, never trained on."""
    steps: int = 260
    """Steps of CLIPSelf."""
    agreement: int = 100
    """Test scenes for the label-free agreement."""
    seed: int = 0
    """Draws the world, the order of the scenes and the patch grids."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto = cuda where there is one."""


def run(config: Demo) -> None:
    """Run every stage, say what came out, and where it lies.

    Raises:
        InputError: the output folder holds a demo of other flags.
    """
    seconds: dict[str, float] = {}
    world = config.out / "world"
    _check(config, world)
    with _timed(seconds, "world"):
        _draw_world(config, world)
    with _timed(seconds, "libraries"):
        from foveate.clip.load import SMALL, load
        from foveate.data.sources import open_data
        from foveate.engine.distributed import choose_device

    device = str(choose_device(config.device, local_rank=None))
    test = open_data(world, split="test", annotations="panoptic")
    before = load(SMALL, device=device)
    sizes = [before.native_size, 2 * before.native_size, SIZE]
    with _timed(seconds, "evaluation before"):
        regions_before, colour = _evaluate(before, test, sizes), _colour(world, test)
        agreement = {"before": _agree(before, before, test, config)}
    with _timed(seconds, "distillation"):
        _distill(config, world)
    after = load(str(config.out / "distilled" / "model"), device=device)
    with _timed(seconds, "evaluation after"):
        regions_after = _evaluate(after, test, sizes)
        agreement["after"] = _agree(after, before, test, config)
    with _timed(seconds, "pictures"):
        figures = _figures(config.out, test, before, after, size=SIZE)

    result = _result(regions_before, regions_after, colour, agreement, sizes, seconds, device)
    _write_report(config, regions_before, regions_after, colour, agreement, seconds, figures)
    write_whole(config.out / "result.json", (json.dumps(result, indent=2) + "\n").encode())
    _tell(config.out, result)


def _check(config: Demo, world: Path) -> None:
    """Refuse flags that cannot work, and a folder of another demo, before anything is drawn."""
    check_distill(_distill_config(config, world))
    if min(config.train, config.test, config.agreement) < 1:
        raise InputError(
            "demo: need at least one scene to train, to test and to compare; "
            f"got --train {config.train} --test {config.test} --agreement {config.agreement}."
        )
    claim_folder(config.out, {**asdict(config), "out": str(config.out)})


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Note how long a stage took [seconds], and say which one runs."""
    print(f"-- {stage}", flush=True)
    started = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - started, 1)


# ------------------------------------------------------------------------------------------------------------- stages


def _draw_world(config: Demo, folder: Path) -> None:
    from foveate.cli import world

    world.run(world.World(folder, train=config.train, val=0, test=config.test, seed=config.seed))


def _distill_config(config: Demo, world: Path) -> DistillConfig:
    return DistillConfig(
        data=str(world),
        out=config.out / "distilled",
        steps=config.steps,
        student_size=SIZE,
        seed=config.seed,
        device=config.device,
    )


def _distill(config: Demo, world: Path) -> None:
    from foveate.train import distill

    distill.run(_distill_config(config, world))


def _evaluate(clip: "Clip", test: "Dataset", sizes: list[int]) -> dict[str, Any]:
    from foveate.evaluate.regions import evaluate_regions

    return evaluate_regions(clip, test, sizes=sizes, workers=1, progress=True)


def _agree(student: "Clip", reference: "Clip", test: "Dataset", config: Demo) -> dict[str, Any]:
    from foveate.evaluate.agreement import evaluate_agreement

    return evaluate_agreement(
        student, reference, test, size=SIZE, limit=config.agreement, seed=config.seed, progress=True
    )


def _colour(world: Path, test: "Dataset") -> dict[str, Any]:
    from foveate.data.sources import open_data
    from foveate.evaluate.colour import colour_bound

    return colour_bound(open_data(world, split="train", annotations="panoptic"), test, progress=True)


def _figures(
    out: Path, test: "Dataset", before: "Clip", after: "Clip", *, size: int, count: int = 4
) -> list[tuple[str, str, Path]]:
    """Draw maps of the test scenes with the most things, each asked for the thing with the largest box."""
    from foveate.data.pictures import read_picture
    from foveate.show.kmeans import kmeans_sheet
    from foveate.show.similarity import similarity_sheet

    models = [("before", before), ("after", after)]
    records = sorted(test.records, key=lambda record: -len(record.labels))[:count]
    pictures = [(str(record.id), read_picture(record.path)) for record in records]
    groups, heat = out / "kmeans.png", out / "similarity.png"
    kmeans_sheet(groups, pictures, models=models, size=size, clusters=8)
    queries = []
    for record, (_, image) in zip(records, pictures, strict=True):
        things = [i for i, label in enumerate(record.labels) if test.categories[label].is_thing]
        largest = max(things or range(len(record.labels)), key=lambda i: _area(record.boxes[i]))
        queries.append((test.categories[record.labels[largest]].name, image))
    similarity_sheet(heat, queries, models=models, size=size, templates="vild")
    return [
        ("What belongs together", "K-means over the dense map of a scene; one colour is one group.", groups),
        ("Where it is", "Cosine between the dense map and the name of one thing in the scene.", heat),
    ]


def _area(box: tuple[float, float, float, float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


# ------------------------------------------------------------------------------------------------------------ results


def _result(
    before: dict[str, Any],
    after: dict[str, Any],
    colour: dict[str, Any],
    agreement: dict[str, Any],
    sizes: list[int],
    seconds: dict[str, float],
    device: str,
) -> dict[str, Any]:
    """Put together what OUT/result.json holds; accuracies are mAcc in percent."""
    largest = sizes[-1]
    return {
        "seconds": round(sum(seconds.values()), 1),
        "stages": seconds,
        "device": device,
        "regions": {
            "crop": before["crop"],
            "before": before["dense"][largest],
            "after": after["dense"][largest],
            "student_crop": after["crop"],
        },
        "colour_only": colour,
        "input_sizes": {str(size): {"before": before["dense"][size], "after": after["dense"][size]} for size in sizes},
        "agreement": agreement,
        "pictures": after["pictures"],
        "bad": after["bad"],
    }


def _write_report(
    config: Demo,
    before: dict[str, Any],
    after: dict[str, Any],
    colour: dict[str, Any],
    agreement: dict[str, Any],
    seconds: dict[str, float],
    figures: list[tuple[str, str, Path]],
) -> None:
    import platform
    from importlib.metadata import version

    from foveate.show.curves import read_losses
    from foveate.show.report import Result, write_report

    result = Result(
        title="A small CLIP learns where things are",
        before=before,
        after=after,
        command=f"foveate demo --train {config.train} --test {config.test} --steps {config.steps} --seed {config.seed}",
        seed=config.seed,
        seconds=seconds,
        versions={"python": platform.python_version(), **{name: version(name) for name in ("foveate", "torch")}},
        colour=colour,
        agreement=agreement,
        losses=read_losses(config.out / "distilled" / "metrics.jsonl"),
    )
    write_report(config.out / "report.html", result=result, figures=figures)


def _tell(out: Path, result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="top-1 mAcc [%]", title_justify="left")
    for heading in ("", "boxes", "thing masks", "stuff masks"):
        table.add_column(heading, justify="left" if heading == "" else "right")
    for key, name in (
        ("before", "dense, before"),
        ("after", "dense, after"),
        ("crop", "crops (the teacher)"),
        ("student_crop", "crops, after"),
    ):
        scores = result["regions"][key]
        table.add_row(name, *(f"{scores[kind]['top1']:.1f}" for kind in ("boxes", "things", "stuff")))
    table.add_row("colour alone", f"{result['colour_only']['top1']:.1f}", "", "")
    Console().print(table)
    old, new = (result["agreement"][when] for when in ("before", "after"))
    print(
        f"agreement without labels: cosine {old['cosine']:.3f} -> {new['cosine']:.3f}, "
        f"R@1 {old['recall']:.1f} -> {new['recall']:.1f} %"
    )
    print(f"{result['seconds']:.0f} s on {result['device']}; look at {out / 'report.html'}")
