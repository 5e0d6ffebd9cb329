"""Batches: order, resuming, the same bits for any number of workers, unreadable images."""

import itertools
import json
import os
import signal
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data._utils.pin_memory import pin_memory

from foveate.data.datasets.folder import read_folder
from foveate.data.loader import (
    BatchSampler,
    EvaluationSource,
    ImageSource,
    OnceSampler,
    _why_lost,
    derive_seed,
    epoch_order,
    make_loader,
    pack,
)
from foveate.data.records import Dataset
from foveate.data.sources import open_data
from foveate.errors import InputError
from foveate.types import BadSample, Batch, Sample


def make_images(folder: Path, count: int) -> Path:
    """Small images of different sizes, each of one colour, which encodes its number."""
    folder.mkdir(exist_ok=True)
    for i in range(count):
        Image.new("RGB", (20 + i, 15), (i, 0, 0)).save(folder / f"{i:02d}.png")
    return folder


def flat(batch: Batch) -> list[object]:
    """Everything in a batch, comparable."""
    good = [(s.id, s.image.tolist(), s.boxes.tolist(), s.caption) for s in batch.samples]
    return [good, [(b.id, b.reason) for b in batch.bad]]


# ---------------------------------------------------------------------------------------------------------- the order


def test_an_epochs_order_is_a_permutation_of_seed_and_epoch():
    order = epoch_order(50, seed=3, epoch=2)
    assert sorted(order) == list(range(50)) and order != list(range(50))
    assert order == epoch_order(50, seed=3, epoch=2)
    assert order != epoch_order(50, seed=4, epoch=2) and order != epoch_order(50, seed=3, epoch=3)


def test_seeds_do_not_collide_by_sums_or_digits():
    parts = [(1, 23), (12, 3), (123,), (23, 1), (0, 0), (0,), (0, 0, 0)]
    assert len({derive_seed(*p) for p in parts}) == len(parts)
    assert all(0 <= derive_seed(*p) < 2**63 for p in parts)


def test_every_epoch_has_every_image_once_for_any_batch_size():
    pairs = itertools.chain.from_iterable(BatchSampler(7, batch=3, seed=1, batches=14))  # 42 = 6 epochs of 7
    assert Counter(pairs) == Counter((epoch, index) for epoch in range(6) for index in range(7))


def test_a_batch_larger_than_the_data_set_spans_epochs():
    (first,) = BatchSampler(2, batch=5, seed=1, batches=1)
    assert [epoch for epoch, _ in first] == [0, 0, 1, 1, 2]


def test_a_sampler_starts_at_any_step():
    whole = list(BatchSampler(7, batch=3, seed=1, batches=20))
    for start in (0, 1, 9, 20):
        rest = BatchSampler(7, batch=3, seed=1, start=3 * start, batches=20 - start)
        assert list(rest) == whole[start:] and len(rest) == 20 - start


def test_a_step_does_not_depend_on_the_number_of_processes():
    alone = list(BatchSampler(10, batch=6, seed=1, batches=9))
    for world in (2, 3):
        shares = [BatchSampler(10, batch=6 // world, seed=1, rank=r, world_size=world, batches=9) for r in range(world)]
        assert [[*itertools.chain(*parts)] for parts in zip(*shares, strict=True)] == alone


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("taken", [0, 5, 8, 23])
def test_another_number_of_processes_resumes_the_stream(world, taken):
    # one process took `taken` images of two epochs of 20; what is left of them is shown once each by the others
    before = [*itertools.chain(*BatchSampler(20, batch=1, seed=1, batches=taken))]
    each = -(-(40 - taken) // (3 * world))  # batches of 3 that cover the rest
    shares = [
        [*BatchSampler(20, batch=3, seed=1, rank=rank, world_size=world, start=taken, batches=each)]
        for rank in range(world)
    ]
    in_order = [pair for batches in zip(*shares, strict=True) for batch in batches for pair in batch]
    assert Counter(before + in_order[: 40 - taken]) == Counter((e, i) for e in range(2) for i in range(20))
    assert {epoch for epoch, _ in in_order[40 - taken :]} <= {2, 3}  # beyond: the next epochs, nothing twice
    assert len(set(in_order)) == len(in_order) == each * 3 * world


def test_without_a_number_of_batches_the_stream_is_infinite():
    assert len(list(itertools.islice(BatchSampler(3, batch=2, seed=0), 100))) == 100


def test_an_empty_data_set_or_batch_is_refused():
    with pytest.raises(InputError, match="at least one image"):
        BatchSampler(0, batch=1, seed=0)
    with pytest.raises(InputError, match="batch"):
        BatchSampler(1, batch=0, seed=0)


def test_once_sampler_has_every_image_once():
    assert list(OnceSampler(5, batch=2)) == [[0, 1], [2, 3], [4]]
    assert list(OnceSampler(4, batch=2)) == [[0, 1], [2, 3]] and list(OnceSampler(0, batch=2)) == []
    assert all(len(list(OnceSampler(n, batch=3))) == len(OnceSampler(n, batch=3)) for n in range(8))


# -------------------------------------------------------------------------------------------------------- the images


def test_a_sample_has_the_image_and_a_grid(tmp_path):
    source = ImageSource(read_folder(make_images(tmp_path, 3)), keep=36)
    sample = source[(0, 2)]
    assert isinstance(sample, Sample) and sample.id == "02.png" and sample.segments is None
    assert sample.image.dtype == torch.uint8 and sample.image.shape == (3, 15, 22) and sample.image[0, 0, 0] == 2
    areas = (sample.boxes[:, 2] - sample.boxes[:, 0]) * (sample.boxes[:, 3] - sample.boxes[:, 1])
    assert sample.boxes.dtype == torch.float32 and areas.sum().item() == pytest.approx(15 * 22, rel=1e-5)


def test_regions_depend_on_seed_epoch_and_index_only(tmp_path):
    dataset = read_folder(make_images(tmp_path, 12))
    source = ImageSource(dataset, seed=1)

    def boxes(source: ImageSource, epoch: int) -> list[object]:
        return [source[(epoch, index)].boxes.tolist() for index in range(12)]

    first = boxes(source, 0)
    torch.manual_seed(99)  # the global stream plays no part
    assert boxes(source, 0) == first and boxes(ImageSource(dataset, seed=1), 0) == first
    assert boxes(source, 1) != first and boxes(ImageSource(dataset, seed=2), 0) != first


def test_an_image_one_pixel_wide_has_regions(tmp_path):
    Image.new("RGB", (1, 20)).save(tmp_path / "thin.png")
    source = ImageSource(read_folder(tmp_path))
    for epoch in range(20):
        sample = source[(epoch, 0)]
        assert isinstance(sample, Sample) and len(sample.boxes) >= 1
        assert (sample.boxes[:, :2] < sample.boxes[:, 2:]).all()


def test_invalid_arguments_of_a_source_are_refused(tmp_path):
    dataset = read_folder(make_images(tmp_path, 1))
    for numbers, reason in (
        ({"regions": "patches"}, '"grid" or "boxes"'),
        ({"regions": "boxes"}, "has none"),
        ({"keep": 0}, "keep"),
        ({"limit": 0}, "--grid: must be 1 to 64"),
        ({"rule": "mine"}, "rule"),
    ):
        with pytest.raises(InputError, match=reason):
            ImageSource(dataset, **numbers)


# --------------------------------------------------------------------------------------------------------- the batches


@pytest.mark.parametrize("workers", [0, 2])
def test_the_number_of_workers_does_not_change_the_bits(tmp_path, workers):
    source = ImageSource(read_folder(make_images(tmp_path, 7)), seed=5)
    (tmp_path / "03.png").write_bytes(b"broken")
    loader = make_loader(source, BatchSampler(7, batch=3, seed=5, batches=6), workers=workers)
    assert len(loader) == 6
    expected = [[source[pair] for pair in pairs] for pairs in BatchSampler(7, batch=3, seed=5, batches=6)]
    for batch, items in zip(loader, expected, strict=True):
        good = [(s.id, s.image.tolist(), s.boxes.tolist(), s.caption) for s in items if isinstance(s, Sample)]
        assert flat(batch) == [good, [(b.id, b.reason) for b in items if isinstance(b, BadSample)]]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_has_the_same_bits(tmp_path, workers):
    source = ImageSource(read_folder(make_images(tmp_path, 5)))

    def stream(start: int) -> list[object]:
        sampler = BatchSampler(5, batch=2, seed=0, start=2 * start, batches=8 - start)
        return [flat(batch) for batch in make_loader(source, sampler, workers=workers)]

    assert stream(3) == stream(0)[3:]


def test_loading_does_not_use_the_global_generator(tmp_path):
    source = ImageSource(read_folder(make_images(tmp_path, 4)))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for workers in (0, 1):
        list(make_loader(source, BatchSampler(4, batch=2, seed=0, batches=2), workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_listed_and_not_replaced(tmp_path, workers):
    dataset = read_folder(make_images(tmp_path, 4))
    (tmp_path / "01.png").write_bytes((tmp_path / "01.png").read_bytes()[:50])  # truncated
    (tmp_path / "02.png").unlink()  # gone since it was listed
    in_order = [[(0, index) for index in range(4)]]
    (batch,) = make_loader(ImageSource(dataset), in_order, workers=workers)
    assert [sample.id for sample in batch.samples] == ["00.png", "03.png"]
    assert [bad.id for bad in batch.bad] == ["01.png", "02.png"]
    assert str(tmp_path / "01.png") in batch.bad[0].reason and "not found" in batch.bad[1].reason


def test_a_batch_of_unreadable_images_is_empty(tmp_path):
    dataset = read_folder(make_images(tmp_path, 2))
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    (batch,) = make_loader(ImageSource(dataset), BatchSampler(2, batch=2, seed=0, batches=1), workers=0)
    assert batch.samples == [] and len(batch.bad) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_strict_raises_at_the_first_unreadable_image(tmp_path, workers):
    dataset = read_folder(make_images(tmp_path, 4))
    (tmp_path / "02.png").write_bytes(b"broken")
    in_order = [[(0, 0), (0, 1)], [(0, 2), (0, 3)]]
    batches = iter(make_loader(ImageSource(dataset), in_order, workers=workers, strict=True))
    assert [sample.id for sample in next(batches).samples] == ["00.png", "01.png"]
    with pytest.raises(InputError, match=r"image 02\.png: .*strict") as caught:
        next(batches)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_more_than_half_unreadable_images_raise(tmp_path, workers):
    dataset = read_folder(make_images(tmp_path, 10))
    for path in tmp_path.iterdir():
        path.write_bytes(b"broken")
    loader = make_loader(ImageSource(dataset), BatchSampler(10, batch=4, seed=0), workers=workers)  # would never end
    with pytest.raises(
        InputError, match="20 of the first 20 are unreadable"
    ):  # 16 may be unreadable; the fifth batch exceeds that
        list(loader)


def test_half_unreadable_images_do_not_raise(tmp_path):
    dataset = read_folder(make_images(tmp_path, 10))
    for i in range(0, 10, 2):
        (tmp_path / f"{i:02d}.png").write_bytes(b"broken")
    loader = make_loader(ImageSource(dataset), BatchSampler(10, batch=10, seed=0, batches=10), workers=0)
    assert sum(len(batch.bad) for batch in loader) == 50


def test_packing_and_unpacking_a_batch():
    samples = [
        Sample(str(i), torch.arange(3 * h * w, dtype=torch.uint8).view(3, h, w) + i, torch.rand(n, 4), caption=caption)
        for i, (h, w, n, caption) in enumerate([(2, 3, 4, None), (5, 1, 0, "a dog"), (1, 1, 1, None)])
    ]
    bad = BadSample("b", "bad")
    packed = pack([samples[0], bad, *samples[1:]])
    assert sum(isinstance(value, torch.Tensor) for value in vars(packed).values()) == 2
    batch = packed.unpack()
    assert batch.bad == [bad] and flat(batch) == flat(Batch(samples, [bad]))
    assert all(sample.image.is_contiguous() and sample.image.dtype == torch.uint8 for sample in batch.samples)
    assert pack([bad]).unpack() == Batch([], [bad])


def test_pinning_a_batch_pins_images_and_boxes(monkeypatch):
    pinned: list[torch.Size] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        """Notes what was pinned; this machine may have no GPU to pin for."""
        pinned.append(tensor.shape)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    sample = Sample("a", torch.full((3, 2, 2), 7, dtype=torch.uint8), torch.ones(1, 4))
    packed = pin_memory(pack([sample, BadSample("b", "bad")]))  # the DataLoader's own
    assert flat(packed.unpack()) == flat(Batch([sample], [BadSample("b", "bad")]))
    assert pinned == [(12,), (1, 4)]


def test_workers_below_zero_are_refused(tmp_path):
    source = ImageSource(read_folder(make_images(tmp_path, 1)))
    with pytest.raises(InputError, match="workers"):
        make_loader(source, BatchSampler(1, batch=1, seed=0), workers=-1)


# -------------------------------------------------------------------------------------------- from a folder to a sample


@pytest.fixture
def coco(tmp_path):
    """A COCO root of two 12 x 10 images: the first with a thing (2 2 6 6) over stuff, the second not there."""
    notes = tmp_path / "annotations"
    (notes / "panoptic_val2017").mkdir(parents=True)
    (tmp_path / "val2017").mkdir()
    Image.new("RGB", (10, 12), (50, 60, 70)).save(tmp_path / "val2017" / "1.png")
    colours = np.full((12, 10, 3), (0, 1, 0), np.uint8)  # id 256
    colours[2:6, 2:6] = (9, 0, 0)
    Image.fromarray(colours).save(notes / "panoptic_val2017" / "1.png")
    images = [{"id": i, "file_name": f"{i}.png", "height": 12, "width": 10} for i in (1, 2)]
    categories = [{"id": 1, "name": "person", "isthing": 1}, {"id": 2, "name": "wall", "isthing": 0}]
    infos = [{"id": 9, "category_id": 1, "bbox": [2, 2, 4, 4]}, {"id": 256, "category_id": 2, "bbox": [0, 0, 9, 9]}]
    panoptic = [{"image_id": i, "file_name": "1.png", "segments_info": infos} for i in (1, 2)]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [0, 0, 9, 9]} for i in (1, 2)]
    common = {"images": images, "categories": categories}
    (notes / "panoptic_val2017.json").write_text(json.dumps({**common, "annotations": panoptic}))
    (notes / "instances_val2017.json").write_text(json.dumps({**common, "annotations": boxes}))
    return tmp_path


def test_boxes_of_a_coco_root_are_regions(coco):
    source = ImageSource(open_data(coco, split="val"), regions="boxes")
    sample, bad = source[(0, 0)], source[(0, 1)]
    assert isinstance(sample, Sample) and sample.id == "1" and sample.boxes.tolist() == [[0, 0, 9, 9]]
    assert isinstance(bad, BadSample) and bad.id == "2" and "2.png" in bad.reason


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_samples_have_segments_with_masks(coco, workers):
    source = EvaluationSource(open_data(coco, split="val", annotations="panoptic"))
    (batch,) = make_loader(source, OnceSampler(len(source), batch=4), workers=workers)
    assert [bad.id for bad in batch.bad] == ["2"]
    (sample,) = batch.samples
    assert sample.segments is not None and sample.segments.masks.sum(dim=(1, 2)).tolist() == [16, 120 - 16]
    # the thing's box as annotated, the stuff's from the first to the last pixel of its mask
    assert sample.boxes.tolist() == [[2, 2, 6, 6], [0, 0, 9, 11]]


def test_a_damaged_panoptic_png_makes_an_unreadable_sample(coco):
    (coco / "annotations/panoptic_val2017/1.png").write_bytes(b"")
    bad = EvaluationSource(open_data(coco, split="val", annotations="panoptic"))[0]
    assert isinstance(bad, BadSample) and "panoptic_val2017/1.png" in bad.reason and "0 bytes" in bad.reason


def test_evaluation_without_masks_reads_no_png(coco):
    (coco / "annotations/panoptic_val2017/1.png").unlink()
    (coco / "annotations/panoptic_val2017/other.png").touch()
    (coco / "annotations/panoptic_val2017/1.png").write_bytes(b"")
    sample = EvaluationSource(open_data(coco, split="val", annotations="panoptic"), masks=False)[0]
    assert isinstance(sample, Sample) and sample.segments is not None and sample.segments.masks.shape == (2, 0, 0)
    assert sample.boxes.tolist() == [[2, 2, 6, 6], [0, 0, 9, 9]]  # both as annotated


def test_masks_without_panoptic_annotations_are_refused(coco):
    with pytest.raises(InputError, match="masks need panoptic"):
        EvaluationSource(open_data(coco, split="val"))


def test_an_image_of_another_size_than_annotated_is_unreadable(coco):
    Image.new("RGB", (10, 13)).save(coco / "val2017" / "1.png")
    bad = ImageSource(open_data(coco, split="val"))[(0, 0)]
    assert isinstance(bad, BadSample) and "need 12 x 10" in bad.reason


def test_open_data_reports_missing_files(coco, tmp_path):
    assert isinstance(open_data(coco / "val2017", split="anything"), Dataset)  # a plain folder has no splits
    with pytest.raises(InputError, match=r"need panoptic annotations of split .*not both exist"):
        open_data(coco / "val2017", split="val", annotations="panoptic")
    with pytest.raises(InputError, match="train2017"):
        open_data(coco, split="train")
    (coco / "annotations" / "instances_val2017.json").write_text("{")
    for images_only in (coco, coco / "val2017"):
        assert [record.id for record in open_data(images_only, split="val", annotations="none").records] == ["1.png"]
    with pytest.raises(InputError, match="train2017; the folder does not exist"):
        open_data(coco, split="train", annotations="none")
    (coco / "annotations" / "instances_val2017.json").unlink()
    with pytest.raises(InputError, match=r"instances_val2017\.json; not found"):
        open_data(coco, split="val")
    (coco / "annotations" / "panoptic_val2017.json").rename(coco / "annotations" / "instances_val2017.json")
    with pytest.raises(InputError, match=r"panoptic_val2017\.json and the folder"):
        open_data(coco, split="val", annotations="panoptic")


@pytest.mark.skipif("FOVEATE_COCO_MINI" not in os.environ, reason="FOVEATE_COCO_MINI names no folder of COCO images")
def test_every_real_coco_image_is_readable():
    root = Path(os.environ["FOVEATE_COCO_MINI"])
    for split in ("train", "val"):
        source = EvaluationSource(open_data(root, split=split, annotations="panoptic"))
        assert not [item for item in map(source.__getitem__, range(len(source))) if isinstance(item, BadSample)]
        images = ImageSource(open_data(root, split=split), regions="boxes")
        assert not [bad for i in range(len(images)) if isinstance(bad := images[(0, i)], BadSample)]


@pytest.mark.parametrize(
    ("exitcode", "said"),
    [
        (-signal.SIGBUS, "(pid 7) was killed by SIGBUS, as where /dev/shm is full ("),
        (-signal.SIGSEGV, "(pid 7) was killed by SIGSEGV, a crash of a library that it uses"),
        (3, "(pid 7) ended by itself with status 3"),
        (None, None),  # all are alive: the error is another one
    ],
)
def test_how_a_worker_died(exitcode, said):
    workers: list[Any] = [SimpleNamespace(pid=pid, exitcode=code) for pid, code in ((6, None), (7, exitcode))]
    reason = _why_lost(RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), workers)
    assert (reason is None) if said is None else (reason is not None and said in reason)
    assert _why_lost(MemoryError(), []) == "memory ran out in this process, which decodes images"
