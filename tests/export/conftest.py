"""One process for all exports, see commands.py."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from slow.towers import build, register

from foveate.clip.model import Clip

TESTS = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="session")
def ask() -> Iterator[Callable[..., dict[str, Any]]]:
    """Send a request to commands.py and return its answer."""
    command = [sys.executable, str(TESTS / "export" / "commands.py")]
    path = os.pathsep.join([str(TESTS / "clip"), str(TESTS.parent / "src")])
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:

        def send(**request: Any) -> dict[str, Any]:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield send
        process.kill()


@pytest.fixture(scope="session")
def export(ask, folder) -> Callable[..., Path]:
    """Export a small CLIP by the command line and return the file."""

    def run(model: str, what: str, *flags: str, ending: str = "onnx") -> Path:
        path = folder / f"{model}-{what}{'-'.join(flags)}.{ending}"
        typed = ["export", "--model", model, "--what", what, "--out", str(path), *flags]
        answer = ask(arguments=typed)
        assert answer["status"] == 0, answer["err"]
        assert answer["err"] == "", "the exporters' warnings"
        return path

    return run


@pytest.fixture(scope="session")
def twin() -> Callable[[str], Clip]:
    """The CLIP with the same name in commands.py."""
    register()

    def make(family: str) -> Clip:
        model, config = build(family, 0)
        return Clip(model, name=family, config=config)

    return make
