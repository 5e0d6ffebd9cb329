"""`foveate train-panoptic`: train a generator of masks, things and stuff, on the base classes of a data set (Tab. 5).

OUT/model is what `foveate evaluate panoptic` takes. Torch is imported only when something is trained.
"""

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.cli.recipe_data import check_recipe_data
from foveate.cli.training import SMALL_SIDE, Tell, Training, check_training, own_folder, run_training, train
from foveate.errors import InputError
from foveate.heads.fvit.names import Kind
from foveate.heads.panoptic.names import Length, Templates

if TYPE_CHECKING:  # torch and open_clip cost seconds: --help must not pay them
    from foveate.clip.model import Clip
    from foveate.data.labels import Labels
    from foveate.data.records import Dataset
    from foveate.data.splits import BaseNovel
    from foveate.engine.distributed import Processes
    from foveate.engine.fit import Outcome
    from foveate.heads.panoptic.mask2former import MaskGenerator
    from foveate.heads.panoptic.product import Class, Network


@dataclass(frozen=True)
class Usual:
    """What holds where a flag is not given."""

    size: int
    channels: int
    queries: int
    width: int
    feedforward: int
    pixel_layers: int
    layers: int
    joint: int
    points: int
    jitter: tuple[float, float]
    lr: float
    clip_gradient: float


LARGE = Usual(
    size=1024, channels=256, queries=100, width=256, feedforward=2048, pixel_layers=6, layers=9, joint=256,
    points=12544, jitter=(0.1, 2.0), lr=1e-4, clip_gradient=0.01,
)  # fmt: skip
"""ODISE's, as far as the encoder allows."""
SMALL = Usual(
    size=128, channels=64, queries=30, width=64, feedforward=256, pixel_layers=1, layers=2, joint=64,
    points=1024, jitter=(1.0, 1.0), lr=4e-4, clip_gradient=10.0,
)  # fmt: skip
"""For a CLIP of 64 pixels and one core, tried on the world: of the rates 1e-3 and 4e-4 the second ends better (PQ of
the generator alone 4.4 after 1,000 steps, 9.9 after 800). The others were not varied one by one."""


@dataclass(frozen=True, kw_only=True)
class TrainPanoptic(Training):
    """Train a generator of masks as ODISE's (Tab. 5): Mask2Former's decoder on a frozen encoder, from the segments of
    base classes only, things and stuff.

    The encoder is the tower of the CLIP, or a Mask2Former or a Stable Diffusion in a folder (--encoder). With --words
    it also learns which base class a mask is, in the CLIP's words, so that it can be asked for any; with --no-words
    only that something is there, and CLIP alone says what. ODISE takes 92,188 steps of 64 pictures of COCO, with a
    tenth of the rate from step 81,945 and a hundredth from 88,773 on. On 100 pictures of the world foveate-small takes
    --batch 2 --steps 800 --milestones 680 --warmup 20, six minutes on a core: stuff is found, of things every third.
    """

    data: Path
    """COCO root with panoptic annotations, or a world."""
    recipe: str | None = None
    """Start from a row of `foveate recipes panoptic`; other flags given here win over it."""
    novel: Path | None = None
    """JSON file {"base": [names], "novel": [names]}; stuff that it does not name is base. When not given: what
    annotations/splits.json of the root says; else all classes are base, as ODISE's 133 of COCO."""
    words: bool = True
    """Learn class words (ODISE's label model), or only that something is there."""
    labels: Path | None = None
    """File of the words of each class, `id:word,synonym` a line, as OpenSeg's lists, by the data's ids or in their
    order; when not given, the names of the annotation file."""
    templates: Templates = "photo"
    """What words are written into: ODISE's one template, ViLD's 63, CLIP's 80 for ImageNet, or nothing."""
    embeddings: Length = "raw"
    """Embeddings of words as the generator gets them: as the text tower leaves them (ODISE), or of length 1."""
    encoder: Path | None = None
    """Folder with a Mask2Former of transformers, whose decoder is then trained on, or with a Stable Diffusion as
    diffusers writes it (ODISE's); when not given, the CLIP's tower."""
    weight_decay: float = 0.05
    """AdamW's decay of matrices."""
    lr: float | None = None
    """Learning rate of AdamW after the warm-up; when not given, 1e-4, and 4e-4 for foveate-small."""
    clip_gradient: float | None = None
    """Longest gradient, in its norm; when not given, 0.01, and 10 for foveate-small."""
    milestones: tuple[int, ...] = ()
    """Steps from which the rate is a tenth of what it was; none: constant."""
    size: int | None = None
    """Side of the square input [pixels], a multiple of two patches of the CLIP, of 32 for a Mask2Former's encoder, of
    64 for Stable Diffusion; when not given, 1024 or what fits next below, and 128 for foveate-small."""
    jitter: tuple[float, float] | None = None
    """Smallest and largest factor of the large-scale jitter; 1 1: pictures as they are. When not given, 0.1 2, and
    1 1 for foveate-small."""
    flip: bool = True
    """Mirror half of the pictures."""
    pyramid: Kind = "taps"
    """Feature pyramid on the CLIP's tower (Tab. A6): four taps; simple: from the last block; fpn: likewise with a
    top-down path."""
    taps: tuple[int, ...] = ()
    """Blocks of the CLIP that are tapped, from 0, before the last one; when not given, 3 5 7 of 12, 6 10 14 of 24."""
    channels: int | None = None
    """Width of the encoder's maps; when not given, 256, 512 for Stable Diffusion, 64 for foveate-small."""
    queries: int | None = None
    """Masks that are found of a picture; when not given, 100, and 30 for foveate-small."""
    width: int | None = None
    """Of the decoder, a multiple of 32; when not given, 256, and 64 for foveate-small."""
    feedforward: int | None = None
    """Width of the decoder's MLPs, half of it in the pixel decoder; when not given, 2048, and 256 for foveate-small."""
    pixel_layers: int | None = None
    """Layers of the pixel decoder; when not given, 6, and 1 for foveate-small."""
    layers: int | None = None
    """Layers of the decoder; when not given, 9, and 2 for foveate-small."""
    joint: int | None = None
    """Width in which masks and words are compared; when not given, 256, and 64 for foveate-small."""
    points: int | None = None
    """Places at which a mask is compared with its target; when not given, 12544, and 1024 for foveate-small."""


def run(config: TrainPanoptic) -> None:
    """Train, or go on, and write the generator.

    Raises:
        InputError: a flag, the data, the weights or the output folder is wrong.
        SystemExit: 143 after SIGTERM, 130 after Ctrl-C; the run was saved.
    """
    check(config)
    run_training(config, partial(_run, config))


def _run(config: TrainPanoptic, processes: "Processes", tell: Tell) -> "Outcome":
    from foveate.clip.load import load
    from foveate.data.loader import EvaluationSource
    from foveate.engine.checkpoint import digest_module
    from foveate.engine.optim import stepped_rate
    from foveate.heads.panoptic.product import About, frozen_digest, save_generator
    from foveate.heads.product import tower_digest

    # --- pictures and network, before anything is written
    dataset, split = open_segments(config, tell)
    clip = load(config.model, pretrained=config.pretrained, device=processes.device, seed=config.seed)
    tower = tower_digest(clip, whole=config.words)
    config = settle(config, SMALL if clip.native_size <= SMALL_SIDE else LARGE)
    assert config.lr is not None, "settled"
    classes = _classes(config, dataset, split, tell)
    network = _network(config, clip)
    generator = _build(config, network, clip, classes)
    names = {"base": list(split.base), "novel": list(split.novel), "rule": split.rule}

    # --- the loop, in this run's own folder
    with own_folder(config, processes, made_of={"weights": digest_module(generator), **names}):
        things = sum(one.is_thing for one in classes if one.part == "base")
        tell(
            f"learning from the segments of {things} base classes of things and {len(split.base) - things} of stuff "
            f"({split.rule}); writing to {config.out}"
        )
        outcome = train(
            config,
            generator,
            EvaluationSource(dataset),
            dataset,
            groups=generator.parameter_groups(weight_decay=config.weight_decay),
            partly=(),
            rate=partial(stepped_rate, peak=config.lr, warmup=config.warmup, milestones=config.milestones),
            processes=processes,
            tell=tell,
        )
        if outcome.stopped_by is not None:
            return outcome

        # --- the product
        about = About(
            model=config.model,
            pretrained=config.pretrained,
            tower=tower,
            frozen=frozen_digest(generator.encoder),
            network=network,
            classes=classes,
            knows_words=config.words,
            templates=config.templates,
            words=config.embeddings,
            training={"data": dataset.name, "steps": config.steps, "batch": config.batch, "seed": config.seed},
        )
        with processes.together():
            if processes.is_first:
                save_generator(generator, config.out / "model", about)
        tell(f"done: {config.out / 'model'}\n  foveate evaluate panoptic --data ... --model {config.out / 'model'}")
    return outcome


def open_segments(config: TrainPanoptic, tell: Tell) -> "tuple[Dataset, BaseNovel]":
    """The pictures with a segment of a base class, whose crowds have a label of their own, and what is base.

    Raises:
        InputError: no picture has a segment of a base class.
    """
    from foveate.data.sources import open_data
    from foveate.data.splits import BaseNovel, split_semantic

    dataset = open_data(config.data, split=config.split, annotations="panoptic")
    check_recipe_data(config.recipe, dataset.categories, root=config.data)
    split = split_semantic(dataset, config.data, file=config.novel)
    if split is None:
        tell(f"{config.data}: has no base and novel classes of its own; all are base. See --novel.")
        split = BaseNovel(tuple(one.name for one in dataset.categories), (), (), "all classes")
    segments = as_segments(dataset, split)
    if not segments.records:
        raise InputError(
            f"--data {config.data}: need segments of base classes in split {config.split}; there is none. Is this the "
            "right root, split and --novel?"
        )
    return segments, split


def as_segments(dataset: "Dataset", split: "BaseNovel") -> "Dataset":
    """Give crowds a label of their own, the last, and leave out pictures with nothing to learn from."""
    from foveate.types import Category

    crowd = len(dataset.categories)
    wanted = [one.name in split.base for one in dataset.categories] + [False]
    records = []
    for record in dataset.records:
        pairs = zip(record.labels, record.crowd, strict=True)
        labels = tuple(crowd if is_crowd else label for label, is_crowd in pairs)
        if any(wanted[label] for label in labels):
            records.append(replace(record, labels=labels))
    without = len(dataset.records) - len(records)
    note = f"{without} of {len(dataset.records)} pictures have no segment of a base class and are not learned from"
    return replace(
        dataset,
        categories=(*dataset.categories, Category(max(one.id for one in dataset.categories) + 1, "crowd", True)),
        records=tuple(records),
        notes=(*dataset.notes, *([note] if without else [])),
    )


def settle(config: TrainPanoptic, usual: Usual) -> TrainPanoptic:
    """Fill in what was not given."""
    is_diffusion = config.encoder is not None and (config.encoder / "model_index.json").is_file()
    special = {"channels": 512} if is_diffusion else {}
    values: dict[str, Any] = {**asdict(usual), **special, "size": config.size}  # the size has to fit the encoder
    missing = {name: value for name, value in values.items() if getattr(config, name) is None}
    return replace(config, **missing)


def words_of(dataset: "Dataset", labels: Path | None, tell: Tell) -> "Labels":
    """The words of each class, from a list or from the annotation file.

    Args:
        dataset: its categories, in their order.
        labels: a list in OpenSeg's form, by the ids of the categories or in their order.
        tell: hears of words that two classes share.

    Raises:
        InputError: a list that is damaged or of other classes.
    """
    from foveate.data.labels import labels_of, read_labels

    own = labels_of(dataset.categories)
    if labels is None:
        return own
    found = read_labels(labels, repeated="keep")
    for line in found.notes:
        tell(f"{line}; the best word of a class counts, so that these classes tie there")
    if set(own.ids) <= set(found.ids):
        return replace(found.choose(own.ids), is_thing=own.is_thing)
    if len(found.ids) != len(own.ids):
        raise InputError(
            f"--labels {labels}: need the words of {len(own.ids)} classes, by their ids or in their order; got "
            f"{len(found.ids)} classes, other ids among them."
        )
    tell(f"--labels {labels}: its ids are not those of {dataset.name}; its classes are taken in their order")
    return replace(found, ids=own.ids, is_thing=own.is_thing)


def _classes(config: TrainPanoptic, dataset: "Dataset", split: "BaseNovel", tell: Tell) -> "tuple[Class, ...]":
    """What the product says of the classes."""
    from foveate.heads.panoptic.product import Class, Part

    own = replace(dataset, categories=dataset.categories[:-1])  # the last is "crowd"
    parts: dict[str, Part] = {**dict.fromkeys(split.base, "base"), **dict.fromkeys(split.novel, "novel")}
    pairs = zip(own.categories, words_of(own, config.labels, tell).classes, strict=True)
    return tuple(Class(words, one.is_thing, parts.get(one.name, "left out")) for one, words in pairs)


def _network(config: TrainPanoptic, clip: "Clip") -> "Network":
    """The numbers of the generator."""
    from foveate.heads.panoptic.product import Network

    names = ("channels", "queries", "width", "feedforward", "pixel_layers", "layers", "joint")
    numbers: dict[str, Any] = {name: getattr(config, name) for name in names}
    step = 2 * clip.patch_size if config.encoder is None else 64
    usual = SMALL if clip.native_size <= SMALL_SIDE else LARGE
    return Network(
        size=usual.size // step * step if config.size is None else config.size,
        encoder=None if config.encoder is None else str(config.encoder),
        pyramid=config.pyramid,
        taps=config.taps or None,
        **numbers,
    )


def _build(config: TrainPanoptic, network: "Network", clip: "Clip", classes: "tuple[Class, ...]") -> "MaskGenerator":
    """The network, its first weights drawn from the seed."""
    import torch

    from foveate.clip.vocabulary import Vocabulary
    from foveate.heads.panoptic.criterion import Weights
    from foveate.heads.panoptic.fusion import embed_words
    from foveate.heads.panoptic.mask2former import MaskGenerator, synchronise
    from foveate.heads.panoptic.product import build_parts, chosen_templates

    words = nothing = None
    if config.words:
        vocabulary = Vocabulary(tuple(one.words for one in classes))
        words = embed_words(clip, vocabulary, templates=chosen_templates(config.templates), length=config.embeddings)
        with torch.no_grad():
            nothing = clip.encode_text(clip.tokenize([""]), normalize=config.embeddings == "unit")[0]
    torch.manual_seed(config.seed)
    encoder, decoder = build_parts(network, clip)
    assert config.points is not None, "settled"
    generator = MaskGenerator(
        encoder,
        decoder,
        is_novel=torch.tensor([one.part != "base" for one in classes]),
        size=network.size,
        words=words,
        nothing=nothing,
        joint=network.joint,
        weights=Weights(points=config.points),
        jitter=None if config.jitter == (1.0, 1.0) else config.jitter,
        flip=config.flip,
    )
    return synchronise(generator)


def check(config: TrainPanoptic) -> None:
    """Refuse numbers that cannot be, before anything is loaded.

    Raises:
        InputError: names the flag, what it must be and what it is.
    """
    given, config = config, settle(config, LARGE)
    own = ("queries", "width", "feedforward", "pixel_layers", "layers", "channels")
    is_library = config.encoder is not None and not (config.encoder / "model_index.json").is_file()
    idle = [name for name in own if is_library and getattr(given, name) is not None]
    missing = config.encoder is not None and not config.encoder.is_dir()
    low, high = config.jitter or (1.0, 1.0)
    counts = ("queries", "width", "feedforward", "pixel_layers", "layers", "channels", "joint", "points")
    least = {name: 4 if name == "points" else 1 for name in counts}
    small = [name for name in counts if getattr(config, name) < least[name]]
    check_training(
        config,
        ("encoder", not missing, "a folder that is there"),
        ("taps", not config.taps or config.encoder is None, "left out with --encoder: the CLIP's tower is not tapped"),
        ("milestones", all(one >= 1 for one in config.milestones), "steps of at least 1"),
        ("jitter", 0 < low <= high <= 10, "two factors, the smaller first, above 0 and at most 10"),
        *((_flag(name), False, f"at least {least[name]}") for name in small),
        *((_flag(name), False, "left out with a Mask2Former's folder, whose own holds") for name in idle),
    )


def _flag(name: str) -> str:
    return name.replace("_", "-")
