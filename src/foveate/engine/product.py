"""The product of a distillation: the CLIP it started from, mixed with what was trained (Sec. 4.1)."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from foveate.clip.dense import open_gates
from foveate.clip.io.states import mix_states
from foveate.clip.io.weights import save_clip
from foveate.clip.model import Clip
from foveate.engine.checkpoint import find_best, load_checkpoint
from foveate.errors import InputError

_STUDENT = "parameter/student.model."
_GATES = "parameter/student._gates"


def write_product(baseline: Clip, tensors: dict[str, Tensor], folder: Path, *, alpha: float) -> None:
    """Mix the trained weights with those of before (Sec. 4.1), and save a model folder.

    Args:
        baseline: the CLIP that the run started from; becomes the mixed one.
        tensors: of a checkpoint.
        alpha: weight of the student, saved in the folder; 1: no mixing.
    """
    state = baseline.model.state_dict()
    trained = {label.removeprefix(_STUDENT): tensor for label, tensor in tensors.items() if label.startswith(_STUDENT)}
    before = {name: state[name] for name in trained}
    after = {name: tensor.to(before[name].device) for name, tensor in trained.items()}
    baseline.model.load_state_dict({**state, **(after if alpha == 1 else mix_states(after, before, alpha=alpha))})
    if _GATES in tensors:
        gates = open_gates(baseline.visual).flatten() if baseline.gates is None else baseline.gates.detach().cpu()
        mixed = mix_states({_GATES: tensors[_GATES]}, {_GATES: gates}, alpha=alpha)[_GATES]
        baseline.gates = mixed.unflatten(0, (3, -1))
    baseline.alpha = None if alpha == 1 else alpha  # whatever it was in the CLIP that the run started from
    save_clip(baseline, folder)


def best_tensors(checkpoints: Path, *, report: Callable[[str], object]) -> dict[str, Tensor]:
    """The tensors of the checkpoint with the lowest held-out loss.

    Raises:
        InputError: it is damaged, or no checkpoint has a finite held-out loss.
    """
    path = find_best(checkpoints)
    if path is None:
        raise InputError(f"--product best: no checkpoint in {checkpoints} has a finite held-out loss; use last.")
    best = load_checkpoint(path)
    report(f"the product has the weights of step {best.step}")
    return best.tensors
