"""`foveate train-fvit`: train an open-vocabulary detector on the base categories of a data set (Sec. 3.3).

OUT/model is what `foveate detect` and `foveate evaluate detection` take. Torch is imported only when something is
trained.
"""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from foveate.cli.recipe_data import check_recipe_data
from foveate.cli.training import SMALL_SIDE, Tell, Training, check_training, own_folder, run_training, train
from foveate.clip.names import TemplateName
from foveate.errors import InputError
from foveate.files import default_cache
from foveate.heads.fvit.names import Kind, Resize, Statistics

if TYPE_CHECKING:  # torch and open_clip cost seconds: --help must not pay them
    from foveate.clip.model import Clip
    from foveate.data.records import Dataset
    from foveate.data.splits import BaseNovel
    from foveate.engine.distributed import Processes
    from foveate.engine.fit import Outcome
    from foveate.heads.fvit.detector import FViT
    from foveate.heads.fvit.product import Network


@dataclass(frozen=True, kw_only=True)
class TrainFViT(Training):
    """Train F-ViT, a detector of any vocabulary on a frozen CLIP ViT (Sec. 3.3), on base categories only."""

    data: Path
    """COCO, LVIS, VOC or Objects365 root with annotated boxes, or a world."""
    annotations: Path | None = None
    """Annotation file to read in place of the one in the standard place: COCO, LVIS or Objects365 JSON."""
    recipe: str | None = None
    """Start from a row of `foveate recipes fvit`; other flags given here win over it."""
    steps: int = 600
    """Optimizer steps. The paper: 3 epochs of OV-COCO, 48 of OV-LVIS, 64 pictures a step."""
    lr: float = 1e-4
    """Learning rate of AdamW after the warm-up."""
    weight_decay: float = 0.1
    """AdamW's decay of all tensors, vectors too, as published."""
    warmup: int = 250
    """Steps of linear warm-up."""
    milestones: tuple[int, ...] = ()
    """Steps from which the rate is a tenth of what it was; none: constant, as on OV-COCO."""
    size: int | None = None
    """Side of the square input [pixels], a multiple of two patches; when not given, 640 for patches of 16, 896 for 14,
    192 for foveate-small."""
    jitter: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest factor of the large-scale jitter; 1 1: pictures as they are."""
    flip: bool = True
    """Mirror half of the pictures."""
    cache: bool = False
    """Keep the frozen tower's maps in OUT/maps, where neither --jitter nor --flip changes the pictures."""
    masks: bool = False
    """Learn masks too, from an annotation file with outlines (COCO, LVIS)."""
    norm: bool = False
    """BatchNorm in the convolutions of the RPN and of the mask head, as published for OV-LVIS."""
    match_low_quality: bool = False
    """Each object takes its best proposal, even from an object that it overlaps more, as published for OV-LVIS."""
    relu_embedding: bool = True
    """End the layer of class embeddings with a ReLU, as published."""
    statistics: Statistics = "imagenet"
    """Normalise images with ImageNet's mean and deviation, as published, or with the CLIP's own."""
    resize: Resize = "bilinear"
    """Resize images bilinearly without antialiasing (cv2's way), as published, or antialiased and bicubic."""
    background_weight: float | None = None
    """Of the background in the class loss; when not given, 0.9 for LVIS and 0.6 else."""
    pyramid: Kind = "taps"
    """Feature pyramid (Tab. A6): four taps of the tower (the paper's); simple: ViTDet's, from the last block; fpn: the
    last block with a top-down path."""
    taps: tuple[int, ...] = ()
    """Blocks that are tapped, from 0, before the last one; when not given, 3 5 7 of 12 and 6 10 14 of 24 blocks."""
    layers: int = 0
    """Train the last so many blocks of the tower too; the paper freezes all."""
    ladder: float = 0.7
    """With --layers: the learning rate of each block by that of the block behind it."""
    channels: int | None = None
    """Width of the pyramid and of the heads; when not given, 256, and 64 for foveate-small."""
    proposals: int = 1000
    """Boxes that go from the first stage to the second, a picture."""
    rois: int | None = None
    """Of these, so many are learned from, a quarter of them objects; when not given, 512, and 128 for foveate-small."""
    templates: TemplateName = "vild"
    """What class names are written into: ViLD's 63 templates, CLIP's 80 for ImageNet, or nothing."""
    benchmark: Literal["ov-coco", "ov-lvis-b", "ov-lvis-l"] | None = None
    """Whose score fusion the detector is asked with later; when not given, OV-LVIS's for LVIS and OV-COCO's else."""


def run(config: TrainFViT) -> None:
    """Train, or go on, and write the detector.

    Raises:
        InputError: a flag, the data, the weights or the output folder is wrong.
        SystemExit: 143 after SIGTERM, 130 after Ctrl-C; the run was saved.
    """
    check(config)
    run_training(config, partial(_run, config))


def _run(config: TrainFViT, processes: "Processes", tell: Tell) -> "Outcome":
    from foveate.clip.load import load
    from foveate.data.loader import EvaluationSource
    from foveate.engine.checkpoint import digest_module
    from foveate.engine.optim import stepped_rate
    from foveate.heads.fvit.product import About, save_detector
    from foveate.heads.product import tower_digest

    # --- pictures and network, before anything is written
    dataset, split = open_objects(config, tell)
    clip = load(config.model, pretrained=config.pretrained, device=processes.device, seed=config.seed)
    tower = tower_digest(clip)
    is_lvis = any(category.frequency is not None for category in dataset.categories)
    network = _network(config, clip)
    detector = _build(config, network, clip, dataset, split, is_lvis=is_lvis)
    names = {"base": list(split.base), "novel": list(split.novel), "rule": split.rule}

    # --- the loop, in this run's own folder
    with own_folder(config, processes, made_of={"weights": digest_module(detector), **names}):
        detector.cache = _cache(config, detector, clip)
        tell(f"learning from the boxes of {len(split.base)} categories ({split.rule}); writing to {config.out}")
        outcome = train(
            config,
            detector,
            EvaluationSource(dataset, masks=config.masks),
            dataset,
            groups=detector.parameter_groups(weight_decay=config.weight_decay, ladder=config.ladder),
            partly=detector.tower.partly,
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
            network=network,
            base=split.base,
            novel=split.novel,
            left_out=split.left_out,
            templates=config.templates,
            benchmark=config.benchmark or ("ov-lvis-b" if is_lvis else "ov-coco"),
            training={"data": dataset.name, "steps": config.steps, "batch": config.batch, "seed": config.seed},
        )
        with processes.together():
            if processes.is_first:
                save_detector(detector, config.out / "model", about)
        tell(f"done: {config.out / 'model'}\n  foveate detect PICTURES --model {config.out / 'model'} --out ...")
    return outcome


def open_objects(config: TrainFViT, tell: Tell) -> "tuple[Dataset, BaseNovel]":
    """The pictures with the boxes of base categories, and what is base.

    Raises:
        InputError: no picture has a box of a base category.
    """
    from foveate.data.sources import open_data
    from foveate.data.splits import BaseNovel, as_classes, only_with_objects, split_of

    kind = "outlines" if config.masks else "instances"
    dataset = open_data(config.data, split=config.split, annotations=kind, annotation_file=config.annotations)
    if not dataset.categories:
        raise InputError(
            f"--data {config.data}: need annotated boxes with their categories; there is none. Give the root of COCO, "
            "LVIS, VOC or Objects365, or of a world, or name the file with --annotations."
        )
    check_recipe_data(config.recipe, dataset.categories, root=config.data)
    names = [category.name for category in dataset.categories]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(
            f"--data {config.data}: need categories of different names; {twice!r} stands there twice, and no text can "
            "tell them apart. Correct the annotation file."
        )
    split = split_of(dataset, config.data, file=config.novel)
    if split is None:
        tell(f"{config.data}: has no base and novel categories of its own; all are base. See --novel.")
        split = BaseNovel(tuple(names), (), (), "all categories")
    crowd = len(dataset.categories)
    objects = only_with_objects(as_classes(dataset, split.base), crowd=crowd)
    if not objects.records:
        raise InputError(
            f"--data {config.data}: need annotated boxes of base categories in split {config.split}; there is none. "
            "Is this the right root, split and --novel?"
        )
    return objects, split


def _network(config: TrainFViT, clip: "Clip") -> "Network":
    """The numbers of the detector; those not given are the paper's, or the small CLIP's."""
    from foveate.heads.fvit.product import Network

    is_small = clip.native_size <= SMALL_SIDE
    channels = config.channels or (64 if is_small else 256)
    usual = 192 if is_small else (640 if clip.patch_size == 16 else 64 * clip.patch_size)
    return Network(
        size=usual if config.size is None else config.size,
        taps=config.taps or None,
        pyramid=config.pyramid,
        channels=channels,
        width=channels,
        masks=config.masks,
        proposals=config.proposals,
        trained_layers=config.layers,
        norm=config.norm,
        relu_embedding=config.relu_embedding,
        statistics=config.statistics,
        resize=config.resize,
    )


def _build(
    config: TrainFViT, network: "Network", clip: "Clip", dataset: "Dataset", split: "BaseNovel", *, is_lvis: bool
) -> "FViT":
    """The network with the texts of the data's classes, its first weights drawn from the seed."""
    import torch

    from foveate.clip.text import embed_vocabulary
    from foveate.heads.fvit.detector import FViT, synchronise

    names = [category.name for category in dataset.categories[:-1]]  # the last is "crowd"
    text = embed_vocabulary(clip, names, templates=config.templates, background="background", cache=default_cache())
    is_novel = torch.tensor([name not in split.base for name in names], device=text.device)
    usual = 0.9 if is_lvis else 0.6
    torch.manual_seed(config.seed)
    detector = FViT(
        clip,
        text=text,
        is_novel=is_novel,
        background_weight=usual if config.background_weight is None else config.background_weight,
        match_low_quality=config.match_low_quality,
        rois=config.rois or (128 if clip.native_size <= SMALL_SIDE else 512),
        jitter=None if config.jitter == (1.0, 1.0) else config.jitter,
        flip=config.flip,
        **asdict(network),
    )
    return synchronise(detector)


def _cache(config: TrainFViT, detector: "FViT", clip: "Clip") -> Any:
    from foveate.heads.fvit.cache import FeatureCache

    if not config.cache:
        return None
    numbers = {"size": detector.size, "layers": detector.tower.layers}
    return FeatureCache(config.out / "maps", clip, **numbers, statistics=config.statistics, resize=config.resize)


def check(config: TrainFViT) -> None:
    """Refuse numbers that cannot be, before anything is loaded.

    Raises:
        InputError: names the flag, what it must be and what it is.
    """
    low, high = config.jitter
    augments = (low, high) != (1.0, 1.0) or config.flip
    check_training(
        config,
        ("milestones", all(one >= 1 for one in config.milestones), "steps of at least 1"),
        ("jitter", 0 < low <= high <= 10, "two factors, the smaller first, above 0 and at most 10"),
        ("cache", not (config.cache and (augments or config.layers)), "off with --jitter, --flip or --layers: the maps "
         "are those of pictures as they are in a frozen tower. Add --jitter 1 1 --no-flip"),
        ("layers", config.layers >= 0, "0 or above"),
        ("ladder", 0 < config.ladder <= 1, "above 0 and at most 1"),
        ("channels", config.channels is None or config.channels >= 8, "at least 8"),
        ("proposals", config.proposals >= 1, "at least 1"),
        ("rois", config.rois is None or config.rois >= 4, "at least 4"),
        ("background-weight", config.background_weight is None or 0 <= config.background_weight <= 10, "0 to 10"),
    )  # fmt: skip
