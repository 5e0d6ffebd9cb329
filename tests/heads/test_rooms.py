"""Heads import `common` and nothing of each other."""

import re
from pathlib import Path

import foveate.heads

ROOM = Path(foveate.heads.__file__).parent


def test_no_head_imports_another_head():
    for path in ROOM.rglob("*.py"):
        own = path.relative_to(ROOM).parts[0]
        imported = set(re.findall(r"^ *(?:from|import) foveate\.heads\.(\w+)", path.read_text(), re.MULTILINE))
        assert imported <= {own, "common"}, path
