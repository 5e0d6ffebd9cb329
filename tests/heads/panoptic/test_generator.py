"""The mask generator: it learns two scenes, frozen weights do not change, and masks are of the image."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from foveate.clip.load import load
from foveate.data.world.scenes import KINDS
from foveate.errors import InputError
from foveate.heads.common.text import ClassEmbeddings
from foveate.heads.panoptic.criterion import LossWeights
from foveate.heads.panoptic.decoder import LibraryEncoder, MaskDecoder, TowerEncoder, build_decoder, read_library
from foveate.heads.panoptic.mask2former import MaskGenerator, crop_padding
from foveate.heads.panoptic.merge import Frame
from foveate.ops.jitter import no_jitter
from foveate.types import BadSample, Batch

NOVEL = torch.tensor([kind.is_novel for kind in KINDS])
PLAIN = {"jitter": None, "flip": False, "weights": LossWeights(points=256)}


def words_of(count: int, dim: int) -> ClassEmbeddings:
    torch.manual_seed(5)
    owner = torch.tensor([*range(count), 0])  # the first class has two
    return ClassEmbeddings(F.normalize(torch.randn(count + 1, dim), dim=1), owner, count)


def generator_of(clip, decoder: MaskDecoder, *, words: bool, **settings) -> MaskGenerator:
    torch.manual_seed(0)
    known = words_of(len(NOVEL), clip.embed_dim) if words else None
    numbers = {"is_novel": NOVEL, "size": 64, "classes": known, "joint": 16, **PLAIN, **settings}
    return MaskGenerator(TowerEncoder(clip, channels=16), decoder, **numbers).train()


@pytest.mark.parametrize("words", [False, True])
def test_the_loss_falls_on_two_scenes_with_a_frozen_tower(tiny_decoder, scenes, words):
    clip, samples = load("foveate-small"), scenes(2)
    before = {name: one.clone() for name, one in clip.state_dict().items()}
    model = generator_of(clip, tiny_decoder(), words=words, size=96)
    optimizer = torch.optim.AdamW(model.parameter_groups(weight_decay=0.05), lr=3e-3)
    losses = []
    for step in range(16):
        torch.manual_seed(step)
        loss = model(Batch(samples, []))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.75 * sum(losses[:3]), losses
    assert set(model.parts) == {"class", "mask", "dice"}
    assert sum(one.item() for one in model.parts.values()) == pytest.approx(losses[-1], rel=1e-5)
    assert all(torch.equal(one, before[name]) for name, one in clip.state_dict().items()) and not clip.training


@pytest.mark.parametrize("words", [False, True])
def test_all_trained_parameters_get_gradients(tiny_clip, tiny_decoder, scenes, words):
    model = generator_of(tiny_clip(), tiny_decoder(), words=words)
    model(Batch(scenes(2), [])).backward()
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    assert [name for name, one in trained.items() if one.grad is None] == []
    assert not any(name.startswith("encoder.tower") for name in trained)
    grouped = [one for group in model.parameter_groups(weight_decay=0.1) for one in group["params"]]
    assert len(grouped) == len(trained)
    empty = Batch([], [BadSample("a", "broken")])
    model.zero_grad(set_to_none=True)
    loss = model(empty)
    loss.backward()
    assert loss == 0 and all(one.grad is not None and not one.grad.any() for one in trained.values())


def test_novel_segments_and_crowds_are_no_targets(tiny_clip, tiny_decoder, scenes):
    (sample,) = scenes(1)
    novel, base = (next(i for i, kind in enumerate(KINDS) if kind.is_novel == wanted) for wanted in (True, False))
    segments = sample.segments
    assert len(segments.labels) >= 3
    count = len(segments.labels)
    labels = torch.tensor([novel, len(KINDS), *[base + 1] * (count - 2)])
    sample = replace(sample, segments=replace(segments, labels=labels))
    model = generator_of(tiny_clip(), tiny_decoder(), words=True)
    jitter = no_jitter(*sample.image.shape[1:], size=64)
    target = model._target(sample, jitter)
    place = sum(not kind.is_novel for kind in KINDS[: base + 1])
    assert target.labels.tolist() == [place] * (count - 2) and target.masks.shape[1:] == (64, 64)
    assert model.base_classes.count == sum(not kind.is_novel for kind in KINDS)
    agnostic = generator_of(tiny_clip(), tiny_decoder(), words=False)
    assert agnostic._target(sample, jitter).labels.tolist() == [0] * (count - 2)
    bare = replace(sample, segments=None)
    assert len(model._target(bare, jitter).labels) == 0 and model(Batch([bare], [])).isfinite()


def test_proposals_do_not_depend_on_the_batch_and_are_of_the_image(tiny_clip, tiny_decoder, scenes):
    model = generator_of(tiny_clip(), tiny_decoder(), words=True)
    samples = scenes(2)
    samples[1] = replace(samples[1], image=samples[1].image[:, :40])
    together = model.propose(samples)
    assert model.training
    for sample, one in zip(samples, together, strict=True):
        (alone,) = model.propose([sample])
        assert (one.id, one.height, one.width) == (sample.id, *sample.image.shape[1:])
        assert torch.allclose(alone.masks, one.masks, atol=1e-4) and one.objectness is None
        assert torch.allclose(alone.embeddings, one.embeddings, atol=1e-4) and one.embeddings.shape == (8, 16)
        tall, wide = no_jitter(one.height, one.width, size=64).fitted
        assert one.masks.shape == (8, -(-tall // 2), -(-wide // 2))  # P / 4 = 2
    assert model.propose([]) == []


def test_proposals_come_from_the_last_layer(tiny_clip, tiny_decoder, scenes):
    model, (sample,) = generator_of(tiny_clip(), tiny_decoder(), words=True).eval(), scenes(1)
    with torch.no_grad():
        found = model.decoder(model.encoder(model._inputs([sample], [no_jitter(*sample.image.shape[1:], size=64)])))
        assert len(found.states) == len(found.masks) == 3  # the bare queries, and two layers
        state, masks, pixels = found.states[-1][0], found.masks[-1][0], found.pixels[0]
        for query in range(8):
            inside = masks[query] > 0
            mean = pixels[:, inside].mean(dim=1) if inside.any() else torch.zeros(32)
            expected = model.head.mask(model.head.pooled(mean) + state[query])
            (proposed,) = model.propose([sample])
            assert torch.allclose(proposed.embeddings[query], expected, atol=1e-4)
    whole = crop_padding(masks, Frame((64, 64), no_jitter(*sample.image.shape[1:], size=64).fitted))
    assert torch.allclose(proposed.masks, whole, atol=1e-4)


def test_padding_is_cropped_exactly():
    masks = torch.randn(3, 8, 8)  # of a square of 64, 8 pixels a place
    whole = no_jitter(50, 100, size=64)  # fills 32 x 64
    assert torch.allclose(crop_padding(masks, Frame((64, 64), whole.fitted)), masks[:, :4], atol=1e-5)
    # 36 rows are 4.5 places, read at 5 centres, .9 places apart: the first at .45 - .5 < 0, the second at .85
    between = crop_padding(masks, Frame((64, 64), (36, 64)))
    assert between.shape == (3, 5, 8) and torch.allclose(between[:, 0], masks[:, 0], atol=1e-5)
    assert torch.allclose(between[:, 1], 0.15 * masks[:, 0] + 0.85 * masks[:, 1], atol=1e-5)


def test_without_class_embeddings_all_classes_are_equal(tiny_clip, tiny_decoder, scenes):
    model = generator_of(tiny_clip(), tiny_decoder(), words=False)
    (found,) = model.propose(scenes(1))
    logits = model.class_logits(found, words_of(5, 16))
    probabilities, expected = logits.softmax(dim=1), found.objectness.softmax(dim=1)
    assert found.embeddings is None and torch.allclose(probabilities[:, -1], expected[:, 1], atol=1e-6)
    assert torch.allclose(probabilities[:, :5], expected[:, :1].expand(-1, 5) / 5, atol=1e-6)


def test_class_logits_by_hand(tiny_clip, tiny_decoder, scenes):
    model = generator_of(tiny_clip(), tiny_decoder(), words=True)
    (found,) = model.propose(scenes(1))
    words = words_of(3, 16)
    logits, head = model.class_logits(found, words), model.head
    cosine = F.cosine_similarity(found.embeddings[:, None], head.text(words.embeddings)[None], dim=2) / 0.07
    assert torch.allclose(logits[:, 0], torch.maximum(cosine[:, 0], cosine[:, 3]), atol=1e-4)
    assert torch.allclose(logits[:, 1:3], cosine[:, 1:3], atol=1e-4)
    nothing = F.cosine_similarity(found.embeddings, head.text(head.nothing)[None], dim=1) / 0.07
    assert torch.allclose(logits[:, 3], nothing, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.class_logits(found, words), logits)


def test_patches_of_14_pixels(tiny_clip, tiny_decoder, scenes):
    clip = tiny_clip(patch_size=14, image_size=56)
    model = generator_of(clip, tiny_decoder(), words=True, size=56)
    assert model(Batch(scenes(1), [])).isfinite() and max(model.propose(scenes(1))[0].masks.shape[1:]) == 16


def test_a_mask2former_from_a_folder(tmp_path, scenes):
    transformers = pytest.importorskip("transformers")
    swin = {"model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 2}
    swin |= {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
    sizes = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "num_attention_heads": 4}
    sizes |= {"encoder_layers": 1, "decoder_layers": 2, "num_queries": 5, "dim_feedforward": 32}
    config = transformers.Mask2FormerConfig(backbone_config=transformers.SwinConfig(**swin), **sizes)
    written = transformers.Mask2FormerModel(config).eval()
    written.save_pretrained(tmp_path)
    encoder, decoder = read_library(tmp_path)
    assert isinstance(encoder, LibraryEncoder) and encoder.widths == (8, 16, 32, 64)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = written(images).masks_queries_logits[-1]
        found = decoder.eval()(encoder.eval()(images)).masks[-1]
    assert torch.allclose(found, expected, atol=1e-5)
    model = MaskGenerator(encoder, decoder, is_novel=NOVEL, size=64, **PLAIN).train()
    model(Batch(scenes(1), [])).backward()
    assert not encoder.backbone.training and all(one.grad is None for one in encoder.parameters())
    with pytest.raises(InputError, match=r"need a folder with a Mask2Former.*nowhere.*not found"):
        read_library(tmp_path / "nowhere")
    weights = tmp_path / "model.safetensors"
    state = load_file(weights)
    save_file({name: one for name, one in state.items() if "queries_" not in name}, weights, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"2 of its weights are missing, such as transformer_module\.queries_"):
        read_library(tmp_path)  # the library would draw them
    weights.write_bytes(weights.read_bytes()[:99])
    with pytest.raises(InputError, match="need a folder with a Mask2Former"):
        read_library(tmp_path)


def test_arguments_that_do_not_fit_are_refused(tiny_clip, tiny_decoder):
    clip, decoder = tiny_clip(), tiny_decoder()
    with pytest.raises(InputError, match=r"multiple of the patch size 16; got 72"):
        generator_of(clip, decoder, words=False, size=72)
    with pytest.raises(InputError, match="at least one base class"):
        generator_of(clip, decoder, words=False, is_novel=torch.ones(3) > 0)
    with pytest.raises(InputError, match=r"classes: need embeddings of 3 classes; got \d+"):
        generator_of(clip, decoder, words=True, is_novel=torch.zeros(3) > 0)
    for width in (48, 0, -32):
        with pytest.raises(InputError, match=f"multiple of 32 .* a width of {width}"):
            build_decoder((16,) * 4, width=width)
