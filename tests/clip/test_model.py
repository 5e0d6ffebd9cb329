"""The API of Clip: invariances of its families, and the refusal of invalid arguments."""

import math
from typing import get_args

import open_clip
import pytest
import torch
import torch.nn.functional as F

from foveate.clip.dense import default_windows, last_block_use, tower_stages
from foveate.clip.eva import EvaTower
from foveate.clip.heads import HEADS
from foveate.clip.inputs import warn_unnormalised
from foveate.clip.io.weights import save_clip
from foveate.clip.load import load
from foveate.clip.model import Clip
from foveate.clip.names import Head
from foveate.clip.tower import Windows
from foveate.errors import InputError
from foveate.objectives.clipself import train_layers
from foveate.ops.pool import pool_boxes

FAMILIES = ["vit", "eva"]


@pytest.fixture(params=FAMILIES)
def clip(request, make_clip):
    return make_clip(request.param)


def make_images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_attributes_of_a_clip(make_clip):
    vit, eva = make_clip("vit"), make_clip("eva")
    assert (vit.native_size, vit.patch_size, vit.embed_dim) == (24, 8, 12)
    assert (eva.native_size, eva.patch_size, eva.embed_dim) == (32, 8, 12)
    assert vit.mean == (0.5, 0.4, 0.3) and vit.std == (0.2, 0.25, 0.3)
    assert vit.visual is vit.model.visual
    assert vit.tokenize(["a cat", "a dog"]).shape == (2, 12)


@torch.no_grad()
def test_embeddings_do_not_depend_on_the_batch_or_its_order(clip):
    images = make_images(3, 3, 16, 40)
    for encode in (clip.encode_image, clip.encode_dense):
        together = encode(images)
        torch.testing.assert_close(together, torch.cat([encode(image[None]) for image in images]), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together[[2, 0, 1]], encode(images[[2, 0, 1]]), atol=1e-5, rtol=1e-5)
        assert encode(images[:0]).shape[0] == 0


@torch.no_grad()
def test_embeddings_have_length_one(clip):
    images = make_images(2, 3, 24, 16)
    torch.testing.assert_close(clip.encode_image(images).norm(dim=1), torch.ones(2))
    torch.testing.assert_close(clip.encode_dense(images).norm(dim=1), torch.ones(2, 3, 2))
    torch.testing.assert_close(clip.encode_text(clip.tokenize(["x", "y"])).norm(dim=1), torch.ones(2))


@torch.no_grad()
def test_a_changed_patch_changes_its_location_alone(clip):
    """With the last block alone there is no attention, so a changed patch changes only its location."""
    name = "resblocks" if clip.name == "small-vit" else "blocks"
    module = clip.visual.transformer if name == "resblocks" else clip.visual.trunk
    saved = getattr(module, name)
    setattr(module, name, saved[-1:])
    try:
        images = make_images(1, 3, 24, 40)
        changed = images.clone()
        changed[:, :, 8:16, 24:32] += 1  # row 1, column 3
        moved = (clip.encode_dense(images) - clip.encode_dense(changed)).abs().amax(dim=(0, 1))
        assert moved.nonzero().tolist() == [[1, 3]]
    finally:
        setattr(module, name, saved)


@torch.no_grad()
def test_boxes_and_masks_pool_the_dense_feature_map(clip):
    images = make_images(2, 3, 24, 40)
    boxes = [torch.tensor([[0.0, 0.0, 16.0, 8.0], [5.0, 3.0, 39.0, 20.0]]), torch.zeros(0, 4)]
    dense = clip.encode_dense(images)
    torch.testing.assert_close(clip.encode_boxes(images, boxes), pool_boxes(dense, boxes, stride=8))
    one_place = torch.zeros(1, 3, 5, dtype=torch.bool)
    one_place[0, 2, 4] = True
    masks = [torch.zeros(0, 3, 5, dtype=torch.bool), one_place]
    torch.testing.assert_close(clip.encode_masks(images, masks), dense[1, :, 2, 4][None])
    raw = clip.encode_dense(images, normalize=False)
    torch.testing.assert_close(raw / raw.norm(dim=1, keepdim=True), dense)
    assert not torch.allclose(clip.encode_boxes(images, boxes), clip.encode_boxes(images, boxes, head="value_only"))


def test_texts_are_tokenized_and_wrong_tokens_refused(make_clip):
    clip = make_clip("vit")
    tokens = clip.tokenize(["a dog", "a cat"])
    assert torch.equal(clip.encode_text(["a dog", "a cat"]), clip.encode_text(tokens))
    assert torch.equal(clip.encode_text(tokens.int()), clip.encode_text(tokens))
    for texts in ("a dog", [], ["a dog", 3]):
        with pytest.raises(InputError, match="need a list of texts, or a tensor of tokens"):
            clip.encode_text(texts)
    for wrong, message in (
        (tokens.float(), "need int64, of `tokenize`; got torch.float32"),
        (tokens[:, :-1], rf"need \(B, {tokens.shape[1]}\), the context length"),
        (tokens[0], "the context length"),
        (torch.full_like(tokens, 10**6), "need 0 to .*; got 1000000 to 1000000"),
        (tokens - 1, "got -1 to"),
    ):
        with pytest.raises(InputError, match=message):
            clip.encode_text(wrong)


@pytest.mark.parametrize(("scale", "found"), [(1, r"\[0, 1\]"), (255, r"\[0, 255\]")])
def test_images_that_are_not_normalised_are_warned_about_once(make_clip, scale, found):
    clip = make_clip("vit")
    images = scale * torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match=f"need normalised ones.*{found}") as caught:
        clip.encode_dense(list(images))
        clip.encode_image(images)
    assert len(caught) == 1


def test_normalised_images_are_not_warned_about(make_clip):
    for image in (torch.zeros(3, 24, 24), torch.ones(3, 24, 24), torch.rand(3, 24, 24)):  # warnings are errors
        clip = make_clip("vit")
        mean, std = torch.tensor(clip.mean)[:, None, None], torch.tensor(clip.std)[:, None, None]
        clip.encode_image(((image - mean) / std)[None])
        clip.encode_image(image[None])  # looked at once
    assert not warn_unnormalised(torch.rand(1, 3, 8, 8, device="meta"), mean=clip.mean, std=clip.std)
    assert warn_unnormalised(torch.rand(1, 3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)  # [0, 1] is what it takes


def test_invalid_images_boxes_and_masks_are_refused(clip):
    with pytest.raises(InputError, match=r"multiples of the patch size 8; got 24 x 20"):
        clip.encode_dense(make_images(1, 3, 24, 20))
    with pytest.raises(InputError, match=r"need \(B, 3, H, W\), or a list.*; got \(1, 3, 0, 8\)"):
        clip.encode_image(make_images(1, 3, 0, 8))
    with pytest.raises(InputError, match=r"need \(B, 3, H, W\), or a list.*; got \(7,\)"):
        clip.encode_image(make_images(7))
    with pytest.raises(InputError, match=r"boxes\[1\].*x1 < x2"):
        clip.encode_boxes(make_images(2, 3, 24, 24), [torch.zeros(0, 4), torch.zeros(1, 4)])
    with pytest.raises(InputError, match="one tensor per image, 2 in all; got 1"):
        clip.encode_boxes(make_images(2, 3, 24, 24), [torch.zeros(0, 4)])
    with pytest.raises(InputError, match="need a list of one tensor per image, 1 in all; got one tensor"):
        clip.encode_boxes(make_images(1, 3, 24, 24), torch.zeros(1, 4))
    with pytest.raises(InputError, match=r"masks\[0\].*\(N, 24, 24\) in pixels, or \(N, 3, 3\).*got \(1, 24, 23\)"):
        clip.encode_masks(make_images(1, 3, 24, 24), [torch.ones(1, 24, 23, dtype=torch.bool)])
    with pytest.raises(InputError, match=r"masks\[0\]: need bool; got torch.float32"):
        clip.encode_masks(make_images(1, 3, 24, 24), [torch.ones(1, 3, 3)])
    with pytest.raises(InputError, match="masks: need a list of one tensor per image, 1 in all; got 2"):
        clip.encode_masks(make_images(1, 3, 24, 24), [torch.ones(1, 3, 3, dtype=torch.bool)] * 2)
    with pytest.raises(InputError, match=r"images: need normalised floating point; got torch.uint8"):
        clip.encode_image(torch.zeros(1, 3, 24, 24, dtype=torch.uint8))
    broken = make_images(3, 3, 24, 24)
    broken[1, 2, 3, 4] = math.nan
    for images in (broken, list(broken)):
        with pytest.raises(InputError, match="image 1 holds NaN"):
            clip.encode_dense(images)
    with pytest.raises(InputError, match=r"images\[2\].*got 24 x 20"):
        clip.encode_dense([make_images(3, 24, 24), make_images(3, 8, 8), make_images(3, 24, 20)])
    with pytest.raises(InputError, match=r"layers: need stages of small-.*, -4 to 3; got \(4,\)"):
        clip.features(make_images(1, 3, 24, 24), layers=(4,))
    with pytest.raises(InputError, match=r"layers: need stages .* got -1"):
        clip.features(make_images(1, 3, 24, 24), layers=-1)


@pytest.mark.parametrize("windows", [None, Windows(2, (0, 2))])
def test_empty_inputs_give_empty_outputs(make_clip, clip, windows):
    clip = make_clip(clip.name.removeprefix("small-"))
    clip.windows = windows
    image, none = make_images(2, 3, 24, 24), torch.zeros(0, 3, 24, 24)
    for head in ("value", "masked"):
        assert clip.encode_boxes(image, [torch.zeros(0, 4)] * 2, head=head).shape == (0, 12)
        assert clip.encode_boxes(list(image), [torch.zeros(0, 4)] * 2, head=head).shape == (0, 12)
        for no_masks in (torch.zeros(0, 3, 3, dtype=torch.bool), torch.zeros(0, 24, 24, dtype=torch.bool)):
            assert clip.encode_masks(image, [no_masks] * 2, head=head).shape == (0, 12)
        assert clip.encode_boxes(none, [], head=head).shape == clip.encode_masks(none, [], head=head).shape == (0, 12)
        assert clip.encode_boxes([], [], head=head).shape == clip.encode_masks([], [], head=head).shape == (0, 12)
    assert clip.encode_image([]).shape == (0, 12) and clip.encode_dense([]) == []
    for head in get_args(Head):
        assert clip.encode_dense(none, head=head).shape == (0, 12, 3, 3)
    assert clip.features([], layers=(1,)) == [[]]


@torch.no_grad()
def test_windows_of_siglip(make_clip):
    """Without a class token windows are independent; one window over the grid has no effect; lists are independent."""
    clip = make_clip("siglip", seed=5)
    images = make_images(1, 3, 24, 40)
    whole = clip.encode_dense(images)
    clip.windows = Windows(5, (0, 1, 2))
    torch.testing.assert_close(clip.encode_dense(images), whole, atol=1e-6, rtol=0)
    clip.windows = Windows(2, (0, 1, 2))
    changed = images.clone()
    changed[:, :, 16:, 32:] += 1  # row 2, column 4: alone in its window of the filled up grid
    moved = (clip.encode_dense(images) - clip.encode_dense(changed)).abs().amax(dim=(0, 1))
    assert moved.nonzero().tolist() == [[2, 4]]
    several = [make_images(3, 24, 40, seed=1), make_images(3, 8, 56, seed=2)]  # one window of the second is all padding
    for one, image in zip(clip.encode_dense(several), several, strict=True):
        torch.testing.assert_close(one, clip.encode_dense(image[None])[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_windows_larger_than_the_grid_cost_no_memory(clip, make_clip):
    clip = make_clip(clip.name.removeprefix("small-"))
    images = make_images(1, 3, 24, 40)
    clip.windows = Windows(1024, (0, 1))  # a million tokens, were they filled up
    assert clip.encode_dense(images).shape == (1, 12, 3, 5)


@pytest.mark.parametrize("family", ["vit", "eva", "rn", "siglip"])
def test_batch_statistics_and_positions_do_not_change(make_clip, family):
    clip = make_clip(family, seed=8)
    before = {name: value.clone() for name, value in clip.model.named_buffers()}
    images = make_images(2, 3, 64, 64)
    still = clip.encode_dense(images)
    assert torch.equal(clip.train().encode_dense(images), still) and clip.training
    assert all(torch.equal(value, before[name]) for name, value in clip.model.named_buffers())
    train_layers(clip)
    trained = [name for name, parameter in clip.named_parameters() if parameter.requires_grad]
    assert trained and not [name for name in trained if "pos" in name or "text" in name or "token" in name]


@torch.no_grad()
def test_features_are_the_outputs_of_blocks_and_of_the_head(clip):
    images = make_images(2, 3, 24, 40)
    first, head, last = clip.features(images, layers=(0, -1, 3), head="value_only")
    assert torch.equal(head, last) and first.shape == last.shape == (2, tower_width(clip), 3, 5)
    [dense] = clip.features(images, layers=(3,))
    raw = clip.encode_dense(images, normalize=False).flatten(2).mT  # (B, L, D)
    tokens = dense.flatten(2).mT  # (B, L, C)
    if clip.name == "small-vit":
        visual = clip.visual
        torch.testing.assert_close(visual.ln_post(tokens) @ visual.proj, raw)
        theirs = visual.forward_intermediates(images[:, :, :, :24], indices=[0, 1])["image_intermediates"]
        for one, other in zip(clip.features(images[:, :, :, :24], layers=(0, 1)), theirs, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    else:
        trunk = clip.visual.trunk
        torch.testing.assert_close(trunk.head(trunk.norm(tokens)), raw)
    several = clip.features([images[0], images[1, :, :8]], layers=(1, 3))
    assert [tuple(one.shape) for maps in several for one in maps] == [(tower_width(clip), h, 5) for h in (3, 1)] * 2


def tower_width(clip):
    return 16 if clip.name == "small-vit" else 24


@torch.no_grad()
def test_windows_are_saved_with_the_model(make_clip, tmp_path, clip):
    clip = make_clip(clip.name.removeprefix("small-"), seed=3)
    images = make_images(1, 3, 32, 48)
    whole = clip.encode_dense(images)
    clip.windows = Windows(2, (0, 1))
    narrow = clip.encode_dense(images)
    assert not torch.allclose(whole, narrow, atol=1e-3)
    save_clip(clip, tmp_path)
    again = load(str(tmp_path))
    assert again.windows == clip.windows == Windows(2, (0, 1))
    assert torch.equal(again.encode_dense(images), narrow)
    open_clip.create_model_from_pretrained(f"local-dir:{tmp_path}")  # reads past what only Foveate knows
    again.windows = None
    assert torch.equal(again.encode_dense(images), whole) and "foveate" not in again.config
    torch.testing.assert_close(again.encode_image(images), clip.encode_image(images))  # the dense path only


def test_default_and_invalid_windows(make_clip):
    assert default_windows(load("foveate-small").visual) == Windows(16, (0, 3))
    clip = make_clip("vit")
    with pytest.raises(InputError, match="blocks are counted 0 to 3; got 4"):
        clip.windows = Windows(2, (0, 4))
    with pytest.raises(InputError, match=r"need foveate.clip.tower.Windows.*got 16.*default_windows"):
        clip.windows = 16
    with pytest.raises(InputError, match="whole numbers"):
        clip.windows = Windows(True, (0,))
    with pytest.raises(InputError, match="each block once"):
        clip.windows = Windows(2, (0, 0))
    with pytest.raises(InputError, match="need more than 4 blocks"):
        default_windows(clip.visual)  # 4 blocks
    with pytest.raises(InputError, match="1 to 1024 tokens; got 0"):
        clip.windows = Windows(0, (0,))
    config = {**clip.config, "foveate": {"windows": {"size": "2", "blocks": [0]}}}
    with pytest.raises(InputError, match='"windows" must be'):
        Clip(clip.model, name="odd", config=config)


def test_names_of_heads_are_those_of_the_functions():
    assert set(HEADS) == set(get_args(Head))


def test_unknown_head_is_refused(clip):
    with pytest.raises(InputError, match=r"value, value_only, .*, values3; got 'valu'"):
        clip.encode_dense(make_images(1, 3, 24, 24), head="valu")
    with pytest.raises(InputError, match=r"masked embeds regions.*encode_boxes"):
        clip.encode_dense(make_images(1, 3, 24, 24), head="masked")


@pytest.mark.parametrize("head", get_args(Head))
def test_unused_parameters_of_the_last_block_have_no_gradient(clip, head):
    clip.zero_grad(set_to_none=True)
    clip.encode_dense(make_images(1, 3, 24, 40), head=head)[:, 0].sum().backward()
    unused, in_part = last_block_use(clip.visual, head=head)
    block = tower_stages(clip.visual)[-1]
    without = {id(p) for p in block.parameters() if p.grad is None}
    assert without == {id(parameter) for parameter in unused}
    if in_part:  # rows of one matrix
        matrix, rows = in_part[0][0], torch.zeros(len(in_part[0][0]), dtype=torch.bool)
        for parameter, part in in_part:
            assert parameter is matrix
            rows[part] = True
        assert torch.equal(matrix.grad.any(dim=1), rows)
    everything = head in ("attention", "sclip")
    assert bool(in_part) == (clip.name == "small-vit" and not everything)
    assert everything == (not unused and not in_part)
    clip.zero_grad(set_to_none=True)


def test_unsupported_towers_raise_lookup_errors():
    from open_clip.timm_model import TimmModel

    tower = TimmModel("resnet10t", embed_dim=8, image_size=32, pretrained=False)
    for ask in (tower_stages, lambda visual: last_block_use(visual, head="value")):
        with pytest.raises(LookupError, match="ResNet has no dense head in Foveate"):
            ask(tower)


def test_gradients_reach_the_first_block(clip):
    clip.encode_dense(make_images(1, 3, 16, 24))[:, 0].sum().backward()
    first = clip.visual.transformer.resblocks[0] if clip.name == "small-vit" else clip.visual.trunk.blocks[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in first.parameters())
    clip.zero_grad(set_to_none=True)


@torch.no_grad()
def test_bfloat16_autocast_stays_close(clip):
    images = make_images(2, 3, 24, 40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = clip.encode_dense(images)
        whole = clip.encode_image(images)
    assert low.dtype == whole.dtype == torch.float32  # lengths of 1 to float32's accuracy, not bfloat16's
    torch.testing.assert_close(low.norm(dim=1), torch.ones(2, 3, 5))
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(2))
    cosine = (low.float() * clip.encode_dense(images)).sum(dim=1)
    assert cosine.min() > 0.99  # 8 bits of mantissa over 3 blocks


@pytest.mark.parametrize("family", ["vit", "eva", "rn", "siglip"])
@torch.no_grad()
def test_bfloat16_towers_stay_close(make_clip, family):
    clip, low = make_clip(family, seed=6), make_clip(family, seed=6).to(torch.bfloat16)
    images = make_images(2, 3, 64, 96)
    heads = [head for head in get_args(Head) if head in ("value", "naclip") or family in ("vit", "eva")]
    for encode in ("encode_image", *heads):
        options = {} if encode == "encode_image" else {"head": encode}
        ours, exact = (getattr(one, "encode_dense" if options else encode)(images, **options) for one in (low, clip))
        assert ours.dtype == torch.float32
        assert (ours * exact).sum(dim=1).min() > 0.97  # 8 bits of mantissa over 4 blocks


@torch.no_grad()
def test_training_mode_gives_the_same_dense_map(make_clip):
    clip = make_clip("vit")
    images = make_images(1, 3, 24, 24)
    still = clip.encode_dense(images)
    assert torch.equal(clip.train().encode_dense(images), still)


def test_unsupported_variants_of_towers_are_refused(make_clip):
    import timm
    from timm.models.eva import Eva

    from foveate.clip.dense import tower_sizes

    config = make_clip("vit").config["model_cfg"]
    for change, words in [
        ({"block_type": "custom"}, "custom"),
        ({"pool_type": "avg"}, "class token"),
        ({"image_size": [16, 24]}, "not square"),
    ]:
        model = open_clip.CLIP(**{**config, "vision_cfg": {**config["vision_cfg"], **change}})
        with pytest.raises(InputError, match=words):
            tower_sizes(model.visual, name="variant")
    small = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 2, "global_pool": "token"}
    rope = {"use_rot_pos_emb": True, "ref_feat_shape": (2, 2), "qkv_fused": False}
    towers = [
        (Eva(**small), "fused"),
        (Eva(**small, use_post_norm=True), "pre-norm"),
        (Eva(**small, **rope, init_values=0.1), "layer scale"),
        (Eva(**small, qkv_fused=False), "rotary"),
        (Eva(**{**small, "global_pool": "avg"}, **rope), "class token"),
        (Eva(**small, **rope, num_reg_tokens=2), "class token"),
        (timm.create_model("resnet10t"), "ResNet has no dense head"),
    ]
    eva = make_clip("eva")
    for trunk, words in towers:
        eva.visual.trunk = trunk
        with pytest.raises(InputError, match=words):
            tower_sizes(eva.visual, name="variant")


@torch.no_grad()
def test_images_in_a_frame_have_the_positions_of_its_top_left(make_clip):
    """With the library's modules: patches of the image alone, positions of the resized grid of the frame, cropped."""
    clip = make_clip("vit")
    visual, patch = clip.visual, clip.patch_size
    image = torch.randn(2, 3, 3 * patch, 5 * patch, generator=torch.Generator().manual_seed(0))
    found = clip.encode_dense(image, head="attention", normalize=False, frame=(6 * patch, 5 * patch))
    own = visual.positional_embedding
    side = visual.grid_size[0]
    plane = own[1:].T.unflatten(1, (side, side))[None]
    plane = F.interpolate(plane, size=(6, 5), mode="bicubic", align_corners=False)[0, :, :3]
    positions = torch.cat([own[:1], plane.flatten(1).T])
    patches = visual.conv1(image).flatten(2).mT
    tokens = torch.cat([visual.class_embedding.expand(2, 1, -1), patches], dim=1) + positions
    expected = visual.ln_post(visual.transformer(visual.ln_pre(tokens)))[:, 1:] @ visual.proj
    torch.testing.assert_close(found, expected.mT.unflatten(2, (3, 5)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["vit", "eva", "siglip"])
@torch.no_grad()
def test_a_frame_of_the_size_of_the_image_has_no_effect(make_clip, family):
    clip = make_clip(family)
    side = 5 * clip.patch_size
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(clip.encode_dense(image, frame=(side, side)), clip.encode_dense(image))


@torch.no_grad()
def test_rotary_positions_in_a_frame_are_those_of_the_frame(make_clip):
    tower = EvaTower(make_clip("eva").visual)
    whole = [part[1:].unflatten(0, (6, 5))[:3, :4].flatten(0, 1) for part in tower.table((6, 5))]
    cut = [part[1:] for part in tower.table((3, 4), whole=(6, 5))]
    for ours, theirs in zip(cut, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
