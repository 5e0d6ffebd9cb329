"""A Mask2Former or MaskFormer of transformers with its classes: outputs, classes by name, refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import MEAN, STD, write_masks

from foveate.clip.vocabulary import Vocabulary
from foveate.errors import InputError
from foveate.heads.panoptic.described import describe, is_published
from foveate.heads.panoptic.fusion import PRESETS, FusionWeights
from foveate.heads.panoptic.merge import instances, panoptic_map, semantic_map
from foveate.heads.panoptic.published import ClassMap, match_classes, read_published
from foveate.heads.panoptic.segment import PanopticSegmenter, Query
from foveate.ops.shortest import resize_shortest, shortest_size
from foveate.types import Sample

NAMES = ("ball", "star", "tree-merged", "sky, heaven", "zebra", "sea")
RULE = {"min_score": 0.6, "overlap": 0.02}  # masks of random weights lie all over each other


def image_of(height: int, width: int, *, seed: int = 0) -> Sample:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    large = np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
    return Sample(str(seed), torch.from_numpy(large).permute(2, 0, 1), torch.zeros(0, 4))


def asked_of(mapped: ClassMap, things: list[bool]) -> Query:
    return Query(None, mapped, torch.tensor(things), torch.tensor(mapped.known))


def original_rule(model, sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
    """The library's logits of an image that enters as in detectron2, and its masks at the image's size: step by step,
    Pillow, zeros after normalising, masks as large as the input, cut, as large as the image."""
    height, width = sample.image.shape[1:]
    scale = 64 / min(height, width)
    scale = min(scale, 90 / max(height, width))
    h, w = int(height * scale + 0.5), int(width * scale + 0.5)
    small = Image.fromarray(sample.image.permute(1, 2, 0).numpy()).resize((w, h), Image.Resampling.BILINEAR)
    pixels = (torch.from_numpy(np.array(small)).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    padded = torch.zeros(1, 3, -(-h // 32) * 32, -(-w // 32) * 32)
    padded[0, :, :h, :w] = pixels.permute(2, 0, 1)
    with torch.no_grad():
        found = model(pixel_values=padded)
    masks = F.interpolate(found.masks_queries_logits, size=padded.shape[2:], mode="bilinear", align_corners=False)
    masks = F.interpolate(masks[:, :, :h, :w], size=(height, width), mode="bilinear", align_corners=False)
    return found.class_queries_logits[0], masks[0]


@pytest.mark.parametrize("kind", ["mask2former", "maskformer"])
def test_outputs_equal_those_of_transformers_with_the_original_input(tmp_path, monkeypatch, kind):
    model = write_masks(tmp_path, NAMES, monkeypatch, kind=kind)
    own = read_published(tmp_path)
    assert own.vocabulary.classes[3] == ("sky", "heaven") and not any(one.requires_grad for one in own.parameters())
    things = [True, True, False, False, True, False]
    mapped = match_classes(own.vocabulary, own.vocabulary)
    segmenter = PanopticSegmenter(own, None, asked_of(mapped, things), weights=PRESETS["generator"], **RULE)
    samples = [image_of(80, 120), image_of(120, 80, seed=1), image_of(40, 120, seed=2), image_of(80, 120, seed=3)]
    segments = 0
    for sample, proposals in zip(samples, own.propose(samples), strict=True):
        scored = segmenter.score_proposals(sample, proposals)
        logits, masks = original_rule(model, sample)
        size = tuple(sample.image.shape[1:])
        assert torch.allclose(scored.class_logits.softmax(dim=1), logits.softmax(dim=1), atol=1e-5)
        expected = panoptic_map(logits, masks, torch.tensor(things), size=size, **RULE)
        found = segmenter.panoptic(scored)
        assert (found.ids != expected.ids).sum() <= 9  # of 9,600, whose best two masks differ by rounding
        assert [one.label for one in found.segments] == [one.label for one in expected.segments]
        segments += len(found.segments)
        assert torch.allclose(segmenter.semantic(scored), semantic_map(logits, masks, size=size), atol=1e-4)
        objects, best = segmenter.instances(scored), instances(logits, masks, torch.tensor(things), size=size)
        assert torch.allclose(objects.scores, best.scores, atol=1e-4) and torch.equal(objects.boxes, best.boxes)
    assert segments >= 8


def test_proposals_do_not_depend_on_the_batch(tmp_path, monkeypatch):
    write_masks(tmp_path, NAMES, monkeypatch)
    own = read_published(tmp_path)
    samples = [image_of(80, 120), image_of(40, 120, seed=1), image_of(80, 120, seed=2)]
    for one, other in zip(own.propose(samples), [own.propose([sample])[0] for sample in samples], strict=True):
        assert one.id == other.id and one.frame == other.frame
        assert torch.allclose(one.masks, other.masks, atol=1e-4) and torch.allclose(
            one.class_logits, other.class_logits, atol=1e-4
        )
    assert own.propose([]) == []


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (480, 640, (800, 1067)),  # scale 5/3: 1066.67
        (640, 480, (1067, 800)),
        (427, 640, (800, 1199)),  # 1199.06
        (333, 1000, (444, 1333)),  # 2402 is too long: times 1333 / 2402.4
        (800, 800, (800, 800)),
        (1, 5000, (1, 1333)),
    ],
)
def test_the_size_of_an_input(height, width, expected):
    assert shortest_size(height, width, shortest=800, longest=1333) == expected


def test_images_are_resized_as_pillow_does():
    sample = image_of(80, 120)
    found = resize_shortest(sample.image, shortest=33, longest=99)
    pixels = Image.fromarray(sample.image.permute(1, 2, 0).numpy()).resize((50, 33), Image.Resampling.BILINEAR)
    assert torch.equal(found, torch.from_numpy(np.array(pixels)).permute(2, 0, 1))


# ------------------------------------------------------------------------------------------------------ classes by name


def test_classes_match_by_name_then_by_any_synonym():
    own = Vocabulary((("ball",), ("Tree_Merged",), ("sky", "heaven"), ("zebra",), ("heaven",)))
    asked = Vocabulary((("sea",), ("heaven", "sky"), ("sphere", "BALL"), ("tree merged",)))
    mapped = match_classes(own, asked)
    assert mapped.labels.tolist() == [2, 3, 1, -1, 1] and mapped.known == [False, True, True, True]
    with pytest.raises(InputError, match="none of those requested is one: sea"):
        match_classes(own, Vocabulary((("sea",),)))
    assert match_classes(own, Vocabulary((("sea",),)), is_open=True).known == [False]


def test_probabilities_of_classes_that_are_not_requested(tmp_path, monkeypatch):
    write_masks(tmp_path, NAMES, monkeypatch)
    own = read_published(tmp_path)
    (proposals,) = own.propose([image_of(80, 120)])
    p = proposals.class_logits.softmax(dim=1)  # ball star tree sky zebra sea, nothing
    closed = ClassMap(torch.tensor([2, -1, 0, 0, -1, -1]), 4)  # of four classes the second and fourth are unknown
    found = own.class_logits(proposals, closed).softmax(dim=1)
    assert torch.allclose(found[:, 2], p[:, 0], atol=1e-6) and torch.allclose(found[:, 0], p[:, 2] + p[:, 3], atol=1e-6)
    assert found[:, [1, 3]].max() < 1e-30
    assert torch.allclose(found[:, 4], p[:, 6] + p[:, 1] + p[:, 4] + p[:, 5], atol=1e-6)
    opened = ClassMap(closed.labels, 4, is_open=True)  # what the model does not know may be what CLIP says
    found = own.class_logits(proposals, opened).softmax(dim=1)
    assert torch.allclose(found[:, 4], p[:, 6], atol=1e-6)
    assert torch.allclose(found[:, 1], (p[:, 1] + p[:, 4] + p[:, 5]) / 2, atol=1e-6)


def test_a_clip_may_classify_its_masks(tmp_path, monkeypatch, tiny_clip):
    from foveate.heads.common.text import ClassEmbeddings

    write_masks(tmp_path, NAMES, monkeypatch)
    own, clip = read_published(tmp_path), tiny_clip()
    mapped = match_classes(own.vocabulary, Vocabulary((("ball",), ("dragon",), ("sky",))), is_open=True)
    words = ClassEmbeddings(F.normalize(torch.randn(3, 16), dim=1), torch.arange(3), 3)
    asked = Query(words, mapped, torch.ones(3) > 0, torch.tensor(mapped.known))
    segmenter = PanopticSegmenter(own, clip, asked, weights=FusionWeights(0.4, 1.0), size=64, min_score=0.1)
    sample = image_of(80, 120)
    (proposals,) = own.propose([sample])
    evidence = segmenter.gather_evidence(sample, proposals)
    assert evidence.clip is not None and evidence.clip.shape == (20, 3)
    scored = segmenter.fuse(evidence, FusionWeights(1.0, 1.0))
    known, nothing = scored.class_logits.softmax(dim=1).split([3, 1], dim=1)
    q = evidence.clip.softmax(dim=1)
    assert torch.allclose(known, q * (1 - nothing), atol=1e-5)
    assert torch.allclose(nothing[:, 0], proposals.class_logits.softmax(dim=1)[:, -1], atol=1e-5)
    segmenter.panoptic(segmenter.score_proposals(sample, proposals))
    with pytest.raises(
        InputError, match=r"where no CLIP classifies masks; got 0\.3 and 0\.7\. Give one with --classifier"
    ):
        PanopticSegmenter(own, None, asked)


# -------------------------------------------------------------------------------------------------------- what it says


def test_a_folder_is_described_without_its_weights(tmp_path, monkeypatch):
    write_masks(tmp_path, NAMES, monkeypatch)
    (tmp_path / "model.safetensors").unlink()
    about = describe(tmp_path)
    assert (about.shortest, about.longest, about.multiple, about.mean, about.std) == (64, 90, 32, MEAN, STD)
    assert about.has_names and about.is_thing is None and not about.notes
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({"size": 640, "max_size": 2560}))  # as older folders of transformers
    assert (describe(tmp_path).shortest, describe(tmp_path).longest) == (640, 2560)
    path.write_text(json.dumps({"size": {"height": 384, "width": 384}}))
    about = describe(tmp_path)
    assert (about.shortest, about.longest) == (800, 1333) and "384" in about.notes[0]
    path.write_text(json.dumps({"size": {"shortest_edge": 0}}))
    with pytest.raises(InputError, match="whole positive sizes"):
        describe(tmp_path)
    path.write_text(json.dumps({"do_normalize": False, "size_divisor": 16, "image_mean": [9, 9, 9]}))
    about = describe(tmp_path)
    assert (about.multiple, about.mean, about.std) == (16, (0, 0, 0), (1, 1, 1))
    for wrong in ({"do_rescale": False}, {"rescale_factor": 1}, {"rescale_factor": "x"}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(InputError, match=r"divided by 255 .* got do_rescale"):
            describe(tmp_path)
    for wrong in ({"image_mean": [float("nan"), 0, 0]}, {"size_divisor": -32}, {"size": True}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(InputError, match="whole positive sizes"):
            describe(tmp_path)
    path.unlink()
    assert "using the published input" in describe(tmp_path).notes[0]


def test_things_of_cocos_classes_are_known(tmp_path):
    names = [
        "person",
        *(f"thing {place}" for place in range(78)),
        "toothbrush",
        *(f"stuff {place}" for place in range(53)),
    ]
    content = {"model_type": "mask2former", "id2label": dict(enumerate(names))}
    (tmp_path / "config.json").write_text(json.dumps(content))
    is_thing = describe(tmp_path).is_thing
    assert is_thing is not None and is_thing == (True,) * 80 + (False,) * 53


def test_other_folders_are_refused(tmp_path, monkeypatch):
    assert not is_published(tmp_path)
    path = tmp_path / "config.json"
    path.write_text("[]")
    assert not is_published(tmp_path)
    path.write_text('{"model_type": "clip"}')
    assert not is_published(tmp_path)
    with pytest.raises(InputError, match="need \"model_type\" mask2former or maskformer; got 'clip'"):
        describe(tmp_path)
    path.write_text('{"model_type": "oneformer"}')
    with pytest.raises(InputError, match="needs a task prompt"):
        is_published(tmp_path)
    path.write_text('{"model_type": "mask2former", "id2label": {"0": "a", "2": "b"}}')
    with pytest.raises(InputError, match="a name for each class"):
        describe(tmp_path)
    path.write_text('{"model_type": "mask2former", "id2label": {"0": "a"}}')
    with pytest.raises(InputError, match="need a folder with a Mask2Former"):
        read_published(tmp_path)
    del monkeypatch


def change(folder: Path, **new: torch.Tensor | None) -> None:
    """Write the weights again with some of them changed or left out."""
    path = folder / "model.safetensors"
    state = {**load_file(path), **{name.replace("__", "."): one for name, one in new.items()}}
    save_file({name: one for name, one in state.items() if one is not None}, path, metadata={"format": "pt"})


def test_weights_that_do_not_fit_are_refused(tmp_path, monkeypatch, capsys):
    write_masks(tmp_path, NAMES, monkeypatch)
    change(tmp_path, model__extra=torch.zeros(3))
    read_published(tmp_path)
    assert "ignored 1 tensors" in capsys.readouterr().err
    change(tmp_path, class_predictor__weight=torch.zeros(9, 32), class_predictor__bias=torch.zeros(9))
    with pytest.raises(
        InputError, match=r"for the 6 classes of config\.json and for \"no object\"; its weights are for 8"
    ):
        read_published(tmp_path)
    change(tmp_path, class_predictor__weight=None)
    with pytest.raises(InputError, match=r"1 missing \(weight\)"):
        read_published(tmp_path)
    change(tmp_path, class_predictor__bias=None, model__transformer_module__level_embed__weight=None)
    with pytest.raises(InputError, match=r"1 of its weights are missing, such as .*level_embed\.weight"):
        read_published(tmp_path)
