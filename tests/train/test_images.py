"""The images of a run are those that it began with, in all its processes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from foveate.engine.distributed import Processes
from foveate.errors import InputError
from foveate.io.listing import Listing
from foveate.io.store import claim_folder
from foveate.train.flags import DistillConfig
from foveate.train.images import FIELD, accept_images, common_identity
from foveate.train.run import MAY_CHANGE, run_record

ALONE = Processes(rank=0, size=1, device=torch.device("cpu"))


def listings(data: str, validate: str = "z") -> dict[str, Listing]:
    return {
        "data": Listing(lambda: [[name] for name in data]),
        "validate": Listing(lambda: [[name] for name in validate]),
    }


@pytest.fixture
def config(tmp_path: Path) -> DistillConfig:
    """The flags of a run that began with three images, and one to validate."""
    config = DistillConfig(data="images", validate="held", out=tmp_path / "run", steps=4)
    begin(config, listings("abc"))
    return config


def begin(config: DistillConfig, images: dict[str, Listing]) -> None:
    claim_folder(config.out, run_record(config, {FIELD: common_identity(images, ALONE)}), may_change=MAY_CHANGE)
    assert accept_images(config, images, step=0) == []


def test_the_same_images_resume_without_a_word(config):
    before = {path: path.read_bytes() for path in config.out.iterdir()}
    assert accept_images(config, listings("abc"), step=2) == []
    assert {path: path.read_bytes() for path in config.out.iterdir()} == before


def test_changed_images_are_refused_by_name_until_allowed(config):
    with pytest.raises(InputError, match=r"\(3, now 2 in --data\); got --data images: 1 gone .* \(b\)\. Restore"):
        accept_images(config, listings("ac"), step=2)
    with pytest.raises(InputError, match=r"1, now 2 in --validate\); got --validate held: 1 new \(y\)"):
        accept_images(config, listings("abc", "zy"), step=2)
    with pytest.raises(InputError, match="the same ones in another order, from c on"):
        accept_images(config, listings("cba"), step=2)
    lines = accept_images(config, listings("ac"), step=2, allow_changed=True)
    assert "resuming over other images (--allow-changed-data): --data images: 1 gone or renamed (b)" in lines
    assert "seen twice" in lines[-1]
    assert accept_images(config, listings("ac"), step=3) == []
    with pytest.raises(InputError, match=r"1 new \(b\)"):
        accept_images(config, listings("abc"), step=3)


def test_nothing_is_lost_before_the_first_step_and_after_the_last(config):
    [line] = accept_images(config, listings("ab"), step=0)
    assert "1 gone or renamed (c) since the run was first started; no step was done yet" in line
    [line] = accept_images(config, listings("abd"), step=4)
    assert "1 new (d) since the run began; no step is left" in line


def test_a_run_of_an_earlier_version_resumes_with_a_note(config):
    path = config.out / "config.json"
    record = json.loads(path.read_text())
    del record[FIELD], record["allow_changed_data"]
    path.write_text(json.dumps(record))
    now = run_record(replace(config, allow_changed_data=True), {FIELD: {}})
    assert claim_folder(config.out, now, may_change=MAY_CHANGE)
    [line] = accept_images(config, listings("ab"), step=2)
    assert "began before the images of a run were listed" in line
    assert accept_images(config, listings("ab"), step=2) == []
    assert json.loads(path.read_text()).keys() == {*record, FIELD}


def test_processes_with_other_images_are_refused(monkeypatch):
    other = common_identity(listings("ab"), ALONE)
    monkeypatch.setattr(Processes, "gather", lambda self, value: [value, other])
    two = Processes(rank=0, size=2, device=torch.device("cpu"))
    assert common_identity(listings("ab"), two) == other
    with pytest.raises(InputError, match="process 0 lists 3 and process 1 lists 2"):
        common_identity(listings("abc"), two)
