"""Captions in every form, and errors with file, entry and reason."""

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from foveate.data.captions import BLANK, NO_CAPTION, UNKNOWN_IMAGE, only_captioned, read_captions, with_captions
from foveate.data.datasets.folder import read_folder
from foveate.data.datasets.shards import read_pairs
from foveate.data.loader import BatchSampler, ImageSource, make_loader
from foveate.data.sources import open_data
from foveate.data.world.write import WorldSize, write_world
from foveate.errors import InputError
from foveate.types import BadSample, Sample


def write_shard(path: Path, members: dict[str, bytes]) -> None:
    image = io.BytesIO()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(image, "PNG")
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            content = image.getvalue() if name.endswith(".png") else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A COCO root of four images: two captions, one, a blank one, and none listed."""
    (tmp_path / "train2017").mkdir()
    for i in range(4):
        Image.new("RGB", (8 + i, 8)).save(tmp_path / "train2017" / f"{i:012d}.png")
    (tmp_path / "annotations").mkdir()
    write(tmp_path, CONTENT)
    return tmp_path


CONTENT = {
    "images": [{"id": i, "file_name": f"{i:012d}.png", "height": 8, "width": 8 + i} for i in (2, 0, 1)],
    "annotations": [
        {"id": 7, "image_id": 0, "caption": " a dog. "},
        {"id": 8, "image_id": 1, "caption": "a cat"},
        {"id": 9, "image_id": 0, "caption": "two dogs"},
        {"id": 5, "image_id": 2, "caption": " \n"},
    ],
}


def write(root: Path, content: object) -> Path:
    path = root / "annotations" / "captions_train2017.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_coco_captions_are_matched_to_images_and_ignored_ones_counted(root):
    dataset = with_captions(open_data(root, split="train", annotations="none"), root=root, split="train")
    assert dataset.captions == (("a dog.", "two dogs"), ("a cat",), (), ())
    assert dataset.ignored[BLANK].count == 1 and "annotation 5" in dataset.ignored[BLANK].first
    left = only_captioned(dataset)
    assert [record.id for record in left.records] == ["000000000000.png", "000000000001.png"]
    assert [*left.captions] == [("a dog.", "two dogs"), ("a cat",)] and len(left.records) == 2
    assert left.records[0:1] == (left.records[0],)
    assert left.ignored[NO_CAPTION].count == 2 and left.ignored[NO_CAPTION].first == "000000000002.png"
    assert only_captioned(left) is left


def changed(entry: int, **fields: object) -> dict:
    annotations = [dict(entry) for entry in CONTENT["annotations"]]
    annotations[entry] |= fields
    return {**CONTENT, "annotations": annotations}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"captions_train2017\.json: need a captions file in JSON; JSONDecodeError"),
        ("[]", r'need \{"file name": \["caption"'),
        ("{}", r'need \{"file name": \["caption"'),
        ({"annotations": []}, "need a COCO captions file: an object with the lists `images` and `annotations`; got no"),
        ({"images": [], "annotations": []}, "need at least one caption; got none"),
        (changed(1, caption=5), "annotation 8: need `caption`, a string .*; got 5"),
        (changed(1, caption=""), "annotation 8: need `caption`, a string"),
        (changed(1, image_id=99), "annotation 8: need `image_id`, one of the 3 ids in the file; got 99"),
        (changed(1, image_id=True), "annotation 8: need `image_id`"),
        (changed(1, id=7), "annotation 7: need a unique `id` per annotation"),
        ({**CONTENT, "annotations": [{"image_id": 0, "caption": "a"}]}, "annotation: need an `id`"),
        ({**CONTENT, "images": [*CONTENT["images"], CONTENT["images"][0]]}, "image 2: need a unique `id` per image"),
        (
            {**CONTENT, "images": [*CONTENT["images"], {**CONTENT["images"][0], "id": 9}]},
            "a unique `file_name` per image; got '000000000002.png' twice",
        ),
        ({"a.png": "a dog"}, "image 'a.png': need a list of strings; got 'a dog'"),
        ({"a.png": ["a dog", None]}, "image 'a.png': need a list of strings"),
        ('{"a.png": ["a"], "a.png": ["b"]}', "need unique keys in each object; got 'a.png' 2 times"),
        ({"a.png": [" "]}, "need at least one caption"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(root, content, message):
    with pytest.raises(InputError, match=message):
        read_captions(write(root, content))


def test_custom_caption_files(root, tmp_path):
    dataset = read_folder(root / "train2017")
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"000000000001.png": ["x", "y "], "elsewhere.png": ["z"], "annotations": ["an image"]}))
    captioned = with_captions(dataset, root=root, split="train", file=path)
    assert captioned.captions == ((), ("x", "y"), (), ()) and captioned.ignored[UNKNOWN_IMAGE].count == 2
    path.write_text(json.dumps({"000000000001.png": ["x"], "000000000001": ["y"]}))
    with pytest.raises(InputError, match=r"'000000000001': need every image once; it is 000000000001\.png"):
        with_captions(dataset, root=root, split="train", file=path)
    path.write_text(json.dumps({"b.png": ["x"]}))
    with pytest.raises(InputError, match=r"none of its 1 \(such as 'b\.png'\) is among the 4"):
        with_captions(dataset, root=root, split="train", file=path)
    with pytest.raises(InputError, match=r"need captions; found neither .* --captions"):
        with_captions(dataset, root=root / "train2017", split="train")


def test_texts_of_shards_are_read_on_demand(tmp_path):
    members = {"1.txt": b" red\n", "1.png": b"", "0.png": b"", "2.png": b"", "2.txt": b"\xff", "3.txt": b"alone"}
    write_shard(tmp_path / "a.tar", {**members, "4.png": b"", "4.txt": b""})
    write_shard(tmp_path / "b.tar", {"5.png": b"", "5.txt": b"blue"})
    dataset = with_captions(open_data(tmp_path, split="train", annotations="none"), root=tmp_path, split="train")
    assert [record.id for record in dataset.records] == ["a.tar:1", "a.tar:0", "a.tar:2", "a.tar:4", "b.tar:5"]
    texts = dataset.captions
    assert len(texts) == 5 and texts[0] == ("red",) and texts[1:2] == ((),) and texts[4] == texts[-1] == ("blue",)
    with pytest.raises(InputError, match=r"a\.tar:2: need a caption in UTF-8"):
        texts[2]
    left = only_captioned(dataset)
    assert [record.id for record in left.records] == ["a.tar:1", "a.tar:2", "b.tar:5"]
    source = ImageSource(left, captions=True)
    bad = source[(0, 1)]
    assert isinstance(bad, BadSample) and "UTF-8" in bad.reason
    captions = [s.caption for batch in make_loader(source, BatchSampler(3, batch=3, seed=0, batches=1), workers=2)
                for s in batch.samples]  # fmt: skip
    assert sorted(str(caption) for caption in captions) == ["blue", "red"]


def test_shards_without_texts_are_refused(tmp_path):
    write_shard(tmp_path / "a.tar", {"1.png": b""})
    with pytest.raises(InputError, match=r"need KEY\.txt beside KEY\.jpg"):
        with_captions(open_data(tmp_path, split="train", annotations="none"), root=tmp_path, split="train")


def test_world_pairs_have_the_captions_of_read_pairs(tmp_path):
    write_world(tmp_path / "w", WorldSize(train=1, val=1, test=1, pairs=5, seed=0), processes=1)
    pairs = tmp_path / "w" / "pairs"
    dataset = with_captions(open_data(pairs, split="train", annotations="none"), root=pairs, split="train")
    assert [caption for (caption,) in dataset.captions] == read_pairs(pairs, side=8)[1]


def test_regions_do_not_depend_on_captions(root):
    dataset = with_captions(read_folder(root / "train2017"), root=root, split="train")
    captioned = only_captioned(dataset)
    drawn = set()
    for epoch in range(20):
        for index in range(2):
            plain, told = (
                ImageSource(captioned)[(epoch, index)],
                ImageSource(captioned, captions=True)[epoch, index],
            )
            assert isinstance(plain, Sample) and isinstance(told, Sample)
            assert torch.equal(plain.boxes, told.boxes) and torch.equal(plain.image, told.image)
            assert plain.caption is None and told.caption in captioned.captions[index]
            drawn.add(told.caption)
    assert drawn == {"a dog.", "two dogs", "a cat"}
    with pytest.raises(InputError, match="need captions; none were read"):
        ImageSource(read_folder(root / "train2017"), captions=True)
