"""The plan of a run: derived by hand where it is exact; measuring it changes nothing."""

import json
import math
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from foveate import progress
from foveate.cli.main import main
from foveate.clip.load import load
from foveate.engine import measure, plan
from foveate.engine.distributed import Processes
from foveate.engine.measure import measure_pass
from foveate.engine.plan import Memory, Plan, memory_of, require_batch, require_fixed
from foveate.errors import InputError
from foveate.io.memory import free_memory
from foveate.objectives.clipself import ClipSelf, count_regions, train_layers
from foveate.ops.grid import grid_boxes
from foveate.types import Batch, Sample

ALONE = Processes(rank=0, size=1, device=torch.device("cpu"))
RUN = Plan(
    "EVA02-B-16", "cpu", 86_000_000, 150_000_000, images=118_287, steps=44_358, start_step=358, batch=2,
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


def test_derived_numbers():
    assert RUN.images_per_step == 16 and RUN.seconds_left == 0.5 * 4 * 44_000
    assert RUN.memory is not None and RUN.memory.largest_batch == 6 and RUN.memory.needed(2) == 8e9
    assert Memory(3, 2, 1).largest_batch == 0
    record = json.loads(json.dumps(RUN.record()))
    assert record["epochs"] == 6.0 and record["largest_batch"] == 6 and record["memory_needed"] == 8e9


def test_the_lines_of_a_plan():
    assert RUN.memory is not None
    first, text = "\n".join(RUN.known_lines(RUN.memory)), "\n".join(RUN.measured_lines())
    assert "memory    2.0 GB of 20.0 GB on cpu before any image" in first
    text = f"{first}\n{text}"
    parts = ["86.0 of 150.0 million", "118,287", "2 x 4 accumulated x 2 processes", "6.00 epochs", "8.0 GB of 20.0 GB"]
    for part in [*parts, "the largest batch that fits is about 6", "24:26:40", "out/model  600 MB"]:
        assert part in text
    assert "WARNING" not in text
    large = Plan(**{**vars(RUN), "batch": 7})
    assert "WARNING   a batch of 7 may not fit. Lower --batch" in "\n".join(large.measured_lines())
    assert "not measured" in "\n".join(Plan(**{**vars(RUN), "seconds": None, "memory": None}).measured_lines())
    partly = Plan(**{**vars(RUN), "shortcut": "1 of 2 images was measured"})
    assert "backward pass takes about 0.5 s (1 of 2 images was measured)" in "\n".join(partly.measured_lines())
    least = "\n".join(Plan(**{**vars(partly), "is_least": True}).measured_lines())
    for part in (
        "memory    at least 8.0 GB of",
        "that fits is at most 6",
        "time      at least",
        "takes at least 0.5 s",
    ):
        assert part in least


def test_what_cannot_fit_a_cpu_is_refused_with_what_would():
    require_batch(RUN)
    expected = r"--batch: must fit the memory of cpu; a pass of 7 images needs at least 23\.0 GB, 20\.0 GB are free, "
    with pytest.raises(InputError, match=expected + r"and the largest that fits is about 6\. Lower --batch"):
        require_batch(replace(RUN, batch=7))
    with pytest.raises(InputError, match="not even 1 fits"):
        require_batch(replace(RUN, memory=Memory(2, 3, 4)))
    require_batch(replace(RUN, device="cuda:0", batch=7))  # the pass has shown that it fits
    require_batch(replace(RUN, memory=None))
    require_fixed(Memory(4, 0, 4), model="ViT", device=torch.device("cpu"))
    with pytest.raises(InputError, match=r"ViT: needs 5\.0 GB on cpu for weights, .*; 4\.0 GB are free\. Free memory"):
        require_fixed(Memory(5 * 10**9, 0, 4 * 10**9), model="ViT", device=torch.device("cpu"))


def test_free_memory_is_that_of_the_machine_or_of_a_control_group(tmp_path):
    put = lambda name, text: ((tmp_path / name).parent.mkdir(parents=True, exist_ok=True),  # noqa: E731
                              (tmp_path / name).write_text(text))  # fmt: skip
    assert free_memory(tmp_path) > 10**6  # no /proc: what the system says
    put("proc/meminfo", "MemTotal: 9 kB\nMemAvailable:   4000 kB\n")
    assert free_memory(tmp_path) == 4_096_000
    # version 2: of the group and of those above; cached files can be dropped
    put("proc/self/cgroup", "0::/a/b\n")
    put("sys/fs/cgroup/a/b/memory.max", "max\n")
    put("sys/fs/cgroup/a/memory.max", "3000000\n")
    put("sys/fs/cgroup/a/memory.current", "1500000\n")
    put("sys/fs/cgroup/a/memory.stat", "anon 7\ninactive_file 500000\n")
    assert free_memory(tmp_path) == 2_000_000
    # version 1, in a container whose own path is not mounted
    put("proc/self/cgroup", "5:devices:/x\n4:memory:/docker/f00\n0::/\n")
    put("sys/fs/cgroup/memory/memory.limit_in_bytes", "1000000\n")
    put("sys/fs/cgroup/memory/memory.usage_in_bytes", "1200000\n")
    put("sys/fs/cgroup/memory/memory.stat", "total_inactive_file 300000\n")
    assert free_memory(tmp_path) == 100_000
    put("sys/fs/cgroup/memory/memory.limit_in_bytes", f"{2**63 - 4096}\n")  # none
    assert free_memory(tmp_path) == 4_096_000


class Squares(nn.Module):
    """One weight, and a pass that stores two tensors of as many numbers as an image has."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.norm = nn.Parameter(torch.ones(10)), nn.BatchNorm1d(1)

    def forward(self, batch: Batch) -> torch.Tensor:
        images = torch.stack([sample.image.float().flatten() for sample in batch.samples])  # (B, P)
        scaled = images * self.weight.sum()  # stores the images
        self.norm(images[:, None, :2])
        torch.rand(1)
        return scaled.square().mean()  # stores what is squared


class Repeated(Squares):
    """Stores as much for each of N images as for N alone."""

    def forward(self, batch: Batch) -> torch.Tensor:
        return super().forward(Batch(batch.samples * len(batch.samples), []))


def test_stored_activations_are_counted_and_everything_is_restored():
    images = [torch.ones(3, 40, 50, dtype=torch.uint8)] * 2
    batch = Batch([Sample(str(index), image, torch.zeros(0, 4)) for index, image in enumerate(images)], [])
    squares, state = Squares(), torch.get_rng_state()
    measured = measure_pass(squares, batch, count=lambda batch: len(batch.samples))
    assert measured is not None and measured[1] > 0
    # two tensors of 6,000 float32 for each image, and a few bytes of the norm and the weight's sum
    assert 2 * 24_000 <= measured[0] <= 2 * 24_000 + 200
    assert squares.weight.grad is None and squares.norm.num_batches_tracked == 0
    assert torch.equal(squares.norm.running_mean, torch.zeros(1)) and torch.equal(torch.get_rng_state(), state)


def test_a_pass_that_takes_too_much_is_left_for_one_of_one_image():
    images = [torch.ones(3, 40, 50, dtype=torch.uint8)] * 4
    batch = Batch([Sample(str(index), image, torch.zeros(0, 4)) for index, image in enumerate(images)], [])
    squares, state = Squares(), torch.get_rng_state()

    def cost(*, room: float = math.inf, patience: float = math.inf) -> measure.Cost:
        measured = measure_pass(squares, batch, count=lambda given: len(given.samples), room=room, patience=patience)
        assert measured is not None and torch.equal(torch.get_rng_state(), state)
        assert squares.norm.num_batches_tracked == 0 and squares.weight.grad is None
        return measured

    whole = cost(room=10**6)
    assert whole.shortcut == "" and 2 * 24_000 <= whole.per_image <= 2 * 24_000 + 200
    # room for 3 images of 48,000 bytes and a few bytes: a batch of 4 does not fit, by what is said of one
    part = cost(room=150_000)
    assert part.shortcut == "1 of 4 images was measured" and 4 * part.per_image > 150_000
    assert 2 * 24_000 <= part.per_image <= 2 * 24_000 + 200
    least = measure_pass(Repeated(), batch, count=lambda given: len(given.samples), room=300_000)
    assert least is not None and 4 * least.per_image > 300_000  # of one image it stores but 48,000 bytes
    none = cost(room=30_000)
    assert none.per_image > 30_000 and "1 of 4 images was stopped when memory was full" in none.shortcut
    # without patience not even one image is measured, and with little no backward pass
    assert none.is_least and cost(patience=0).is_least and not part.is_least
    slow = nn.Sequential(nn.Identity())
    squares.register_forward_pre_hook(lambda *_: slow(time.sleep(0.02)))
    late = cost(patience=0.015)
    assert late.shortcut == "the forward pass of 1 of 4 images was measured" and late.seconds > 4 * 3 * 0.02


def test_a_long_measurement_is_heard_of(monkeypatch):
    monkeypatch.setattr(progress, "BEAT", 0.01)
    lines: list[str] = []
    with progress.heartbeat(lines.append, "measuring"):
        time.sleep(0.05)
    assert lines and all(line == "measuring: 0 s so far" for line in lines)
    count = len(lines)
    time.sleep(0.02)
    assert len(lines) == count


def test_fixed_memory_is_weights_gradients_and_moments(objective):
    whole, last = (memory_of(objective(last=last), 7, processes=ALONE) for last in (None, 1))
    trained = [sum(p.numel() for p in objective(last=last).parameters() if p.requires_grad) for last in (None, 1)]
    assert whole.fixed - last.fixed == 3 * 4 * (trained[0] - trained[1])  # a gradient and two moments, float32
    towers = 4 * sum(p.numel() for p in objective().parameters())
    assert towers + 3 * 4 * trained[0] <= whole.fixed < 1.1 * (towers + 3 * 4 * trained[0])
    two = Processes(rank=0, size=2, device=torch.device("cpu"))
    spread = memory_of(objective(), 7, processes=two, sharded=True)
    assert spread.fixed == whole.fixed - 4 * 4 * trained[0] // 2


def test_measuring_a_distillation_changes_nothing(objective):
    batch, modules = batch_of((48, 64), (40, 40)), [objective(size=size) for size in (64, 256)]
    module, state = modules[0], torch.get_rng_state()
    before = {name: p.clone() for name, p in module.named_parameters()}
    small, large = (measure_pass(each, batch, count=count_regions) for each in modules)
    assert small is not None and large is not None and large[0] > 3 * small[0]
    assert measure_pass(module, Batch([], []), count=count_regions) is None
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in module.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_dry_run_reports_and_leaves_no_trace(tiny_model, image_folder, tmp_path, capsys, monkeypatch):
    typed = ["distill", "--data", image_folder, "--out", tmp_path / "run", "--model", tiny_model, "--size", 64]
    typed += ["--steps", 100, "--batch", 3, "--accumulate", 2, "--workers", 0, "--device", "cpu", "--dry-run"]
    main([str(word) for word in typed])
    text = capsys.readouterr().err
    assert "6 per step" in text and "60.00 epochs" in text and "for 100 steps" in text and str(tmp_path / "run") in text
    assert list(tmp_path.iterdir()) == []
    # what is known is printed before anything is computed, and refused if it does not fit; then what is measured
    cases = {1000: "MB on cpu for weights, and", 400_000: "--batch: must fit the memory of cpu; a pass of 3 images"}
    for free, expected in cases.items():
        monkeypatch.setattr(plan, "free_memory", lambda free=free: free)
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in typed])
        text = capsys.readouterr().err
        assert left.value.code == 2 and "on cpu before any image" in text and expected in text
        assert ("the largest batch that fits" in text) == (free == 400_000)


def test_a_batch_that_does_not_fit_is_refused_with_what_to_lower(objective, monkeypatch):
    module = objective()

    def full(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ClipSelf, "forward", full)
    with pytest.raises(InputError, match=r"--batch: must fit the memory of cpu; a pass of 2 images does not\. Lower"):
        measure_pass(module, batch_of((48, 64), (40, 40)), count=count_regions)
