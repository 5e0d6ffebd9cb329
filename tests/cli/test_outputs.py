"""No command replaces its inputs, or files that it did not write; two commands do not write to one place."""

import os
import shlex
from pathlib import Path

import pytest
from PIL import Image

from foveate.cli.commands import COMMANDS, Command
from foveate.cli.main import main, parse
from foveate.errors import InputError
from foveate.io.outputs import FileFlags, check_command, has_mark
from foveate.io.store import RUN_NAMES, claim_folder, hold_folder, hold_target
from foveate.train.flags import RunFlags

MEASURE = "--data {d}/images --model {d}/model --out {d}/model/config.json"
DRAW = "--data {d}/images --model foveate-small --out {d}/images/b.png"
OVER_INPUTS = {
    "segment": ("{d}/images --model foveate-small --vocab dog,cat --out {d}/images",
                "{d}/images/photo.jpg --model foveate-small --vocab dog,cat --out {d}/images",
                "{d}/images/b.png --model foveate-small --vocab dog,cat --out {d}/link",
                "{d}/images --model foveate-small --vocab dog,cat --out {d}/images/segmented"),
    "detect": ("{d}/images --model {d}/model --vocab dog --out {d}/images",
               "{d}/images/photo.jpg --model {d}/model --vocab dog --out {d}/images",
               "{d}/run/photo.jpg --model {d}/model --vocab dog --out {d}/images"),
    "embed": ("{d}/images --boxes {d}/ann.json --out {d}/ann.safetensors",
              "{d}/images --pretrained {d}/w.safetensors --out {d}/w.safetensors"),
    "evaluate regions": (MEASURE,),
    "evaluate agreement": (f"{MEASURE} --overwrite",),
    "evaluate retrieval": ("--data {d}/images --model x --out {d}/images/b.png",),
    "evaluate global": ("--data {d}/images --model x --labels {d}/ann.json --out {d}/ann.json",),
    "evaluate pareto": ("--data {d}/images --model a={d}/model --plot {d}/images/b.png",
                        "--data {d}/images --model a={d}/ann.json --plot {d}/ann.json"),
    "evaluate detection": ("--data {d}/images --annotations {d}/ann.json --model {d}/model --out {d}/ann.json",
                           "--data {d}/images --annotations {d}/ann.json --model {d}/model --results {d}/ann.json",
                           "--data {d}/images --annotations {d}/ann.json --model {d}/model --out {d}/symbolic.json",
                           "--from-results {d}/ann.json --out {d}/ann.json --overwrite"),
    "evaluate semantic": ("--data {d}/images --model x:{d}/ann.json --out {d}/ann.json",),
    "evaluate panoptic": ("--data {d}/images --from-results {d}/run --out {d}/run/report.html --overwrite",),
    "show kmeans": (DRAW, f"{DRAW} --overwrite", "--data {d}/images/b.png --model x --out {d}/images/b.png"),
    "show similarity": (f"{DRAW} --vocab dog",
                        "--data {d}/images --model x --vocab dog --out {d}/images/new.png"),
    "show sizes": ("a={d}/images/b.png --out {d}/images/b.png",),
    "export": ("--model {d}/model --out {d}/model", "--model x:{d}/w.pt2 --format torch --out {d}/w.pt2"),
    "convert": ("{d}/model {d}/model", "{d}/ann.json {d}/ann.json"),
    "world": ("{d}/images", "{d}/ann.json"),
    "convert-maps ade-full": ("{d}/images --out {d}/images",),
    "convert-maps context": ("{d}/mats --labels {d}/maps/labels.txt --out {d}/maps",),
    "demo": ("--out {d}/run",),
    "reproduce": ("tab1 --out {d}/new --page {d}/notes.md", "tabA1 --out {d}/new --page {d}/page.md",
        "tab1 --out {d}/run --page {d}/new/p.md"),
}  # fmt: skip
"""Commands whose outputs are their inputs, or files of something else."""


CHECKED = {command.words: command for command in COMMANDS if issubclass(command.load_config(), FileFlags)}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder of images and files of every kind."""
    for name in ("images/b.png", "images/photo.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (32, 24)).save(tmp_path / name)
    mine = (
        "ann.json",
        "w.safetensors",
        "w.pt2",
        "model/config.json",
        "model/dense.onnx",
        "mats/1.mat",
        "run/report.html",
    )
    written = {"maps/labels.txt": "1: dog\n", "results/tabA1-clipself.json": "{}", "notes.md": "", "run/names.txt": ""}
    for name, content in {**dict.fromkeys(mine, "mine"), **written}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "symbolic.json").symlink_to("ann.json")
    (tmp_path / "link").symlink_to("images")
    os.link(tmp_path / "images" / "photo.jpg", tmp_path / "run" / "photo.jpg")
    return tmp_path


def content_of(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_every_command_that_writes_has_a_case() -> None:
    claims = {command.words for command in COMMANDS if issubclass(command.load_config(), RunFlags)}
    assert {command.words for command in COMMANDS} == {*OVER_INPUTS} | claims | {"recipes"}


@pytest.mark.parametrize(("words", "line"), [(words, line) for words, lines in OVER_INPUTS.items() for line in lines])
def test_no_input_is_replaced(words: str, line: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content_of(files)
    with pytest.raises(SystemExit) as done:
        main([*words.split(), *shlex.split(line.format(d=files))])
    error = capsys.readouterr().err
    assert done.value.code == 2 and error.startswith("foveate: ") and error.count("\n") == 1, error
    exact, general = ("need a file that is not an input", "need a folder outside"), (": need", ": must")
    refusals = exact if words in CHECKED else general
    assert any(refusal in error for refusal in refusals), error
    assert content_of(files) == before


ELSEWHERE = {
    "segment": "{d}/images --model x --out {d}/new",
    "detect": "{d}/images --model x --out {d}/new",
    "embed": "{d}/images --out {d}/new.safetensors",
    "show similarity": "--data {d}/images --model x --vocab dog --out {d}/new.png",
    "show sizes": "a=b.json --out {d}/new.png",
    "export": "--model x --out {d}/new.onnx",
    "evaluate detection": "--out {d}/new.json --results {d}/other.json",
    "evaluate pareto": "--data {d}/images --model x --out {d}/new.json --plot {d}/new.png",
}
MARKS = {".json": '{\n  "made_by": "WORDS",', ".png": "\x89PNG tEXtmade_by\0WORDSCRC"}  # of .onnx it is in the .json
RESULTS = '[\n{"image_id": 1'


@pytest.mark.parametrize("command", CHECKED.values(), ids=lambda command: command.words)
def test_only_own_files_are_replaced(command: Command, files: Path) -> None:
    line = ELSEWHERE.get(command.words, "--data {d}/images --model x --out {d}/new.png")
    typed = [*command.words.split(), *shlex.split(line.format(d=files))]
    config = parse(typed)
    assert isinstance(config, FileFlags) and config.made_by == f"foveate {command.words}"
    check_command(config)
    targets = [target for target in config.targets() if target.path.suffix != ".safetensors"]  # has an identity
    for target in targets:
        target.path.parent.mkdir(exist_ok=True)
        target.path.write_bytes(b"")  # nothing to lose
        check_command(config)
        target.path.write_text("mine")
        with pytest.raises(
            InputError, match=f"need a new file or one of `{config.made_by}`; .* exists without the mark"
        ):
            check_command(config)
        check_command(parse([*typed, "--overwrite"]))
        target.path.unlink()
    for target in targets:
        mark = RESULTS if target.flag == "--results" else MARKS.get(target.path.suffix, "")
        target.path.write_text(mark.replace("WORDS", config.made_by))
    check_command(config)


def test_a_file_is_written_once(files: Path) -> None:
    typed = ["evaluate", "detection", "--out", str(files / "new.json"), "--results", str(files / "images/../new.json")]
    with pytest.raises(InputError, match="--results: need another file than --out"):
        check_command(parse(typed))


def test_a_run_claims_no_folder_with_files_that_it_would_replace(tmp_path: Path) -> None:
    for name in (*RUN_NAMES, "open_clip_model.safetensors"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(InputError, match=f"it holds {name} but no config.json"):
            claim_folder(tmp_path, {}, writes=("open_clip_model.safetensors",))
        (tmp_path / name).unlink()
    (tmp_path / "log.txt").touch()
    assert not claim_folder(tmp_path, {})


@pytest.mark.parametrize(
    ("line", "held"),
    [
        ("world {d}/new --train 1 --val 0 --test 0", hold_folder),
        ("convert foveate-small {d}/new", hold_target),
        ("export --model foveate-small --format torch --out {d}/new.pt2", hold_target),
        ("embed {d}/images --out {d}/new.safetensors", hold_target),
        ("segment {d}/images --model foveate-small --vocab dog --out {d}/new", hold_folder),
        ("detect {d}/images --model x --vocab dog --out {d}/new", hold_folder),
    ],
)
def test_one_command_writes_to_a_place(line: str, held, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = shlex.split(line.format(d=files))
    out = Path(next(word for word in typed if "/new" in word))
    with held(out), pytest.raises(SystemExit):
        main(typed)
    error = capsys.readouterr().err
    assert error == f"foveate: {out}: another process is writing there. Wait for it, or choose another.\n"
    assert not out.exists() and not list(files.glob("*.lock")) and not list(files.glob(".*lock"))


def test_a_mark_is_in_the_first_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b" " * 4096 + b'"made_by": "foveate detect"')
    assert not has_mark(path, "foveate detect") and not has_mark(tmp_path / "none", "foveate detect")
