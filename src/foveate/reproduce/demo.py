"""`foveate demo`: distillation of the small CLIP on the rendered world with a report, offline, in minutes on two cores.

world -> evaluation before -> CLIPSelf -> evaluation after -> OUT/report.html and OUT/result.json. Each stage runs the
code of its own command; the same command resumes a stopped run.
"""

import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from foveate.cli import world
from foveate.clip.load import SMALL, load
from foveate.clip.model import Clip
from foveate.data.batches import Loading
from foveate.data.images import read_image
from foveate.data.records import Dataset
from foveate.data.sources import open_data
from foveate.engine.distributed import choose_device
from foveate.errors import InputError
from foveate.evaluate.agreement import evaluate_agreement
from foveate.evaluate.colour import colour_bound
from foveate.evaluate.regions import evaluate_regions
from foveate.evaluate.report import table
from foveate.io.files import write_whole
from foveate.io.store import claim_folder, hold_folder
from foveate.reproduce.flags import Demo
from foveate.show.curves import read_losses
from foveate.show.kmeans import kmeans_sheet
from foveate.show.report import Result, write_report
from foveate.show.similarity import similarity_sheet
from foveate.train import distill
from foveate.train.checks import check_distill
from foveate.train.flags import DistillConfig

AGREEMENT = 100  # test scenes for the label-free agreement
DRAWINGS = ("kmeans.png", "similarity.png")
SIZE = 192  # longest side of the scenes, and of the dense input [pixels]


def run(config: Demo) -> None:
    """Run every stage, and print the scores and the path of the report."""
    root = config.out / "world"
    _check(config, root)
    with hold_folder(config.out):
        _run(config, root)


def _run(config: Demo, root: Path) -> None:
    seconds: dict[str, float] = {}
    with _timed(seconds, "world"):
        world.run(world.World(root, train=config.train, val=0, test=config.test, seed=config.seed))
    device = str(choose_device(config.device, local_rank=None))
    train, test = (open_data(root, split=split, annotations="panoptic") for split in ("train", "test"))
    before = load(SMALL, device=device)
    sizes = [before.native_size, 2 * before.native_size, SIZE]
    with _timed(seconds, "evaluation before"):
        regions_before = evaluate_regions(before, test, sizes=sizes, loading=Loading(workers=1, progress=True))
        colour = colour_bound(train, test, loading=Loading(progress=True))
        agreement = {"before": _agree(before, before, test, config)}
    with _timed(seconds, "distillation"):
        distill.run(_distill_config(config, root))
    after = load(str(config.out / "distilled" / "model"), device=device)
    with _timed(seconds, "evaluation after"):
        regions_after = evaluate_regions(after, test, sizes=sizes, loading=Loading(workers=1, progress=True))
        agreement["after"] = _agree(after, before, test, config)
    with _timed(seconds, "images"):
        figures = _figures(config.out, test, before, after)

    result = Result(
        title="CLIPSelf on a small CLIP",
        before=regions_before,
        after=regions_after,
        command=f"foveate demo --train {config.train} --test {config.test} --steps {config.steps} --seed {config.seed}",
        seed=config.seed,
        seconds=seconds,
        versions={"python": platform.python_version(), **{name: version(name) for name in ("foveate", "torch")}},
        colour=colour,
        agreement=agreement,
        losses=read_losses(config.out / "distilled" / "metrics.jsonl"),
    )
    write_report(config.out / "report.html", result=result, figures=figures)
    total = round(sum(seconds.values()), 1)
    content = {"seconds": total, "stages": seconds, "device": device, **_scores(result)}
    write_whole(config.out / "result.json", (json.dumps(content, indent=2) + "\n").encode())
    _print(config.out, content)


def _check(config: Demo, root: Path) -> None:
    """Refuse flags that cannot work, and a folder of another demo, before anything is rendered."""
    check_distill(_distill_config(config, root))
    if min(config.train, config.test) < 1:
        raise InputError(
            f"demo: need at least one scene to train and one to test; got --train {config.train} --test {config.test}."
        )
    record = {**asdict(config), "out": str(config.out)}
    claim_folder(config.out, record, may_change=("out",), writes=("report.html", "result.json", *DRAWINGS))


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Print the name of a stage, and store its duration [seconds]."""
    print(f"-- {stage}", flush=True)
    started = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - started, 1)


def _distill_config(config: Demo, root: Path) -> DistillConfig:
    return DistillConfig(
        data=str(root),
        out=config.out / "distilled",
        steps=config.steps,
        size=SIZE,
        seed=config.seed,
        device=config.device,
    )


def _agree(student: Clip, reference: Clip, test: Dataset, config: Demo) -> dict[str, Any]:
    loading = Loading(limit=AGREEMENT, progress=True)
    return evaluate_agreement(student, reference, test, size=SIZE, seed=config.seed, loading=loading)


def _figures(out: Path, test: Dataset, before: Clip, after: Clip, *, count: int = 4) -> list[tuple[str, str, Path]]:
    """Draw maps of the test scenes with the most segments, each queried with the thing with the largest box."""
    models = [("before", before), ("after", after)]
    records = sorted(test.records, key=lambda record: -len(record.labels))[:count]
    images = [(str(record.id), read_image(record.path)) for record in records]
    groups, heat = (out / name for name in DRAWINGS)
    kmeans_sheet(groups, images, models=models, size=SIZE, clusters=8)
    queries = []
    for record, (_, image) in zip(records, images, strict=True):
        things = [index for index, label in enumerate(record.labels) if test.categories[label].is_thing]
        largest = max(things or range(len(record.labels)), key=lambda index: _area(record.boxes[index]))
        queries.append((test.categories[record.labels[largest]].name, image))
    similarity_sheet(heat, queries, models=models, size=SIZE, templates="vild")
    return [
        ("K-means maps", "K-means over the dense map of a scene; one colour is one cluster.", groups),
        ("Similarity maps", "Cosine between the dense map and the name of one thing in the scene.", heat),
    ]


def _area(box: tuple[float, float, float, float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _scores(result: Result) -> dict[str, Any]:
    """The values of the report as JSON; accuracies are mAcc in percent."""
    before, after = result["before"], result["after"]
    sizes = list(before["dense"])
    return {
        "regions": {
            "crop": before["crop"],
            "before": before["dense"][sizes[-1]],
            "after": after["dense"][sizes[-1]],
            "student_crop": after["crop"],
        },
        "colour_only": result.get("colour"),
        "input_sizes": {str(size): {"before": before["dense"][size], "after": after["dense"][size]} for size in sizes},
        "agreement": result.get("agreement"),
        "images": after["images"],
        "bad": after["bad"],
    }


def _print(out: Path, content: dict[str, Any]) -> None:
    names = {"before": "dense, before", "after": "dense, after", "crop": "crops (the teacher)",
             "student_crop": "crops, after"}  # fmt: skip
    rows = [
        [name, *(content["regions"][key][kind]["top1"] for kind in ("boxes", "things", "stuff"))]
        for key, name in names.items()
    ]
    rows.append(["colour alone", content["colour_only"]["top1"], "", ""])
    Console().print(table("top-1 mAcc [%]", ("", "boxes", "thing masks", "stuff masks"), rows))
    old, new = (content["agreement"][when] for when in ("before", "after"))
    print(
        f"agreement without labels: cosine {old['cosine']:.3f} -> {new['cosine']:.3f}, "
        f"R@1 {old['recall']:.1f} -> {new['recall']:.1f} %"
    )
    print(f"{content['seconds']:.0f} s on {content['device']}; see {out / 'report.html'}")
