"""Flags are refused early, and an output folder belongs to one run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from foveate.cli.main import parse
from foveate.errors import InputError
from foveate.io.store import claim_folder, hold_folder, hold_target
from foveate.train.checks import check_distill
from foveate.train.defaults import hyperparameters
from foveate.train.distill import may_change
from foveate.train.flags import DistillConfig
from foveate.train.run import MAY_CHANGE, answer_timeout, run_record

CONFIG = DistillConfig(data="images", out=Path("out"))


def test_the_defaults_are_accepted():
    check_distill(CONFIG)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("batch", 0),
        ("accumulate", 0),
        ("product", "best"),
        ("lr", float("nan")),
        ("lr", 0.0),
        ("layers", 0),
        ("alpha", 0.0),
        ("alpha", 1.5),
        ("grid", 0),
        ("grid", 1000),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_numbers_that_cannot_train_are_refused_by_name(field, value):
    with pytest.raises(InputError, match=f"--{field}: must be .*; got {value}"):
        check_distill(replace(CONFIG, **{field: value}))


def record(**changes):
    return run_record(replace(CONFIG, **changes), {"weights": "abc", "processes": 1})


def test_a_folder_is_claimed_once_and_then_recognised(tmp_path):
    assert not claim_folder(tmp_path / "new", record())
    assert claim_folder(tmp_path / "new", record())
    assert json.loads((tmp_path / "new" / "config.json").read_text())["weights"] == "abc"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["config.json"]  # no probe, no partial


def test_another_run_is_refused_with_the_differing_fields(tmp_path):
    claim_folder(tmp_path, record(lr=1e-4))
    with pytest.raises(InputError) as caught:
        claim_folder(tmp_path, {**record(lr=1e-5, seed=3), "weights": "abd"})
    message = str(caught.value)
    assert "lr: stored 0.0001, now 1e-05" in message and "seed: stored 0, now 3" in message
    assert "weights: stored abc, now abd" in message
    assert "warmup" not in message


def test_fields_that_do_not_change_the_weights_may_change(tmp_path):
    claim_folder(tmp_path, record())
    same = record(workers=0, save_every=7, track="none", log_every=1, strict=True)
    assert claim_folder(tmp_path, same, may_change=MAY_CHANGE)


def test_only_a_distillation_may_resume_with_other_batches_and_processes(tmp_path):
    claim_folder(tmp_path, record())
    changes = {"batch": 1, "accumulate": 8, "skip_nonfinite": 3}
    other = {**record(**changes), "processes": 2}
    assert claim_folder(tmp_path, other, may_change=(*MAY_CHANGE, *may_change(CONFIG)))
    with pytest.raises(InputError, match="accumulate: stored 1, now 8\n  batch: stored 4, now 1\n  processes: "):
        claim_folder(tmp_path, other)  # pretraining
    with pytest.raises(InputError, match="validate: stored None, now held_out"):
        claim_folder(tmp_path, record(validate="held_out/"), may_change=(*MAY_CHANGE, *may_change(CONFIG)))


@pytest.mark.parametrize("objective", ["image-text", "region-text"])
def test_objectives_that_learn_from_text_may_not_change_their_batches(tmp_path, objective):
    text = replace(CONFIG, objective=objective)
    claim_folder(tmp_path, record(objective=objective))
    allowed = (*MAY_CHANGE, *may_change(text))
    assert claim_folder(tmp_path, record(objective=objective, compile=True, workers=0), may_change=allowed)
    other = {**record(objective=objective, batch=1, accumulate=4), "processes": 2}
    with pytest.raises(
        InputError, match="accumulate: stored 1, now 4\n  batch: stored 4, now 1\n  processes: stored 1"
    ):
        claim_folder(tmp_path, other, may_change=allowed)


def test_urls_are_unchanged_and_folders_have_one_spelling(tmp_path):
    url = "https://host/{0..3}.tar"
    typed = parse(["distill", "--data", url, "--validate", url, "--out", str(tmp_path)])
    assert (typed.data, typed.validate) == (url, url)
    assert [record(data=url, validate=url)[name] for name in ("data", "validate")] == [url, url]
    assert record(data="a/", validate="b/") == record(data="a", validate="b")


def test_a_folder_with_foreign_contents_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(InputError, match=r"holds model but no config\.json"):
        claim_folder(tmp_path, record())


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match="must be a folder that can be written"):
        claim_folder(tmp_path / "file" / "out", record())


def test_a_damaged_record_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        claim_folder(tmp_path, record())
    (tmp_path / "config.json").write_text("[1, 2]")
    with pytest.raises(InputError, match=r"must be the JSON record of a run; got \[1, 2\]"):
        claim_folder(tmp_path, record())


def test_default_hyperparameters_are_the_papers_or_the_small_clips() -> None:
    flags = {"data": Path("d"), "out": Path("o"), "steps": 44_358}
    b16 = hyperparameters(DistillConfig(**flags, model="EVA02-B-16"), patch_size=16)
    assert (b16.lr, b16.weight_decay, b16.warmup, b16.size) == (1e-5, 0.1, 1000, 1024)  # Sec. 4.1
    assert hyperparameters(DistillConfig(**flags, model="EVA02-L-14-336"), patch_size=14).size == 896
    assert hyperparameters(DistillConfig(**flags), patch_size=8).lr == 1e-3
    mine = hyperparameters(DistillConfig(**flags, lr=3e-4, warmup=0), patch_size=8)
    assert (mine.lr, mine.warmup, mine.size) == (3e-4, 0, 192)


def test_a_folder_is_locked_by_one_run(tmp_path):
    refused = pytest.raises(InputError, match="another process is writing there")
    with hold_folder(tmp_path), refused, hold_folder(tmp_path):
        pass
    (tmp_path / ".lock").touch()  # of a process that was killed
    with hold_folder(tmp_path), hold_target(tmp_path / "a" / "b.onnx"):
        assert (tmp_path / ".lock").exists() and (tmp_path / "a" / ".b.onnx.lock").exists()
    assert not list(tmp_path.iterdir())


def test_the_timeout_is_a_whole_number_of_seconds(monkeypatch):
    monkeypatch.delenv("FOVEATE_TIMEOUT", raising=False)
    assert answer_timeout() == 120
    for text in ("0", "-1", "1.5", "two"):
        monkeypatch.setenv("FOVEATE_TIMEOUT", text)
        with pytest.raises(InputError, match=r"\$FOVEATE_TIMEOUT: must be a whole number of seconds, at least 1; got"):
            answer_timeout()
    monkeypatch.setenv("FOVEATE_TIMEOUT", "7")
    assert answer_timeout() == 7
