"""CAT-Seg: predictions, losses, trained and frozen weights."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from foveate.clip.load import load
from foveate.clip.vocabulary import Vocabulary
from foveate.data.world.scenes import KINDS, draw_scene
from foveate.engine.optim import take_step
from foveate.errors import InputError
from foveate.heads.catseg.guidance import Backbone
from foveate.heads.catseg.model import CatSeg, Network, pixel_loss
from foveate.types import BadSample, Batch, LabelMap, Sample


def scenes(count: int) -> tuple[list[Sample], list[str]]:
    """Scenes of the world with the class of each pixel, things and stuff, and the names of the classes there are."""
    drawn = [draw_scene(np.random.default_rng([0, number])) for number in range(count)]
    kinds = [kind for kind in KINDS if any(kind in scene.kinds for scene in drawn)]
    found = []
    for number, scene in enumerate(drawn):
        image, owner = torch.from_numpy(scene.image).permute(2, 0, 1), torch.from_numpy(scene.segments).long()
        labels = torch.tensor([kinds.index(kind) for kind in scene.kinds])[owner]
        found.append(Sample(str(number), image, torch.zeros(0, 4), label_map=LabelMap(labels)))
    return found, [kind.name for kind in kinds]


def backbone(*, is_trained: bool) -> Backbone:
    return Backbone("test_resnet", is_trained=is_trained, pretrained=False)


def steps(model: CatSeg, samples: list[Sample], count: int, *, lr: float) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameter_groups(weight_decay=0.1, clip_scale=0.1), lr=0.0, fused=True)
    losses = []
    for step in range(count):
        torch.manual_seed(step)
        loss = model(Batch(samples, []))
        loss.backward()
        take_step(optimizer, lr=lr, weight_decay=0.1, partly=model.partly)
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


def values_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in model.named_parameters()}


def test_the_loss_falls_on_two_scenes():
    samples, names = scenes(2)
    torch.manual_seed(0)
    network = Network(
        version="2024", residual="token", backbone=None, size=64, clip_size=64, test_size=96, longest=384, stride=32,
        window=4, hidden=16, guidance=16, decoder=(16, 8), decoder_guidance=(8, 4), tower_guidance=(16, 8), heads=2,
        layers=1, most=256,
    )  # fmt: skip
    model = CatSeg(load("foveate-small"), network, vocabulary=names, augment=False).train()
    losses = steps(model, samples, 50, lr=1e-2)
    # whoever knew how often each class is, and nothing of the samples, would be left with .163
    shares = [sum(float((one.label_map.labels == k).float().mean()) for one in samples) / 2 for k in range(len(names))]
    blind = -sum(p * math.log(p) + (1 - p) * math.log(1 - p) for p in shares) / len(names)
    assert losses[0] > 0.6 and losses[-1] < 0.85 * blind
    found = model.eval().label_maps(samples, model.embed_classes(names))
    right = [(one.labels == own.label_map.labels).float().mean() for one, own in zip(found, samples, strict=True)]
    assert min(right) > 0.65  # of the second image the most frequent class covers .437


def test_the_loss_by_hand():
    # two classes, pixels of class 0, 1 and none. Softplus of 2, -1, 0.5: the loss of a no; minus the logit for a yes.
    logits = torch.tensor([[[[2.0, -1.0, 0.5]], [[1.0, 3.0, -2.0]]]])
    labels = torch.tensor([[[0, 1, -1]]])

    def no(x):
        return math.log(1 + math.exp(x))

    wanted = [no(2) - 2, no(-1), no(0.5), no(1), no(3) - 3, no(-2)]
    assert math.isclose(pixel_loss(logits, labels).item(), sum(wanted) / 6, rel_tol=1e-6)
    torch.manual_seed(0)
    logits, labels = 5 * torch.randn(2, 3, 4, 5), torch.randint(-1, 3, (2, 4, 5))
    targets = torch.stack([labels == kind for kind in range(3)], dim=1).float()
    torch.testing.assert_close(pixel_loss(logits, labels), F.binary_cross_entropy_with_logits(logits, targets))


@pytest.mark.parametrize("residual", ["token", "cls"])
@pytest.mark.parametrize("family", ["vit", "eva"])
def test_only_query_and_value_matrices_of_the_clip_are_trained(catseg, make_images, family, residual):
    model = catseg(family, residual=residual).train()
    before = values_of(model)
    steps(model, make_images((50, 70), (60, 48)), 2, lr=1e-2)
    moved = {name: one.detach() != before[name] for name, one in model.named_parameters()}
    assert model.aggregator.training and not any(one.training for one in model.clip.modules())
    last = model.clip.visual.transformer.resblocks[-1] if family == "vit" else model.clip.visual.trunk.blocks[-1]
    idle = {id(one) for one in ([] if family == "vit" else last.attn.q_proj.parameters())}
    for name, parameter in model.named_parameters():
        where = moved[name]
        if not name.startswith("clip."):
            assert parameter.requires_grad and where.any(), name
        elif name.endswith(
            ".attn.in_proj_weight"
        ):  # rows of queries, keys, values; the dense map needs no queries of the last block
            q, k, v = where.chunk(3)
            is_last = name.startswith("clip.model.visual.") and parameter in set(last.parameters())
            assert not k.any() and v.any() and bool(q.any()) != is_last, name
        elif name.endswith(("q_proj.weight", "v_proj.weight")) and id(parameter) not in idle:
            assert where.any(), name
        else:
            assert not where.any() and not parameter.requires_grad, name


def test_frozen_keys_have_no_weight_decay(catseg, make_images):
    model = catseg("vit").train()
    name = "clip.model.visual.transformer.resblocks.0.attn.in_proj_weight"
    weight, before = dict(model.named_parameters())[name], values_of(model)[name]
    optimizer = torch.optim.AdamW(model.parameter_groups(weight_decay=0.5, clip_scale=0.5), lr=0.0, fused=True)
    (model(Batch(make_images((48, 48)), [])) * 0).backward()
    take_step(optimizer, lr=0.1, weight_decay=0.5, partly=model.partly)
    # gradients are 0, so what is left is decay: 1 - .1 * .5 * .5 = .975
    (q, k, v), (old_q, old_k, old_v) = weight.detach().chunk(3), before.chunk(3)
    assert torch.equal(k, old_k)
    torch.testing.assert_close(q, 0.975 * old_q)
    torch.testing.assert_close(v, 0.975 * old_v)


@pytest.mark.parametrize("is_trained", [False, True])
def test_the_version_of_2023_trains_attention_of_the_image_tower(tiny_clip, make_images, is_trained):
    clip = tiny_clip("vit")
    torch.manual_seed(0)
    vocabulary = Vocabulary((("cat", "kitten"), ("dog",), ("sky",)))
    guide = backbone(is_trained=is_trained)
    network = Network(
        version="2023", residual="token", backbone="resnet", size=64, clip_size=32, test_size=64, longest=256,
        stride=64, window=2, hidden=16, guidance=8, decoder=(16, 8), decoder_guidance=(8, 4), tower_guidance=(256, 128),
        heads=2, layers=1, most=256,
    )  # fmt: skip
    model = CatSeg(clip, network, vocabulary=vocabulary, backbone=guide).train()
    assert model.text.shape == (3, 80, 12) and model.aggregator.embed.in_channels == 80
    alone = [F.normalize(model.embed_classes([word])[0], dim=1) for word in ("cat", "kitten")]
    torch.testing.assert_close(model.text[0], F.normalize(alone[0] + alone[1], dim=1))
    before, statistics = values_of(model), [one.clone() for one in guide.buffers()]
    steps(model, make_images((70, 90)), 2, lr=1e-2)
    for name, parameter in model.named_parameters():
        is_ours = name.startswith("aggregator.")
        is_attention = name.startswith("clip.model.visual.") and (".attn." in name or "position" in name)
        learns = is_ours or is_attention or (is_trained and name.startswith("backbone."))
        assert parameter.requires_grad == learns, name
        assert bool((parameter != before[name]).any()) == learns, name
    assert all(torch.equal(*pair) for pair in zip(guide.buffers(), statistics, strict=True))
    (found,) = model.eval().predict(make_images((30, 40)), model.embed_classes(["house", "tree"]))
    assert found.shape == (2, 30, 40)
    scales = {group["lr_scale"] for group in model.parameter_groups(weight_decay=0.1, backbone_scale=0.02)}
    assert scales == ({1.0, 0.01, 0.02} if is_trained else {1.0, 0.01})


def test_the_residual_changes_the_dense_feature_map(catseg, make_images):
    token, cls = catseg(residual="token").eval(), catseg().eval()  # as in CAT-Seg's code of 2024
    images = make_images((48, 48))[0].image[None].float()
    text = token.embed_classes(["cat", "sky"])
    assert (token.head, cls.head) == ("value", "value_cls")
    assert not torch.allclose(token.logits(images, text), cls.logits(images, text), atol=1e-4)
    with pytest.raises(InputError, match=r"residual: head: value_cls is not defined here: .* --residual token\."):
        catseg("siglip", residual="cls")
    catseg("siglip", residual="token").train()(Batch(make_images((48, 60)), [])).backward()


def test_only_the_best_classes_are_aggregated(catseg, make_images):
    model = catseg(most=3).eval().requires_grad_(False)
    names = ["cat", "dog", "sky", "house", "tree", "river"]
    text = model.embed_classes(names)
    images = torch.stack([one.image for one in make_images((48, 48), (48, 48))]).float()
    found = model.logits(images, text).detach()
    dense = model.clip.encode_dense((images / 255 - torch.tensor(model.clip.mean)[:, None, None])
                                    / torch.tensor(model.clip.std)[:, None, None], head="value_cls")  # fmt: skip
    for i in range(2):
        greatest = [float((dense[i] * F.normalize(row[0], dim=0)[:, None, None]).sum(dim=0).max()) for row in text]
        best = sorted(sorted(range(6), key=lambda place: -greatest[place])[:3])
        for place in range(6):
            assert bool((found[i, place] == -100).all()) == (place not in best)
        alone = model.logits(images[i : i + 1], text[best])[0]
        torch.testing.assert_close(found[i, best], alone, atol=1e-4, rtol=1e-4)
    assert (model.train().logits(images, text) > -100).all()  # in training all are


def test_predictions_average_windows_and_the_whole_image(catseg, make_images):
    model = catseg().eval()
    (sample,) = make_images((40, 56))
    text = model.embed_classes(["cat", "sky"])
    (found,) = model.predict([sample], text)
    assert found.shape == (2, 40, 56) and found.min() >= 0 and found.max() <= 1

    def up(x, *size):
        return F.interpolate(x, size=size, mode="bilinear")

    with torch.no_grad():
        # the shortest edge of 40 x 56 becomes 72, the other 56 / 40 * 72 = 100.8
        pixels = Image.fromarray(sample.image.permute(1, 2, 0).numpy()).resize((101, 72), Image.Resampling.BILINEAR)
        image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float()
        square = up(image, 72, 72)
        # windows of 48 every 24 of 72 overlap from 24 to 48; torch's own fold lays them back
        cut = F.unfold(square, 48, stride=24)[0].T.unflatten(1, (3, 48, 48))  # (4, 3, 48, 48)
        shares = torch.cat([up(model.logits(one[None], text), 48, 48).sigmoid() for one in cut])
        folded = F.fold(shares.flatten(1).T[None], (72, 72), 48, stride=24)
        folded = folded / F.fold(torch.ones(1, 2 * 48 * 48, 4), (72, 72), 48, stride=24)
        small = up(image, 48, 48)
        whole = up(up(model.logits(small, text), 48, 48).sigmoid(), 72, 72)
        wanted = up((folded + whole) / 2, 40, 56)[0]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_images_and_views_do_not_depend_on_each_other(catseg, make_images, monkeypatch):
    model = catseg().eval()
    samples, text = make_images((40, 56), (90, 30), (8, 8)), model.embed_classes(["cat", "sky", "tree", "dog", "river"])
    together = model.predict(samples, text)
    monkeypatch.setattr("foveate.ops.argmax.MAX_CLASSES", 2)
    labels = model.label_maps(samples, text)
    for sample, found, one in zip(samples, together, labels, strict=True):
        (alone,) = model.predict([sample], text, at_once=1)
        torch.testing.assert_close(alone, found, atol=1e-5, rtol=1e-5)
        assert torch.equal(one.labels, alone.argmax(dim=0)) or torch.equal(one.labels, found.argmax(dim=0))
    images = torch.stack([make_images((48, 48), (48, 48))[place].image for place in (0, 1)]).float()
    both, first = model.logits(images, text), model.logits(images[:1], text)
    torch.testing.assert_close(both[:1], first, atol=1e-5, rtol=1e-5)


def test_an_empty_batch_gives_a_zero_loss_with_all_gradients(catseg):
    model = catseg("eva").train()
    loss = model(Batch([], [BadSample("1", "damaged")]))
    loss.backward()
    assert loss.item() == 0
    assert all((one.grad is not None) == one.requires_grad for one in model.parameters())


def test_arguments_that_do_not_fit_are_refused(catseg, tiny_clip):
    for settings, message in (
        ({"version": "2023"}, "takes a guidance backbone .*; got none"),
        ({"backbone": backbone(is_trained=False)}, "takes no backbone; got one"),
        (
            {"version": "2023", "backbone": backbone(is_trained=False)},
            "has 3 locations per side and the tower's 6; need 24",
        ),
        ({"window": 4}, "multiple of the attention window, 4; got 6 locations"),
        ({"test_size": 80}, "at 48, 72, 96, ...; got 80"),
        (
            {"size": 50, "clip_size": 50, "test_size": 74},
            "--size, in proportion for the CLIP: .* multiple of the patch size 8; got 50",
        ),
        ({"vocabulary": ()}, "need a list with at least one class name"),
    ):
        with pytest.raises(InputError, match=message):
            catseg(**settings)
    with pytest.raises(InputError, match="this is a residual network"):
        catseg("rn")
    with pytest.raises(InputError, match="need a network of timm; got 'resnet'"):
        Backbone("resnet", is_trained=True, pretrained=False)
