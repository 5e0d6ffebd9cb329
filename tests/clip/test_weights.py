"""A saved CLIP loads to the bit, here and in open_clip, and a crash leaves no partial file."""

import json

import open_clip
import pytest
import torch

from foveate.clip.io import weights
from foveate.clip.io.weights import save_clip
from foveate.clip.load import load
from foveate.errors import InputError


@pytest.mark.parametrize("family", ["vit", "vit-quickgelu", "eva"])
def test_a_saved_and_loaded_clip_is_the_same(make_clip, tmp_path, family):
    clip = make_clip(family)
    save_clip(clip, tmp_path / "deep" / "model")
    again = load(str(tmp_path / "deep" / "model"))
    assert again.config == clip.config and again.mean == clip.mean and again.std == clip.std
    state = again.model.state_dict()
    assert state.keys() == clip.model.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in clip.model.state_dict().items())
    assert not again.training
    images = torch.randn(2, 3, 16, 24)
    with torch.no_grad():
        assert torch.equal(again.encode_dense(images), clip.encode_dense(images))


@pytest.mark.parametrize("family", ["vit-quickgelu", "eva"])
def test_open_clip_opens_the_folder(make_clip, tmp_path, family):
    clip = make_clip(family)
    save_clip(clip, tmp_path)
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path}")
    images = torch.randn(2, 3, clip.native_size, clip.native_size)
    with torch.no_grad():
        theirs = model.eval().encode_image(images, normalize=True)
        torch.testing.assert_close(clip.encode_image(images), theirs, atol=1e-5, rtol=1e-5)
        tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(["a cat", "two dogs"])
        assert torch.equal(tokens, clip.tokenize(["a cat", "two dogs"]))
        torch.testing.assert_close(clip.encode_text(tokens), model.encode_text(tokens, normalize=True))
    assert tuple(preprocess.transforms[-1].mean) == clip.mean and tuple(preprocess.transforms[-1].std) == clip.std


def test_saved_files_have_the_usual_permissions(make_clip, tmp_path):
    save_clip(make_clip("vit"), tmp_path / "model")
    (tmp_path / "plain").touch()
    assert {path.stat().st_mode for path in (tmp_path / "model").iterdir()} == {(tmp_path / "plain").stat().st_mode}


def test_half_precision_on_disk_float32_in_memory(make_clip, tmp_path):
    clip = make_clip("vit")
    save_clip(clip, tmp_path / "half", dtype=torch.float16)
    save_clip(clip, tmp_path / "full")
    sizes = [(tmp_path / name / "open_clip_model.safetensors").stat().st_size for name in ("half", "full")]
    assert sizes[0] < 0.6 * sizes[1]
    again = load(str(tmp_path / "half"))
    for key, value in clip.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[key], value.half().float())
    assert all(value.dtype == torch.float32 for value in clip.model.state_dict().values())  # the model itself is kept


def test_a_full_disk_keeps_the_earlier_weights(make_clip, tmp_path, monkeypatch):
    save_clip(make_clip("vit", seed=1), tmp_path)
    before = load(str(tmp_path)).model.state_dict()

    def crash(path, state):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(weights, "write_tensors", crash)
    # the float32 numbers and nothing else: 4 bytes a value
    need = sum(4 * value.numel() for value in make_clip("vit").model.state_dict().values())
    with pytest.raises(InputError, match=f"safetensors: need {need:,} bytes; .*No space"):
        save_clip(make_clip("vit", seed=2), tmp_path)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["open_clip_config.json", "open_clip_model.safetensors"]
    after = load(str(tmp_path)).model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_leftovers_of_a_killed_process_are_removed(make_clip, tmp_path):
    leftover = tmp_path / ".save_clip.partial"
    leftover.mkdir()
    (leftover / ".tmpAb12Cd").write_bytes(b"half")  # a temporary name of safetensors
    (tmp_path / ".tmpAb12Cd").write_bytes(b"of another program")
    save_clip(make_clip("vit"), tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".tmpAb12Cd", "open_clip_config.json", "open_clip_model.safetensors"]


def test_a_folder_that_cannot_be_created_is_refused(make_clip, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write a model"):
        save_clip(make_clip("vit"), tmp_path / "file" / "model")


def test_the_config_is_plain_json(make_clip, tmp_path):
    save_clip(make_clip("eva"), tmp_path)
    content = json.loads((tmp_path / "open_clip_config.json").read_text())
    assert content["model_cfg"]["vision_cfg"]["timm_model_name"] == "eva02_foveate_test"
    assert content["preprocess_cfg"]["mean"] == [0.5, 0.4, 0.3]
