"""What every test needs: text embeddings cached in a folder of the tests, never in somebody's home, and processes that
start fast."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def text_cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOVEATE_CACHE", str(tmp_path_factory.mktemp("text_cache")))
        yield


class Zygote:
    """See zygote.py; one for the whole session."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__).with_name("zygote.py"))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.answer()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, request: dict) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self.answer())

    def start(self, output: Path, arguments: list, **request) -> int:
        target = request if "script" in request else {"module": "foveate.cli.main", **request}
        return self.ask({"arguments": [str(argument) for argument in arguments], "output": str(output), **target})

    def wait(self, process: int) -> int:
        return self.ask({"wait": process})


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    one = Zygote()
    yield one
    assert one.process.stdin is not None and one.process.stdout is not None
    one.process.stdin.close()
    one.process.stdout.close()
    one.process.wait(timeout=20)
