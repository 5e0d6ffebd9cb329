"""Two gloo processes compute the gradient of one process with all the images: averaged over all regions."""

import json
from pathlib import Path

import pytest
import torch

SCRIPT = str(Path(__file__).with_name("two_processes.py"))


@pytest.fixture
def run(zygote, tiny_model, tmp_path):
    def start(mode: str, *, size: int) -> list[Path]:
        arguments = [tiny_model, tmp_path, mode]
        processes = []
        for rank in range(size):
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": 29531}
            environment = {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}
            output = tmp_path / f"output_{mode}_{rank}_of_{size}.txt"
            processes.append(zygote.start(output, arguments, script=SCRIPT, environment=environment))
        assert [zygote.wait(process) for process in processes] == [0] * size, output.read_text()
        return [tmp_path / f"{mode}_{rank}_of_{size}" for rank in range(size)]

    return start


def gradients(folder: Path) -> list[torch.Tensor]:
    return torch.load(folder / "gradients.pt", weights_only=True)


def loss(folder: Path) -> float:
    return json.loads((folder / "metrics.jsonl").read_text())["loss"]


def test_gradients_are_equal_on_all_processes_and_to_one_process_with_the_union(run):
    first, second = run("union", size=2)
    (alone,) = run("union", size=1)
    assert all(torch.equal(a, b) for a, b in zip(gradients(first), gradients(second), strict=True))
    for ours, theirs in zip(gradients(first), gradients(alone), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert max(gradient.abs().max() for gradient in gradients(alone)) > 1e-2  # so that 1e-6 says something
    # 6 regions on one side, 2 on the other: a mean of the two means would be another number
    assert loss(first) == loss(second) == pytest.approx(loss(alone), abs=1e-6)


def test_accumulated_batches_give_the_gradient_of_their_union_and_are_exchanged_once(run):
    """4 images at once == 2 + 2 in one process == (1 + 1) on each of two processes."""
    (alone,) = run("union", size=1)
    (accumulated,) = run("accumulated", size=1)
    first, second = run("accumulated", size=2)
    whole, _ = run("union", size=2)
    for folder in (accumulated, first, second):
        for ours, theirs in zip(gradients(folder), gradients(alone), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        assert loss(folder) == pytest.approx(loss(alone), abs=1e-6)
    exchanged = [int((folder / "averaged.txt").read_text()) for folder in (whole, first, second)]
    assert exchanged[0] == exchanged[1] == exchanged[2] >= 1


def test_terms_are_means_over_the_union_too(run):
    first, second = run("terms", size=2)
    (alone,) = run("terms", size=1)
    assert all(torch.equal(a, b) for a, b in zip(gradients(first), gradients(second), strict=True))
    for ours, theirs in zip(gradients(first), gradients(alone), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert loss(first) == loss(second) == pytest.approx(loss(alone), abs=1e-6)


@pytest.mark.parametrize("mode", ["empty", "terms empty"])
def test_a_process_without_regions_takes_part(run, mode):
    first, second = run(mode, size=2)
    assert all(torch.equal(a, b) for a, b in zip(gradients(first), gradients(second), strict=True))
    assert loss(first) == loss(second) > 0


def test_all_processes_stop_together_at_a_loss_that_is_not_finite(run):
    folders = run("broken", size=2)
    for folder in folders:
        message = (folder / "refused.txt").read_text()
        assert "'image 2', 'image 3'" in message and "image 0" not in message
