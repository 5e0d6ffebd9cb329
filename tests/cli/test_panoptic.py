"""`foveate train-panoptic` and `evaluate panoptic` as users type them, on a world of a few images."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from foveate.cli.main import main
from foveate.clip.io.weights import save_clip
from foveate.clip.load import load
from foveate.clip.vocabulary import Vocabulary
from foveate.data.loader import EvaluationSource
from foveate.data.panoptic import read_panoptic_map
from foveate.data.sources import open_data, open_panoptic
from foveate.data.splits import BaseNovel, split_semantic
from foveate.data.world.write import WorldSize, write_world
from foveate.engine.checkpoint import load_latest
from foveate.evaluate.detection import evaluate_detection
from foveate.evaluate.fusion_sweep import ThingObjects, panoptic_truth, sweep_fusion
from foveate.evaluate.ground_truth import open_ground_truth
from foveate.evaluate.panoptic import evaluate_panoptic
from foveate.heads.common.text import embed_classes
from foveate.heads.panoptic.fusion import PRESETS
from foveate.heads.panoptic.mask2former import MaskGenerator, Proposals
from foveate.heads.panoptic.product import load_generator, read_about
from foveate.ops.paste import encode_masks
from foveate.predict.flags import MaskFlags
from foveate.predict.masks import open_segmenter
from foveate.train.defaults import LARGE, SMALL, resolve_defaults
from foveate.train.flags import TrainPanoptic
from foveate.train.panoptic import as_segments
from foveate.types import Detections

TINY = ["--size", "64", "--depth", "2", "--queries", "5", "--channels", "16", "--batch", "2",
        "--steps", "2", "--workers", "0", "--save-every", "1", "--log-every", "1",
        "--device", "cpu"]  # fmt: skip
ASK = ["--workers", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "w"
    write_world(folder, WorldSize(train=4, val=3, test=0, pairs=0, seed=0), processes=1)
    return folder


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "g"
    main(["train-panoptic", "--data", str(world), "--out", str(out), *TINY])
    return out


@pytest.fixture(scope="module")
def wordless(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "n"
    main(["train-panoptic", "--data", str(world), "--out", str(out), *TINY, "--no-class-names", "--steps", "1"])
    return out


def fails(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as done:
        main([*words])
    assert done.value.code == 2
    return capsys.readouterr().err


def asked_of(folder: Path, world: Path):
    """A segmenter for all of the world's classes, and the images of val."""
    data = open_panoptic(world, "val")
    vocabulary = Vocabulary(tuple((one.name,) for one in data.categories))
    return open_segmenter(
        MaskFlags(), folder, vocabulary, [one.is_thing for one in data.categories], device="cpu"
    ), data


def test_a_stopped_run_ends_with_the_same_bits(world, trained, tmp_path, capsys):
    again = tmp_path / "g"
    shutil.copytree(trained, again)
    shutil.rmtree(again / "checkpoints/step_00000002")
    shutil.rmtree(again / "model")
    main(["train-panoptic", "--data", str(world), "--out", str(again), *TINY])
    # world: 24 of 32 things are base, all 10 of stuff
    assert "24 base classes of things and 10 of stuff" in capsys.readouterr().err
    one, other = (load_latest(folder / "checkpoints") for folder in (trained, again))
    assert one is not None and other is not None and one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    files = [(folder / "model/generator.safetensors").read_bytes() for folder in (trained, again)]
    assert files[0] == files[1]


def test_several_shares_from_one_pass_are_each_measured_as_alone(world, trained, tmp_path, monkeypatch, capsys):
    words = [
        "evaluate",
        "panoptic",
        "--data",
        str(world),
        "--model",
        str(trained / "model"),
        "--metrics",
        "miou",
        "ap",
        *ASK,
    ]
    count = []
    propose = MaskGenerator.propose
    monkeypatch.setattr(MaskGenerator, "propose", lambda self, some: count.append(len(some)) or propose(self, some))
    names = ["generator", "clip", "0.2,0.9"]
    main([*words, "--fusion", *names, "--out", str(tmp_path / "all.json")])
    assert sum(count) == 3  # val's images, once
    told = capsys.readouterr()
    assert (
        "42 classes, of which the mask generator was trained on 34" in told.err
        and "mIoU" in told.out
        and "AP" in told.out
    )
    together = json.loads((tmp_path / "all.json").read_text())
    assert [(one["name"], one["seen"], one["unseen"]) for one in together["shares"]] == [
        *(("generator", 0.0, 0.0), ("clip", 1.0, 1.0), ("0.2,0.9", 0.2, 0.9))
    ]
    for place, name in enumerate(names[:2]):
        main([*words, "--fusion", name, "--out", str(tmp_path / "one.json")])
        (alone,) = json.loads((tmp_path / "one.json").read_text())["shares"]
        assert alone == together["shares"][place]
    first = together["shares"][1]
    seen = [row for row in first["per_class"] if row["seen"]]
    assert len(seen) == 34 and first["groups"].keys() == {"seen", "unseen"}
    with_segments = [row["PQ"] for row in seen if row["PQ"] is not None]
    assert first["groups"]["seen"]["PQ"] == pytest.approx(sum(with_segments) / len(with_segments))
    assert first["groups"]["seen"]["classes"] == len(with_segments)


def test_things_of_the_panoptic_annotation_are_those_of_the_instances_file(world, trained):
    # the world's instances file holds the same things with outlines; both truths measure the same masks
    segmenter, data = asked_of(trained / "model", world)
    swept = sweep_fusion(segmenter, data, [PRESETS["clip"]], instances=True)["shares"][0]["instances"]
    assert swept["objects"] == sum(data.categories[label].is_thing for one in data.records for label in one.labels)
    assert swept["masks"]["groups"].keys() == {"all", "seen", "unseen"}
    segmenter.weights = PRESETS["clip"]
    samples = [EvaluationSource(data)[place] for place in range(len(data.records))]
    found = [(one.id, segmenter.instances(segmenter.score(one))) for one in samples]
    truth = open_ground_truth(
        open_data(world, split="val"),
        vocabulary=[one.name for one in data.categories],
        split=None,
        style="coco",
        masks=True,
        annotations=world / "annotations/instances_val2017.json",
    )
    plain = evaluate_detection(found, truth)
    assert plain["objects"] == swept["objects"] and plain["detections"] == swept["detections"] > 0
    assert plain["masks"]["AP"] == pytest.approx(swept["masks"]["AP"])
    # and what is right by construction is worth 100
    exact = [
        Detections(one.boxes, torch.ones(len(one.boxes)), one.labels, tuple(encode_masks(one.masks)))
        for one in (sample.segments for sample in samples)
    ]
    things = ThingObjects(data)
    for sample, record in zip(samples, data.records, strict=True):
        things.add(sample, panoptic_truth(sample, record))
    best = things.measure([*zip((one.id for one in samples), exact, strict=True)], [True] * len(data.categories))
    assert best["masks"]["AP"] == pytest.approx(100) and best["boxes"]["AP"] == pytest.approx(100)


def test_what_is_counted_is_what_the_protocol_counts_of_files(world, trained):
    # the ground truth made of decoded masks is that of the PNG, and the sums are evaluate_panoptic's
    segmenter, data = asked_of(trained / "model", world)
    swept = sweep_fusion(segmenter, data, [PRESETS["clip"], PRESETS["odise-label"]])
    source = EvaluationSource(data)
    samples = [source[place] for place in range(len(data.records))]
    for shares, one in zip((PRESETS["clip"], PRESETS["odise-label"]), swept["shares"], strict=True):
        segmenter.weights = shares
        found = ((sample.id, segmenter.panoptic(segmenter.score(sample))) for sample in samples)
        plain = evaluate_panoptic(found, data)
        assert all(plain[name] == one[name] for name in ("all", "things", "stuff"))
    record = replace(data.records[0], crowd=(True, *data.records[0].crowd[1:]))
    ours, theirs = panoptic_truth(samples[0], record), read_panoptic_map(record, data.categories)
    for mine, other in zip(ours.segments, theirs.segments, strict=True):
        assert torch.equal(ours.ids == mine.id, theirs.ids == other.id)
        assert (mine.label, mine.is_thing, mine.is_crowd) == (other.label, other.is_thing, other.is_crowd)
    assert torch.equal(ours.ids == 0, theirs.ids == 0)


def test_the_ground_truth_itself_is_worth_100(world, trained, monkeypatch):
    segmenter, data = asked_of(trained / "model", world)
    things = [one.is_thing for one in data.categories]

    def right(self, samples):
        rows = [(one, one.segments) for one in samples]
        return [Proposals(one.id, *one.image.shape[1:], 18 * own.masks.float() - 9, own.labels[:, None].float(), None)
                for one, own in rows]  # fmt: skip

    def sure(self, proposals, words):
        return 30 * F.one_hot(proposals.embeddings[:, 0].long(), words.count + 1).float()

    monkeypatch.setattr(MaskGenerator, "propose", right)
    monkeypatch.setattr(MaskGenerator, "class_logits", sure)
    swept = sweep_fusion(segmenter, data, [PRESETS["generator"]], semantic=True, instances=True)
    (one,) = swept["shares"]
    labels = {label for record in data.records for label in record.labels}
    assert all(one[name]["PQ"] == pytest.approx(100) for name in ("all", "things", "stuff"))
    assert all(one["groups"][name]["PQ"] == pytest.approx(100) for name in ("seen", "unseen"))
    assert one["things"]["classes"] == sum(things[label] for label in labels) < one["all"]["classes"] == len(labels)
    assert one["semantic"]["mIoU"] == pytest.approx(100) and one["instances"]["masks"]["AP"] == pytest.approx(100)


def test_masks_that_are_none_and_empty_masks_are_measured(world, trained, monkeypatch):
    segmenter, data = asked_of(trained / "model", world)
    propose = MaskGenerator.propose

    def none(self, samples):
        return [replace(one, masks=one.masks[:0], embeddings=one.embeddings[:0]) for one in propose(self, samples)]

    def empty(self, samples):
        return [replace(one, masks=one.masks - one.masks.max() - 9) for one in propose(self, samples)]

    for change, masks in ((none, 0), (empty, 5)):
        monkeypatch.setattr(MaskGenerator, "propose", change)
        swept = sweep_fusion(segmenter, data, [*PRESETS.values()], semantic=True)
        assert swept["masks"] == masks
        for one in swept["shares"]:
            assert one["segments"] == 0 and one["all"]["PQ"] == 0.0
            assert sum(row["missed"] for row in one["per_class"]) == sum(len(record.labels) for record in data.records)


@pytest.fixture
def ade(tmp_path: Path) -> Path:
    """ADEChallengeData2016 as Mask2Former's tools leave it: text for ids, categories from 0, lists for names."""
    root, name = tmp_path / "ADEChallengeData2016", "ade20k_panoptic_val"
    names = ["wall", "building", "road, route", "windowpane, window "]
    categories = [{"id": i, "name": one, "isthing": int(i == 3), "color": [0, 0, i]} for i, one in enumerate(names)]
    places = {0: (0, 0, 80, 40), 2: (0, 40, 80, 10), 3: (10, 52, 20, 6)}  # x, y, width, height; the rest is void
    content = {"images": [], "annotations": [], "categories": categories}
    for folder in ("images/validation", name, "annotations/validation"):
        (root / folder).mkdir(parents=True)
    for key in ("ADE_val_00000001", "ADE_val_00000002"):
        Image.new("RGB", (80, 60), (90, 160, 60)).save(root / f"images/validation/{key}.jpg")
        colours, segments = Image.new("RGB", (80, 60)), []
        for category, (x, y, width, height) in places.items():
            colour = (120, category, 6)
            colours.paste(colour, (x, y, x + width, y + height))
            number = colour[0] + 256 * colour[1] + 65536 * colour[2]
            segments.append({"id": number, "category_id": category, "area": width * height,
                             "bbox": [x, y, width, height], "iscrowd": 0})  # fmt: skip
        colours.save(root / name / f"{key}.png")
        content["images"].append({"id": key, "file_name": f"{key}.jpg", "width": 80, "height": 60})
        content["annotations"].append({"image_id": key, "file_name": f"{key}.png", "segments_info": segments})
    (root / f"{name}.json").write_text(json.dumps(content))
    return root


def test_the_panoptic_annotations_of_ade20k(ade, trained, tmp_path, capsys):
    data = open_panoptic(ade, "val")
    assert [(one.name, one.synonyms) for one in data.categories] == [
        *(("wall", ()), ("building", ()), ("road", ("route",)), ("windowpane", ("window",)))
    ]
    truth = read_panoptic_map(data.records[0], data.categories)
    areas = {one.label: int((truth.ids == one.id).sum()) for one in truth.segments}
    assert areas == {0: 3200, 2: 800, 3: 120} and int((truth.ids == 0).sum()) == 4800 - 4120
    words = ["evaluate", "panoptic", "--data", str(ade), "--model", str(trained / "model"), *ASK]
    main([*words, "--metrics", "pq", "miou", "ap", "--out", str(tmp_path / "o.json")])
    found = json.loads((tmp_path / "o.json").read_text())
    assert found["images"] == 2 and [one["name"] for one in found["shares"]] == ["odise-label", "clip", "generator"]
    counts = [one["matched"] + one["missed"] for one in found["shares"][0]["per_class"]]
    assert counts == [2, 0, 2, 2] and found["shares"][0]["instances"]["objects"] == 2
    # OpenSeg's list counts from 1; one of its words is learned
    lines = ("0:invalid_class_id", "1:wall", "2:building", "3:road,Grass", "4:window,windowpane")
    (tmp_path / "list.txt").write_text("\n".join(lines))
    main([*words, "--fusion", "clip", "--labels", str(tmp_path / "list.txt")])
    told = capsys.readouterr().err
    assert "in their order" in told and "4 classes, of which the mask generator was trained on 1" in told
    assert "--split: must be val for ADE20K" in fails(capsys, *words, "--split", "train")
    # things that hide all of some stuff: the tool lists it, and no pixel of it is left
    Image.new("RGB", (80, 60), (120, 0, 6)).save(ade / "ade20k_panoptic_val/ADE_val_00000002.png")
    main([*words, "--fusion", "clip", "--out", str(tmp_path / "p.json")])
    found = json.loads((tmp_path / "p.json").read_text())
    assert found["images"] == 1 and "need pixels of every segment" in found["bad"][0]["reason"]


def test_a_mask2former_from_a_folder_trains_and_is_asked(world, tmp_path, capsys):
    from transformers import Mask2FormerConfig, Mask2FormerModel, SwinConfig

    swin = SwinConfig(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
                      out_features=["stage1", "stage2", "stage3", "stage4"])  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, num_queries=4,
        num_attention_heads=4, dim_feedforward=32, encoder_feedforward_dim=32, encoder_layers=1, decoder_layers=2,
    )  # fmt: skip
    Mask2FormerModel(config).save_pretrained(tmp_path / "m2f")
    out, more = tmp_path / "g", ["--size", "64", "--batch", "2", "--steps", "2", "--workers", "0"]
    words = ["train-panoptic", "--data", str(world), "--device", "cpu", "--encoder", str(tmp_path / "m2f"), *more]
    assert "--taps: must be left out with --encoder" in fails(
        capsys, *words, "--out", str(out), "--taps", "1", "2", "3"
    )
    main([*words, "--out", str(out), "--precision", "bfloat16"])
    before = load_file(tmp_path / "m2f/model.safetensors")
    after = load_file(out / "model/generator.safetensors")
    own, theirs = "decoder.library.transformer", "transformer_module"
    pairs = [(one, before[name.replace(own, theirs)]) for name, one in after.items() if name.startswith(own)]
    assert not all(torch.equal(one, other) for one, other in pairs)
    assert not any(name.startswith("encoder.") for name in after)
    main(["evaluate", "panoptic", "--data", str(world), "--model", str(out / "model"), "--limit", "2", *ASK,
          "--out", str(tmp_path / "o.json")])  # fmt: skip
    assert json.loads((tmp_path / "o.json").read_text())["masks"] == 4


def test_a_generator_without_words_is_asked_with_clip_alone(world, wordless, tmp_path, capsys):
    words = ["evaluate", "panoptic", "--data", str(world), "--model", str(wordless / "model"), *ASK]
    told = fails(capsys, *words, "--fusion", "clip", "odise-label")
    assert "--fusion: must be `clip` alone" in told and "--no-class-names" in told and "odise-label" in told
    main([*words, "--limit", "1", "--out", str(tmp_path / "n.json")])
    (one,) = json.loads((tmp_path / "n.json").read_text())["shares"]
    assert one["name"] == "clip" and not read_about(wordless / "model").knows_words


def test_another_clip_classifies_and_another_tower_is_refused(world, trained, tmp_path, capsys):
    clip = load("foveate-small")
    save_clip(clip, tmp_path / "moved")
    with torch.no_grad():
        next(clip.visual.parameters()).add_(0.01)
    save_clip(clip, tmp_path / "other")
    words = ["evaluate", "panoptic", "--data", str(world), "--model", str(trained / "model"), "--limit", "1", *ASK]
    assert "need the CLIP that the generator was trained on" in fails(capsys, *words, "--clip", str(tmp_path / "other"))
    more = ["--clip", str(tmp_path / "moved"), "--classifier", str(tmp_path / "other"), "--mask-pooling", "masked"]
    main([*words, *more, "--size", "96", "--no-squash", "--templates", "none", "--out", str(tmp_path / "o.json")])
    found = json.loads((tmp_path / "o.json").read_text())
    assert found["clip"] == str(tmp_path / "other") and found["size"] == 96 and found["images"] == 1


def test_images_that_cannot_be_read_are_counted(world, trained, tmp_path, capsys):
    broken = tmp_path / "w"
    shutil.copytree(world, broken)
    images = sorted((broken / "val2017").iterdir())
    images[0].write_bytes(b"no image")
    Image.new("RGB", (192, 192)).save(broken / "annotations/panoptic_val2017" / f"{images[1].stem}.png")  # no segment
    words = ["evaluate", "panoptic", "--data", str(broken), "--model", str(trained / "model"), *ASK]
    main([*words, "--fusion", "clip", "--out", str(tmp_path / "o.json")])
    found = json.loads((tmp_path / "o.json").read_text())
    assert found["images"] == 1 and len(found["bad"]) == 2
    assert images[0].stem in capsys.readouterr().err
    assert "strict" in fails(capsys, *words, "--strict")


def test_words_of_a_list_and_a_word_of_two_classes(world, trained, tmp_path, capsys):
    data = open_panoptic(world, "val")
    lines = [f"{one.id}:{one.name},thing {one.id}" for one in data.categories]
    lines[1] += f",{data.categories[0].name}"  # a word of the first class too
    path = tmp_path / "list.txt"
    path.write_text("\n".join(lines))
    words = ["evaluate", "panoptic", "--data", str(world), "--model", str(trained / "model"), "--limit", "1", *ASK]
    main([*words, "--fusion", "clip", "--labels", str(path)])
    told = capsys.readouterr().err
    assert "1 names are in two classes" in told
    # the first class, a novel one, has now a word in common with the second, which is base: 34 + none, since it is the
    # asked list that shares, and the first class's words are still no base class's
    assert "42 classes, of which" in told
    path.write_text("\n".join(f"{500 + number}:{line.partition(':')[2]}" for number, line in enumerate(lines)))
    main([*words, "--fusion", "clip", "--labels", str(path)])
    assert "its classes are used in their order" in capsys.readouterr().err
    path.write_text("1:cat")
    assert "--labels" in fails(capsys, *words, "--labels", str(path))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--fusion", "half"], "--fusion: must be odise-label"),
        (["--fusion", "0.2,1.5"], "two numbers in [0, 1]"),
        (["--fusion", "0.2"], "two numbers"),
        (["--size", "65"], "--size"),
        (["--model", "gone"], "need a folder with a generator"),
        (["--limit", "0"], "--limit"),
    ],
)
def test_bad_questions_are_refused(world, trained, capsys, more, says):
    words = ["evaluate", "panoptic", "--data", str(world), "--model", str(trained / "model"), *ASK]
    assert says in fails(capsys, *words, *more)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--size", "72"], "--size"),
        (["--jitter", "2", "1"], "--jitter"),
        (["--queries", "0"], "--queries"),
        (["--depth", "-1"], "--depth: must be at least 1"),
        (["--encoder", "gone"], "--encoder: must be a folder that exists; got gone"),
        (["--split", "test"], "split test"),
        (["--lr", "0"], "--lr"),
    ],
)
def test_bad_runs_are_refused_before_anything_is_written(world, tmp_path, capsys, more, says):
    out = tmp_path / "g"
    assert says in fails(capsys, "train-panoptic", "--data", str(world), "--out", str(out), *TINY, *more)
    assert not out.exists()


def test_crowds_are_nobodys(world):
    data = open_data(world, split="train", annotations="panoptic")
    whole = split_semantic(data, world)
    assert whole is not None
    first = data.records[0]
    crowded = replace(data, records=(replace(first, crowd=(True, *first.crowd[1:])), *data.records[1:]))
    segments = as_segments(crowded, whole)
    assert segments.records[0].labels == (len(data.categories), *first.labels[1:])
    assert segments.categories[-1].name == "crowd" and segments.records[1:] == data.records[1:]
    only = BaseNovel((data.categories[first.labels[0]].name,), (), (), "")
    kept = as_segments(replace(crowded, records=crowded.records[:1]), only)
    assert (len(kept.records), kept.notes[-1][:6]) == ((0, "1 of 1") if first.labels.count(first.labels[0]) == 1 else 1)


def test_numbers_that_are_not_given_depend_on_the_clip():
    config = TrainPanoptic(data=Path("d"), out=Path("o"), queries=7)
    small, large = resolve_defaults(config, SMALL), resolve_defaults(config, LARGE)
    assert (small.queries, large.queries) == (7, 7) and (small.channels, large.channels) == (SMALL.channels, 256)
    assert (large.lr, large.clip_gradient, large.depth) == (1e-4, 0.01, 9)


def test_class_names_are_learned_at_the_chosen_length(world, trained, tmp_path):
    raw = load_file(trained / "model/generator.safetensors")
    more = ["--embeddings", "unit", "--steps", "1"]
    main(["train-panoptic", "--data", str(world), "--out", str(tmp_path / "g"), *TINY, *more])
    unit = load_file(tmp_path / "g/model/generator.safetensors")
    assert (read_about(trained / "model").words, read_about(tmp_path / "g/model").words) == ("raw", "unit")
    rows = unit["words.rows"]
    assert torch.allclose(rows.norm(dim=1), torch.ones(len(rows)), atol=1e-5)
    assert torch.allclose(F.normalize(raw["words.rows"], dim=1), rows, atol=1e-5) and raw["words.rows"].norm() > 20
    assert raw["head.nothing"].norm() > 3 and abs(unit["head.nothing"].norm() - 1) < 0.01  # of "", and a step's change


def test_the_segmenter_of_a_folder_asks_for_any_classes(trained):
    vocabulary = Vocabulary((("box", "dashed box"), ("sky",), ("cat",)))
    segmenter = open_segmenter(MaskFlags(), trained / "model", vocabulary, [True, False, True], device="cpu")
    assert segmenter.query.is_seen.tolist() == [True, True, False] and segmenter.weights == PRESETS["odise-label"]
    query = segmenter.query
    raw, unit = query.generator_classes.embeddings, query.classes.embeddings  # one CLIP, embedded once
    assert torch.allclose(F.normalize(raw, dim=1), unit) and not torch.allclose(raw, unit)
    expected = embed_classes(load("foveate-small"), vocabulary)
    assert torch.allclose(expected.embeddings, unit, atol=1e-6)
    generator, _, _ = load_generator(trained / "model")
    assert not generator.training
