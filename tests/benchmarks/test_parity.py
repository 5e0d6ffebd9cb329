"""The parity table and its exit status, on differences made up here; the real ones take the benchmark itself."""

import importlib.util
import json
from pathlib import Path

import pytest

FILE = Path(__file__).parent.parent.parent / "benchmarks" / "parity.py"


@pytest.fixture
def parity():
    spec = importlib.util.spec_from_file_location("parity", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("largest", "status"), [(9e-6, 0), (2e-5, 1), (float("inf"), 1)])
def test_the_largest_difference_is_shown_and_judged(parity, monkeypatch, tmp_path, capsys, largest, status):
    def measure(family, size):
        yield {"family": family, "head": "image", "what": "image", "input": list(size), "max_abs_diff": 1e-8}
        for difference in (1e-7, largest if (family, size) == ("rn", (128, 128)) else 2e-7):
            yield {"family": family, "head": "naclip", "what": "boxes", "input": list(size), "max_abs_diff": difference}

    target = tmp_path / "docs" / "parity.md"
    monkeypatch.setattr(parity, "measure", measure)
    monkeypatch.setattr("sys.argv", ["parity.py", "--write", str(target)])
    assert parity.main() == status
    printed = capsys.readouterr()
    rows = [json.loads(line) for line in printed.out.splitlines()]
    assert len(rows) == 6 * 3 * 3 and rows[0]["input"] == [24, 24]  # families, sizes, rows of each
    assert printed.err.count("beyond") == status
    text = target.read_text().splitlines()
    shown = f"{largest:.1e}"
    usual = "| 2.0e-07 " * 4
    assert f"| naclip {usual}| {shown} | 2.0e-07 |" in text
    assert f"| boxes {usual}| {shown} | 2.0e-07 |" in text
    assert f"| larger square {usual}| {shown} | 2.0e-07 |" in text
    assert "| native " + "| 2.0e-07 " * 6 + "|" in text and "| sclip " + "| - " * 6 + "|" in text
