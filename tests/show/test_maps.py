"""Maps of one image: padding is removed, planted clusters are recovered, sheets are written."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from foveate.clip.text import embed_vocabulary
from foveate.errors import InputError
from foveate.ops.resample import normalize, resize_longest
from foveate.show.kmeans import kmeans_map, kmeans_sheet, match_labels
from foveate.show.maps import dense_map
from foveate.show.similarity import similarity_map, similarity_sheet


def noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_the_padding_is_removed(small_clip):
    # 30 x 60 at 64 px becomes 32 x 64: 4 rows and 8 columns of 8 px; at 62 x 20 it is 64 x 21: 8 rows, 3 begun columns
    assert dense_map(small_clip, noise(30, 60), size=64).shape == (24, 4, 8)
    assert dense_map(small_clip, noise(62, 20), size=64).shape == (24, 8, 3)


def test_the_map_is_that_of_the_padded_square(small_clip):
    image = noise(32, 64)
    padded = torch.zeros(1, 3, 64, 64)
    padded[0, :, :32] = resize_longest(image, size=64)
    padded = normalize(padded, mean=small_clip.mean, std=small_clip.std)  # black below
    with torch.inference_mode():
        expected = small_clip.encode_dense(padded)[0, :, :4]
    torch.testing.assert_close(dense_map(small_clip, image, size=64), expected)


def test_kmeans_separates_planted_halves(small_clip, monkeypatch):
    """Tokens around two directions, left and right: two clusters with the planted border."""
    generator = torch.Generator().manual_seed(0)
    tokens = 0.2 * torch.randn(1, 24, 8, 8, generator=generator)
    tokens[:, 0, :, :3] += 3
    tokens[:, 1, :, 3:] += 3
    monkeypatch.setattr(small_clip, "encode_dense", lambda images, head: F.normalize(tokens, dim=1))
    labels = kmeans_map(small_clip, noise(40, 40), size=64, clusters=2)
    assert (labels[:, 3:] == 0).all() and (labels[:, :3] == 1).all()  # the larger group is 0


def test_kmeans_is_repeatable_and_takes_few_tokens(small_clip):
    first = kmeans_map(small_clip, noise(40, 64), size=64, clusters=4, seed=3)
    assert first.shape == (5, 8) and torch.equal(
        first, kmeans_map(small_clip, noise(40, 64), size=64, clusters=4, seed=3)
    )
    assert kmeans_map(small_clip, noise(4, 16), size=16, clusters=8).shape == (1, 2)


def test_clusters_are_matched_by_overlap():
    like = torch.tensor([[0, 0, 0, 1], [0, 0, 2, 1]])
    labels = torch.tensor([[2, 2, 2, 0], [2, 2, 1, 0]])
    assert torch.equal(match_labels(labels, like), like)
    # one group against three: it takes the one it overlaps most; five against one: all stay apart
    assert match_labels(torch.zeros(2, 4, dtype=torch.int64), like).unique().tolist() == [0]
    many = torch.arange(8).reshape(2, 4)
    assert match_labels(many, torch.zeros_like(many)).unique().numel() == 8


def test_similarity_is_the_cosine_at_each_location(small_clip):
    image = noise(48, 64)
    cosine = similarity_map(small_clip, image, "a lamp", size=64)
    assert cosine.shape == (48, 64)
    with torch.inference_mode():
        text = embed_vocabulary(small_clip, ["a lamp"], templates="none")[0]
        expected = (dense_map(small_clip, image, size=64) * text[:, None, None]).sum(dim=0)  # (6, 8)
    # between two locations, half-way, bilinear interpolation gives their mean: the four middle pixels of a patch border
    for row, column in ((0, 0), (2, 5), (4, 6)):
        y, x = 8 * row + 8, 8 * column + 8
        middle = cosine[y - 1 : y + 1, x - 1 : x + 1].mean()
        assert middle.item() == pytest.approx(expected[row : row + 2, column : column + 2].mean().item(), abs=1e-5)


def test_sheets_are_written(small_clip, tmp_path):
    images = [("one", noise(40, 64)), ("two <&>", noise(64, 30))]
    models = [("before", small_clip), ("after", small_clip)]
    kmeans_sheet(tmp_path / "new/k.png", images, models=models, size=64, clusters=3)
    similarity_sheet(tmp_path / "s.png", images, models=models[:1], size=64)
    for path, least in ((tmp_path / "new/k.png", 1000), (tmp_path / "s.png", 700)):
        with Image.open(path) as sheet:
            assert sheet.format == "PNG" and sheet.width > least
    assert [path.name for path in tmp_path.rglob("*.partial")] == []


def test_wrong_arguments_are_refused(small_clip, tmp_path):
    models = [("model", small_clip)]
    with pytest.raises(InputError, match="need at least one"):
        kmeans_sheet(tmp_path / "k.png", [], models=models, size=64)
    with pytest.raises(InputError, match="clusters: need 1 to 12"):
        kmeans_sheet(tmp_path / "k.png", [("one", noise(9, 9))], models=models, size=64, clusters=13)
