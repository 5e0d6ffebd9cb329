"""`foveate convert` of ODISE's published file (label model), for `foveate segment` and `evaluate panoptic`."""

import sys
from functools import partial
from pathlib import Path

from torch import Tensor

from foveate.clip.load import load, split_weights
from foveate.clip.model import Clip
from foveate.convert.clip import check_weights
from foveate.convert.flags import Convert
from foveate.data.annotation_file import load as load_json
from foveate.data.labels import class_names
from foveate.data.validation import list_categories
from foveate.engine.distributed import choose_device
from foveate.errors import InputError
from foveate.heads.common.product import tower_digest
from foveate.heads.panoptic.odise_file import build_odise, network_of, rename_odise
from foveate.heads.panoptic.product import DIFFUSION, About, Class, frozen_digest, load_generator, save_generator
from foveate.io.files import folder_written_whole

TEMPLATES = "photo"


def convert_odise(config: Convert, state: dict[str, Tensor]) -> None:
    """Save the mask generator of a published state dictionary.

    Raises:
        InputError: --encoder, --clip or --annotations is missing or not the file's, or the file is incomplete.
    """
    encoder = _check(config)

    # the file, its classes, and the CLIP of its captioner and text embeddings
    source = config.source
    renamed = rename_odise(state, source=source)
    network = network_of(renamed, encoder=str(encoder), source=source)
    classes = _classes(config)
    assert config.clip is not None, "checked"
    clip = load(config.clip, device=choose_device("auto", local_rank=None))
    _check_clip(clip, renamed.state["head.text.weight"].shape[1], config)
    digest = tower_digest(clip, whole=True)

    # the mask generator
    generator = build_odise(renamed, network, clip, tuple(item.words for item in classes), source=source)
    model, pretrained = split_weights(config.clip)
    about = About(
        model=model,
        pretrained=pretrained,
        tower=digest,
        frozen=frozen_digest(generator.encoder),
        network=network,
        classes=classes,
        knows_words=True,
        templates=TEMPLATES,
        words="raw",
        training={"published": Path(source).name},
    )

    # the folder
    with folder_written_whole(config.out) as partial:
        save_generator(generator, partial, about)
        load_generator(partial)
    if renamed.ignored:
        print(f"ignored: {len(renamed.ignored)} tensors needed only for training, such as {renamed.ignored[0]}")
    things, names = sum(item.is_thing for item in classes), sum(len(item.words) for item in classes)
    print(
        f"{config.out}: {len(renamed.names)} tensors, {network.queries} queries; trained on {things} classes of things "
        f"and {len(classes) - things} of stuff, with {names} names and synonyms"
    )
    print(f"  foveate evaluate panoptic --data ... --model {config.out} --mask-pooling masked --fusion odise-label")


def _check(config: Convert) -> Path:
    """Check that no flag is missing, and return --encoder."""
    source = config.source
    if config.encoder is None or not (config.encoder / DIFFUSION).is_file():
        raise InputError(
            f"--encoder: need the folder of the Stable Diffusion (v1.3) that {source}, an ODISE, is based on, as "
            f"diffusers writes it, with {DIFFUSION}; got {config.encoder}. The file does not hold it."
        )
    if config.clip is None:
        raise InputError(
            f"--clip: need the CLIP that {source}, an ODISE, was trained with (ViT-L-14-336 of OpenAI); the file does "
            "not hold it. Give --clip ViT-L-14-336-quickgelu:openai, or its file."
        )
    check_weights(config.clip, flag="--clip")
    if config.annotations is None:
        raise InputError(
            f"--annotations: need the panoptic annotation file of the training data (COCO's panoptic_val2017.json) "
            f"for the names of the classes, things and stuff; {source} does not hold them. See also --labels."
        )
    return config.encoder


def _classes(config: Convert) -> tuple[Class, ...]:
    """The classes of its training, all of them base."""
    assert config.annotations is not None, "checked"
    content = load_json(config.annotations, kind="a panoptic")
    categories = list_categories(config.annotations, content, need_isthing=True)
    report = partial(print, file=sys.stderr, flush=True)
    listed = class_names(categories, config.labels, name=config.annotations.stem, report=report)
    pairs = zip(categories, listed.classes, strict=True)
    return tuple(Class(words, category.is_thing, "base") for category, words in pairs)


def _check_clip(clip: Clip, width: int, config: Convert) -> None:
    if clip.embed_dim != width:
        raise InputError(
            f"--clip {config.clip}: need the CLIP that {config.source} was trained with, whose embeddings have {width} "
            f"numbers; this one's have {clip.embed_dim}."
        )
