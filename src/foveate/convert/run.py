"""`foveate convert`: from any CLIP that loads to a folder for open_clip, Hugging Face transformers or Foveate; and from
published files of heads to folders that the other commands take.

What was written is opened again before the folder gets its name.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from foveate.clip.io.checkpoint_file import read_checkpoint
from foveate.clip.io.states import file_kind
from foveate.convert.catseg import convert_catseg
from foveate.convert.clip import check_weights, convert_clip
from foveate.convert.flags import Convert
from foveate.convert.fvit import convert_fvit
from foveate.convert.odise import convert_odise
from foveate.errors import InputError
from foveate.heads.catseg.published import is_published as is_catseg
from foveate.heads.fvit.published import is_published_fvit
from foveate.heads.panoptic.odise_file import is_odise
from foveate.io.files import check_target

Head = Literal["F-ViT", "CAT-Seg", "ODISE"]
CONVERTERS: dict[Head, Callable[[Convert, dict[str, Tensor]], None]] = {
    "F-ViT": convert_fvit,
    "CAT-Seg": convert_catseg,
    "ODISE": convert_odise,
}
TESTS: dict[Head, Any] = {"F-ViT": is_published_fvit, "CAT-Seg": is_catseg, "ODISE": is_odise}
_TAKEN: dict[Head | None, tuple[str, ...]] = {
    None: ("to", "model", "text_from", "dtype"),
    "F-ViT": ("clip", "annotations", "novel", "benchmark", "size"),
    "CAT-Seg": ("residual", "vocab"),
    "ODISE": ("clip", "annotations", "labels", "encoder"),
}  # flags of each kind of source; None: a CLIP


def run(config: Convert) -> None:
    """Find out what the source is, write its folder, and open that again.

    Raises:
        InputError: the input does not load, the layout has no place for it, OUT holds something, or the result differs.
    """
    _check_out(config.out)
    if config.model is None:
        cure = f"Give a weights file or a tag as SOURCE, and --model {config.source}."
        check_weights(config.source, flag="SOURCE", cure=cure)
    found = published_head(Path(config.source))
    if found is not None and found[0] == "F-ViT" and config.text_from is not None:
        found = None  # its image tower is to become a CLIP
    _check_flags(config, None if found is None else found[0])
    if found is None:
        convert_clip(config)
    else:
        head, state = found
        CONVERTERS[head](config, state)


def _check_out(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"OUT: need a folder that is new or empty; {out} holds something. Choose another.")
    if out.exists() and not out.is_dir():
        raise InputError(f"OUT: need a folder; {out} is a file.")
    check_target(out / "config.json", flag="OUT")


def _check_flags(config: Convert, head: Head | None) -> None:
    """Refuse flags that the kind of file ignores.

    Raises:
        InputError: names the flag, and what it goes with.
    """
    for name in sorted({flag for flags in _TAKEN.values() for flag in flags} - {*_TAKEN[head]}):
        given = getattr(config, name)
        if given != getattr(Convert, name):
            takers = [kind for kind, flags in _TAKEN.items() if name in flags]
            what = " or ".join("a CLIP" if kind is None else f"a published {kind}" for kind in takers)
            found = "a CLIP" if head is None else f"a published {head}"
            raise InputError(f"--{name.replace('_', '-')}: goes with {what}; {config.source} is {found}. Leave it out.")


def published_head(path: Path) -> tuple[Head, dict[str, Tensor]] | None:
    """Which published head a file is, by its tensors' names, and these tensors; None where it is something else."""
    if not path.is_file() or file_kind(path) != "torch":
        return None
    try:
        content = read_checkpoint(path)
    except InputError:  # reading it as a CLIP will report what is wrong with it
        return None
    if not isinstance(content, dict):
        return None
    for part in (content.get("state_dict"), content.get("model"), content):  # mmdet's, detectron2's, bare
        entries = part if isinstance(part, dict) else {}
        state = {name: value for name, value in entries.items() if isinstance(value, Tensor)}
        kind: Head | None = next((head for head, is_such in TESTS.items() if is_such(state)), None)
        if kind is None:
            continue
        strange = [name for name in entries if name not in state]
        if strange:
            raise InputError(
                f"{path}: need tensors, as of a published {kind}; {len(strange)} entries are something else, such as "
                f"{strange[0]!r}. Download it again."
            )
        return kind, state
    return None
