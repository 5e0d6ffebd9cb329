"""EVA-02's image and dense embeddings against a forward pass written token by token from the formulas."""

import cmath
import math

import pytest
import torch

from saccade.clip.load import load
from saccade.ops.positions import rotary_table

HEADS, PATCH, NATIVE, ROTARY = 3, 8, 4, 6


def norm(x, weight, bias):
    mean = sum(x.tolist()) / len(x)
    variance = sum((value - mean) ** 2 for value in x.tolist()) / len(x)
    return (x - mean) / math.sqrt(variance + 1e-6) * weight + bias


def taps(i, length, out):
    """Bicubic, a = -0.75, half-pixel centres, border repeated, no antialiasing."""
    centre = (i + 0.5) * length / out - 0.5
    base = math.floor(centre)
    for k in range(base - 1, base + 3):
        t = abs(centre - k)
        weight = (1.25 * t - 2.25) * t * t + 1 if t < 1 else ((-0.75 * t + 3.75) * t - 6) * t + 3
        yield min(max(k, 0), length - 1), weight


def position(table, row, column, h, w):
    if (h, w) == (NATIVE, NATIVE):
        return table[1 + row * NATIVE + column]
    return sum(
        wy * wx * table[1 + y * NATIVE + x] for y, wy in taps(row, NATIVE, h) for x, wx in taps(column, NATIVE, w)
    )


def turn(piece, place, h, w):
    """Rotate one head's query or key: the first half of its pairs by the row, the second by the column."""
    if place is None:  # the class token
        return piece
    row, column = place
    bands = len(piece) // 4
    turned = []
    for pair in range(2 * bands):
        along = row / h * ROTARY if pair < bands else column / w * ROTARY
        angle = along * 10000.0 ** (-(pair % bands) / bands)
        number = complex(float(piece[2 * pair]), float(piece[2 * pair + 1])) * cmath.exp(1j * angle)
        turned += [number.real, number.imag]
    return torch.tensor(turned, dtype=torch.float64)


def attention(p, tokens, places, h, w):
    d = len(tokens[0]) // HEADS
    queries = [p["attn.q_proj.weight"] @ token + p["attn.q_proj.bias"] for token in tokens]
    keys = [p["attn.k_proj.weight"] @ token for token in tokens]  # EVA has no key bias
    values = [p["attn.v_proj.weight"] @ token + p["attn.v_proj.bias"] for token in tokens]
    heads = [slice(head * d, (head + 1) * d) for head in range(HEADS)]
    turned = [[turn(key[s], place, h, w) for s in heads] for key, place in zip(keys, places, strict=True)]
    mixed = []
    for query, place in zip(queries, places, strict=True):
        parts = []
        for head, piece in enumerate(heads):
            asked = turn(query[piece], place, h, w)
            scores = [math.exp(float(asked @ key[head]) / math.sqrt(d)) for key in turned]
            parts.append(sum(score / sum(scores) * value[piece] for score, value in zip(scores, values, strict=True)))
        mixed.append(output(p, torch.cat(parts)))
    return mixed


def output(p, token):
    """EVA's inner LayerNorm, then the output projection."""
    return p["attn.proj.weight"] @ norm(token, p["attn.norm.weight"], p["attn.norm.bias"]) + p["attn.proj.bias"]


def value(p, token):
    return output(p, p["attn.v_proj.weight"] @ token + p["attn.v_proj.bias"])


def mlp(p, token):
    gate = p["mlp.fc1_g.weight"] @ token + p["mlp.fc1_g.bias"]
    hidden = gate / (1 + torch.exp(-gate)) * (p["mlp.fc1_x.weight"] @ token + p["mlp.fc1_x.bias"])
    return p["mlp.fc2.weight"] @ norm(hidden, p["mlp.norm.weight"], p["mlp.norm.bias"]) + p["mlp.fc2.bias"]


def slow_forward(state, image, head):
    """Image embedding and patch embeddings of one (3, H, W) image."""
    h, w = image.shape[1] // PATCH, image.shape[2] // PATCH
    tokens, places = [state["cls_token"][0, 0] + state["pos_embed"][0, 0]], [None]
    kernel = state["patch_embed.proj.weight"].reshape(len(tokens[0]), -1)
    for row in range(h):
        for column in range(w):
            piece = image[:, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH].reshape(-1)
            patch = kernel @ piece + state["patch_embed.proj.bias"]
            tokens.append(patch + position(state["pos_embed"][0], row, column, h, w))
            places.append((row, column))
    for layer in range(3):
        start = f"blocks.{layer}."
        p = {key.removeprefix(start): tensor for key, tensor in state.items() if key.startswith(start)}
        normed = [norm(token, p["norm1.weight"], p["norm1.bias"]) for token in tokens]
        whole = [token + mixed for token, mixed in zip(tokens, attention(p, normed, places, h, w), strict=True)]
        whole = [token + mlp(p, norm(token, p["norm2.weight"], p["norm2.bias"])) for token in whole]
        if layer < 2:
            tokens = whole
        elif head == "attention":
            patches = whole[1:]
        elif head == "value_only":
            patches = [value(p, token) for token in normed[1:]]
        else:
            patches = [token + value(p, one) for token, one in zip(tokens[1:], normed[1:], strict=True)]
            patches = [token + mlp(p, norm(token, p["norm2.weight"], p["norm2.bias"])) for token in patches]

    def finish(token):
        return state["head.weight"] @ norm(token, state["norm.weight"], state["norm.bias"]) + state["head.bias"]

    return finish(whole[0]), torch.stack([finish(token) for token in patches]).T.reshape(-1, h, w)


@pytest.mark.parametrize("size", [(32, 32), (40, 24), (8, 56)])
@pytest.mark.parametrize("head", ["value", "value_only", "attention"])
def test_embeddings_equal_the_formulas(make_clip, head, size):
    clip = make_clip("eva")
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = clip.encode_image(images, normalize=False)
        dense = clip.encode_dense(images, head=head, normalize=False)
        unit = clip.encode_dense(images, head=head)
    assert dense.shape == (2, 12, size[0] // 8, size[1] // 8)
    state = {key: tensor.double() for key, tensor in clip.visual.trunk.state_dict().items()}
    for i in range(2):
        wanted_whole, wanted_dense = slow_forward(state, images[i].double(), head)
        torch.testing.assert_close(whole[i].double(), wanted_whole, atol=2e-5, rtol=2e-5)
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


def test_library_agrees_on_the_untouched_last_block(make_clip):
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
