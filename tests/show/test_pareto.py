"""The chart of the sweep of alpha: rings on the front, every alpha once, the teacher's for all."""

from matplotlib.axes import Axes
from PIL import Image

from foveate.io.outputs import has_mark
from foveate.show.charts import new_chart, write_figure
from foveate.show.pareto import Label, pareto_chart, write_labels


def test_rings_and_labels(tmp_path, monkeypatch):
    """Two models from one teacher: three mixes are on the front, and alpha 0 is labelled once."""
    drawn, written = [], []
    plot, annotate = Axes.plot, Axes.annotate
    monkeypatch.setattr(Axes, "plot", lambda self, *a, **k: (drawn.append((a, k)), plot(self, *a, **k))[1])
    monkeypatch.setattr(Axes, "annotate", lambda self, t, *a, **k: (written.append(t), annotate(self, t, *a, **k))[1])
    rows = [
        ("a", 1.0, 50.0, 60.0, True),
        ("a", 0.0, 4.0, 80.0, True),
        ("b", 0.0, 4.0, 80.0, True),
        ("b", 1.0, 40.0, 50.0, False),
    ]
    keys = ("model", "alpha", "boxes", "classification", "front")
    pareto_chart(tmp_path / "p.png", [dict(zip(keys, row, strict=True)) for row in rows], size=192, whole="images")
    assert has_mark(tmp_path / "p.png", "foveate evaluate pareto")
    lines, (rings, _) = [args for args, _ in drawn[:2]], drawn[2]
    assert [args[:2] for args in lines] == [([80.0, 60.0], [4.0, 50.0]), ([80.0, 50.0], [4.0, 40.0])]
    assert [list(one) for one in rings[:2]] == [[60.0, 80.0, 80.0], [50.0, 4.0, 4.0]]
    assert written == ["0", "a, 1", "b, 1"]
    with Image.open(tmp_path / "p.png") as image:
        assert image.format == "PNG"


def test_labels_of_coinciding_points_do_not_overlap(tmp_path):
    figure, axes = new_chart("t", x_name="x", y_name="y", right=0.7)
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    labels = [Label(f"model {n}, 1", 50.0 + n % 2, 50.0, 8.5, "red") for n in range(7)]
    write_labels(axes, labels)
    write_figure(figure, tmp_path / "l.png")
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 7 and {text.get_text() for text in axes.texts} == {label.text for label in labels}
    assert not any(one.overlaps(other) for n, one in enumerate(boxes) for other in boxes[:n])


def test_axes_do_not_begin_below_0(tmp_path, monkeypatch):
    seen = []
    for way in ("set_xlim", "set_ylim"):
        real = getattr(Axes, way)
        monkeypatch.setattr(Axes, way, lambda self, *a, real=real, **k: (seen.append(a), real(self, *a, **k))[1])
    keys = ("model", "alpha", "boxes", "classification", "front")
    rows = [("a", 0.0, 0.5, 1.0, True), ("a", 1.0, 60.0, 70.0, True)]
    pareto_chart(tmp_path / "p.png", [dict(zip(keys, row, strict=True)) for row in rows], size=192, whole="images")
    # 0.12 of 69 and of 59.5 would be below 0 at the left, and is above 70 and 60 at the right
    named = [[round(one, 2) for one in limits] for limits in seen[-2:]]
    assert named == [[0, 78.28], [0, 67.14]]
