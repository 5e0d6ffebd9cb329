"""A product whose tensors are not those it was written with is refused; files without a digest load as before."""

import random

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from foveate.clip.io.digest import DIGEST
from foveate.clip.io.states import read_state
from foveate.clip.io.weights import save_clip, save_huggingface
from foveate.clip.load import load
from foveate.errors import InputError


@pytest.mark.parametrize(("save", "name"), [(save_clip, "open_clip_model"), (save_huggingface, "model")])
def test_no_flipped_bit_loads(make_clip, tmp_path, save, name):
    save(make_clip("vit-quickgelu"), tmp_path)
    path = tmp_path / f"{name}.safetensors"
    good = path.read_bytes()
    start = 8 + int.from_bytes(good[:8], "little")
    read_state(path)
    random.seed(0)
    for _ in range(20):
        bad = bytearray(good)
        bad[random.randrange(start, len(good))] ^= 1 << random.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(InputError, match=rf"{name}.safetensors: need the tensors it was written with; .*damaged"):
            read_state(path)


def test_a_renamed_reshaped_or_retyped_tensor_is_refused_and_metadata_may_be_absent(make_clip, tmp_path):
    clip = make_clip("vit")
    save_clip(clip, tmp_path)
    path = tmp_path / "open_clip_model.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata.keys() == {"format", DIGEST}
    again = tmp_path / "again"
    for _ in range(4):  # the library writes metadata in random order
        save_clip(clip, again)
        assert (again / path.name).read_bytes() == path.read_bytes()
    state = {name: tensor.clone() for name, tensor in load_file(path).items()}
    first = next(name for name, tensor in state.items() if tensor.dim() == 2)
    others = (
        {name if name != first else "other": tensor for name, tensor in state.items()},
        state | {first: state[first].flatten()},
        state | {first: state[first].view(torch.int32)},
        state | {first: state[first] + 1},  # as another tool does, with the metadata kept
    )
    for other in others:
        save_file(other, path, metadata)
        with pytest.raises(InputError, match=f"on purpose, save them without {DIGEST}"):
            load(str(tmp_path))
    save_file(others[-1], path, {"format": "pt"})  # as transformers does
    assert torch.equal(load(str(tmp_path)).model.state_dict()[first], state[first] + 1)
