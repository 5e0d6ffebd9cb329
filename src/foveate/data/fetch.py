"""Shards given by a pattern, local or by URL -> files on the local disk (the optional extra `web`).

    shards-{00000..00331}.tar    https://HOST/cc3m/{00000..00331}.tar    hf://...    gs://...

webdataset expands the braces and opens the URLs (it runs curl, or the store's own program). Each shard is fetched,
checked to be a whole tar file, and cached, so that the second epoch and later runs read the disk. URLs that are
programs (`pipe:`), and characters that a shell interprets, are refused. Cached shards are never removed.
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
PLAIN = re.compile(r"[A-Za-z0-9._~:/@%+,=-]+")  # characters without a meaning to a shell
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
CHUNK = 1 << 20  # bytes


def is_pattern(text: str) -> bool:
    """Whether a text names shards by URL or with braces, rather than one file or folder."""
    return ("{" in text or "::" in text or SCHEME.match(text) is not None) and not Path(text).exists()


def expand(pattern: str) -> list[str]:
    """List the shards of a pattern, in its order.

    Raises:
        InputError: webdataset is not installed, or a name has another scheme or a character that is not plain.
    """
    for part in pattern.split("::"):
        _check_name(part)
    if "$" in pattern:  # webdataset would expand environment variables
        _refuse(pattern, "a pattern without $", "one with it")
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise InputError(
            f"{pattern}: a pattern of shards needs webdataset, which is not installed. "
            "Run: pip install webdataset, or give a folder of *.tar files."
        ) from error
    names = expand_urls(pattern)
    for name in names:
        _check_name(name)
    if len(set(names)) < len(names):
        _refuse(pattern, "every shard once", "the same one twice")
    return names


def fetch_all(names: list[str], cache: Path | None, *, progress: bool = False) -> list[Path]:
    """Fetch the shards that are not on the local disk.

    Args:
        cache: folder of fetched shards; local ones are used in place.

    Raises:
        InputError: a shard must be fetched but there is no cache; or as `fetch`.
    """
    paths = []
    with image_bar(show=progress) as bar:
        for number, name in bar.track(list(enumerate(names, start=1)), description="shards fetched"):
            parts = urlsplit(name)
            if parts.scheme in ("", "file"):
                paths.append(Path(unquote(parts.path) if parts.scheme else name))
            elif cache is None:
                raise InputError(f"{name}: need a cache folder; FOVEATE_CACHE is empty. Set it to a folder.")
            else:
                paths.append(fetch(name, cache, title=f"shard {number} of {len(names)}"))
    return paths


def fetch(url: str, cache: Path, *, title: str = "a shard") -> Path:
    """Fetch one shard whole, or return the cached file.

    Args:
        url: from `expand`, not a local one.
        cache: folder of the file; processes that need the same shard wait for the one that fetches it.
        title: of the shard in messages.

    Returns:
        The file, which has its final name only if it is a whole tar file.

    Raises:
        InputError: it cannot be fetched or written, or is not a whole tar file; names the URL and the reason.
    """
    last = urlsplit(url).path.rpartition("/")[2].removesuffix(".tar")
    path = cache / f"{last[:80]}-{hashlib.sha256(url.encode()).hexdigest()[:16]}.tar"
    if path.is_file():
        return path
    try:
        with _lock(cache):
            if not path.is_file():
                with written_whole(path) as partial:
                    _download(url, partial)
                    index_shard(partial)
    except Exception as error:  # webdataset and the programs it runs raise exceptions of any kind
        program = " (webdataset runs this program)" if isinstance(error, FileNotFoundError) else ""
        raise InputError(
            f"{url}: {title} could not be fetched into {cache}; {type(error).__name__}: {error}{program}. "
            "Check the URL, the network and the disk space, or fetch the shards by other means and give their folder."
        ) from error
    return path


def _download(url: str, target: Path) -> None:
    from webdataset.gopen import gopen

    with gopen(url, "rb") as source, target.open("wb") as file:
        shutil.copyfileobj(source, file, CHUNK)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """A block that one process of the machine executes at a time; the lock ends with its process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check_name(name: str) -> None:
    """Refuse URLs that are programs, and characters that a fetching program might pass to a shell."""
    scheme = SCHEME.match(name)
    if scheme is None:
        return
    if scheme.group(1) not in SCHEMES:
        _refuse(name, f"a path or a URL of {', '.join(SCHEMES)}", f"the scheme {scheme.group(1)!r}")
    if not PLAIN.fullmatch(re.sub(r"[{}]", "", name)):
        _refuse(name, "letters, digits and . _ ~ : / @ % + , = - { } only", "others, which a shell could interpret")


def _refuse(name: str, need: str, got: str) -> None:
    raise InputError(f"{name}: need {need}; got {got}. Correct the pattern of shards.")
