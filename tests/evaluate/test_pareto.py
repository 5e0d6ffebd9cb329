"""The sweep of alpha: its ends are the two models, its middle is the mix, and its front is what nothing beats."""

import json

import pytest
import torch
from PIL import Image

from saccade.cli.main import main
from saccade.clip.weights import save_clip
from saccade.data.loader import open_data
from saccade.evaluate import pareto
from saccade.evaluate.global_ import evaluate_global
from saccade.evaluate.labelled import annotated_things
from saccade.evaluate.pareto import check_unmixed, evaluate_pareto, mark_front
from saccade.evaluate.regions import evaluate_regions
from saccade.types import InputError


def test_front_by_hand():
    """(dense, global): the second beats the third in both; the fourth equals the first and both stay; the fifth is as
    good as the first in dense and worse in global."""
    places = [(10.0, 80.0), (50.0, 60.0), (40.0, 50.0), (10.0, 80.0), (10.0, 70.0)]
    points = [{"boxes": boxes, "classification": whole} for boxes, whole in places]
    assert [point["front"] for point in mark_front(points)] == [True, True, False, True, False]


def test_ends_and_middle(clip, other_clip, coco):
    """alpha 0 is the teacher, alpha 1 the student, 0.25 the weights mixed here by hand; nothing stays changed."""
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


def test_gates_are_mixed_too_and_alpha_0_is_the_teacher(deep_clips, coco, monkeypatch):
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


def test_refuses(clip, wide_clip, coco, tmp_path):
    panoptic, things = (
        open_data(coco, split="val", annotations="panoptic"),
        annotated_things(open_data(coco, split="val")),
    )
    rest = {"labelled": things, "captioned": None, "size": 32}
    for alphas in ([], [0.5, 0.5], [1.2], [-0.1]):
        with pytest.raises(InputError, match="--alphas"):
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
    with pytest.raises(InputError, match=r"mixed already, with alpha 0.7"):
        check_unmixed(tmp_path / "model")


def test_as_typed(clip, other_clip, coco, tmp_path, capsys):
    for name, model in (("teacher", clip), ("run/model", other_clip)):
        save_clip(model, tmp_path / name)
    out, plot = tmp_path / "p.json", tmp_path / "p.png"
    words = f"evaluate pareto --data {coco} --reference {tmp_path}/teacher --size 32 --workers 0 --templates none"
    main(f"{words} --model {tmp_path}/run/model b={tmp_path}/teacher --alphas 0 1 --out {out} --plot {plot}".split())
    points = json.loads(out.read_text())["points"]
    assert [(point["model"], point["alpha"]) for point in points] == [("run", 0), ("run", 1), ("b", 0), ("b", 1)]
    with Image.open(plot) as picture:
        assert picture.format == "PNG"
    assert f"wrote {plot}" in capsys.readouterr().out
    (tmp_path / "run/config.json").write_text('{"alpha": 0.5}')
    with pytest.raises(SystemExit):
        main(f"{words} --model {tmp_path}/run/model".split())
    with pytest.raises(SystemExit):
        main(f"evaluate pareto --data {coco} --model {tmp_path}/teacher".split())
    assert "--reference: need the CLIP" in capsys.readouterr().err
