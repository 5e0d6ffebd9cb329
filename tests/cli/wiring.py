"""What the cases of `test_wiring.py` are made of, and what stands in the place of all that takes time.

A case of a command names the calls that do its work, and for each flag words that give it another value. A flag that is
renamed is changed there; a function that is renamed is changed among the calls.
"""

from collections.abc import Callable, Mapping
from copy import copy, deepcopy
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from recording import Stand, reached
from torch import nn

from foveate.clip.io.describe import build, read_config
from foveate.clip.model import Clip
from foveate.clip.vocabulary import Vocabulary
from foveate.heads.catseg.model import CatSeg
from foveate.heads.fvit.detector import FViT
from foveate.heads.panoptic.mask2former import MaskGenerator
from foveate.train.flags import SMALL_CONFIG
from foveate.types import LabelMap

WIDTH = 16  # of the CLIP's towers and of its embeddings


@dataclass(frozen=True)
class To:
    """Another value of a flag."""

    words: str
    given: str = ""  # flags that it needs, given before and after
    reaches: str = ""  # names of calls that must change, with a * each of several; any call where none is named
    base: str | None = None  # words of the unchanged command, where they are others
    instead: str | None = None  # words of the changed command, where these are not the unchanged ones and more


@dataclass(frozen=True)
class Case:
    """One command."""

    words: str
    """Of the unchanged command."""
    stands: Mapping[str, Stand]
    """The calls that are recorded, by the name of what is called."""
    fields: Mapping[str, str | To | tuple[To, ...]]
    """For each field of its flags, words that give it another value; several of one that acts in several places."""
    prints: bool = field(default=False, kw_only=True)
    """Whether what is printed counts as a call."""


@cache
def _tiny_clip() -> Clip:
    described = read_config(SMALL_CONFIG)
    sizes = described["model_cfg"]
    sizes["embed_dim"] = WIDTH
    sizes["vision_cfg"] |= {"layers": 6, "width": WIDTH, "head_width": 8}
    sizes["text_cfg"] |= {"layers": 1, "width": WIDTH}
    return Clip(build(described, name="tiny", seed=0), name="tiny", config=described).eval()


def tiny_clip(arguments: dict[str, Any]) -> Clip:
    """A CLIP made once, whatever is asked for."""
    return deepcopy(_tiny_clip())


def shared_clip(arguments: dict[str, Any]) -> Clip:
    """The same for what changes no weights: its settings are its own."""
    return copy(_tiny_clip())


def rows_of(arguments: dict[str, Any]) -> torch.Tensor:
    """Embeddings of a vocabulary: of each class, or of each of its names."""
    vocabulary = arguments["vocabulary"]
    classes = vocabulary.classes if isinstance(vocabulary, Vocabulary) else [(name,) for name in vocabulary]
    count = sum(map(len, classes)) if arguments["each_name"] else len(classes)
    rows = torch.linspace(1, 2, (count + (arguments["background"] is not None)) * WIDTH).reshape(-1, WIDTH)
    return torch.nn.functional.normalize(rows, dim=1)


def give(result: Any) -> Callable[[dict[str, Any]], Any]:
    """The same result whatever the arguments."""
    return lambda arguments: result


CPU = Stand(give(torch.device("cpu")))
THROUGH, NOTHING, LAST = Stand(), Stand(give(None)), Stand(reached)
UNSEEN = Stand(give("0"), recorded=False)
LABEL_MAPS = {
    "kind": To("--kind panoptic", reaches="open_semantic"),
    "labels": To("--labels {labels}", reaches="open_semantic"),
    "maps": To("--maps {maps}", reaches="open_semantic"),
    "image_list": To("--image-list {ids}", reaches="open_semantic"),
}
MEASURE = "--data {world} --model some --workers 0 --device cpu"
MEASURED = {
    "clip.load:load": Stand(shared_clip),
    "choose_device": CPU,
    "open_data": THROUGH,
    "embed_vocabulary": Stand(rows_of),
}


def reading(call: str) -> dict[str, To]:
    """The flags of every command that reads images and measures, and the call that gets them."""
    return {
        "data": To("--data {other}", reaches=call),
        "split": To("--split train", reaches=call),
        "limit": To("--limit 1", reaches=call),
        "batch": To("--batch 3", reaches=call),
        "workers": To("--workers 1", reaches=call),
        "strict": To("--strict", reaches=call),
        "device": To("--device cuda", reaches="choose_device"),
    }


def bare(kind: type[nn.Module], **attributes: Any) -> Any:
    """A module of a class without its parts, but for some attributes."""
    made = type(kind.__name__, (kind,), attributes)
    module = made.__new__(made)
    nn.Module.__init__(module)
    return module


def detector(arguments: dict[str, Any]) -> Any:
    """A detector that finds nothing, and what its folder says."""
    about = SimpleNamespace(
        base=("plaid cross",),
        classes=("plaid cross", "dotted ball"),
        templates="none",
        benchmark="ov-coco",
        network=SimpleNamespace(masks=True),
    )
    return bare(FViT, scale=torch.tensor(50.0), tower=SimpleNamespace(clip=shared_clip(arguments))), about


def fusing(call: str) -> dict[str, To]:
    """The flags that say how the scores of a detector and its CLIP are fused, and the call that gets them."""
    return {
        "benchmark": To("--benchmark ov-lvis-b", reaches=call),
        "temperature": To("--temperature 7", reaches=call),
        "detector_temperature": To("--detector-temperature 7", reaches=call),
        "min_score": To("--min-score 0.3", reaches=call),
        "nms": To("--nms 0.3", reaches=call),
        "max_boxes": To("--max-boxes 7", reaches=call),
        "templates": To("--templates clip", reaches="embed_vocabulary"),
        "clip": To("--clip another", reaches="load_detector"),
    }


DOG = Vocabulary((("plaid cross",), ("dotted ball", "sphere")))


def generator(arguments: dict[str, Any]) -> Any:
    """What finds masks, its CLIP, and what its folder says."""
    return bare(MaskGenerator), shared_clip(arguments), about_generator(arguments)


def about_generator(arguments: dict[str, Any]) -> Any:
    """What the folder of a mask generator says."""
    classes = tuple(SimpleNamespace(words=words, is_thing=True) for words in DOG.classes)
    return SimpleNamespace(model="some", templates="photo", words="raw", base=DOG, knows_words=True, classes=classes)


MASKS = {
    **MEASURED,
    "load_generator": Stand(generator),
    "panoptic.product:read_about": Stand(about_generator),
    "check_shares": Stand(give(None), recorded=False),
    "open_published": LAST,
    "PanopticSegmenter": THROUGH,
}


def blank_maps(arguments: dict[str, Any]) -> list[LabelMap]:
    """For each image a map of its first class."""
    return [LabelMap(torch.zeros(one.image.shape[1:], dtype=torch.int64)) for one in arguments["samples"]]


PIXELS = {
    **MASKS,
    "Batches": THROUGH,
    "Cosines": THROUGH,
    "Cosines.label_maps": Stand(blank_maps, without=("self", "samples")),
    "load_catseg": Stand(lambda given: (bare(CatSeg), SimpleNamespace(classes=DOG.classes, novel=()))),
    "CatSeg.embed_classes": Stand(give(torch.zeros(2, 1, WIDTH))),
    "CatSeg.label_maps": Stand(reached),
    "MaskGenerator.propose": Stand(give([None]), without=("samples",)),
    "PanopticSegmenter.score_proposals": Stand(give(None), without=("sample",)),
    "PanopticSegmenter.semantic": LAST,
}


def segmenting(words: str) -> dict[str, To]:
    """The flags of every command that gives pixels classes, after words in which {model} stands for the model."""
    masks, cat = words.replace("{model}", "{generator}"), words.replace("{model}", "{catseg}")
    return {
        "model": To("--model another", reaches="load"),
        "pretrained": To("--pretrained weights.pt", reaches="load"),
        "clip": To("--clip another", base=cat, reaches="load_catseg"),
        "encoder": To("--encoder {encoder}", base=masks, reaches="load_generator"),
        "classifier": To("--classifier another", base=masks, reaches="load"),
        "size": To("--size 64", reaches="Cosines"),
        "head": To("--head sclip", reaches="Cosines"),
        "templates": To("--templates none", reaches="embed_vocabulary"),
        "fusion": To("--fusion clip", base=masks, reaches="PanopticSegmenter"),
        "mask_pooling": To("--mask-pooling masked", base=masks, reaches="PanopticSegmenter"),
        "input_edges": To(
            "--input-edges 32 64", base=words.replace("{model}", "{published}"), reaches="open_published"
        ),
    }
