"""Foveate: CLIPSelf for any CLIP; dense features, their evaluation and their applications.

`import foveate` imports nothing else: torch and open_clip come with the first use of a name below.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveate.clip.io.weights import save_clip as save_clip
    from foveate.clip.io.weights import save_huggingface as save_huggingface
    from foveate.clip.load import load as load
    from foveate.clip.model import Clip as Clip

    __version__: str

_HOMES = {
    "load": "foveate.clip.load",
    "Clip": "foveate.clip.model",
    "save_clip": "foveate.clip.io.weights",
    "save_huggingface": "foveate.clip.io.weights",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("foveate")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'foveate' has no attribute {name!r}; it has {', '.join(_HOMES)}")


def __dir__() -> list[str]:
    return [*globals(), *_HOMES, "__version__"]
