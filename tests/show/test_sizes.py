"""The chart of accuracy over input size: reading and drawing."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from PIL import Image

from foveate.cli.main import main
from foveate.errors import InputError
from foveate.show.charts import HEIGHT, name_ends, new_chart
from foveate.show.sizes import Sweep, read_sweep, sizes_chart


def scores(top1: float | None) -> dict:
    return {kind: {"top1": top1, "top5": 99.0, "count": 3} for kind in ("boxes", "things", "stuff")}


def write_result(path: Path, *, masked: bool = True, **changes) -> Path:
    content = {"crop": scores(80.0), "dense": {"96": scores(30.0), "48": scores(20.0)}, **changes}
    content |= {"masked": {"96": scores(40.0)}} if masked else {}
    path.write_text(json.dumps(content))
    return path


def test_sizes_are_read_in_ascending_order(tmp_path):
    sweep = read_sweep(write_result(tmp_path / "r.json"), kind="boxes")
    assert list(sweep.dense.items()) == [(48, 20.0), (96, 30.0)] and (sweep.masked, sweep.crop) == ({96: 40.0}, 80.0)
    older = read_sweep(write_result(tmp_path / "o.json", masked=False, crop=None), kind="stuff")
    assert older.masked == {} and older.crop is None


def test_wrong_results_are_refused(tmp_path):
    for content, message in (
        ("{", "need a regions result file in JSON"),
        ("[]", "got another file"),
        ('{"dense": {"x": 1}, "crop": null}', "got another file"),
    ):
        (tmp_path / "r.json").write_text(content)
        with pytest.raises(InputError, match=message):
            read_sweep(tmp_path / "r.json", kind="boxes")
    for changes, message in (
        ({"dense": {"48": scores(float("nan"))}}, r"r\.json: dense\[48\]\[boxes\]\[top1\]: need .* 0 to 100; got nan"),
        ({"dense": {"48": scores(100.5)}}, "got 100.5"),
        ({"dense": {"48": scores("1")}}, "got '1'"),  # type: ignore
        ({"crop": scores(-1.0)}, r"crop\[boxes\]\[top1\]: need .* got -1.0"),
        ({"dense": {"0": scores(1.0)}}, r"r\.json: dense: need sizes of at least 1 pixel; got 0"),
        ({"dense": {"48": scores(1.0), "-8": scores(1.0)}}, "got -8"),
    ):
        with pytest.raises(InputError, match=message):
            read_sweep(write_result(tmp_path / "r.json", **changes), kind="boxes")
    with pytest.raises(InputError, match="need stuff masks to show"):
        read_sweep(write_result(tmp_path / "n.json", dense={"48": scores(None)}), kind="stuff")
    with pytest.raises(InputError, match="1 to 8 models"):
        sizes_chart(tmp_path / "s.png", {f"m{n}": Sweep({48: 1.0}, {}, None) for n in range(9)}, kind="boxes")


def test_lines_and_their_styles(tmp_path, monkeypatch):
    """A model's dense, masked and crop lines share its colour: solid, dotted, dashed and level."""
    drawn = []
    plot = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda self, *a, **k: (drawn.append((a, k)), plot(self, *a, **k))[1])
    sweeps = {"a": Sweep({48: 20.0, 96: 30.0}, {96: 40.0}, 80.0), "b": Sweep({48: 5.0, 96: 6.0}, {}, None)}
    sizes_chart(tmp_path / "s.png", sweeps, kind="boxes")
    first, second, third, fourth = drawn
    assert [args[:3] for args, _ in drawn[:2]] == [([48, 96], [20.0, 30.0], "-"), ([96], [40.0], ":")]
    assert third[0] == ([48, 96], [80.0, 80.0], "--") and fourth[0][1] == [5.0, 6.0]
    assert first[1]["color"] == second[1]["color"] == third[1]["color"] != fourth[1]["color"]


def test_names_at_the_same_height_are_moved_apart():
    figure, axes = new_chart("t", x_name="x", y_name="y")
    axes.set_ylim(0, 100)
    name_ends(axes, [(50.0, "one", "red"), (50.0, "two", "blue"), (0.0, "three", "green")])
    heights = sorted(text.xy[1] * HEIGHT for text in axes.texts)
    assert all(above - below > 0.1 for below, above in pairwise(heights))
    assert {text.get_text() for text in axes.texts} == {"one", "two", "three"} and figure.axes == [axes]


def test_many_long_names_are_inside_the_image_and_do_not_overlap():
    """24 names, some of three lines: more than the usual height holds."""
    figure, axes = new_chart("t", x_name="x", y_name="y")
    axes.set_ylim(0, 100)
    names = [f"{'W' * 40 if n % 3 else 'a model with a long name from somewhere'}, dense ${n}$" for n in range(24)]
    name_ends(axes, [(50.0, name, "red") for name in names])
    figure.canvas.draw()
    boxes = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: -box.y1)
    assert len(boxes) == 24 and all(below.y1 <= above.y0 for above, below in pairwise(boxes))
    assert all(box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1 for box in boxes)
    written = {text.get_text().replace("\n", "").replace(" ", "") for text in axes.texts}
    assert written == {name.replace(" ", "") for name in names}  # none is cut
    assert figure.get_figheight() > HEIGHT


def test_the_command(tmp_path, capsys):
    result, out = write_result(tmp_path / "r.json"), tmp_path / "new/s.png"
    main(f"show sizes before={result} {result} --what things --out {out}".split())
    assert f"wrote {out}" in capsys.readouterr().out
    with Image.open(out) as image:
        assert image.format == "PNG" and min(image.size) > 500
    with pytest.raises(SystemExit):
        main(f"show sizes {result} {result} --out {out}".split())
    assert "got 'r' twice" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(f"show sizes {result} --out {tmp_path}/s.jpg".split())
