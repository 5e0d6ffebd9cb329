"""Folders of parts and caches: their owner, and what is removed from them; headers of safetensors files."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from foveate.errors import InputError
from foveate.io import store
from foveate.io.listing import Listing
from foveate.io.store import NOTES, claim_cache, write_part
from foveate.io.tensors import header_size, read_header

claim_parts = partial(store.claim_parts, owner="foveate embed", listing=Listing(lambda: [["a"], ["b"]]))
remove_parts = partial(store.remove_parts, owner="foveate embed")
ME = {"what": "image", "model": "mine"}


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def add_part(folder: Path, start: int, stop: int) -> None:
    content = save({"image": torch.ones(stop - start, 2)}, {NOTES: json.dumps({"images": [], "bad": []})})
    write_part(folder, content, start=start, stop=stop)


@pytest.fixture()
def folder(tmp_path) -> Path:
    """A folder with two parts."""
    folder = tmp_path / "f.parts"
    assert claim_parts(folder, ME) == []
    add_part(folder, 0, 2)
    add_part(folder, 2, 3)
    return folder


def test_a_folder_of_parts_is_resumed_and_removed(folder):
    (folder / "000000003-000000004.safetensors.partial").write_bytes(b"half")
    assert [(part.start, part.stop) for part in claim_parts(folder, ME)] == [(0, 2), (2, 3)]
    (folder / "000000003-000000004.safetensors.partial").write_bytes(b"half")
    remove_parts(folder, ME)
    assert not folder.exists()
    remove_parts(folder, ME)  # none is no mistake


def test_a_linked_folder_is_emptied(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    remove_parts(tmp_path / "link", ME)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "thesis.txt").write_text("mine"), "holds 'thesis.txt'"),
        (lambda folder: (folder / "notes.json").write_text("mine"), "holds 'notes.json'"),
        (lambda folder: (folder / "model.safetensors").write_text("mine"), "holds 'model.safetensors'"),
        (
            lambda folder: (folder / "000000003-000000009.safetensors").mkdir(),
            "holds '000000003",
        ),
        (lambda folder: (folder / "manifest.json").unlink(), "it is missing"),
        (lambda folder: (folder / "manifest.json").write_text(""), "damaged"),
        (lambda folder: (folder / "manifest.json").write_text(json.dumps(ME)), "something else"),
        (
            lambda folder: claim_like(folder, {**ME, "model": "other"}),
            "another command. Differing:\n  model: stored",
        ),
    ],
)
def test_folders_with_other_files_are_refused_and_not_changed(folder, spoil, message):
    spoil(folder)
    before = content_of(folder)
    for act in (claim_parts, remove_parts):
        with pytest.raises(InputError, match=message):
            act(folder, ME)
    assert content_of(folder) == before


def claim_like(folder: Path, identity: dict[str, str]) -> None:
    """Put another command's manifest over the parts."""
    claim_parts(folder.with_name("other.parts"), identity)
    (folder.with_name("other.parts") / "manifest.json").replace(folder / "manifest.json")


def test_only_its_own_manifest_without_parts_is_replaced(tmp_path):
    """Its own is replaced; that of another program is not."""
    claim_parts(tmp_path / "a", {**ME, "model": "other"})
    assert claim_parts(tmp_path / "a", ME) == []
    remove_parts(tmp_path / "a", ME)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "manifest.json").write_text('{"name": "my page"}')
    for act in (claim_parts, remove_parts):
        with pytest.raises(InputError, match="something else"):
            act(tmp_path / "b", ME)
    assert (tmp_path / "b" / "manifest.json").read_text() == '{"name": "my page"}'
    (tmp_path / "c").write_text("a file")
    for act in (claim_parts, remove_parts):
        with pytest.raises(InputError, match="it is a file"):
            act(tmp_path / "c", ME)


def test_headers_are_read_and_checked(tmp_path):
    """Headers of the library are read, and their size is limited."""
    tensors = {f"dense/{number}": torch.zeros(3, 2, 2) for number in range(11)}
    save_file(tensors, tmp_path / "t.safetensors", {"a": "b"})
    metadata, stored = read_header(tmp_path / "t.safetensors")
    assert metadata == {"a": "b"} and {one.name: tuple(one.shape) for one in stored} == dict.fromkeys(
        tensors, (3, 2, 2)
    )
    length = int.from_bytes((tmp_path / "t.safetensors").read_bytes()[:8], "little")
    assert length - 100 < header_size(tensors, shape=[3, 2, 2]) and header_size(tensors, shape=[3, 2, 2]) < 2 * length


def test_a_cache_has_one_identity_and_format(tmp_path):
    for _ in range(2):
        claim_cache(tmp_path / "a", {"size": 3, "taps": [1, 2]}, owner="maps")
    with pytest.raises(InputError, match=r"another command. Differing:\n  size: stored 3, now 4\nGive"):
        claim_cache(tmp_path / "a", {"size": 4, "taps": [1, 2]}, owner="maps")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "manifest.json.77.partial").write_bytes(b"half")  # of a killed process
    claim_cache(tmp_path / "b", {}, owner="maps")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "index.json").write_text('{"size": 3}')  # of an earlier version
    with pytest.raises(InputError, match="need the manifest of files by maps; it is missing"):
        claim_cache(tmp_path / "old", {"size": 3}, owner="maps")
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["index.json"]
