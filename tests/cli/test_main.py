"""The command line as users type it: help at once, mistakes explained, the demo from end to end."""

import json
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from foveate.cli.commands import COMMANDS, Command
from foveate.cli.help import GROUP_OF, GROUPS, LEFT, flags_of
from foveate.cli.main import main, parse

EACH = pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.words)


def test_help_imports_no_torch() -> None:
    code = (
        "import sys; from foveate.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as done: assert done.code == 0\n"
        "assert not {'torch', 'open_clip', 'torchvision', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 100
    for command in COMMANDS:  # one line each
        assert sum(f"  {command.words} " in line and line.endswith(command.summary) for line in lines) == 1


def test_a_group_is_listed_by_its_first_word(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["evaluate", "--help"])
    listed = capsys.readouterr().out
    assert done.value.code == 0 and listed.count("  evaluate ") == 8 and "show" not in listed
    with pytest.raises(SystemExit) as done:
        main(["show"])
    assert done.value.code == 2 and "show similarity" in capsys.readouterr().err


@EACH
def test_every_command_explains_every_flag_in_its_group(
    command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as done:
        main([*command.words.split(), "--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    example = f"  foveate {command.words} {command.example}"
    lines = text.splitlines()
    assert example in lines and "(default: None)" not in text
    assert max(len(line) for line in lines if line != example) <= 80
    lines = [*lines[lines.index(example) :], ""]
    for field in fields(command.load_config()):
        name = field.name.replace("_", "-")
        (place,) = (
            n for n, line in enumerate(lines) if re.match(rf"  (--{name}|{field.name.upper()})[ ,]", f"{line} ")
        )
        heading = next(line for line in reversed(lines[:place]) if line and not line.startswith(" "))
        assert heading == ("arguments:" if not lines[place].startswith("  --") else f"{GROUP_OF[field.name]}:")
        words = (lines[place][LEFT:] + lines[place + 1]).strip()
        assert words and not words.startswith("("), f"{name}: has no text"


def test_a_flag_is_in_one_group_and_every_group_has_flags_of_commands() -> None:
    listed = [name for names in GROUPS.values() for name in names.split()]
    assert len(listed) == len(set(listed))
    assert {*listed} <= {field.name for command in COMMANDS for field in fields(command.load_config())}


def test_flags_keep_their_number() -> None:
    """At most 131 names in all and 46 of distill: a new flag takes the place of another."""
    flags = {command.words: flags_of(command.load_config()) for command in COMMANDS}
    assert len(set().union(*flags.values())) <= 131 and len(flags["distill"]) <= 46


@EACH
def test_every_example_is_a_valid_command(command: Command) -> None:
    config = parse([*command.words.split(), *shlex.split(command.example)])
    assert type(config) is command.load_config() and callable(command.load_procedure())


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["distil"], "`foveate distill`"),
        (["evaluate", "regoins", "--data", "x"], "`foveate evaluate regions`"),
        (["segmnt", "images/"], "`foveate segment`"),
        (["frobnicate"], "`foveate --help`"),
        (["world", "w", "--trian", "3"], "--train"),
        (["evaluate", "regions", "--data", "x"], "--model"),
        (["distill", "--data", "x", "--out", "y", "--steps", "many"], "steps"),
    ],
)
def test_a_mistyped_flag_gets_a_hint(typed: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(typed)
    assert done.value.code == 2
    captured = capsys.readouterr()
    assert expected in captured.err + captured.out


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["world", "{tmp}/w", "--train", "-1"], "counts"),
        (["distill", "--data", "{tmp}/none", "--out", "{tmp}/run"], "none"),
        (["distill", "--data", "{tmp}", "--out", "{tmp}/run", "--layers", "0"], "--layers"),
        (["evaluate", "agreement", "--data", "{tmp}", "--model", "EVA02-B-61"], "EVA02-B-16"),
        (["evaluate", "regions", "--data", "{tmp}", "--model", "foveate-small"], "annotations"),
        (["pretrain", "--data", "{tmp}", "--out", "{tmp}/m"], "tar"),
        (["embed", "{tmp}/none.png", "--out", "{tmp}/f.safetensors"], "none.png"),
        (["embed", "{tmp}", "--out", "{tmp}/f.npz"], ".safetensors"),
        (["show", "kmeans", "--data", "{tmp}", "--model", "foveate-small", "--out", "{tmp}/a.gif"], "PNG"),
        (["show", "kmeans", "--data", "{tmp}", "--model", "x", "--out", "{tmp}/one.png/a.png"], "which is a file"),
        (["evaluate", "agreement", "--data", "{tmp}", "--model", "x", "--out", "{tmp}/one.png/a.json"], "--out"),
        (["evaluate", "agreement", "--data", "{tmp}", "--model", "x", "--device", "foo"], "--device"),
        (["evaluate", "agreement", "--data", "{tmp}", "--model", "x", "--device", "cuda:99"], "GPU 99"),
        (["world", "{tmp}/one.png"], "this is a file"),
        (["world", "{tmp}/one.png/w"], "one.png"),
        (["world", "{tmp}/damaged"], "damaged"),
    ],
)
def test_a_wrong_input_ends_with_a_message_and_no_traceback(
    typed: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    Image.new("RGB", (32, 32)).save(tmp_path / "one.png")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "world.json").write_text("{")
    with pytest.raises(SystemExit) as done:
        main([word.replace("{tmp}", str(tmp_path)) for word in typed])
    assert done.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("foveate: ") and expected in error and "Traceback" not in error


def test_the_demo_runs_from_end_to_end_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["demo", "--out", str(tmp_path / "demo"), "--train", "8", "--test", "6", "--steps", "2"]
    main(typed)
    assert "report.html" in capsys.readouterr().out
    result = json.loads((tmp_path / "demo" / "result.json").read_text())
    for row in ("crop", "before", "after", "student_crop"):
        for kind in ("boxes", "things", "stuff"):
            score = result["regions"][row][kind]
            assert score["count"] > 0 and 0 <= score["top1"] <= score["top5"] <= 100
    assert result["regions"]["before"]["boxes"]["count"] == result["regions"]["after"]["boxes"]["count"]
    assert set(result["input_sizes"]) == {"64", "128", "192"}
    assert {"before", "after"} == set(result["agreement"]) and 0 <= result["colour_only"]["top1"] <= 100
    assert result["device"] == "cpu" and result["seconds"] > 0
    page = (tmp_path / "demo" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "http" not in page.replace("http-equiv", "")
    main(typed)  # the same command: the world and the run are there already, the report is written again
    again = json.loads((tmp_path / "demo" / "result.json").read_text())
    assert again["regions"] == result["regions"]
    with pytest.raises(SystemExit):
        main([*typed, "--seed", "1"])
    assert "seed: stored 0, now 1" in capsys.readouterr().err
