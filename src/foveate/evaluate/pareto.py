"""Dense against global accuracy along the mix of student and teacher weights, without retraining.

CLIPSelf publishes alpha * student + (1 - alpha) * teacher (Sec. 4.1; 0.7 for B/16, 0.95 for L/14). Every alpha is one
product; those that no other one beats in both dense and global accuracy are the Pareto front, over all models.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from foveate.clip.dense import open_gates
from foveate.clip.io.describe import CONFIG_FILE
from foveate.clip.io.states import mix_states
from foveate.clip.model import Clip
from foveate.clip.names import Head, TemplateName
from foveate.data.batches import LOADING, Loading
from foveate.data.records import Dataset
from foveate.errors import InputError
from foveate.evaluate.flags import View
from foveate.evaluate.labelled_images import LabelledImages
from foveate.evaluate.regions import evaluate_regions
from foveate.evaluate.zero_shot import evaluate_global


def evaluate_pareto(
    students: dict[str, Clip],
    teacher: Clip,
    dataset: Dataset,
    *,
    labelled: LabelledImages,
    captioned: Dataset | None,
    alphas: list[float],
    size: int,
    head: Head = "value",
    view: View = "centre",
    templates: TemplateName | tuple[str, ...] = "vild",
    text_cache: Path | None = None,
    loading: Loading = LOADING,
) -> dict:
    """Measure dense and global accuracy of every student at every alpha (Sec. 4.1); alpha 0, the teacher, only once.

    Args:
        students: unmixed models by name; their weights and gates are restored when this returns or raises.
        labelled: what is classified by image embeddings.
        captioned: images for retrieval; None: no retrieval.
        alphas: weights of the student, each in [0, 1].
        size: side of the padded square input [pixels].

    Returns:
        {"points": [{"model", "alpha", "boxes", "things", "stuff": dense top-1 mAcc, "classification": top-1 mean over
        classes, "overall": top-1 over all, "retrieval": R@1 averaged over both directions or None, "front": see
        `mark_front`}], "size", "head", "view", "templates", "images", "bad"}; percent, None without such data.

    Raises:
        InputError: no student or alpha, an alpha outside [0, 1] or twice, a student of another architecture, or no
            things to measure by.
    """
    if not students:
        raise InputError("--model: need at least one distilled model; got none.")
    if not alphas or len(set(alphas)) < len(alphas) or not all(0 <= alpha <= 1 for alpha in alphas):
        raise InputError(f"--alpha: need different numbers in [0, 1], the student's weight; got {alphas}.")
    teacher_state = teacher.model.state_dict()
    for name, student in students.items():
        check_mixable(name, student, teacher_state)
    points, summary = [], {}
    baselines: dict[tuple, dict] = {}  # points at alpha 0: the teacher's weights under each student's settings
    for name, student in students.items():
        student_state = {key: value.clone() for key, value in student.model.state_dict().items()}
        gates = student.gates
        try:
            for alpha in alphas:
                settings = (student.windows, student.pad)
                if alpha == 0 and settings in baselines:
                    points.append({**baselines[settings], "model": name})
                    continue
                student.model.load_state_dict(mix_states(student_state, teacher_state, alpha=alpha))
                student.gates = _mix_gates(student, gates, teacher.gates, alpha=alpha)
                title = f"{name}, alpha {alpha:g}"  # for the progress bars
                dense = evaluate_regions(
                    student, _retitled(dataset, title), sizes=[size], crops=False, head=head,
                    templates=templates, text_cache=text_cache, loading=loading,
                )  # fmt: skip
                zero_shot = evaluate_global(
                    {name: student},
                    labelled=replace(labelled, dataset=_retitled(labelled.dataset, title)),
                    captioned=None if captioned is None else _retitled(captioned, title),
                    view=view, templates=templates, text_cache=text_cache, loading=loading,
                )  # fmt: skip
                points.append(_point(name, alpha, dense["dense"][size], zero_shot[name]))
                summary = {"images": dense["images"], "bad": dense["bad"]}
                if alpha == 0:
                    baselines[settings] = points[-1]
        finally:
            student.model.load_state_dict(student_state)
            student.gates = None if gates is None else gates.unflatten(0, (3, -1))
    settings = {"size": size, "head": head, "view": view, "templates": templates}
    return {"points": mark_front(points), **settings, **summary}


def _retitled(dataset: Dataset, title: str) -> Dataset:
    return replace(dataset, name=f"{dataset.name}: {title}")


def _mix_gates(
    student: Clip, gates: Float[Tensor, " G"] | None, teacher_gates: Float[Tensor, " G"] | None, *, alpha: float
) -> Float[Tensor, "3 H"] | None:
    """The gates of a product, as `foveate.engine.product` mixes them: a model without gates has open ones."""
    if gates is None and teacher_gates is None:
        return None
    opened = open_gates(student.visual).flatten()  # (G,)
    student_gates, teacher_gates = (
        opened if values is None else values.detach().cpu() for values in (gates, teacher_gates)
    )
    return mix_states({"gates": student_gates}, {"gates": teacher_gates}, alpha=alpha)["gates"].unflatten(0, (3, -1))


def check_mixable(name: str, student: Clip, teacher: dict[str, Tensor]) -> None:
    """Refuse a student of another architecture than the teacher's, before anything is measured."""
    shapes, expected = (
        {key: value.shape for key, value in state.items()} for state in (student.model.state_dict(), teacher)
    )
    if shapes != expected:
        raise InputError(
            f"--model {name}: need the architecture of --reference to be mixed with it; its weights have other names "
            "or shapes. Name the CLIP it was distilled from."
        )


def check_unmixed(model: Path) -> None:
    """Refuse a product with an alpha below 1 in its configuration, or in RUN/config.json, as older ones record it."""
    if not model.is_dir():
        return
    product, run = model / CONFIG_FILE, model.resolve().parent / "config.json"
    for path, alpha in ((product, _read_entry(product, "foveate", "alpha")), (run, _read_entry(run, "alpha"))):
        if isinstance(alpha, int | float) and alpha < 1:
            raise InputError(
                f"--model {model}: need the student itself; {path} records that this model is already mixed, with "
                f"alpha {alpha}. Distil with --alpha 1 to another folder."
            )


def _read_entry(path: Path, *keys: str) -> Any:
    """An entry of a JSON file; None if it or the file does not exist."""
    try:
        content = json.loads(path.read_bytes())
        for key in keys:
            content = content[key]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return content


def _point(name: str, alpha: float, dense: dict, zero_shot: dict) -> dict:
    """One product's accuracies; both axes of the front are required."""
    tops = {kind: dense[kind]["top1"] for kind in ("boxes", "things", "stuff")}
    classification, retrieval = zero_shot["classification"], zero_shot["retrieval"]
    if tops["boxes"] is None or classification["count"] == 0:
        raise InputError("pareto: need things to measure the dense map by, and images or things to classify.")
    recalls = [] if retrieval is None else [retrieval[way]["r1"] for way in ("image_to_text", "text_to_image")]
    return {
        "model": name,
        "alpha": alpha,
        **tops,
        "classification": classification["mean"]["top1"],
        "overall": classification["overall"]["top1"],
        "retrieval": sum(recalls) / 2 if recalls and None not in recalls else None,
    }


def mark_front(points: list[dict]) -> list[dict]:
    """Add "front" to each point: no other is at least as good in "boxes" and "classification" and better in one."""
    axes = [(point["boxes"], point["classification"]) for point in points]
    return [
        {**point, "front": not any(x >= dense and y >= whole and (x, y) != (dense, whole) for x, y in axes)}
        for point, (dense, whole) in zip(points, axes, strict=True)
    ]
