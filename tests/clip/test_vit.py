"""The ViT's image and dense embeddings against a forward pass written token by token from the formulas."""

import pytest
import torch
from slow.reference import read


@pytest.mark.parametrize("size", [(24, 24), (40, 16), (8, 32)])
@pytest.mark.parametrize("head", ["value", "value_cls", "value_only", "attention"])
@pytest.mark.parametrize("family", ["vit", "vit-quickgelu", "vit-scaled"])
def test_embeddings_equal_the_formulas(make_clip, family, head, size):
    clip = make_clip(family)
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = clip.encode_image(images, normalize=False)
        dense = clip.encode_dense(images, head=head, normalize=False)
        unit = clip.encode_dense(images, head=head)
    assert dense.shape == (2, 12, size[0] // 8, size[1] // 8)
    for i in range(2):
        tower = read(family, clip.visual, images[i])
        wanted_dense = tower.dense(head)
        torch.testing.assert_close(whole[i].double(), tower.image(), atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(dense[i].double(), wanted_dense, atol=2e-5, rtol=2e-5)
        wanted_unit = wanted_dense / wanted_dense.norm(dim=0, keepdim=True)
        torch.testing.assert_close(unit[i].double(), wanted_unit, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["vit", "vit-quickgelu", "vit-scaled"])
def test_native_size_equals_open_clip(make_clip, family):
    clip = make_clip(family)
    images = torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ours, theirs = clip.encode_image(images), clip.model.encode_image(images, normalize=True)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_head_attention_equals_the_library(make_clip):
    clip = make_clip("vit")
    images = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        output = clip.visual.forward_intermediates(images, indices=1, normalize_intermediates=True)
        theirs = torch.einsum("bchw,cd->bdhw", output["image_intermediates"][0], clip.visual.proj)
        ours = clip.encode_dense(images, head="attention", normalize=False)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5)


def test_dense_training_leaves_the_last_queries_and_keys_without_gradient(make_clip):
    clip = make_clip("vit", seed=4)
    clip.encode_dense(torch.randn(1, 3, 16, 24)).square().sum().backward()
    clip.encode_dense(torch.randn(1, 3, 16, 24))[:, :3].sum().backward()
    attn = clip.visual.transformer.resblocks[-1].attn
    assert attn.in_proj_weight.grad[:32].abs().max() == 0  # queries and keys of a width of 16
    assert attn.in_proj_weight.grad[32:].abs().max() > 0
