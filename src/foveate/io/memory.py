"""The memory of this machine that a process may still take."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# of a control group: its limit, what it uses, and the line of memory.stat with what can be dropped (cached files)
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that can be taken without swapping: of the machine, and of the control groups of this process.

    Where there is no /proc/meminfo, such as on macOS, it is all memory of the machine.

    Args:
        root: that /proc and /sys are below.
    """
    return min([_of_machine(root), *_of_groups(root)])


def _of_machine(root: Path) -> int:
    with suppress(OSError, ValueError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _of_groups(root: Path) -> Iterator[int]:
    """What each control group with a limit leaves, of this process and those above it (containers, batch systems)."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        files, top = (_V1, root / "sys/fs/cgroup/memory") if controllers else (_V2, root / "sys/fs/cgroup")
        # in a container the path may be that of the host, of which only the top is mounted
        group = top / path.lstrip("/")
        for folder in {top, *(each for each in (group, *group.parents) if each.is_relative_to(top))}:
            with suppress(OSError, ValueError):  # no such file, or "max"
                limit, used = (int((folder / name).read_text()) for name in files[:2])
                stat = dict(entry.split(" ", 1) for entry in (folder / "memory.stat").read_text().splitlines())
                yield max(0, limit - used + int(stat.get(files[2], 0)))
