"""EVA-02's image and dense embeddings against a forward pass written token by token from the formulas."""

import pytest
import torch
from slow.reference import read

from foveate.clip.load import load
from foveate.ops.positions import rotary_table


@pytest.mark.parametrize("size", [(32, 32), (40, 24), (8, 56)])
@pytest.mark.parametrize("head", ["value", "value_cls", "value_only", "attention"])
def test_embeddings_equal_the_formulas(make_clip, head, size):
    clip = make_clip("eva")
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = clip.encode_image(images, normalize=False)
        dense = clip.encode_dense(images, head=head, normalize=False)
        unit = clip.encode_dense(images, head=head)
    assert dense.shape == (2, 12, size[0] // 8, size[1] // 8)
    for i in range(2):
        tower = read("eva", clip.visual, images[i])
        wanted_dense = tower.dense(head)
        torch.testing.assert_close(whole[i].double(), tower.image(), atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(dense[i].double(), wanted_dense, atol=2e-5, rtol=2e-5)
        wanted_unit = wanted_dense / wanted_dense.norm(dim=0, keepdim=True)
        torch.testing.assert_close(unit[i].double(), wanted_unit, atol=1e-5, rtol=1e-5)


def test_native_size_equals_open_clip(make_clip):
    clip = make_clip("eva")
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ours, theirs = clip.encode_image(images), clip.model.encode_image(images, normalize=True)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_full_architecture_at_its_native_size_equals_open_clip():
    clip = load("EVA02-B-16", seed=0)
    assert (clip.native_size, clip.patch_size, clip.embed_dim) == (224, 16, 512)
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ours, theirs = clip.encode_image(image), clip.model.encode_image(image, normalize=True)
        dense = clip.encode_dense(image[:, :, :96, :160])
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert dense.shape == (1, 512, 6, 10) and dense.isfinite().all()


def test_head_attention_equals_the_library(make_clip):
    clip = make_clip("eva")
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        trunk = clip.visual.trunk
        theirs = trunk.head(trunk.forward_features(images)[:, 1:]).mT.unflatten(2, (4, 4))
        ours = clip.encode_dense(images, head="attention", normalize=False)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5)


def test_timm_computes_the_same_rotary_table_for_rectangles(make_clip):
    rope = make_clip("eva").visual.trunk.rope
    rope = type(rope)(dim=8, in_pixels=False, ref_feat_shape=[6, 6])
    for grid in [(4, 4), (5, 3), (1, 9)]:
        sines, cosines = rope.get_embed(shape=list(grid)).chunk(2, dim=1)
        ours = rotary_table(grid, native=(6, 6), head_width=8)
        torch.testing.assert_close(ours[0], cosines, atol=1e-6, rtol=0)
        torch.testing.assert_close(ours[1].abs(), sines.abs(), atol=1e-6, rtol=0)


def test_dense_training_leaves_the_last_queries_and_keys_without_gradient(make_clip):
    clip = make_clip("eva", seed=4)
    clip.encode_dense(torch.randn(1, 3, 16, 24))[:, :3].sum().backward()
    attn = clip.visual.trunk.blocks[-1].attn
    assert attn.q_proj.weight.grad is None and attn.k_proj.weight.grad is None
    assert attn.v_proj.weight.grad.abs().max() > 0
