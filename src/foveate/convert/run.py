"""`foveate convert`: CLIPs to other layouts, and published files of heads to folders for the other commands.

The result is opened before its folder is renamed to OUT.
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
from foveate.io.store import hold_target

PublishedHead = Literal["F-ViT", "CAT-Seg", "ODISE"]
CONVERTERS: dict[PublishedHead, Callable[[Convert, dict[str, Tensor]], None]] = {
    "F-ViT": convert_fvit,
    "CAT-Seg": convert_catseg,
    "ODISE": convert_odise,
}
TESTS: dict[PublishedHead, Any] = {"F-ViT": is_published_fvit, "CAT-Seg": is_catseg, "ODISE": is_odise}
_FLAGS: dict[PublishedHead | None, tuple[str, ...]] = {
    None: ("to", "model", "text_from", "dtype"),
    "F-ViT": ("clip", "annotations", "novel", "benchmark", "size"),
    "CAT-Seg": ("residual", "vocab"),
    "ODISE": ("clip", "annotations", "labels", "encoder"),
}  # flags of each kind of source; None: a CLIP


def run(config: Convert) -> None:
    """Recognise the source, save it in its new layout, and open the result.

    Raises:
        InputError: the input does not load, the layout cannot express it, OUT is not empty, or the result differs.
    """
    _check_out(config.out)
    with hold_target(config.out):
        _check_out(config.out)  # another process may have finished
        _convert(config)


def _convert(config: Convert) -> None:
    if config.model is None:
        cure = f"Give a weights file or a tag as SOURCE, and --model {config.source}."
        check_weights(config.source, flag="SOURCE", cure=cure)
    published = published_head(Path(config.source))
    if published is not None and published[0] == "F-ViT" and config.text_from is not None:
        published = None  # convert its image tower to a CLIP
    _check_flags(config, None if published is None else published[0])
    if published is None:
        convert_clip(config)
    else:
        head, state = published
        CONVERTERS[head](config, state)


def _check_out(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"OUT: need a folder that is new or empty; {out} is not empty. Choose another.")
    if out.exists() and not out.is_dir():
        raise InputError(f"OUT: need a folder; {out} is a file. Choose another.")
    check_target(out / "config.json", flag="OUT")


def _check_flags(config: Convert, head: PublishedHead | None) -> None:
    """Refuse flags that the kind of file ignores (InputError)."""
    labels = {kind: "a CLIP" if kind is None else f"a published {kind}" for kind in _FLAGS}
    for name in sorted({flag for flags in _FLAGS.values() for flag in flags} - {*_FLAGS[head]}):
        if getattr(config, name) != getattr(Convert, name):
            kinds = " or ".join(labels[kind] for kind, flags in _FLAGS.items() if name in flags)
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"{flag}: is for {kinds}; {config.source} is {labels[head]}. Remove it.")


def published_head(path: Path) -> tuple[PublishedHead, dict[str, Tensor]] | None:
    """The kind and the tensors of a published head, recognised by their names; None: the file is something else."""
    if not path.is_file() or file_kind(path) != "torch":
        return None
    try:
        content = read_checkpoint(path)
    except InputError:  # loading it as a CLIP reports the reason
        return None
    if not isinstance(content, dict):
        return None
    for part in (content.get("state_dict"), content.get("model"), content):  # mmdet's, detectron2's, bare
        entries = part if isinstance(part, dict) else {}
        state = {name: value for name, value in entries.items() if isinstance(value, Tensor)}
        kind: PublishedHead | None = next((head for head, is_such in TESTS.items() if is_such(state)), None)
        if kind is None:
            continue
        invalid = [name for name in entries if name not in state]
        if invalid:
            raise InputError(
                f"{path}: need tensors, as of a published {kind}; {len(invalid)} entries are something else, such as "
                f"{invalid[0]!r}. Download it again."
            )
        return kind, state
    return None
