"""The aggregator's parameter count, and its attention against plain loops."""

import math

import pytest
import torch
import torch.nn.functional as F

from foveate.heads.catseg.aggregate import Aggregator, ClassBlock, WindowBlock, linear_attention, shifted_window_mask
from foveate.heads.catseg.guidance import Guidance


@pytest.mark.parametrize(
    "prompts,text_dim,guides,padding,wanted",
    [
        (1, 512, (512, 256, 128), 256, 2_308_961),  # 2024, ViT-B: the dense map guides, and two taps
        (1, 768, (768, 256, 128), 256, 2_636_641),  # 2024, ViT-L
        (80, 512, (1024, 512, 256), 0, 3_485_921),  # 2023, ViT-B: residual stages of an R101
        (80, 768, (512, 256, 128), 0, 2_836_705),  # 2023, ViT-L: stages of a Swin-B
    ],
)
def test_the_published_parameter_counts(prompts, text_dim, guides, padding, wanted):
    with torch.device("meta"):
        full = Aggregator(prompts=prompts, text_dim=text_dim, guides=guides, padding=padding)
    assert sum(one.numel() for one in full.parameters()) == wanted


def slow_linear(q, k, v, heads):
    """The same from the definition: every weight (elu(q) + 1) . (elu(k) + 1), divided by their sum."""

    def lift(x):
        return [float(one) + 1 if one > 0 else math.exp(one) for one in x]  # elu(x) + 1 is e^x below 0

    d, e = q.shape[1] // heads, v.shape[1] // heads
    out = torch.zeros(len(q), v.shape[1])
    for t in range(len(q)):
        for head in range(heads):
            asked = lift(q[t, head * d : (head + 1) * d])
            weights = [
                sum(a * b for a, b in zip(asked, lift(key[head * d : (head + 1) * d]), strict=True)) for key in k
            ]
            for weight, value in zip(weights, v, strict=True):
                out[t, head * e : (head + 1) * e] += weight / sum(weights) * value[head * e : (head + 1) * e]
    return out


def test_linear_attention_equals_its_definition():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 4), torch.randn(2, 5, 4), torch.randn(2, 5, 6)
    found = linear_attention(q, k, v, heads=2)
    for i in range(2):
        torch.testing.assert_close(found[i], slow_linear(q[i], k[i], v[i], 2), atol=1e-5, rtol=1e-5)
    counts = torch.tensor([1.0, 3.0, 0.0, 1.0, 2.0])
    copies = torch.tensor([0, 1, 1, 1, 3, 4, 4])
    twice = linear_attention(q, k[:, copies], v[:, copies], heads=2)
    torch.testing.assert_close(linear_attention(q, k, v, heads=2, counts=counts), twice)


def test_the_mask_of_shifted_windows():
    # 4 x 4, windows of 2, all rolled by 1 to the left and up: the rows are now 1 2 | 3 0, likewise the columns. Rows 3
    # and 0 were no neighbours, so in the last windows they are apart.
    seen = shifted_window_mask((4, 4), size=(2, 2), shift=1)
    assert seen.shape == (4, 4, 4)
    all_, own = torch.ones(4, 4) > 0, torch.eye(4) > 0
    columns = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]) > 0  # upper right: 3 and 0 apart
    rows = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]) > 0  # lower left
    for window, wanted in zip(seen, (all_, columns, rows, own), strict=True):
        assert torch.equal(window, wanted)


@pytest.mark.parametrize("grid,is_shifted", [((6, 9), False), ((6, 9), True), ((2, 3), True)])
def test_a_window_block_equals_a_loop(grid, is_shifted):
    torch.manual_seed(0)
    block = WindowBlock(8, guidance=4, heads=2, window=3, is_shifted=is_shifted).eval()
    x, guide = torch.randn(2, grid[0] * grid[1], 8), torch.randn(2, grid[0] * grid[1], 4)
    found = block(x, guide, grid=grid)
    normed = block.norm1(x)
    guided = torch.cat([normed, guide], dim=2)
    q, k, v = block.q(guided), block.k(guided), block.v(normed)
    shift = 1 if is_shifted and grid != (2, 3) else 0  # half of 3, rounded down; a grid of one window is not shifted
    places = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    part = [((row - shift) // 3, (column - shift) // 3) for row, column in places]  # cut at shift, shift + 3, ...
    for b in range(2):
        for i, own in enumerate(part):
            seen = [j for j, other in enumerate(part) if other == own]
            mixed = []
            for piece in (slice(0, 4), slice(4, 8)):
                weights = (k[b, seen][:, piece] @ q[b, i, piece] / 2).softmax(dim=0)  # width of a head 4, root 2
                mixed.append(weights @ v[b, seen][:, piece])
            y = x[b, i] + block.proj(torch.cat(mixed))
            torch.testing.assert_close(found[b, i], y + block.mlp(block.norm2(y)), atol=1e-5, rtol=1e-5)


def class_block(padding):
    torch.manual_seed(0)
    block = ClassBlock(8, guidance=4, heads=2, padding=padding).eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.5)
    return block


def test_missing_classes_are_copies_of_one_learned_token():
    block, plain = class_block(5), class_block(0)
    plain.load_state_dict({name: one for name, one in block.state_dict().items() if not name.startswith("padding")})
    x, text = torch.randn(2, 3, 8, 4, 2), torch.randn(2, 3, 4)
    more_x = torch.cat([x, block.padding[None, None, :, None, None].expand(2, 2, 8, 4, 2)], dim=1)
    more_text = torch.cat([text, block.padding_text.expand(2, 2, 4)], dim=1)
    torch.testing.assert_close(block(x, text), plain(more_x, more_text)[:, :3])
    assert not torch.allclose(block(x, text), plain(x, text))
    many, words = torch.randn(1, 6, 8, 2, 2), torch.randn(1, 6, 4)
    torch.testing.assert_close(block(many, words), plain(many, words))  # as many as asked for: nothing lacks


def test_class_attention_is_per_location_and_pools_in_training():
    block = class_block(0)
    x, text = torch.randn(1, 3, 8, 4, 4), torch.randn(1, 3, 4)
    alone = block(x[..., 1:2, 2:3], text)
    torch.testing.assert_close(block(x, text)[..., 1:2, 2:3], alone)
    averages = F.avg_pool2d(x[0], 2)
    update = block(averages[None], text)[0] - averages
    # at test the block gives x + update; in training the update of the averages is brought back bilinearly
    found = block.train()(x, text)[0]
    wanted = x[0] + F.interpolate(update, size=(4, 4), mode="bilinear", align_corners=True)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_the_mlp_of_classes_has_a_relu_and_that_of_windows_a_gelu():
    rows = torch.randn(5, 8)
    for block, act in (
        (class_block(0), F.relu),
        (WindowBlock(8, guidance=4, heads=2, window=3, is_shifted=False), F.gelu),
    ):
        wanted = F.linear(act(F.linear(rows, *block.mlp.fc1.parameters())), *block.mlp.fc2.parameters())
        torch.testing.assert_close(block.mlp(rows), wanted)


def test_classes_and_images_do_not_depend_on_their_order():
    torch.manual_seed(0)
    small = Aggregator(
        prompts=2, text_dim=6, guides=(6, 5, 4), hidden=16, guidance=8, decoder=(16, 8), decoder_guidance=(8, 4),
        heads=2, layers=2, window=2,
    ).eval()  # fmt: skip
    cost, text = torch.randn(2, 3, 2, 4, 4), torch.randn(2, 3, 6)
    guidance = Guidance(torch.randn(2, 6, 4, 4), torch.randn(2, 5, 8, 8), torch.randn(2, 4, 16, 16))
    found = small(cost, text, guidance)
    assert found.shape == (2, 3, 16, 16)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(small(cost[:, order], text[:, order], guidance), found[:, order], atol=1e-5, rtol=1e-5)
    flipped = Guidance(*(one.flip(0) for one in guidance))
    torch.testing.assert_close(small(cost.flip(0), text.flip(0), flipped), found.flip(0), atol=1e-5, rtol=1e-5)
