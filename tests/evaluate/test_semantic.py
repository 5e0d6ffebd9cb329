"""mIoU against hand-made cases, a slow loop and hotcoco's counts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hotcoco import metrics
from PIL import Image

from foveate.data.records import Dataset, Record
from foveate.data.semantic import Coding, SemanticData
from foveate.errors import InputError
from foveate.evaluate.semantic import Confusion, evaluate_semantic
from foveate.types import Category, LabelMap


def label_map(values) -> LabelMap:
    return LabelMap(torch.tensor(values, dtype=torch.int64))


def confusion(classes, *pairs) -> Confusion:
    counted = Confusion(classes)
    for truth, found in pairs:
        counted.add(label_map(truth), label_map(found), key="x")
    return counted


def test_miou_by_hand():
    # class 0: 3 pixels, 2 found, 1 more called so: 2/4. class 1: 2 pixels, 1 found, 1 wrongly: 1/3. class 2: no pixel
    # of it, called once: in no mean. class 3: neither. The three pixels without ground truth do not count
    counted = confusion(4, ([[0, 0, 0, -1], [1, 1, -1, -1]], [[0, 0, 1, 0], [0, 1, 1, 2]]), ([[0]], [[2]]))
    result = counted.measure("abcd", seen=[True, False, True, False])
    # the second image adds a pixel of class 0 called 2: 2/(4 + 3 - 2) = 2/5
    assert [one["IoU"] for one in result["per_class"]] == pytest.approx([40.0, 100 / 3, None, None])
    assert result["mIoU"] == pytest.approx((40 + 100 / 3) / 2)
    assert result["pixel_accuracy"] == pytest.approx(100 * 3 / 6)
    assert result["mean_accuracy"] == pytest.approx((50 + 50) / 2)
    assert result["groups"] == {
        "seen": {"classes": 1, "mIoU": pytest.approx(40.0)},
        "unseen": {"classes": 1, "mIoU": pytest.approx(100 / 3)},
    }
    assert result["classes"] == {"all": 4, "with_ground_truth": 2} and result["ignored_pixels"] == 3
    assert result["pixels"] == 6 and "exclude classes without ground truth" in result["rule"]
    assert [one["called"] for one in result["per_class"]] == [3, 2, 1, 0]


def test_a_pixel_without_prediction_is_missed():
    result = confusion(1, ([[0, 0]], [[0, -1]])).measure("a")
    assert result["mIoU"] == 50 and result["pixel_accuracy"] == 50 and result["pixels_without_prediction"] == 1
    empty = confusion(2, ([[-1]], [[0]])).measure("ab")
    assert empty["mIoU"] is None and empty["pixel_accuracy"] is None


def test_miou_equals_a_slow_loop_and_hotcoco():
    generator = torch.Generator().manual_seed(0)
    pairs = [
        (
            torch.randint(-1, 6, (7, 9), generator=generator).tolist(),
            torch.randint(0, 7, (7, 9), generator=generator).tolist(),
        )
        for _ in range(4)
    ]
    counted = confusion(7, *pairs)
    result = counted.measure("abcdefg")
    slow = []
    for k in range(7):
        both = either = own = 0
        for truth, found in pairs:
            for row, guesses in zip(truth, found, strict=True):
                for t, f in zip(row, guesses, strict=True):
                    both += t == f == k
                    either += t != -1 and (t == k or f == k)
                    own += t == k
        slow.append(100 * both / either if own else None)
    assert [one["IoU"] for one in result["per_class"]] == pytest.approx(slow) and slow[6] is None
    assert result["mIoU"] == pytest.approx(sum(slow[:6]) / 6)
    truth = np.array([truth for truth, _ in pairs])
    theirs = metrics.pixel_confusion(np.where(truth < 0, 255, truth), np.array([found for _, found in pairs]), 7,
                                     ignore_index=255)  # fmt: skip
    assert (counted.counts[:, :-1] == theirs).all()
    means = metrics.mean_iou(theirs)
    assert means["aAcc"] * 100 == pytest.approx(result["pixel_accuracy"])
    # theirs counts the class that was called but has no ground truth as 0 of 7: the rule must be named
    assert means["mIoU"] * 700 == pytest.approx(result["mIoU"] * 6)


def test_wrong_maps_are_refused():
    with pytest.raises(InputError, match=r"image x: need a prediction of 1 x 2 pixels .*; got 2 x 1"):
        confusion(2, ([[0, 1]], [[0], [1]]))
    with pytest.raises(InputError, match=r"need a prediction in 0\.\.1, or -1 for none; got 0\.\.2"):
        confusion(2, ([[0, 1]], [[0, 2]]))
    with pytest.raises(InputError, match="need a ground truth in"):
        confusion(2, ([[0, 5]], [[0, 1]]))


@pytest.fixture
def data(tmp_path):
    """Two images of 1 x 3 pixels, three classes; number 9 is none."""
    records = []
    for name, values in (("a", [[0, 1, 9]]), ("b", [[2, 2, 0]])):
        Image.fromarray(np.array(values, np.uint8)).save(tmp_path / f"{name}.png")
        records.append(Record(name, tmp_path / f"{name}.jpg", 1, 3, semantic=tmp_path / f"{name}.png"))
    categories = tuple(Category(one, name, True) for one, name in enumerate(("cat", "dog", "background")))
    return SemanticData(Dataset("tiny", categories, tuple(records), {}), Coding({0: 0, 1: 1, 2: 2, 9: -1}, bits=8))


def test_images_and_classes_are_matched(data):
    perfect = [("b", label_map([[2, 2, 0]])), ("a", label_map([[0, 1, 0]]))]
    result = evaluate_semantic(perfect, data)
    assert result["mIoU"] == 100 and result["images"] == 2 and result["images_without_result"]["count"] == 0
    # five words asked for, the last three stand for the background
    words = [("b", label_map([[4, 3, 0]])), ("a", label_map([[0, 1, 2]]))]
    assert evaluate_semantic(words, data, class_of=[0, 1, 2, 2, 2])["mIoU"] == 100
    # image a has no result: cat 1 of 2, dog 0 of 1, background whole
    part = evaluate_semantic(perfect[:1], data, seen=[True, True, False])
    assert part["mIoU"] == pytest.approx((50 + 0 + 100) / 3) and part["groups"]["seen"]["mIoU"] == pytest.approx(25)
    assert part["images_without_result"] == {"count": 1, "first": ["a"]} and part["pixels_without_prediction"] == 2


def test_unknown_images_are_refused(data):
    one = label_map([[0, 0, 0]])
    with pytest.raises(InputError, match="image z: need predictions of each image of tiny once"):
        evaluate_semantic([("z", one)], data)
    with pytest.raises(InputError, match=r"image a: .* came twice"):
        evaluate_semantic([("a", one), ("a", one)], data)
    with pytest.raises(InputError, match=r"need a prediction in 0\.\.1, the vocabulary's classes, or -1; got 2"):
        evaluate_semantic([("a", label_map([[2, 2, 2]]))], data, class_of=[0, 1])
    with pytest.raises(InputError, match="class_of: need classes in"):
        evaluate_semantic([], data, class_of=[3])
    with pytest.raises(InputError, match="seen: need one entry"):
        evaluate_semantic([], data, seen=[True])


def test_all_pixels_of_an_unreadable_image_are_missed(data, tmp_path):
    """Maps of the official data sets do not hold the size of their images; a broken image must not be needed."""
    records = tuple(Record(str(one.id), one.path, semantic=one.semantic) for one in data.dataset.records)
    for one in records:
        one.path.write_bytes(b"broken")
    found = evaluate_semantic([], replace(data, dataset=replace(data.dataset, records=records)))
    # a: cat, dog and one of none; b: two of the background and a cat
    assert found["pixels_without_prediction"] == found["pixels"] == 5 and found["mIoU"] == 0
    assert found["images_without_result"] == {"count": 2, "first": ["a", "b"]}
