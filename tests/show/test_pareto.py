"""The chart of the sweep of alpha: rings on the front, every alpha once, the teacher's for all."""

from matplotlib.axes import Axes
from PIL import Image

from saccade.show.pareto import pareto_chart


def test_rings_and_labels(tmp_path, monkeypatch):
    """Two models from one teacher: three mixes are on the front, and the second model does not name alpha 0 again."""
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
    pareto_chart(tmp_path / "p.png", [dict(zip(keys, row, strict=True)) for row in rows], size=192, whole="pictures")
    lines, (rings, _) = [args for args, _ in drawn[:2]], drawn[2]
    assert [args[:2] for args in lines] == [([80.0, 60.0], [4.0, 50.0]), ([80.0, 50.0], [4.0, 40.0])]
    assert [list(one) for one in rings[:2]] == [[60.0, 80.0, 80.0], [50.0, 4.0, 4.0]]
    assert written == ["0", "a, 1", "b, 1"]
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.format == "PNG"
