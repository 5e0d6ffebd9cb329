"""The protocol of Sec. 4.1 by hand-made cases that detect small deviations."""

import pytest
import torch
import torch.nn.functional as F

from foveate.data.batches import Loading
from foveate.data.sources import open_data
from foveate.evaluate.regions import evaluate_regions
from foveate.evaluate.retrieval import evaluate_retrieval, image_ranks
from foveate.evaluate.score import ranks_of, score
from foveate.evaluate.segments import crop_boxes, image_locations
from foveate.ops.pool import pool_masks, shrink_and_pad_masks, shrink_masks
from foveate.types import Segments


def blank(height: int, width: int) -> torch.Tensor:
    return torch.zeros(3, height, width, dtype=torch.uint8)


@pytest.mark.parametrize(
    "column,tokens", [(5, []), (6, []), (7, [0]), (8, [0]), (9, []), (23, [1]), (24, [1]), (31, [])]
)
def test_a_line_of_one_pixel_covers_at_most_one_column_of_tokens(column, tokens):
    """64 px to 4 tokens, without antialiasing: token j looks at 16 (j + 1/2) - 1/2 = 16 j + 7.5, so its four taps are
    pixels 16 j + 6..9, with weights k(1.5) = -0.09375 (a = -0.75), k(0.5) = 0.59375, the same, -0.09375. A line on
    16 j + 7 or 16 j + 8 is > 0 in token j alone; on 16 j + 6 or 9 it is negative; elsewhere no tap sees it."""
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[0, :, column] = True
    found = shrink_masks(mask, grid=(4, 4))[0]
    assert found.any(dim=0).nonzero().flatten().tolist() == tokens
    assert found.sum() == 4 * len(tokens)


def test_antialiasing_would_widen_the_line():
    """With it the kernel (a = -0.5) spans 2 * 16 = 32 pixels each way and is positive within 16 of the centre 16 j +
    7.5: a line on pixel 15 lies 7.5 from token 0's centre and 8.5 from token 1's, so both would have it; ours has
    none, since the line is no tap of any token."""
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[0, :, 15] = True
    wider = F.interpolate(mask[None].float(), (4, 4), mode="bicubic", antialias=True)[0] > 0
    assert wider[0].any(dim=0).nonzero().flatten().tolist() == [0, 1]
    assert not shrink_masks(mask, grid=(4, 4)).any()


def test_absent_classes_do_not_change_the_mean():
    """Five classes compete, two are present: (1/2 + 0) / 2 over these, although class 4 is predicted."""
    scores = torch.tensor([[0.9, 0, 0, 0, 0.1], [0.1, 0, 0, 0, 0.9], [0, 0.2, 0, 0, 0.9]])
    labels = torch.tensor([0, 0, 1])
    assert score(ranks_of(scores, labels), labels, among=5) == {"top1": 25.0, "top5": None, "count": 3}


def test_crops_of_things_are_enlarged_and_clipped_and_those_of_stuff_are_not():
    """20 x 10 at (0, 35) in 40 x 60 pixels: 10 wider and 5 higher, a half on each side: -5..25 x 32.5..47.5, clipped to
    0..25 x 32.5..40. It is not made square. The same box of stuff stays."""
    boxes = torch.tensor([[0.0, 35, 20, 45]] * 2)
    nothing = torch.zeros(2, 1, 1, dtype=torch.bool)
    segments = Segments(boxes, nothing, torch.tensor([0, 1]), torch.tensor([True, False]))
    assert crop_boxes(segments, height=40, width=60).tolist() == [[0, 32.5, 25, 40], [0, 35, 20, 45]]


@pytest.mark.parametrize(
    "height,width,rows,columns",
    [(24, 48, 4, 8), (48, 24, 8, 4), (48, 48, 8, 8), (25, 48, 5, 8), (1, 48, 1, 8)],
)
def test_locations_of_an_image_that_covers_half_the_square(height, width, rows, columns):
    """64 px, patches of 8: 24 x 48 becomes 32 x 64, which is 4 rows; 25 x 48 becomes 33 x 64, whose last row of pixels
    lies in a fifth row of locations; 1 x 48 becomes 1 x 64."""
    inside = image_locations(height=height, width=width, size=64, patch=8)
    assert inside.shape == (8, 8) and inside[:rows, :columns].all() and inside.sum() == rows * columns


def test_padding_is_no_query():
    """A map whose padding would retrieve the image, but not its image: 32 of 64 locations are queries, recall 0."""
    inside = image_locations(height=24, width=48, size=64, patch=8)
    own, rival = torch.eye(2)
    dense = torch.where(inside[None], rival[:, None, None], own[:, None, None])  # (2, 8, 8)
    ranks = image_ranks(dense, inside, torch.eye(2))
    assert ranks.tolist() == [1] * 32


def test_half_of_the_locations_are_queries_if_half_is_padding(clip, tmp_path):
    from PIL import Image

    Image.effect_noise((48, 24), 90).convert("RGB").save(tmp_path / "wide.png")
    result = evaluate_retrieval(clip, clip, open_data(tmp_path, split="val"), size=64, regions=False)
    assert result["image"]["count"] == 32


@pytest.mark.parametrize("height,width,size", [(24, 48, 64), (5, 10, 128), (25, 48, 64), (48, 7, 64), (30, 61, 96)])
def test_masks_never_hold_padding(height, width, size):
    """A mask of the whole image holds nothing of its padding, also where a token is smaller than a pixel (10 px to
    16 tokens: the taps of the first token of padding reach the last row of the image)."""
    found = shrink_and_pad_masks(torch.ones(1, height, width, dtype=torch.bool), side=size // 8)
    inside = image_locations(height=height, width=width, size=size, patch=8)
    assert found.any() and not (found & ~inside).any()
    dense = torch.where(inside[None, None], 1.0, -1.0) * torch.ones(1, 3, 1, 1)  # padding looks the other way
    torch.testing.assert_close(pool_masks(dense, [found]), torch.full((1, 3), 3**-0.5))


def test_a_mask_is_shrunk_before_it_is_padded():
    """25 x 48 px to 8 x 8 tokens: the image is round(25 * 8 / 48) = 4 x 8 tokens of 6.25 x 6 px. Row 3 of its tokens
    looks at 3.5 * 6.25 - 0.5 = 21.375, so a line on row 21, 0.375 away, is in it. Of the padded 48 x 48 square a token
    is 6 px high, row 3 looks at 20.5, and the line falls there too, but a line on row 24, 2.625 from 21.375, is in no
    token, while the square's row 4 looks at 26.5 - 24 = 2.5 away: neither. A line on row 23 is the square's row 3 or 4
    (3.5 away) and, 1.625 from 21.375, negative in ours."""
    lines = torch.zeros(2, 25, 48, dtype=torch.bool)
    lines[0, 21] = lines[1, 23] = True
    found = shrink_and_pad_masks(lines, side=8)
    assert found.shape == (2, 8, 8)
    assert found[0].any(dim=1).nonzero().flatten().tolist() == [3] and not found[1].any()
    tiny = shrink_and_pad_masks(torch.ones(1, 1, 100, dtype=torch.bool), side=8)
    assert tiny[0].any(dim=1).tolist() == [True] + [False] * 7  # at least one row


def test_masked_attention_uses_the_same_inputs(clip, coco):
    """Tab. A3 beside the dense map, equal to the model's two methods on one image at a time."""
    from foveate.clip.text import embed_vocabulary
    from foveate.data.loader import EvaluationSource
    from foveate.ops.boxes import boxes_on_input
    from foveate.ops.resample import square_inputs

    dataset = open_data(coco, split="val", annotations="panoptic")
    result = evaluate_regions(clip, dataset, sizes=[32, 64], masked=True, loading=Loading(batch=3))
    plain = evaluate_regions(clip, dataset, sizes=[32, 64], loading=Loading(batch=3))
    assert plain["masked"] is None and {**result, "masked": None} == plain
    text = embed_vocabulary(clip, [category.name for category in dataset.categories])
    source = EvaluationSource(dataset)
    by_box, by_mask, labels, is_thing = [], [], [], []
    with torch.inference_mode():
        for sample in (source[index] for index in range(len(source))):
            height, width = sample.image.shape[1:]
            inputs = square_inputs([sample.image], size=64, mean=clip.mean, std=clip.std)
            boxes = boxes_on_input(sample.segments.boxes, height=height, width=width, size=64)
            masks = shrink_and_pad_masks(sample.segments.masks, side=8)
            by_box.append(clip.encode_boxes(inputs, [boxes], head="masked"))
            by_mask.append(clip.encode_masks(inputs, [masks], head="masked"))
            labels.append(sample.segments.labels)
            is_thing.append(sample.segments.is_thing)
    truth, thing = torch.cat(labels), torch.cat(is_thing)
    ranks = ranks_of(torch.cat(by_mask) @ text.T, truth)
    by_box_ranks = ranks_of(torch.cat(by_box) @ text.T, truth)
    expected = {
        "boxes": score(by_box_ranks[thing], truth[thing], among=len(text)),
        "things": score(ranks[thing], truth[thing], among=len(text)),
        "stuff": score(ranks[~thing], truth[~thing], among=len(text)),
        "stuff_boxes": score(by_box_ranks[~thing], truth[~thing], among=len(text)),
    }
    assert result["masked"][64] == expected and result["masked"][64] != result["dense"][64]
