"""The wiring of the commands that measure."""

from typing import Any

from recording import Stand, reached
from wiring import (
    LABEL_MAPS,
    LAST,
    MASKS,
    MEASURE,
    MEASURED,
    NOTHING,
    PIXELS,
    THROUGH,
    Case,
    To,
    detector,
    fusing,
    give,
    reading,
    segmenting,
)

from foveate.data.label_maps import open_semantic


class NoCandidates(list[Any]):
    """The cache of a detector that found nothing."""

    bad, ids = (), ()


ACCEPTED = {"accept_annotations": To("--accept-annotations", reaches="open_data*")}
SHOWN = {"evaluate.report:finish": Stand(give({}), recorded=False)}  # prints the table and writes --out


def measuring(call: str) -> dict[str, To]:
    """Likewise of those that measure the dense map of a model."""
    return {
        **reading(call),
        "data": To("--data {other}", reaches="open_data"),
        "model": To("--model another", reaches="load"),
        "pretrained": To("--pretrained weights.pt", reaches="load"),
        "head": To("--head sclip", reaches=call),
        "pad": To("--pad zero", reaches=call),
    }


REFERENCE = {"reference": To("--reference another", reaches="load")}

REGIONS = Case(
    MEASURE,
    {**MEASURED, "evaluate_regions": LAST},
    {
        **measuring("evaluate_regions"),
        **ACCEPTED,
        "size": To("--size 64 96", reaches="evaluate_regions"),
        "crops": To("--no-crops", reaches="evaluate_regions"),
        "masked": To("--masked", reaches="evaluate_regions"),
        "crowd": To("--no-crowd", reaches="evaluate_regions"),
        "templates": To("--templates none", reaches="evaluate_regions"),
    },
)

AGREEMENT = Case(
    MEASURE,
    {**MEASURED, "evaluate_agreement": LAST},
    {
        **measuring("evaluate_agreement"),
        **REFERENCE,
        "size": To("--size 64", reaches="evaluate_agreement"),
        "grid": To("--grid 4", reaches="evaluate_agreement"),
        "max_regions": To("--max-regions 5", reaches="evaluate_agreement"),
        "gallery": To("--gallery 5", reaches="evaluate_agreement"),
        "seed": To("--seed 1", reaches="evaluate_agreement"),
    },
)

RETRIEVAL = Case(
    MEASURE,
    {**MEASURED, "evaluate_retrieval": LAST},
    {
        **measuring("evaluate_retrieval"),
        **ACCEPTED,
        **REFERENCE,
        "size": To("--size 64", reaches="evaluate_retrieval"),
        "crops": To("--no-crops", reaches="open_data evaluate_retrieval"),
        "crowd": To("--no-crowd", reaches="evaluate_retrieval"),
        "gallery": To("--gallery 5", reaches="evaluate_retrieval"),
        "seed": To("--seed 1", reaches="evaluate_retrieval"),
    },
)
CLASSES = "--data {classes} --model some --workers 0 --device cpu"

GLOBAL = Case(
    MEASURE,
    {**MEASURED, "evaluate_global": LAST},
    {
        **reading("evaluate_global"),
        **ACCEPTED,
        **REFERENCE,
        "model": To("--model another", reaches="load"),
        "pretrained": To("--pretrained weights.pt", reaches="load"),
        "labels": To("--labels {folder_names}", base=CLASSES, reaches="evaluate_global"),
        "view": To("--view whole", reaches="evaluate_global"),
        "templates": To("--templates none", reaches="evaluate_global"),
        "task": (To("--task classify", reaches="evaluate_global"), To("--task retrieve", reaches="evaluate_global")),
    },
)

PARETO = Case(
    f"{MEASURE} --reference teacher",
    {
        **MEASURED,
        **SHOWN,
        "check_unmixed": NOTHING,
        "evaluate_pareto": Stand(give({"points": [], "size": 1, "head": "value", "bad": []})),
        "pareto_chart": NOTHING,
    },
    {
        **{name: change for name, change in measuring("evaluate_pareto").items() if name != "pretrained"},
        **ACCEPTED,
        **REFERENCE,
        "model": To("--model another", reaches="check_unmixed load evaluate_pareto"),
        "labels": To("--labels {folder_names}", given="--global-data {classes}", reaches="evaluate_pareto"),
        "alpha": To("--alpha 0 1", reaches="evaluate_pareto"),
        "size": To("--size 64", reaches="evaluate_pareto"),
        "global_data": To("--global-data {classes}", reaches="evaluate_pareto"),
        "plot": To("--plot {out}/front.png", reaches="pareto_chart"),
        "view": To("--view whole", reaches="evaluate_pareto"),
        "templates": To("--templates none", reaches="evaluate_pareto"),
    },
)
SWEPT = {"style": "coco", "masks": None, "boxes": {"groups": {}}, "fusion": {"base": 0.0, "novel": 0.0}}

DETECTION = Case(
    MEASURE,
    {
        **MEASURED,
        **SHOWN,
        "load_detector": Stand(detector),
        "candidates_identity": Stand(give({}), recorded=False),
        "open_ground_truth": THROUGH,
        "find_candidates": Stand(give(NoCandidates())),
        "detection_sweep:sweep": Stand(give([SWEPT])),
        "proposal_recall": Stand(give({})),
        "detection_results:write_results": NOTHING,
        "evaluate_detection": LAST,
    },
    {
        **reading("find_candidates"),
        **fusing("sweep"),
        **ACCEPTED,
        "data": To("--data {other}", reaches="open_data"),
        "model": To("--model another", reaches="load_detector"),
        "from_results": To("", instead="--from-results {results} --data {world}", reaches="evaluate_detection"),
        "annotations": To("--annotations {instances}", given="--split train", reaches="open_data"),
        "novel": To("--novel {novel}", reaches="open_ground_truth proposal_recall"),
        "vocab": To("--vocab 'plaid cross'", reaches="embed_vocabulary open_ground_truth"),
        "style": To("--style voc12", reaches="open_ground_truth sweep"),
        "masks": To("--masks", reaches="open_ground_truth sweep"),
        "fusion": To("--fusion 0.1,0.2 0.3,0.4", reaches="sweep"),
        "candidates": To("--candidates {out}/kept", reaches="find_candidates"),
        "results": To("--results {out}/results.json", reaches="write_results"),
    },
)
GENERATED = "--data {world} --model {generator} --workers 0 --device cpu"

PANOPTIC = Case(
    GENERATED,
    {**MASKS, "sources:open_panoptic": THROUGH, "sweep_fusion": LAST, "read_panoptic_results": LAST},
    {
        **reading("sweep_fusion"),
        "data": To("--data {other}", reaches="open_panoptic"),
        "accept_annotations": To("--accept-annotations", reaches="open_panoptic"),
        "model": To("--model {generator}/../other_generator", reaches="load_generator"),
        "from_results": To("", instead="--data {world} --from-results {maps}", reaches="read_panoptic_results"),
        "clip": To("--clip another", reaches="load_generator"),
        "encoder": To("--encoder {encoder}", reaches="load_generator"),
        "classifier": To("--classifier another", reaches="load"),
        "fusion": To("--fusion 0.2,0.9", reaches="sweep_fusion"),
        "mask_pooling": To("--mask-pooling masked", reaches="PanopticSegmenter"),
        "head": To("--head sclip", reaches="PanopticSegmenter"),
        "size": To("--size 128", reaches="PanopticSegmenter"),
        "squash": To("--no-squash", reaches="PanopticSegmenter"),
        "labels": To("--labels {labels}", reaches="embed_vocabulary"),
        "templates": To("--templates clip", reaches="embed_vocabulary"),
        "min_score": To("--min-score 0.3", reaches="PanopticSegmenter"),
        "overlap": To("--overlap 0.3", reaches="PanopticSegmenter"),
        "input_edges": To("--input-edges 32 64", base="--data {world} --model {published}", reaches="open_published"),
        "metrics": (To("--metrics miou", reaches="sweep_fusion"), To("--metrics ap", reaches="sweep_fusion")),
    },
)

SEMANTIC = Case(
    MEASURE,
    {
        **PIXELS,
        "open_semantic": Stand(lambda given: open_semantic(given["root"], split=given["split"])),
        "evaluate_semantic": Stand(lambda given: reached(given) if next(iter(given["predictions"])) else None),
        "read_label_maps": LAST,
    },
    {
        **reading("Batches"),
        **LABEL_MAPS,
        **segmenting("--data {world} --model {model} --workers 0 --device cpu"),
        "novel": To("--novel {novel}", reaches="evaluate_semantic"),
        "from_results": To("", instead="--data {world} --from-results {maps}", reaches="read_label_maps"),
        "map_ids": To("--map-ids dataset", base="--data {world} --from-results {maps}", reaches="read_label_maps"),
        "all_synonyms": To("--all-synonyms", reaches="evaluate_semantic"),
    },
)

CASES = {
    "evaluate regions": REGIONS,
    "evaluate agreement": AGREEMENT,
    "evaluate retrieval": RETRIEVAL,
    "evaluate global": GLOBAL,
    "evaluate pareto": PARETO,
    "evaluate detection": DETECTION,
    "evaluate semantic": SEMANTIC,
    "evaluate panoptic": PANOPTIC,
}
"""By the words of the command."""
