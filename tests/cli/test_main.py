"""The command line as users type it: help at once, mistakes explained, the demo from end to end."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from foveate.cli.commands import Command, all_commands
from foveate.cli.main import main, parse

COMMANDS = [pytest.param(command, id=command.words) for command in all_commands()]


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
    for command in all_commands():  # one line each
        assert sum(f"  {command.words} " in line and line.endswith(command.summary) for line in lines) == 1


def test_a_group_is_listed_by_its_first_word(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["evaluate", "--help"])
    listed = capsys.readouterr().out
    assert done.value.code == 0 and listed.count("  evaluate ") == 8 and "show" not in listed
    with pytest.raises(SystemExit) as done:
        main(["show"])
    assert done.value.code == 2 and "show similarity" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_every_flag(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main([*command.words.split(), "--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert f"  foveate {command.words} {command.example}" in text and "(default: None)" not in text
    flags = re.findall(r"--[a-z][a-z-]+", text)
    assert flags
    # tyro writes "(required)" or "(default: ...)" behind the help; a flag without help would show nothing before it
    assert not re.search(r"│\s+--[a-z-]+ \S+\s+\((required|default)", text)


@pytest.mark.parametrize("command", COMMANDS)
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
        (["pretrain", "--pairs", "{tmp}", "--out", "{tmp}/m"], "tar"),
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
    typed = ["demo", "--out", str(tmp_path / "demo"), "--train", "8", "--test", "6", "--steps", "2", "--agreement", "3"]
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
    assert "seed: there 0, here 1" in capsys.readouterr().err
