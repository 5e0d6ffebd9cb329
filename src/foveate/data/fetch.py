"""Shards named by a pattern, local or by URL -> files on the local disk (the optional extra `web`).

    shards-{00000..00331}.tar    https://HOST/cc3m/{00000..00331}.tar    hf://...    gs://...

webdataset expands the braces and opens the URLs (it runs curl, or the store's own program); each shard is fetched
whole, checked for being a whole tar file, and kept, so that the second epoch and the next run read the disk. URLs that
are programs (`pipe:`), and letters that a shell could read, are refused.
Deliberately absent: streaming, credentials, removing what was fetched.
"""

import fcntl
import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from foveate.data.datasets.shards import index_shard
from foveate.errors import InputError
from foveate.io.files import written_whole
from foveate.progress import image_bar

SCHEMES = ("http", "https", "s3", "gs", "hf", "file")
PLAIN = re.compile(r"[A-Za-z0-9._~:/@%+,=-]+")  # no letter of it means anything to a shell
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
CHUNK = 1 << 20  # bytes


def is_pattern(text: str) -> bool:
    """Whether a text names shards by URL or by braces, rather than one file or folder."""
    return ("{" in text or "::" in text or SCHEME.match(text) is not None) and not Path(text).exists()


def expand(pattern: str) -> list[str]:
    """List the shards that a pattern means, in its order.

    Raises:
        InputError: webdataset is missing, or a name has another scheme or a letter that is not plain.
    """
    for part in pattern.split("::"):
        _check_name(part)
    if "$" in pattern:  # webdataset would put the environment there
        _refuse(pattern, "a pattern without $", "one with it")
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise InputError(
            f"{pattern}: a pattern of shards needs webdataset, which is not installed. "
            "Run: pip install webdataset, or name a folder of *.tar files."
        ) from error
    names = expand_urls(pattern)
    for name in names:
        _check_name(name)
    if len(set(names)) < len(names):
        _refuse(pattern, "every shard once", "one twice")
    return names


def fetch_all(names: list[str], cache: Path | None, *, progress: bool = False) -> list[Path]:
    """Bring shards to the local disk, those that are not there already.

    Args:
        names: from `expand`.
        cache: folder to keep fetched shards in; local ones stay where they are.
        progress: show a bar.

    Raises:
        InputError: no folder to keep them in, or one cannot be fetched or is not a whole tar file.
    """
    paths = []
    with image_bar(show=progress) as bar:
        for place, name in bar.track(list(enumerate(names, start=1)), description="shards at hand"):
            parts = urlsplit(name)
            if parts.scheme in ("", "file"):
                paths.append(Path(unquote(parts.path) if parts.scheme else name))
            elif cache is None:
                raise InputError(f"{name}: need a folder to keep it in; FOVEATE_CACHE is empty. Set it to a folder.")
            else:
                paths.append(fetch(name, cache, place=f"shard {place} of {len(names)}"))
    return paths


def fetch(url: str, cache: Path, *, place: str = "a shard") -> Path:
    """Fetch one shard whole, or find it where an earlier run put it.

    Args:
        url: from `expand`, not a local one.
        cache: the folder to keep it in; processes that want the same shard wait for the one that fetches it.
        place: what messages call it.

    Returns:
        The file: under its final name only when it is a whole tar file.

    Raises:
        InputError: it cannot be fetched or written, or is not a whole tar file; names the URL and the reason.
    """
    last = urlsplit(url).path.rpartition("/")[2].removesuffix(".tar")
    path = cache / f"{last[:80]}-{hashlib.sha256(url.encode()).hexdigest()[:16]}.tar"
    if path.is_file():
        return path
    try:
        with _alone(cache):
            if not path.is_file():
                with written_whole(path) as partial:
                    _download(url, partial)
                    index_shard(partial)
    except Exception as error:  # what webdataset and the programs it runs let out
        program = " (webdataset runs this program)" if isinstance(error, FileNotFoundError) else ""
        raise InputError(
            f"{url}: {place} could not be fetched into {cache}; {type(error).__name__}: {error}{program}. "
            "Check the URL, the network and the space, or fetch the shards by other means and name their folder."
        ) from error
    return path


def _download(url: str, target: Path) -> None:
    from webdataset.gopen import gopen

    with gopen(url, "rb") as source, target.open("wb") as file:
        shutil.copyfileobj(source, file, CHUNK)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """A block that one process of the machine enters at a time; the lock ends with its process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check_name(name: str) -> None:
    """Refuse URLs that are programs, and letters that one of the programs that fetch could pass to a shell."""
    scheme = SCHEME.match(name)
    if scheme is None:
        return
    if scheme.group(1) not in SCHEMES:
        _refuse(name, f"a path or a URL of {', '.join(SCHEMES)}", f"the scheme {scheme.group(1)!r}")
    if not PLAIN.fullmatch(re.sub(r"[{}]", "", name)):
        _refuse(name, "letters, digits and . _ ~ : / @ % + , = - { } only", "others, which a shell could read")


def _refuse(name: str, need: str, got: str) -> None:
    raise InputError(f"{name}: need {need}; got {got}. Correct the pattern of shards.")
