"""The whole step and the whole evaluation against the plain implementation: another loader, another tower code, another
optimizer; Pillow, torch and the libraries' modules are all they share.

On `exact` images nothing is resized, so the numbers must agree to rounding.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.clip.text import embed_vocabulary
from foveate.data.batches import Loading
from foveate.data.images import read_image
from foveate.data.records import Dataset, Record
from foveate.evaluate.regions import evaluate_regions
from foveate.ops.resample import crop_and_resize, normalize, square_inputs
from foveate.types import Category
from inputs import exact, photographs, to_batch
from plain.data import crop_square
from plain.evaluation import PlainSegments, accuracy, embed
from plain.towers import dense
from sides import LR, Ours, copy_of, gradient_difference, plain_images, plain_step, stacked

SIZES = {"eva": 48, "vit": 40, "vit-quickgelu": 40, "vit-scaled": 40}  # 6 or 5 patches a side, unlike the native grids


@pytest.fixture(params=SIZES)
def pair(request, make_clip):
    """Two towers of a family, unlike one another, and the student's size."""
    return make_clip(request.param, seed=1), make_clip(request.param, seed=2), SIZES[request.param]


def plain_of(student, teacher, size):
    """The plain side and what its loader gives for three images with different numbers of regions."""
    items = exact(3, crops=5, student_size=size, teacher_size=teacher.native_size)
    items[1] = (items[1][0], items[1][1][:2])
    plain = plain_step(copy_of(student), copy_of(teacher))
    return items, plain, stacked(plain_images(items, teacher, size=size))


def test_loss_and_gradients_are_those_of_the_plain_step(pair):
    student, teacher, size = pair
    items, plain, (images, boxes, crops) = plain_of(student, teacher, size)
    theirs = plain.loss(images, *plain.valid(boxes, crops))
    theirs.backward()
    ours = Ours(student, teacher, size=size)
    loss = ours.loss(to_batch(items))
    loss.backward()
    assert 0.1 < theirs.item() < 1.9
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert gradient_difference(student.visual, plain.student) < 1e-4


def test_two_steps_move_the_weights_alike(pair):
    student, teacher, size = pair
    items, plain, samples = plain_of(student, teacher, size)
    before = [parameter.detach().clone() for parameter in student.visual.parameters()]
    ours, batch = Ours(student, teacher, size=size), to_batch(items)
    for _ in range(2):
        ours.step(batch)
        plain.step(*samples)
    moved = 0
    for old, a, b in zip(before, student.visual.parameters(), plain.student.parameters(), strict=True):
        if b.grad is None:
            assert torch.equal(a, old) and torch.equal(b, old)
            continue
        learns = b.grad.abs() > 1e-6  # AdamW divides a gradient by its own size: where it is rounding, it goes anywhere
        assert (a - b).detach()[learns].abs().max() <= 0.02 * LR
        moved += int(((a - old).detach()[learns].abs() > LR).sum())
    old = {id(parameter): value for parameter, value in zip(student.visual.parameters(), before, strict=True)}
    for parameter, rows in ours.partly:  # queries and keys nobody asks for stay; the plain optimizer decays them
        assert torch.equal(parameter[: rows.start], old[id(parameter)][: rows.start])
    assert moved > 1000


def test_teacher_embeddings_are_those_of_the_library(pair):
    _, teacher, size = pair
    _, plain, (_, boxes, crops) = plain_of(teacher, teacher, size)
    packed = plain.valid(boxes, crops)[1]
    assert packed.shape[0] == 5 + 2 + 5
    torch.testing.assert_close(teacher.encode_image(packed), plain.targets(packed), rtol=0, atol=1e-5)


@torch.no_grad()
def test_dense_maps_agree_on_rectangles(pair):
    student, _, size = pair
    images = torch.randn(2, 3, size, size + 16, generator=torch.Generator().manual_seed(0))
    ours, plain = student.encode_dense(images, normalize=False), dense(student.visual, images)
    assert ours.std() > 0.05
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


def test_the_plain_loader_sees_the_images_we_see(make_clip):
    teacher = make_clip("vit")
    [(path, boxes)] = photographs(1, crops=3)
    image, pil_image = read_image(path), Image.open(path)
    pil_image.load()  # closes the file
    size, mean, std = 160, teacher.mean, teacher.std
    ours = normalize(crop_and_resize(image, torch.tensor(boxes), size=48), mean=mean, std=std)
    plain = torch.stack([crop_square(pil_image, box, 48, mean, std) for box in boxes])
    level = 1 / 255 / min(std)  # Pillow rounds to grey levels after each of its two passes
    assert (ours - plain).abs().max() <= 1.01 * level and ours.std() > 0.3
    [(square, rows, _)] = [plain_images([(path, boxes)], teacher, size=size)[0]]
    assert (square_inputs([image], size=size, mean=mean, std=std)[0] - square).abs().max() <= 1.01 * level
    assert rows[:, 4].tolist() == [1.0] * 3 + [0.0] * 17
    torch.testing.assert_close(rows[:3, :4], torch.tensor(boxes) / 4)  # 640 pixels became 160


def test_evaluation_scores_are_those_of_the_plain_one(make_clip, tmp_path):
    clip = make_clip("eva")
    size, dataset = 48, annotated(tmp_path, count=6, size=(48, 36))
    ours = evaluate_regions(clip, dataset, sizes=[size], crops=False, templates=("a {}.",), loading=Loading(batch=4))[
        "dense"
    ][size]
    text = embed_vocabulary(clip, [one.name for one in dataset.categories], templates=("a {}.",), cache=None)
    rows = [
        (one.path, one.panoptic, list(one.segment_ids), [list(box) for box in one.boxes], list(one.labels), things(one))
        for one in dataset.records
    ]
    plain = PlainSegments(
        rows, student_size=size, teacher_size=clip.native_size, patch=8, mean=clip.mean, std=clip.std
    )  # fmt: skip
    samples = [plain[i] for i in range(len(plain))]
    boxes, masks = (
        torch.cat(some) for some in zip(*(embed(clip.visual, one, patch=8) for one in samples), strict=True)
    )
    labels, thing = torch.cat([one[3] for one in samples]), torch.cat([one[4] for one in samples])
    for top in (1, 5):
        assert ours["boxes"][f"top{top}"] == pytest.approx(accuracy(boxes[thing], labels[thing], text, top))
        assert ours["stuff_boxes"][f"top{top}"] == pytest.approx(accuracy(boxes[~thing], labels[~thing], text, top))
        assert ours["things"][f"top{top}"] == pytest.approx(accuracy(masks[thing], labels[thing], text, top))
        assert ours["stuff"][f"top{top}"] == pytest.approx(accuracy(masks[~thing], labels[~thing], text, top))
    assert ours["boxes"]["count"] == 12 and ours["stuff"]["count"] == 12
    assert len({ours[kind]["top5"] for kind in ("boxes", "things", "stuff")}) > 1  # so that equal says something
    assert samples[0][5].shape == (4, 3, clip.native_size, clip.native_size)  # the crops it makes for nobody


def things(record: Record) -> list[bool]:
    return [label < 4 for label in record.labels]


def annotated(folder: Path, *, count: int, size: tuple[int, int]) -> Dataset:
    """Images of noise, each in four quarters: two things and two kinds of stuff."""
    categories = tuple(Category(i + 1, f"name {i}", is_thing=i < 4) for i in range(8))
    draw, (width, height), records = np.random.default_rng(0), size, []
    for i in range(count):
        coarse = draw.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(folder / f"{i}.png")
        colours = np.zeros((height, width, 3), np.uint8)
        places = [(0, 0), (width // 2, 0), (0, height // 2), (width // 2, height // 2)]
        corners = [(x, y, x + width // 2, y + height // 2) for x, y in places]
        for segment, (x1, y1, x2, y2) in enumerate(corners, start=1):
            colours[y1:y2, x1:x2, 0] = segment
        Image.fromarray(colours).save(folder / f"{i}_ids.png")
        labels = (*draw.integers(0, 4, 2).tolist(), *draw.integers(4, 8, 2).tolist())
        boxes = tuple(tuple(float(number) for number in box) for box in corners)
        ids = folder / f"{i}_ids.png"
        crowd, segments = (False,) * 4, (1, 2, 3, 4)
        records.append(Record(i, folder / f"{i}.png", height, width, boxes, labels, crowd, segments, ids))
    return Dataset("quarters", categories, tuple(records), {})
