"""Saccade: CLIPSelf for any CLIP; dense features, their evaluation and their applications.

`import saccade` imports nothing else: torch and open_clip come with the first use of a name below.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saccade.clip.load import load as load
    from saccade.clip.model import Clip as Clip
    from saccade.clip.weights import save_clip as save_clip
    from saccade.clip.weights import save_huggingface as save_huggingface

_HOMES = {
    "load": "saccade.clip.load",
    "Clip": "saccade.clip.model",
    "save_clip": "saccade.clip.weights",
    "save_huggingface": "saccade.clip.weights",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'saccade' has no attribute {name!r}; it has {', '.join(_HOMES)}")


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
