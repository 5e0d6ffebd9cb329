"""Every family, head and size against the slow references: 1e-5 on embeddings of length 1, float32 against float64."""

from functools import cache

import pytest
import torch
from slow.reference import (
    DENSE_HEADS,
    REFUSED,
    SIZES,
    Reference,
    dense_heads,
    example_boxes,
    example_masks,
    kind,
    make_images,
)
from slow.towers import FAMILIES, build

import foveate.clip.model
from foveate.errors import InputError

DENSE = [(family, head) for family in FAMILIES for head in dense_heads(family)]
REGION = [(family, head) for family in FAMILIES for head in (*dense_heads(family), "masked")]
WHICH = {0: "native", 1: "square", 2: "oblong"}
sizes = pytest.mark.parametrize("number", WHICH, ids=WHICH.values())
families = pytest.mark.parametrize("family", FAMILIES)


@cache
def reference(family, size):
    return Reference(family, build(family, 0)[0].visual, make_images(1, size)[0])


def close(ours, wanted):
    torch.testing.assert_close(ours.double(), wanted, atol=1e-5, rtol=0)


@sizes
@families
@torch.no_grad()
def test_image_embeddings(make_clip, family, number):
    size = SIZES[kind(family)][number]
    close(make_clip(family).encode_image(make_images(1, size))[0], reference(family, size).image())


@sizes
@pytest.mark.parametrize(("family", "head"), DENSE)
@torch.no_grad()
def test_dense_maps(make_clip, family, head, number):
    size = SIZES[kind(family)][number]
    dense = make_clip(family).encode_dense(make_images(1, size), head=head)
    close(dense[0], reference(family, size).dense(head))


@sizes
@pytest.mark.parametrize(("family", "head"), REGION)
@torch.no_grad()
def test_boxes(make_clip, family, head, number):
    size = SIZES[kind(family)][number]
    slow = reference(family, size)
    boxes = example_boxes(size, slow.stride)
    close(make_clip(family).encode_boxes(make_images(1, size), [boxes], head=head), slow.boxes(boxes, head))


@sizes
@pytest.mark.parametrize(("family", "head"), REGION)
@torch.no_grad()
def test_masks(make_clip, family, head, number):
    size = SIZES[kind(family)][number]
    clip, slow = make_clip(family), reference(family, size)
    for masks in example_masks(size, slow.tower.grid):  # in pixels, on the grid
        close(clip.encode_masks(make_images(1, size), [masks], head=head), slow.masks(masks, head))


@families
@torch.no_grad()
def test_regions_of_several_images_keep_their_order(make_clip, family):
    """Three images with 6, 0 and 1 boxes; the image of the references is the last."""
    clip, size = make_clip(family), SIZES[kind(family)][2]
    slow = reference(family, size)
    boxes = example_boxes(size, slow.stride)
    _, masks = example_masks(size, slow.tower.grid)
    images = torch.cat([make_images(2, size, seed=5), make_images(1, size)])
    for head in ("value", "masked"):
        pooled = clip.encode_boxes(images, [boxes, boxes[:0], boxes[4:5]], head=head)
        assert pooled.shape == (7, clip.embed_dim)
        close(pooled[6:], slow.boxes(boxes[4:5], head))
        pooled = clip.encode_masks(images, [masks, masks[:0], masks[:1]], head=head)
        assert pooled.shape == (5, clip.embed_dim)
        close(pooled[4:], slow.masks(masks[:1], head))
        assert clip.encode_boxes(images, [boxes[:0]] * 3, head=head).shape == (0, clip.embed_dim)
        assert clip.encode_masks(images, [masks[:0]] * 3, head=head).shape == (0, clip.embed_dim)


@pytest.mark.parametrize(("family", "head"), [(f, h) for f in FAMILIES for h in REFUSED.get(kind(f), ())])
def test_undefined_heads_are_refused(make_clip, family, head):
    assert head in DENSE_HEADS
    clip, size = make_clip(family), SIZES[kind(family)][0]
    boxes = example_boxes(size, 8)
    masks = torch.ones(1, *size, dtype=torch.bool)
    for ask in (
        lambda: clip.encode_dense(make_images(1, size), head=head),
        lambda: clip.encode_boxes(make_images(1, size), [boxes], head=head),
        lambda: clip.encode_masks(make_images(1, size), [masks], head=head),
    ):
        with pytest.raises(InputError, match=head):
            ask()


@families
def test_unknown_heads_and_a_dense_map_of_regions_are_refused(make_clip, family):
    clip, size = make_clip(family), SIZES[kind(family)][0]
    with pytest.raises(InputError, match="valu3"):
        clip.encode_dense(make_images(1, size), head="valu3")
    with pytest.raises(InputError, match="valu3"):
        clip.encode_boxes(make_images(1, size), [torch.tensor([[0.0, 0.0, 8.0, 8.0]])], head="valu3")
    with pytest.raises(InputError, match="masked"):
        clip.encode_dense(make_images(1, size), head="masked")


# images of different sizes in one batch


@families
@torch.no_grad()
def test_a_list_of_images_equals_each_image_alone(make_clip, family):
    clip = make_clip(family)
    images = [make_images(1, size, seed=number)[0] for number, size in enumerate(SIZES[kind(family)])]
    alone = [image[None] for image in images]
    together = clip.encode_image(images)
    close(together, torch.cat([clip.encode_image(image) for image in alone]).double())
    for head in dense_heads(family):
        maps = clip.encode_dense(images, head=head)
        assert isinstance(maps, list) and len(maps) == 3
        for one, image in zip(maps, alone, strict=True):
            wanted = clip.encode_dense(image, head=head)[0]
            assert one.shape[-3:] == wanted.shape
            close(one.reshape(wanted.shape), wanted.double())


@families
@torch.no_grad()
def test_regions_in_a_list_of_images(make_clip, family):
    clip = make_clip(family)
    sizes = SIZES[kind(family)]
    images = [make_images(1, size)[0] for size in sizes]
    slow = [reference(family, size) for size in sizes]
    boxes = [example_boxes(size, one.stride) for size, one in zip(sizes, slow, strict=True)]
    masks = [example_masks(size, one.tower.grid)[0] for size, one in zip(sizes, slow, strict=True)]
    for head in (*dense_heads(family), "masked"):
        wanted = torch.cat([one.boxes(some, head) for one, some in zip(slow, boxes, strict=True)])
        close(clip.encode_boxes(images, boxes, head=head), wanted)
        wanted = torch.cat([one.masks(some, head) for one, some in zip(slow, masks, strict=True)])
        close(clip.encode_masks(images, masks, head=head), wanted)


# window attention


@pytest.fixture
def in_windows(make_clip):
    """A tower whose dense path attends in windows: in_windows("vit", 3, (0, 2))."""

    def make(family, side, blocks):
        clip = make_clip(family)
        clip.windows = foveate.clip.model.Windows(size=side, blocks=blocks)
        return clip

    return make


@pytest.mark.parametrize(("side", "blocks"), [(2, (0,)), (3, (0, 2)), (4, (0, 1, 2)), (7, (0, 2))])
@pytest.mark.parametrize("family", ["vit", "vit-scaled", "eva"])
@torch.no_grad()
def test_windows(in_windows, family, side, blocks):
    """48 x 64 pixels are 6 x 8 patches: 2 divides both sides, 3 and 4 one, 7 none, and 7 is wider than the rows."""
    size = (48, 64)
    clip, slow = in_windows(family, side, blocks), reference(family, size)
    for head in ("value", "attention"):
        wanted = slow.dense(head, (side, blocks))
        close(clip.encode_dense(make_images(1, size), head=head)[0], wanted)
        assert (wanted - slow.dense(head)).abs().max() > 0.01  # or the windows would not be seen here
    close(clip.encode_image(make_images(1, size))[0], slow.image())  # the dense path only


@pytest.mark.parametrize("head", DENSE_HEADS)
@pytest.mark.parametrize("family", ["vit", "eva"])
@torch.no_grad()
def test_windows_with_every_head(in_windows, family, head):
    clip = in_windows(family, 3, (0, 1))
    images = torch.cat(
        [make_images(1, (48, 64), seed=5), make_images(1, (48, 64))]
    )  # a neighbour's windows stay its own
    close(clip.encode_dense(images, head=head)[1], reference(family, (48, 64)).dense(head, (3, (0, 1))))


@pytest.mark.parametrize("family", ["vit", "eva"])
@torch.no_grad()
def test_windows_in_a_list_of_images(in_windows, family):
    clip = in_windows(family, 3, (0, 2))
    sizes = [(48, 64), (56, 56), (40, 72)]
    maps = clip.encode_dense([make_images(1, size)[0] for size in sizes])
    for one, size in zip(maps, sizes, strict=True):
        wanted = reference(family, size).dense("value", (3, (0, 2)))
        close(one.reshape(wanted.shape), wanted)


@pytest.mark.parametrize("family", ["vit", "vit-quickgelu", "vit-scaled", "eva"])
@torch.no_grad()
def test_one_full_window_is_global_attention(make_clip, in_windows, family):
    images = make_images(2, (56, 56))
    for head in ("value", "attention"):
        wanted = make_clip(family).encode_dense(images, head=head)
        ours = in_windows(family, 7, (0, 1, 2)).encode_dense(images, head=head)
        torch.testing.assert_close(ours, wanted, atol=1e-6, rtol=0)
