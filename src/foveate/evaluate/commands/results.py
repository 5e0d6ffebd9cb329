"""Shared by the commands with `--from-results`: the flags it takes, and what of the files was not measured."""

from dataclasses import MISSING, fields, replace
from typing import Any

from foveate.data.records import Dataset, IgnoredEntries
from foveate.errors import InputError
from foveate.evaluate.flags import ImageFlags
from foveate.evaluate.report import log

COMMON = ("from_results", "data", "split", "limit", "out", "accept_annotations")
"""Flags that are used with --from-results, in every command that has them."""


def check_results_flags(config: ImageFlags, names: tuple[str, ...] = ()) -> None:
    """Refuse every flag, except those of `names` and `COMMON`, that is not at its default: it is for a model."""
    for flag in fields(config):
        default = flag.default_factory() if flag.default_factory is not MISSING else flag.default
        value = getattr(config, flag.name)
        if flag.name not in (*COMMON, *names) and value != default:
            raise InputError(f"--{flag.name.replace('_', '-')}: is for measuring a model, and has no effect with "
                             f"--from-results; got {value}. Remove one of them.")  # fmt: skip


def with_notes(dataset: Dataset, skipped: dict[str, IgnoredEntries], result: dict[str, Any]) -> Dataset:
    """Log the rules, and note in the data set what of the results was not measured; `report.finish` prints it."""
    for rule in result["rules"]:
        log(f"rule: {rule}")
    counts = (
        (result["images_without_result"]["count"], "images have no result: all their annotations are missed"),
        (result.get("not_measured", 0), "results are of images that the rule excludes, and are not measured"),
        (result.get("beyond_cap", 0), "results exceed the maximum that the rule takes per image, and are not measured"),
    )
    notes = tuple(f"{count} {text}" for count, text in counts if count)
    return replace(dataset, ignored={**dataset.ignored, **skipped}, notes=(*dataset.notes, *notes))
