"""What a run is said to take: derived by hand where it is exact, and nothing that telling it would change."""

import json
from functools import partial

import pytest
import torch

from foveate.cli.main import main
from foveate.clip.load import load
from foveate.clip.tower import Windows
from foveate.engine import plan
from foveate.engine.plan import Memory, Plan, check_memory, estimate_memory, measure_pass, tell_plan
from foveate.errors import InputError
from foveate.objectives.clipself import ClipSelf, train_layers
from foveate.ops.grid import grid_boxes
from foveate.types import Batch, Sample

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
RUN = Plan(
    "EVA02-B-16", "cpu", 86_000_000, 150_000_000, pictures=118_287, steps=44_358, start_step=358, batch=2,
    accumulate=4, processes=2, memory=Memory(2_000_000_000, 3_000_000_000, 20_000_000_000), seconds=0.5,
    writes={"out/model": 600_000_000, "out/metrics.jsonl": 0},
)  # fmt: skip


@pytest.fixture
def objective(tiny_model):
    def build(*, size: int = 64, last: int | None = None, **settings) -> ClipSelf:
        student, teacher = load(tiny_model), load(tiny_model)
        train_layers(student, last)
        return ClipSelf(student, teacher, student_size=size, **settings)

    return build


def batch_of(*sizes: tuple[int, int]) -> Batch:
    boxes = [grid_boxes(2, 2, height=height, width=width) for height, width in sizes]
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]
    return Batch([Sample(str(i), image, own) for i, (image, own) in enumerate(zip(images, boxes, strict=True))], [])


def test_the_numbers_that_follow():
    assert RUN.pictures_a_step == 16 and RUN.seconds_left == 0.5 * 4 * 44_000
    assert RUN.memory.largest_batch == 6 and RUN.memory.needed(2) == 8e9
    assert Memory(3, 2, 1).largest_batch == 0
    record = json.loads(json.dumps(RUN.record()))
    assert record["epochs"] == 6.0 and record["largest_batch"] == 6 and record["memory_needed"] == 8e9


def test_the_lines_name_what_people_ask():
    told = tell_plan(RUN)
    parts = ["86.0 of 150.0 million", "118,287", "2 x 4 accumulated x 2 processes", "6.00 epochs", "8.0 GB of 20.0 GB"]
    for part in [*parts, "the largest batch that fits is 6", "24:26:40", "out/model  600 MB"]:
        assert part in told
    assert "WARNING" not in told
    large = Plan(**{**vars(RUN), "batch": 7})
    assert "WARNING   a batch of 7 may not fit. Lower --batch" in tell_plan(large)
    assert "not measured" in tell_plan(Plan(**{**vars(RUN), "seconds": None}))


def test_a_gpu_refuses_what_the_host_is_warned_of():
    check_memory(RUN.memory, batch=7, device=CPU)
    check_memory(RUN.memory, batch=7, device=GPU)  # 23 of 20 GB: within the estimate's error
    with pytest.raises(InputError, match=r"--batch 8: needs about 26\.0 GB on cuda:0, which has 20\.0 GB; .* is 6\."):
        check_memory(RUN.memory, batch=8, device=GPU)


def test_weights_gradients_and_moments_are_fixed_and_pictures_a_line(objective):
    whole, last = (estimate_memory(objective(size=256, last=last), batch=8, regions=4) for last in (None, 1))
    trained = [sum(p.numel() for p in objective(last=last).parameters() if p.requires_grad) for last in (None, 1)]
    towers = 4 * sum(p.numel() for p in objective().parameters())
    assert whole.fixed >= towers + 3 * 4 * trained[0]  # two towers, gradients, two moments
    # fewer blocks to train: gradients and moments less, and activations of one block less in each picture
    assert whole.fixed - last.fixed == pytest.approx(3 * 4 * (trained[0] - trained[1]), rel=0.1)
    assert last.a_picture < whole.a_picture
    larger = estimate_memory(objective(size=512), batch=8, regions=4)
    assert 3 * whole.a_picture < larger.a_picture < 6 * whole.a_picture  # 4 times the tokens
    assert larger.fixed == pytest.approx(whole.fixed, rel=0.1)


def test_spread_weights_in_bfloat16_take_what_bfloat16_does(objective):
    """The objective is then a float32 one, whose blocks are gathered in bfloat16."""
    shape = {"batch": 2, "regions": 4, "processes": 2, "sharded": True}
    exact, low = (estimate_memory(objective(size=256), **shape, bfloat16=bfloat16) for bfloat16 in (False, True))
    copied = estimate_memory(objective(size=256, low_precision=True), **shape)
    assert low.a_picture == copied.a_picture < 0.8 * exact.a_picture


def test_a_small_input_does_not_hide_a_picture_behind_the_gradients(objective):
    # tokens of 16 patches of 8 pixels: a picture's activations are far less than the gradients of both blocks
    memory = estimate_memory(objective(size=32), batch=4, regions=1)
    assert memory.a_picture > 4 * 3 * 32 * 32  # its input alone


def test_gradients_do_not_hide_what_a_picture_takes_in_a_small_batch(objective, monkeypatch):
    # gradients alone take 1000, pictures 200 and 50 each: up to 16 of them are hidden
    monkeypatch.setattr(plan, "_peak", lambda *_, pictures: max(1000, 200 + 50 * pictures))
    memory = estimate_memory(objective(), batch=1, regions=4)
    held = memory.fixed - 200  # weights, gradients and moments
    assert memory.a_picture == 50 and memory.least == held + 1000
    assert [memory.needed(batch) - held for batch in (1, 16, 17)] == [1000, 1000, 1050]
    assert Memory(fixed=10, a_picture=5, available=100, least=40).largest_batch == 18
    assert Memory(fixed=10, a_picture=5, available=39, least=40).largest_batch == 0


def test_the_estimate_is_what_a_real_pass_takes_of_the_allocator(objective):
    from foveate.engine.account import counting

    one = objective(size=256)
    for parameter in one.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    peaks = []
    for count in (3, 6):
        batch = batch_of(*[(480, 640)] * count)
        with counting() as account:
            one(batch).backward()
        peaks.append(account.peak_bytes)
    assert (peaks[1] - peaks[0]) / 3 == pytest.approx(estimate_memory(one, batch=3, regions=4).a_picture, rel=0.01)


def test_measuring_leaves_everything_as_it_was(objective):
    one, batch = objective(), batch_of((48, 64), (40, 40))
    before, state = {name: p.clone() for name, p in one.named_parameters()}, torch.get_rng_state()
    assert measure_pass(one, [batch]) > 0
    assert measure_pass(one, [Batch([], [])]) is None
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in one.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_dry_run_tells_and_leaves_no_trace(tiny_model, pictures, tmp_path, capsys):
    typed = ["distill", "--data", pictures, "--out", tmp_path / "run", "--model", tiny_model, "--student-size", 64]
    typed += ["--steps", 100, "--batch", 3, "--accumulate", 2, "--workers", 0, "--device", "cpu", "--dry-run"]
    main([str(word) for word in typed])
    told = capsys.readouterr().err
    assert "6 a step" in told and "60.00 epochs" in told and "for 100 steps" in told and str(tmp_path / "run") in told
    assert list(tmp_path.iterdir()) == []


def test_window_attention_is_planned_too(objective):
    one = objective(size=256)
    without = estimate_memory(one, batch=2, regions=4)
    one.student.windows = Windows(2, (0,))
    assert one.student.config["foveate"] == {"windows": {"size": 2, "blocks": [0]}}  # as a saved model's file has it
    assert estimate_memory(one, batch=2, regions=4).fixed == pytest.approx(without.fixed, rel=0.1)


def test_a_dry_run_on_a_full_gpu_is_refused_before_it_is_tried(tiny_model, pictures, tmp_path, capsys, monkeypatch):
    as_gpu = partial(check_memory, device=GPU)
    monkeypatch.setattr(plan, "_available", lambda objective, local: 1000)
    monkeypatch.setattr(plan, "check_memory", lambda memory, *, batch, device: as_gpu(memory, batch=batch))
    monkeypatch.setattr(plan, "measure_pass", lambda *_: pytest.fail("tried a batch that does not fit"))
    typed = ["distill", "--data", pictures, "--out", tmp_path / "run", "--model", tiny_model, "--student-size", 64]
    with pytest.raises(SystemExit) as done:
        main([str(word) for word in [*typed, "--device", "cpu", "--dry-run"]])
    assert done.value.code == 2 and "the largest batch that fits is 0" in capsys.readouterr().err
