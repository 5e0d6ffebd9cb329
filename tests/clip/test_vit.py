"""The ViT's image and dense embeddings against a forward pass written token by token from the formulas."""

import math

import pytest
import torch

HEADS, PATCH, NATIVE = 2, 8, 3


def norm(x, weight, bias):
    mean = sum(x.tolist()) / len(x)
    variance = sum((value - mean) ** 2 for value in x.tolist()) / len(x)
    return (x - mean) / math.sqrt(variance + 1e-5) * weight + bias


def activation(x, quick):
    if quick:
        return x / (1 + torch.exp(-1.702 * x))
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def taps(i, length, out):
    """Bicubic, a = -0.75, half-pixel centres, border repeated, no antialiasing."""
    centre = (i + 0.5) * length / out - 0.5
    base = math.floor(centre)
    for k in range(base - 1, base + 3):
        t = abs(centre - k)
        weight = (1.25 * t - 2.25) * t * t + 1 if t < 1 else ((-0.75 * t + 3.75) * t - 6) * t + 3
        yield min(max(k, 0), length - 1), weight


def position(table, row, column, h, w):
    """The position embedding of one patch; row 0 of the table is the class token's."""
    if (h, w) == (NATIVE, NATIVE):
        return table[1 + row * NATIVE + column]
    return sum(
        wy * wx * table[1 + y * NATIVE + x] for y, wy in taps(row, NATIVE, h) for x, wx in taps(column, NATIVE, w)
    )


def attention(p, tokens):
    """Each token asks all tokens, head by head."""
    width = len(tokens[0])
    d = width // HEADS
    queries, keys, values = (
        [p["attn.in_proj_weight"][s : s + width] @ token + p["attn.in_proj_bias"][s : s + width] for token in tokens]
        for s in (0, width, 2 * width)
    )
    mixed = []
    for query in queries:
        parts = []
        for head in range(HEADS):
            piece = slice(head * d, (head + 1) * d)
            scores = [math.exp(float(query[piece] @ key[piece]) / math.sqrt(d)) for key in keys]
            parts.append(sum(score / sum(scores) * value[piece] for score, value in zip(scores, values, strict=True)))
        mixed.append(p["attn.out_proj.weight"] @ torch.cat(parts) + p["attn.out_proj.bias"])
    return mixed


def value(p, token):
    width = len(token)
    projected = p["attn.in_proj_weight"][2 * width :] @ token + p["attn.in_proj_bias"][2 * width :]
    return p["attn.out_proj.weight"] @ projected + p["attn.out_proj.bias"]


def mlp(p, token, quick):
    hidden = activation(p["mlp.c_fc.weight"] @ token + p["mlp.c_fc.bias"], quick)
    return p["mlp.c_proj.weight"] @ hidden + p["mlp.c_proj.bias"]


def slow_forward(state, image, head, quick):
    """Image embedding and patch embeddings of one (3, H, W) image."""
    h, w = image.shape[1] // PATCH, image.shape[2] // PATCH
    tokens = [state["class_embedding"] + state["positional_embedding"][0]]
    kernel = state["conv1.weight"].reshape(len(state["class_embedding"]), -1)
    for row in range(h):
        for column in range(w):
            piece = image[:, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH].reshape(-1)
            tokens.append(kernel @ piece + position(state["positional_embedding"], row, column, h, w))
    tokens = [norm(token, state["ln_pre.weight"], state["ln_pre.bias"]) for token in tokens]
    for layer in range(3):
        start = f"transformer.resblocks.{layer}."
        p = {key.removeprefix(start): tensor for key, tensor in state.items() if key.startswith(start)}
        scale_1, scale_2 = p.get("ls_1.gamma", 1.0), p.get("ls_2.gamma", 1.0)
        normed = [norm(token, p["ln_1.weight"], p["ln_1.bias"]) for token in tokens]
        whole = [token + scale_1 * mixed for token, mixed in zip(tokens, attention(p, normed), strict=True)]
        whole = [token + scale_2 * mlp(p, norm(token, p["ln_2.weight"], p["ln_2.bias"]), quick) for token in whole]
        if layer < 2:
            tokens = whole
        elif head == "attention":
            patches = whole[1:]
        elif head == "value_only":
            patches = [value(p, token) for token in normed[1:]]
        else:
            patches = [token + scale_1 * value(p, one) for token, one in zip(tokens[1:], normed[1:], strict=True)]
            normed = [norm(token, p["ln_2.weight"], p["ln_2.bias"]) for token in patches]
            patches = [token + scale_2 * mlp(p, one, quick) for token, one in zip(patches, normed, strict=True)]

    def finish(token):
        return norm(token, state["ln_post.weight"], state["ln_post.bias"]) @ state["proj"]

    return finish(whole[0]), torch.stack([finish(token) for token in patches]).T.reshape(-1, h, w)


@pytest.mark.parametrize("size", [(24, 24), (40, 16), (8, 32)])
@pytest.mark.parametrize("head", ["value", "value_only", "attention"])
@pytest.mark.parametrize("family", ["vit", "vit-quickgelu", "vit-scaled"])
def test_embeddings_equal_the_formulas(make_clip, family, head, size):
    clip = make_clip(family)
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = clip.encode_image(images, normalize=False)
        dense = clip.encode_dense(images, head=head, normalize=False)
        unit = clip.encode_dense(images, head=head)
    assert dense.shape == (2, 12, size[0] // 8, size[1] // 8)
    state = {key: tensor.double() for key, tensor in clip.visual.state_dict().items()}
    for i in range(2):
        wanted_whole, wanted_dense = slow_forward(state, images[i].double(), head, family == "vit-quickgelu")
        torch.testing.assert_close(whole[i].double(), wanted_whole, atol=2e-5, rtol=2e-5)
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


def test_library_agrees_on_the_untouched_last_block(make_clip):
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
