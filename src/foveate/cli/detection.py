"""`foveate detect` and `foveate evaluate detection`: what a trained detector finds, drawn and measured.

Torch is imported only when something is detected, so that help and typing errors answer at once.
"""

import json
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from foveate.cli.evaluate import Reading, finish
from foveate.clip.names import TemplateName
from foveate.errors import InputError
from foveate.heads.fvit.names import Benchmark
from foveate.io.files import bad_lines, check_target, default_cache, versions, write_whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table
    from torch import Tensor

    from foveate.clip.vocabulary import Vocabulary
    from foveate.data.records import Dataset
    from foveate.data.splits import BaseNovel
    from foveate.evaluate.detection import Style
    from foveate.heads.fvit.candidates import Candidates, CandidateStore
    from foveate.heads.fvit.detector import FViT
    from foveate.heads.fvit.fusion import Fusion
    from foveate.heads.fvit.product import About
    from foveate.types import Detections


@dataclass(frozen=True, kw_only=True)
class Fusing:
    """How the detector's score and the tower's become one, and what is kept."""

    benchmark: Benchmark | None = None
    """The numbers of this benchmark; when not given, those that the detector was trained for."""
    temperature: float | None = None
    """Tv, which the tower's cosines are multiplied by before the softmax."""
    detector_temperature: float | None = None
    """T, which the detector's cosines are multiplied by; when not given, 50 with a transfer benchmark, as published,
    and what the detector learned with all others."""
    min_score: float | None = None
    """Boxes with a higher score are kept."""
    nms: float | None = None
    """Of two boxes of a class that overlap by more, the one with the lower score goes."""
    most: int | None = None
    """At most so many boxes a picture."""
    templates: TemplateName | None = None
    """What class names are written into; when not given, as in training."""
    clip: str | None = None
    """Where the CLIP lies that the detector was trained on, when it is no longer where it was."""


@dataclass(frozen=True, kw_only=True)
class Detect(Fusing):
    """Find objects of any vocabulary in pictures with a trained F-ViT.

    OUT/ gets a picture with boxes for each picture, classes the detector was trained on in blue and others in red
    (App. D), and detections.json in COCO's form: images, categories and annotations with scores.
    """

    pictures: Positional[tuple[Path, ...]]
    """Pictures, and folders that are searched with all below them."""
    model: Path
    """OUT/model of `foveate train-fvit`."""
    out: Path
    """Folder to write to."""
    vocab: str | None = None
    """Class names separated by commas, or a .txt or .json file of them; when not given, those of the training data."""
    draw: float = 0.3
    """Draw what has at least this score."""
    weights: tuple[float, float] | None = None
    """The tower's share of the score, in [0, 1]: of classes that the detector was trained on, and of others."""
    batch: int = 8
    """Pictures a batch."""
    workers: int = 2
    """Processes that decode pictures; 0 = none besides this one."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto = cuda where there is one."""
    strict: bool = False
    """End at the first picture that cannot be read, instead of listing it."""


@dataclass(frozen=True, kw_only=True)
class Detection(Reading, Fusing):
    """Measure a detector: AP of base and novel categories on OV-COCO, LVIS, VOC, Objects365 or the world (Sec. 4.3).

    The network sees each picture once. Several --base-weights or --novel-weights measure every pair of them from what
    it left, and --candidates DIR keeps that for another command.
    """

    data: Path | None = None  # pyright: ignore[reportIncompatibleVariableOverride]  # not needed for --from-results
    """COCO, LVIS, VOC or Objects365 root with annotated boxes, or a world; needed unless --from-results and
    --annotations are given."""
    model: Path | None = None
    """OUT/model of `foveate train-fvit`; needed unless --from-results is given."""
    from_results: Path | None = None
    """Measure the detections that another program found, without any model: a list of results [{image_id, category_id,
    bbox, score, segmentation?}, ...] in JSON, as COCO's and LVIS's servers take it. The images need not be there.
    COCO's 80 categories then count alike, by COCO's twelve numbers; --benchmark ov-coco measures OV-COCO's."""
    annotations: Path | None = None
    """Annotation file to read in place of the one in the standard place: COCO, LVIS or Objects365 JSON."""
    novel: Path | None = None
    """JSON file {"base": [names], "novel": [names]}; default: as for `foveate train-fvit`, and none with a transfer
    benchmark, which measures all categories."""
    vocab: str | None = None
    """Ask for these classes, and measure the categories among them; default: all categories of the data."""
    style: Literal["coco", "lvis", "voc07", "voc12"] | None = None
    """Whose rule; default: LVIS's for its data, VOC's of the year for its own (voc07 with transfer-voc, as published:
    mmdet's AP50 and AP75 at 11 points), COCO's (with a split: OV-COCO's) for all other."""
    masks: bool = False
    """Also measure masks, of a detector that finds them."""
    base_weights: tuple[float, ...] = ()
    """The tower's share of the score of base classes, in [0, 1]; default: the benchmark's."""
    novel_weights: tuple[float, ...] = ()
    """The tower's share of the score of novel classes, in [0, 1]; default: the benchmark's."""
    candidates: Path | None = None
    """Keep here what the network left of each picture, or find it here; default: a temporary folder."""
    results: Path | None = None
    """Also write the detections of the first fusion as a COCO list of results."""


def run_detect(config: Detect) -> Path:
    """Detect, draw, write detections.json, and return its path.

    Raises:
        InputError: a flag, the vocabulary, the detector or its CLIP is wrong, or no picture can be read.
    """
    if config.out.exists() and not config.out.is_dir():
        raise InputError(f"--out {config.out}: need a folder; this is a file.")
    if not 0 <= config.draw <= 1:
        raise InputError(f"--draw: must be 0 to 1; got {config.draw}.")
    check_target(config.out / "detections.json", flag="--out")
    from foveate.clip.vocabulary import Vocabulary, read_vocabulary
    from foveate.data.records import Dataset
    from foveate.embed.features import name_pictures
    from foveate.evaluate.feed import Feed
    from foveate.heads.fvit.fusion import detect, rows_of

    asked = None if config.vocab is None else read_vocabulary(config.vocab)
    dataset = Dataset("pictures", (), name_pictures(config.pictures), {})
    detector, about = _load(config.model, config, config.device)
    vocabulary = Vocabulary(tuple((name,) for name in about.classes)) if asked is None else asked
    is_base = trained_on(vocabulary, about)
    tell_vocabulary(vocabulary.names, is_base, about)
    weights = ((), ()) if config.weights is None else ((config.weights[0],), (config.weights[1],))
    fusion = _fusions(config, about, *weights)[0]
    text = _texts(detector, about, vocabulary, config.templates)
    feed = Feed(
        dataset,
        masks=False,
        batch=config.batch,
        limit=None,
        workers=config.workers,
        strict=config.strict,
        progress=True,
    )
    found: list[tuple[str, int, int, Detections]] = []
    files = file_names([str(record.id) for record in dataset.records])
    asking = (text, _bools(is_base), float(detector.scale.detach()), fusion)
    for samples in feed:
        seen = detector.candidates(samples, masked=lambda one: rows_of(one, *asking))
        for sample, candidates in zip(samples, seen, strict=True):
            one = detect(candidates, *asking)
            _draw(config, sample.image, one, vocabulary.names, is_base, config.out / files[sample.id])
            found.append((sample.id, candidates.height, candidates.width, one))
    path = config.out / "detections.json"
    facts = {"model": str(config.model), "fusion": asdict(fusion), "bad": feed.bad_listed(), "versions": versions()}
    content = _coco(found, vocabulary.names, facts)
    write_whole(path, (json.dumps(content) + "\n").encode())
    for line in bad_lines(feed.bad_listed(), listed=str(path)):
        print(line, file=sys.stderr)
    drawn = sum(int((one.scores >= config.draw).sum()) for *_, one in found)
    print(
        f"{len(found)} pictures, {sum(len(one.scores) for *_, one in found)} boxes, {drawn} drawn; look at {config.out}"
    )
    return path


def run_detection(config: Detection) -> dict[str, Any]:
    """Measure, print a table, write JSON where asked, and return the result.

    Raises:
        InputError: a flag, the data, the detector or its CLIP is wrong.
    """
    for path, flag in ((config.out, "--out"), (config.results, "--results")):
        if path is not None:
            check_target(path, flag=flag)
    if config.limit is not None and config.limit < 1:
        raise InputError(f"--limit: need at least 1 picture; got {config.limit}.")
    if config.data is None or config.model is None:
        raise InputError(
            "--data and --model: need a data set and OUT/model of `foveate train-fvit`; got "
            f"{config.data or 'no --data'} and {config.model or 'no --model'}. To measure the detections of another "
            "program give --from-results FILE --annotations FILE instead."
        )
    started = time.perf_counter()
    from foveate.clip.vocabulary import Vocabulary, read_vocabulary
    from foveate.data.sources import open_data
    from foveate.data.splits import split_of
    from foveate.evaluate.candidates import find_candidates
    from foveate.evaluate.detection import open_truth
    from foveate.evaluate.results import check_categories
    from foveate.evaluate.sweep import proposal_recall, sweep

    asked = None if config.vocab is None else read_vocabulary(config.vocab)
    dataset = open_data(config.data, split=config.split, annotation_file=config.annotations)
    if not any(record.boxes for record in dataset.records):
        raise InputError(
            f"--data {config.data}: need annotated boxes to measure against in split {config.split}; there is none. Is "
            "this the right root and split?"
        )
    benchmark = config.benchmark or ""
    is_transfer = benchmark.startswith("transfer-") and config.novel is None  # all categories count alike
    split = None if is_transfer else split_of(dataset, config.data, file=config.novel)
    detector, about = _load(config.model, config, config.device)
    if config.masks and not about.network.masks:
        raise InputError(f"--masks: need a detector that finds masks; {config.model} was trained without --masks.")
    vocabulary = asked or Vocabulary(tuple((name,) for name in names_of(dataset, split)))
    is_base = trained_on(vocabulary, about)
    tell_vocabulary(vocabulary.names, is_base, about)
    fusions = _fusions(config, about, config.base_weights, config.novel_weights)
    text = _texts(detector, about, vocabulary, config.templates)
    style = config.style or style_of(dataset, benchmark=config.benchmark)
    measured = dataset if config.limit is None else replace(dataset, records=tuple(dataset.records[: config.limit]))
    truth = open_truth(  # before the network's pass, which may take hours: whatever does not fit is told at once
        measured,
        vocabulary=vocabulary.names,
        split=split,
        style=style,
        masks=config.masks,
        annotations=dataset.file,
        only_present=config.vocab is not None,
    )
    if config.results is not None:
        check_categories(config.results, dataset, vocabulary=vocabulary.names)
    if not truth.objects:
        what = "annotated objects with masks" if config.masks else "annotated objects of these classes"
        raise InputError(f"--data {config.data}: need {what} in the {len(measured.records)} pictures; there is none.")
    with ExitStack() as stack:
        folder = config.candidates or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "candidates"
        store = find_candidates(
            detector,
            measured,
            folder,
            made_by=made_by(detector, about),
            batch=config.batch,
            workers=config.workers,
            strict=config.strict,
            progress=True,
        )
        scale = float(detector.scale.detach())
        known = _bools(is_base)
        swept = sweep(store, text, fusions, truth, known, detector_scale=scale, style=style, masks=config.masks)
        recall = proposal_recall(store, measured, split=split)
        if config.results is not None:
            _write_results(config, store, text, vocabulary.names, known, scale, fusions[0], dataset)
        bad = [{"id": one.id, "reason": one.reason} for one in store.bad]
    result = {"detector": str(config.model), "fusions": swept, "recall": recall, "bad": bad, "pictures": len(store.ids)}
    return finish(result, _table(result, config), config, datasets=[dataset], started=started)


def trained_on(vocabulary: "Vocabulary", about: "About") -> "list[bool]":
    """Which classes of a vocabulary a detector was trained on: base, in the fusion of scores."""
    from foveate.clip.vocabulary import Vocabulary, share_words

    return share_words(vocabulary, Vocabulary(tuple((name,) for name in about.base)))


def tell_vocabulary(names: "tuple[str, ...]", is_base: "list[bool]", about: "About") -> None:
    """Say how much of a vocabulary the detector was trained on: it may be any other, that is what it is for."""
    known, new = sum(is_base), len(names) - sum(is_base)
    print(
        f"{len(names)} classes: {known} of the {len(about.base)} that the detector was trained on, and {new} that "
        "it has never seen a box of",
        file=sys.stderr,
    )


def made_by(detector: "FViT", about: "About") -> dict[str, str]:
    """What candidates depend on."""
    from foveate.clip.digest import digest_state

    own = {name: one for name, one in detector.state_dict().items() if not name.startswith("tower.clip.model.text")}
    network = json.dumps(asdict(about.network), sort_keys=True)  # settings that no weight shows, such as the input's
    return {"detector": digest_state(own), "tower": about.tower, "network": network, **versions()}


def _load(folder: Path, config: Fusing, device: str) -> "tuple[FViT, About]":
    from foveate.engine.distributed import choose_device
    from foveate.heads.fvit.product import load_detector

    return load_detector(folder, clip=config.clip, device=choose_device(device, local_rank=None))


def _texts(detector: "FViT", about: "About", vocabulary: Any, templates: TemplateName | None) -> "Tensor":
    from foveate.clip.text import embed_vocabulary

    chosen: Any = templates or about.templates
    clip = detector.tower.clip
    return embed_vocabulary(clip, vocabulary, templates=chosen, background="background", cache=default_cache())


def _fusions(config: Fusing, about: "About", base: tuple[float, ...], novel: tuple[float, ...]) -> "list[Fusion]":
    """The benchmark's numbers with what was said otherwise; one fusion a pair of weights."""
    from foveate.heads.fvit.fusion import PRESETS

    name: Any = config.benchmark or about.benchmark
    preset = PRESETS[name]
    told: dict[str, Any] = {"temperature": config.temperature, "detector_temperature": config.detector_temperature}
    told |= {"min_score": config.min_score, "nms": config.nms, "keep": config.most}
    preset = replace(preset, **{field: value for field, value in told.items() if value is not None})
    pairs = product(base or (preset.base,), novel or (preset.novel,))
    return [replace(preset, base=one, novel=other) for one, other in pairs]


def names_of(dataset: "Dataset", split: "BaseNovel | None") -> list[str]:
    """The categories that are asked for."""
    left_out = set() if split is None else set(split.left_out)
    return [category.name for category in dataset.categories if category.name not in left_out]


def style_of(dataset: "Dataset", *, benchmark: str | None) -> "Style":
    """Whose rule a data set is measured by when nobody says: that of what was published on it."""
    if any(category.frequency is not None for category in dataset.categories):
        return "lvis"
    if benchmark == "transfer-voc" or dataset.name.upper().startswith("VOC2007"):
        return "voc07"
    return "voc12" if dataset.name.upper().startswith("VOC") else "coco"


def _write_results(
    config: Detection,
    store: "CandidateStore",
    text: "Tensor",
    names: tuple[str, ...],
    is_base: "Tensor",
    scale: float,
    fusion: "Fusion",
    dataset: "Dataset",
) -> None:
    from foveate.evaluate.results import write_results
    from foveate.heads.fvit.fusion import detect

    assert config.results is not None, "a file to write"

    def found() -> "Iterator[tuple[str, Detections]]":
        one: Candidates
        for one in store:
            yield one.id, detect(one, text, is_base, scale, fusion, masks=config.masks)

    write_results(config.results, found(), dataset, vocabulary=names)
    print(f"wrote {config.results}")


def _table(result: dict[str, Any], config: Detection) -> "Table":
    from rich.table import Table

    first = result["fusions"][0]
    kinds = ["boxes", *(["masks"] if first["masks"] is not None else [])]
    of_groups = "AP" if first["style"] == "lvis" else "AP50"  # APr, APc and APf; OV-COCO's are AP50
    groups = [name for name in first["boxes"]["groups"] if name != "all"]
    title = f"{config.model}: {result['pictures']} pictures, {first['style']}'s rule [%]"
    table = Table(title=title, title_justify="left")
    table.add_column("tower's\nshare")
    table.add_column("of")
    for heading in ("AP", "AP50", *(f"{of_groups}\n{name}" for name in groups)):
        table.add_column(heading, justify="right")
    for one in result["fusions"]:
        for kind in kinds:
            found = one[kind]
            values = [found.get("AP"), found.get("AP50"), *(found["groups"][name].get(of_groups) for name in groups)]
            cells = ["-" if value is None else f"{value:.1f}" for value in values]
            table.add_row(f"{one['fusion']['base']:g}, {one['fusion']['novel']:g}", kind, *cells)
    return table


def _draw(
    config: Detect, image: "Tensor", found: "Detections", names: tuple[str, ...], is_base: list[bool], path: Path
) -> None:
    from foveate.show.detections import draw_detections, write_picture

    is_novel = [not one for one in is_base]
    write_picture(draw_detections(image, found, names=names, is_novel=is_novel, min_score=config.draw), path)


def file_names(ids: list[str]) -> dict[str, str]:
    """What each picture's drawing is called: like the picture where those are different names, else by number."""
    stems = [Path(key).stem for key in ids]
    if len(set(stems)) < len(stems):
        stems = [f"{number:06d}" for number in range(1, len(ids) + 1)]
    return {key: f"{stem}.jpg" for key, stem in zip(ids, stems, strict=True)}


def _bools(values: list[bool]) -> "Tensor":
    import torch

    return torch.tensor(values, dtype=torch.bool)


def _coco(found: "list[tuple[str, int, int, Detections]]", names: tuple[str, ...], facts: dict[str, Any]) -> dict:
    """COCO's form, with a score an annotation."""
    images, annotations = [], []
    for number, (key, height, width, one) in enumerate(found, start=1):
        images.append({"id": number, "file_name": key, "height": height, "width": width})
        masks = one.masks or [None] * len(one.boxes)
        for box, score, label, mask in zip(
            one.boxes.tolist(), one.scores.tolist(), one.labels.tolist(), masks, strict=True
        ):
            sides = [round(side, 2) for side in (box[0], box[1], box[2] - box[0], box[3] - box[1])]
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": label + 1, "bbox": sides}
            entry |= {"score": round(score, 5), "area": round(sides[2] * sides[3], 2), "iscrowd": 0}
            annotations.append(entry if mask is None else {**entry, "segmentation": mask})
    categories = [{"id": place, "name": name} for place, name in enumerate(names, start=1)]
    return {"info": facts, "images": images, "annotations": annotations, "categories": categories}
