"""`foveate embed` end to end with the small model: against the API, killed, resumed, refused."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torchvision.ops import roi_align

from foveate.cli.main import main
from foveate.clip.io.weights import save_clip
from foveate.clip.load import load
from foveate.clip.model import Clip
from foveate.errors import InputError
from foveate.io.outputs import has_mark
from foveate.predict import features, segment
from foveate.predict.embed import _digest_description, run
from foveate.predict.flags import Embed

SIZES = {"a.png": (48, 80), "b.png": (90, 60), "d.png": (64, 64), "sub/a.png": (33, 70), "sub/e.png": (100, 41)}
IDS = list(SIZES)  # c.png, between b and d, is broken


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load("foveate-small")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Five images of coarse noise in a folder and one below it, and a broken one among them.

    Grey levels are far from 0 and 255, so that resizing does not clip, which Pillow does not do on floats.
    """
    folder = tmp_path_factory.mktemp("images")
    (folder / "sub").mkdir()
    rng = np.random.default_rng(0)
    for name, (height, width) in SIZES.items():
        coarse = Image.fromarray(rng.integers(70, 186, (5, 5, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.NEAREST).save(folder / name)
    (folder / "c.png").write_bytes((folder / "b.png").read_bytes()[:50])
    return folder


@pytest.fixture()
def config(images, tmp_path) -> Embed:
    return Embed(images=(images,), out=tmp_path / "f.safetensors", device="cpu", workers=0)


def notes_of(config: Embed) -> dict:
    assert has_mark(config.out.with_suffix(".json"), "foveate embed")
    return json.loads(config.out.with_suffix(".json").read_text())


def resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pillow's bicubic on each channel as floating point."""
    channels = [Image.fromarray(pixels[..., c].astype(np.float32)) for c in range(3)]
    return np.stack([np.asarray(one.resize((width, height), Image.Resampling.BICUBIC)) for one in channels], 2).clip(
        0, 255
    )


def normalised(clip: Clip, pixels: np.ndarray) -> torch.Tensor:
    image = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    return (image - torch.tensor(clip.mean)[:, None, None]) / torch.tensor(clip.std)[:, None, None]


def fitted(height: int, width: int, side: int) -> tuple[int, int]:
    return round(height * side / max(height, width)), round(width * side / max(height, width))


def dense_by_hand(clip: Clip, path: Path, size: int) -> tuple[torch.Tensor, int, int]:
    """The whole padded square's map, and the size of the image in it."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    h, w = fitted(*pixels.shape[:2], size)
    black = np.zeros((size, size, 3), np.float32)
    black[:h, :w] = resized(pixels, h, w)
    with torch.no_grad():
        return clip.encode_dense(normalised(clip, black)[None])[0], h, w


def test_image_embeddings_equal_the_api(config, clip, images, capsys):
    run(config)
    stored, notes = load_file(config.out), notes_of(config)
    assert list(stored) == ["image"] and stored["image"].shape == (5, 128) and stored["image"].dtype == torch.float32
    assert [one["id"] for one in notes["images"]] == IDS
    assert [(one["height"], one["width"]) for one in notes["images"]] == list(SIZES.values())
    for row, (name, size) in zip(stored["image"], SIZES.items(), strict=True):
        pixels, (h, w) = np.asarray(Image.open(images / name).convert("RGB")), fitted(*size, 64)
        square = np.zeros((64, 64, 3), np.float32)
        top, left = (64 - h) // 2, (64 - w) // 2
        square[top : top + h, left : left + w] = resized(pixels, h, w)
        with torch.no_grad():
            expected = clip.encode_image(normalised(clip, square)[None])[0]
        torch.testing.assert_close(row, expected, atol=1e-4, rtol=0)
    captured = capsys.readouterr()
    assert f"wrote {config.out}" in captured.out and "per second" in captured.out
    assert "images that could not be used: 1\n  c.png: " in captured.err
    assert [one["id"] for one in notes["bad"]] == ["c.png"] and "truncated" in notes["bad"][0]["reason"]
    assert not Path(f"{config.out}.parts").exists()


def test_dense_maps_equal_the_api_without_padding(config, clip, images):
    run(replace(config, what="dense", size=128, batch=2))
    stored, notes = load_file(config.out), notes_of(config)
    assert sorted(stored) == sorted(f"dense/{name}" for name in IDS)
    for one in notes["images"]:
        whole, h, w = dense_by_hand(clip, images / one["id"], 128)
        rows, columns = -(-h // 8), -(-w // 8)  # patches of 8 px that the image touches
        assert one["resized"] == [h, w] and one["grid"] == [rows, columns]
        torch.testing.assert_close(stored[f"dense/{one['id']}"], whole[:, :rows, :columns], atol=1e-4, rtol=0)
    assert notes["images"][0]["grid"] == [10, 16]  # 48 x 80 becomes 77 x 128: 9.6 patches by 16


def test_box_embeddings_equal_the_api(config, clip, images, tmp_path, capsys):
    """Clipped to the image; boxes without a pixel in it are ignored and reported; (0, D) without boxes."""
    boxes = {
        "a.png": [[10, 5, 40, 30], [-20, -9, 30, 20], [90, 0, 95, 9], [30, 9, 20, 12], [0, 0, 80, 48]],
        "sub/e.png": [[0, 0, 41, 100]],
        "d.png": [[3, 3, 3.5, 60]],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    config = replace(config, size=128, boxes=tmp_path / "boxes.json")  # which alone means --what boxes
    with pytest.raises(InputError, match="3 of 7 contradict their image"):
        run(config)
    config = replace(config, accept_annotations=True)
    run(config)
    stored = load_file(config.out)
    dense, *_ = dense_by_hand(clip, images / "a.png", 128)
    scale = 128 / 80  # of both axes
    rows = []
    for x1, y1, x2, y2 in ([10, 5, 40, 30], [0, 0, 30, 20], [0, 0, 80, 48]):
        box = torch.tensor([[0, x1 * scale, y1 * scale, x2 * scale, y2 * scale]])
        rows.append(F.normalize(roi_align(dense[None], box, 1, 1 / 8, -1, True).flatten(), dim=0))
    torch.testing.assert_close(stored["boxes/a.png"], torch.stack(rows), atol=1e-4, rtol=0)
    notes = {one["id"]: (one["boxes"], one["dropped"]) for one in notes_of(config)["images"]}
    assert notes == {
        "a.png": (3, [2, 3]),
        "b.png": (0, []),
        "d.png": (0, [0]),
        "sub/a.png": (0, []),
        "sub/e.png": (1, []),
    }
    assert stored["boxes/d.png"].shape == stored["boxes/b.png"].shape == (0, 128)
    error = capsys.readouterr().err
    assert "boxes embedded: 4" in error and "ignored: 3; the first: a.png, box 2" in error


def test_coco_boxes_equal_the_boxes_of_the_json(config, tmp_path):
    """xywh with a stated size; an image of another size is unreadable."""
    (tmp_path / "plain.json").write_text(json.dumps({"b.png": [[5, 6, 20, 30]]}))
    images = [
        {"id": 7, "file_name": "b.png", "height": 90, "width": 60},
        {"id": 8, "file_name": "d.png", "height": 65, "width": 64},
    ]
    coco = {"images": images, "annotations": [{"image_id": 7, "bbox": [5, 6, 15, 24]}]}
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    config = replace(config, what="boxes", size=64)
    plain = run(replace(config, boxes=tmp_path / "plain.json", out=tmp_path / "p.safetensors"))
    other = run(replace(config, boxes=tmp_path / "coco.json"))
    # d.png falls out of the batch, which may change b's last bits
    torch.testing.assert_close(load_file(plain)["boxes/b.png"], load_file(other)["boxes/b.png"], atol=1e-5, rtol=0)
    assert [one["id"] for one in notes_of(config)["bad"]] == ["c.png", "d.png"]


def test_half_precision_and_metadata_are_stored(config, tmp_path):
    run(config)
    half = replace(config, out=tmp_path / "half.safetensors", dtype="float16")
    run(half)
    assert torch.equal(load_file(half.out)["image"], load_file(config.out)["image"].half())
    with safe_open(half.out, framework="np") as file:
        facts = file.metadata()
        assert file.get_tensor("image").dtype == np.float16
    assert facts["model"] == "foveate-small" and facts["dtype"] == "float16" and facts["what"] == "image"
    assert (
        len(facts["weights"]) == 64
        and torch.__version__.startswith(facts["torch"])
        and json.loads(facts["mean"])[0] > 0.4
    )
    assert {name: value for name, value in notes_of(half).items() if name in facts} == facts


@pytest.mark.parametrize("what", ["image", "dense", "boxes"])
def test_the_bytes_are_independent_of_parts_and_workers(config, images, tmp_path, monkeypatch, what):
    """Named in another order than the alphabetical one, in which the library would store the tensors."""
    (tmp_path / "boxes.json").write_text(json.dumps({"a.png": [[1, 2, 30, 40]], "b.png": [[0, 0, 9, 9]]}))
    named = (images / "d.png", images / "sub", images / "b.png")  # d, a, e, b
    config = replace(config, images=named, what=what, size=None if what == "image" else 64, batch=2)
    config = replace(config, boxes=tmp_path / "boxes.json" if what == "boxes" else None)
    one = run(config)
    monkeypatch.setattr(features, "PART_SECONDS", 0.0)  # a part a batch
    many = run(replace(config, out=tmp_path / "many.safetensors", workers=1))
    assert one.read_bytes() == many.read_bytes()
    assert one.with_suffix(".json").read_bytes() == many.with_suffix(".json").read_bytes()


KILLED = """
import os, signal, sys
from foveate.predict import features, segment
from foveate.cli.main import main
features.PART_SECONDS = 0.0
write = features.write_part
def write_and_die(folder, content, *, start, stop):
    if start == 2:
        (folder / "000000002-000000004.safetensors.partial").write_bytes(content[:99])
        os.kill(os.getpid(), signal.SIGKILL)
    return write(folder, content, start=start, stop=stop)
features.write_part = write_and_die
main(sys.argv[1:])
"""


def test_killed_and_resumed_gives_the_same_bytes(config, images, tmp_path, monkeypatch, capsys):
    """Killed by -9 while it writes the second of three parts; the same command resumes after the first."""
    whole = run(replace(config, out=tmp_path / "whole.safetensors", batch=2)).read_bytes()
    typed = ["embed", str(images), "--out", str(config.out), "--batch", "2", "--workers", "0", "--device", "cpu"]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # the last bit of a sum depends on them
    killed = subprocess.run([sys.executable, "-c", KILLED, *typed], env={**os.environ, **threads})
    assert killed.returncode == -signal.SIGKILL and not config.out.exists()
    parts = Path(f"{config.out}.parts")
    left = {
        "manifest.json",
        "images.txt.gz",
        "000000000-000000002.safetensors",
        "000000002-000000004.safetensors.partial",
    }
    assert {path.name for path in parts.iterdir()} == left
    with pytest.raises(InputError, match=r"another command. Differing:\n  dtype: stored float32, now float16\nGive"):
        run(replace(config, batch=2, dtype="float16"))
    with pytest.raises(InputError, match=r"images: 2 gone or renamed \(sub/a\.png, sub/e\.png\), 1 new \(e\.png\)"):
        run(replace(config, batch=2, images=tuple(sorted({*images.iterdir()} - {images / "a.png"}))))
    read = []
    monkeypatch.setattr(features.EvaluationSource, "__getitem__", spy(features.EvaluationSource.__getitem__, read))
    capsys.readouterr()
    main(typed)
    assert read == ["c.png", "d.png", "sub/a.png", "sub/e.png"]  # a and b were done
    assert "6 images to embed with foveate-small; 2 are done already" in capsys.readouterr().out
    assert config.out.read_bytes() == whole and not parts.exists()
    read.clear()
    main(typed)  # finished: nothing is read
    assert "is already complete" in capsys.readouterr().out and read == [] and config.out.read_bytes() == whole


def spy(method, seen: list):
    def get(self, index):
        seen.append(self.dataset.records[index].id)
        return method(self, index)

    return get


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(path.read_bytes()[:-1]), lambda path: path.unlink()])
def test_a_damaged_part_and_later_ones_are_computed_again(config, tmp_path, monkeypatch, spoil):
    whole = run(replace(config, out=tmp_path / "whole.safetensors", batch=2)).read_bytes()
    monkeypatch.setattr(features, "PART_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr("foveate.predict.embed.join_tensors", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(replace(config, batch=2))
    parts = sorted(Path(f"{config.out}.parts").glob("*.safetensors"))
    assert len(parts) == 3
    spoil(parts[1])
    read = []
    monkeypatch.setattr(features.EvaluationSource, "__getitem__", spy(features.EvaluationSource.__getitem__, read))
    run(replace(config, batch=2))
    assert read == ["c.png", "d.png", "sub/a.png", "sub/e.png"] and config.out.read_bytes() == whole


def test_existing_files_of_others_are_refused(config, images, tmp_path):
    run(config)
    with pytest.raises(InputError, match=r"f.safetensors: holds the work of another .*\n  batch: stored 64, now 3"):
        run(replace(config, batch=3))
    with pytest.raises(InputError, match=r"input: stored 6 images, .*now 1 images.*\n  images: 5 gone or renamed \("):
        run(replace(config, images=(images / "a.png",)))
    config.out.with_suffix(".json").unlink()
    with pytest.raises(InputError, match=r"f.json does not exist"):
        run(config)
    config.out.write_bytes(b"something")
    with pytest.raises(InputError, match=r"a complete \.safetensors file of this command"):
        run(config)
    Path(f"{tmp_path}/g.safetensors.parts").mkdir()
    (tmp_path / "g.safetensors.parts" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"nothing but parts; it holds 'thesis.txt'"):
        run(replace(config, out=tmp_path / "g.safetensors"))


def test_a_changed_description_or_image_is_another_identity(config, clip, images, tmp_path):
    """The same model path with another description, and an image that changed with the same length."""
    image = tmp_path / "a.png"
    image.write_bytes((images / "a.png").read_bytes())
    save_clip(clip, tmp_path / "model")
    config = replace(config, images=(image,), model=str(tmp_path / "model"))
    run(config)
    before = config.out.read_bytes()
    time = image.stat().st_mtime_ns
    os.utime(image, ns=(time, time + 1_000_000_000))
    with pytest.raises(InputError, match=r"Differing:\n  input: stored 1 images, .*, now 1 images, .*\nGive"):
        run(config)
    os.utime(image, ns=(time, time))
    run(config)  # finished
    described = tmp_path / "model" / "open_clip_config.json"
    content = json.loads(described.read_text())
    described.write_text(json.dumps({**content, "foveate": {"windows": {"size": 2, "blocks": [0]}}}))
    with pytest.raises(InputError, match=r"another command. Differing:\n  description: stored \w+, now \w+\nGive"):
        run(config)
    assert config.out.read_bytes() == before


def test_the_path_of_the_tokenizer_does_not_matter():
    def digest(**text) -> str:
        return _digest_description({"model_cfg": {"embed_dim": 2, "text_cfg": text}, "preprocess_cfg": {}})

    assert digest(width=1, hf_tokenizer_name="/a") == digest(hf_tokenizer_name="/b", width=1) == digest(width=1)
    assert digest(width=1) != digest(width=2)


def test_unreadable_images_are_listed(config, images, tmp_path):
    with pytest.raises(InputError, match=r"image c.png: .*--strict"):
        run(replace(config, strict=True))
    only = replace(config, images=(images / "c.png",), out=tmp_path / "c.safetensors")
    with pytest.raises(InputError, match=r"all are unreadable\n.*1\n  c.png"):
        run(only)
    assert not only.out.exists() and not Path(f"{only.out}.parts").exists()
    (tmp_path / "many").mkdir()
    for number in range(40):
        (tmp_path / "many" / f"{number:02}.png").write_bytes(b"x")
    mostly_bad = replace(config, images=(tmp_path / "many", images / "a.png"))
    run(mostly_bad)  # one of 41 is enough
    assert load_file(config.out)["image"].shape == (1, 128) and len(notes_of(config)["bad"]) == 40


def test_wrong_flags_are_refused(config, images, tmp_path):
    for change, message in [
        ({"what": "boxes"}, "--what boxes: need a file of boxes"),
        ({"what": "dense", "boxes": tmp_path / "b.json"}, "--boxes: means --what boxes; got --what dense"),
        ({"what": "image", "boxes": tmp_path / "b.json"}, "--boxes: means --what boxes; got --what image"),
        ({"size": 64}, "--size: is for dense and boxes"),
        ({"what": "dense", "size": 60}, "--size: need a positive multiple of the patch size 8; got 60"),
        ({"batch": 0}, "--batch"),
        ({"workers": -1}, "--workers"),
        ({"images": ()}, "at least one image or folder"),
        ({"images": (tmp_path / "none.png",)}, "does not exist"),
        ({"images": (images, images / "a.png")}, "are both 'a.png'"),
    ]:
        with pytest.raises(InputError, match=message):
            run(replace(config, **change))
    name = os.fsdecode(b"\xff.png")
    (tmp_path / name).write_bytes((images / "a.png").read_bytes())
    with pytest.raises(InputError, match="file names in UTF-8"):
        run(replace(config, images=(tmp_path / name,)))


def test_a_finished_file_does_not_remove_the_folder_of_another_program(config, tmp_path):
    """A folder of another program in the place of the parts is not removed."""
    run(config)
    folder = Path(f"{config.out}.parts")
    folder.mkdir()
    (folder / "manifest.json").write_text('{"name": "my page"}')
    with pytest.raises(InputError, match="need the manifest of files by foveate embed"):
        run(config)
    assert (folder / "manifest.json").read_text() == '{"name": "my page"}'
    assert load_file(config.out)["image"].shape == (5, 128)


def test_a_run_without_readable_images_leaves_no_files(config, images, tmp_path):
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    with pytest.raises(InputError, match=r"is a COCO root; name a folder of images in it, such as .*val2017"):
        run(replace(config, images=(tmp_path / "coco",)))
    with pytest.raises(InputError, match="head: must be one of"):
        run(replace(config, what="dense", size=64, head="valu"))
    assert not list(tmp_path.glob("*.parts"))


def test_ignored_files_and_odd_images_are_reported_and_listed(config, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (40, 30), "blue").save(folder / "blue.tif")
    (folder / "a.avif").touch()
    run(replace(config, images=(folder,)))
    lines = [
        "1 ignored: image in a format that is not read (1 .avif): convert it; the first: a.avif",
        "1 used: image of one colour; the first: blue.tif",
    ]
    assert capsys.readouterr().err.splitlines()[-2:] == lines
    notes = notes_of(config)
    assert notes["ignored"] == lines and notes["images"][0]["remark"] == "image of one colour"


@pytest.mark.parametrize("number", [signal.SIGTERM, None])
def test_what_is_done_when_a_command_ends_early_is_kept(config, images, tmp_path, monkeypatch, capsys, number):
    """A signal, or memory that runs out, in the second batch of three."""
    whole = run(replace(config, out=tmp_path / "whole.safetensors", batch=2)).read_bytes()
    typed = ["embed", str(images), "--out", str(config.out), "--batch", "2", "--workers", "0", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["foveate", *typed])
    compute, calls = features.image_features, list[int]()

    def ended(clip, samples):
        calls.append(1)
        if len(calls) == 2 and number is None:
            raise MemoryError
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return compute(clip, samples)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as done:
        patch.setattr("foveate.predict.embed.image_features", ended)
        main(typed)
    assert done.value.code == (1 if number is None else 143)
    kept = 2 if number is None else 4  # the batch under way is finished where a signal arrives
    said = capsys.readouterr().err
    line = f"; the features of {kept} of 6 images are in {config.out}.parts (not used with another --batch or --size). "
    assert f"{line}To resume, run:\n  foveate embed" in said
    what = "memory ran out (MemoryError). Lower --batch (2) or --size" if number is None else "stopped by SIGTERM"
    assert f"foveate: {what};" in said and "Traceback" not in said
    main(typed)
    assert f"{kept} are done already" in capsys.readouterr().out and config.out.read_bytes() == whole


def test_segment_stopped_leaves_whole_files_and_starts_again(images, tmp_path, monkeypatch, capsys):
    words = ["segment", str(images), "--model", "foveate-small", "--vocab", "a, b", "--out", str(tmp_path / "s")]
    write = segment.write_label_map
    monkeypatch.setattr(segment, "write_label_map", lambda *a, **k: (write(*a, **k), signal.raise_signal(15)))
    with pytest.raises(SystemExit) as done:
        main([*words, "--size", "64", "--workers", "0", "--device", "cpu"])
    said = capsys.readouterr().err
    assert done.value.code == 143 and "Traceback" not in said
    assert (
        f"stopped by SIGTERM; the files already written to {tmp_path / 's'} are complete. To start again, run:" in said
    )
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["000001.jpg", "000001.png"]
