"""Runs with all terms and gates: planned, resumed to the bit, and the gates of the product."""

import signal
from copy import deepcopy
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file

from foveate.clip.io.weights import save_clip
from foveate.clip.load import load
from foveate.clip.model import Clip
from foveate.engine.optim import build_optimizer
from foveate.engine.product import write_product
from foveate.objectives.clipself import train_layers

CONFIG = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 2, "heads": 1, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]},
}
TERMS = ["--keep", 1, "--correlation", 1]
GATES = ["--head", "gated"]


@pytest.fixture(scope="module")
def three_blocks(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "three"
    save_clip(Clip(open_clip.CLIP(**deepcopy(CONFIG["model_cfg"])), name="three", config=CONFIG), folder)
    return folder


def test_a_run_with_terms_and_gates_is_resumed_to_the_bit_and_mixes_its_gates(distill, three_blocks, tmp_path):
    flags = ["--model", three_blocks, *TERMS, *GATES, "--alpha", 0.25]
    status, output = distill(*flags, out="whole")
    assert status == 0, output
    assert distill(*flags, kill=[signal.SIGKILL, 4])[0] == -signal.SIGKILL
    assert distill(*flags)[0] == 0
    ours, theirs = (
        load_file(tmp_path / out / "checkpoints" / "step_00000004" / "state.safetensors") for out in ("run", "whole")
    )
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    raw = ours["parameter/student._gates"]
    assert raw.shape == (6,) and (raw != 1).all()  # 3 blocks of 32 / 16 = 2 heads; each has moved
    products = [load(tmp_path / out / "model").gates for out in ("run", "whole")]
    assert torch.equal(*products)
    torch.testing.assert_close(products[0].detach(), 1 + 0.25 * (raw - 1))


def test_gates_of_a_product_are_mixed_with_those_it_started_from(three_blocks, tmp_path):
    original, ours = load(three_blocks), torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    write_product(original, {"parameter/student._gates": ours}, tmp_path / "one", alpha=0.5)  # with 1
    once = load(tmp_path / "one")
    assert once.gates.tolist() == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    write_product(once, {"parameter/student._gates": ours}, tmp_path / "two", alpha=0.5)
    assert load(tmp_path / "two").gates.tolist() == [0.25, 1.0, 1.75, 2.5, 3.25, 4.0]


def test_gates_are_trained_if_requested_and_never_decayed(three_blocks):
    student = load(three_blocks)
    student.gates = [[0.5, 2.0]] * 3
    train_layers(student, head="values3")
    assert not student.gates.requires_grad  # a gated model trained on without --head gated
    train_layers(student, head="values3", gates=True)
    assert student.gates.requires_grad and student.gates.tolist() == [0.5, 2.0] * 3
    optimizer = build_optimizer(student, weight_decay=0.1)
    [group] = [one for one in optimizer.param_groups if any(p is student.gates for p in one["params"])]
    assert group["weight_decay"] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (GATES, "it needs 3 attention blocks, and this tower has 2"),
        (["--keep", -1], "--keep: must be 0 to 10, a weight"),
        (["--correlation", "nan"], "--correlation: must be 0 or above"),
    ],
)
def test_flags_that_exclude_each_other_are_refused(distill, flags, message):
    status, output = distill(*flags)
    assert status == 2 and message in output.replace("\n", " ") and "Traceback" not in output, output
