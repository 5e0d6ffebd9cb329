"""`foveate convert` of a published F-ViT: from mmdet's checkpoint to a folder for `foveate detect`.

Deliberately absent: what the file's names mean (`foveate.heads.fvit.published`).
"""

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
    """Write the detector of a published file.

    Args:
        config: of the command; `out` is new or empty.
        state: the file's state dictionary.

    Raises:
        InputError: no --clip, another one, other classes than the file's, or a file that is not whole.
    """
    clip_name = _check(config)

    # the file, its classes, and the CLIP that its tower belongs to
    source = config.source
    found = published.take_apart(state, source=source)
    names, split = _classes(config, found)
    clip = load(clip_name, device=choose_device("auto", local_rank=None))
    before = tower_digest(clip)
    published.put_tower(clip, found, source=source)
    has_clip = tower_digest(clip) != before  # no other folder has this CLIP
    if has_clip:  # what is known of --clip's tower does not hold of the file's
        if clip.windows is not None:
            print(f"{source}: its tower attends everywhere; the windows of {clip_name} are left out", file=sys.stderr)
        clip.windows = clip.gates = clip.alpha = None
    digest = tower_digest(clip)

    # the detector
    benchmark = config.benchmark or published.published_benchmark(found, patch=clip.patch_size)
    usual = published.published_size(benchmark, patch=clip.patch_size)
    size = usual if config.size is None else config.size
    network = published.published_network(found, size=size, source=source)
    text, ordered = _texts(found, clip, names, source=source)
    is_novel = torch.tensor([name in split.novel for name in ordered], device=text.device)
    detector = published.build_published(found, clip, network, text=text, is_novel=is_novel, source=source)
    model, pretrained = split_weights(clip_name)
    about = About(
        model=model,
        pretrained=None if has_clip else pretrained,
        tower=digest,
        network=network,
        base=split.base,
        novel=split.novel,
        left_out=split.left_out,
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
    where = f"the file's, in {config.out / CLIP_FOLDER} with the text tower of --clip" if has_clip else clip_name
    print(f"image tower: {where}")
    print(f"left out: {len(found.unused)} tensors that no detector here needs (fc_cls, rotary tables)")
    print(f"{config.out}: {len(names)} classes, {len(split.base)} base and {len(split.novel)} novel ({split.rule})")
    print(f"asked as {benchmark} (--benchmark), T = {float(detector.scale.detach()):.2f}; {_numbers(asdict(network))}")


def _check(config: Convert) -> str:
    """Refuse flags that do not go with a detector, and return --clip."""
    if config.clip is None:
        raise InputError(
            f"--clip: need the CLIP whose text tower {config.source}, an F-ViT, was trained with; the file has an "
            "image tower only. Give EVA-CLIP's own file or a distilled CLIP's folder."
        )
    check_weights(config.clip, flag="--clip")
    return config.clip


def _classes(config: Convert, found: published.Published) -> tuple[tuple[str, ...], BaseNovel]:
    """The names of the file's classes, which it does not hold itself."""
    if config.annotations is not None:
        names, split = classes_of_annotations(config.annotations, file=config.novel)
    elif found.classes == COUNT_OV_COCO and config.novel is None:
        names, split = classes_of_ov_coco()
    else:
        raise InputError(
            f"--annotations: need the data's annotation file (lvis_v1_val.json, say) for the names of the "
            f"{found.classes} classes of {config.source}; it does not hold them."
        )
    if len(names) != found.classes:
        whence = config.annotations or "OV-COCO"
        raise InputError(
            f"--annotations: need the names of {found.classes} classes, as many as {config.source} has; {whence} has "
            f"{len(names)} base and novel ones. See --novel."
        )
    return names, split


def _texts(found: published.Published, clip: Clip, names: tuple[str, ...], *, source: str) -> tuple[Tensor, list[str]]:
    """The embeddings of classes and background, and the names in their order."""
    named = embed_vocabulary(clip, names, templates=TEMPLATES, background="background", cache=default_cache())
    if found.text is None:
        print(f"{source}: holds no texts; they are embedded by the text tower of --clip", file=sys.stderr)
        return named, list(names)
    text = found.text.to(named.device)
    order, least, unsure = published.order_of_names(text[:-1], named[:-1], source=source)
    print(f"texts of the file and of --clip's text tower: cosine of at least {least:.4f}")
    if unsure:
        print(
            f"{source}: {unsure} of {len(order)} texts are nearer to another class's name than to their own; the order "
            "of the names decided. Check that --annotations, --novel and --clip are those it was trained with.",
            file=sys.stderr,
        )
    return text, [names[index] for index in order.tolist()]


def _numbers(network: dict[str, object]) -> str:
    shown = ("size", "channels", "masks", "norm", "statistics", "resize", "relu_embedding")
    return ", ".join(f"{name} {network[name]}" for name in shown)
