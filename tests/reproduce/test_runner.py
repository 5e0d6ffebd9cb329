"""`foveate reproduce`: finished commands are not repeated, failed ones are named, a signal stops and resumes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from foveate.cli.main import main
from foveate.errors import InputError
from foveate.io.store import hold_folder
from foveate.reproduce import runner
from foveate.reproduce.commands import Job, Stage
from foveate.reproduce.flags import Reproduce
from foveate.reproduce.rows import B16, L14, OPENAI_B16, OPENAI_L14, SMALL, Scale, scale_of


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO root: a world of six scenes to train on and four to report on."""
    folder = tmp_path_factory.mktemp("data") / "tiny"
    main(["world", str(folder), "--train", "6", "--val", "4", "--test", "0", "--workers", "1"])
    return folder


def test_a_table_end_to_end_then_again_and_after_a_lost_file(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    words = ["reproduce", "tabA1", "--data", str(root), "--out", str(out), "--seed", "3", "--steps", "1", "--jobs", "1"]
    words += ["--limit", "3", "--device", "cpu"]
    main(words)
    assert "0 of 3 commands are done already" in capfd.readouterr().err
    content = json.loads((out / "results" / "tabA1-clipself.json").read_text())
    assert content["settings"]["on"] == "tiny" and content["seeds"] == [3] and len(content["values"]["region1"]) == 1
    assert [one.split()[1] for one in content["commands"]] == ["distill", "evaluate"]
    assert all(seconds > 0 for seconds in content["seconds"])
    page = (out / "results.md").read_text()
    assert "Tab. A1" in page and "**not significant**: CLIPSelf makes a location retrieve its region" in page

    logs = {path.name: path.read_text() for path in (out / "logs").iterdir()}
    main(words)
    assert "3 of 3 commands are done already" in capfd.readouterr().err
    assert {path.name: path.read_text() for path in (out / "logs").iterdir()} == logs
    assert (out / "results.md").read_text() == page

    (out / "clipself-3" / "retrieval.json").unlink()
    main([*words, "--dry-run"])
    undone = [line for line in capfd.readouterr().out.splitlines() if not line.startswith("# done")]
    assert len(undone) == 1 and undone[0].startswith("foveate evaluate retrieval") and "clipself-3/model" in undone[0]

    # other words are another command; what fails is named, with its log and status 1
    monkeypatch.setattr(runner, "_run_all", lambda stage, todo, at_once: dict.fromkeys(todo, "status 2"))
    with pytest.raises(SystemExit) as done:
        main([*words, "--steps", "2"])
    told = capfd.readouterr().err
    assert done.value.code == 1 and "1 of 3 commands are done already" in told
    assert f"clipself-3: status 2; see {out / 'logs' / 'clipself-3.log'}" in told


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage("world", tmp_path, tmp_path / "figures", SMALL, "foveate-small", None, (0,))


def world(folder: Path, name: str, *, train: int = 1, needs: tuple[str, ...] = ()) -> Job:
    words = ("world", str(folder / name), "--val", "0", "--test", "0", "--workers", "1", "--train", str(train))
    return Job(name, words, folder / name / "world.json", needs)


def test_commands_run_in_order_and_failed_ones_are_named(stage: Stage, tmp_path: Path) -> None:
    jobs = {
        "second": world(tmp_path, "second", needs=("first",)),
        "first": world(tmp_path, "first"),
        "wrong": world(tmp_path, "wrong", train=-1),
        "after": world(tmp_path, "after", needs=("wrong",)),
        "last": world(tmp_path, "last", needs=("after",)),
    }
    failed = runner._run_all(stage, jobs, at_once=2)
    assert failed == {"wrong": "status 2", "after": "wrong failed before", "last": "after failed before"}
    assert "need counts and a seed of 0 or above" in (tmp_path / "logs" / "wrong.log").read_text()
    done = {name for name, job in jobs.items() if runner._is_done(stage, job)}
    assert done == {"first", "second"}
    first, second = (
        json.loads((tmp_path / "done" / f"{name}.json").read_text())["seconds"] for name in ("first", "second")
    )
    assert first > 0 and second > 0
    assert (tmp_path / "first" / "world.json").stat().st_mtime <= (tmp_path / "second" / "world.json").stat().st_mtime


def test_a_command_is_done_if_the_same_arguments_succeeded(stage: Stage, tmp_path: Path) -> None:
    job = world(tmp_path, "one")
    job.output.parent.mkdir()
    job.output.write_text("{}")
    assert not runner._is_done(stage, job), "a file alone proves nothing"
    runner._write_stamp(stage, job, 1.0)
    assert runner._is_done(stage, job)
    assert not runner._is_done(stage, world(tmp_path, "one", train=2)), "other words are another command"
    job.output.unlink()
    assert not runner._is_done(stage, job)


def test_a_command_is_not_done_after_a_requirement_was_repeated(stage: Stage, tmp_path: Path) -> None:
    """Also where the two were run by commands for different tables."""
    first, second = world(tmp_path, "first"), world(tmp_path, "second", needs=("first",))
    for job in (first, second):
        job.output.parent.mkdir()
        job.output.write_text("{}")
        runner._write_stamp(stage, job, 1.0)
    jobs = {"first": first, "second": second}
    assert runner._undone(stage, jobs) == {}
    time.sleep(1.1)  # a stamp has the second in which the command ended
    runner._write_stamp(stage, first, 1.0)
    assert set(runner._undone(stage, jobs)) == {"second"}
    runner._stamp(stage, "first").write_text("{")
    assert set(runner._undone(stage, jobs)) == {"first", "second"}


def test_the_figures_of_an_existing_page_are_replaced(stage: Stage, tmp_path: Path) -> None:
    path = tmp_path / "figures" / "sizes.png"
    job, other = Job("sizes", ("show", "sizes", "a=b", "--out", str(path)), path), world(tmp_path, "one")
    assert runner._typed(stage, job) == job.words
    redrawing = replace(stage, redraws=True)
    assert runner._typed(redrawing, job) == (*job.words, "--overwrite")
    assert runner._typed(redrawing, other) == other.words


def test_another_path_device_or_number_of_workers_is_the_same_command(stage: Stage, tmp_path: Path) -> None:
    """Stamps hold all words of the command."""
    words = ["distill", "--data", "{0}/data", "--out", "{0}/x-0", "--model", "a", "--workers", "{1}", "--device", "{2}",
             "--regions", "r={0}/p"]  # fmt: skip

    def filled(out: object, workers: int, device: str) -> list[str]:
        return [word.format(out, workers, device) for word in words]

    job = Job("x-0", tuple(filled(tmp_path, 0, "auto")), tmp_path / "x-0" / "m")
    job.output.parent.mkdir()
    job.output.write_text("")
    (tmp_path / "done").mkdir()

    def is_done(words: list[str]) -> bool:
        stamp = {
            "name": "x-0",
            "rules": runner.RULES,
            "words": words,
            "after": {},
            "ended": "2026-01-01 00:00:00",
            "seconds": 1.0,
        }
        (tmp_path / "done" / "x-0.json").write_text(json.dumps({**stamp, "versions": {}}))
        return runner._is_done(stage, job)

    assert is_done(filled(tmp_path, 0, "auto")) and is_done(filled("runs/reproduce", 2, "cuda"))
    assert not is_done([*filled("a", 0, "auto"), "--seed", "1"])
    assert not is_done([word.replace("model", "other") for word in filled("a", 0, "auto")])
    assert not is_done([word.replace("x-0", "x-1") for word in filled("a", 0, "auto")])
    assert not is_done(["b/data" if word == "a/data" else word for word in filled("a", 0, "auto")]), "two places"
    assert not is_done([word if word != "r=a/p" else "q=a/p" for word in filled("a", 0, "auto")])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_and_the_same_command_resumes(number: int, status: int, root: Path, tmp_path: Path) -> None:
    words = ["reproduce", "tabA1", "--data", str(root), "--out", str(tmp_path / "out"), "--seed", "0", "--steps", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "foveate.cli.main", *words, "--limit", "2"], stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "out" / "logs"
    wait_until(lambda: log.exists() and any(log.iterdir()), log)
    os.kill(process.pid, number)
    _, told = process.communicate(timeout=300)
    assert process.returncode == status, told
    assert "those that were running saved their state. To resume, run:\n  foveate reproduce" in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "reproduce: need tables"),
        (
            ["tab1", "--data", "nowhere"],
            "--data: need world, or the folder of a COCO root, with annotations/ in it; got nowhere",
        ),
        (["tab1", "--seed", "1", "1"], "--seed: need different numbers"),
        (["tab1", "--jobs", "0"], "--jobs: need at least 1; got 0"),
        (["tab1", "--limit", "0"], "--limit: need at least 1; got 0"),
        (["tab1", "--model", "EVA02-B-16"], "--model EVA02-B-16: needs weights"),
        (["figs", "--cnn", "RN50"], "--cnn RN50: needs weights"),
    ],
)
def test_wrong_flags_are_refused(words: list[str], told: str, capfd: pytest.CaptureFixture, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as done:
        main(["reproduce", *words, "--out", str(tmp_path)])
    assert done.value.code == 2 and told in capfd.readouterr().err


def test_a_dry_run_lists_the_commands_and_writes_nothing(capfd: pytest.CaptureFixture, tmp_path: Path) -> None:
    main(["reproduce", "tab2", "--out", str(tmp_path / "out"), "--seed", "0", "--dry-run"])
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["world", "distill", "evaluate", "proposals", "distill", "evaluate"]
    assert not (tmp_path / "out").exists()


def test_only_default_settings_write_to_the_projects_results() -> None:
    usual = Reproduce(("tab1",))
    assert runner._targets(usual) == (Path("results"), Path("docs/results.md"))
    for other in ({"seed": (0,)}, {"steps": 2}, {"limit": 4}, {"cnn": "x"}, {"data": "coco"}, {"model": "x"}):
        assert runner._targets(replace(usual, **other))[0] == usual.out / "results"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("foveate-small", SMALL),
        ("EVA02-B-16", B16),
        ("EVA02-L-14-336", L14),
        ("ViT-L-14", OPENAI_L14),
        ("ViT-B-16", OPENAI_B16),
    ],
)
def test_the_scale_follows_the_tower(model: str, expected: Scale) -> None:
    patch, native, is_eva = runner._tower(model)
    assert scale_of(patch=patch, native=native, is_eva=is_eva) == expected


def test_a_saved_small_clip_in_a_folder_called_14_is_small(tmp_path: Path) -> None:
    folder = tmp_path / "exp-14"
    folder.mkdir()
    shipped = Path(runner.__file__).parent.parent / "clip" / "small" / "open_clip_config.json"
    (folder / "open_clip_config.json").write_bytes(shipped.read_bytes())
    assert runner._tower(str(folder)) == (8, 64, False)


def test_a_command_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    """Also after kill -9. The command is `reproduce` itself, which ends its own commands too."""
    inner, log = tmp_path / "inner", tmp_path / "outer" / "logs" / "inner.log"
    words = ("reproduce", "tabA1", "--out", str(inner), "--seed", "0")
    code = (
        "import os, time; from pathlib import Path; from foveate.reproduce import runner\n"
        "from foveate.reproduce.commands import Job, Stage; from foveate.reproduce.rows import SMALL\n"
        f"stage = Stage('world', Path({str(tmp_path / 'outer')!r}), Path('f'), SMALL, 'foveate-small', None, (0,))\n"
        f"command = runner._start(stage, Job('inner', {words!r}, Path('none')), dict(os.environ)); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    started = inner / "logs" / "world.log"
    wait_until(started.exists, log)
    with pytest.raises(InputError, match="another process is writing there"), hold_folder(inner):
        pass
    process.kill()
    process.wait()

    def is_free() -> bool:
        with contextlib.suppress(InputError), hold_folder(inner):
            return True
        return False

    wait_until(is_free, log)
    assert "To resume, run:" in log.read_text()


def wait_until(is_so: Callable[[], bool], log: Path) -> None:
    """Wait for up to five minutes: the machine may be busy."""
    for _ in range(3000):
        if is_so():
            return
        time.sleep(0.1)
    raise AssertionError(f"nothing after five minutes; see {log}")


def test_few_steps_also_limit_the_trainings_on_the_student(root, tmp_path, capsys):
    words = [
        "reproduce",
        "ovd",
        "ovss",
        "ovps",
        "--data",
        str(root),
        "--out",
        str(tmp_path),
        "--steps",
        "2",
        "--seed",
        "0",
    ]
    main([*words, "--dry-run"])
    told = capsys.readouterr().out
    trained = [line for line in told.splitlines() if "foveate train-" in line or "foveate distill" in line]
    assert len(trained) >= 5 and all("--steps 2 " in f"{line} " for line in trained)
