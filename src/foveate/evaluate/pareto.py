"""What dense gain costs in global ability: accuracy along the mix of student and teacher weights, without retraining.

CLIPSelf publishes alpha * student + (1 - alpha) * teacher (Sec. 4.1; 0.7 for B/16, 0.95 for L/14). Every alpha is one
product; those that no other beats in both dense and global accuracy are the Pareto front, over all models given.
Deliberately absent: choosing an alpha, and training with another one.
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
from foveate.evaluate.labelled_images import LabelledImages
from foveate.evaluate.regions import evaluate_regions
from foveate.evaluate.zero_shot import View, evaluate_global


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
    """Measure dense and global accuracy of every student at every alpha (Sec. 4.1); at 0, the teacher, once for all.

    Args:
        students: unmixed models by name; their weights and gates are as before when this returns or raises.
        teacher: the CLIP they were distilled from.
        dataset: images with panoptic annotations, for the dense map.
        labelled: what is classified by image embeddings.
        captioned: what is retrieved by them; None: nothing.
        alphas: weights of the student, each in [0, 1].
        size: side of the padded square input [pixels].
        head: how the last block makes dense tokens.
        view: of whole images, see `evaluate_global`.
        templates: what class names are written into.
        text_cache: folder where text embeddings are cached.
        loading: how images are read and batched.

    Returns:
        {"points": [{"model", "alpha", "boxes", "things", "stuff": dense top-1 mAcc, "classification": top-1 mean over
        classes, "overall": top-1 over all, "retrieval": R@1 averaged over both ways or None, "front": whether no other
        point is as good in boxes and classification and better in one}], "size", "head", "view", "templates",
        "images", "bad"}; percent, None where there is nothing of a kind.

    Raises:
        InputError: no student or alpha, an alpha outside [0, 1] or given twice, a student of another architecture, or
            no thing to measure by.
    """
    if not students:
        raise InputError("--model: need at least one distilled model; got none.")
    if not alphas or len(set(alphas)) < len(alphas) or not all(0 <= alpha <= 1 for alpha in alphas):
        raise InputError(f"--alpha: need different numbers in [0, 1], the student's weight; got {alphas}.")
    before = teacher.model.state_dict()
    for name, student in students.items():
        check_mixable(name, student, before)
    points, summary = [], {}
    baselines: dict[tuple, dict] = {}  # the points at alpha 0: the teacher's weights, under each student's settings
    for name, student in students.items():
        after = {key: value.clone() for key, value in student.model.state_dict().items()}
        gates = student.gates
        try:
            for alpha in alphas:
                settings = (student.windows, student.pad)
                if alpha == 0 and settings in baselines:
                    points.append({**baselines[settings], "model": name})
                    continue
                student.model.load_state_dict(mix_states(after, before, alpha=alpha))
                student.gates = _mix_gates(student, gates, teacher.gates, alpha=alpha)
                title = f"{name}, alpha {alpha:g}"  # for the progress bars
                dense = evaluate_regions(
                    student, _retitled(dataset, title), sizes=[size], crops=False, head=head,
                    templates=templates, text_cache=text_cache, loading=loading,
                )  # fmt: skip
                whole = evaluate_global(
                    {name: student},
                    labelled=replace(labelled, dataset=_retitled(labelled.dataset, title)),
                    captioned=None if captioned is None else _retitled(captioned, title),
                    view=view, templates=templates, text_cache=text_cache, loading=loading,
                )  # fmt: skip
                points.append(_point(name, alpha, dense["dense"][size], whole[name]))
                summary = {"images": dense["images"], "bad": dense["bad"]}
                if alpha == 0:
                    baselines[settings] = points[-1]
        finally:
            student.model.load_state_dict(after)
            student.gates = None if gates is None else gates.unflatten(0, (3, -1))
    settings = {"size": size, "head": head, "view": view, "templates": templates}
    return {"points": mark_front(points), **settings, **summary}


def _retitled(dataset: Dataset, title: str) -> Dataset:
    return replace(dataset, name=f"{dataset.name}: {title}")


def _mix_gates(
    student: Clip, gates: Float[Tensor, " G"] | None, before: Float[Tensor, " G"] | None, *, alpha: float
) -> Float[Tensor, "3 H"] | None:
    """The gates of a product, as `foveate.engine.product` mixes them: where one model has none, its gates are open."""
    if gates is None and before is None:
        return None
    opened = open_gates(student.visual).flatten()  # (G,)
    after, before = (opened if values is None else values.detach().cpu() for values in (gates, before))
    return mix_states({"gates": after}, {"gates": before}, alpha=alpha)["gates"].unflatten(0, (3, -1))


def check_mixable(name: str, student: Clip, teacher: dict[str, Tensor]) -> None:
    """Refuse a student that is not of the teacher's architecture, before anything is measured."""
    shapes, expected = (
        {key: value.shape for key, value in state.items()} for state in (student.model.state_dict(), teacher)
    )
    if shapes != expected:
        raise InputError(
            f"--model {name}: need the architecture of --reference to be mixed with it; its weights have other names "
            "or shapes. Name the CLIP it was distilled from."
        )


def check_unmixed(model: Path) -> None:
    """Refuse a product that was mixed already, by its own configuration or by its run's config.json (RUN/model beside
    RUN/config.json; older products do not record it themselves).

    Raises:
        InputError: its alpha is below 1.
    """
    if not model.is_dir():
        return
    product, run = model / CONFIG_FILE, model.resolve().parent / "config.json"
    for path, alpha in ((product, _read_entry(product, "foveate", "alpha")), (run, _read_entry(run, "alpha"))):
        if isinstance(alpha, int | float) and alpha < 1:
            raise InputError(
                f"--model {model}: need the student itself; {path} says that this product is mixed already, with alpha "
                f"{alpha}. Distil with --alpha 1 to another folder."
            )


def _read_entry(path: Path, *keys: str) -> Any:
    """An entry of a JSON file; None where it has none, or is no such file."""
    try:
        content = json.loads(path.read_bytes())
        for key in keys:
            content = content[key]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return content


def _point(name: str, alpha: float, dense: dict, whole: dict) -> dict:
    """One product's accuracies; both axes of the front must be there."""
    tops = {kind: dense[kind]["top1"] for kind in ("boxes", "things", "stuff")}
    classification, retrieval = whole["classification"], whole["retrieval"]
    if tops["boxes"] is None or classification["count"] == 0:
        raise InputError("pareto: need things to measure the dense map by, and images or things to classify.")
    ways = None if retrieval is None else [retrieval[way]["r1"] for way in ("image_to_text", "text_to_image")]
    return {
        "model": name,
        "alpha": alpha,
        **tops,
        "classification": classification["mean"]["top1"],
        "overall": classification["overall"]["top1"],
        "retrieval": None if ways is None or None in ways else sum(ways) / 2,
    }


def mark_front(points: list[dict]) -> list[dict]:
    """Add "front" to each point: no other is at least as good in "boxes" and "classification" and better in one."""
    axes = [(point["boxes"], point["classification"]) for point in points]
    return [
        {**point, "front": not any(x >= dense and y >= whole and (x, y) != (dense, whole) for x, y in axes)}
        for point, (dense, whole) in zip(points, axes, strict=True)
    ]
