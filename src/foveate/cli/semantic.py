"""`foveate evaluate semantic`: mIoU of whatever gives pixels classes, on label maps of any data set.

Torch is imported only when something is measured.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from foveate.cli.evaluate import Reading, finish
from foveate.cli.segmenters import Segmenting, check_segmenting, open_pixels
from foveate.errors import InputError
from foveate.io.files import check_target
from foveate.train.flags import LabelMapFlags

if TYPE_CHECKING:
    from rich.table import Table

    from foveate.cli.segmenters import Segmenter
    from foveate.clip.vocabulary import Vocabulary
    from foveate.data.semantic import SemanticData
    from foveate.evaluate.feed import Feed
    from foveate.types import LabelMap


@dataclass(frozen=True, kw_only=True)
class Semantic(LabelMapFlags, Segmenting, Reading):
    """Measure mIoU of all classes, of those that training has shown, and of the others.

    A class is seen if it shares a word with a class that was trained on; where nothing was trained, if the split of the
    data calls it base.
    """

    model: str | None = None  # pyright: ignore[reportIncompatibleVariableOverride]  # not needed for --from-results
    """OUT/model of `foveate train-catseg` or `train-panoptic`; or a CLIP, whose dense map is asked as it is. Needed
    unless --from-results is given."""
    from_results: Path | None = None
    """Measure predictions that another program made, without any model: a folder with a label map for each image,
    called like it (PNG or TIFF of 8 or 16 bits, a number a pixel), or OUT of `foveate segment`. An image without a map
    is missed."""
    numbers: Literal["index", "dataset"] = "index"
    """With --from-results, what the numbers in the maps are: index, the class's place in the data's list, from 0 (255
    or 65535: no class); dataset, the numbers of the data's own maps, as ADE20K's and VOC's servers take them. Maps of
    `foveate segment` need neither: their classes are matched by name."""
    every_word: bool = False
    """Ask for every word of a class on its own; the best of them speaks for the class. Cat-Seg of 2024 asks for the
    first word only, unless this is given."""


def run(config: Semantic) -> dict[str, Any]:
    """Measure, print a table, write JSON where asked, and return the result.

    Raises:
        InputError: a flag, the data, the model or its CLIP is wrong.
    """
    if config.out is not None:
        check_target(config.out, flag="--out")
    if config.limit is not None and config.limit < 1:
        raise InputError(f"--limit: need at least 1 picture; got {config.limit}.")
    if config.model is None:
        raise InputError("--model: need OUT/model of a training, or a CLIP; got none. To measure the label maps of "
                         "another program give --from-results DIR instead.")  # fmt: skip
    check_segmenting(config)
    started = time.perf_counter()
    from dataclasses import replace

    from foveate.clip.vocabulary import Vocabulary
    from foveate.engine.distributed import choose_device
    from foveate.evaluate.feed import Feed
    from foveate.evaluate.semantic import evaluate_semantic
    from foveate.train.label_maps import classes_of, open_truth_maps

    data = open_truth_maps(config, split=config.split)
    records = data.dataset.records[: config.limit]
    data = replace(data, dataset=replace(data.dataset, records=records))
    vocabulary, places = Vocabulary(classes_of(data)), None
    asked = vocabulary
    if config.every_word:
        places = [place for place, words in enumerate(vocabulary.classes) for _ in words]
        asked = Vocabulary(tuple((word,) for words in vocabulary.classes for word in words))
    segmenter = open_pixels(config, asked, device=choose_device(config.device, local_rank=None))
    feed = Feed(
        data.dataset,
        masks=False,
        batch=config.batch,
        limit=None,
        workers=config.workers,
        strict=config.strict,
        progress=True,
    )
    found = evaluate_semantic(
        _found(feed, segmenter), data, places=places, seen=_seen(config, segmenter, vocabulary, data)
    )
    result = {"model": config.model, "kind": segmenter.kind, **found, "bad": feed.bad_listed()}
    return finish(result, table_of(result, config.model), config, datasets=[data.dataset], started=started)


def _found(feed: "Feed", segmenter: "Segmenter") -> "Iterator[tuple[str, LabelMap]]":
    for samples in feed:
        for sample, one in zip(samples, segmenter.label_maps(samples), strict=True):
            yield sample.id, one


def _seen(
    config: Semantic, segmenter: "Segmenter", vocabulary: "Vocabulary", data: "SemanticData"
) -> "list[bool] | None":
    from foveate.clip.vocabulary import share_words

    if segmenter.trained is not None:
        return share_words(vocabulary, segmenter.trained)
    return base_classes(config, data)


def base_classes(config: Semantic, data: "SemanticData") -> "list[bool] | None":
    """Which classes the split of the data calls base; None: it has no split."""
    from foveate.data.splits import split_semantic

    parts = split_semantic(data.dataset, config.data, file=config.novel)
    return None if parts is None else [name in parts.base for name in data.names]


def table_of(result: dict[str, Any], measured: str, *, missing: str = "could not be read") -> "Table":
    """The numbers of a result; `measured` is what they are of, and `missing` why images have none, for the title."""
    from rich.table import Table

    missed = result["pictures_without_result"]["count"]
    title = f"{measured}: {result['pictures']} pictures of {result['data']} [%]"
    title += f"; {missed} of them {missing}, and all their pixels count as missed" if missed else ""
    table = Table(title=title, title_justify="left")
    for heading in ("classes", "with pixels", "mIoU", "mean accuracy", "pixel accuracy"):
        table.add_column(heading, justify="left" if heading == "classes" else "right")
    values = (result["mIoU"], result["mean_accuracy"], result["pixel_accuracy"])
    table.add_row("all", str(result["classes"]["with_ground_truth"]), *(_cell(value) for value in values))
    for name, group in result["groups"].items():
        table.add_row(name, str(group["classes"]), _cell(group["mIoU"]), "", "")
    return table


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
