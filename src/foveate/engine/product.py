"""The product of a run: the CLIP it started from, with what was trained mixed in (Sec. 4.1)."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from foveate.clip.dense import open_gates
from foveate.clip.io.states import mix_states
from foveate.clip.io.weights import save_clip
from foveate.clip.model import Clip
from foveate.engine.checkpoint import find_best, load_checkpoint
from foveate.errors import InputError

_OF_STUDENT = "parameter/student.model."
_GATES = "parameter/student._gates"


def write_product(original: Clip, tensors: dict[str, Tensor], folder: Path, *, alpha: float) -> None:
    """Mix what was trained with what it was before (Sec. 4.1), and save it as a model folder.

    Args:
        original: the CLIP as it was; becomes the mixed one.
        tensors: of a checkpoint.
        folder: OUT/model.
        alpha: share of the student, which the folder remembers; 1 saves it as it is.
    """
    state = original.model.state_dict()
    trained = {label.removeprefix(_OF_STUDENT): one for label, one in tensors.items() if label.startswith(_OF_STUDENT)}
    before = {name: state[name] for name in trained}
    after = {name: tensor.to(before[name].device) for name, tensor in trained.items()}
    original.model.load_state_dict({**state, **(after if alpha == 1 else mix_states(after, before, alpha=alpha))})
    if _GATES in tensors:
        before = open_gates(original.visual).flatten() if original.gates is None else original.gates.detach().cpu()
        mixed = mix_states({_GATES: tensors[_GATES]}, {_GATES: before}, alpha=alpha)[_GATES]
        original.gates = mixed.unflatten(0, (3, -1))
    original.alpha = None if alpha == 1 else alpha  # whatever the CLIP it started from was
    save_clip(original, folder)


def best_tensors(checkpoints: Path, *, tell: Callable[[str], object]) -> dict[str, Tensor]:
    """What the checkpoint with the lowest held-out loss holds.

    Args:
        checkpoints: folder of the run's.
        tell: hears of which step it is.

    Raises:
        InputError: it is damaged, or no checkpoint has a finite held-out loss.
    """
    path = find_best(checkpoints)
    if path is None:
        raise InputError(f"--product best: no checkpoint in {checkpoints} has a finite held-out loss; use last.")
    best = load_checkpoint(path)
    tell(f"the product is that of step {best.step}")
    return best.tensors
