"""Every flag of every command reaches the call that does the work: with another value the recorded calls are others.

The commands and their flags come from the table of commands: one without an entry in `wiring_*.py` fails. Nothing is
trained or measured; the functions that would do it are replaced by recorders.
"""

import contextlib
import gc
import io
import json
import shlex
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import wiring_evaluate
import wiring_files
import wiring_predict
import wiring_train
from PIL import Image
from recording import ReachedError, Recording
from wiring import Case, To

from foveate.cli.commands import COMMANDS, find_command
from foveate.cli.main import parse
from foveate.data.world.write import WorldSize, write_world

CASES: dict[str, Case] = {
    **wiring_train.CASES,
    **wiring_evaluate.CASES,
    **wiring_predict.CASES,
    **wiring_files.CASES,
}
FLAGS = {command.words: [field.name for field in fields(command.load_config())] for command in COMMANDS}
UNRECORDED = {
    (words, name): reason
    for words in CASES
    for name, reason in (
        ("out", "the JSON file that the finished measurement is written to" if words.startswith("evaluate ") else ""),
        ("overwrite", "existing files are checked before the command: see test_outputs.py"),
    )
    if reason and name in FLAGS[words]
}  # flags whose value changes no recorded call, by command and name, with the reason
CHANGES = [
    pytest.param(words, name, id=f"{words} {name}")
    for words, names in FLAGS.items()
    for name in names
    if (words, name) not in UNRECORDED
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the words of a command may name: a world, and files and folders of every kind that a flag takes."""
    root = tmp_path_factory.mktemp("files")
    world = root / "world"
    write_world(world, WorldSize(train=4, val=3, test=2, pairs=0, seed=0), processes=1)
    annotations = world / "annotations"
    (root / "other").symlink_to(world)
    for folder, colour in (("images", "red"), ("more", "blue")):
        (root / folder).mkdir()
        Image.new("RGB", (32, 24), colour).save(root / folder / f"{folder}.png")
    for folder in ("dog", "cat"):
        (root / "classes" / folder).mkdir(parents=True)
        Image.new("RGB", (32, 24)).save(root / "classes" / folder / "one.png")
    for kind in ("generator", "other_generator", "catseg"):
        put(root / kind / f"{kind.removeprefix('other_')}.json", {})
    splits = json.loads((annotations / "splits.json").read_text())
    train = json.loads((annotations / "instances_train2017.json").read_text())
    names = {one["id"]: one["name"] for one in train["categories"]}
    seen = next(name for one in train["annotations"] if (name := names[one["category_id"]]) in splits["base"])
    moved = {"base": [name for name in splits["base"] if name != seen], "novel": [*splits["novel"], seen]}
    panoptic = json.loads((annotations / "panoptic_val2017.json").read_text())
    labels = [f"{one['id']}:{one['name']},kind {one['id']}\n" for one in panoptic["categories"]]
    return {
        "world": str(world),
        "other": str(root / "other"),
        "images": str(root / "images"),
        "more": str(root / "more"),
        "maps": str(root / "images"),
        "classes": str(root / "classes"),
        "generator": str(root / "generator"),
        "catseg": str(root / "catseg"),
        "encoder": str(root / "images"),
        "published": str(put(root / "published/config.json", {"model_type": "mask2former"}).parent),
        "diffusion": str(put(root / "diffusion/model_index.json", {}).parent),
        "other_diffusion": str(put(root / "other_diffusion/model_index.json", {}).parent),
        "panoptic": str(annotations / "panoptic_train2017.json"),
        "instances": str(shutil.copy(annotations / "instances_train2017.json", root / "instances.json")),
        "captions": str(shutil.copy(annotations / "captions_train2017.json", root / "captions.json")),
        "names": str(put(root / "names.txt", "dog\ncat\n")),
        "ids": str(root / "names.txt"),
        "labels": str(put(root / "labels.txt", "".join(labels))),
        "novel": str(put(root / "novel.json", moved)),
        "folder_names": str(put(root / "folder_names.json", {"dog": "hound", "cat": "puss"})),
        "results": str(put(root / "results.json", [])),
        "boxes": str(put(root / "boxes.json", {path.name: [[1, 1, 40, 40]] for path in world.rglob("*.jpg")})),
        "image_boxes": str(put(root / "image_boxes.json", {"images.png": [[1, 1, 20, 20]]})),
    }


def put(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


Calls = dict[str, list[Any]]


@pytest.fixture(scope="module")
def record(files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], Calls]]:
    """Run a command with some flags, and return what was recorded, by the name of what was called."""
    root, known = tmp_path_factory.mktemp("runs"), {}

    def run(command: str, flags: str) -> Calls:
        out = root / f"{len(list(root.iterdir())):04d}"
        out.mkdir()
        words = [*command.split(), *shlex.split(flags.format(**files, out=out))]
        config = parse(words)
        recording = Recording(CASES[command].stands, opaque=(type(config),), root=out)
        printed = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(ReachedError):
            recording.put(patch)
            patch.setattr(tempfile, "tempdir", str(out))
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
                find_command(words)[0].load_procedure()(config)
        if CASES[command].prints:
            recording.note("print", printed.getvalue())
        calls: Calls = defaultdict(list)
        for name, values in recording.calls:
            calls[name.rpartition(":")[2]].append(values)
        return calls

    def remembered(command: str, flags: str) -> Calls:
        if (command, flags) not in known:
            known[command, flags] = run(command, flags)
        return known[command, flags]

    gc.collect()
    gc.freeze()  # all that was imported, which a collection would walk through again and again
    yield remembered
    gc.unfreeze()


def test_every_command_and_every_flag_has_an_entry() -> None:
    listed = {words: {*case.fields} for words, case in CASES.items()}
    for words, name in UNRECORDED:
        assert name not in listed[words]
        listed[words].add(name)
    assert listed == {words: {*names} for words, names in FLAGS.items()}


@pytest.mark.parametrize("words", CASES)
def test_the_same_command_makes_the_same_calls(words: str, record: Callable[[str, str], Calls]) -> None:
    calls = record(words, CASES[words].words)
    assert calls and calls == record(words, f"{CASES[words].words} ")


@pytest.mark.parametrize(("words", "name"), CHANGES)
def test_another_value_changes_the_calls(words: str, name: str, record: Callable[[str, str], Calls]) -> None:
    entry = CASES[words].fields[name]
    for change in entry if isinstance(entry, tuple) else (entry,):
        check_change(words, To(change) if isinstance(change, str) else change, record)


def check_change(words: str, change: To, record: Callable[[str, str], Calls]) -> None:
    """The calls of a command with another value of a flag are others, where they must be."""
    base = f"{CASES[words].words if change.base is None else change.base} {change.given}"
    before = record(words, base)
    after = record(words, change.instead or f"{base} {change.words}")
    changed = {call for call in {*before, *after} if before.get(call) != after.get(call)}
    assert changed, f"{words} {change.words}: reaches none of {sorted(before)}"
    for call in change.reaches.split():
        name = call.removesuffix("*")
        assert name in changed, f"{words} {change.words}: reaches {sorted(changed)} alone, not {name}"
        if call.endswith("*"):
            alike = [one for one, other in zip(before[name], after[name], strict=True) if one == other]
            assert not alike, f"{words} {change.words}: {len(alike)} of {len(after[name])} calls of {name} are alike"
