"""The report: self-contained, escaped, its values and charts."""

import base64
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from foveate.errors import InputError
from foveate.show.charts import spread
from foveate.show.curves import read_losses, smooth
from foveate.show.report import Result, write_report


def scores(top1: float | None) -> dict:
    return {"top1": top1, "top5": None if top1 is None else top1 + 0.5, "count": 0 if top1 is None else 12}


def evaluation(offset: float, *, sizes: tuple = (32, 64)) -> dict:
    dense = {size: {k: scores(offset + size / 10) for k in ("boxes", "things", "stuff")} for size in sizes}
    crop = {"boxes": scores(offset + 50.0), "things": scores(offset + 50.0), "stuff": scores(None)}
    return {"crop": crop, "dense": dense, "head": "value", "classes": 6, "images": 5, "bad": []}


def make_result(**changes) -> Result:
    result = {
        "title": "A <small> & tested world",
        "before": evaluation(1),
        "after": evaluation(20),
        "colour": scores(9.7),
        "losses": [(1, 0.9), (2, 0.7), (3, 0.6)],
        "command": "foveate demo --out 'a & b'",
        "seed": 3,
        "seconds": {"distil": 61.4, "evaluate": 8.0},
        "versions": {"torch": "1.2.3"},
    }
    return {**result, **changes}  # pyright: ignore[reportReturnType]


def page_of(tmp_path: Path, *, figures: list | None = None, **changes) -> str:
    write_report(tmp_path / "out/r.html", result=make_result(**changes), figures=figures or [])
    return (tmp_path / "out/r.html").read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Checks that tags nest, and collects what the page would load and the text of its table."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.loads, self.cells, self.names = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.loads += [value for key, value in attrs if key in ("src", "href", "srcset", "action", "xlink:href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.names.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-2:] in (["td", "span"], ["tr", "td"]):
            self.cells.append(data)


def parse(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    return tags


def test_the_page_is_self_contained(tmp_path):
    Image.new("RGB", (3, 2), "red").save(tmp_path / "f.png")
    page = page_of(tmp_path, figures=[("Maps", "what they show", tmp_path / "f.png")])
    tags = parse(page)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", re.sub(r"base64,[A-Za-z0-9+/=]+", "", page))
    assert "script" not in tags.names and "link" not in tags.names and "iframe" not in tags.names
    (source,) = (value for value in tags.loads if not value.startswith("#"))  # a chart's own parts are no loads
    assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == (tmp_path / "f.png").read_bytes()
    assert "prefers-color-scheme: dark" in page and "width=device-width" in page
    assert not list(tmp_path.rglob("*.partial"))


def test_values_are_in_their_cells(tmp_path):
    page = page_of(tmp_path)
    none = "\N{EN DASH}"
    # at 64 px: before 1 + 6.4, after 20 + 6.4; crops 51 and 70; top-5 half a point more; stuff crops were not measured
    expected = [
        *("9.7", "10.2", none, none, none, none),
        *("7.4", "7.9") * 3,
        *("26.4", "26.9") * 3,
        *("70.0", "70.5") * 2, none, none,
        *("51.0", "51.5") * 2, none, none,
    ]  # fmt: skip
    assert parse(page).cells == expected
    assert "3.6 times the accuracy before" in page and "52 % of what crops reach" in page  # 26.4 / 7.4 and / 51
    assert "12 boxes on 5 images, 6 classes" in page and "colour alone: 9.7 %" in page
    assert "69 s" in page and "1.2.3" in page


def test_text_is_escaped(tmp_path):
    page = page_of(tmp_path)
    assert "A &lt;small&gt; &amp; tested world" in page and "<small> &" not in page
    assert "--out &#x27;a &amp; b&#x27;" in page


def test_the_largest_common_size_is_used_also_as_text_from_json(tmp_path):
    result = evaluation(20, sizes=(16, 32))
    result["dense"] = {str(size): value for size, value in result["dense"].items()}
    assert "23.2" in parse(page_of(tmp_path, after=result)).cells  # 20 + 32 / 10
    with pytest.raises(InputError, match="need a common input size of before and after"):
        page_of(tmp_path, after=evaluation(20, sizes=(16,)))


def test_unmeasured_sections_are_omitted(tmp_path):
    no_crops = {**evaluation(1), "crop": None}
    page = page_of(tmp_path, before=no_crops, after={**evaluation(20), "crop": None}, colour=None, losses=[])
    assert "Crops, " not in page and "Colour alone" not in page and "Training loss" not in page
    parse(page)


def test_unreadable_images_are_reported(tmp_path):
    assert "unreadable" not in page_of(tmp_path)
    assert "2 unreadable images are ignored" in page_of(tmp_path, after={**evaluation(20), "bad": [{}, {}]})


def test_a_figure_must_be_a_png(tmp_path):
    (tmp_path / "f.png").write_text("hello")
    for name in ("f.png", "none.png"):
        with pytest.raises(InputError, match="need a PNG"):
            page_of(tmp_path, figures=[("Maps", "", tmp_path / name)])


def test_charts_use_the_pages_colours_and_name_their_lines(tmp_path):
    """Four lines in each of two charts (crops of stuff were not measured), and the loss; one size is sufficient."""
    page = page_of(tmp_path)
    charts = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(charts) == 4 and not re.search(r"#[0-9a-f]{3,6}\b", "".join(charts).replace("xlink:href=", ""))
    names = [re.findall(r">([a-z][a-z ]* [0-9.]+)</text>", chart) for chart in charts]
    assert sorted(names[0]) == ["after 26.4", "before 7.4", "crops 51.0", "crops after 70.0"]
    assert sorted(names[2]) == ["after 26.4", "before 7.4"] and names[3] == ["loss 0.600"]
    for variable in ("before", "after", "crop", "student"):
        assert f"stroke: var(--{variable})" in charts[0] and f"fill: var(--{variable})" in charts[0]
    one = evaluation(20, sizes=(64,))
    assert page_of(tmp_path, after=one).count("<svg") == 4


def test_names_do_not_overlap():
    places = spread([38.0, 39.0, 40.0, 193.0, 197.0], [14.0] * 5, limit=198.0)
    assert all(b - a >= 13.99 for a, b in pairwise(places)) and places[-1] <= 198
    assert spread([8.0, 88.0], [14.0] * 2, limit=198.0) == [8, 88]


def test_losses_are_read(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    lines = ['{"step": 2, "loss": 0.5}', '{"step": 1, "loss": 0.8}', '{"event": "resumed"}', '{"step": 2, "loss": 0.4}']
    metrics.write_text("\n".join(lines) + '\n{"step": 3, "lo')  # cut short by a crash
    assert read_losses(metrics) == [(1, 0.8), (2, 0.4)]
    metrics.write_text("nonsense\n" + lines[0])
    with pytest.raises(InputError, match="line 1"):
        read_losses(metrics)
    metrics.write_text(lines[2])
    with pytest.raises(InputError, match="need lines with"):
        read_losses(metrics)
    with pytest.raises(InputError, match="does not exist"):
        read_losses(tmp_path / "none")


def test_losses_are_smoothed():
    points = [(step, float(step % 2)) for step in range(60)]  # 0 1 0 1 ...: reach 2, the ends stay as they are
    smoothed = smooth(points)
    assert smoothed[0] == (0, 0.0) and smoothed[-1] == (59, 1.0) and smoothed[10] == (10, pytest.approx(0.4))
