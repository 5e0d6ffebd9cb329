"""Weights as plain dictionaries of tensors: read from a file without running it, mixed, put into a model key by key.

Nothing read from a file is imported or executed: safetensors, or torch's `weights_only` unpickler. Absent: TorchScript
archives (OpenAI's own files) and pickles of whole modules, both refused with the way out.
"""

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from saccade.types import InputError

_EVA_NAMES = (
    (".attn.q_bias", ".attn.q_proj.bias"),
    (".attn.v_bias", ".attn.v_proj.bias"),
    (".attn.inner_attn_ln.", ".attn.norm."),
    (".mlp.w1.", ".mlp.fc1_g."),
    (".mlp.w2.", ".mlp.fc1_x."),
    (".mlp.w3.", ".mlp.fc2."),
    (".mlp.ffn_ln.", ".mlp.norm."),
)
_NESTED = ("state_dict", "model", "module")  # where training scripts put the weights inside their checkpoint


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a weights file on the CPU.

    Args:
        path: a .safetensors file, or one written by `torch.save` (.pt, .pth, .bin) that holds tensors only, bare or
            under "state_dict", "model" or "module".

    Returns:
        Tensors by name; the "module." that data-parallel training writes before each name is taken off.

    Raises:
        InputError: missing, empty, damaged, or holding anything but tensors (which is not run).
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: need a weights file (.safetensors, .pt, .pth or .bin); there is none here.")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: need a weights file; this one is empty. Download or copy it again.")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _unpickle(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error}). Download or copy it again.") from error
    for key in _NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        got = "one without entries" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise InputError(f"{path}: need a dictionary of tensors; got {got}.")
    strange = [key for key, value in content.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if strange:
        raise InputError(f"{path}: need tensors only; {len(strange)} entries are something else, first {strange[0]!r}.")
    prefix = "module." if all(key.startswith("module.") for key in content) else ""
    return {key.removeprefix(prefix): value for key, value in content.items()}


def mix_states(student: dict[str, Tensor], teacher: dict[str, Tensor], *, alpha: float) -> dict[str, Tensor]:
    """Mix two sets of weights, alpha * student + (1 - alpha) * teacher (the product of CLIPSelf; Sec. 3.2).

    Args:
        student: weights after training.
        teacher: weights before it, with the same names.
        alpha: 1 keeps the student, 0 the teacher; 0.7 for B/16 and 0.95 for L/14 in the paper.

    Returns:
        New tensors, computed in float32 and kept in the student's type; what is not floating point is the student's.

    Raises:
        InputError: alpha outside [0, 1], or the two do not have the same names and shapes.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha: must be in [0, 1], the student's share; got {alpha}.")
    problems = _differences(teacher, student)
    if problems:
        raise InputError(f"student and teacher must be the same architecture to be mixed: {problems}")
    mixed = {}
    for key, ours in student.items():
        theirs = teacher[key].to(ours.device)
        blend = torch.lerp(theirs.float(), ours.float(), alpha).to(ours.dtype) if ours.is_floating_point() else ours
        mixed[key] = blend.clone()
    return mixed


def rename_eva(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give EVA-CLIP's own weights, and those published with CLIPSelf, the names open_clip's towers have.

    Args:
        state: of any CLIP; without EVA's own names it is returned as it is.

    Returns:
        The same tensors; stored rotary tables are left out, since they are recomputed.
    """
    if "visual.blocks.0.attn.q_proj.weight" not in state:
        return state
    renamed = {}
    for key, value in state.items():
        if key.startswith("visual."):
            if ".rope." in key:
                continue
            key = f"visual.trunk.{key.removeprefix('visual.')}"
            for theirs, ours in _EVA_NAMES:
                key = key.replace(theirs, ours)
        renamed[key] = value
    return renamed


def put_state(model: nn.Module, state: dict[str, Tensor], *, source: str, name: str) -> None:
    """Copy weights into a model, all of them or none.

    Args:
        model: receives the values, in its own types.
        state: must have exactly the model's names and shapes, and finite numbers.
        source: the file, for the message.
        name: the model's, for the message.

    Raises:
        InputError: missing, extra or mis-shaped entries (counts and the first few), or numbers that are not finite.
    """
    problems = _differences(model.state_dict(), state)
    if problems:
        raise InputError(
            f"{source}: these are not weights of {name}: {problems} Give the architecture the file was made with."
        )
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise InputError(
            f"{source}: {len(broken)} of {len(state)} tensors hold NaN or infinity, first {broken[0]}. "
            "Use an earlier checkpoint."
        )
    model.load_state_dict(state)


def _unpickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, IndexError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: holds something else than tensors, or is damaged; it was not run ({first}). "
            "If it is OpenAI's own TorchScript file, use converted weights, such as open_clip's tag 'openai'."
        ) from error


def _differences(wanted: dict[str, Tensor], got: dict[str, Tensor]) -> str:
    """Describe missing, extra and mis-shaped entries; empty where there are none."""
    missing = [key for key in wanted if key not in got]
    extra = [key for key in got if key not in wanted]
    shaped = [
        f"{key} is {tuple(got[key].shape)} instead of {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in got and got[key].shape != value.shape
    ]
    found = [("missing", missing), ("extra", extra), ("of another shape", shaped)]
    words = [f"{len(items)} {kind} ({_first(items)})" for kind, items in found if items]
    return "; ".join(words) + "." if words else ""


def _first(items: list[str], count: int = 3) -> str:
    return ", ".join(items[:count]) + (", ..." if len(items) > count else "")
