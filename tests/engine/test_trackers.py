"""TensorBoard and the trackers get the numbers of metrics.jsonl, each step once, and cannot end a run."""

import json
import shutil
import subprocess
import sys
import threading
from types import ModuleType

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from foveate.engine import trackers
from foveate.engine.distributed import Processes, choose_device
from foveate.engine.log import Log
from foveate.engine.trackers import TensorBoard, Tracker, choose_sinks, import_tracker
from foveate.errors import InputError
from foveate.train import distill
from foveate.train.flags import DistillConfig
from foveate.train.run import train


class Run:
    """What a tracker has of one run: points in the order they came."""

    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.points.append((step, dict(numbers)))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def stand_in(monkeypatch):
    """Put a package into `sys.modules` whose `init` remembers what it was given, and goes on with a run it knows."""

    def install(name: str, key: str) -> ModuleType:
        module = ModuleType(name)
        module.given, module.runs = [], {}
        module.init = lambda **given: module.given.append(given) or module.runs.setdefault(given[key], Run())
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return install


def write(out, sinks, *, start, stop, scale=1.0, verbose=True):
    out.mkdir(exist_ok=True)
    with Log(out / "metrics.jsonl", steps=10, start_step=start, every=2, verbose=verbose, sinks=sinks) as log:
        for done in range(start + 1, stop + 1):
            loss = None if done == 4 else scale * done / 8
            log.step(done, loss=loss, lr=0.5, gradient_norm=2.0, images=4, items=13)
            if done % 5 == 0:
                log.event("validation", {"step": done, "held_out_loss": scale * done})
        log.event("stop", {"step": stop})


def curves(folder) -> dict[str, list[tuple[int, float]]]:
    reader = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def points(out) -> list[tuple[int, dict[str, float]]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    kept = [line for line in lines if line.get("event") in (None, "validation")]
    return [(line["step"], {k: v for k, v in line.items() if k not in ("step", "event")}) for line in kept]


def test_tensorboard_has_each_step_once_after_a_resume(tmp_path):
    write(
        tmp_path, [TensorBoard(tmp_path / "tensorboard")], start=0, stop=8, scale=3
    )  # what is lost is 3 times as high
    write(tmp_path, [TensorBoard(tmp_path / "tensorboard")], start=4, stop=10)
    recorded = curves(tmp_path / "tensorboard")
    rate = recorded.pop("images_per_second")
    assert recorded == {
        "loss": [(2, 0.75), (6, 0.75), (8, 1.0), (10, 1.25)],  # 3 * 2 / 8, then step / 8; step 4 had no items
        "lr": [(step, 0.5) for step in (2, 4, 6, 8, 10)],
        "gradient_norm": [(step, 2.0) for step in (2, 4, 6, 8, 10)],
        "items": [(step, 13.0) for step in (2, 4, 6, 8, 10)],
        "held_out_loss": [(5, 5.0), (10, 10.0)],
    }
    rates = [(step, numbers["images_per_second"]) for step, numbers in points(tmp_path) if "lr" in numbers]
    assert [step for step, _ in rate] == [2, 4, 6, 8, 10]
    assert [value for _, value in rate] == pytest.approx([value for _, value in rates], rel=1e-6)


def test_a_restarted_run_hides_the_first_start(tmp_path):
    write(tmp_path, [TensorBoard(tmp_path)], start=0, stop=5, scale=3)
    write(tmp_path, [TensorBoard(tmp_path)], start=0, stop=2)
    assert curves(tmp_path)["loss"] == [(2, 0.25)] and curves(tmp_path).get("held_out_loss", []) == []


def test_a_point_is_on_disk_at_once(tmp_path):
    sink = TensorBoard(tmp_path)
    sink.open(0)
    for step in range(1, 4):
        sink.record(step, {"loss": 0.5 * step})
    assert curves(tmp_path)["loss"] == [(1, 0.5), (2, 1.0), (3, 1.5)]  # never closed, as after kill -9
    sink.close()


def test_a_silent_process_opens_nothing(tmp_path):
    write(tmp_path, [TensorBoard(tmp_path / "tensorboard")], start=0, stop=2, verbose=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "key"), [("wandb", "id"), ("trackio", "name")])
def test_a_tracker_resumes_the_same_run_with_each_step_once(stand_in, tmp_path, name, key):
    module = stand_in(name, key)
    config, out = {"lr": 1e-3}, tmp_path / "b16"
    for start, stop in ((0, 8), (4, 10)):
        write(out, [Tracker(name, out, config=config)], start=start, stop=stop)
    ((identity, run),) = module.runs.items()
    assert run.finished == 2 and [step for step, _ in run.points] == [2, 4, 5, 6, 8, 10, 10]
    hide = "images_per_second"  # of the steps done twice it is another
    assert [{**numbers, hide: 0} for _, numbers in run.points] == [{**numbers, hide: 0} for _, numbers in points(out)]
    saved = json.loads((out / "track.json").read_text())
    assert saved["tracker"] == name and saved["id"] in identity and saved["step"] == 10
    for given in module.given:
        assert given["project"] == "foveate" and given["config"] == config and given["resume"] == "allow"
        assert given["name"].startswith("b16")


def test_two_folders_of_one_name_are_two_runs(stand_in, tmp_path):
    for name, key in (("wandb", "id"), ("trackio", "name")):
        module = stand_in(name, key)
        for parent in ("one", "two"):
            (tmp_path / parent).mkdir(exist_ok=True)
            write(tmp_path / parent / "b16", [Tracker(name, tmp_path / parent / "b16", config={})], start=0, stop=2)
        assert [len(run.points) for run in module.runs.values()] == [1, 1]


def test_another_tracker_starts_a_new_run(stand_in, tmp_path):
    wandb, trackio = stand_in("wandb", "id"), stand_in("trackio", "name")
    write(tmp_path, [Tracker("wandb", tmp_path, config={})], start=0, stop=4)
    write(tmp_path, [Tracker("trackio", tmp_path, config={})], start=2, stop=6)
    assert [[step for step, _ in run.points] for run in wandb.runs.values()] == [[2, 4]]
    assert [[step for step, _ in run.points] for run in trackio.runs.values()] == [[4, 5, 6]]


class Failing:
    """A sink that fails at the requested call."""

    name = "failing"

    def __init__(self, where: str) -> None:
        self.where, self.calls = where, []

    def open(self, start_step: int) -> None:
        self._call("open")

    def record(self, step: int, numbers: dict[str, float]) -> None:
        self._call("record")

    def close(self) -> None:
        self._call("close")

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.where:
            raise OSError("no space left")


@pytest.mark.parametrize(
    ("where", "calls"),
    [("open", ["open"]), ("record", ["open", "record"]), ("close", ["open", *["record"] * 7, "close"])],
)
def test_a_sink_that_fails_is_reported_once_and_not_used_again(tmp_path, capsys, where, calls):
    failing, board = Failing(where), TensorBoard(tmp_path / "tensorboard")
    write(tmp_path, [failing, board], start=0, stop=10)
    assert failing.calls == calls
    output = capsys.readouterr().err
    assert output.count("failing failed (OSError: no space left) and is disabled") == 1
    assert [step for step, _ in points(tmp_path)] == [2, 4, 5, 6, 8, 10, 10]
    assert [step for step, _ in curves(tmp_path / "tensorboard")["lr"]] == [2, 4, 6, 8, 10]  # the other sink heard all


def test_tensorboard_may_lose_its_folder_during_the_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda args: None)  # its writing thread dies too
    folder, before = tmp_path / "tensorboard", set(threading.enumerate())
    with Log(tmp_path / "metrics.jsonl", steps=40, every=1, sinks=[TensorBoard(folder)]) as log:
        for done in range(1, 41):
            log.step(done, loss=0.5, lr=0.5, gradient_norm=2.0, images=4, items=13)
            if done == 3:
                shutil.rmtree(folder)
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
    assert capsys.readouterr().err.count("tensorboard failed (") == 1
    assert [step for step, _ in points(tmp_path)] == list(range(1, 41))


def test_tensorboard_may_have_no_folder_at_the_start(tmp_path, capsys):
    (tmp_path / "tensorboard").write_text("not a folder")
    write(tmp_path, [TensorBoard(tmp_path / "tensorboard")], start=0, stop=10)
    assert capsys.readouterr().err.count("tensorboard failed (") == 1
    assert len(points(tmp_path)) == 7


def test_a_tracker_that_never_finishes_is_abandoned(stand_in, tmp_path, capsys, monkeypatch):
    stand_in("wandb", "id")
    released = threading.Event()
    monkeypatch.setattr(Run, "finish", lambda self: released.wait())
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.05)
    write(tmp_path, [Tracker("wandb", tmp_path, config={})], start=0, stop=2)
    released.set()
    assert "wandb failed (TimeoutError: it has not sent everything after 0.05 s)" in capsys.readouterr().err


def test_an_error_of_a_tracker_at_its_end_is_reported(stand_in, tmp_path, capsys, monkeypatch):
    stand_in("wandb", "id")

    def finish(self) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(Run, "finish", finish)
    write(tmp_path, [Tracker("wandb", tmp_path, config={})], start=0, stop=2)
    assert "wandb failed (ConnectionError: no network)" in capsys.readouterr().err


def test_a_damaged_track_file_is_reported(stand_in, tmp_path, capsys):
    module = stand_in("wandb", "id")
    (tmp_path / "track.json").write_text('{"id": ')
    write(tmp_path, [Tracker("wandb", tmp_path, config={})], start=0, stop=2)
    assert "track.json: must have tracker, id and step" in capsys.readouterr().err and not module.runs


def test_the_flags_choose_the_sinks(tmp_path):
    for track in ("tensorboard", "wandb", "trackio"):
        assert [sink.name for sink in choose_sinks(tmp_path, track=track, config={})] == [track]
    assert choose_sinks(tmp_path, track="none", config={}) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_package_is_reported_before_anything_is_written(
    tmp_path, image_folder, tiny_model, monkeypatch, name
):
    monkeypatch.setitem(sys.modules, name, None)  # what an import looks like where there is no such package
    config = DistillConfig(data=image_folder, out=tmp_path / "run", model=str(tiny_model), track=name)
    alone = Processes(rank=0, size=1, device=choose_device("cpu", local_rank=None))
    with pytest.raises(InputError, match=rf"--track {name}: needs the package {name} .*: pip install {name}\."):
        train(config, distill.prepare, alone)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_wandb_left_behind_is_not_the_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()  # imports as an empty package
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(InputError, match="pip install wandb"):
        import_tracker("wandb")
    sys.modules.pop("wandb", None)


def test_nothing_is_imported_before_a_run():
    heavy = "{'torch', 'tensorboard', 'wandb', 'trackio'}"
    code = f"import sys, foveate.train.flags, foveate.engine.trackers; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
