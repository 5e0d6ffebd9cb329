"""Folders that were written before the heads shared their code still load: same descriptions, same tensor names.

Those have no digest of their tensors; folders that are written now have one, and a flipped bit is refused.

`../products/HEAD.json` holds the description of a folder, as its trainer wrote it on the rendered world, and the name,
type and shape of each of its tensors. The digests in it are those of the shipped CLIP.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from foveate.errors import InputError
from foveate.heads.catseg.product import load_catseg, save_catseg
from foveate.heads.fvit.product import load_detector, save_detector
from foveate.heads.panoptic.product import load_generator, save_generator

PRODUCTS = Path(__file__).parent.parent / "products"
HEADS = {
    "detector": (load_detector, save_detector),
    "catseg": (load_catseg, save_catseg),
    "generator": (load_generator, save_generator),
}


def draw(name: str, kind: str, shape: list[int], *, classes: int) -> Tensor:
    if kind == "BOOL":
        return torch.zeros(shape, dtype=torch.bool)
    if kind == "I64":  # the class of each text embedding, or a count of batches
        return torch.arange(shape[0]) % classes if shape else torch.tensor(3)
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(name)))


@pytest.mark.parametrize("head", HEADS)
def test_an_old_folder_loads_and_is_written_the_same(tmp_path, head):
    old = json.loads((PRODUCTS / f"{head}.json").read_text())
    classes = sum(entry["part"] == "base" for entry in old["description"]["classes"]) if head == "generator" else 0
    state = {name: draw(name, *entry, classes=classes) for name, entry in old["tensors"].items()}
    save_file(state, tmp_path / f"{head}.safetensors")
    (tmp_path / f"{head}.json").write_text(json.dumps(old["description"]))
    load, save = HEADS[head]
    loaded = load(tmp_path)
    save(loaded[0], tmp_path / "again", loaded[-1])
    again = load_file(tmp_path / "again" / f"{head}.safetensors")
    assert {name: (value.dtype, value.shape) for name, value in again.items()} == {
        name: (value.dtype, value.shape) for name, value in state.items()
    }
    assert all(torch.equal(value, state[name]) for name, value in again.items() if name != "text")  # of unit length
    weights = tmp_path / "again" / f"{head}.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 4
    weights.write_bytes(content)
    with pytest.raises(InputError, match=f"{head}.safetensors: need the tensors it was written with"):
        load(tmp_path / "again")
    written = json.loads((tmp_path / "again" / f"{head}.json").read_text())
    assert [*written.items()][:-1] == [*old["description"].items()][:-1]  # the last are the versions
