"""The store of candidates: round trip, resuming, refusals."""

import json
from pathlib import Path

import pytest
import torch

from foveate.errors import InputError
from foveate.heads.fvit import candidates as module
from foveate.heads.fvit.candidates import Candidates, CandidateStore, CandidateWriter
from foveate.io.listing import Listing
from foveate.types import BadSample

MADE_BY = {"detector": "abc", "size": "640"}


def make(name: str, count: int, *, masks: bool = True) -> Candidates:
    generator = torch.Generator().manual_seed(len(name) * 100 + count)
    rows = [torch.rand(count, width, generator=generator) for width in (4, 1, 4, 6, 6)]
    return Candidates(
        name, 30, 40, rows[0], rows[1][:, 0], rows[2], rows[3].half(), rows[4].half(),
        torch.randint(0, 256, (count, 28, 28), generator=generator).to(torch.uint8) if masks else None,
    )  # fmt: skip


def same(one: Candidates, other: Candidates) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in (*module.FIELDS, "masks")]
    return (one.id, one.height, one.width) == (other.id, other.height, other.width) and all(
        a is b if a is None else a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs
    )


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IMAGES_PER_PART", 3)


IDS = [str(number) for number in range(8)]


def listed(ids: list[str]) -> Listing:
    return Listing(lambda: [[name, 9] for name in ids])


@pytest.mark.parametrize("masks", [True, False])
def test_stored_candidates_are_read_back(tmp_path: Path, masks: bool):
    made = [make(name, int(name) % 4, masks=masks) for name in IDS if name != "4"]  # two images without a proposal
    writer = CandidateWriter(tmp_path / "c", images=listed(IDS), made_by=MADE_BY)
    for one in made[:4]:
        writer.add(one)
    writer.add_bad(BadSample("4", "it is torn"))
    for one in made[4:]:
        writer.add(one)
    writer.close()
    store = CandidateStore(tmp_path / "c")
    assert (len(store), store.ids) == (7, [name for name in IDS if name != "4"])
    assert store.bad == [BadSample("4", "it is torn")]
    for _ in range(2):  # as often as asked
        assert all(same(one, other) for one, other in zip(made, store, strict=True))
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [
        "000000000-000000003.safetensors", "000000003-000000006.safetensors", "000000006-000000008.safetensors",
        "images.txt.gz", "manifest.json",
    ]  # fmt: skip


def test_a_killed_run_resumes_after_its_last_complete_part(tmp_path: Path):
    writer = CandidateWriter(tmp_path, images=listed(IDS), made_by=MADE_BY)
    for name in IDS[:5]:  # one shard, and two images that are lost
        writer.add(make(name, 2))
    (tmp_path / "000000003-000000006.safetensors.partial").write_bytes(b"half")
    again = CandidateWriter(tmp_path, images=listed(IDS), made_by=MADE_BY)
    assert again.done == 3
    for name in IDS[3:]:
        again.add(make(name, 2))
    again.close()
    assert CandidateWriter(tmp_path, images=listed(IDS), made_by=MADE_BY).done == 8
    once = CandidateWriter(tmp_path / "once", images=listed(IDS), made_by=MADE_BY)
    for name in IDS:
        once.add(make(name, 2))
    once.close()
    for path in sorted((tmp_path / "once").iterdir()):  # to the byte what an undisturbed run writes
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_a_part_of_other_images_is_made_again(tmp_path: Path):
    for folder, ids in (("one", IDS[:3]), ("two", IDS[3:6])):
        writer = CandidateWriter(tmp_path / folder, images=listed(ids), made_by=MADE_BY)
        for name in ids:
            writer.add(make(name, 1))
        writer.close()
    (tmp_path / "two" / "000000000-000000003.safetensors").replace(tmp_path / "one" / "000000000-000000003.safetensors")
    with pytest.raises(InputError, match="hold other"):
        CandidateStore(tmp_path / "one")
    assert CandidateWriter(tmp_path / "one", images=listed(IDS[:3]), made_by=MADE_BY).done == 0


def test_a_flipped_bit_is_refused(tmp_path: Path):
    writer = CandidateWriter(tmp_path, images=listed(IDS[:3]), made_by=MADE_BY)
    for name in IDS[:3]:
        writer.add(make(name, 2))
    path = tmp_path / "000000000-000000003.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"000000003.safetensors: need a part of candidates|need the tensors it was"):
        list(CandidateStore(tmp_path))


@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_a_damaged_part_is_reported_and_made_again(tmp_path: Path, harm: str):
    writer = CandidateWriter(tmp_path, images=listed(IDS), made_by=MADE_BY)
    for name in IDS:
        writer.add(make(name, 2))
    writer.close()
    path = tmp_path / "000000003-000000006.safetensors"
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    with pytest.raises(InputError, match=r"all 8 images; got those of the first 3"):
        CandidateStore(tmp_path)
    again = CandidateWriter(tmp_path, images=listed(IDS), made_by=MADE_BY)
    assert again.done == 3


def test_candidates_of_another_detector_are_refused(tmp_path: Path):
    writer = CandidateWriter(tmp_path, images=listed(IDS), made_by=MADE_BY)
    for name in IDS[:3]:
        writer.add(make(name, 1))
    with pytest.raises(InputError, match=r"another command(.|\n)*detector: stored abc, now def"):
        CandidateWriter(tmp_path, images=listed(IDS), made_by={**MADE_BY, "detector": "def"})
    with pytest.raises(InputError, match=r"images: stored 8, now 7\n  images: 2 gone or renamed \(0, 7\), 1 new \(x\)"):
        CandidateWriter(tmp_path, images=listed([*IDS[1:7], "x"]), made_by=MADE_BY)
    with pytest.raises(InputError, match=r"files: stored .*\n  images: 8 changed \(0, 1, 2 and 5 more\)"):
        CandidateWriter(tmp_path, images=Listing(lambda: [[name, 8] for name in IDS]), made_by=MADE_BY)
    assert (tmp_path / "000000000-000000003.safetensors").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"nothing but parts; it holds 'thesis.txt'"):
        CandidateWriter(other, images=listed(IDS), made_by=MADE_BY)
    with pytest.raises(InputError, match="nothing but parts"):
        CandidateStore(other)
    with pytest.raises(InputError, match="need a folder of candidates"):
        CandidateStore(tmp_path / "none")


def test_invalid_candidates_are_refused(tmp_path: Path):
    writer = CandidateWriter(tmp_path, images=listed(IDS), made_by=MADE_BY)
    with pytest.raises(InputError, match="need image 0 next, in the list's order; got 1"):
        writer.add(make("1", 1))
    writer = CandidateWriter(tmp_path, images=listed(IDS), made_by=MADE_BY)
    writer.add(make("0", 1))
    with pytest.raises(InputError, match="masks for all images or for none"):
        writer.add(make("1", 1, masks=False))
    with pytest.raises(InputError, match="need all 8 images; got 1"):
        writer.close()
    broken = make("0", 2)
    broken.detector[1, 2] = float("nan")
    with pytest.raises(InputError, match="image 0: need finite candidates; its detector"):
        CandidateWriter(tmp_path / "n", images=listed(IDS), made_by=MADE_BY).add(broken)
    with pytest.raises(InputError, match="every image once; 1 of the list are repeated"):
        CandidateWriter(tmp_path / "t", images=listed(["1", "1"]), made_by=MADE_BY)


def test_a_manifest_of_other_images_is_refused(tmp_path: Path):
    writer = CandidateWriter(tmp_path, images=listed(IDS[:2]), made_by=MADE_BY)
    for name in IDS[:2]:
        writer.add(make(name, 1))
    writer.close()
    index = tmp_path / "manifest.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "ids": "0" * 64}))
    with pytest.raises(InputError, match="hold other"):
        CandidateStore(tmp_path)
