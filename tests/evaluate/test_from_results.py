"""`--from-results` of `evaluate detection`, `panoptic` and `semantic` on files without a model."""

import contextlib
import io
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from foveate.cli.main import main
from foveate.data.datasets.coco import read_panoptic
from foveate.data.datasets.voc import NAMES
from foveate.data.label_maps import open_semantic
from foveate.data.panoptic import read_panoptic_map
from foveate.data.semantic import read_label_map
from foveate.data.splits import OV_COCO_EXCLUDED, OV_COCO_NOVEL
from foveate.data.world.write import WorldSize, write_world
from foveate.show.map_files import panoptic_categories, panoptic_png, panoptic_record, write_label_map

TWELVE = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR@1", "AR@10", "AR@100")
TWELVE = (*TWELVE, "AR_small", "AR_medium", "AR_large")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "w"
    write_world(folder, WorldSize(train=1, val=4, test=0, pairs=0, seed=0), processes=1)
    return folder


@pytest.fixture
def world(made: Path, tmp_path: Path) -> Path:
    """A copy of the world that tests may change."""
    return shutil.copytree(made, tmp_path / "w")


def put(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def score(kind: str, results: Path, *words: object) -> dict[str, Any]:
    out = results.parent / "score.json"
    main(["evaluate", kind, "--from-results", str(results), *map(str, words), "--out", str(out)])
    return json.loads(out.read_text())


def refused(capsys: pytest.CaptureFixture[str], kind: str, results: Path, *words: object) -> str:
    with pytest.raises(SystemExit) as done:
        score(kind, results, *words)
    assert done.value.code == 2
    return capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ detection


def truth_of(world: Path) -> tuple[Path, dict[str, Any]]:
    path = world / "annotations/instances_val2017.json"
    return path, json.loads(path.read_text())


def results_of(content: dict[str, Any], *, moved: float) -> list[dict[str, Any]]:
    """Detections near the objects, some of another class, with their own masks."""
    draw = np.random.default_rng(0)
    ids = [one["id"] for one in content["categories"]]
    sizes = {one["id"]: (one["height"], one["width"]) for one in content["images"]}
    found = []
    for one in content["annotations"]:
        for _ in range(3):
            box = (np.array(one["bbox"]) + draw.normal(0, moved, 4)).clip(min=1).tolist()
            wrong, (height, width) = draw.random() < 0.2, sizes[one["image_id"]]
            x, y, w, h = box
            polygon = [[x, y + h / 2, x + w / 4, y, x + 3 * w / 4, y, x + w, y + h / 2, x + w / 2, y + h]]
            found.append({"image_id": one["image_id"], "bbox": box, "score": float(draw.random()),
                          "category_id": int(draw.choice(ids)) if wrong else one["category_id"],
                          "segmentation": rle(polygon, height, width)})  # fmt: skip
    return found


def rle(polygons: list[list[float]], height: int, width: int) -> dict[str, Any]:
    from pycocotools import mask

    merged: Any = mask.merge(mask.frPyObjects(polygons, height, width))
    return {"size": [height, width], "counts": merged["counts"].decode()}


def official(truth: Path, results: list[dict[str, Any]], kind: str) -> np.ndarray:
    with contextlib.redirect_stdout(io.StringIO()):
        own = COCO(str(truth))
        run = COCOeval(own, own.loadRes(results), kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats


def test_boxes_and_masks_equal_pycocotools_without_images(world, tmp_path):
    truth, content = truth_of(world)
    shutil.rmtree(world / "val2017")
    results = results_of(content, moved=3.0)
    both = put(tmp_path / "both.json", results)
    found = score("detection", both, "--annotations", truth, "--novel", none_novel(content, tmp_path), "--masks")
    plain = score("detection", both, "--data", world, "--benchmark", "transfer-coco", "--masks")
    masks = [{key: value for key, value in one.items() if key != "bbox"} for one in results]
    only = put(tmp_path / "masks.json", masks)  # the form of COCO's server for segmentation
    alone = score("detection", only, "--annotations", truth, "--benchmark", "transfer-coco", "--masks")
    for kind, official_kind, entries in (("boxes", "bbox", results), ("masks", "segm", masks)):
        theirs = official(truth, [dict(one) for one in entries], official_kind)
        ours = [-1 if plain[kind][name] is None else plain[kind][name] / 100 for name in TWELVE]
        assert np.abs(np.array(ours) - theirs).max() < 1e-9
        assert 0.05 < theirs[0] < 0.9
    assert alone["masks"] == plain["masks"] and found["boxes"]["groups"]["base"]["AP"] == found["boxes"]["AP"]
    assert any("small, medium and large masks are defined by the area of the mask" in rule for rule in plain["rules"])


def none_novel(content: dict[str, Any], folder: Path) -> Path:
    return put(folder / "novel.json", {"base": [one["name"] for one in content["categories"]], "novel": []})


def test_lvis_equals_lvis_api_for_both_namings_of_images(world, tmp_path, monkeypatch):
    lvis = pytest.importorskip("lvis")
    monkeypatch.setattr(np, "float", float, raising=False)  # lvis-api 0.5.3 is older than numpy 1.24
    logging.getLogger("lvis").setLevel(logging.ERROR)
    _, content = truth_of(world)
    ids = [one["id"] for one in content["categories"]]
    for one in content["categories"]:
        one |= {"frequency": "rcf"[one["id"] % 3]}  # and, as some copies, without synonyms
    for image in content["images"]:  # as minival is passed on: file_name beside coco_url
        image["coco_url"] = f"http://host/val2017/{image['file_name']}"
        there = {one["category_id"] for one in content["annotations"] if one["image_id"] == image["id"]}
        image["neg_category_ids"] = [one for one in ids if one not in there][:9]
        image["not_exhaustive_category_ids"] = sorted(there)[:1]
    truth = put(tmp_path / "lvis_minival.json", content)
    results = [{key: value for key, value in one.items() if key != "segmentation"}
               for one in results_of(content, moved=3.0)]  # fmt: skip
    found = score("detection", put(tmp_path / "r.json", results), "--annotations", truth)
    run = lvis.LVISEval(truth_api := lvis.LVIS(str(truth)), lvis.LVISResults(truth_api, results, max_dets=300), "bbox")
    run.run()
    assert found["style"] == "lvis" and found["boxes"]["groups"].keys() >= {"rare", "base", "novel"}
    for name, value in run.get_results().items():
        ours = found["boxes"][{"APs": "AP_small", "APm": "AP_medium", "APl": "AP_large", "ARs@300": "AR_small",
                               "ARm@300": "AR_medium", "ARl@300": "AR_large"}.get(name, name)]  # fmt: skip
        assert (-1 if ours is None else ours / 100) == pytest.approx(value, abs=1e-9), name


@pytest.mark.parametrize(("wide", "reaches"), [(6.6, True), (6.4, False)])
def test_voc_uses_mmdets_rule_of_the_year(tmp_path, wide, reaches):
    # an object of 10 x 10 pixels, corners 11 and 20 as VOC counts; found at 10 .. 19 as mmdet has corners: IoU 1. In
    # the other image its detection holds 7.6 or 7.4 of 10 columns: IoU .76 or .74 (as edges, 6.6 of 9, .73). The
    # difficult object's detection is ignored
    for year in ("VOC2007", "VOC2012"):
        root = tmp_path / year
        put(root / "ImageSets/Main/test.txt", "000001\n000002\n")
        for name in ("000001", "000002"):
            objects = "".join(
                f"<object><name>{what}</name><difficult>{hard}</difficult><bndbox><xmin>{left}</xmin><ymin>11</ymin>"
                f"<xmax>{left + 9}</xmax><ymax>20</ymax></bndbox></object>"
                for what, hard, left in (("cat", 0, 11), ("cat", 1, 61))
            )
            size = "<size><width>100</width><height>50</height></size>"
            put(root / f"Annotations/{name}.xml", f"<annotation>{size}{objects}</annotation>")
        number = NAMES.index("cat") + 1
        rows = [("000001", 0.9, [10, 10, 9, 9]), ("000001", 0.8, [60, 10, 9, 9]), ("000002", 0.7, [30, 10, 9, 9]),
                ("000002", 0.6, [10, 10, wide, 9])]  # fmt: skip
        results = [{"image_id": key, "category_id": number, "bbox": box, "score": value} for key, value, box in rows]
        found = score("detection", put(tmp_path / f"{year}.json", results), "--data", root, "--split", "test")
        # right, ignored, wrong, right: precision 1 to recall 1/2 (6 of 11 recalls), then 2/3, where it is found
        whole, half = {"VOC2007": ((6 + 5 * 2 / 3) / 11, 6 / 11), "VOC2012": (0.5 + 0.5 * 2 / 3, 0.5)}[year]
        by_hand = (whole, whole if reaches else half)
        assert found["style"] == {"VOC2007": "voc07", "VOC2012": "voc12"}[year]
        assert (found["boxes"]["AP50"], found["boxes"]["AP75"]) == pytest.approx([100 * one for one in by_hand])
        assert any("as mmdet for VOC" in rule for rule in found["rules"]) and found["crowds"] == 2
    copy = {"images": [{"id": 1, "height": 50, "width": 100}], "categories": [{"id": 8, "name": "cat"}]}
    notes = [{"id": place, "image_id": 1, "category_id": 8, "bbox": [left, 10, 10, 10], "area": 100, "iscrowd": 0,
              "ignore": place} for place, left in enumerate((10, 60))]  # fmt: skip
    truth = put(tmp_path / "pascal_test2007.json", {**copy, "annotations": notes})
    own = [{**one, "image_id": 1, "category_id": 8} for one in results[:2]]
    found = score("detection", put(tmp_path / "own.json", own), "--annotations", truth, "--style", "voc07")
    assert found["boxes"]["AP75"] == 100 and found["crowds"] == 1


def test_unmeasured_results_are_counted_and_reported(world, tmp_path, capsys):
    truth, content = truth_of(world)
    good = results_of(content, moved=0.0)[0]
    many = [{**good, "bbox": [1, 1, 5, 5], "score": 0.001} for _ in range(103)]  # 104 of a class and image: 4 too many
    results = [good, *many, {**good, "image_id": 10**6}, {**good, "image_id": "x"}, {**good, "category_id": 10**6}]
    path = put(tmp_path / "r.json", results)
    found = score("detection", path, "--annotations", truth, "--benchmark", "transfer-coco")
    told = capsys.readouterr().err
    assert found["dropped"] == {
        "result is of an image that is not measured": {"count": 2, "first": f"{path}: entry 104"},
        "result is of a category that is not measured": {"count": 1, "first": f"{path}: entry 106"},
    }
    assert found["detections"] == 104 and found["beyond_cap"] == 4
    assert "2 ignored: result is of an image" in told and "4 results exceed the maximum" in told
    assert "3 images have no result" in told and "also has masks; add --masks to measure them" in told
    other = next(one["name"] for one in content["categories"] if one["id"] != good["category_id"])
    only = score("detection", path, "--annotations", truth, "--vocab", other)
    assert only["detections"] == 0 and only["boxes"]["AP"] in (0, None)  # asked for another class: none is there
    few = score("detection", path, "--annotations", truth, "--limit", 1)
    assert few["images"] == 1


def test_all_80_coco_categories_count_without_ov_coco(tmp_path, capsys):
    names = [*OV_COCO_NOVEL, *OV_COCO_EXCLUDED, *(f"base {number}" for number in range(48))]
    images = [{"id": number, "height": 50, "width": 50} for number in (1, 2)]
    notes = [{"id": place, "image_id": image, "category_id": label, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0}
             for place, (image, label) in enumerate(((1, 1), (1, 80), (2, 18)))]  # fmt: skip
    categories = [{"id": place, "name": name} for place, name in enumerate(names, start=1)]
    truth = put(tmp_path / "t.json", {"images": images, "annotations": notes, "categories": categories})
    results = put(tmp_path / "r.json", [{**one, "score": 0.9} for one in notes[:2]])
    plain = score("detection", results, "--annotations", truth)
    assert plain["boxes"]["AP"] == pytest.approx(200 / 3) and plain["boxes"]["groups"].keys() == {"all"}
    assert "--benchmark ov-coco measures" in capsys.readouterr().err
    ov = score("detection", results, "--annotations", truth, "--benchmark", "ov-coco")
    assert [ov["boxes"]["groups"][group]["AP50"] for group in ("base", "novel")] == pytest.approx([100, 100])
    assert ov["images"] == 1  # the other holds a left-out category alone
    two = [categories[0], categories[79]]
    few = put(tmp_path / "few.json", {"images": images, "annotations": notes[:2], "categories": two})
    assert "need COCO's 80 categories" in refused(capsys, "detection", results, "--annotations", few, "--benchmark",
                                                  "ov-coco")  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "r.json: need a results file in JSON"),
        ({"images": []}, "need a list of results; got a dict. Is this the annotation file?"),
        ([7], "entry 0: need an object"),
        ([{"image_id": 77}], r"(and all 1 entries): need `image_id`, one of the 4 ids of the images of"),
        ([{"image_id": "KEY"}], "need `category_id`, one of the 32 ids of the categories"),
        ([{"image_id": "KEY", "category_id": 1, "bbox": [1, 1, 2, 2]}], "need `score`, a finite number"),
        ([{"image_id": "KEY", "category_id": 1, "score": 1.0}], "need `bbox`, [x, y, width, height]"),
        ('[{"image_id": KEY, "category_id": 1, "score": 1.0, "bbox": [1, NaN, 2, 2]}]', "of finite numbers"),
        ([{"image_id": "KEY", "category_id": 1, "score": 1.0, "bbox": [1, 1, 2, 2], "segmentation": {"size": [1, 1],
           "counts": "0"}}], "need `segmentation`, compressed run lengths"),
    ],
)  # fmt: skip
def test_wrong_files_are_refused(world, tmp_path, capsys, content, message):
    truth, own = truth_of(world)
    text = content if isinstance(content, str) else json.dumps(content)
    text = text.replace('"KEY"', str(own["images"][0]["id"])).replace("KEY", str(own["images"][0]["id"]))
    assert message in refused(capsys, "detection", put(tmp_path / "r.json", text), "--annotations", truth)


def test_wrong_flags_and_data_are_refused(world, tmp_path, capsys):
    truth, _ = truth_of(world)
    results = put(tmp_path / "r.json", [])
    told = refused(capsys, "detection", results, "--annotations", truth, "--nms", "0.5")
    assert "--nms: is for measuring a model" in told
    assert "--model: is for" in refused(capsys, "semantic", tmp_path, "--data", world, "--model", "foveate-small")
    assert "--mask-pooling: is for" in refused(
        capsys, "panoptic", tmp_path, "--data", world, "--mask-pooling", "masked"
    )
    assert "need annotations to score against" in refused(capsys, "detection", results)
    assert "need one of" in refused(capsys, "detection", results, "--data", tmp_path / "none")
    assert "--limit: need at least 1" in refused(capsys, "detection", results, "--data", world, "--limit", "0")
    for kind, need in (("detection", "--data and --model"), ("panoptic", "--model"), ("semantic", "--model")):
        with pytest.raises(SystemExit) as done:
            main(["evaluate", kind, "--data", str(world)])
        told = capsys.readouterr().err
        assert done.value.code == 2 and f"foveate: {need}: need" in told and "--from-results" in told


# ------------------------------------------------------------------------------------------------------------- panoptic


@pytest.fixture
def panoptic(world: Path, tmp_path: Path) -> tuple[Path, Path, dict[str, Any]]:
    """(world, folder of the ground truth as predictions, their JSON as other programs write it)."""
    folder = shutil.copytree(world / "annotations/panoptic_val2017", tmp_path / "pred")
    content = json.loads((world / "annotations/panoptic_val2017.json").read_text())
    entries = [
        {**one, "segments_info": [{"id": info["id"], "category_id": info["category_id"]}
                                  for info in one["segments_info"]]}
        for one in content["annotations"]
    ]  # fmt: skip
    return world, folder, {"annotations": entries}


def test_pq_of_the_ground_truth_is_100(panoptic, tmp_path, capsys):
    world, folder, content = panoptic
    shutil.rmtree(world / "val2017")
    put(folder / "predictions.json", content)
    found = score("panoptic", folder, "--data", world)
    assert [found["all"][name] for name in ("PQ", "SQ", "RQ")] == [100, 100, 100] == [*found["all"].values()][:3]
    assert "100.0000" in capsys.readouterr().out and "matched by id" in found["rules"][1]
    extra = {**content["annotations"][0], "image_id": 10**6}
    beside = put(tmp_path / "pred.json", {"annotations": [*content["annotations"], extra]})  # as COCO's own: X.json, X/
    told = score("panoptic", beside, "--data", world)
    assert told["all"]["PQ"] == 100 and told["dropped"]["result is of an image that is not measured"]["count"] == 1
    # one segment taken for another class: missed there, false here
    content["annotations"][0]["segments_info"][0]["category_id"] = next(
        one["category_id"]
        for one in content["annotations"][0]["segments_info"]
        if one["category_id"] != content["annotations"][0]["segments_info"][0]["category_id"]
    )
    put(folder / "predictions.json", content)
    assert score("panoptic", folder, "--data", world)["all"]["PQ"] < 100


def test_output_of_segment_is_matched_by_name(panoptic, tmp_path):
    world, folder, _ = panoptic
    data = read_panoptic(world / "annotations/panoptic_val2017.json", None, folder)
    names, things = [one.name for one in data.categories], [one.is_thing for one in data.categories]
    out, images, annotations = tmp_path / "own", [], []
    out.mkdir()
    for number, record in enumerate(reversed(data.records), start=1):  # numbered otherwise than the data
        one = read_panoptic_map(record, data.categories)
        (out / f"{record.path.stem}.png").write_bytes(panoptic_png(one))
        images.append({"id": number, "file_name": f"a/{record.path.name}"})
        annotations.append(panoptic_record(one, image_id=number, file_name=f"{record.path.stem}.png"))
    own = {"images": images, "annotations": annotations, "categories": panoptic_categories(names, things)}
    put(out / "panoptic.json", own)
    found = score("panoptic", out, "--data", world)
    assert found["all"]["PQ"] == 100 and "images are matched by name, as the file's ids differ" in found["rules"][1]


def broken(panoptic, change: str) -> None:
    _, folder, content = panoptic
    entries = content["annotations"]
    png = folder / entries[0]["file_name"]
    match change:
        case "no entry":
            del entries[1:3]
        case "no png":
            png.unlink()
        case "size":
            Image.open(png).resize((9, 9)).save(png)
        case "damaged":
            png.write_bytes(png.read_bytes()[:60])
        case "category":
            entries[0]["segments_info"][0]["category_id"] = 999
        case "twice":
            entries.append(entries[0])
        case "in png alone":
            del entries[0]["segments_info"][0]
        case "in json alone":
            entries[0]["segments_info"].append({"id": 7, "category_id": 1})
        case "outside":
            entries[0]["file_name"] = "../x.png"
        case "boxes":
            entries[0] = {"image_id": 1, "bbox": [1, 1, 2, 2]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no entry", "need a prediction for each of the 4 images, as panopticapi; 2 have none"),
        ("no png", "need the PNG of each of the 4 predictions; 1 do not exist"),
        ("size", "its header states 9 x 9"),
        ("damaged", "damaged or truncated"),
        ("category", "`category_id`, one of the 42 of the data; got 999"),
        ("twice", "need one annotation per image; got a second one"),
        ("in png alone", "which is not listed"),
        ("in json alone", "need pixels of each segment; got none of [7]"),
        ("outside", "`file_name`, a PNG inside"),
        ("boxes", "need `segments_info`, a list"),
    ],
)
def test_wrong_panoptic_files_are_refused(panoptic, capsys, change, message):
    broken(panoptic, change)
    put(panoptic[1] / "p.json", panoptic[2])
    assert message in refused(capsys, "panoptic", panoptic[1], "--data", panoptic[0])


def test_folders_without_panoptic_files_are_refused(panoptic, tmp_path, capsys):
    world, folder, content = panoptic
    assert "need a folder with one JSON file beside the PNGs; got none" in refused(capsys, "panoptic", folder, "--data",
                                                                                   world)  # fmt: skip
    put(folder / "a.json", content)
    put(folder / "b.json", content)
    assert "got a.json, b.json. Name the file" in refused(capsys, "panoptic", folder, "--data", world)
    assert score("panoptic", folder / "b.json", "--data", world)["all"]["PQ"] == 100
    assert "it does not exist" in refused(capsys, "panoptic", tmp_path / "gone", "--data", world)
    for text in ("[", "[]", '{"annotations": 3}'):
        assert "c.json: need" in refused(capsys, "panoptic", put(tmp_path / "c.json", text), "--data", world)
    (world / "annotations/panoptic_val2017.json").unlink()
    assert "need panoptic annotations of split val" in refused(capsys, "panoptic", folder / "b.json", "--data", world)


# ------------------------------------------------------------------------------------------------------------- semantic


def write_maps(world: Path, folder: Path, *, bits: int = 8) -> Path:
    """The ground truth as indices in the list of classes, one PNG per image."""
    data = open_semantic(world, split="val")
    folder.mkdir()
    for record in data.dataset.records:
        labels = read_label_map(record, data).labels.numpy()
        values = np.where(labels < 0, 2**bits - 1, labels).astype(np.uint8 if bits == 8 else np.uint16)
        Image.fromarray(values).save(folder / f"{record.path.stem}.png")
    return folder


@pytest.mark.parametrize("bits", [8, 16])
def test_miou_of_the_ground_truth_is_100(world, tmp_path, capsys, bits):
    folder = write_maps(world, tmp_path / "maps", bits=bits)
    found = score("semantic", folder, "--data", world)
    assert found["mIoU"] == pytest.approx(100) and found["pixels_without_prediction"] == 0
    assert found["groups"].keys() == {"seen", "unseen"}  # base and novel, as the root says
    first, *_ = sorted(folder.glob("*.png"))
    Image.open(first).save(folder / "other.png")
    first.unlink()
    part = score("semantic", folder, "--data", world)
    told = capsys.readouterr().err
    assert part["mIoU"] < 100 and part["images_without_result"]["count"] == 1 and "1 images have no result" in told
    assert part["dropped"]["result is of an image that is not measured"]["count"] == 1


def test_miou_needs_no_images(world, tmp_path, capsys):
    folder = write_maps(world, tmp_path / "maps")
    shutil.rmtree(world / "val2017")
    assert score("semantic", folder, "--data", world)["mIoU"] == pytest.approx(100)
    assert "could not be read" not in capsys.readouterr().err


def test_numbers_of_the_data_sets_own_maps(world, tmp_path, capsys):
    data, folder = open_semantic(world, split="val"), tmp_path / "maps"
    folder.mkdir()
    numbers = np.array([*(one.id for one in data.dataset.categories), 0], dtype=np.uint8)  # -1, the last: none
    for record in data.dataset.records:
        Image.fromarray(numbers[read_label_map(record, data).labels.numpy()]).save(folder / f"{record.path.stem}.png")
    assert score("semantic", folder, "--data", world, "--map-ids", "dataset")["mIoU"] == pytest.approx(100)
    told = refused(capsys, "semantic", folder, "--data", world)
    assert "need numbers of the data's 42 classes; got 42" in told and ".png" in told and "See --map-ids" in told


def test_output_of_segment_measures_as_the_model(world, tmp_path):
    data = open_semantic(world, split="val")
    vocabulary = tmp_path / "names.txt"
    vocabulary.write_text("\n".join(["zebra crossing", *reversed(data.names)]))  # another order, and one more
    asked = ["--model", "foveate-small", "--size", "64", "--workers", "0", "--device", "cpu"]
    out = tmp_path / "s"
    main(["segment", str(world / "val2017"), "--vocab", str(vocabulary), "--out", str(out), *asked])
    found = score("semantic", out, "--data", world)
    assert "1 are none of the data's, such as 'zebra crossing'" in found["rules"][1]
    # the same by hand, from the maps that were written
    same = tmp_path / "same"
    same.mkdir()
    for record in data.dataset.records:
        values = np.array(Image.open(out / f"{record.path.stem}.png")).astype(int)
        values = np.where((values == 255) | (values == 0), 255, len(data.names) - values)
        Image.fromarray(values.astype(np.uint8)).save(same / f"{record.path.stem}.png")
    plain = score("semantic", same, "--data", world)
    assert found["per_class"] == plain["per_class"] and found["mIoU"] > 0


def test_wrong_label_maps_are_refused(world, tmp_path, capsys):
    folder = write_maps(world, tmp_path / "maps")
    first, second, *_ = sorted(folder.glob("*.png"))
    whole = first.read_bytes()
    for change, message in (
        (Image.open(first).resize((9, 9)), f"{first}: need"),
        (Image.open(first).convert("RGB"), "need one integer of 8 or 16 bits per pixel; got colours"),
        (Image.fromarray(np.full_like(np.array(Image.open(first)), 99)), "got 99 in row 0"),
    ):
        change.save(first)
        assert message in refused(capsys, "semantic", folder, "--data", world)
        first.write_bytes(whole)
    first.write_bytes(whole[:50])
    assert str(first) in refused(capsys, "semantic", folder, "--data", world)
    assert "need a folder of label maps" in refused(capsys, "semantic", second, "--data", world)
    for one in folder.glob("*.png"):
        one.rename(folder / f"x{one.name}")
    assert "none of its 4 maps is" in refused(capsys, "semantic", folder, "--data", world)
    put(folder / "segments.json", {"classes": [["unicorn"]], "images": []})
    assert "need classes of" in refused(capsys, "semantic", folder, "--data", world)
    put(folder / "segments.json", {"classes": 3})
    assert "the lists `classes` and `images`" in refused(capsys, "semantic", folder, "--data", world)


def test_classes_are_matched_by_name(tmp_path):
    root = tmp_path / "ade"
    put(root / "objectInfo150.txt", "Idx\tRatio\tTrain\tVal\tStuff\tName\n" + "".join(
        f"{number}\t0\t0\t0\t0\t{name}\n" for number, name in
        enumerate(["wall", "building, edifice", *(f"thing {number}" for number in range(148))], start=1)))  # fmt: skip
    for folder in ("images/validation", "annotations/validation"):
        (root / folder).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(root / "images/validation/ADE_val_00000001.jpg")
    Image.fromarray(np.repeat(np.array([[0, 1, 2, 2]], dtype=np.uint8), 2, axis=1).repeat(8, axis=0)).save(
        root / "annotations/validation/ADE_val_00000001.png"
    )
    out = tmp_path / "out"
    out.mkdir()
    from foveate.types import LabelMap

    labels = torch.tensor([[0, 0, 1, 1, 0, 0, 0, 0]]).repeat(8, 1)  # edifice first, then wall
    write_label_map(out / "000001.png", LabelMap(labels), classes=2)
    image = {"id": "b/ADE_val_00000001.jpg", "file_name": "000001.png"}
    put(out / "segments.json", {"classes": [["edifice"], ["wall"]], "images": [image]})
    found = score("semantic", out, "--data", root)
    assert found["mIoU"] == 100 and found["classes"]["with_ground_truth"] == 2
