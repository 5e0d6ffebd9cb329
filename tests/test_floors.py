"""Imports go down the floors only, and rooms on one floor know each other only where drawn (architecture)."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "foveate"
FLOORS = {
    "errors": 0, "types": 0, "io": 0, "progress": 0, "ops": 0,
    "clip": 1, "data": 1,
    "objectives": 2, "heads": 2,
    "engine": 3, "evaluate": 3, "show": 3, "export": 3,
    "predict": 4, "convert": 4,
    "cli": 5, "page": 5, "recipes": 5, "ledger": 5,
}  # fmt: skip
GROUND = {("types", "errors"), ("io", "errors"), ("ops", "types"), ("ops", "errors")}  # drawn connections of floor 0
DOORS = {("cli", "recipes"), ("cli", "ledger"), ("ledger", "recipes")}  # and of floor 5
FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Rooms of this package that a file imports, lazily or not."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            names = [
                f"{node.module}.{alias.name}" if node.module == "foveate" else str(node.module) for alias in node.names
            ]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("foveate.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_only_go_down(path: Path) -> None:
    room = room_of(path)
    for other in imports(path) - {room}:
        allowed = FLOORS[other] < FLOORS[room] or (room, other) in GROUND | DOORS
        assert allowed, f"{room} (floor {FLOORS[room]}) imports {other} (floor {FLOORS[other]})"


def test_every_room_stands_on_a_floor() -> None:
    assert {room_of(path) for path in FILES} <= set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_what_the_house_forbids(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "every module says what it is"
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not names & {"register_forward_hook", "register_forward_pre_hook"}
    assert not any(isinstance(n, ast.ImportFrom) and n.module == "__future__" for n in ast.walk(tree))
    assert path.stem != "utils"


def test_floor_0_and_the_world_do_without_heavy_libraries() -> None:
    light = [*(SOURCE / f"{name}.py" for name in ("errors", "progress")), *(SOURCE / "io").glob("*.py")]
    # the world's drawing processes start in a tenth of a second because they import no torch
    for path in [*light, *(SOURCE / "data" / "world").glob("*.py")]:
        modules = {
            name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            for name in (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else []
            )
        }
        assert not modules & {"torch", "torchvision", "open_clip", "timm"}, path
