"""`foveate convert` of a published F-ViT: from mmdet's checkpoint to a folder for `foveate detect`."""

import sys
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from foveate.clip.io.weights import save_clip
from foveate.clip.load import load, split_weights
from foveate.clip.model import Clip
from foveate.clip.text import embed_vocabulary
from foveate.convert.clip import check_weights
from foveate.convert.flags import Convert
from foveate.data.splits import BaseNovel, classes_of_annotations, classes_of_ov_coco
from foveate.engine.distributed import choose_device
from foveate.errors import InputError
from foveate.heads.common.product import CLIP_FOLDER, tower_digest
from foveate.heads.fvit import published
from foveate.heads.fvit.product import About, load_detector, save_detector
from foveate.io.files import default_cache, folder_written_whole

COUNT_OV_COCO = 65
TEMPLATES = "vild"


def convert_fvit(config: Convert, state: dict[str, Tensor]) -> None:
    """Save the detector of a published state dictionary.

    Raises:
        InputError: --clip is missing or another one, the classes are not those of the file, or the file is incomplete.
    """
    clip_name = _check(config)

    # the file, its classes, and the CLIP of its tower
    source = config.source
    parts = published.take_apart(state, source=source)
    names, split = _classes(config, parts)
    clip = load(clip_name, device=choose_device("auto", local_rank=None))
    before = tower_digest(clip)
    published.put_tower(clip, parts, source=source)
    has_clip = tower_digest(clip) != before  # the CLIP is saved with the detector
    if has_clip:  # the settings of --clip do not apply to the tower of the file
        if clip.windows is not None:
            print(f"{source}: its tower has no windows; those of {clip_name} are ignored", file=sys.stderr)
        clip.windows = clip.gates = clip.alpha = None
    digest = tower_digest(clip)

    # the detector
    benchmark = config.benchmark or published.published_benchmark(parts, patch=clip.patch_size)
    size = published.published_size(benchmark, patch=clip.patch_size) if config.size is None else config.size
    network = published.published_network(parts, size=size, source=source)
    text, ordered = _texts(parts, clip, names, source=source)
    is_novel = torch.tensor([name in split.novel for name in ordered], device=text.device)
    detector = published.build_published(parts, clip, network, text=text, is_novel=is_novel, source=source)
    model, pretrained = split_weights(clip_name)
    about = About(
        model=model,
        pretrained=None if has_clip else pretrained,
        tower=digest,
        network=network,
        base=split.base,
        novel=split.novel,
        left_out=split.excluded,
        templates=TEMPLATES,
        benchmark=benchmark,
        training={"published": Path(source).name},
        has_clip=has_clip,
    )

    # the folder
    with folder_written_whole(config.out) as partial:
        if has_clip:
            save_clip(clip, partial / CLIP_FOLDER)
        save_detector(detector, partial, about)
        load_detector(partial)
    tower = f"of the file, in {config.out / CLIP_FOLDER} with the text tower of --clip" if has_clip else clip_name
    print(f"image tower: {tower}")
    print(f"ignored: {len(parts.unused)} tensors that inference does not need (fc_cls, rotary tables)")
    print(f"{config.out}: {len(names)} classes, {len(split.base)} base and {len(split.novel)} novel ({split.rule})")
    print(f"score fusion of {benchmark} (--benchmark), T = {float(detector.scale.detach()):.2f}; "
          f"{_settings(asdict(network))}")  # fmt: skip


def _check(config: Convert) -> str:
    """Return --clip, which must have weights."""
    if config.clip is None:
        raise InputError(
            f"--clip: need the CLIP whose text tower {config.source}, an F-ViT, was trained with; the file has an "
            "image tower only. Give EVA-CLIP's own file or the folder of a distilled CLIP."
        )
    check_weights(config.clip, flag="--clip")
    return config.clip


def _classes(config: Convert, parts: published.PublishedFile) -> tuple[tuple[str, ...], BaseNovel]:
    """The names of the classes, which are not in the file."""
    if config.annotations is not None:
        names, split = classes_of_annotations(config.annotations, file=config.novel)
    elif parts.classes == COUNT_OV_COCO and config.novel is None:
        names, split = classes_of_ov_coco()
    else:
        raise InputError(
            f"--annotations: need the annotation file of the data, such as lvis_v1_val.json, for the names of the "
            f"{parts.classes} classes of {config.source}; it does not hold them."
        )
    if len(names) != parts.classes:
        raise InputError(
            f"--annotations: need the names of {parts.classes} classes, as many as {config.source} has; "
            f"{config.annotations or 'OV-COCO'} has {len(names)} base and novel ones. See --novel."
        )
    return names, split


def _texts(
    parts: published.PublishedFile, clip: Clip, names: tuple[str, ...], *, source: str
) -> tuple[Tensor, list[str]]:
    """The text embeddings of classes and background, and the names in their order."""
    embedded = embed_vocabulary(clip, names, templates=TEMPLATES, background="background", cache=default_cache())
    if parts.text is None:
        print(f"{source}: has no text embeddings; those of the text tower of --clip are used", file=sys.stderr)
        return embedded, list(names)
    text = parts.text.to(embedded.device)
    order, least, unsure = published.match_names(text[:-1], embedded[:-1], source=source)
    print(f"text embeddings of the file and of --clip: cosine of at least {least:.4f}")
    if unsure:
        print(
            f"{source}: {unsure} of {len(order)} text embeddings are nearer to the name of another class than to their "
            "own; the order of the names is used. Check that --annotations, --novel and --clip are those of its "
            "training.",
            file=sys.stderr,
        )
    return text, [names[index] for index in order.tolist()]


def _settings(network: dict[str, object]) -> str:
    keys = ("size", "channels", "masks", "norm", "statistics", "resize", "relu_embedding")
    return ", ".join(f"{key} {network[key]}" for key in keys)
