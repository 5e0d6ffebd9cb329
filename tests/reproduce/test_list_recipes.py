"""`foveate recipes` and `foveate distill --recipe`: printed commands are run, and flags override the recipe."""

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from foveate.cli.main import main, parse
from foveate.data.datasets.voc import NAMES
from foveate.data.kinds import kind_of
from foveate.data.splits import OV_COCO_EXCLUDED, OV_COCO_NOVEL
from foveate.data.world.write import WorldSize, write_world
from foveate.recipes import RECIPES, Recipe, find_recipe
from foveate.reproduce.list_recipes import command_of, defaults_of, flags_of, has_names
from foveate.train.flags import DistillConfig
from foveate.train.recipe import batch_notes
from foveate.types import Category

ROWS = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
NEEDED = ["--data", "d", "--out", "o"]
NAME = "clipself-l14-patches-1gpu"


@ROWS
def test_printed_commands_parse_to_the_recipe(recipe: Recipe) -> None:
    short, spelled = (shlex.split(shlex.join(command_of(recipe, spelled=spelled))) for spelled in (False, True))
    verb = recipe.verb.split()
    assert short[1 : 1 + len(verb)] == spelled[1 : 1 + len(verb)] == verb and "--recipe" not in spelled
    parsed = parse(spelled[1:])
    told = {name: getattr(parsed, name) for name in ("data", "out", *recipe.needs)}
    assert {name: str(value) for name, value in told.items()} == {"data": "DIR", "out": "OUT", **recipe.needs}
    assert parsed == flags_of(recipe.verb)(**told, **recipe.fields)
    assert parse(short[1:]) == (replace(parsed, recipe=recipe.name) if has_names(recipe.verb) else parsed)


@pytest.mark.parametrize("named", [["--recipe", NAME], [f"--recipe={NAME}"]], ids=len)
def test_a_flag_overrides_the_recipe_at_any_position(named: list[str]) -> None:
    plain = parse(["distill", *named, *NEEDED])
    assert (plain.model, plain.alpha, plain.batch, plain.recipe) == ("EVA02-L-14-336", 0.95, 2, NAME)
    before = parse(["distill", "--batch", "1", "--alpha", "1", *named, *NEEDED])
    after = parse(["distill", *NEEDED, *named, "--alpha", "1", "--batch", "1"])
    assert before == after == replace(plain, batch=1, alpha=1.0)


def test_the_last_of_two_recipes_counts() -> None:
    both = parse(["distill", "--recipe", NAME, *NEEDED, "--recipe", "world"])
    assert both == parse(["distill", "--recipe", "world", *NEEDED])


def test_without_a_recipe_nothing_changes() -> None:
    parsed = parse(["distill", *NEEDED])
    assert parsed == DistillConfig(data=parsed.data, out=Path("o"))


def test_help_shows_the_recipes_values_and_what_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["distill", "--recipe", NAME, "--help"])
    assert done.value.code == 0
    text = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    for default in ("(default: EVA02-L-14-336)", "(default: merged2b_s6b_b61k)", "(default: 44358)", "(default: 896)"):
        assert default in text
    assert text.count("(required)") == 2


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["distill", "--recipe", "clipself-l14-patches", *NEEDED], "clipself-l14-patches-1gpu"),
        (["distill", "--recipe=wrld", *NEEDED], "world"),
        (["distill", "--recipe", "clipself-l14-windows", "--help"], "clipself-l14-window"),
        (["recipes", "openai-b16-patch"], "openai-b16-patches"),
        (["distill", "--recipe", "", *NEEDED], "clipself-b16-patches-1gpu"),
    ],
)
def test_an_unknown_recipe_is_refused_with_similar_names(
    typed: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        main(typed)
    assert done.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("foveate: ") and expected in error and "`foveate recipes`" in error


@pytest.mark.parametrize(
    "typed",
    [
        ["distill", "--recipe", NAME],  # without --data and --out
        ["distill", *NEEDED, "--recipe"],  # without a name
        ["distill", "--recipe", "--data", "d", "--out", "o"],
        ["distill", "--recip", NAME, *NEEDED],  # a flag is never guessed: the row would be left out unseen
        ["embed", "--recipe", NAME],
    ],
)
def test_the_parser_refuses_incomplete_commands(typed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(typed)
    assert done.value.code == 2
    assert capsys.readouterr().err


def test_the_list_contains_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipes"])
    text = capsys.readouterr().out
    assert all(f" {recipe.name} " in text for recipe in RECIPES)
    main(["recipes", "--format", "json"])
    rows = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in rows] == [recipe.name for recipe in RECIPES]
    main(["recipes", NAME, "--format", "json"])
    assert json.loads(capsys.readouterr().out) == next(one for one in rows if one["name"] == NAME)


def test_one_recipe_is_shown_with_its_published_results_and_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipes", NAME])
    text = capsys.readouterr().out
    assert "38.4" in text and "6 h" in text
    (line,) = [line for line in text.splitlines() if line.startswith("foveate distill") and "--recipe" not in line]
    words = shlex.split(line)
    assert words[words.index("--pretrained") + 1] == "merged2b_s6b_b61k"
    assert parse(words[1:]) == replace(
        parse(["distill", "--recipe", NAME, "--data", "DIR", "--out", "OUT"]), recipe=None
    )


def test_the_recipe_is_recorded_and_its_name_does_not_change_the_run(tmp_path: Path) -> None:
    from foveate.io.store import claim_folder
    from foveate.train.run import MAY_CHANGE, run_record

    config = replace(defaults_of(find_recipe("world")), data=tmp_path, out=tmp_path / "run")
    claim_folder(config.out, run_record(config, {}))
    assert json.loads((config.out / "config.json").read_text())["recipe"] == "world"
    assert claim_folder(
        config.out, run_record(replace(config, recipe=None), {}), may_change=MAY_CHANGE
    )  # the same flags, spelled out


def test_neither_help_nor_the_list_imports_torch() -> None:
    code = (
        "import sys; from foveate.cli.main import main\n"
        "main(['recipes'])\n"
        "try: main(['distill', '--recipe', 'world', '--help'])\n"
        "except SystemExit as done: assert done.code == 0\n"
        "assert not {'torch', 'open_clip', 'torchvision', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_recipe_may_require_a_flag(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    needing = Recipe("mine", "none", "Mine.", {"steps": 7}, "(estimate)", needs={"pretrained": "FILE"})
    monkeypatch.setattr("foveate.recipes.RECIPES", (needing,))
    assert shlex.join(command_of(needing, spelled=False)).endswith("--pretrained FILE --recipe mine")
    with pytest.raises(SystemExit) as done:
        main(["distill", "--recipe", "mine", *NEEDED])
    assert done.value.code == 2 and "--pretrained" in capsys.readouterr().err
    parsed = parse(["distill", "--recipe", "mine", *NEEDED, "--pretrained", "w.pt"])
    assert (parsed.pretrained, parsed.steps) == ("w.pt", 7)


def test_another_batch_than_the_recipes_is_reported() -> None:
    assert batch_notes(None, 16) == batch_notes("clipself-b16-patches-sync16", 16) == []
    (note,) = batch_notes("clipself-b16-patches-sync16", 128)
    assert "is for 16 images per step" in note and note.endswith("take 128")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("train-fvit --recipe fvit-ov-lvis-b16", "must have LVIS's categories, which have a frequency"),
        ("train-fvit --recipe fvit-ov-coco-b16 --benchmark ov-coco", "must have COCO's 80 categories"),
        ("train-catseg --recipe catseg-2024", "must have COCO-Stuff's 171 classes"),
        ("train-panoptic --recipe panoptic-tower", "must have COCO's 133 panoptic classes"),
        ("distill --recipe clipself-b16-lvis --pretrained None --annotations FILE", "must have LVIS's categories"),
    ],
)
def test_a_recipe_refuses_data_of_another_kind(
    typed: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "w"
    write_world(root, WorldSize(train=2, val=1, test=0, pairs=0, seed=0), processes=1)
    typed = typed.replace("FILE", str(root / "annotations" / "instances_train2017.json"))
    words = [*typed.split(), "--data", str(root), "--out", str(tmp_path / "o"), "--model", "foveate-small"]
    with pytest.raises(SystemExit) as done:
        main([*words, "--workers", "0", "--device", "cpu"])
    error = capsys.readouterr().err
    assert done.value.code == 2 and message in error and f"--data {root} has" in error
    assert "without --recipe: `foveate recipes" in error and not (tmp_path / "o").exists()


def test_a_prefix_lists_only_its_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipes", "catseg"])
    told = capsys.readouterr().out
    assert "catseg-2024" in told and "catseg-2023-l14" in told and "openai" not in told and "fvit" not in told


def test_kinds_of_data_are_recognised_by_their_categories() -> None:
    def categories(names: list[str], *, stuff: int = 0, frequency: str | None = None) -> list[Category]:
        return [Category(number, name, number > stuff, (), frequency) for number, name in enumerate(names, start=1)]

    coco = [*OV_COCO_NOVEL, *OV_COCO_EXCLUDED, *(f"base {number}" for number in range(48))]
    many = [f"class {number}" for number in range(847)]
    assert kind_of(categories(coco)) == "coco" and kind_of(categories(many[:80])) == "any"
    assert kind_of(categories(many[:133], stuff=53)) == "coco-panoptic" and kind_of(categories(many[:133])) == "any"
    assert kind_of(categories(many[:3], frequency="r")) == "lvis" and kind_of([]) == "any"
    assert kind_of(categories([*NAMES])) == "voc" == kind_of(categories(["background", *NAMES]))
    for count, kind in ((171, "coco-stuff"), (365, "objects365"), (150, "ade20k"), (459, "pascal-context")):
        assert kind_of(categories(many[:count], stuff=count // 2)) == kind
