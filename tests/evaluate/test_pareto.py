"""The sweep of alpha: its ends are the two models, its middle is the mix, and the Pareto front."""

import json
from copy import deepcopy

import open_clip
import pytest
import torch
from PIL import Image

from foveate.cli.main import main
from foveate.clip.io.weights import save_clip
from foveate.clip.load import load
from foveate.clip.tower import Windows
from foveate.data.sources import open_data
from foveate.engine.product import write_product
from foveate.errors import InputError
from foveate.evaluate import pareto
from foveate.evaluate.labelled_images import annotated_things
from foveate.evaluate.pareto import check_unmixed, evaluate_pareto, mark_front
from foveate.evaluate.regions import evaluate_regions
from foveate.evaluate.zero_shot import evaluate_global


def test_the_front_by_hand():
    """(dense, global): the second beats the third in both; the fourth equals the first and both stay; the fifth is as
    good as the first in dense and worse in global."""
    places = [(10.0, 80.0), (50.0, 60.0), (40.0, 50.0), (10.0, 80.0), (10.0, 70.0)]
    points = [{"boxes": boxes, "classification": whole} for boxes, whole in places]
    assert [point["front"] for point in mark_front(points)] == [True, True, False, True, False]


def test_the_ends_are_the_models_and_the_middle_is_their_mix(clip, other_clip, coco):
    """alpha 0 is the teacher, alpha 1 the student, 0.25 the weights mixed by hand; the models are restored."""
    panoptic, things = (
        open_data(coco, split="val", annotations="panoptic"),
        annotated_things(open_data(coco, split="val")),
    )
    before = {key: value.clone() for key, value in other_clip.model.state_dict().items()}
    result = evaluate_pareto(
        {"s": other_clip}, clip, panoptic, labelled=things, captioned=None, alphas=[0.0, 0.25, 1.0], size=32
    )
    after = other_clip.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())

    mixed = {key: 0.25 * value + 0.75 * clip.model.state_dict()[key] if value.is_floating_point() else value
             for key, value in before.items()}  # fmt: skip
    points = {point["alpha"]: point for point in result["points"]}
    try:
        for alpha, model in ((0, clip), (1, other_clip), (0.25, other_clip)):
            if alpha == 0.25:
                other_clip.model.load_state_dict(mixed)
            dense = evaluate_regions(model, panoptic, sizes=[32], crops=False)["dense"][32]
            whole = evaluate_global({"m": model}, labelled=things)["m"]["classification"]
            for kind in ("boxes", "things", "stuff"):
                assert points[alpha][kind] == pytest.approx(dense[kind]["top1"]), (alpha, kind)
            assert points[alpha]["classification"] == pytest.approx(whole["mean"]["top1"])
            assert points[alpha]["retrieval"] is None
    finally:
        other_clip.model.load_state_dict(before)
    assert any(point["front"] for point in result["points"])
    assert result["points"][0]["boxes"] != result["points"][2]["boxes"], "the two models should differ"


def test_the_teacher_is_measured_once_per_setting_and_bars_are_titled(deep_clips, coco, monkeypatch):
    teacher, student = deep_clips
    panoptic = open_data(coco, split="val", annotations="panoptic")
    things = annotated_things(open_data(coco, split="val"))
    seen, dense, whole = [], pareto.evaluate_regions, pareto.evaluate_global

    def see_dense(clip, dataset, **flags):
        seen.append(dataset.name)
        return dense(clip, dataset, **flags)

    def see_whole(clips, *, labelled, **flags):
        seen.append(labelled.dataset.name)
        return whole(clips, labelled=labelled, **flags)

    monkeypatch.setattr(pareto, "evaluate_regions", see_dense)
    monkeypatch.setattr(pareto, "evaluate_global", see_whole)
    rest = {"labelled": things, "captioned": None, "size": 32}
    points = evaluate_pareto({"s": student, "t": teacher}, teacher, panoptic, alphas=[0.0, 0.5], **rest)["points"]
    told = [f"{name}_val2017: {mix}" for mix in ("s, alpha 0", "s, alpha 0.5", "t, alpha 0.5")
            for name in ("panoptic", "instances")]  # fmt: skip
    assert seen == told
    assert [(point["model"], point["alpha"]) for point in points] == [("s", 0), ("s", 0.5), ("t", 0), ("t", 0.5)]
    assert {key: points[0][key] for key in points[0] if key != "model"} == {
        key: points[2][key] for key in points[2] if key != "model"
    }
    # windows are the student's own also at alpha 0: another dense map
    seen.clear()
    student.windows = Windows(1, (0,))
    try:
        evaluate_pareto({"s": student, "t": teacher}, teacher, panoptic, alphas=[0.0], **rest)
    finally:
        student.windows = None
    assert len(seen) == 4


def test_a_mixed_product_is_refused_also_when_moved(clip, other_clip, tmp_path):
    """By its own configuration, which open_clip still opens, and which the product of a run from it does not have."""
    start = deepcopy(clip)
    trained = {f"parameter/student.model.{key}": value for key, value in other_clip.model.state_dict().items()}
    write_product(start, trained, tmp_path / "copy", alpha=0.7)
    assert load(tmp_path / "copy").alpha == 0.7
    with pytest.raises(InputError, match=r"copy/open_clip_config.json records .* already mixed, with alpha 0.7"):
        check_unmixed(tmp_path / "copy")
    open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'copy'}", return_transform=False)
    write_product(load(tmp_path / "copy"), trained, tmp_path / "whole", alpha=1.0)
    check_unmixed(tmp_path / "whole")
    assert "foveate" not in json.loads((tmp_path / "whole/open_clip_config.json").read_text())


def test_gates_are_mixed_and_alpha_0_is_the_teacher(deep_clips, coco, monkeypatch):
    (teacher, student), ours = deep_clips, [[0.0, 3.0], [1.0, 2.0], [-1.0, 5.0]]  # 3 blocks with 32 / 16 = 2 heads
    student.gates = ours
    panoptic = open_data(coco, split="val", annotations="panoptic")
    things = annotated_things(open_data(coco, split="val"))
    seen, measure = [], pareto.evaluate_regions

    def see(clip, *rest, **flags):
        seen.append(clip.gates.tolist())
        return measure(clip, *rest, **flags)

    monkeypatch.setattr(pareto, "evaluate_regions", see)
    rest = {"labelled": things, "captioned": None, "size": 32, "head": "values3"}
    points = evaluate_pareto({"s": student}, teacher, panoptic, alphas=[0.0, 0.25], **rest)["points"]
    # the teacher's are open, 1: gates g at 0.25 are 0.25 g + 0.75
    assert seen == [[1.0] * 6, [0.75, 1.5, 1.0, 1.25, 0.5, 2.0]]
    dense = measure(teacher, panoptic, sizes=[32], crops=False, head="values3")["dense"][32]
    assert all(points[0][kind] == dense[kind]["top1"] for kind in ("boxes", "things", "stuff"))
    assert student.gates.unflatten(0, (3, 2)).tolist() == ours

    def fail(*rest, **flags):
        raise InputError("stopped")

    monkeypatch.setattr(pareto, "evaluate_regions", fail)
    with pytest.raises(InputError, match="stopped"):
        evaluate_pareto({"s": student}, teacher, panoptic, alphas=[0.0], **rest)
    assert student.gates.unflatten(0, (3, 2)).tolist() == ours


def test_wrong_arguments_are_refused(clip, wide_clip, coco, tmp_path):
    panoptic, things = (
        open_data(coco, split="val", annotations="panoptic"),
        annotated_things(open_data(coco, split="val")),
    )
    rest = {"labelled": things, "captioned": None, "size": 32}
    for alphas in ([], [0.5, 0.5], [1.2], [-0.1]):
        with pytest.raises(InputError, match="--alpha"):
            evaluate_pareto({"s": clip}, clip, panoptic, alphas=alphas, **rest)
    with pytest.raises(InputError, match="at least one distilled model"):
        evaluate_pareto({}, clip, panoptic, alphas=[1.0], **rest)
    with pytest.raises(InputError, match="--model s: need the architecture of --reference"):
        evaluate_pareto({"s": wide_clip}, clip, panoptic, alphas=[1.0], **rest)
    (tmp_path / "model").mkdir()
    check_unmixed(tmp_path / "model")
    (tmp_path / "config.json").write_text(json.dumps({"alpha": 1.0}))
    check_unmixed(tmp_path / "model")
    (tmp_path / "config.json").write_text(json.dumps({"alpha": 0.7}))
    with pytest.raises(InputError, match=r"already mixed, with alpha 0.7"):
        check_unmixed(tmp_path / "model")


def test_the_command(clip, other_clip, coco, tmp_path, capsys):
    for name, model in (("teacher", clip), ("run/model", other_clip)):
        save_clip(model, tmp_path / name)
    out, plot = tmp_path / "p.json", tmp_path / "p.png"
    words = f"evaluate pareto --data {coco} --reference {tmp_path}/teacher --size 32 --workers 0 --templates none"
    main(f"{words} --model {tmp_path}/run/model b={tmp_path}/teacher --alpha 0 1 --out {out} --plot {plot}".split())
    points = json.loads(out.read_text())["points"]
    assert [(point["model"], point["alpha"]) for point in points] == [("run", 0), ("run", 1), ("b", 0), ("b", 1)]
    with Image.open(plot) as image:
        assert image.format == "PNG"
    assert f"wrote {plot}" in capsys.readouterr().out
    (tmp_path / "run/config.json").write_text('{"alpha": 0.5}')
    with pytest.raises(SystemExit):
        main(f"{words} --model {tmp_path}/run/model".split())
    with pytest.raises(SystemExit):
        main(f"evaluate pareto --data {coco} --model {tmp_path}/teacher".split())
    assert "--reference: need the CLIP" in capsys.readouterr().err
