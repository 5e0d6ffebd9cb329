"""`foveate show kmeans` and `similarity` as commands."""

import pytest
from PIL import Image

from foveate.clip.io.weights import save_clip
from foveate.errors import InputError
from foveate.io.outputs import has_mark
from foveate.show.commands import run_kmeans, run_similarity
from foveate.show.flags import KMeans, Similarity


@pytest.fixture(scope="module")
def model(small_clip, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_clip(small_clip, folder)
    return str(folder)


@pytest.fixture()
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(5):
        Image.effect_noise((60, 40), 90).convert("RGB").save(folder / f"{number}.png")
    return folder


def height_of(path) -> int:
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        return sheet.height


def test_the_kmeans_command(model, images, tmp_path, capsys):
    one = run_kmeans(KMeans(data=images / "2.png", model=model, out=tmp_path / "one.png", size=64))
    many = run_kmeans(KMeans(data=images, model=model, reference=model, out=tmp_path / "many.png", size=64, limit=3))
    assert has_mark(one, "foveate show kmeans")
    assert height_of(many) > 2 * height_of(one)
    assert f"wrote {many}" in capsys.readouterr().out


def test_the_similarity_command(model, images, tmp_path):
    """Every image is drawn for every text."""
    config = {"data": images, "model": model, "size": 64, "limit": 2}
    one = run_similarity(Similarity(**config, vocab="cup", out=tmp_path / "1.png"))
    two = run_similarity(Similarity(**config, vocab="cup, dog", out=tmp_path / "2.png"))
    assert has_mark(one, "foveate show similarity")
    assert height_of(two) > 1.6 * height_of(one)


def test_wrong_flags_are_refused(model, images, tmp_path):
    with pytest.raises(InputError, match="PNG file"):
        run_kmeans(KMeans(data=images, model=model, out=tmp_path / "k.jpg"))
    with pytest.raises(InputError, match="--limit"):
        run_similarity(Similarity(data=images, model=model, vocab="cup", out=tmp_path / "k.png", limit=0))
    with pytest.raises(InputError, match="need a name in each position"):
        run_similarity(Similarity(data=images, model=model, vocab=" , ", out=tmp_path / "k.png"))
    for size in (0, -8, 60):
        for before in (None, model):
            with pytest.raises(InputError, match=f"--size: .*; got {size}"):
                run_kmeans(KMeans(data=images, model=model, reference=before, out=tmp_path / "k.png", size=size))
    with pytest.raises(InputError, match="--device"):
        run_kmeans(KMeans(data=images, model=model, out=tmp_path / "k.png", device="foo"))


def test_a_coco_root_needs_no_annotations(model, images, tmp_path):
    images.rename(tmp_path / "val2017")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").write_text("{")
    run_kmeans(KMeans(data=tmp_path, model=model, out=tmp_path / "k.png", size=32, limit=1))
