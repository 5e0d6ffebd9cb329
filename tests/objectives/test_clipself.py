"""The loss against a slow implementation of Sec. 3.2, one region at a time; what is trained; gradients."""

from copy import deepcopy

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.ops import roi_align

from foveate.clip.dense import tower_stages
from foveate.clip.load import load
from foveate.clip.model import Clip
from foveate.clip.precision import low_precision_copies
from foveate.engine.optim import build_optimizer, take_step
from foveate.errors import InputError
from foveate.objectives.clipself import ClipSelf, count_regions, train_layers
from foveate.objectives.correlation import Correlation
from foveate.objectives.student import Execution
from foveate.types import BadSample, Batch, Sample

TINY_VIT = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
    }
}


@pytest.fixture(scope="module")
def tiny() -> Clip:
    """A ViT CLIP of random weights, 32 px, patch 8, 3 blocks."""
    config = {**TINY_VIT, "preprocess_cfg": {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}}
    torch.manual_seed(0)
    return Clip(open_clip.CLIP(**deepcopy(TINY_VIT["model_cfg"])), name="tiny", config=config).eval()


def copy_of(clip: Clip) -> Clip:
    return deepcopy(clip, {id(clip.tokenizer): clip.tokenizer})  # the weights, not the 49408 words


@pytest.fixture
def pair(tiny) -> tuple[Clip, Clip]:
    """A student that has moved a little from its teacher, so that nothing is equal by accident."""
    student = copy_of(tiny)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return student, copy_of(tiny)


def smooth_image(height: int, width: int, *, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 5, 5, generator=generator) * 255
    return F.interpolate(coarse, size=(height, width), mode="bilinear").round().to(torch.uint8)[0]


def two_samples() -> Batch:
    wide = Sample(
        "wide", smooth_image(48, 80, seed=0), torch.tensor([[0.0, 0, 40, 24], [40, 24, 80, 48], [10, 8, 70, 40]])
    )
    tall = Sample("tall", smooth_image(64, 40, seed=1), torch.tensor([[0.0, 0, 20, 64]]))
    return Batch([wide, tall], [BadSample("gone", "no such file")])


def pil_square(image: Image.Image, size: int, *, centred: bool) -> np.ndarray:
    scale = size / max(image.size)
    fitted = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (size, size))
    corner = ((size - fitted.width) // 2, (size - fitted.height) // 2) if centred else (0, 0)
    square.paste(fitted, corner)
    return np.asarray(square)


def slow_loss(student: Clip, teacher: Clip, batch: Batch, *, size: int, zero_after: bool) -> float:
    """Pillow's crops, one region and one image at a time."""
    mean, std = torch.tensor(student.mean)[:, None, None], torch.tensor(student.std)[:, None, None]
    cosines = []
    for sample in batch.samples:
        image = Image.fromarray(sample.image.permute(1, 2, 0).numpy())
        square = torch.tensor(pil_square(image, size, centred=False)).permute(2, 0, 1)
        square = (square / 255 - mean) / std
        scale = size / max(image.size)
        height, width = round(image.height * scale), round(image.width * scale)
        # boxes have one factor, though 48 x 80 becomes 38 (not 38.4) x 64
        if zero_after:
            square[:, height:] = 0
            square[:, :, width:] = 0
        dense = student.encode_dense(square[None])
        for box in sample.boxes:
            crop = torch.tensor(pil_square(image.crop(box.int().tolist()), 32, centred=True)).permute(2, 0, 1)
            target = teacher.encode_image(((crop / 255 - mean) / std)[None])[0]
            rois = torch.cat([torch.zeros(1), box * scale])[None]
            region = roi_align(dense, rois, 1, spatial_scale=1 / 8, sampling_ratio=-1, aligned=True).flatten()
            cosines.append(F.cosine_similarity(region, target, dim=0))
    return 1 - torch.stack(cosines).mean().item()


@pytest.mark.parametrize("pad", ["zero", "black"])
@torch.no_grad()
def test_the_loss_is_the_mean_over_all_regions_of_the_batch(pair, pad):
    student, teacher = pair
    loss = ClipSelf(student, teacher, student_size=64, pad=pad)(two_samples())
    # both sides are exact but for Pillow's rounding to whole grey levels
    assert abs(loss.item() - slow_loss(student, teacher, two_samples(), size=64, zero_after=pad == "zero")) < 1e-3
    other = slow_loss(student, teacher, two_samples(), size=64, zero_after=pad != "zero")
    assert abs(loss.item() - other) > 1e-3  # the two paddings differ, so the comparison can tell


@torch.no_grad()
def test_the_loss_depends_neither_on_other_images_nor_on_the_crops_per_pass(pair):
    wide, tall = two_samples().samples
    objective = ClipSelf(*pair, student_size=64)
    together = objective(Batch([wide, tall], []))
    alone = [objective(Batch([sample], [])) for sample in (wide, tall)]
    torch.testing.assert_close(together, (3 * alone[0] + 1 * alone[1]) / 4, rtol=0, atol=1e-6)
    objective.crops_per_pass = 1
    torch.testing.assert_close(objective(Batch([wide, tall], [])), together, rtol=0, atol=1e-6)


@torch.no_grad()
def test_proposals_enlarge_the_crop_and_not_the_region(pair):
    image = smooth_image(64, 64, seed=2)
    box, larger = torch.tensor([[16.0, 16, 48, 48]]), torch.tensor([[8.0, 8, 56, 56]])  # 1.5 times about the centre
    loss = ClipSelf(*pair, student_size=64, enlarge=1.5)(Batch([Sample("a", image, box)], []))
    objective = ClipSelf(*pair, student_size=64)
    images, boxes = objective._student_input([Sample("a", image, box)])
    target = objective._encode_crops([Sample("a", image, larger)])[0][0]
    rois = torch.cat([torch.zeros(1, 1), boxes[0]], dim=1)
    region = roi_align(pair[0].encode_dense(images), rois, 1, spatial_scale=1 / 8, sampling_ratio=-1, aligned=True)
    torch.testing.assert_close(loss, 1 - F.cosine_similarity(region.flatten(), target, dim=0), rtol=0, atol=1e-6)


def test_a_batch_without_regions_is_a_zero_that_reaches_every_trained_parameter(pair):
    student, teacher = pair
    train_layers(student)
    objective = ClipSelf(student, teacher, student_size=64)
    empty = Sample("empty", smooth_image(32, 32, seed=0), torch.zeros(0, 4))
    for batch in (Batch([], [BadSample("gone", "")]), Batch([empty], [])):
        assert count_regions(batch) == 0
        loss = objective(batch)
        loss.backward()
        assert loss.item() == 0
        for parameter in objective.parameters():
            assert (parameter.grad is not None) == parameter.requires_grad
            assert parameter.grad is None or not parameter.grad.any()
    assert count_regions(two_samples()) == 4


def test_an_image_without_regions_does_not_change_the_loss(pair):
    objective = ClipSelf(*pair, student_size=64)
    empty = Sample("empty", smooth_image(32, 32, seed=0), torch.zeros(0, 4))
    with torch.no_grad():
        assert torch.equal(objective(Batch([*two_samples().samples, empty], [])), objective(two_samples()))


def moved(student: Clip, teacher: Clip, *, last: int | None = None, head="value") -> set[str]:
    """The names of the image tower's tensors that five steps with decay have changed."""
    partly = train_layers(student, last, head=head)
    objective = ClipSelf(student, teacher, student_size=64, head=head)
    optimizer = build_optimizer(objective, weight_decay=0.1, partly=partly)
    before = deepcopy(student.state_dict())
    for _ in range(5):
        objective(two_samples()).backward()
        assert all(p.grad is not None for p in objective.parameters() if p.requires_grad)  # or processes would hang
        take_step(optimizer, lr=1e-2, weight_decay=0.1, partly=partly)
        optimizer.zero_grad()
    return {name for name, tensor in student.state_dict().items() if not torch.equal(tensor, before[name])}


def test_only_blocks_are_trained(pair):
    names = moved(*pair)
    blocks = {name for name in pair[0].state_dict() if ".resblocks." in name and ".visual." in name}
    assert names == blocks


def test_only_the_last_blocks_are_trained(pair):
    names = moved(*pair, last=1)
    assert names and all("visual.transformer.resblocks.2." in name for name in names)


def test_queries_and_keys_of_the_last_block_do_not_change(pair):
    student, teacher = pair
    weight = student.visual.transformer.resblocks[2].attn.in_proj_weight
    bias = student.visual.transformer.resblocks[2].attn.in_proj_bias
    before, before_bias = weight.detach().clone(), bias.detach().clone()
    moved(student, teacher)
    assert torch.equal(weight[:64], before[:64]) and torch.equal(
        bias[:64], before_bias[:64]
    )  # width 32: q, k = 64 rows
    assert (weight[64:] != before[64:]).any(dim=1).all()


def test_other_heads_train_what_they_use(pair):
    whole = moved(copy_of(pair[0]), pair[1], head="attention")
    short = moved(copy_of(pair[0]), pair[1], head="value_only")
    last = {name.split("resblocks.2.")[1] for name in whole - short}
    assert last == {"ln_2.weight", "ln_2.bias"} | {
        f"mlp.{n}.{w}" for n in ("c_fc", "c_proj") for w in ("weight", "bias")
    }
    assert train_layers(pair[0], head="attention") == []


def test_an_eva_tower_trains_without_the_last_queries_and_keys():
    student = load("EVA02-B-16", seed=0)
    assert train_layers(student, 2) == []
    trained = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert all("trunk.blocks.10." in name or "trunk.blocks.11." in name for name in trained)
    assert any("blocks.10.attn.q_proj" in name for name in trained)
    assert not any("blocks.11.attn.q_proj" in name or "blocks.11.attn.k_proj" in name for name in trained)
    assert any("blocks.11.attn.v_proj" in name for name in trained)


@pytest.mark.parametrize("last", [0, -1, 4])
def test_a_wrong_number_of_blocks_is_refused(pair, last):
    with pytest.raises(InputError, match=f"must be 1 to 3, the blocks of tiny; got {last}"):
        train_layers(pair[0], last)


def test_a_size_that_is_no_multiple_of_the_patch_is_refused(pair):
    with pytest.raises(InputError, match=r"multiple of the patch size 8; got 60\. Try 64"):
        ClipSelf(*pair, student_size=60)


def test_the_teacher_never_gets_a_gradient(pair):
    objective = ClipSelf(*pair, student_size=64)
    objective(two_samples()).backward()
    assert all(p.grad is None and not p.requires_grad for p in objective.teacher.parameters())


GOLDEN = [0.785542, 0.492719, 0.294924, 0.178111]  # padded black


def test_golden_loss_curve(pair):
    """Four steps of this tiny run; a refactor that changes a number here changed the method."""
    student, teacher = pair
    partly = train_layers(student)
    objective = ClipSelf(student, teacher, student_size=64)
    optimizer = build_optimizer(objective, weight_decay=0.1, partly=partly)
    losses = []
    for _ in range(4):
        loss = objective(two_samples())
        loss.backward()
        take_step(optimizer, lr=1e-3, weight_decay=0.1, partly=partly)
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[3] < losses[0]
    assert losses == pytest.approx(GOLDEN, abs=2e-5)


# ------------------------------------------------------------------------------------------- the same, in other ways


def gradients(objective: ClipSelf, batch: Batch) -> dict[str, torch.Tensor]:
    objective.zero_grad()
    objective(batch).backward()
    return {name: p.grad.clone() for name, p in objective.student.named_parameters() if p.grad is not None}


def test_checkpointing_changes_no_bit_and_saves_less(pair):
    student, teacher = pair
    train_layers(student)
    plain = ClipSelf(student, teacher, student_size=64)
    kept, expected = saved_bytes(plain, two_samples()), gradients(plain, two_samples())
    again = ClipSelf(student, teacher, student_size=64, execution=Execution(checkpointing=True))
    assert saved_bytes(again, two_samples()) < 0.7 * kept
    found = gradients(again, two_samples())
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def saved_bytes(objective: ClipSelf, batch: Batch) -> int:
    """What the forward pass keeps for the backward pass, beside the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in objective.parameters()}
    storages = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        objective(batch)
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_bfloat16_copies_give_float32_gradients_near_the_exact_ones(pair, checkpointing):
    student, teacher = pair
    train_layers(student)
    exact = ClipSelf(student, teacher, student_size=64)
    expected, loss = gradients(exact, two_samples()), exact(two_samples()).item()
    low = ClipSelf(student, teacher, student_size=64, execution=Execution(True, checkpointing=checkpointing))
    found = gradients(low, two_samples())
    assert found.keys() == expected.keys()
    assert all(gradient.dtype == torch.float32 for gradient in found.values())
    assert all(parameter.dtype == torch.float32 for parameter in student.parameters())
    assert 0 < abs(low(two_samples()).item() - loss) < 0.01
    ours, theirs = (torch.cat([one[name].flatten() for name in expected]) for one in (found, expected))
    assert F.cosine_similarity(ours, theirs, dim=0) > 0.999


def test_valid_tokens_are_those_that_hold_some_of_the_image(pair):
    """48 x 80 becomes 38 x 64 on a square of 64: 5 of 8 rows of patches; 64 x 40 becomes 64 x 40: 5 of 8 columns."""
    student, teacher = pair
    train_layers(student)
    objective = ClipSelf(student, teacher, student_size=64, tokens="valid")
    shapes = []
    encode = student.encode_dense

    def watched(images, **settings):
        shapes.append((tuple(images.shape), settings["frame"]))
        return encode(images, **settings)

    student.encode_dense = watched
    wide, tall = two_samples().samples
    third = Sample("wide too", wide.image.flip(2), wide.boxes[:1])
    loss = objective(Batch([wide, tall, third], []))
    assert sorted(shapes) == [((1, 3, 64, 40), (64, 64)), ((2, 3, 40, 64), (64, 64))]  # alike sizes go together
    alone = [objective(Batch([sample], [])) for sample in (wide, tall, third)]
    torch.testing.assert_close(loss, (3 * alone[0] + alone[1] + alone[2]) / 5, rtol=0, atol=1e-6)


def test_valid_tokens_of_a_square_image_are_all_tokens(pair):
    batch = Batch([Sample("square", smooth_image(50, 50, seed=3), torch.tensor([[3.0, 4, 30, 41]]))], [])
    train_layers(pair[0])
    every, valid = (gradients(ClipSelf(*pair, student_size=64, tokens=tokens), batch) for tokens in ("all", "valid"))
    for name, gradient in every.items():
        torch.testing.assert_close(valid[name], gradient, rtol=0, atol=1e-6)


def test_valid_tokens_do_not_depend_on_the_padding(pair):
    """White padding instead of zeros changes the loss over all tokens, and not the loss over the valid ones."""
    batch = Batch([Sample("wide", smooth_image(40, 80, seed=3), torch.tensor([[3.0, 4, 30, 31]]))], [])
    losses = {
        (tokens, pad): ClipSelf(*pair, student_size=64, tokens=tokens, pad=pad)(batch).item()
        for tokens in ("all", "valid")
        for pad in ("zero", "black")
    }
    assert losses["valid", "zero"] == losses["valid", "black"]
    assert abs(losses["all", "zero"] - losses["all", "black"]) > 1e-5


def test_frozen_parameters_get_no_gradient_in_bfloat16_either(pair):
    student = pair[0]
    train_layers(student)
    copies = low_precision_copies(student.visual)
    flags = {name: copy.requires_grad for name, copy in copies.items()}
    assert flags == {name: parameter.requires_grad for name, parameter in student.visual.named_parameters()}
    assert any(flags.values()) and not all(flags.values())


def test_flags_without_effect_on_a_residual_network_are_refused():
    tower = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "patch_size": None}
    shape = {**TINY_VIT["model_cfg"], "vision_cfg": tower}
    config = {"model_cfg": shape, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.3, 0.3, 0.3]}}
    one = Clip(open_clip.CLIP(**deepcopy(shape)), name="RN tiny", config=config).eval()
    ClipSelf(one, one, student_size=64)
    for flag in ("compiled", "checkpointing"):
        with pytest.raises(InputError, match="RN tiny is a residual network and has none"):
            ClipSelf(one, one, student_size=64, execution=Execution(**{flag: True}))


def test_a_head_that_the_teacher_cannot_have_is_refused_before_the_first_step(pair):
    student, teacher = pair
    teacher.visual.transformer.resblocks = teacher.visual.transformer.resblocks[:2]  # of three blocks
    ClipSelf(student, teacher, student_size=64)  # without the term it has none
    with pytest.raises(InputError, match=r"values3 is not defined here: it needs 3 attention blocks, .* has 2"):
        ClipSelf(student, teacher, student_size=64, correlation=Correlation(1.0, head="values3"))


def test_no_gradient_is_computed_for_frozen_parameters(pair, monkeypatch):
    student, copied, copy = pair[0], [], torch._foreach_copy_

    def watched(to, of):
        copied.append(sum(map(torch.numel, of)))
        copy(to, of)

    monkeypatch.setattr(torch, "_foreach_copy_", watched)
    train_layers(student, 1)
    ClipSelf(*pair, student_size=32, execution=Execution(low_precision=True))(two_samples()).backward()
    every = [parameter.numel() for parameter in student.visual.parameters()]
    trained = [parameter.numel() for parameter in student.visual.parameters() if parameter.requires_grad]
    assert sum(copied) == sum(every) + sum(trained)  # to bfloat16, and the gradients back
    assert all((parameter.grad is None) != parameter.requires_grad for parameter in student.visual.parameters())


@pytest.mark.parametrize("low_precision", [False, True])
def test_gradients_of_a_block_are_ready_during_the_backward_pass(pair, low_precision):
    """So that processes can exchange them meanwhile: the middle block's come before the first one's are begun."""
    student, teacher = pair
    train_layers(student)
    first, middle, _ = tower_stages(student.visual)
    order = []
    middle.mlp.c_fc.weight.register_post_accumulate_grad_hook(lambda _: order.append("middle is ready"))
    objective = ClipSelf(student, teacher, student_size=64, execution=Execution(low_precision=low_precision))
    run = student.run_block

    def watched(tower, block, tokens, *rest):
        if block is middle:
            tokens.register_hook(lambda _: order.append("first begins"))
        return run(tower, block, tokens, *rest)

    student.run_block = watched
    objective(two_samples()).backward()
    assert order == ["middle is ready", "first begins"]
    assert first.mlp.c_fc.weight.grad is not None
