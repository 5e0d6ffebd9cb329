"""Shards by pattern and URL; no part of a URL reaches a shell."""

import functools
import hashlib
import http.server
import io
import shutil
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

import foveate.data.fetch as fetch_module
from foveate.data.fetch import expand, fetch, fetch_all, is_pattern
from foveate.data.sources import open_data
from foveate.errors import InputError

needs_curl = pytest.mark.skipif(
    shutil.which("curl") is None, reason="webdataset fetches by running curl: not installed"
)


def image() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (1, 2, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, logs requests, and stops in the middle of files named cut*."""

    asked: list[str]

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if "/cut" in self.path:
            content = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        else:
            super().do_GET()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str, list[str]]]:
    """A folder, its URL, and the list of requests."""
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "served"
    folder.mkdir()
    asked: list[str] = []
    handler = functools.partial(type("Handler", (Quiet,), {"asked": asked}), directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_braces_and_lists_are_expanded():
    assert expand("/d/s-{000..002}.tar") == ["/d/s-000.tar", "/d/s-001.tar", "/d/s-002.tar"]
    assert expand("http://host/{a,b}.tar::/d/c.tar") == ["http://host/a.tar", "http://host/b.tar", "/d/c.tar"]


def test_is_pattern(tmp_path):
    (tmp_path / "odd{1..2}").mkdir()
    assert not is_pattern(str(tmp_path / "odd{1..2}")) and not is_pattern(str(tmp_path)) and not is_pattern("a/b.tar")
    assert all(map(is_pattern, ("s-{0..1}.tar", "http://host/s.tar", "pipe:true", "a.tar::b.tar")))


@pytest.mark.parametrize(
    "pattern",
    [
        "pipe:touch MARK",
        "pipe:true",
        "PIPE:true",
        "http://host/a.tar::pipe:true",
        "http://host/$(touch MARK).tar",
        "http://host/a.tar;touch MARK",
        "http://host/a.tar|touch",
        "http://host/`true`.tar",
        "http://host/a.tar?x=1&touch",
        "http://host/${HOME}.tar",
        "/d/${HOME}/s-{0..1}.tar",
        "http://host/a\n.tar",
        "{http,https}://host/a;true.tar",
        "{pipe,pipe}:true",
        "ftp://host/a.tar",
        "scp://host/a.tar",
        "ais://host/a.tar",
    ],
)
def test_programs_shells_and_other_schemes_are_refused(tmp_path, monkeypatch, pattern):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"need (letters, digits and|a pattern without \$|a path or a URL of)"):
        open_data(pattern, split="train")
    assert list(tmp_path.iterdir()) == []


def test_a_repeated_shard_is_refused():
    with pytest.raises(InputError, match="need every shard once"):
        expand("{a,b,a}.tar")


def test_a_missing_webdataset_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset.shardlists", None)
    with pytest.raises(InputError, match="pip install webdataset"):
        expand("s-{0..1}.tar")


def test_local_patterns_are_read_in_place(tmp_path):
    for number in range(2):
        write_tar(tmp_path / f"s-{number}.tar", {f"{number}.png": image()})
    for pattern in (f"{tmp_path}/s-{{0..1}}.tar", f"file://{tmp_path}/s-{{0..1}}.tar"):
        dataset = open_data(pattern, split="train")
        assert [record.id for record in dataset.records] == ["s-0.tar:0", "s-1.tar:1"]
        assert [record.path for record in dataset.records] == [tmp_path / "s-0.tar", tmp_path / "s-1.tar"]
    with pytest.raises(InputError, match=r"s-2\.tar"):
        open_data(f"{tmp_path}/s-{{0..2}}.tar", split="train")


@needs_curl
def test_shards_are_fetched_once(tmp_path, monkeypatch, served):
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path))
    folder, address, asked = served
    for number in range(2):
        write_tar(folder / f"s-{number}.tar", {f"{number}.png": image()})
    pattern = f"{address}/s-{{0..1}}.tar"
    for _ in range(2):
        dataset = open_data(pattern, split="train")
        assert [str(record.id).partition(":")[2] for record in dataset.records] == ["0", "1"]
        assert [r.path.read_bytes() for r in dataset.records] == [(folder / f"s-{n}.tar").read_bytes() for n in (0, 1)]
    assert asked == ["/s-0.tar", "/s-1.tar"]
    assert {path.suffix for path in (tmp_path / "shards").iterdir()} == {".tar", "", ".npz"}  # shards, lock, index


@needs_curl
@pytest.mark.parametrize("name", ["missing.tar", "cut.tar", "page.tar", "short.tar"])
def test_incomplete_downloads_are_not_cached(tmp_path, monkeypatch, served, name):
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path))
    folder, address, _ = served
    write_tar(folder / "cut.tar", {"1.png": image()})
    (folder / "page.tar").write_bytes(b"<html>please sign in</html>")
    (folder / "short.tar").write_bytes((folder / "cut.tar").read_bytes()[:600])
    with pytest.raises(InputError, match=f"{name}: shard 1 of 1 could not be fetched into"):
        open_data(f"{address}/{name}", split="train")
    assert [path.name for path in (tmp_path / "shards").iterdir()] == [".lock"]


@contextmanager
def no_lock(folder: Path) -> Iterator[None]:
    """A lock that cannot be had."""
    raise OSError("no locks here")
    yield


def test_the_partial_file_of_another_process_is_not_touched(tmp_path, monkeypatch):
    url = "https://host/a.tar"
    monkeypatch.setattr(fetch_module, "_download", lambda url, target: target.write_bytes(b"half"))
    with pytest.raises(InputError, match="need a whole tar"):
        fetch(url, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]  # our own half is gone
    theirs = tmp_path / f"a-{hashlib.sha256(url.encode()).hexdigest()[:16]}.tar.partial"
    theirs.write_bytes(b"half of it")
    monkeypatch.setattr(fetch_module, "_lock", no_lock)
    with pytest.raises(InputError, match="no locks here"):
        fetch(url, tmp_path)
    assert theirs.read_bytes() == b"half of it"


def test_a_missing_program_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"'curl' \(webdataset runs this program\)"):
        fetch("http://127.0.0.1:9/a.tar", tmp_path / "kept")


def test_fetching_needs_a_cache_folder(monkeypatch):
    monkeypatch.setenv("FOVEATE_CACHE", "")
    with pytest.raises(InputError, match=r"need a cache folder.*FOVEATE_CACHE is empty"):
        open_data("http://127.0.0.1:9/a.tar", split="train")
    assert fetch_all(["/d/a.tar"], None) == [Path("/d/a.tar")]
