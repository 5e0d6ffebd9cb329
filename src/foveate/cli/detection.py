"""`foveate detect`: what a trained detector finds, drawn.

Torch is imported only when something is detected, so that help and typing errors answer at once.
"""

import json
import sys
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from foveate.clip.names import TemplateName
from foveate.errors import InputError
from foveate.files import bad_lines, check_target, default_cache, versions, write_whole
from foveate.heads.fvit.names import Benchmark

if TYPE_CHECKING:
    from torch import Tensor

    from foveate.clip.vocabulary import Vocabulary
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
    from foveate.data.batches import Batches, Loading
    from foveate.data.records import Dataset
    from foveate.embed.features import name_pictures
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
    loading = Loading(batch=config.batch, workers=config.workers, strict=config.strict, progress=True)
    feed = Batches(dataset, loading)
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
