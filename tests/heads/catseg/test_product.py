"""A CAT-Seg as a folder: round trip, weights that are not copied, refusals."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from foveate.clip.io.weights import save_clip
from foveate.clip.load import load
from foveate.errors import InputError
from foveate.heads.catseg.product import About, Network, build_catseg, load_catseg, read_about, save_catseg
from foveate.heads.common.product import tower_digest
from foveate.types import Batch

NETWORK = Network(
    version="2024", residual="token", backbone=None, size=48, clip_size=48, test_size=80, longest=320, stride=32,
    window=6, hidden=16, guidance=16, decoder=(8, 8), decoder_guidance=(4, 4), tower_guidance=(8, 8), heads=2, layers=1,
    most=4,
)  # fmt: skip
CLASSES = (("cat", "kitty"), ("dog",), ("sky",))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A CAT-Seg on the small CLIP, moved away from where it began, with its folder."""
    clip = load("foveate-small")
    digest = tower_digest(clip, whole=True)
    torch.manual_seed(0)
    catseg = build_catseg(clip, NETWORK, classes=CLASSES, pretrained=False, augment=False).eval()
    with torch.no_grad():
        for parameter in catseg.parameters():
            if parameter.requires_grad:
                parameter += 0.01 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("catseg")
    about = About("foveate-small", None, digest, NETWORK, CLASSES, ("bus",), {"seed": 0})
    save_catseg(catseg, folder, about)
    return catseg, folder, about


def test_a_folder_loads_to_the_bit_and_has_only_trained_weights_of_the_clip(written, make_images):
    catseg, folder, about = written
    found, read = load_catseg(folder)
    assert read == about == read_about(folder)
    (image,) = make_images((40, 56))
    texts = [one.embed_classes(["bus", "cat"]) for one in (catseg, found)]
    assert torch.equal(*texts)  # the text tower learned too, and came back
    assert torch.equal(catseg.predict([image], texts[0])[0], found.predict([image], texts[1])[0])

    state = load_file(folder / "catseg.safetensors")
    trained = {name for name, one in catseg.named_parameters() if one.requires_grad}
    of_clip = {name for name in state if name.startswith("clip.")}
    assert of_clip == {name for name in trained if name.startswith("clip.")}  # queries and values
    assert sum(state[name].numel() for name in of_clip) < 0.5 * sum(one.numel() for one in catseg.clip.parameters())
    assert {name for name in trained if not name.startswith("clip.")} <= {*state}


def test_a_loaded_catseg_can_be_trained(written, make_images):
    found, _ = load_catseg(written[1])
    loss = found.train()(Batch(make_images((48, 48)), []))
    loss.backward()
    assert found.parts["pixels"] == loss.detach() and found.aggregator.embed.weight.grad is not None


def test_another_clip_is_refused(written, tmp_path):
    _, folder, _ = written
    clip = load("foveate-small")
    with torch.no_grad():  # of the text tower: CAT-Seg embeds words with it
        clip.model.text_projection += 1e-3
    save_clip(clip, tmp_path / "other")
    with pytest.raises(InputError, match="need the CLIP that the catseg was trained on, foveate-small"):
        load_catseg(folder, clip=tmp_path / "other")


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("catseg.json", lambda text: text.replace('"hidden": 16', '"hidden": 24'), "instead of"),
        (
            "catseg.json",
            lambda text: text.replace('"format": 2', '"format": 9'),
            r"of format 2; got 9\. Train it again",
        ),
        ("catseg.json", lambda text: text.replace('"format": 2', '"format": 1'), r"got 1, and its attention .* ReLU"),
        ("catseg.json", lambda text: text.replace('"classes"', '"kinds"'), "missing fields: classes"),
        ("catseg.json", lambda text: text[:-40], "need a catseg's description"),
        ("catseg.json", lambda text: "[]", "description with `format`"),
        ("catseg.safetensors", lambda text: "nothing", "need a catseg's weights"),
    ],
)
def test_damaged_files_are_refused(written, tmp_path, name, change, told):
    _, folder, _ = written
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    old = (tmp_path / name).read_text(errors="replace")
    (tmp_path / name).write_text(change(old))
    with pytest.raises(InputError, match=told):
        load_catseg(tmp_path)


def test_values_that_are_not_finite_are_refused(written, tmp_path):
    _, folder, _ = written
    state = load_file(folder / "catseg.safetensors")
    next(one for one in state.values() if one.is_floating_point()).view(-1)[0] = torch.nan
    save_file(state, tmp_path / "catseg.safetensors")
    (tmp_path / "catseg.json").write_text((folder / "catseg.json").read_text())
    with pytest.raises(InputError, match="weights must be finite"):
        load_catseg(tmp_path)


def test_another_folder_is_refused(tmp_path):
    (tmp_path / "detector.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(InputError, match=r"OUT/model of `foveate train-catseg`; catseg.json not found"):
        read_about(tmp_path)
