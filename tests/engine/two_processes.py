"""Run by test_two_processes.py as one process of a run: distils for a step and saves its gradients."""

import sys
from copy import deepcopy
from pathlib import Path

import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import foveate.engine.fit as fit_module
from foveate.clip.load import load
from foveate.engine.distributed import joined
from foveate.engine.fit import Saving, Update, fit
from foveate.engine.log import Log
from foveate.errors import InputError
from foveate.objectives.clipself import ClipSelf, count_regions, train_layers
from foveate.objectives.correlation import Correlation
from foveate.objectives.keep import CropKeeping
from foveate.types import Batch, Sample


class Recorder(torch.optim.SGD):
    """Keeps the gradients it is given and moves nothing."""

    def step(self, closure=None):
        self.gradients = [parameter.grad.clone() for parameter in self.param_groups[0]["params"]]


def samples() -> list[Sample]:
    """Four images with 5, 1, 2 and 0 regions: the first two belong to process 0, the others to process 1."""
    draw = torch.Generator().manual_seed(0)
    made = []
    for number, regions in enumerate((5, 1, 2, 0)):
        image = torch.randint(0, 256, (3, 40, 48), generator=draw, dtype=torch.uint8)
        corners = torch.rand(regions, 2, generator=draw) * 20
        made.append(Sample(f"image {number}", image, torch.cat([corners, corners + 16], dim=1)))
    return made


averaged = []  # one entry each time processes exchange a part of their gradients


class Counting(DistributedDataParallel):
    """Counts what it exchanges."""

    def __init__(self, module, **settings):
        super().__init__(module, **settings)
        self.register_comm_hook(None, self.count)

    @staticmethod
    def count(state, bucket):
        averaged.append(bucket.index())
        return allreduce_hook(None, bucket)


fit_module.DistributedDataParallel = Counting


class Broken(ClipSelf):
    """Says NaN to the third image."""

    def forward(self, batch: Batch) -> torch.Tensor:
        loss = super().forward(batch)
        return loss * float("nan") if any(sample.id == "image 2" for sample in batch.samples) else loss


def main(model: str, out: str, mode: str) -> None:
    student = load(model)
    teacher = deepcopy(student)
    with torch.no_grad():  # away from the teacher, where gradients are not small
        for number, parameter in enumerate(student.parameters()):
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    train_layers(student)
    terms = {"keep": CropKeeping(1.0, max_crops=2), "correlation": Correlation(1.0)} if mode.startswith("terms") else {}
    objective = (Broken if mode == "broken" else ClipSelf)(student, teacher, student_size=32, **terms)
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizer = Recorder(trained)
    with joined("cpu", timeout=30) as processes:
        everything = samples()
        mine = everything if processes.size == 1 else everything[2 * processes.rank : 2 * processes.rank + 2]
        if mode in ("empty", "terms empty") and processes.rank == 1:
            mine = mine[1:]  # this process has no region at all
        half = len(mine) // 2
        parts = [Batch(mine[:half], []), Batch(mine[half:], [])] if mode == "accumulated" else [Batch(mine, [])]
        folder = Path(out) / f"{mode}_{processes.rank}_of_{processes.size}"
        folder.mkdir(parents=True)
        with Log(folder / "metrics.jsonl", steps=1, every=1) as log:
            try:
                fit(
                    objective,
                    parts,
                    optimizer,
                    count=count_regions,
                    update=Update(lambda step: 1.0, accumulate=len(parts)),
                    steps=1,
                    saving=Saving(folder if processes.size == 1 else Path(out) / mode, every=1),
                    processes=processes,
                    log=log,
                )
            except InputError as error:
                (folder / "refused.txt").write_text(str(error))
                return
    torch.save(optimizer.gradients, folder / "gradients.pt")
    (folder / "averaged.txt").write_text(str(len(averaged)))


if __name__ == "__main__":
    main(*sys.argv[1:])
