"""Costs derived by hand on modules small enough to follow, then a step of a large tower without its weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from counting import Account, counting
from foveate.clip.io.describe import build, describe_architecture
from foveate.clip.model import Clip
from foveate.objectives.clipself import ClipSelf, train_layers
from foveate.objectives.student import Execution
from foveate.ops.grid import grid_boxes
from foveate.types import Batch, Sample


def count_work(work) -> Account:
    with counting() as account:
        work()
    return account


BOXES = grid_boxes(3, 4, height=480, width=640)  # of real numbers: they decide the shapes of the crops


@pytest.fixture(params=[True, False], ids=["fake", "real"])
def mode(request):
    """Counted without doing it, and while it is done: the same numbers."""
    if not request.param:
        yield None
        return
    with FakeTensorMode() as one:
        yield one


def test_a_linear_layer(mode):
    layer, x = nn.Linear(8, 16, bias=False), torch.ones(4, 8, requires_grad=True)
    gradient = torch.ones(4, 16)
    account = count_work(lambda: layer(x).backward(gradient))
    # forward (4, 8) @ (8, 16); backward two products of the same size
    assert account.flops == 3 * 2 * 4 * 8 * 16
    assert account.calls == {"mm": 3} and account.operators == 3
    # forward x + w + y; backward dy + x + dw, dy + w + dx [numbers of 4 bytes]
    assert account.bytes_moved == 4 * ((32 + 128 + 64) + (64 + 32 + 128) + (64 + 128 + 32))
    assert account.bytes_saved == 4 * 32  # x; the weight is there anyway
    # y is gone when dx, the last of the two gradients, is there, or not yet: dw and dx stay
    assert 4 * (128 + 32) <= account.peak_bytes <= 4 * (64 + 128 + 32)


def test_fused_attention_is_one_operator(mode):
    q, k, v = (torch.ones(2, 3, 64, 16, requires_grad=True) for _ in range(3))
    gradient = torch.ones(2, 3, 64, 16)
    forward = count_work(lambda: F.scaled_dot_product_attention(q, k, v))
    both = count_work(lambda: F.scaled_dot_product_attention(q, k, v).backward(gradient))
    # a query meets 64 keys of 16 numbers, twice (scores and mixing); the backward pass does five such products
    product = 2 * 2 * 3 * 64 * 64 * 16
    assert forward.flops == 2 * product and both.flops == 7 * product
    assert forward.operators == 1 and both.operators == 2 + both.calls.get("copy_", 0)  # into .grad, of other strides
    # q, k, v, the result, and one number a query
    assert both.bytes_saved == 4 * (4 * 2 * 3 * 64 * 16 + 2 * 3 * 64)


def test_views_and_reserved_memory_are_no_operators(mode):
    x = torch.ones(6, 4)

    def work():
        torch.empty(1000).view(10, 100)
        return x.T.unflatten(1, (2, 3))[:, 0].detach() + 1

    account = count_work(work)
    assert account.calls == {"add": 1} and account.bytes_moved == 2 * 4 * 12
    assert account.peak_bytes == 4 * 1000  # let go before the sum's 48 bytes are made


def test_expanded_numbers_are_read_once(mode):
    x = torch.ones(1, 4)
    assert count_work(lambda: x.expand(100, 4) + 1).bytes_moved == 4 * (4 + 400)


def test_memory_is_followed_to_its_end(mode):
    x = torch.ones(100)

    def chain():
        y = x
        for _ in range(5):
            y = y + 1  # the one before lives until the next is there

    assert count_work(chain).peak_bytes == 4 * 200
    held = []
    assert count_work(lambda: held.extend(x + i for i in range(5))).peak_bytes == 4 * 500


@pytest.mark.parametrize("recompute", [False, True])
def test_recomputed_blocks_keep_what_enters_them(mode, recompute):
    blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 8)) for _ in range(10))
    x = torch.ones(1000, 8, requires_grad=True)

    def work():
        y = x
        for block in blocks:
            y = checkpoint(block, y, use_reentrant=False, preserve_rng_state=False) if recompute else block(y)
        y.sum().backward()

    account, state = count_work(work), 4 * 8000
    # a block keeps its input and the sigmoid's result, or its input alone
    assert account.bytes_saved == (10 if recompute else 20) * state
    products = 4 if recompute else 3  # of each layer: forward, two of the backward pass, and forward again
    least = 10 * 2 * 2 * 1000 * 8 * 8 * products
    assert least - 2 * 10 * 2 * 1000 * 8 * 8 <= account.flops <= least  # what nothing needs is not computed again
    assert (13 if recompute else 20) * state <= account.peak_bytes <= (17 if recompute else 25) * state


def test_autocast_is_seen(mode):
    layer, x = nn.Linear(8, 16, bias=False), torch.ones(4, 8)

    def work():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return layer(x)

    account = count_work(work)
    assert account.calls == {"_to_copy": 2, "mm": 1}
    assert account.bytes_saved == 2 * 32  # x as bfloat16; its weight's copy is needed for no gradient of x


def objective_of(name: str, mode: FakeTensorMode, **settings) -> ClipSelf:
    """CLIPSelf over towers whose weights are shapes and no numbers."""
    config = describe_architecture(name)
    with torch.device("meta"):
        towers = [Clip(build(config, name=name, seed=0), name=name, config=config) for _ in range(2)]
    with mode:
        for tower in towers:
            tower.to_empty(device="cpu")
        train_layers(towers[0])
        return ClipSelf(*towers, **settings)


def step(name: str, *, count: int = 1, **settings) -> Account:
    """Count the forward and backward pass of CLIPSelf on towers without weights."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    objective = objective_of(name, mode, **settings)
    with mode:
        images = [torch.empty(3, 480, 640, dtype=torch.uint8) for _ in range(count)]
        for parameter in objective.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        batch = Batch([Sample(str(index), image, BOXES) for index, image in enumerate(images)], [])
        return count_work(lambda: objective(batch).backward())


def test_a_step_of_a_large_tower_costs_what_its_sizes_say():
    small, large = (step("EVA02-B-16", student_size=1024, count=count) for count in (1, 2))
    # Student: T = 4097 tokens of C = 768. A block: q, k, v, out 4 C^2, SwiGLU 3 * 2048 C, attention 2 T C a token (and
    # multiply-adds are two); eleven whole blocks, in the last v, out and MLP; backward twice that, attention's 2.5.
    tokens, width, hidden = 4097, 768, 2048
    dense = tokens * (11 * (4 * width**2 + 3 * hidden * width) + 2 * width**2 + 3 * hidden * width)
    mixing = 11 * 2 * tokens**2 * width
    # Teacher: 12 crops of 197 tokens, whole blocks but for the last
    crops = 12 * 197 * 11 * (4 * width**2 + 3 * hidden * width + 2 * 197 * width)
    assert small.flops == pytest.approx(2 * (3 * dense + 3.5 * mixing + crops), rel=0.05)
    assert large.flops == pytest.approx(2 * small.flops, rel=1e-3)
    assert large.bytes_saved == pytest.approx(2 * small.bytes_saved, rel=0.02)
    assert small.peak_bytes > small.bytes_saved > 2e9


def test_options_cost_what_they_promise():
    plain = step("ViT-B-32", student_size=448)
    halved = step("ViT-B-32", student_size=448, execution=Execution(low_precision=True))
    recomputed = step("ViT-B-32", student_size=448, execution=Execution(checkpointing=True))
    valid = step("ViT-B-32", student_size=448, tokens="valid")
    student = objective_of("ViT-B-32", FakeTensorMode(allow_non_fake_inputs=True), student_size=448).student
    copies = 2 * sum(parameter.numel() for parameter in student.visual.parameters())
    assert halved.bytes_saved - copies < 0.75 * plain.bytes_saved and halved.flops == plain.flops
    assert recomputed.bytes_saved < 0.4 * plain.bytes_saved and recomputed.flops > plain.flops
    assert recomputed.peak_bytes < 0.5 * plain.peak_bytes  # beside gradients that are there already
    assert valid.flops < 0.9 * plain.flops  # a 4 : 3 image leaves a quarter of its square empty
    assert step("ViT-B-32", student_size=448) == plain  # to the last bit
