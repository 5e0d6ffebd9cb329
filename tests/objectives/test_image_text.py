"""The contrastive loss against loops over its definition; what the objective embeds, and what it trains."""

import math
from copy import deepcopy

import open_clip
import pytest
import torch
import torch.nn.functional as F

from foveate.clip.model import Clip
from foveate.errors import InputError
from foveate.objectives.clipself import train_layers
from foveate.objectives.image_text import ImageText, clamp_scale, contrastive_loss
from foveate.objectives.student import Execution
from foveate.ops.resample import square_inputs
from foveate.types import BadSample, Batch, Sample


def slow_loss(images: list[list[float]], texts: list[list[float]], captions: list[int], scale: float) -> float:
    """Mean of -log softmax over the positives, for images against captions and for captions against images."""
    count = len(images)
    logits = [[scale * sum(a * b for a, b in zip(i, t, strict=True)) for t in texts] for i in images]
    total = 0.0
    for i in range(count):
        positives = [j for j in range(count) if captions[j] == captions[i]]
        row = math.log(sum(math.exp(x) for x in logits[i]))
        column = math.log(sum(math.exp(logits[j][i]) for j in range(count)))
        total += sum(row - logits[i][j] for j in positives) / len(positives)
        total += sum(column - logits[j][i] for j in positives) / len(positives)
    return total / (2 * count)


def test_the_loss_is_its_definition_with_equal_captions_as_positives() -> None:
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(6, 4, generator=generator), dim=1)
    texts = F.normalize(torch.randn(6, 4, generator=generator), dim=1)
    captions = torch.tensor([0, 1, 0, 2, 3, 0])
    loss = contrastive_loss(images, texts, captions, scale=torch.tensor(5.0))
    assert abs(loss.item() - slow_loss(images.tolist(), texts.tolist(), captions.tolist(), 5.0)) < 1e-5


def test_with_different_captions_the_loss_is_clips() -> None:
    generator = torch.Generator().manual_seed(1)
    images = F.normalize(torch.randn(5, 8, generator=generator), dim=1)
    texts = F.normalize(torch.randn(5, 8, generator=generator), dim=1)
    logits = 3.0 * images @ texts.T
    both = (F.cross_entropy(logits, torch.arange(5)) + F.cross_entropy(logits.T, torch.arange(5))) / 2
    torch.testing.assert_close(contrastive_loss(images, texts, torch.arange(5), scale=torch.tensor(3.0)), both)


def test_the_scale_stays_within_clips_bounds() -> None:
    scale = torch.nn.Parameter(torch.tensor(7.0))
    clamp_scale(scale)
    assert abs(scale.exp().item() - 100) < 0.01
    scale.data.fill_(-1.0)
    clamp_scale(scale)
    assert scale.item() == 0


CONFIG = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 4, "heads": 1, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]},
}


@pytest.fixture(scope="module")
def tiny() -> Clip:
    torch.manual_seed(0)
    return Clip(open_clip.CLIP(**deepcopy(CONFIG["model_cfg"])), name="tiny", config=CONFIG)


@pytest.fixture
def student(tiny) -> Clip:
    """A ViT of 2 blocks, width 32, whose image embedding is trained."""
    clip = deepcopy(tiny, {id(tiny.tokenizer): tiny.tokenizer})
    assert train_layers(clip, head=None) == []
    return clip


def pairs() -> Batch:
    generator = torch.Generator().manual_seed(0)
    sizes, captions = [(32, 48), (56, 40), (32, 32)], ["a dog", "a cat", "a dog"]
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]
    return Batch(
        [Sample(str(i), image, torch.zeros(0, 4), caption=text)
         for i, (image, text) in enumerate(zip(images, captions, strict=True))],
        [BadSample("gone", "")],
    )  # fmt: skip


def test_the_objective_embeds_each_padded_square_and_its_caption(student):
    batch = pairs()
    images, texts = [], []
    with torch.no_grad():
        for sample in batch.samples:
            square = square_inputs([sample.image], size=64, mean=student.mean, std=student.std, pad="black")
            images.append(student.encode_image(square)[0].tolist())
            texts.append(student.encode_text(student.tokenize([sample.caption]))[0].tolist())
        scale = student.model.logit_scale.exp().item()
        expected = slow_loss(images, texts, [0, 1, 0], scale)  # the first and the third have one caption
        assert abs(ImageText(student, student_size=64)(batch).item() - expected) < 1e-4


def test_gradients_reach_the_last_queries_and_keys_but_not_the_text_tower(student):
    objective = ImageText(student, student_size=64)
    objective(pairs()).backward()
    for name, parameter in objective.named_parameters():
        is_block = ".visual.transformer.resblocks." in name
        assert (parameter.grad is not None) == parameter.requires_grad == is_block, name
    fused = student.visual.transformer.resblocks[-1].attn.in_proj_weight.grad
    for part in fused.split(32):  # queries, keys, values
        assert part.abs().max() > 0


def test_checkpointing_changes_no_bit_and_bfloat16_little(student, tiny):
    def gradients(**settings) -> dict[str, torch.Tensor]:
        clip = deepcopy(student, {id(tiny.tokenizer): tiny.tokenizer})
        objective = ImageText(clip, student_size=64, execution=Execution(**settings))
        objective(pairs()).backward()
        return {name: p.grad for name, p in clip.named_parameters() if p.grad is not None}

    exact, again, low = gradients(), gradients(checkpointing=True), gradients(low_precision=True)
    assert exact.keys() == again.keys() == low.keys()
    assert all(torch.equal(exact[name], again[name]) for name in exact)
    whole, near = (torch.cat([one[name].flatten() for name in exact]) for one in (exact, low))
    assert near.dtype == torch.float32 and F.cosine_similarity(whole, near, dim=0) > 0.98


def test_a_batch_without_images_is_a_zero_that_reaches_every_trained_parameter(student):
    objective = ImageText(student, student_size=32)
    loss = objective(Batch([], [BadSample("gone", "")]))
    loss.backward()
    assert loss.item() == 0
    assert all((p.grad is not None) == p.requires_grad for p in objective.parameters())


def test_a_size_that_is_no_multiple_of_the_patch_is_refused(student):
    with pytest.raises(InputError, match=r"multiple of the patch size 8; got 60\. Try 64"):
        ImageText(student, student_size=60)
