"""The wiring of the commands that export, convert and render, of the demo and of the paper's tables."""

from types import SimpleNamespace

import torch
from recording import Stand, reached
from wiring import LAST, MEASURED, NOTHING, THROUGH, UNSEEN, WIDTH, Case, To, give, rows_of, shared_clip, tiny_clip

from foveate.data.records import Dataset
from foveate.heads.fvit.product import Network as FViTNetwork

EXPORT = Case(
    "--model some --out {out}",
    {"clip.load:load": Stand(shared_clip), "export_clip": LAST},
    {
        "model": To("--model another", reaches="load"),
        "out": To("--out {out}/other.onnx", reaches="export_clip"),
        "pretrained": To("--pretrained weights.pt", reaches="load"),
        "what": To("--what image", reaches="export_clip"),
        "format": To("--format torch", reaches="export_clip"),
        "head": To("--head sclip", reaches="export_clip"),
        "size": To("--size 64", reaches="export_clip"),
        "opset": To("--opset 18", reaches="export_clip"),
    },
)
HEAD_FILES = {"fvit.pth": ("F-ViT", {}), "catseg.pth": ("CAT-Seg", {}), "odise.pth": ("ODISE", {})}
OF_FVIT = "fvit.pth {out}/c --clip some --annotations {instances}"
OF_ODISE = "odise.pth {out}/c --clip some --annotations {panoptic} --encoder {diffusion}"
NETWORK = (False, 10, 0, False, True, "imagenet", "bilinear")

CONVERT = Case(
    "foveate-small {out}/c",
    {
        "clip.load:load": Stand(tiny_clip),
        "published_head": Stand(lambda given: HEAD_FILES.get(given["path"].name)),
        "folder_written_whole": THROUGH,
        "save_clip": Stand(reached, without=("clip", "folder")),  # a temporary folder, of a random name
        "save_huggingface": Stand(reached, without=("folder",)),
        "embed_vocabulary": Stand(rows_of),
        "tower_digest": UNSEEN,
        # F-ViT
        "take_apart": Stand(give(SimpleNamespace(classes=32, text=None, unused=[]))),
        "put_tower": NOTHING,
        "classes_of_annotations": THROUGH,
        "published_benchmark": Stand(give("ov-coco")),
        "published_network": Stand(lambda given: FViTNetwork(given["size"], None, "taps", 8, 8, *NETWORK)),
        "fvit.published:build_published": NOTHING,
        "save_detector": Stand(reached, without=("folder",)),
        # CAT-Seg
        "catseg.published:write_published": Stand(reached, without=("folder",)),
        # ODISE
        "rename_odise": Stand(give(SimpleNamespace(state={"head.text.weight": torch.zeros(1, WIDTH)}))),
        "odise_file:network_of": NOTHING,
        "build_odise": LAST,
    },
    {
        "source": To("", instead="another {out}/c", reaches="load"),
        "out": To("", instead="foveate-small {out}/d", reaches="folder_written_whole"),
        "to": To("--to hf", reaches="save_huggingface"),
        "model": To("--model ViT-B-32", reaches="load"),
        "text_from": To("--text-from another", reaches="load"),
        "dtype": To("--dtype float16", reaches="save_clip"),
        "clip": To("--clip another", base=OF_FVIT, reaches="load save_detector"),
        "annotations": To("--annotations {world}/annotations/instances_val2017.json", base=OF_FVIT,
                          reaches="classes_of_annotations"),
        "labels": To("--labels {labels}", base=OF_ODISE, reaches="build_odise"),
        "encoder": To("--encoder {other_diffusion}", base=OF_ODISE, reaches="network_of"),
        "novel": To("--novel {novel}", base=OF_FVIT, reaches="classes_of_annotations save_detector"),
        "benchmark": To("--benchmark ov-lvis-b", base=OF_FVIT, reaches="save_detector"),
        "size": To("--size 64", base=OF_FVIT, reaches="published_network save_detector"),
        "residual": To("--residual cls", base="catseg.pth {out}/c", reaches="write_published"),
        "vocab": To("--vocab 'dog, cat'", base="catseg.pth {out}/c", reaches="write_published"),
    },
)  # fmt: skip

ADE_FULL = Case(
    "{images} --out {out}/maps",
    {
        "list_ade_full": Stand(give(SimpleNamespace(ids=()))),
        "data.labels:read_labels": THROUGH,
        "convert_ade_full": Stand(give(0)),
    },
    {
        "root": To("", instead="{more} --out {out}/maps", reaches="list_ade_full convert_ade_full"),
        "out": To("--out {out}/other", reaches="convert_ade_full"),
        "split": To("--split train", reaches="convert_ade_full"),
        "labels": To("--labels {labels}", reaches="read_labels convert_ade_full"),
    },
)

CONTEXT = Case(
    "{images} --out {out}/maps --labels {labels}",
    {
        "read_context_labels": Stand(lambda given: SimpleNamespace(ids=(), path=given["path"])),
        "convert_context": Stand(give(0)),
    },
    {
        "mats": To("", instead="{more} --out {out}/maps --labels {labels}", reaches="convert_context"),
        "out": To("--out {out}/other", reaches="convert_context"),
        "labels": To("--labels {names}", reaches="convert_context"),
        "only": To("--only {names}", reaches="convert_context"),
    },
)

WORLD = Case(
    "{out}/w",
    {"write_world": Stand(give(None), without=("progress",))},
    {
        "folder": To("", instead="{out}/v"),
        "train": "--train 1",
        "val": "--val 1",
        "test": "--test 1",
        "pairs": "--pairs 1",
        "seed": "--seed 1",
        "workers": "--workers 1",
    },
)

DEMO = Case(
    "--out {out}/demo --device cpu",
    {
        **MEASURED,
        "write_world": Stand(give(None), without=("progress",)),
        "open_data": Stand(give(Dataset("test", (), (), {}))),
        "evaluate_regions": Stand(give({})),
        "evaluate_agreement": Stand(give({})),
        "colour_bound": Stand(give({})),
        "distill:run": NOTHING,
        "kmeans_sheet": LAST,
    },
    {
        "out": To("--out {out}/other", reaches="write_world open_data run load kmeans_sheet"),
        "train": To("--train 7", reaches="write_world"),
        "test": To("--test 7", reaches="write_world"),
        "steps": To("--steps 7", reaches="run"),
        "seed": To("--seed 1", reaches="write_world run evaluate_agreement"),
        "device": To("--device cuda", reaches="choose_device run"),
    },
)

RECIPES = Case("", {}, {"name": To("", instead="world"), "format": "--format json"}, prints=True)
TABLES = "--out {out}/r --dry-run --device cpu"

REPRODUCE = Case(
    f"tab1 {TABLES}",
    {
        "_run_all": Stand(give({})),
        "page:write_results": Stand(give([])),
        "write_page": NOTHING,
    },
    {
        "tables": To("", instead=f"tab2 {TABLES}"),
        "data": "--data {world}",
        "out": "--out {out}/s",
        "page": To("--page {out}/page.md", base="tab1 --out {out}/r", reaches="write_results write_page"),
        "model": To("--model ViT-B-16 --pretrained w.pt"),
        "pretrained": To("--pretrained v.pt", given="--model ViT-B-16 --pretrained w.pt"),
        "cnn": To("--cnn RN50:openai", base=f"figs {TABLES}"),
        "seed": "--seed 5",
        "steps": "--steps 7",
        "limit": "--limit 7",
        "jobs": To("--jobs 1", base="tab1 --out {out}/r", reaches="_run_all"),
        "workers": "--workers 1",
        "device": "--device cuda",
        "dry_run": To("--dry-run", base="tab1 --out {out}/r", reaches="_run_all write_page"),
    },
    prints=True,
)

CASES = {
    "demo": DEMO,
    "convert": CONVERT,
    "export": EXPORT,
    "world": WORLD,
    "convert-maps ade-full": ADE_FULL,
    "convert-maps context": CONTEXT,
    "recipes": RECIPES,
    "reproduce": REPRODUCE,
}
"""By the words of the command."""
