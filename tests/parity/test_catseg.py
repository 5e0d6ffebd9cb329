"""CAT-Seg of 2024 and 2023 beside numbers of its own code: published names are imported, and the import computes them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from published import TOLERANCE, draw_state, gap, golden, image, normal

from saccade.cli.main import main
from saccade.clip.vocabulary import Vocabulary
from saccade.heads.catseg.aggregate import Aggregator
from saccade.heads.catseg.cost import cost_volume
from saccade.heads.catseg.guidance import Guidance
from saccade.heads.catseg.keys import head_key
from saccade.heads.catseg.product import load_catseg, read_about
from saccade.heads.catseg.published import write_published
from saccade.types import Sample

CLASSES = Vocabulary((("wall",), ("building", "edifice"), ("sky",), ("tree",)))


def shapes(name: str, key: str = "shapes") -> dict[str, list[int]]:
    return json.loads(str(golden(name)[key]))


def sample() -> Sample:
    return Sample("a", torch.from_numpy(image(96, 128)).permute(2, 0, 1), torch.zeros(0, 4))


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize(
    ("version", "classes", "prompts", "guides", "padding"),
    [(2, 8, 1, (512, 256, 128), 256), (1, 5, 80, (1024, 512, 256), 0)],  # of 2024, of 2023
)
def test_the_aggregator(version, classes, prompts, guides, padding, mode):
    numbers = golden("catseg")
    network = Aggregator(prompts=prompts, text_dim=512, guides=guides, padding=padding)
    state = draw_state(json.loads(str(numbers[f"shapes_v{version}"])))
    named = {str(head_key(key)).removeprefix("aggregator."): value for key, value in state.items()}
    network.load_state_dict({key: one.flatten() if "padding" in key else one for key, one in named.items()})
    dense = normal(f"agg{version}.img", 1, 512, 24, 24)
    coarse = dense if version == 2 else normal("agg1.g0", 1, guides[0], 24, 24)
    finer = [normal(f"agg{version}.g{k}", 1, guides[k], side, side) for k, side in ((1, 48), (2, 96))]
    text = F.normalize(normal(f"agg{version}.text{classes}", 1, classes, prompts, 512), dim=3)
    with torch.no_grad():
        found = network.train(mode == "train")(
            cost_volume(dense, text[0]), F.normalize(text.mean(dim=2), dim=2), Guidance(coarse, *finer)
        )
    assert gap(found[..., ::2, ::2], numbers[f"v{version}_{mode}"]) <= TOLERANCE


@pytest.fixture(scope="module", params=["catseg_path", "catseg_path_l"])
def imported(request, tmp_path_factory):
    """Random weights in the layout of a published file, imported as a folder and opened, and CAT-Seg's own numbers."""
    folder = tmp_path_factory.mktemp("c")
    write_published(draw_state(shapes(request.param)), folder / "before", source="f.pth")
    (folder / "before").rename(folder / "after")  # the CLIP is inside
    catseg, about = load_catseg(folder / "after")
    return catseg, about, golden(request.param)


def test_texts_and_logits(imported):
    catseg, about, numbers = imported
    text = catseg.embed_classes(CLASSES)
    assert gap(text[:, 0], numbers["text"]) <= TOLERANCE
    if about.network.clip_size == 384:
        view = torch.from_numpy(image(384, 384)).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            assert gap(catseg.logits(view, text)[0][:, ::2, ::2], numbers["logits"]) <= TOLERANCE


def test_the_whole_path_at_test(imported):
    catseg, _, numbers = imported
    (found,) = catseg.predict([sample()], catseg.embed_classes(CLASSES))
    assert gap(found, numbers["probs"]) <= TOLERANCE
    assert (found.argmax(dim=0).numpy() == numbers["probs"].argmax(axis=0)).mean() > 0.999


def test_what_learns_and_what_was_read_from_the_shapes(imported):
    catseg, about, numbers = imported
    public = {str(name) for name in numbers["trained"]}
    fused = {name.replace(f".{part}_proj_weight", ".in_proj_weight") for name in public for part in "qv"}
    ours = {name for name, one in catseg.clip.model.named_parameters() if one.requires_grad}
    assert ours == {name for name in fused if name.endswith("in_proj_weight")}
    network = about.network
    assert (network.version, network.residual, network.size, network.test_size) == ("2024", "cls", 384, 640)
    assert (network.longest, network.stride, network.window, network.most) == (2560, 256, 12, 256)
    assert (network.hidden, network.guidance, network.layers, network.tower_guidance) == (128, 128, 2, (256, 128))
    assert (network.decoder, network.decoder_guidance) == ((64, 32), (32, 16))
    assert network.clip_size == {16: 384, 14: 336}[catseg.clip.patch_size]
    assert len(about.classes) == 171 and about.classes[0] == ("person",) and about.classes[-1] == ("wood",)


# ------------------------------------------------------------------------------------------------ files, as users do it


def write_file(path: Path, state: dict[str, torch.Tensor]) -> Path:
    """What detectron2's trainer writes: the weights, an optimizer with a schedule of numpy's numbers, the iteration."""
    parameters = [torch.nn.Parameter(torch.zeros(3))]
    optimizer = torch.optim.AdamW(parameters, lr=2e-4)
    parameters[0].grad = torch.ones(3)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = np.float64(1e-4)
    scheduler = {"base_lrs": [np.float64(2e-4)], "last_epoch": 80_000, "_last_lr": [np.float64(0)]}
    torch.save({"model": state, "optimizer": optimizer.state_dict(), "scheduler": scheduler, "iteration": 79_999}, path)
    return path


@pytest.fixture(scope="module")
def tiny() -> dict[str, torch.Tensor]:
    """A whole file's tensors, with the two derived ones that real files have beside these."""
    masks = {f"{LAYER.format(layer)}attn_mask": torch.zeros(4, 144, 144) for layer in (0, 1)}
    return {**draw_state(shapes("catseg_path")), **masks}


LAYER = "sem_seg_head.predictor.transformer.layers.{}.swin_block.block_2."


def fails(capsys, *words: object) -> str:
    with pytest.raises(SystemExit) as done:
        main([str(word) for word in words])
    error = capsys.readouterr().err
    assert done.value.code == 2 and "Traceback" not in error
    return error


def test_from_the_file_to_a_segmented_image(tiny, tmp_path, capsys):
    file = write_file(tmp_path / "model_final.pth", tiny)
    main(["convert", str(file), str(tmp_path / "c")])
    assert "CAT-Seg of 2024 on a ViT of 12 blocks, 64 wide, patches of 16 pixels; residual cls" in capsys.readouterr().out
    file.unlink()
    numbers = golden("catseg_path")
    (tmp_path / "c").rename(tmp_path / "moved")
    catseg, _ = load_catseg(tmp_path / "moved")
    (found,) = catseg.predict([sample()], catseg.embed_classes(CLASSES))
    assert gap(found, numbers["probs"]) <= TOLERANCE

    Image.fromarray(image(96, 128)).save(tmp_path / "a.png")
    names = tmp_path / "names.json"  # as CAT-Seg's own lists
    names.write_text(json.dumps(["wall", "building, edifice", "sky", "tree"]))
    main(["segment", str(tmp_path / "a.png"), "--model", str(tmp_path / "moved"), "--vocab", str(names), "--out",
          str(tmp_path / "s"), "--workers", "0", "--device", "cpu"])  # fmt: skip
    labels = np.array(Image.open(tmp_path / "s/a.png"))
    assert (labels == numbers["probs"].argmax(axis=0)).mean() > 0.999


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop("upsample2.bias"), "1 tensors missing (upsample2.bias)"),
        (lambda state: state.pop("upsample1.weight"), "no upsample1 and no backbone"),
        (lambda state: state.pop(f"{LAYER.format(1)}attn.q.weight"), "block_2.attn.q.weight"),
        (lambda state: state.update({"sem_seg_head.extra.weight": torch.zeros(1)}), "sem_seg_head.extra.weight"),
        (lambda state: state.update({f"{LAYER.format(2)}mlp.fc1.weight": torch.zeros(1)}), "tensors missing"),
        (lambda state: state.update({f"{LAYER.format(0)}attn.q.weight": torch.zeros(64, 256)}),
         "block_2.attn.q.weight is (64, 256) instead of (128, 256)"),
        (lambda state: state.update({"upsample1.bias": torch.full((256,), torch.nan)}), "not finite (upsample1.bias)"),
        (lambda state: state.pop("sem_seg_head.predictor.clip_model.visual.ln_post.bias"), "visual.ln_post.bias"),
        (lambda state: state.update({"sem_seg_head.predictor.clip_model.visual.proj": torch.zeros(64)}),
         "clip_model.visual.proj has the shape (64,)"),
        (lambda state: state.update({"sem_seg_head.predictor.clip_model.ln_final.bias": torch.zeros(9)}),
         "ln_final.bias is (9,) instead of (64,)"),
        (lambda state: state.update({"sem_seg_head.predictor.clip_model.visual.conv1.weight": torch.zeros(1280, 3, 14, 14)}),
         "its image tower is 1280 wide"),
        (lambda state: state.update({"upsample1.weight": 3.0}), "1 entries are something else, such as 'upsample1.weight'"),
    ],
)  # fmt: skip
def test_what_is_not_whole_or_of_another_size_is_refused(tiny, tmp_path, capsys, change, told):
    state = dict(tiny)
    change(state)
    file = write_file(tmp_path / "f.pth", state)
    assert told in fails(capsys, "convert", file, tmp_path / "c")
    assert [path.name for path in tmp_path.iterdir()] == ["f.pth"]


def test_flags_that_say_nothing_to_a_file_are_refused(tiny, tmp_path, capsys):
    file = write_file(tmp_path / "f.pth", tiny)
    for flag, value in (("--to", "hf"), ("--model", "ViT-B-16"), ("--dtype", "float16")):
        assert f"{flag}: {file} is a published CAT-Seg file" in fails(capsys, "convert", file, tmp_path / "c", flag, value)
    for flag, value in (("--residual", "cls"), ("--classes", "cat, dog")):
        told = fails(capsys, "convert", "saccade-small", tmp_path / "c", flag, value)
        assert f"{flag}: goes with a published CAT-Seg file; saccade-small is none" in told
    main(["convert", str(file), str(tmp_path / "c"), "--residual", "token", "--classes", "cat, dog"])
    about = read_about(tmp_path / "c")
    assert about.network.residual == "token" and about.classes == (("cat",), ("dog",))
