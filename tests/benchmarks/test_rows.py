"""Every benchmark runs at a tiny size and prints one line of JSON; the driver collects lines and survives failures."""

import json
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

import account
import data_feed
import ddp
import dense_infer
import detector
import eval_regions
import peak_memory
import recipe_time
import run
import segmentation
import step_exact
import step_valid
import teacher
from foveate.clip.io.weights import save_clip
from measure import rise

TINY = ("--size", "48", "--crops", "2", "--repeats", "1", "--batch", "2")


@pytest.fixture(scope="module")
def models(tmp_path_factory, make_clip) -> dict[str, str]:
    """Two small towers as saved models, which a name can stand for."""
    places = {family: tmp_path_factory.mktemp("models") / family for family in ("eva", "vit")}
    for family, place in places.items():
        save_clip(make_clip(family, seed=0), place)
    return {family: str(place) for family, place in places.items()}


@pytest.fixture
def line(monkeypatch, capsys, models):
    """Run a benchmark's main in this process and read its one line."""

    def run_main(module, *words: str, family: str = "eva"):
        monkeypatch.setattr("sys.argv", [module.__file__, "--model", models[family], *TINY, *words])
        module.main()
        [printed] = capsys.readouterr().out.splitlines()
        return json.loads(printed)

    return run_main


@pytest.mark.parametrize("module", [step_exact, step_valid, teacher, recipe_time], ids=lambda module: module.__name__)
def test_two_sides_and_their_ratio(line, module):
    found = line(module)
    assert found["row"] == module.__name__ and found["size"] == 48 and found["precision"] == "float32"
    assert found["ours"] > 0 and found["ratio"] == pytest.approx(found["plain"] / found["ours"], rel=2e-3)
    assert found["reached"] is (found["ratio"] >= float(found["target"].split()[1]))
    assert found["versions"]["torch"] and found["device"]


def test_the_detector_has_both_halves_and_no_target(line, monkeypatch):
    built = detector.FViT
    small = {"channels": 8, "width": 8}
    monkeypatch.setattr(
        detector, "FViT", lambda clip, network, **more: built(clip, replace(network, **small), rois=16, **more)
    )
    found = line(detector, "--size", "64", "--batch", "1")
    assert found["target"] == "none" and found["reached"] is None
    assert found["ratio"] == pytest.approx(found["plain"] / found["ours"], rel=2e-3)
    assert found["inference"]["ours"] > 0 and found["trained"]["plain"] > 40e6


def test_segmentation_tells_time_and_memory_beside_the_encoder(line, monkeypatch):
    small = {"hidden": 8, "guidance": 8, "decoder": (8, 8), "decoder_guidance": (4, 4), "tower_guidance": (8, 8),
             "heads": 2, "layers": 1, "most": 4, "window": 6}  # fmt: skip
    built, decoder = segmentation.CatSeg, segmentation.build_decoder
    monkeypatch.setattr(
        segmentation, "CatSeg", lambda clip, network, **more: built(clip, replace(network, **small), **more)
    )
    monkeypatch.setattr(segmentation, "build_decoder", lambda widths: decoder(widths, queries=3, width=32, layers=1))
    monkeypatch.setattr(segmentation, "alone", lambda *_: 1_000_000)  # a process of its own would be of full size
    found = line(segmentation, "--size", "64", "--batch", "1", "--classes", "3", "--repeats", "0")
    assert found["seconds"].keys() == found["megabytes"].keys() == {"encoder", "catseg", "panoptic"}
    assert found["target"] == "none" and found["classes"] == 3
    assert found["ratio"] == pytest.approx(found["seconds"]["encoder"] / found["seconds"]["catseg"], rel=2e-3)
    assert found["megabytes"]["encoder"] == 1


def test_step_exact_checks_parity_and_says_how_far_photographs_are(line, monkeypatch):
    found = line(step_exact)
    assert max(found["parity"].values()) < 1e-5
    assert found["losses"]["ours"] == pytest.approx(found["losses"]["plain"], abs=0.02)
    monkeypatch.setattr("plain.step.PlainStep.targets", lambda self, crops: self.teacher(crops) * 0 + 1)
    with pytest.raises(AssertionError, match="the sides differ"):
        line(step_exact)


def test_the_profile_of_a_step_adds_up(line):
    parts = line(recipe_time)["profile_seconds"]
    assert set(parts) == {"data", "teacher", "student", "rest of forward", "backward", "optimizer"}
    assert min(parts.values()) >= 0 and parts["backward"] > 0


def test_data_feed_counts_bytes(line):
    found = line(data_feed, "--images", "4", "--workers", "0")
    # 20 crops of 32 x 32, one square of 48 x 48, float32, and 20 rows of 5; ours: 640 x 480 bytes, and a few boxes
    assert found["megabytes"]["plain"] == pytest.approx((20 * 3 * 32**2 + 3 * 48**2 + 20 * 5) * 4 / 1e6, rel=1e-3)
    assert 3 * 640 * 480 < found["megabytes"]["ours"] * 1e6 < 3 * 640 * 480 + 20 * 16 + 100
    assert found["resize_ms"] > 0


def test_evaluation_of_a_rendered_world(line):
    found = line(eval_regions, "--images", "2")
    assert found["images"] == 2 and found["regions"] > 2
    assert min(found["least_cosine"].values()) > 0.99
    assert found["loader_ratio"] > 0


@pytest.mark.parametrize("module", [peak_memory, dense_infer], ids=lambda module: module.__name__)
def test_memory_of_processes_of_their_own(line, monkeypatch, module):
    asked = []
    monkeypatch.setattr(module, "alone", lambda file, words: asked.append((file, words)) or 1000 * len(asked))
    found = line(module)
    assert [words[-2:] for _, words in asked] == [["--only", "ours"], ["--only", "plain"]]
    assert all(file == module.__file__ for file, _ in asked)
    assert found["ratio" if module is peak_memory else "memory_ratio"] == (0.5 if module is peak_memory else 2.0)


@pytest.mark.parametrize("side", ["ours", "plain"])
def test_one_side_alone_prints_bytes(line, side):
    assert 0 <= line(peak_memory, "--only", side) < 1e9


def test_memory_that_a_call_takes_is_seen():
    taken = rise(lambda: torch.ones(2**27).sum(), "cpu")  # 512 MB, beside which what other tests free is little
    assert 0.7 * 2**29 < taken < 1.3 * 2**29


def test_two_processes_have_the_same_gradients(line):
    found = line(ddp, family="vit")  # asserts so itself
    assert found["gradient_difference"] == 0 and found["one_process"] > 0


def test_account_of_a_small_eva(line, make_clip, monkeypatch):
    def small(name, dtype=torch.float32):
        with unset_fake_temporarily():
            clip = make_clip("eva")
        return account.emptied(clip, dtype)

    monkeypatch.setattr(account, "_fake", small)
    found = line(account, "--precision", "bfloat16", "--size", "96")
    again = line(account, "--precision", "bfloat16", "--size", "96")
    assert found["counted"] == again["counted"]  # deterministic
    shares = found["ratios"]  # operators are to come to 0.45
    assert shares["flops"] <= 1
    assert shares["operators"] <= 0.58
    assert shares["bytes_moved"] <= account.LIMITS["bytes_moved"]
    assert shares["bytes_saved"] <= account.LIMITS["bytes_saved"]


def test_the_driver_collects_lines_and_survives_a_failure(monkeypatch, capsys, tmp_path):
    line = {"row": "account", "ours": 12, "plain": 40, "ratio": 0.3, "target": "<= 0.45", "reached": True, "note": ""}
    line |= {"model": "M", "size": 64, "batch": 2, "compile": False}
    line |= {"ratios": {"operators": 0.3, "bytes_moved": 0.7}, "limits": {"operators": 0.45, "bytes_moved": 0.62}}
    (tmp_path / "good.py").write_text(f"import os, sys; print('a warning'); print({json.dumps(json.dumps(line))})")
    (tmp_path / "bad.py").write_text("import os, sys; sys.exit(os.environ['OMP_WAIT_POLICY'] + ' '.join(sys.argv[1:]))")
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(run, "CPU", [("good", "--size", "64"), ("bad", "--size", "3"), ("left_out",)])
    monkeypatch.setattr("sys.argv", ["run.py", "--out", str(tmp_path / "out"), "--data", "D", "--only", "good", "bad"])
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert run.main() == 1
    good, bad = (json.loads(one) for one in (tmp_path / "out").read_text().splitlines())
    assert good["command"] == "good --size 64" and good["ours"] == 12 and good["took"] >= 0
    assert bad["failed"] == "PASSIVE--size 3 --data D\n"
    shown = capsys.readouterr().out.splitlines()[2:]
    assert "| account | M, 64, 2 | 12 | 40 | 0.3 | <= 0.45 | yes |" in shown
    assert "| - bytes_moved | | | | 0.7 | <= 0.62 | no |" in shown
    assert "| bad --size 3 | failed | | | | | |" in shown


def test_rows_named_for_a_gpu_are_files_here():
    assert all((run.HERE / f"{row[0]}.py").is_file() for row in (*run.CPU, *run.GPU))
