"""The term that preserves the image embedding: against a loop over single crops, and what it trains."""

from copy import deepcopy

import open_clip
import pytest
import torch
import torch.nn.functional as F

from foveate.clip.model import Clip
from foveate.clip.names import Head
from foveate.errors import InputError
from foveate.objectives.clipself import ClipSelf, train_layers
from foveate.objectives.keep import CropKeeping
from foveate.objectives.student import Execution
from foveate.ops.resample import crop_and_resize, normalize
from foveate.types import Batch, Sample

SHAPE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 512, "width": 16, "heads": 1, "layers": 1},
}
STATISTICS = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}


def clip_of(shape: dict) -> Clip:
    torch.manual_seed(0)
    model = open_clip.CLIP(**deepcopy(shape))
    return Clip(model, name="tiny", config={"model_cfg": shape, "preprocess_cfg": STATISTICS}).eval()


@pytest.fixture
def pair() -> tuple[Clip, Clip]:
    """A student that has moved from its teacher."""
    teacher = clip_of(SHAPE)
    student, generator = deepcopy(teacher), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return student, teacher


def sample(seed: int, regions: int, *, height: int = 40, width: int = 48) -> Sample:
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 5, 5, generator=draw) * 255
    image = F.interpolate(coarse, size=(height, width), mode="bilinear").round().to(torch.uint8)[0]
    corners = (torch.rand(regions, 2, generator=draw) * 20).floor()
    return Sample(str(seed), image, torch.cat([corners, corners + 16], dim=1))


def batch() -> Batch:
    return Batch([sample(0, 5), sample(1, 1, height=48, width=32), sample(2, 0), sample(3, 2)], [])


def slow(student: Clip, teacher: Clip, batch: Batch, *, most: int) -> float:
    """One crop at a time: an image's mean over its first crops, images weighed by how many regions they have."""
    total, regions = 0.0, 0
    for one in batch.samples:
        cosines = []
        for box in one.boxes[:most]:
            crop = normalize(crop_and_resize(one.image, box[None], size=32), mean=student.mean, std=student.std)
            cosines.append(F.cosine_similarity(student.encode_image(crop), teacher.encode_image(crop)).item())
        total += len(one.boxes) * sum(cosines) / max(1, len(cosines))
        regions += len(one.boxes)
    return 1 - total / regions


@pytest.mark.parametrize(("tokens", "most"), [("all", 2), ("valid", 2), ("valid", 9)])
@torch.no_grad()
def test_the_term_is_a_loop_over_crops(pair, tokens, most):
    plain = ClipSelf(*pair, student_size=64, tokens=tokens)(batch()).item()
    both = ClipSelf(*pair, student_size=64, tokens=tokens, keep=CropKeeping(3.0, max_crops=most))(batch()).item()
    expected = slow(*pair, batch(), most=most)
    assert expected > 0.01 and both - plain == pytest.approx(3 * expected, abs=1e-5)
    assert abs(slow(*pair, batch(), most=9 if most == 2 else 2) - expected) > 1e-4  # so that the limit matters


@torch.no_grad()
def test_the_term_of_equal_towers_is_zero(pair):
    teacher = pair[1]
    plain, both = (
        ClipSelf(deepcopy(teacher), teacher, student_size=64, keep=keep)(batch()) for keep in (None, CropKeeping(1.0))
    )
    torch.testing.assert_close(plain, both, rtol=0, atol=1e-6)


def gradients(objective: ClipSelf, batch: Batch) -> dict[str, torch.Tensor]:
    objective.zero_grad()
    objective(batch).backward()
    return {name: p.grad.clone() for name, p in objective.student.named_parameters() if p.grad is not None}


WAYS = [Execution(low_precision=low, checkpointing=again) for low in (False, True) for again in (False, True)]


@pytest.mark.parametrize("head", ["value", "values3", "attention"])
@pytest.mark.parametrize("way", WAYS, ids=["plain", "checkpointing", "low precision", "both"])
def test_the_term_trains_the_same_parameters(pair, head: Head, way):
    """Every parameter CLIPSelf trains, in a batch without regions too; of the last block's queries and keys nothing."""
    train_layers(pair[0], head=head)
    plain, both = (
        gradients(ClipSelf(*pair, student_size=64, head=head, keep=keep, execution=way), batch())
        for keep in (None, CropKeeping(1.0))
    )
    assert plain.keys() == both.keys()
    assert all(gradient.dtype == torch.float32 for gradient in both.values())
    last = "model.visual.transformer.resblocks.2.attn.in_proj_"
    for kind in ("weight", "bias"):  # width 32: rows 0 to 63 are queries and keys
        assert both[last + kind][:64].any() == (head == "attention")
        assert (both[last + kind][64:] != plain[last + kind][64:]).any()
    objective = ClipSelf(*pair, student_size=64, head=head, keep=CropKeeping(1.0), execution=way)
    empty = gradients(objective, Batch([sample(2, 0)], []))
    assert empty.keys() == both.keys() and not any(gradient.any() for gradient in empty.values())


@pytest.mark.parametrize("head", ["value", "values3"])
def test_gradients_do_not_depend_on_the_execution(pair, head: Head):
    train_layers(pair[0], head=head)
    exact, again, low = (
        gradients(ClipSelf(*pair, student_size=64, head=head, keep=CropKeeping(1.0), execution=way), batch())
        for way in (*WAYS[:2], WAYS[3])
    )
    assert all(torch.equal(exact[name], again[name]) for name in exact)
    ours, theirs = (torch.cat([one[name].flatten() for name in exact]) for one in (low, exact))
    assert F.cosine_similarity(ours, theirs, dim=0) > 0.999


def test_descent_on_the_term_restores_the_image_embedding(pair):
    student, teacher = pair
    train_layers(student)
    objective = ClipSelf(student, teacher, student_size=64, keep=CropKeeping(100.0))
    before = slow(*pair, batch(), most=4)
    for _ in range(5):
        for name, gradient in gradients(objective, batch()).items():
            student.get_parameter(name).data -= 1e-4 * gradient
    assert slow(*pair, batch(), most=4) < 0.8 * before


def test_a_teacher_with_other_inputs_is_refused(pair):
    other = clip_of({**SHAPE, "vision_cfg": {**SHAPE["vision_cfg"], "image_size": 48}})
    ClipSelf(pair[0], other, student_size=64)
    with pytest.raises(InputError, match=r"--keep: student and teacher must take the same images .* got \(32, .*48"):
        ClipSelf(pair[0], other, student_size=64, keep=CropKeeping(1.0))
