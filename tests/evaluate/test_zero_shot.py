"""Zero-shot evaluation of image embeddings: readers, ranks by hand, and slow loops with only the libraries."""

import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from foveate.cli.main import main
from foveate.clip.io.weights import save_clip
from foveate.clip.text import embed_vocabulary
from foveate.data.batches import Loading
from foveate.data.captions import only_captioned, with_captions
from foveate.data.images import read_image
from foveate.data.records import Dataset
from foveate.data.sources import open_data
from foveate.errors import InputError
from foveate.evaluate.crops import CropPacker
from foveate.evaluate.labelled_images import annotated_things, class_folders, open_labelled
from foveate.evaluate.zero_shot import accuracies, central_square, evaluate_global, recall_both_ways
from foveate.ops.resample import crop_and_resize, normalize

# of image 1, 2, ...: 2 and 4 share a caption, 1 has the same one twice and a sixth that does not count, 5 has none
SAID = {1: ["a cup", "a cup", "b", "c", "d", "never"], 2: ["the dog "], 3: ["a bus", "grass"], 4: ["the dog"]}


def write_captions(root: Path) -> Path:
    images = json.loads((root / "annotations/instances_val2017.json").read_text())["images"]
    said = [(image, text) for image, texts in SAID.items() for text in texts]
    notes = [{"id": place, "image_id": image, "caption": text} for place, (image, text) in enumerate(said)]
    path = root / "annotations/captions_val2017.json"
    path.write_text(json.dumps({"images": images, "annotations": notes}))
    return path


@pytest.fixture(scope="module")
def captions(coco, tmp_path_factory) -> Path:
    """The tiny COCO root with captions."""
    root = tmp_path_factory.mktemp("captions")
    shutil.copytree(coco, root, dirs_exist_ok=True)
    write_captions(root)
    return root


@pytest.fixture(scope="module")
def folders(coco, tmp_path_factory) -> Path:
    """The five images in two class folders, with names that differ from the folders'."""
    root = tmp_path_factory.mktemp("folders")
    for number, name in enumerate(("n02", "n01", "n02", "n02", "n01"), start=1):
        (root / "set" / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(coco / f"val2017/{number}.png", root / "set" / name)
    (root / "names.json").write_text(json.dumps({"n01": ["cup", "mug"], "n02": "wild dog", "n03": "bus"}))
    return root


def read_captioned(root: Path) -> Dataset:
    return only_captioned(with_captions(open_data(root, split="val"), root=root, split="val"))


def embed(clip, image: torch.Tensor, box: list[float]) -> torch.Tensor:
    crop = crop_and_resize(image, torch.tensor([box], dtype=torch.float32), size=clip.native_size)
    return clip.encode_image(normalize(crop, mean=clip.mean, std=clip.std))[0]


# ------------------------------------------------------------------------------------------------------------- by hand


def test_accuracies_by_hand():
    """Class 0: one of three right; class 2: one of one. Mean (1/3 + 1) / 2, overall 2 of 4; class 1 does not count."""
    found = accuracies(torch.tensor([0, 7, 3, 0]), torch.tensor([0, 0, 0, 2]), among=9)
    assert found["mean"] == {"top1": pytest.approx(200 / 3), "top5": pytest.approx(100 * (2 / 3 + 1) / 2)}
    assert found["overall"] == {"top1": 50.0, "top5": 75.0} and found["count"] == 4
    few = accuracies(torch.tensor([0, 2]), torch.tensor([0, 2]), among=3)
    assert few["overall"] == {"top1": 50.0, "top5": None} and few["mean"]["top5"] is None


def test_the_central_square():
    assert central_square(height=40, width=57).tolist() == [[8, 0, 48, 40]]  # 17 pixels too many: 8 left, 9 right
    assert central_square(height=57, width=40).tolist() == [[0, 8, 40, 48]]


def test_equal_captions_are_right_answers_of_one_another():
    """Two images share caption 0; image 0 is less similar to it than to caption 1, which only image 2 has."""
    images = F.normalize(torch.tensor([[0.6, 0.8], [1.0, 0.1], [0.0, 1.0]]), dim=1)
    texts = torch.eye(2)
    found = recall_both_ways(images, texts, [[0], [0], [1]])
    # image 0 prefers the wrong text: rank 1; images 1 and 2 rank 0
    assert found["image_to_text"] == {"r1": pytest.approx(200 / 3), "r5": None, "r10": None, "count": 3}
    # text 0 is said twice, its best right image is 1: both askings rank 0; text 1 finds image 2
    assert found["text_to_image"] == {"r1": 100.0, "r5": None, "r10": None, "count": 3}  # 5 of 3 is everything


def test_a_repeated_caption_counts_repeatedly_among_the_answers():
    """Five images have the wrong caption 1, so image 0's own is the sixth: not among the first five."""
    images = torch.tensor([[0.0, 1.0], *[[0.0, 1.0]] * 5])
    found = recall_both_ways(images, torch.eye(2), [[0], *[[1]] * 5])
    assert found["image_to_text"] == {
        "r1": pytest.approx(500 / 6),
        "r5": pytest.approx(500 / 6),
        "r10": None,
        "count": 6,
    }
    # caption 0 scores 0 with all: five wrong images tie and count against it; caption 1 ties with image 0 alone
    assert found["text_to_image"] == {"r1": 0.0, "r5": pytest.approx(500 / 6), "r10": None, "count": 6}


def test_recall_against_a_loop(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    images, texts = (F.normalize(torch.randn(n, 4, generator=generator), dim=1) for n in (30, 50))
    said = [
        torch.randint(0, 50, (int(n),), generator=generator).tolist()
        for n in torch.randint(1, 6, (30,), generator=generator)
    ]
    answers = [text for own in said for text in own]
    to_text = []
    for image, own in zip(images, said, strict=True):
        best = max(float(image @ texts[text]) for text in own)
        to_text.append(sum(text not in own and float(image @ texts[text]) >= best for text in answers))
    to_image = []
    for text in answers:
        right = [image for image in range(30) if text in said[image]]
        best = max(float(images[image] @ texts[text]) for image in right)
        wrong = [image for image in range(30) if image not in right]
        to_image.append(sum(float(images[image] @ texts[text]) >= best for image in wrong))
    monkeypatch.setattr("foveate.evaluate.zero_shot.QUERY_BATCH", 7)  # in several blocks
    found = recall_both_ways(images, texts, said)
    for way, ranks in (("image_to_text", to_text), ("text_to_image", to_image)):
        for top in (1, 5, 10):
            assert found[way][f"r{top}"] == pytest.approx(100 * sum(rank < top for rank in ranks) / len(ranks))
        assert found[way]["count"] == len(ranks)


# ------------------------------------------------------------------------------------------------------------- readers


def write_shard(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_captions_of_tar_shards(clip, coco, tmp_path):
    image = (coco / "val2017/1.png").read_bytes()
    write_shard(tmp_path / "a.tar", {"x.png": image, "x.txt": b" a cup\n", "y.png": image, "z.txt": b"none"})
    read = only_captioned(with_captions(open_data(tmp_path, split="val"), root=tmp_path, split="val"))
    found = evaluate_global({"model": clip}, captioned=read)
    assert found["retrieval"]["images"] == found["retrieval"]["captions"] == 1  # y has no text, z no image
    assert sum(one.count for one in read.ignored.values()) == 2


def test_class_folders(folders):
    read = class_folders(open_data(folders / "set", split="val"), names=folders / "names.json")
    assert read.classes.classes == (("cup", "mug"), ("wild dog",))
    assert read.by_image == {"n01/2.png": 0, "n01/5.png": 0, "n02/1.png": 1, "n02/3.png": 1, "n02/4.png": 1}


def test_class_folders_that_are_no_names_are_refused(coco, tmp_path):
    for folders, message in (
        (("n01440764", "n01443537"), "2 of 2 are WordNet ids, such as n01440764. Give their names: --labels"),
        (("0", "dog"), "1 of 2 are numbers, such as 0"),
        (("train", "val"), r"found the splits val, train. Give the folder of one: --data .*/x/val\.$"),
        (("Test",), r"--data .*/x/Test\.$"),
        (("traffic_light", "Traffic light"), "'Traffic light' and 'traffic_light', which are compared as the same"),
    ):
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
        for folder in folders:
            (tmp_path / "x" / folder / "in").mkdir(parents=True)
            shutil.copy(coco / "val2017/1.png", tmp_path / "x" / folder / "in/1.png")
        with pytest.raises(InputError, match=message):
            class_folders(open_data(tmp_path / "x", split="val"))
    for folder in ("train", "car"):  # a vehicle among others
        (tmp_path / "y" / folder).mkdir(parents=True)
        shutil.copy(coco / "val2017/1.png", tmp_path / "y" / folder)
    assert class_folders(open_data(tmp_path / "y", split="val")).classes.names == ("car", "train")


def test_a_class_folder_without_images_competes_and_is_noted(folders, tmp_path, capsys):
    shutil.copytree(folders / "set", tmp_path / "set")
    for name in ("n03", ".cache", "__MACOSX"):
        (tmp_path / "set" / name).mkdir()
    found = class_folders(open_data(tmp_path / "set", split="val"), names=folders / "names.json")
    assert found.classes.names == ("cup", "wild dog", "bus") and set(found.by_image.values()) == {0, 1}
    assert found.dataset.ignored_lines() == ["1 class folders have no image, and compete as classes: n03"]
    # ImageNet's index of classes, and a name of two folders
    index = {"0": ["n01440764", "crane"], "1": ["n01443537", "crane"]}
    (tmp_path / "index.json").write_text(json.dumps(index))
    (tmp_path / "set/n01").rename(tmp_path / "set/n01440764")
    (tmp_path / "set/n02").rename(tmp_path / "set/N01443537")
    (tmp_path / "set/n03").rmdir()
    found = class_folders(open_data(tmp_path / "set", split="val"), names=tmp_path / "index.json")
    assert found.classes.names == ("crane", "crane")
    assert "'crane' is the name of several folders" in capsys.readouterr().err


def test_wrong_class_folders_are_refused(folders, coco, tmp_path):
    with pytest.raises(InputError, match="DIR/CLASS/IMAGE"):
        class_folders(open_data(coco / "val2017", split="val"))
    shutil.copytree(folders / "set/n01", tmp_path / "set/n01")
    with pytest.raises(InputError, match="at least two; got only n01"):
        class_folders(open_data(tmp_path / "set", split="val"))
    for names, message in (
        ({"n01": "cup"}, "first n02"),
        ({"n01": "cup", "n02": []}, "for n02"),
        ([], "folder to name"),
    ):
        (tmp_path / "names.json").write_text(json.dumps(names))
        with pytest.raises(InputError, match=message):
            class_folders(open_data(folders / "set", split="val"), names=tmp_path / "names.json")


def test_annotated_things_of_panoptic_and_instance_files_are_equal(coco):
    """Stuff is neither among the boxes nor among the classes."""
    by_file = [annotated_things(open_data(coco, split="val", annotations=kind)) for kind in ("instances", "panoptic")]
    for read in by_file:
        assert read.classes.names == ("cup", "dog", "kite", "bus") and read.by_image is None
    first, second = ([(one.boxes, one.labels) for one in read.dataset.records] for read in by_file)
    assert first == second and sum(len(labels) for _, labels in first) > 8
    bare = replace(open_data(coco, split="val"), categories=())
    with pytest.raises(InputError, match="annotated things"):
        annotated_things(bare)


# ------------------------------------------------------------------------------------------------------------ protocols


@pytest.mark.parametrize("view", ["centre", "whole"])
def test_class_folders_against_a_loop(clip, other_clip, folders, view):
    labelled = class_folders(open_data(folders / "set", split="val"), names=folders / "names.json")
    result = evaluate_global(
        {"reference": other_clip, "model": clip}, labelled=labelled, view=view, loading=Loading(batch=2)
    )
    with torch.inference_mode():
        for name, model in (("reference", other_clip), ("model", clip)):
            text = embed_vocabulary(model, labelled.classes)
            right = []
            for path, label in labelled.by_image.items():
                image = read_image(folders / "set" / path)
                height, width = image.shape[1:]
                side, left, top = min(height, width), max(0, width - height) // 2, max(0, height - width) // 2
                box = [0, 0, width, height] if view == "whole" else [left, top, left + side, top + side]
                right.append((label, int((text @ embed(model, image, box)).argmax()) == label))
            found = result[name]["classification"]
            assert found["overall"]["top1"] == pytest.approx(100 * sum(hit for _, hit in right) / 5)
            means = [[hit for own, hit in right if own == label] for label in (0, 1)]
            assert found["mean"]["top1"] == pytest.approx(100 * sum(sum(one) / len(one) for one in means) / 2)
    assert result["classification"] == {"of": "images", "classes": 2, "images": 5} and result["retrieval"] is None


def test_things_against_a_loop(clip, coco, monkeypatch):
    dataset, cut = open_data(coco, split="val"), []
    add = CropPacker.add
    monkeypatch.setattr(CropPacker, "add", lambda self, image, boxes: (cut.extend(boxes), add(self, image, boxes))[1])
    result = evaluate_global({"model": clip}, labelled=annotated_things(dataset), loading=Loading(crop_batch=5))
    hits = []
    with torch.inference_mode():
        text = embed_vocabulary(clip, ["cup", "dog", "kite", "bus"])
        for record in dataset.records:
            image = read_image(record.path)
            for (x1, y1, x2, y2), label in zip(record.boxes, record.labels, strict=True):
                if (x2 - x1) * (y2 - y1) < 64:
                    continue
                across, down = (x2 - x1) / 4, (y2 - y1) / 4
                box = [
                    max(0, x1 - across),
                    max(0, y1 - down),
                    min(image.shape[2], x2 + across),
                    min(image.shape[1], y2 + down),
                ]
                assert cut[len(hits)].tolist() == pytest.approx(box)
                hits.append(int((text @ embed(clip, image, box)).argmax()) == label)
    found = result["model"]["classification"]
    assert found["count"] == len(hits) and found["overall"]["top1"] == pytest.approx(100 * sum(hits) / len(hits))
    assert 0 < found["overall"]["top1"] < 100 and result["classification"]["of"] == "boxes"


def test_retrieval_is_independent_of_order_and_batch(clip, captions):
    read = read_captioned(captions)
    first = evaluate_global({"model": clip}, captioned=read, loading=Loading(batch=1, crop_batch=1))
    turned = replace(read, records=read.records[::-1], captions=read.captions[::-1])
    assert evaluate_global({"model": clip}, captioned=turned, loading=Loading(batch=4)) == first
    about = {"images": 4, "captions": 9, "different": 7}
    assert first["retrieval"] == {**about, "equals": "captions with the same words are right answers of one another"}
    assert first["model"]["classification"] is None and first["model"]["retrieval"]["text_to_image"]["count"] == 9


def test_an_unreadable_image_and_its_captions_do_not_count(clip, captions, tmp_path):
    read = read_captioned(captions)
    (tmp_path / "b.png").write_bytes(b"")
    records = (*read.records[:2], replace(read.records[2], path=tmp_path / "b.png"))
    result = evaluate_global({"model": clip}, captioned=replace(read, records=records))
    assert result["retrieval"]["captions"] == 6 and [bad["id"] for bad in result["bad"]] == ["3"]


def test_an_image_with_blank_captions_is_no_query_and_is_listed(clip, captions):
    read = read_captioned(captions)
    said = list(read.captions)
    said[1] = ()  # what a shard's text of blanks is, once it is read
    result = evaluate_global({"model": clip}, captioned=replace(read, captions=tuple(said)))
    without = evaluate_global(
        {"model": clip},
        captioned=replace(read, records=(read.records[0], *read.records[2:]), captions=(said[0], *said[2:])),
    )
    assert result["model"] == without["model"] and result["retrieval"] == without["retrieval"]
    assert result["bad"] == [{"id": str(read.records[1].id), "reason": "its captions are blank: no answer is right"}]
    with pytest.raises(InputError, match="those of all 4 images are blank"):
        evaluate_global({"model": clip}, captioned=replace(read, captions=((),) * 4))


def test_classes_and_captions_share_their_records(captions, tmp_path):
    root = tmp_path / "coco"
    shutil.copytree(captions, root)
    path = root / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"] = [1000, 1000, 9, 9]  # left out, and told once
    path.write_text(json.dumps(content))
    labelled, captioned = open_labelled(root, split="val", names=None)
    assert labelled is not None and captioned is not None
    assert [one.id for one in labelled.dataset.records] == [1, 2, 3, 4, 5]
    assert [one.id for one in captioned.records] == [1, 2, 3, 4]  # the fifth has no caption
    assert [one.count for one in labelled.dataset.ignored.values()] == [1]
    assert list(captioned.ignored) == ["image has no caption"]
    _, alone = open_labelled(root, split="val", names=None, classify=False)
    assert alone is not None and [one.id for one in alone.records] == [f"{i}.png" for i in (1, 2, 3, 4)]


def test_the_command(clip, captions, folders, tmp_path, capsys):
    model, out = tmp_path / "tiny", tmp_path / "g.json"
    save_clip(clip, model)
    tail = f"--model {model} --workers 0 --templates none --out {out}"
    main(f"evaluate global --data {captions} --reference {model} {tail}".split())
    written = json.loads(out.read_text())
    assert written["model"] == written["reference"] and written["dropped"]["image has no caption"]["count"] == 1
    table = capsys.readouterr().out
    assert "text to image, R@10" in table and "classification, overall, top-5" in table
    main(f"evaluate global --data {folders}/set --labels {folders}/names.json {tail}".split())
    written = json.loads(out.read_text())
    assert written["classification"]["of"] == "images" and written["retrieval"] is None and "reference" not in written
    write_shard(tmp_path / "a.tar", {"x.png": (captions / "val2017/1.png").read_bytes(), "x.txt": b"a cup"})
    main(f"evaluate global --data {tmp_path}/a.tar {tail}".split())
    assert json.loads(out.read_text())["model"]["retrieval"]["image_to_text"] == {
        "r1": None,
        "r5": None,
        "r10": None,
        "count": 1,
    }
    main(f"evaluate global --data {captions} --task retrieve --limit 2 {tail}".split())
    assert json.loads(out.read_text())["retrieval"]["images"] == 2
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(f"evaluate global --data {captions}/val2017 --task retrieve {tail}".split())
    assert "need class folders, annotated things, or captions" in capsys.readouterr().err


def test_wrong_arguments_are_refused(clip):
    with pytest.raises(InputError, match="got neither"):
        evaluate_global({"model": clip})


def test_names_of_folders_are_refused_with_annotations(captions, folders):
    with pytest.raises(InputError, match=r"--labels .*: names class folders"):
        open_labelled(captions, split="val", names=folders / "names.json")
