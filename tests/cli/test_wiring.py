"""Every flag of every command reaches the call that does the work: with another value the recorded calls are others.

The commands and their flags come from the table of commands: one without an entry in `wiring.py` fails. Nothing is
trained or measured; the functions that would do it are replaced by recorders.
"""

import contextlib
import io
import json
import shlex
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import pytest
from PIL import Image
from recording import ReachedError, Recording
from wiring import CASES, UNRECORDED, To

from foveate.cli.commands import all_commands, find_command
from foveate.cli.main import parse
from foveate.data.world.write import WorldSize, write_world

FLAGS = {command.words: [field.name for field in fields(command.load_config())] for command in all_commands()}
CHANGES = [
    pytest.param(words, name, id=f"{words} {name}")
    for words, names in FLAGS.items()
    for name in names
    if words in CASES and (words, name) not in UNRECORDED
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the words of a command may name: a world, and files and folders of every kind that a flag takes."""
    root = tmp_path_factory.mktemp("files")
    world = root / "world"
    write_world(world, WorldSize(train=4, val=3, test=2, pairs=0, seed=0), processes=1)
    annotations = world / "annotations"
    (root / "other").symlink_to(world)
    for folder in ("images", "more"):
        (root / folder).mkdir()
        Image.new("RGB", (32, 24)).save(root / folder / f"{folder}.png")
    (root / "names.txt").write_text("dog\ncat\n")
    (root / "boxes.json").write_text(json.dumps({path.name: [[1, 1, 40, 40]] for path in world.rglob("*.jpg")}))
    splits = json.loads((annotations / "splits.json").read_text())
    moved = {"base": splits["base"][1:], "novel": [*splits["novel"], splits["base"][0]]}
    (root / "novel.json").write_text(json.dumps(moved))
    classes = json.loads((annotations / "panoptic_val2017.json").read_text())["categories"]
    (root / "labels.txt").write_text("".join(f"{one['id']}:{one['name']},thing {one['id']}\n" for one in classes))
    return {
        "novel": str(root / "novel.json"),
        "labels": str(root / "labels.txt"),
        "maps": str(root / "images"),
        "ids": str(root / "names.txt"),
        "encoder": str(root / "images"),
        "world": str(world),
        "other": str(root / "other"),
        "instances": str(shutil.copy(annotations / "instances_train2017.json", root / "instances.json")),
        "captions": str(shutil.copy(annotations / "captions_train2017.json", root / "captions.json")),
        "images": str(root / "images"),
        "more": str(root / "more"),
        "names": str(root / "names.txt"),
        "boxes": str(root / "boxes.json"),
    }


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

    yield remembered


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
    change = To(entry) if isinstance(entry, str) else entry
    base = f"{CASES[words].words if change.base is None else change.base} {change.given}"
    before = record(words, base)
    after = record(words, change.instead or f"{base} {change.words}")
    changed = {call for call in {*before, *after} if before.get(call) != after.get(call)}
    assert changed, f"--{name} reaches none of {sorted(before)}"
    assert {*change.reaches.split()} <= changed, f"--{name} reaches {sorted(changed)} alone"
