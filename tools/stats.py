"""Measure the code base: lines, flags, circles, arguments, as JSON; `--strict` adds pyright's strict errors.

Numbers to steer by, not limits: what they are for each release stands in CHANGELOG.md.
"""

import argparse
import ast
import importlib
import json
import subprocess
import sys
import tempfile
from collections import Counter, deque
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "foveate"
STRICT_ROOMS = ("ops", "objectives", "clip", "engine")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strict", action="store_true", help="run pyright in strict mode on four rooms (a minute)")
    options = parser.parse_args()
    trees = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
    graph = import_graph(trees)
    rooms = Counter[str]()
    for path in trees:
        rooms[path.relative_to(PACKAGE).parts[0].removesuffix(".py")] += len(path.read_text().splitlines())
    arguments = sorted(
        (len([*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]), f"{path.name}:{node.name}")
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    )
    report: dict[str, Any] = {
        "files": len(trees),
        "lines": sum(rooms.values()),
        "code_lines": sum(code_lines(path, tree) for path, tree in trees.items()),
        "lines_by_room": dict(sorted(rooms.items(), key=lambda item: -item[1])),
        "flags": flags(),
        "circles": circles(graph),
        "files_from_command_to_backward": steps_to_backward(trees, graph),
        "most_arguments": arguments[-5:][::-1],
        "test_lines": sum(len(path.read_text().splitlines()) for path in (ROOT / "tests").rglob("*.py")),
    }
    if options.strict:
        report["strict_errors"] = strict_errors()
    print(json.dumps(report, indent=2))


def code_lines(path: Path, tree: ast.Module) -> int:
    """Lines that are neither blank, comment nor docstring."""
    documented = set[int]()
    for node in ast.walk(tree):
        is_documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        for child in node.body if is_documented else []:
            if (
                isinstance(child, ast.Expr)
                and isinstance(child.value, ast.Constant)
                and isinstance(child.value.value, str)
            ):
                documented |= set(range(child.lineno, (child.end_lineno or child.lineno) + 1))
    lines = path.read_text().splitlines()
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") and number not in documented
        for number, line in enumerate(lines, start=1)
    )


def import_graph(trees: dict[Path, ast.Module]) -> dict[Path, set[Path]]:
    """Files of the package that each file imports, lazily or not; imports for type checkers alone do not count."""
    modules = {name_of(path): path for path in trees}
    graph: dict[Path, set[Path]] = {}
    for path, tree in trees.items():
        graph[path] = set()
        ignored = {id(child) for node in ast.walk(tree) if is_type_checking(node) for child in ast.walk(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and id(node) not in ignored:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                graph[path] |= {modules[name] for name in names if name in modules} - {path}
    return graph


def name_of(path: Path) -> str:
    """Dotted name of a file of the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(node: ast.AST) -> bool:
    """Whether a statement is `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def circles(graph: dict[Path, set[Path]]) -> list[list[str]]:
    """Groups of files that import each other, directly or not."""
    reach = {path: reachable(graph, path) for path in graph}
    found = {frozenset(other for other in reach[path] if path in reach[other]) for path in graph if path in reach[path]}
    return [sorted(name_of(path) for path in group) for group in found]


def reachable(graph: dict[Path, set[Path]], start: Path) -> set[Path]:
    """Files that a file imports, directly or not."""
    seen, queue = set[Path](), deque(graph[start])
    while queue:
        path = queue.popleft()
        if path not in seen:
            seen.add(path)
            queue.extend(graph[path])
    return seen


def steps_to_backward(trees: dict[Path, ast.Module], graph: dict[Path, set[Path]]) -> list[str]:
    """The shortest chain of imports from the command line to the training loop, which calls `backward()`."""
    start = PACKAGE / "cli" / "commands.py"
    goal = PACKAGE / "engine" / "fit.py"
    named = graph[start] | {
        PACKAGE.parent / (text.split(":")[0].replace(".", "/") + ".py")
        for node in ast.walk(trees[start])
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and ":" in (text := node.value)
    }
    queue = deque([[start]])
    seen = {start}
    while queue:
        chain = queue.popleft()
        if chain[-1] == goal:
            return [str(path.relative_to(PACKAGE)) for path in chain]
        for path in named if chain[-1] == start else graph[chain[-1]]:
            if path in graph and path not in seen:
                seen.add(path)
                queue.append([*chain, path])
    return []


def flags() -> dict[str, Any]:
    """How many flags each command has, and how many names they have in all; positional arguments are no flags."""
    sys.path.insert(0, str(ROOT / "src"))
    commands, help_module = (importlib.import_module(f"foveate.cli.{name}") for name in ("commands", "help"))
    by_command = {command.words: {*help_module.flags_of(command.load_config())} for command in commands.COMMANDS}
    return {
        "commands": len(by_command),
        "all": sum(map(len, by_command.values())),
        "distinct": len(set().union(*by_command.values())),
        "distill": len(by_command["distill"]),
    }


def strict_errors() -> dict[str, int]:
    """Errors of pyright in strict mode, by room."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "pyrightconfig.json"
        include = [str(PACKAGE / room) for room in STRICT_ROOMS]
        config.write_text(
            json.dumps({"include": include, "typeCheckingMode": "strict", "extraPaths": [str(ROOT / "src")]})
        )
        command = [str(Path(sys.executable).parent / "pyright"), "-p", str(config), "--outputjson"]
        result = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    counts = Counter(
        Path(error["file"]).relative_to(PACKAGE).parts[0]
        for error in result["generalDiagnostics"]
        if error["severity"] == "error"
    )
    return {room: counts[room] for room in STRICT_ROOMS}


if __name__ == "__main__":
    main()
