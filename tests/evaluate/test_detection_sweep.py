"""Sweeps of fusions against single evaluations, and the recall of proposals by size."""

import signal
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from PIL import Image

from foveate.data.batches import Loading
from foveate.data.records import Dataset, Record
from foveate.data.splits import BaseNovel
from foveate.errors import InputError, StoppedError
from foveate.evaluate.detection import evaluate_detection
from foveate.evaluate.detection_sweep import find_candidates, proposal_recall, sweep
from foveate.evaluate.ground_truth import open_ground_truth
from foveate.heads.fvit.candidates import Candidates, CandidateStore, CandidateWriter
from foveate.heads.fvit.detector import FViT
from foveate.heads.fvit.fusion import Fusion, detect
from foveate.io.listing import Listing
from foveate.types import Category

NAMES = ("dog", "cup", "owl")
SPLIT = BaseNovel(base=("dog", "owl"), novel=("cup",), excluded=(), rule="toy")
FUSIONS = [Fusion(base, novel, 10.0, 0.05, 0.5, 20) for base in (0.1, 0.9) for novel in (0.0, 1.0)]


def make(key: str, generator: torch.Generator) -> Candidates:
    corner = torch.rand(12, 2, generator=generator) * 50
    boxes = torch.cat([corner, corner + 10 + torch.rand(12, 2, generator=generator) * 30], dim=1)
    embeddings = torch.randn(2, 12, 8, generator=generator).half()
    return Candidates(key, 100, 100, boxes, torch.ones(12), boxes, *embeddings)


@pytest.fixture
def stored(tmp_path: Path) -> tuple[CandidateStore, Dataset, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    made = [make(key, generator) for key in "abcde"]
    writer = CandidateWriter(tmp_path, images=Listing(lambda: [[name] for name in "abcde"]), made_by={})
    for one in made:
        writer.add(one)
    writer.close()
    records = tuple(
        Record(one.id, Path("x"), 100, 100, tuple(map(tuple, one.boxes[:4].tolist())), (0, 1, 2, 1), (False,) * 4)
        for one in made
    )
    categories = tuple(Category(place, name, True) for place, name in enumerate(NAMES))
    return CandidateStore(tmp_path), Dataset("toy", categories, records, {}), torch.randn(4, 8, generator=generator)


def test_a_sweep_equals_one_evaluation_per_fusion(stored):
    store, data, text = stored
    wanted = {"vocabulary": NAMES, "split": SPLIT, "style": "coco"}
    truth = open_ground_truth(data, **wanted)
    is_base = torch.tensor([True, False, True])
    results = sweep(store, text, FUSIONS, truth, is_base, detector_scale=5.0)
    for fusion, result in zip(FUSIONS, results, strict=True):
        found = [(one.id, detect(one, text, is_base, 5.0, fusion)) for one in store]
        once = evaluate_detection(found, truth)
        assert {key: value for key, value in result.items() if key != "fusion"} == once
        assert result["fusion"] == {"base": fusion.base, "novel": fusion.novel, "temperature": 10.0, "min_score": 0.05,
                                    "nms": 0.5, "keep": 20, "detector_temperature": None}  # fmt: skip
    assert len({result["boxes"]["groups"]["novel"]["AP50"] for result in results}) > 1


def test_wrong_arguments_are_refused(stored):
    store, data, text = stored
    truth = open_ground_truth(data, vocabulary=NAMES, split=None, style="coco")
    with pytest.raises(InputError, match="need 3 classes and background; got 3"):
        sweep(store, text[:3], FUSIONS, truth, torch.ones(3) > 0, detector_scale=5.0)
    with pytest.raises(InputError, match="image q: need candidates of the images of toy"):
        proposal_recall([make("q", torch.Generator())], data, split=None)


def test_recall_of_proposals_by_size():
    # dog: 20 x 20, small, met whole; cup: 50 x 50, medium, met by half (0.5); cup: 100 x 100, large, missed; a crowd
    boxes = ((0.0, 0.0, 20.0, 20.0), (200.0, 0.0, 250.0, 50.0), (0.0, 200.0, 100.0, 300.0), (300.0, 0.0, 320.0, 20.0))
    record = Record("p", Path("p"), 400, 400, boxes, (0, 1, 1, 0), (False, False, False, True))
    data = Dataset("toy", tuple(Category(place, name, True) for place, name in enumerate(NAMES)), (record,), {})
    found = torch.tensor([[0.0, 0.0, 20.0, 20.0], [200.0, 0.0, 250.0, 25.0]])
    rest = torch.zeros(2, 8).half()
    candidates = Candidates("p", 400, 400, found, torch.ones(2), found, rest, rest)
    result = proposal_recall([candidates], data, split=SPLIT, tops=(1, 1000))
    assert result["base"]["small"] == {"objects": 1, "recall50": 100.0, "AR@1": 100.0, "AR@1000": 100.0}
    assert result["novel"]["medium"] == {"objects": 1, "recall50": 100.0, "AR@1": 0.0, "AR@1000": 10.0}
    assert result["novel"]["large"] == {"objects": 1, "recall50": 0.0, "AR@1": 0.0, "AR@1000": 0.0}
    assert result["novel"]["small"]["recall50"] is None
    assert result["all"]["all"]["objects"] == 3
    assert result["novel"]["all"]["recall50"] == 50.0
    assert set(proposal_recall([candidates], data, split=None)) == {"all"}


def test_candidates_of_a_stopped_pass_are_kept(tmp_path):
    """Two images a batch, stopped in the second batch: the third batch is what is left."""
    records = []
    for key in "abcdef":
        Image.new("RGB", (40, 30)).save(tmp_path / f"{key}.png")
        records.append(Record(key, tmp_path / f"{key}.png"))
    data, found = Dataset("toy", (), tuple(records), {}), list[str]()

    def candidates(samples):
        found.extend(sample.id for sample in samples)
        if found[-1] == "d":
            signal.raise_signal(signal.SIGTERM)
        return [make(sample.id, torch.Generator().manual_seed(ord(sample.id))) for sample in samples]

    detector: Any = MagicMock(spec=FViT, candidates=candidates)
    settings: Any = {"made_by": {}, "loading": Loading(batch=2)}
    with pytest.raises(StoppedError):
        find_candidates(detector, data, tmp_path / "c", **settings)
    found.clear()
    store = find_candidates(detector, data, tmp_path / "c", **settings)
    assert found == ["e", "f"] and store.ids == list("abcdef")
    for one in store:
        assert torch.equal(one.proposals, make(one.id, torch.Generator().manual_seed(ord(one.id))).proposals)
