"""The slow references against open_clip and timm: their own forward passes, and their attention with other inputs."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from slow.reference import SIZES, Reference, dense_heads, kind, make_images
from slow.towers import FAMILIES, build
from torch import nn

TRANSFORMERS = ["vit-scaled", "eva"]
CELLS = [[(0, 0), (0, 2), (2, 1)], [(1, 0)], []]


def bicubic(table, grid):
    side = math.isqrt(len(table))
    plane = table.T.reshape(1, -1, side, side)
    return F.interpolate(plane, size=grid, mode="bicubic", align_corners=False).flatten(2)[0].T


@torch.no_grad()
def tower_at(family, size):
    """open_clip's tower in float64, with a position table for this size."""
    visual = build(family, 0)[0].visual.double()
    stride = 32 if family == "rn" else 8
    grid = (size[0] // stride, size[1] // stride)
    if kind(family) == "vit":
        table = visual.positional_embedding
        visual.positional_embedding = nn.Parameter(torch.cat([table[:1], bicubic(table[1:], grid)]))
    elif family == "rn":
        table = visual.attnpool.positional_embedding
        visual.attnpool.positional_embedding = nn.Parameter(torch.cat([table[:1], bicubic(table[1:], grid)]))
    else:
        table, first = visual.trunk.pos_embed[0], visual.trunk.num_prefix_tokens
        visual.trunk.set_input_size(size)
        visual.trunk.pos_embed = nn.Parameter(torch.cat([table[:first], bicubic(table[first:], grid)])[None])
    return visual.double(), grid


def close(ours, theirs):
    torch.testing.assert_close(ours, F.normalize(theirs, dim=0), atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_image_embeddings_at_every_size(family):
    for size in SIZES[kind(family)]:
        image = make_images(1, size)[0]
        visual, _ = tower_at(family, size)
        close(Reference(family, build(family, 0)[0].visual, image).image(), visual(image.double()[None])[0])


# transformers: open_clip's and timm's attention modules, fed with other queries, keys, masks or tokens


def enter(family, visual, image):
    """Tokens before the first block and rotary tables."""
    if family == "eva":
        x, rope = visual.trunk._pos_embed(visual.trunk.patch_embed(image[None]))
        return x, rope
    return visual._embeds(image[None]), None


def blocks_of(family, visual):
    return visual.trunk.blocks if family == "eva" else visual.transformer.resblocks


def before(family, block, x):
    return block.norm1(x) if family == "eva" else block.ln_1(x)


def mix(family, block, n, *, pair="qk", mask=None, rope=None, prefix=1):
    """The library's attention before its output projection, with pair[0] as queries and pair[1] as keys."""
    attn = copy.deepcopy(block.attn)
    if family == "eva":
        attn.q_proj, attn.k_proj = (attn.q_proj if letter == "q" else attn.k_proj for letter in pair)
        attn.norm, attn.proj, attn.num_prefix_tokens = nn.Identity(), nn.Identity(), prefix
        return attn(n, rope=rope, attn_mask=mask)
    for tensor in (attn.in_proj_weight, attn.in_proj_bias):
        parts = dict(zip("qkv", tensor.chunk(3), strict=True))
        tensor.copy_(torch.cat([parts[pair[0]], parts[pair[1]], parts["v"]]))
    attn.out_proj.weight.copy_(torch.eye(n.shape[2]))
    attn.out_proj.bias.zero_()
    return attn(n, n, n, attn_mask=mask, need_weights=False)[0]


def out(family, block, x):
    return block.attn.proj(block.attn.norm(x)) if family == "eva" else block.ls_1(block.attn.out_proj(x))


def rest(family, block, x):
    return x + block.mlp(block.norm2(x)) if family == "eva" else x + block.ls_2(block.mlp(block.ln_2(x)))


def finish(family, visual, x):
    return visual.trunk.head(visual.trunk.norm(x)) if family == "eva" else visual.ln_post(x) @ visual.proj


def own(length):
    """A mask under which every token attends to itself alone, so that attention returns its value."""
    return torch.full((length, length), -math.inf, dtype=torch.float64).fill_diagonal_(0)


def omega(grid, *, prefix):
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    places = torch.stack([rows, columns], dim=2).reshape(-1, 2).double()
    bias = torch.exp(-(torch.cdist(places, places) ** 2) / 50)
    return F.pad(bias, (prefix, 0, prefix, 0))


@torch.no_grad()
@pytest.mark.parametrize("size_number", [0, 2])
@pytest.mark.parametrize("family", TRANSFORMERS)
def test_dense_heads_of_transformers(family, size_number):
    size = SIZES[kind(family)][size_number]
    image = make_images(1, size)[0]
    visual, grid = tower_at(family, size)
    x, rope = enter(family, visual, image.double())
    values, blocks = [], blocks_of(family, visual)
    for block in blocks:
        entering, n = x, before(family, block, x)
        values.append(out(family, block, mix(family, block, n, mask=own(n.shape[1]), rope=rope)))
        x = block(x, rope=rope) if family == "eva" else block(x)
    by_q = mix(family, block, n, pair="qq", rope=rope)
    by_k = mix(family, block, n, pair="kk", rope=rope)
    near = mix(family, block, n, pair="kk", mask=omega(grid, prefix=1), rope=rope)
    wanted = {
        "value": rest(family, block, entering + values[-1]),
        "value_only": values[-1],
        "attention": x,
        "sclip": rest(family, block, entering + out(family, block, by_q + by_k)),
        "clearclip": out(family, block, by_q),
        "naclip": out(family, block, near),
        "values3": values[-1] + values[-2] + values[-3],
    }
    reference = Reference(family, build(family, 0)[0].visual, image)
    assert wanted.keys() == set(dense_heads(family))
    for head, tokens in wanted.items():
        close(reference.dense(head), finish(family, visual, tokens)[0, 1:].T.unflatten(1, grid))


@torch.no_grad()
@pytest.mark.parametrize("family", TRANSFORMERS)
def test_region_head_of_transformers(family):
    size = SIZES[kind(family)][2]
    image = make_images(1, size)[0]
    visual, grid = tower_at(family, size)
    x, rope = enter(family, visual, image.double())
    count = len(CELLS)
    x = torch.cat([x[:, :1].repeat(1, 1 + count, 1), x[:, 1:]], dim=1)  # class token, its copies, patches
    mask = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    mask[:, 1 : 1 + count] = -math.inf
    for i, cells in enumerate(CELLS, start=1):
        mask[i, 1:] = -math.inf
        for row, column in cells:
            mask[i, 1 + count + row * grid[1] + column] = 0
    for block in blocks_of(family, visual):
        mixed = mix(family, block, before(family, block, x), mask=mask, rope=rope, prefix=1 + count)
        x = rest(family, block, x + out(family, block, mixed))
    reference = Reference(family, build(family, 0)[0].visual, image)
    close(reference.image(), finish(family, visual, x)[0, 0])
    for i, cells in enumerate(CELLS, start=1):
        close(F.normalize(reference.tower.masked(cells), dim=0), finish(family, visual, x)[0, i])


@torch.no_grad()
@pytest.mark.parametrize("side", [2, 3, 5])  # of 5 x 9 patches: neither, columns, rows are a multiple
@pytest.mark.parametrize("family", TRANSFORMERS)
def test_window_attention_of_transformers(family, side):
    size = SIZES[kind(family)][2]
    image = make_images(1, size)[0]
    visual, grid = tower_at(family, size)
    x, rope = enter(family, visual, image.double())
    for number, block in enumerate(blocks_of(family, visual)):
        if number not in (0, 2):
            x = block(x, rope=rope) if family == "eva" else block(x)
            continue
        left_block, classes = torch.zeros_like(x), []
        for top in range(0, grid[0], side):
            for left in range(0, grid[1], side):
                places = [(r, c) for r in range(top, top + side) for c in range(left, left + side)]
                places = [(r, c) for r, c in places if r < grid[0] and c < grid[1]]
                index = [0] + [1 + r * grid[1] + c for r, c in places]
                table = None
                if family == "eva":
                    fresh = type(visual.trunk.rope)(dim=8, in_pixels=False, ref_feat_shape=[6, 6])
                    inside = [(r - top) * side + c - left for r, c in places]
                    table = fresh.get_embed(shape=[side, side]).double()[inside]
                n = before(family, block, x[:, index])
                answer = out(family, block, mix(family, block, n, rope=table))
                whole = rest(family, block, x[:, index] + answer)  # the copy of the class token too
                left_block[:, index[1:]] = whole[:, 1:]
                classes.append(whole[:, 0])
        left_block[:, 0] = torch.stack(classes).mean(dim=0)
        x = left_block
    reference = Reference(family, build(family, 0)[0].visual, image)
    close(reference.dense("attention", (side, (0, 2))), finish(family, visual, x)[0, 1:].T.unflatten(1, grid))


# pools: torch's attention with the pool's own matrices


def pool_of(width, heads, weights, biases, projection):
    pool = nn.MultiheadAttention(width, heads, batch_first=True).double()
    pool.in_proj_weight.copy_(torch.cat(weights))
    pool.in_proj_bias.copy_(torch.cat(biases))
    pool.out_proj.weight.copy_(projection.weight)
    pool.out_proj.bias.copy_(projection.bias)
    return pool


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES["rn"])
def test_heads_of_residual_networks(size):
    image = make_images(1, size)[0]
    visual, grid = tower_at("rn", size)
    z = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(image.double()[None]))))).flatten(2).mT
    pool = visual.attnpool
    t = torch.cat([z.mean(dim=1, keepdim=True), z], dim=1) + pool.positional_embedding
    q, k, v = pool.q_proj, pool.k_proj, pool.v_proj

    def ask(first, second, mask=None):
        # the pool's output projection leads from 256 to 12 and comes after torch's attention, whose own is the identity
        still = nn.Linear(256, 256).double()
        still.weight.copy_(torch.eye(256))
        still.bias.zero_()
        weights, biases = [first.weight, second.weight, v.weight], [first.bias, second.bias, v.bias]
        return pool_of(256, 4, weights, biases, still)(t, t, t, attn_mask=mask, need_weights=False)[0]

    wanted = {
        "value": v(t),
        "value_only": v(t),
        "attention": ask(q, k),
        "sclip": ask(q, q) + ask(k, k),
        "clearclip": ask(q, q),
        "naclip": ask(k, k, omega(grid, prefix=1)),
    }
    reference = Reference("rn", build("rn", 0)[0].visual, image)
    assert wanted.keys() == set(dense_heads("rn"))
    for head, mixed in wanted.items():
        close(reference.dense(head), pool.c_proj(mixed)[0, 1:].T.unflatten(1, grid))
    for cells in ([(0, 1), (1, 0)], []):
        mask = torch.full((t.shape[1], t.shape[1]), -math.inf, dtype=torch.float64)
        mask[:, [0, *(1 + row * grid[1] + column for row, column in cells)]] = 0
        close(F.normalize(reference.tower.masked(cells), dim=0), pool.c_proj(ask(q, k, mask))[0, 0])


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES["siglip"])
def test_heads_of_siglip(size):
    image = make_images(1, size)[0]
    visual, grid = tower_at("siglip", size)
    x = visual.trunk.forward_features(image.double()[None])
    pool = visual.trunk.attn_pool
    (k, v), (k_bias, v_bias) = pool.kv.weight.chunk(2), pool.kv.bias.chunk(2)
    by_k = pool_of(24, 3, [k, k, v], [k_bias, k_bias, v_bias], pool.proj)
    wanted = {
        "value": torch.cat([pool(x[:, [i]]) for i in range(x.shape[1])]),  # a single token is all there is to see
        "value_only": pool.proj(F.linear(x[0], v, v_bias)),
        "naclip": by_k(x, x, x, attn_mask=omega(grid, prefix=0), need_weights=False)[0][0],
    }
    reference = Reference("siglip", build("siglip", 0)[0].visual, image)
    assert wanted.keys() == set(dense_heads("siglip"))
    for head, tokens in wanted.items():
        close(reference.dense(head), tokens.T.unflatten(1, grid))
    for cells in CELLS[:2]:
        seen = [row * grid[1] + column for row, column in cells]
        close(F.normalize(reference.tower.masked(cells), dim=0), pool(x[:, seen])[0])
    assert not reference.tower.masked([]).any()
