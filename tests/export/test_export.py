"""Exported files against their model, at shapes that the command does not compare."""

import json

import onnxruntime
import pytest
import torch

from foveate.clip.load import load
from foveate.clip.tower import Windows
from foveate.io.outputs import has_mark
from foveate.ops.resample import normalize

FAMILIES = ("vit", "eva", "rn", "siglip")
GRIDS = [(1, 2, 5), (2, 5, 3), (4, 4, 4)]  # batch, h, w: unlike those compared by the command


def noise(clip, batch: int, h: int, w: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(h)
    return torch.randn(batch, 3, h * clip.patch_size, w * clip.patch_size, generator=generator)


def run(path, **inputs: torch.Tensor) -> torch.Tensor:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4  # errors come as exceptions
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {name: one.numpy() for name, one in inputs.items()})
    return torch.from_numpy(output)


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


def description(path):
    assert has_mark(path.with_name(f"{path.name}.json"), "foveate export")
    return json.loads(path.with_name(f"{path.name}.json").read_text())


@pytest.mark.parametrize("family", FAMILIES)
def test_region_embeddings_of_any_size(family, export, twin):
    path, clip = export(family, "regions"), twin(family)
    for batch, h, w in GRIDS:
        images, (height, width) = noise(clip, batch, h, w), (h * clip.patch_size, w * clip.patch_size)
        whole = torch.tensor([0.0, 0.0, width, height])
        corner = torch.tensor([width - 1.25, height - 2.5, width, height])
        boxes = torch.stack([whole, whole / 3, corner, whole + torch.tensor([-5.0, -5.0, 9.0, 9.0])])
        each = [boxes[i % 2 :] for i in range(batch)]
        index = torch.cat([torch.full((len(one),), i) for i, one in enumerate(each)])
        with torch.no_grad():
            wanted = clip.encode_boxes(images, each)
        close(run(path, images=images, boxes=torch.cat(each), image_index=index), wanted)
        backwards = torch.arange(len(index)).flip(0)  # boxes come in any order
        got = run(path, images=images, boxes=torch.cat(each)[backwards], image_index=index[backwards])
        close(got, wanted[backwards])
    none = run(path, images=images, boxes=torch.zeros(0, 4), image_index=torch.zeros(0, dtype=torch.int64))
    assert none.shape == (0, clip.embed_dim)


def test_another_dense_head_is_exported(export, twin):
    # the one whose last block depends on the grid
    path, clip = export("siglip", "dense", "--head", "naclip"), twin("siglip")
    for batch, h, w in GRIDS:
        images = noise(clip, batch, h, w)
        with torch.no_grad():
            close(run(path, images=images), clip.encode_dense(images, head="naclip"))
    assert description(path)["head"] == "naclip"


def test_windows_of_any_grid(export, twin):
    path, clip = export("eva-windows", "dense"), twin("eva")
    with torch.no_grad():
        whole = clip.encode_dense(noise(clip, 1, 5, 5))
        clip.windows = Windows(size=2, blocks=(0, 1))
        for batch, h, w in [*GRIDS, (1, 5, 5)]:  # one, both or no side filled up to whole windows
            close(run(path, images=noise(clip, batch, h, w)), clip.encode_dense(noise(clip, batch, h, w)))
        assert (clip.encode_dense(noise(clip, 1, 5, 5)) - whole).abs().max() > 1e-3, "windows change something"
    assert description(path)["windows"] == {"size": 2, "blocks": [0, 1]}


def test_image_embeddings_of_any_size(export, twin):
    path, clip = export("eva", "image"), twin("eva")
    for batch, h, w in GRIDS:
        images = noise(clip, batch, h, w)
        with torch.no_grad():
            close(run(path, images=images), clip.encode_image(images))


def test_torch_file(export, twin):
    path, clip = export("vit", "regions", "--format", "torch", ending="pt2"), twin("vit")
    program = torch.export.load(path).module()
    for batch, h, w in GRIDS:
        images = noise(clip, batch, h, w)
        boxes = torch.tensor([[0.0, 0.0, 9.0, 14.5], [3.0, 2.0, 31.0, 17.0]])
        with torch.no_grad():
            wanted = clip.encode_boxes(images, [boxes] + [boxes[:0]] * (batch - 1))
            close(program(images, boxes, torch.zeros(2, dtype=torch.int64)), wanted)
    assert all(key.startswith("visual.") for key in program.state_dict()), "the text tower is not saved along"


def test_a_fixed_size_is_described_and_enforced(ask, folder, twin):
    path, clip = folder / "fixed" / "dense.onnx", twin("vit")
    typed = ["export", "--model", "vit", "--out", str(path.parent), "--size", "40", "--opset", "18"]
    answer = ask(arguments=typed)
    assert answer["status"] == 0 and "fixed to 40" in answer["out"]
    said = description(path)
    assert said["sides"] == {"fixed": True, "height": 40, "width": 40} and said["opset"] == 18
    assert said["dynamic_axes"] == {"images": ["batch"]} and said["inputs"]["images"]["axes"] == ["batch", 3, 40, 40]
    images = noise(clip, 3, 5, 5)
    with torch.no_grad():
        close(run(path, images=images), clip.encode_dense(images))
    with pytest.raises(Exception, match="invalid dimensions"):
        run(path, images=noise(clip, 3, 5, 6))


def test_large_weights_are_in_a_second_file_which_small_ones_remove(ask, folder, twin):
    path, clip = folder / "large" / "image.onnx", twin("siglip")
    typed = ["export", "--model", "siglip", "--what", "image", "--out", str(path)]
    images = noise(clip, 1, 2, 5)
    with torch.no_grad():
        wanted = clip.encode_image(images)
    for one_file, files in ((0, ["image.onnx", "image.onnx.data"]), (10**6, ["image.onnx"])):
        answer = ask(arguments=typed, one_file=one_file)
        assert answer["status"] == 0 and " and ".join(files) in answer["out"]
        assert description(path)["files"] == files
        assert sorted(one.name for one in path.parent.iterdir()) == sorted([*files, "image.onnx.json"])
        close(run(path, images=images), wanted)


def test_a_file_with_other_results_is_not_written(ask, folder):
    path = folder / "spoiled" / "image.pt2"
    path.parent.mkdir()
    path.write_bytes(b"of yesterday")
    typed = ["export", "--model", "vit", "--what", "image", "--format", "torch", "--out", str(path)]
    answer = ask(arguments=[*typed, "--overwrite"], spoil=True)
    assert answer["status"] == 2
    assert "its results differ from the model's" in answer["err"] and "need at most 1e-04" in answer["err"]
    assert path.read_bytes() == b"of yesterday"
    assert [one.name for one in path.parent.iterdir()] == ["image.pt2"]


def test_the_shipped_model_is_exported_by_the_command(ask, folder):
    out = folder / "typed"
    answer = ask(arguments=["export", "--model", "foveate-small", "--what", "regions", "--out", str(out)])
    assert answer["status"] == 0 and answer["err"] == ""
    for words in ("traced in", "written as onnx in", "compared with PyTorch in", f"wrote {out / 'regions.onnx'}"):
        assert words in answer["out"]
    assert sorted(one.name for one in out.iterdir()) == ["regions.onnx", "regions.onnx.json"]
    said, clip = description(out / "regions.onnx"), load("foveate-small")
    assert said["preprocessing"]["order"] == ["resize", "pad", "normalise"]
    assert said["preprocessing"]["pad"] == "black, at the right and bottom, to multiples of 8"
    assert (said["patch_size"], said["native_size"], said["embed_dim"], said["head"]) == (8, 64, 128, "value")
    assert said["sides"] == {"fixed": False, "multiple_of": 8, "least": 16}
    assert said["inputs"]["image_index"]["dtype"] == "int64" and list(said["output"]) == ["regions"]
    named = {"images": ["batch", "height", "width"], "boxes": ["regions"], "image_index": ["regions"]}
    assert said["dynamic_axes"] == named
    shapes = [record["images"] for record in said["parity"]["shapes"]]
    assert len(shapes) == 3 and [1, 3, 64, 64] in shapes and all(f"{tuple(one)}" in answer["out"] for one in shapes)
    assert all(0 < record["max_abs_difference"] < 1e-4 for record in said["parity"]["shapes"])
    # an image of noise brought to the input by what the description says
    image = (torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255).round()
    mean, std = (torch.tensor(said["preprocessing"][key])[:, None, None] for key in ("mean", "std"))
    box, first = torch.tensor([[8.0, 0.0, 64.0, 60.0]]), torch.zeros(1, dtype=torch.int64)
    got = run(out / "regions.onnx", images=(image / 255 - mean) / std, boxes=box, image_index=first)
    with torch.no_grad():
        close(got, clip.encode_boxes(normalize(image, mean=clip.mean, std=clip.std), [box]))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_dense_path_compiles_to_one_graph(family, ask):
    assert ask(compile=family)["difference"] < 1e-5


def test_compiled_blocks_train_the_same_and_are_compiled_once(ask):
    """Teacher and student, each first for its sizes and then for any: 4 graphs for 2 x 3 blocks and 9 batch sizes."""
    answer = ask(train="eva")
    assert answer["difference"] < 1e-5 and answer["graphs"] <= 4
