"""Run by test_shard.py as one of two processes: gradients of sharded weights, beside those of whole weights."""

import json
import sys
from copy import deepcopy
from pathlib import Path

import torch

from foveate.clip.load import load
from foveate.clip.model import Clip
from foveate.engine.distributed import joined, whole_tensor
from foveate.engine.optim import build_optimizer
from foveate.engine.shard import shard_student
from foveate.errors import InputError
from foveate.objectives.clipself import ClipSelf, train_layers
from foveate.objectives.correlation import Correlation
from foveate.objectives.keep import CropKeeping
from foveate.objectives.student import Execution
from foveate.types import Batch, Sample


def sample(seed: int, regions: int) -> Sample:
    draw = torch.Generator().manual_seed(seed)
    corners = torch.rand(regions, 2, generator=draw) * 20
    image = torch.randint(0, 256, (3, 40, 48), generator=draw, dtype=torch.uint8)
    return Sample(f"image {seed}", image, torch.cat([corners, corners + 16], dim=1))


def deeper(clip: Clip) -> Clip:
    """The same CLIP with twice as many blocks."""
    one = deepcopy(clip)
    one.visual.transformer.resblocks.extend(deepcopy(one.visual.transformer.resblocks))
    return one


def objective_of(clip: Clip, *, low_precision: bool = False, checkpointing: bool = False, **settings) -> ClipSelf:
    student = deepcopy(clip)
    with torch.no_grad():  # away from the teacher, where gradients are not small
        for number, parameter in enumerate(student.parameters()):
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    head = settings.get("head", "value")
    train_layers(student, head=head, gates=head == "values3")
    execution = Execution(low_precision=low_precision, checkpointing=checkpointing)
    return ClipSelf(student, deepcopy(clip), student_size=32, execution=execution, **settings)


def compare(clip: Clip, processes, *, bfloat16: bool, regions: tuple[int, int], **settings) -> dict:
    """How far the gradients lie apart, how large they are, and what share of the trained weights is held here."""
    batches = [Batch([sample(seed, count)], []) for seed, count in enumerate(regions)]
    spread = objective_of(clip, **settings)
    whole = objective_of(clip, low_precision=bfloat16, **settings)
    shard_student(spread, processes=processes, bfloat16=bfloat16)
    spread(batches[processes.rank]).backward()
    (sum(whole(batch) for batch in batches) / 2).backward()
    pairs = zip(spread.student.named_parameters(), whole.student.named_parameters(), strict=True)
    apart, largest, held, total = 0.0, 0.0, 0, 0
    for (name, ours), (other, theirs) in pairs:
        assert name == other and (ours.grad is None) == (theirs.grad is None), name
        if theirs.grad is not None:
            apart = max(apart, (whole_tensor(ours.grad) - theirs.grad).abs().max().item())
            largest = max(largest, theirs.grad.abs().max().item())
            held, total = held + ours.to_local().numel(), total + theirs.numel()
    optimizer = build_optimizer(spread, weight_decay=0.1)
    optimizer.step()
    return {"apart": apart, "largest": largest, "share": held / total}


def main(model: str, out: str) -> None:
    clip, results = load(model), {}
    with joined("cpu", timeout=30) as processes:
        for bfloat16, checkpointing in ((False, False), (False, True), (True, False)):
            settings = {"bfloat16": bfloat16, "checkpointing": checkpointing}
            results[str((bfloat16, checkpointing))] = compare(clip, processes, **settings, regions=(5, 5))
        results["empty"] = compare(clip, processes, bfloat16=False, regions=(5, 0))
        results["in parts"] = compare(deeper(clip), processes, bfloat16=False, regions=(5, 5), head="values3")
        terms = {"keep": CropKeeping(1.0, max_crops=2), "correlation": Correlation(1.0)}
        for bfloat16, checkpointing in ((False, False), (False, True), (True, False)):
            ways = {"bfloat16": bfloat16, "checkpointing": checkpointing}
            results[f"terms {bfloat16, checkpointing}"] = compare(clip, processes, **ways, **terms, regions=(5, 5))
        results["terms empty"] = compare(clip, processes, bfloat16=False, **terms, regions=(5, 0))
        parts = {"bfloat16": False, "head": "values3"}
        results["terms in parts"] = compare(deeper(clip), processes, **parts, **terms, regions=(5, 5))
        try:
            shard_student(objective_of(clip, tokens="valid"), processes=processes)
        except InputError as error:
            results["refused"] = str(error)
    Path(out, f"rank{processes.rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
