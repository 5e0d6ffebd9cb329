"""Imports go down the floors only, and no files import each other in a circle (docs/architecture.md)."""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "foveate"
FLOORS = {
    "errors": 0, "types": 1, "io": 1, "progress": 1, "ops": 2,
    "clip": 3, "data": 3,
    "objectives": 4, "heads": 4, "recipes": 4,
    "engine": 5, "export": 5, "evaluate": 5, "show": 5, "train": 6, "predict": 6, "convert": 6,
    "cli": 7, "reproduce": 8,
}  # fmt: skip
DOORS = {("cli", "reproduce")}  # the table of commands names what it opens
FILES = {path: ast.parse(path.read_text()) for path in sorted(SOURCE.rglob("*.py")) if path != SOURCE / "__init__.py"}


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_rooms(tree: ast.Module) -> set[str]:
    """Rooms of this package that a file imports, lazily or not, for type checkers too."""
    names = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            whole = node.module == "foveate"
            names |= {f"foveate.{alias.name}" for alias in node.names} if whole else {str(node.module)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("foveate.")}


def test_imports_only_go_down() -> None:
    upward = [
        f"{path.relative_to(SOURCE)} imports {other}"
        for path, tree in FILES.items()
        for other in imported_rooms(tree) - {room_of(path)}
        if FLOORS[other] >= FLOORS[room_of(path)] and (room_of(path), other) not in DOORS
    ]
    assert not upward, "\n".join(upward)


def test_no_circles_and_nothing_that_conventions_forbid() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    import stats  # pyright: ignore[reportMissingImports]

    assert not stats.circles(stats.import_graph(FILES))
    for path, tree in FILES.items():
        assert ast.get_docstring(tree), f"{path}: every module says what it is"
        attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not attributes & {"register_forward_hook", "register_forward_pre_hook"}, f"{path}: no hooks"
