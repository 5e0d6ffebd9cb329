"""Checkpoints that would run something: they would, and reading does not."""

from contextlib import suppress

import pytest
import torch
from hostile import FORMS, MARK, plant

from foveate.clip.io.checkpoint_file import read_checkpoint
from foveate.clip.io.pickle_reader import Placeholder
from foveate.errors import InputError

WEIGHTS = {"weight": torch.arange(6.0).reshape(2, 3)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_runs_and_the_weights_are_read(tmp_path, form, zipped):
    path, touched = tmp_path / "w.pt", tmp_path / "touched"
    torch.save({"state_dict": WEIGHTS, "args": MARK}, path, _use_new_zipfile_serialization=zipped)
    plant(path, form, touched)
    if form in ("extension", "persistent"):  # no checkpoint needs these
        with pytest.raises(InputError, match="it was not run"):
            read_checkpoint(path)
    else:
        content = read_checkpoint(path)
        assert torch.equal(content["state_dict"]["weight"], WEIGHTS["weight"])
        assert isinstance(content["args"], Placeholder | dict)
    assert not touched.exists()
    with suppress(Exception):
        torch.load(path, weights_only=False)
    assert touched.exists(), "the payload is none: it does not run even where it could"
