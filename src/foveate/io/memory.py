"""How much memory this process may still take."""

from pathlib import Path

MEMORY, GROUPS, GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def free_memory() -> int | None:
    """Memory of the machine that is available, or less where a container's limit is nearer [bytes]; None: unknown."""
    try:
        [line] = [line for line in MEMORY.read_text().splitlines() if line.startswith("MemAvailable:")]
        free = int(line.split()[1]) * 1024
    except (OSError, ValueError):  # not Linux
        return None
    try:
        folder = GROUPS / GROUP.read_text().rpartition("::")[2].strip().lstrip("/")
        limit, used = (int((folder / f"memory.{name}").read_text()) for name in ("max", "current"))
        counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return min(free, max(0, limit - used + int(counts["inactive_file"])))  # that of files is given back
    except (OSError, ValueError, KeyError):  # no such group, or "max": no limit
        return free
