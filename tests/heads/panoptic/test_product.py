"""A mask generator as a folder: round trip, refusals."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from foveate.clip.load import load
from foveate.clip.vocabulary import Vocabulary
from foveate.errors import InputError
from foveate.heads.common.product import tower_digest
from foveate.heads.common.text import embed_classes
from foveate.heads.panoptic.criterion import LossWeights
from foveate.heads.panoptic.mask2former import MaskGenerator
from foveate.heads.panoptic.product import (
    About,
    Class,
    Network,
    build_parts,
    chosen_templates,
    frozen_digest,
    load_generator,
    read_about,
    save_generator,
)
from foveate.types import Batch

CLASSES = (
    Class(("ball", "sphere"), True, "base"),
    Class(("star",), True, "novel"),
    Class(("sky",), False, "base"),
    Class(("lava",), False, "left out"),
)
NETWORK = Network(
    size=64, encoder=None, channels=16, pyramid="taps", taps=None, queries=5, width=32, feedforward=32,
    pixel_layers=1, layers=2, joint=16,
)  # fmt: skip


def make(*, words: bool = True, network: Network = NETWORK) -> tuple[MaskGenerator, About]:
    clip = load("foveate-small")
    tower = tower_digest(clip, whole=words)
    vocabulary = Vocabulary(tuple(one.words for one in CLASSES))
    torch.manual_seed(0)
    encoder, decoder = build_parts(network, clip)
    generator = MaskGenerator(
        encoder,
        decoder,
        is_novel=torch.tensor([one.part != "base" for one in CLASSES]),
        size=network.size,
        classes=embed_classes(clip, vocabulary, templates=chosen_templates("photo"), length="raw") if words else None,
        joint=network.joint,
        weights=LossWeights(points=64),
        jitter=None,
        flip=False,
    )
    about = About(
        model="foveate-small",
        pretrained=None,
        tower=tower,
        frozen=frozen_digest(encoder),
        network=network,
        classes=CLASSES,
        knows_words=words,
        templates="photo",
        words="raw",
        training={"steps": 0},
    )
    return generator, about


@pytest.mark.parametrize("words", [True, False])
def test_a_loaded_mask_generator_proposes_the_same(tmp_path: Path, scenes, words):
    generator, about = make(words=words)
    (sample,) = scenes(1)
    generator.train()(Batch([replace(sample, segments=None)], []))  # running statistics of the pyramid move
    save_generator(generator, tmp_path, about)
    again, clip, read = load_generator(tmp_path)
    assert read == about and again.is_novel.tolist() == [False, False]
    assert read.base.classes == (("ball", "sphere"), ("sky",))
    (one,), (other,) = generator.eval().propose([sample]), again.propose([sample])
    assert torch.equal(one.masks, other.masks)
    asked = embed_classes(clip, Vocabulary((("sky",), ("cat",))), templates=chosen_templates("photo"))
    assert torch.equal(generator.class_logits(one, asked), again.class_logits(other, asked))
    state = load_file(tmp_path / "generator.safetensors")
    assert not any(name.startswith("encoder.tower.") for name in state)  # the frozen tower is not copied
    assert ("words.rows" in state) == words
    if words:  # of base classes alone: ball, sphere, sky
        assert again.base_classes is not None and generator.base_classes is not None
        assert again.base_classes.labels.tolist() == [0, 0, 1] and torch.equal(
            again.base_classes.embeddings, generator.base_classes.embeddings
        )


def test_the_mask2former_of_training_is_needed(tmp_path: Path, scenes):
    from transformers import Mask2FormerConfig, Mask2FormerModel, SwinConfig

    def folder(name: str, seed: int) -> Path:
        torch.manual_seed(seed)
        swin = SwinConfig(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
                          out_features=["stage1", "stage2", "stage3", "stage4"])  # fmt: skip
        config = Mask2FormerConfig(
            backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, num_queries=4,
            num_attention_heads=4, dim_feedforward=32, encoder_feedforward_dim=32, encoder_layers=1, decoder_layers=2,
        )  # fmt: skip
        Mask2FormerModel(config).save_pretrained(tmp_path / name)
        return tmp_path / name

    network = replace(NETWORK, encoder=str(folder("one", 0)))
    generator, about = make(network=network)
    save_generator(generator, tmp_path / "g", about)
    assert about.frozen is not None
    state = load_file(tmp_path / "g/generator.safetensors")
    assert not any(name.startswith("encoder.") for name in state)
    shutil.move(tmp_path / "one", tmp_path / "moved")
    with pytest.raises(InputError, match="one"):
        load_generator(tmp_path / "g")
    again, _, _ = load_generator(tmp_path / "g", encoder=tmp_path / "moved")
    (sample,) = scenes(1)
    (one,), (other,) = generator.eval().propose([sample]), again.propose([sample])
    assert torch.equal(one.masks, other.masks) and len(one.masks) == 4
    with pytest.raises(InputError, match="--encoder"):
        load_generator(tmp_path / "g", encoder=folder("two", 1))


def test_damaged_files_are_refused(tmp_path: Path):
    generator, about = make()
    save_generator(generator, tmp_path / "g", about)
    path = tmp_path / "g/generator.json"
    good = json.loads(path.read_text())

    def said(change: dict) -> str:
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(InputError) as error:
            load_generator(tmp_path / "g")
        return str(error.value)

    assert "format 2; got 1. Train it again." in said({"format": 1})  # its head had no LayerNorm
    assert "words must be one of 'raw', 'unit'; got 'long'" in said({"words": "long"})
    assert "part must be one of 'base', 'novel', 'left out'; got 'odd'" in said(
        {"classes": [{"words": ["a"], "is_thing": True, "part": "odd"}]}
    )
    assert "a class has no name" in said({"classes": [{"words": [], "is_thing": True, "part": "base"}]})
    assert "network has missing fields: encoder, channels" in said({"network": {"size": 64}})
    assert "is (5, 32) instead of (6, 32)" in said({"network": {**good["network"], "queries": 6}})
    assert "embeddings of 1 base classes" in said({"classes": good["classes"][:2]})
    assert "need the CLIP that the generator was trained on" in said({"tower": "0"})
    with pytest.raises(InputError, match="foveate train-panoptic"):
        read_about(tmp_path)
    path.write_text(json.dumps(good))
    weights = tmp_path / "g/generator.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="need a generator's weights"):
        load_generator(tmp_path / "g")
