"""The wiring of the commands that find, embed and draw."""

from types import SimpleNamespace

import torch
from recording import Stand
from wiring import LAST, MEASURED, NOTHING, PIXELS, THROUGH, Case, To, detector, fusing, give, segmenting

from foveate.types import Detections

NO_BOXES = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
ASK = "--out {out}/asked --workers 0 --device cpu"
FED = {
    "batch": To("--batch 3", reaches="Batches"),
    "workers": To("--workers 1", reaches="Batches"),
    "strict": To("--strict", reaches="Batches"),
    "device": To("--device cuda", reaches="choose_device"),
}
WRITTEN = {"write_image": NOTHING, "write_whole": Stand(give(None), without=("content",))}

DETECT = Case(
    f"{{images}} --model some {ASK}",
    {
        **MEASURED,
        **WRITTEN,
        "load_detector": Stand(detector),
        "Batches": THROUGH,
        "FViT.candidates": Stand(give([SimpleNamespace(height=2, width=2)])),
        "fvit.fusion:detect": Stand(give(NO_BOXES)),
        "draw_detections": NOTHING,
    },
    {
        **FED,
        **fusing("detect"),
        "images": To("", instead=f"{{more}} --model some {ASK}", reaches="Batches"),
        "model": To("--model another", reaches="load_detector"),
        "out": To("--out {out}/another", reaches="write_whole write_image"),
        "vocab": To("--vocab 'plaid cross, tree, sky'", reaches="embed_vocabulary detect draw_detections"),
        "draw": To("--draw 0.5", reaches="draw_detections"),
        "fusion": To("--fusion 0.1,0.2", reaches="detect"),
    },
)
NAMES = "--vocab 'dog, cat, tree'"
MASKED = f"{{images}} --model {{generator}} --panoptic {NAMES} {ASK}"

SEGMENT = Case(
    f"{{images}} --model some {NAMES} {ASK}",
    {
        **PIXELS,
        **WRITTEN,
        "write_label_map": NOTHING,
        "draw_label_map": NOTHING,
        "PanopticSegmenter.panoptic": Stand(give(SimpleNamespace(ids=torch.zeros(2, 2)))),
        "draw_panoptic": NOTHING,
        "panoptic_png": NOTHING,
        "panoptic_record": NOTHING,
        "panoptic_categories": THROUGH,
    },
    {
        **FED,
        **segmenting(f"{{images}} --model {{model}} --vocab 'dog, cat' {ASK}"),
        "images": To("", instead=f"{{more}} --model some {NAMES} {ASK}", reaches="Batches write_label_map"),
        "out": To("--out {out}/another", reaches="write_whole write_image write_label_map"),
        "vocab": To("--vocab 'dog, cat'", reaches="embed_vocabulary draw_label_map write_label_map"),
        "panoptic": To("--panoptic", base=MASKED.replace("--panoptic", ""), reaches="panoptic_png write_whole"),
        "stuff": To("--stuff tree", base=MASKED, reaches="PanopticSegmenter panoptic_categories"),
        "min_score": To("--min-score 0.3", base=MASKED, reaches="PanopticSegmenter"),
        "overlap": To("--overlap 0.3", base=MASKED, reaches="PanopticSegmenter"),
    },
)
FEATURES = "--out {out}/f.safetensors --model some --workers 0 --device cpu"

EMBED = Case(
    f"{{images}} {FEATURES}",
    {**MEASURED, "check_file_boxes": THROUGH, "make_parts": LAST},
    {
        "accept_annotations": To("--accept-annotations", given="--boxes {image_boxes}", reaches="check_file_boxes"),
        "images": To("", instead=f"{{more}} {FEATURES}", reaches="make_parts"),
        "out": To("--out {out}/g.safetensors", reaches="make_parts"),
        "what": To("--what dense", reaches="make_parts"),
        "boxes": To("--boxes {image_boxes}", reaches="make_parts"),
        "model": To("--model another", reaches="load"),
        "pretrained": To("--pretrained weights.pt", reaches="load"),
        "size": To("--size 64", given="--what dense", reaches="make_parts"),
        "head": To("--head sclip", given="--what dense", reaches="make_parts"),
        "batch": To("--batch 3", reaches="make_parts"),
        "workers": To("--workers 1", reaches="make_parts"),
        "device": To("--device cuda", reaches="choose_device"),
        "dtype": To("--dtype float16", reaches="make_parts"),
        "strict": To("--strict", reaches="make_parts"),
    },
)
DRAW = "--data {images} --model some --out {out}/drawn.png --device cpu"


def drawing(call: str) -> dict[str, To]:
    """The flags of every command that draws images, and the call that gets them."""
    return {
        "data": To("--data {more}", reaches=call),
        "model": To("--model another", reaches=f"load {call}"),
        "out": To("--out {out}/other.png", reaches=call),
        "reference": To("--reference another", reaches=f"load {call}"),
        "pretrained": To("--pretrained weights.pt", reaches="load"),
        "split": To("--split train", given="--data {world}", reaches=f"open_data {call}"),
        "limit": To("--limit 1", given="--data {world}", reaches=call),
        "size": To("--size 64", reaches=call),
        "head": To("--head sclip", reaches=call),
        "pad": To("--pad zero", reaches=call),
        "device": To("--device cuda", reaches="choose_device"),
    }


KMEANS = Case(
    DRAW,
    {**MEASURED, "kmeans_sheet": LAST},
    {
        **drawing("kmeans_sheet"),
        "clusters": To("--clusters 3", reaches="kmeans_sheet"),
        "seed": To("--seed 1", reaches="kmeans_sheet"),
    },
)

SIMILARITY = Case(
    f"{DRAW} --vocab dog",
    {**MEASURED, "similarity_sheet": LAST},
    {
        **drawing("similarity_sheet"),
        "vocab": To("--vocab 'cat, tree'", reaches="similarity_sheet"),
        "templates": To("--templates vild", reaches="similarity_sheet"),
    },
)

SIZES = Case(
    "one=one.json --out {out}/drawn.png",
    {"read_sweep": NOTHING, "sizes_chart": LAST},
    {
        "results": To("", instead="one=one.json two.json --out {out}/drawn.png", reaches="read_sweep sizes_chart"),
        "out": To("--out {out}/other.png", reaches="sizes_chart"),
        "what": To("--what stuff", reaches="read_sweep sizes_chart"),
    },
)

CASES = {
    "segment": SEGMENT,
    "detect": DETECT,
    "show similarity": SIMILARITY,
    "embed": EMBED,
    "show kmeans": KMEANS,
    "show sizes": SIZES,
}
"""By the words of the command."""
