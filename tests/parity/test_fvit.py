"""F-ViT from published files: the key table and the maths against the public detector's numbers, and files end to end.

The heads' tensors come through `take_apart`, so that every check here is one of the importer's table too.
"""

import json
from collections import OrderedDict
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from hostile import MARK, plant
from published import TOLERANCE, draw_state, gap, golden, normal, uniform
from timm.models import is_model, register_model
from timm.models.eva import Eva
from torch import Tensor

from foveate.cli.main import main
from foveate.clip.io.layouts import _EVA_NAMES
from foveate.clip.io.weights import save_clip
from foveate.clip.model import Clip
from foveate.clip.text import embed_vocabulary
from foveate.data.splits import OV_COCO_NOVEL, classes_of_ov_coco
from foveate.errors import InputError
from foveate.heads.common.product import trained_state
from foveate.heads.common.published import rename
from foveate.heads.common.pyramid import Pyramid
from foveate.heads.fvit.detector import FViT, Network
from foveate.heads.fvit.fusion import fuse_scores, keep_best
from foveate.heads.fvit.heads import BoxHead, MaskHead, box_loss, class_logits, decode_boxes
from foveate.heads.fvit.product import TOWER, load_detector
from foveate.heads.fvit.published import TABLE, match_names, published_benchmark, published_size, take_apart
from foveate.heads.fvit.roi import choose_levels
from foveate.heads.fvit.rpn import Rpn
from foveate.ops.boxes import clip_boxes

STRIDES = (4.0, 8.0, 16.0, 32.0, 64.0)
HEAD = "roi_head.bbox_head."
NETWORK = Network(
    size=64, taps=None, pyramid="taps", channels=8, width=8, masks=False, proposals=1000, trained_layers=0, norm=False,
    relu_embedding=True, statistics="imagenet", resize="bilinear",
)  # fmt: skip
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
STATISTICS = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}

# ----------------------------------------------------------------------------------------------------- golden numbers


@cache
def published(shapes: str) -> dict[str, Tensor]:
    return draw_state(json.loads(str(golden("fvit")[shapes])))


def part(prefix: str, *, shapes: str = "shapes") -> dict[str, Tensor]:
    head = take_apart(published(shapes), source="golden").head
    return {name.removeprefix(prefix): one for name, one in head.items() if name.startswith(prefix)}


def check_pyramid(pyramid: Pyramid) -> None:
    with torch.no_grad():
        levels = pyramid([normal(f"fvit.tap{place}", 1, 64, 16, 16) for place in range(4)])
    for place, level in enumerate(levels):
        assert gap(level[0, ::16, ::2, ::2], golden("fvit")[f"level{place}"]) <= TOLERANCE


def check_proposals(rpn: Rpn) -> None:
    sides = (64, 32, 16, 8, 4)
    levels = [normal(f"fvit.lev{place}", 1, 256, side, side, scale=0.5) for place, side in enumerate(sides)]
    with torch.no_grad():
        (boxes,), (scores,) = rpn.propose(rpn(levels), [(200, 256)])
    theirs = torch.from_numpy(golden("fvit")["proposals"])
    far = torch.cdist(boxes.double(), theirs[:, :4].double(), p=float("inf")).amin(dim=1)
    assert len(boxes) == len(theirs) and float((far < 1e-2).float().mean()) >= 0.995
    assert gap(scores.sort(descending=True)[0], theirs[:, 4].sort(descending=True)[0]) <= TOLERANCE


def check_detections(head: BoxHead, scale: Tensor) -> None:
    wanted = golden("fvit")
    text = F.normalize(normal("fvit.text", 66, 512), dim=1)
    pooled = F.normalize(normal("fvit.vlm", 60, 512), dim=1)
    is_base = torch.from_numpy(np.arange(65) % 4 != 0)
    corner, sides = uniform("fvit.xy", 60, 2) * [160, 120], 8 + uniform("fvit.wh", 60, 2) * 80
    rois = np.concatenate([corner, np.minimum(corner + sides, [256, 200])], 1).astype(np.float32)
    with torch.no_grad():
        embeddings, codes = head(normal("fvit.rois", 60, 256, 7, 7))
        p = class_logits(embeddings, text, scale=scale).softmax(dim=1)
        scores = fuse_scores(p, (75.0 * pooled @ text.T).softmax(dim=1), is_base, base=0.1, novel=0.8)
        boxes = clip_boxes(decode_boxes(codes, torch.from_numpy(rois)), height=200, width=256)
    rows, labels = keep_best(boxes, scores[:, :-1], min_score=0.01, overlap=0.4, keep=100)
    assert gap(scores, wanted["scores"]) <= TOLERANCE and gap(boxes, wanted["boxes"]) <= 10 * TOLERANCE
    assert gap(scores[rows, labels], wanted["det"][:, 4]) <= TOLERANCE
    assert labels.tolist() == wanted["det_labels"].tolist()


def test_the_pyramid() -> None:
    pyramid = Pyramid(64, channels=256).eval()
    pyramid.load_state_dict(part("pyramid."))
    check_pyramid(pyramid)


def test_proposals() -> None:
    rpn = Rpn(STRIDES, channels=256).eval()
    rpn.network.head.load_state_dict(part("rpn.network.head."))
    check_proposals(rpn)


def test_fused_scores_and_detections() -> None:
    head = BoxHead(256, width=256, embed_dim=512).eval()
    head.load_state_dict(part("box_head."))
    check_detections(head, part("log_scale")[""].exp())


def test_the_loss_of_boxes() -> None:
    corner, sides = uniform("loss.xy", 512, 2) * 400, 20 + uniform("loss.wh", 512, 2) * 100
    rois = torch.from_numpy(np.concatenate([corner, corner + sides], 1).astype(np.float32))
    shift = torch.from_numpy(np.concatenate([sides, sides], 1).astype(np.float32))
    targets = rois + normal("loss.d", 512, 4, scale=0.1) * shift
    targets[:, 2:] = torch.maximum(targets[:, 2:], targets[:, :2] + 4)
    found = box_loss(normal("loss.c", 512, 4, scale=0.3), rois, targets, torch.arange(512) < 128)
    assert gap(found, golden("fvit")["box_loss"]) <= TOLERANCE


@pytest.mark.parametrize("name", ["levels14", "levels16"])
def test_levels_of_rois(name: str) -> None:
    boxes = torch.from_numpy(golden("fvit")["level_boxes"])
    assert choose_levels(boxes).tolist() == golden("fvit")[name].tolist()


def test_heads_of_ov_lvis_have_the_published_tensors() -> None:
    mask, rpn = MaskHead(256, width=256, norm=True), Rpn(STRIDES, channels=256, norm=True)
    mask.load_state_dict(part("mask_head.", shapes="shapes_lvis"))  # strict: all names, all shapes
    rpn.network.head.load_state_dict(part("rpn.network.head.", shapes="shapes_lvis"))


# ------------------------------------------------------------------------------------------------ files, end to end


def _eva(*, width: int, patch: int, grid: int, depth: int, num_classes: int, global_pool: str) -> Eva:
    return Eva(
        img_size=patch * grid,
        patch_size=patch,
        embed_dim=width,
        depth=depth,
        num_heads=2,
        qkv_fused=False,
        mlp_ratio=4 * 2 / 3,
        swiglu_mlp=True,
        scale_mlp=True,
        scale_attn_inner=True,
        use_rot_pos_emb=True,
        ref_feat_shape=(grid, grid),
        global_pool=global_pool,
        num_classes=num_classes,
    )


def eva02_foveate_fvit(pretrained: bool = False, num_classes: int = 12, global_pool: str = "token", **_: object) -> Eva:
    return _eva(width=16, patch=8, grid=4, depth=4, num_classes=num_classes, global_pool=global_pool)


def eva02_foveate_golden(
    pretrained: bool = False, num_classes: int = 12, global_pool: str = "token", **_: object
) -> Eva:
    return _eva(width=64, patch=16, grid=4, depth=12, num_classes=num_classes, global_pool=global_pool)


def eva_clip(trunk: str, *, size: int, dim: int, seed: int = 0) -> Clip:
    """An EVA-CLIP of random weights, which timm builds by name."""
    for one in (eva02_foveate_fvit, eva02_foveate_golden):
        if not is_model(one.__name__):
            register_model(one)
    vision = {"timm_model_name": trunk, "image_size": size, "timm_pool": "token", "timm_proj": None}
    described = {"embed_dim": dim, "vision_cfg": vision, "text_cfg": dict(TEXT)}
    torch.manual_seed(seed)
    model = open_clip.CustomTextCLIP(**json.loads(json.dumps(described))).eval()
    with torch.no_grad():
        for parameter in model.text.parameters():  # as open_clip fills them, texts are all alike
            parameter.add_(0.3 * torch.randn_like(parameter))
    config = {"model_cfg": {**described, "custom_text": True}, "preprocess_cfg": STATISTICS}
    return Clip(model, name=trunk, config=config)


def tower_as_published(clip: Clip) -> dict[str, Tensor]:
    """EVA-CLIP's own names, with the tables that its files hold."""
    state = {}
    for name, one in clip.visual.state_dict().items():
        for theirs, ours in _EVA_NAMES:
            name = f".{name}".replace(ours, theirs).removeprefix(".")
        state[f"backbone.visual.{name.removeprefix('trunk.')}"] = one
    return state | {"backbone.visual.rope.freqs_cos": torch.ones(2, 2), "backbone.visual.rope.freqs_sin": torch.ones(2)}


def write_as_trained(path: Path, state: dict[str, Tensor]) -> None:
    """A file as mmcv writes it: the weights with their versions, the optimizer, and what the run was."""
    some = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([some], lr=1e-4)
    some.sum().backward()
    optimizer.step()
    optimizer.param_groups[0]["lr"] = np.float64(1e-4)
    kept = OrderedDict(state)
    kept._metadata = OrderedDict({"": {"version": 1}})  # pyright: ignore[reportAttributeAccessIssue]
    meta = {"mmdet_version": "2.28.2", "config": "model = dict()", "epoch": 3, "iter": np.int64(5052), "hook_msgs": {}}
    torch.save({"meta": meta, "state_dict": kept, "optimizer": optimizer.state_dict()}, path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """A small detector of OV-COCO as its trainer writes it, and the CLIPs with and without its tower."""
    folder = tmp_path_factory.mktemp("fvit")
    torch.manual_seed(1)
    distilled = eva_clip("eva02_foveate_fvit", size=32, dim=12, seed=1)
    plain = eva_clip("eva02_foveate_fvit", size=32, dim=12, seed=2)
    plain.model.text.load_state_dict(distilled.model.text.state_dict())
    for name, clip in (("distilled", distilled), ("plain", plain)):
        save_clip(clip, folder / name)
    names, split = classes_of_ov_coco()
    text = embed_vocabulary(distilled, names, background="background")
    is_novel = torch.tensor([name in split.novel for name in names])
    detector = FViT(distilled, NETWORK, text=text, is_novel=is_novel, jitter=None, flip=False).eval()
    ours = trained_state(detector, frozen=TOWER)
    state = {name: ours[rename(name, TABLE)] for name in published("shapes") if rename(name, TABLE) is not None}
    state |= {f"{HEAD}detect_temperature": torch.tensor(43.7), f"{HEAD}all_embeddings": text.T.contiguous()}
    state |= {f"{HEAD}fc_cls.weight": torch.zeros(66, 12), f"{HEAD}fc_cls.bias": torch.zeros(66)}
    state |= tower_as_published(distilled)
    write_as_trained(folder / "fvit.pth", state)
    with torch.no_grad():
        detector.log_scale.fill_(43.7).log_()
    return {"folder": folder, "detector": detector, "state": state, "names": names}


def convert(tiny: dict[str, object], out: Path, *more: str, file: str = "fvit.pth", clip: str = "plain") -> None:
    folder = tiny["folder"]
    main(["convert", str(folder / file), str(out), "--clip", str(folder / clip), "--size", "64", *more])


def fails(capsys: pytest.CaptureFixture[str], run: object, says: str) -> None:
    with pytest.raises(SystemExit) as done:
        run()
    told = capsys.readouterr().err
    assert done.value.code == 2 and says in told and "Traceback" not in told, told


@pytest.mark.parametrize("clip", ["plain", "distilled"])
def test_a_file_becomes_a_detector_that_detects(tiny, tmp_path, capsys, squares_folder, clip) -> None:
    out = tmp_path / "out"
    convert(tiny, out, clip=clip)
    told = capsys.readouterr()
    assert "65 classes, 48 base and 17 novel" in told.out and "T = 43.70" in told.out
    assert "cosine of at least 1.0000" in told.out and "ignored: 4 tensors" in told.out and told.err == ""
    assert (out / "clip").is_dir() == (clip == "plain") and not list(tmp_path.glob(".*"))
    if clip == "plain":  # the folder is whole, wherever it goes
        out = out.rename(tmp_path / "moved")
    detector, about = load_detector(out)
    for name, one in tiny["detector"].state_dict().items():
        assert torch.allclose(detector.state_dict()[name], one, atol=1e-6), name
    assert about.benchmark == "ov-coco" and set(about.novel) == set(OV_COCO_NOVEL)
    network = about.network
    assert (network.statistics, network.resize, network.relu_embedding, network.norm, network.masks) == (
        "imagenet", "bilinear", True, False, False)  # fmt: skip
    found = tmp_path / "found"
    words = ["detect", str(squares_folder), "--model", str(out), "--out", str(found), "--min-score", "0"]
    main([*words, "--workers", "0", "--device", "cpu", "--templates", "none"])
    content = json.loads((found / "detections.json").read_text())
    assert len(content["categories"]) == 65 and len(content["annotations"]) == 100


def test_the_golden_numbers_come_out_of_a_whole_file(tmp_path) -> None:
    clip = eva_clip("eva02_foveate_golden", size=64, dim=512)
    save_clip(clip, tmp_path / "clip")
    write_as_trained(tmp_path / "fvit.pth", {**published("shapes"), **tower_as_published(clip)})
    main(["convert", str(tmp_path / "fvit.pth"), str(tmp_path / "out"), "--clip", str(tmp_path / "clip")])
    detector, about = load_detector(tmp_path / "out")
    assert (about.network.size, about.network.channels, about.network.width) == (640, 256, 256)
    assert detector.tower.layers == (3, 5, 7, 11) and detector.strides == STRIDES
    check_pyramid(detector.pyramid)
    check_proposals(detector.rpn)
    check_detections(detector.box_head, detector.scale.detach())


def test_a_file_of_ov_lvis_has_masks_norms_and_names_of_its_annotations(tmp_path, capsys) -> None:
    clip = eva_clip("eva02_foveate_fvit", size=32, dim=12)
    save_clip(clip, tmp_path / "clip")
    names = ["aerosol can", "cat", "zebra"]
    notes = {"images": [], "annotations": [], "categories": []}
    for number, (name, frequency) in enumerate(zip(names, "rcf", strict=True), start=1):
        notes["categories"].append({"id": number, "name": name, "synonyms": [name], "frequency": frequency})
    (tmp_path / "lvis.json").write_text(json.dumps(notes))
    text = embed_vocabulary(clip, names, background="background")
    is_novel = torch.tensor([True, False, False])
    network = replace(NETWORK, masks=True, norm=True)
    detector = FViT(clip, network, text=text, is_novel=is_novel, jitter=None, flip=False)
    ours = trained_state(detector, frozen=TOWER)
    state = {name: ours[rename(name, TABLE)] for name in published("shapes_lvis") if rename(name, TABLE) is not None}
    order = torch.tensor([2, 0, 1, 3])  # the file's classes stand in another order
    state |= {f"{HEAD}detect_temperature": torch.tensor(50.0), f"{HEAD}all_embeddings": text[order].T.contiguous()}
    state |= tower_as_published(clip)
    write_as_trained(tmp_path / "other.pth", state | {"something.else": torch.zeros(1)})
    told = ["convert", str(tmp_path / "other.pth"), str(tmp_path / "out"), "--clip", str(tmp_path / "clip")]
    fails(capsys, lambda: main(told), "1 of its tensors are unknown: something.else")
    write_as_trained(tmp_path / "fvit.pth", state)
    words = ["convert", str(tmp_path / "fvit.pth"), str(tmp_path / "out"), "--clip", str(tmp_path / "clip")]
    fails(capsys, lambda: main(words), "--annotations: need the annotation file of the data")
    main([*words, "--annotations", str(tmp_path / "lvis.json"), "--size", "64"])
    detector, about = load_detector(tmp_path / "out")
    assert about.network.masks and about.network.norm and about.benchmark == "ov-lvis-b"
    assert (about.base, about.novel) == (("cat", "zebra"), ("aerosol can",))
    assert detector.is_novel.tolist() == [False, True, False]  # zebra, aerosol can, cat
    assert torch.allclose(detector.text, text[order], atol=1e-6)
    # all of it said otherwise: names and novelty by files, the fusion
    (tmp_path / "novel.json").write_text(json.dumps({"base": ["zebra"], "novel": ["cat", "aerosol can"]}))
    more = ["--annotations", str(tmp_path / "lvis.json"), "--novel", str(tmp_path / "novel.json"), "--size", "80"]
    more += ["--benchmark", "ov-coco"]
    words = ["convert", str(tmp_path / "fvit.pth"), str(tmp_path / "two"), "--clip", str(tmp_path / "clip")]
    main([*words, *more])
    detector, about = load_detector(tmp_path / "two")
    assert (about.base, about.novel) == (("zebra",), ("cat", "aerosol can"))
    assert detector.is_novel.tolist() == [False, True, True]
    assert (about.benchmark, about.network.size, about.has_clip) == ("ov-coco", 80, False)


def test_sizes_and_fusions_are_the_published_ones() -> None:
    cases = {("ov-coco", 16): 640, ("ov-coco", 14): 896, ("ov-lvis-b", 16): 1024, ("ov-lvis-l", 14): 896}
    assert {case: published_size(case[0], patch=case[1]) for case in cases} == cases
    boxes, masks = (take_apart(published(shapes), source="golden") for shapes in ("shapes", "shapes_lvis"))
    assert [published_benchmark(boxes, patch=patch) for patch in (16, 14)] == ["ov-coco", "ov-coco"]
    assert [published_benchmark(masks, patch=patch) for patch in (16, 14)] == ["ov-lvis-b", "ov-lvis-l"]


def test_what_is_missing_or_of_another_size_is_refused(tiny, tmp_path, capsys) -> None:
    folder, state, out = tiny["folder"], tiny["state"], tmp_path / "out"
    without = ["convert", str(folder / "fvit.pth"), str(out)]
    fails(capsys, lambda: main(without), "--clip: need the CLIP whose text tower")
    told = "without weights. Give --clip EVA02-B-16:PRETRAINED"
    fails(capsys, lambda: main([*without, "--clip", "EVA02-B-16"]), told)
    fails(capsys, lambda: convert(tiny, out, "--to", "hf"), "--to: is for a CLIP")
    faults = {
        "neck.fpn_convs.2.bn.bias": (None, "1 missing (pyramid.top_down.layer_blocks.2.1.bias)"),
        "rpn_head.rpn_cls.weight": (torch.zeros(6, 8, 1, 1), "is (6, 8, 1, 1) instead of (3, 8, 1, 1)"),
        "rpn_head.rpn_conv.2.conv.bias": (torch.zeros(8), "1 extra (rpn.network.head.conv.2.0.bias)"),
        "neck.lateral_convs.0.conv.weight": (None, "pyramid.top_down.inner_blocks.0.0.weight is missing"),
        "backbone.visual.pos_embed": (torch.zeros(1, 5, 16), "trunk.pos_embed is (1, 5, 16) instead of (1, 17, 16)"),
        "backbone.visual.cls_token": (None, "missing (trunk.cls_token)"),
        f"{HEAD}all_embeddings": (torch.zeros(66, 12), "need roi_head.bbox_head.all_embeddings of (D, K + 1)"),
        f"{HEAD}shared_fcs.0.bias": (torch.full((12,), torch.nan), "1 tensors hold NaN"),
    }
    for name, (value, says) in faults.items():
        changed = {key: one for key, one in {**state, name: value}.items() if one is not None}
        write_as_trained(tmp_path / "fault.pth", changed)
        words = ["convert", str(tmp_path / "fault.pth"), str(out), "--clip", str(folder / "plain"), "--size", "64"]
        fails(capsys, lambda words=words: main(words), says)
    assert not out.exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("form", ["reduce", "build"])
def test_nothing_in_a_file_is_run(tiny, tmp_path, form) -> None:
    path, touched = tmp_path / "fvit.pth", tmp_path / "touched"
    torch.save({"meta": MARK, "state_dict": tiny["state"]}, path)
    plant(path, form, touched)
    main(["convert", str(path), str(tmp_path / "out"), "--clip", str(tiny["folder"] / "distilled"), "--size", "64"])
    assert load_detector(tmp_path / "out")[1].training == {"published": "fvit.pth"} and not touched.exists()


def test_names_are_told_by_their_texts() -> None:
    torch.manual_seed(0)
    named = F.normalize(torch.randn(20, 16), dim=1)
    order = torch.randperm(20)
    found, least, unsure = match_names(named[order], named, source="f")
    assert torch.equal(found, order) and least > 0.999 and unsure == 0
    near = named.clone()
    near[1] = near[0]  # two words for one thing: the order given decides
    found, _, unsure = match_names(near, near, source="f")
    assert torch.equal(found, torch.arange(20)) and unsure == 1
    with pytest.raises(InputError, match="need the names of its 20 classes"):
        match_names(torch.randn(20, 16), named, source="f")


@pytest.fixture
def squares_folder(tmp_path: Path) -> Path:
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "one.png")
    return folder
