"""How much memory is available, of the machine and of a container."""

import pytest

from foveate.io import memory


@pytest.mark.parametrize(
    ("limit", "free"),
    [("max", 4_096_000), ("3000", 3000 - 2000 + 500), ("1000", 0), ("9000000000", 4_096_000), (None, 4_096_000)],
)
def test_the_nearest_limit_counts(tmp_path, monkeypatch, limit, free):
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:   4000 kB\n")
    (tmp_path / "cgroup").write_text("1:cpu:/\n0::/jobs/7\n")
    group = tmp_path / "jobs/7"
    group.mkdir(parents=True)
    if limit is not None:
        for name, text in {"max": limit, "current": "2000", "stat": "anon 9\ninactive_file 500"}.items():
            (group / f"memory.{name}").write_text(text + "\n")
    monkeypatch.setattr(memory, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "GROUP", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    assert memory.free_memory() == free
    monkeypatch.setattr(memory, "MEMORY", tmp_path / "absent")
    assert memory.free_memory() is None
