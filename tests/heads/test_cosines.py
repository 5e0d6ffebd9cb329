"""Classes of pixels by cosines, against a slow loop and by hand."""

import torch
import torch.nn.functional as F

from foveate.clip.load import load
from foveate.clip.vocabulary import Vocabulary
from foveate.heads.common.text import ClassEmbeddings, embed_classes
from foveate.heads.cosines import Cosines
from foveate.ops.argmax import best_labels, classes_at_once
from foveate.ops.resample import normalize
from foveate.types import Sample


def test_the_best_class_does_not_depend_on_chunks():
    scores = torch.tensor([[[1.0, 0.0]], [[1.0, 2.0]], [[0.0, 3.0]], [[5.0, 3.0]]])  # (4, 1, 2)
    # pixel 0: 1 1 0 5 -> 3; pixel 1: 0 2 3 3 -> the first of the equal ones, 2
    for sizes in ([4], [1, 3], [2, 2], [1, 1, 1, 1]):
        assert best_labels(scores.split(sizes)).labels.tolist() == [[3, 2]]


def test_locations_have_the_class_of_the_nearest_synonym():
    clip = load("foveate-small")
    patch, (height, width) = clip.patch_size, (64, 48)
    image = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    words = embed_classes(clip, Vocabulary((("grass", "lawn"), ("sky",), ("disc",))), templates="none")
    assert words.labels.tolist() == [0, 0, 1, 2]
    (found,) = Cosines(clip, size=64).label_maps([Sample("a", image, torch.zeros(0, 4))], words)

    # 64 x 48 is the size it sees the image at, so nothing is resized
    dense = clip.encode_dense(normalize(image.float(), mean=clip.mean, std=clip.std)[None])[0].detach()
    scores = torch.empty(3, height // patch, width // patch)
    for y in range(height // patch):
        for x in range(width // patch):
            each = [float(F.cosine_similarity(dense[:, y, x], row, dim=0)) for row in words.embeddings]
            scores[:, y, x] = torch.tensor([max(each[0], each[1]), each[2], each[3]])
    large = F.interpolate(scores[None], size=(height, width), mode="bilinear", align_corners=False)[0]
    best = large.topk(2, dim=0).values
    clear = best[0] - best[1] > 1e-5  # elsewhere rounding decides
    assert clear.float().mean() > 0.95 and torch.equal(found.labels[clear], large.argmax(dim=0)[clear])


def test_many_classes_and_any_image_size():
    clip = load("foveate-small")
    image = torch.randint(0, 256, (3, 37, 81), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    rows = F.normalize(torch.randn(70, clip.embed_dim, generator=torch.Generator().manual_seed(2)), dim=1)
    sample = Sample("a", image, torch.zeros(0, 4))
    (found,) = Cosines(clip).label_maps([sample], ClassEmbeddings(rows, torch.arange(70), 70))
    assert found.labels.shape == (37, 81) and found.labels.max() > 40  # more than one part of 32 classes was asked
    order = torch.randperm(70, generator=torch.Generator().manual_seed(3))
    (other,) = Cosines(clip).label_maps([sample], ClassEmbeddings(rows[order], torch.arange(70), 70))
    assert (order[other.labels] == found.labels).float().mean() > 0.999


def test_chunks_are_smaller_for_large_images():
    assert classes_at_once(640, 640) == 32 and classes_at_once(1, 1) == 32
    assert classes_at_once(3000, 4000) == 5  # 2**26 // 12,000,000
    assert classes_at_once(10_000, 10_000) == 1
