"""PQ against hand-made cases, an independent slow loop over masks, and hotcoco reading files."""

import json

import numpy as np
import pytest
import torch
from hotcoco import panoptic as hotcoco
from PIL import Image

from foveate.data.datasets.coco import read_panoptic
from foveate.errors import InputError
from foveate.evaluate.panoptic import PanopticTally, evaluate_panoptic
from foveate.types import Category, PanopticMap, SegmentInfo

CATEGORIES = (Category(1, "cat", True), Category(2, "dog", True), Category(7, "sky", False))


def segments(*rows) -> tuple[SegmentInfo, ...]:
    """(id, label), or (id, label, "crowd")."""
    return tuple(SegmentInfo(row[0], row[1], CATEGORIES[row[1]].is_thing, is_crowd=len(row) > 2) for row in rows)


def strip(text, *rows) -> PanopticMap:
    """An image of one row; each digit is the id of the segment there."""
    return PanopticMap(torch.tensor([[int(letter) for letter in text]]), segments(*rows))


def tally(*pairs) -> PanopticTally:
    counted = PanopticTally(3)
    for truth, found in pairs:
        counted.add(truth, found, key="x")
    return counted


def of(result, name):
    return next(one for one in result["per_class"] if one["name"] == name)


def test_pq_by_hand():
    truth = strip("1111222233", (1, 0), (2, 1), (3, 2))
    found = strip("8888897777", (8, 0), (9, 1), (7, 2))
    # cat: 4 of 5 pixels in common: IoU 4/5. dog: 1 of 4: missed, and one false. sky: 2 of 4 in common, not above half
    result = tally((truth, found)).measure(CATEGORIES)
    cat, dog, sky = (of(result, name) for name in ("cat", "dog", "sky"))
    assert (cat["PQ"], cat["SQ"], cat["RQ"]) == pytest.approx((80, 80, 100))
    assert (dog["PQ"], dog["SQ"], dog["RQ"], dog["false"], dog["missed"]) == (0, 0, 0, 1, 1)
    assert sky["PQ"] == 0 and sky["matched"] == 0
    assert result["all"] == {
        "PQ": pytest.approx(80 / 3),
        "SQ": pytest.approx(80 / 3),
        "RQ": pytest.approx(100 / 3),
        "classes": 3,
    }
    assert (
        result["things"]["PQ"] == pytest.approx(40) and result["stuff"]["PQ"] == 0 and "panopticapi" in result["rule"]
    )


def test_void_is_excluded_from_the_union_and_ignores_segments():
    # the cat is found with 2 pixels of void: IoU 3/3, not 3/5
    result = tally((strip("1110000", (1, 0)), strip("8888800", (8, 0)))).measure(CATEGORIES)
    assert of(result, "cat")["SQ"] == 100
    # a dog for more than half in void is not false; at just half it is
    assert of(tally((strip("1000", (1, 0)), strip("5555", (5, 1)))).measure(CATEGORIES), "dog")["false"] == 0
    assert of(tally((strip("1100", (1, 0)), strip("5555", (5, 1)))).measure(CATEGORIES), "dog")["false"] == 1


def test_crowds_are_neither_matched_nor_missed():
    crowd = strip("111122", (1, 0, "crowd"), (2, 1))
    # the found cat covers the crowd exactly: no match, but not false either; the dog in the cats' crowd is false
    result = tally((crowd, strip("888800", (8, 0)))).measure(CATEGORIES)
    cat = of(result, "cat")
    assert (cat["matched"], cat["false"], cat["missed"], cat["PQ"]) == (0, 0, 0, None)
    assert of(tally((crowd, strip("888800", (8, 1)))).measure(CATEGORIES), "dog")["false"] == 1
    # void and crowd count together: 1 + 2 of 5 pixels are excused; 1 + 1 of 4, just half, are not
    together = strip("0112222", (1, 0, "crowd"), (2, 1))
    assert of(tally((together, strip("8888800", (8, 0)))).measure(CATEGORIES), "cat")["false"] == 0
    assert (
        of(tally((strip("0122222", (1, 0, "crowd"), (2, 1)), strip("8888000", (8, 0)))).measure(CATEGORIES), "cat")[
            "false"
        ]
        == 1
    )
    # of two crowds of a class the last counts, as in panopticapi: the cat on the first is false
    two = strip("111222", (1, 0, "crowd"), (2, 0, "crowd"))
    assert of(tally((two, strip("888000", (8, 0)))).measure(CATEGORIES), "cat")["false"] == 1
    assert of(tally((two, strip("000888", (8, 0)))).measure(CATEGORIES), "cat")["false"] == 0


def test_classes_without_segments_are_in_no_mean():
    result = tally((strip("11", (1, 0)), strip("55", (5, 0)))).measure(CATEGORIES)
    assert result["all"]["PQ"] == 100 and result["all"]["classes"] == 1
    assert result["stuff"] == {"PQ": None, "SQ": None, "RQ": None, "classes": 0}


def random_map(generator, *, crowds):
    """10 x 12 pixels in blobs of up to 6 segments, some void; large ids that need three channels."""
    coarse = torch.randint(0, 7, (5, 4), generator=generator).repeat_interleave(2, 0).repeat_interleave(3, 1)
    names = [0, 5, 300, 70000, 9, 256, 65536]
    ids = torch.tensor(names)[coarse]
    rows = []
    for one in names[1:]:
        if (ids == one).any():
            label = int(torch.randint(0, 3, (), generator=generator))
            is_crowd = crowds and label < 2 and bool(torch.rand((), generator=generator) < 0.3)
            rows.append((one, label, "crowd") if is_crowd else (one, label))
    return PanopticMap(ids, segments(*rows))


def slow(pairs):
    """(sum of IoU, matched, false, missed) of each class, from boolean masks by the text of the rule."""
    total = {label: [0.0, 0, 0, 0] for label in range(3)}
    for truth, found in pairs:
        void, hit, taken = truth.ids == 0, set(), set()
        for a in truth.segments:
            for b in found.segments:
                mine, its = truth.ids == a.id, found.ids == b.id
                iou = ((mine & its).sum() / ((mine | its) & ~(its & void)).sum()).item()
                if a.label == b.label and not a.is_crowd and iou > 0.5:
                    total[a.label][0] += iou
                    total[a.label][1] += 1
                    hit.add(b.id)
                    taken.add(a.id)
        for a in truth.segments:
            total[a.label][3] += not a.is_crowd and a.id not in taken
        for b in found.segments:
            own = [a for a in truth.segments if a.is_crowd and a.label == b.label]
            excuse = void | (truth.ids == own[-1].id) if own else void
            its = found.ids == b.id
            total[b.label][2] += b.id not in hit and not (its & excuse).sum() > its.sum() / 2
    return total


def noisy(truth, generator):
    """A prediction similar to the truth: other ids, and a quarter of the rows replaced."""
    ids = truth.ids.clone()
    ids[torch.rand(10, generator=generator) < 0.25] = 5
    rows = [(one.id, one.label) for one in truth.segments if (ids == one.id).any()]
    if (ids == 5).any() and 5 not in [one for one, _ in rows]:
        rows.append((5, 1))
    return PanopticMap(ids, segments(*rows))


def make_pairs(count):
    generator = torch.Generator().manual_seed(0)
    truths = [random_map(generator, crowds=True) for _ in range(count)]
    return [(truth, noisy(truth, generator) if place % 2 else random_map(generator, crowds=False))
            for place, truth in enumerate(truths)]  # fmt: skip


def test_pq_equals_a_slow_loop():
    pairs = make_pairs(40)
    counted, expected = tally(*pairs), slow(pairs)
    assert sum(row[1] for row in expected.values()) > 20  # there is something to match
    for label, (iou, matched, false, missed) in expected.items():
        assert counted.iou[label] == pytest.approx(iou)
        assert (counted.matched[label], counted.false[label], counted.missed[label]) == (matched, false, missed)


def without_crowds(one):
    kept = tuple(segment for segment in one.segments if not segment.is_crowd)
    crowds = torch.tensor([segment.id for segment in one.segments if segment.is_crowd])
    return PanopticMap(one.ids.where(~torch.isin(one.ids, crowds), 0), kept)


def write(folder, name, maps):
    """Maps as COCO's panoptic files: a JSON and a folder of PNGs beside it."""
    (folder / name).mkdir()
    (folder / "images").mkdir(exist_ok=True)
    annotations, images = [], []
    for number, one in enumerate(maps):
        ids = one.ids.numpy()
        colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)
        Image.fromarray(colours).save(folder / name / f"{number}.png")
        (folder / "images" / f"{number}.jpg").touch()
        infos = []
        for segment in one.segments:
            ys, xs = np.nonzero(ids == segment.id)
            box = [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]
            category = CATEGORIES[segment.label].id
            infos.append({"id": segment.id, "category_id": category, "iscrowd": int(segment.is_crowd),
                          "area": len(xs), "bbox": box})  # fmt: skip
        annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": infos})
        images.append({"id": number, "file_name": f"{number}.jpg", "height": ids.shape[0], "width": ids.shape[1]})
    categories = [{"id": one.id, "name": one.name, "isthing": int(one.is_thing)} for one in CATEGORIES]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"{name}.json").write_text(json.dumps(content))
    return folder / f"{name}.json"


def test_pq_equals_hotcoco_from_files(tmp_path):
    pairs = make_pairs(24)
    truth, found = (
        write(tmp_path, name, [pair[side] for pair in pairs]) for side, name in enumerate(("truth", "found"))
    )
    theirs = hotcoco.pq_compute(truth, found)
    dataset = read_panoptic(truth, tmp_path / "images", tmp_path / "truth")
    mine = evaluate_panoptic([(str(number), pair[1]) for number, pair in enumerate(pairs)], dataset)
    for group, name in (("all", "All"), ("things", "Things"), ("stuff", "Stuff")):
        for key in ("PQ", "SQ", "RQ"):
            assert mine[group][key] == pytest.approx(100 * theirs[name][key.lower()])
        assert mine[group]["classes"] == theirs[name]["n"]
    # the truth is perfect but for its crowds (where two of a class stand in an image); without a result all is missed
    perfect = [(str(number), without_crowds(pair[0])) for number, pair in enumerate(pairs)]
    assert evaluate_panoptic(perfect, dataset)["all"]["PQ"] == pytest.approx(100)
    half = evaluate_panoptic(perfect[:12], dataset)
    assert half["images_without_result"] == {"count": 12, "first": ["12", "13", "14", "15", "16"]}
    missed = sum(not one.is_crowd for pair in pairs[12:] for one in pair[0].segments)
    assert sum(one["missed"] for one in half["per_class"]) == missed
    with pytest.raises(InputError, match="image 99: need predictions of each image of truth once"):
        evaluate_panoptic([("99", pairs[0][1])], dataset)
    with pytest.raises(InputError, match=r"image 0: .* came twice"):
        evaluate_panoptic([perfect[0], perfect[0]], dataset)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (strip("999", (9, 0)), "need a prediction of"),
        (
            PanopticMap(torch.tensor([[9, 9]]), (SegmentInfo(9, 3, True),)),
            "segment 9 has 3",
        ),
        (strip("98", (9, 0)), "1 pixels are of segment 8, which is not listed"),
        (strip("99", (9, 0), (8, 0)), r"need pixels of each segment; got none of \[8\]"),
        (strip("99", (9, 0), (9, 1)), "need an id of at least 1 for each segment, each once"),
        (strip("00", (0, 0)), "need an id of at least 1"),
    ],
)
def test_wrong_maps_are_refused(found, reason):
    with pytest.raises(InputError, match=f"image x.*{reason}"):
        tally((strip("11", (1, 0)), found))
