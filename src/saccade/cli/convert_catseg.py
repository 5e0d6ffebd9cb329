"""`saccade convert` of a published CAT-Seg file: a folder for `saccade segment` and `evaluate semantic`.

The file is told by the names of its tensors. The written folder is opened before it gets its name.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.errors import InputError
from saccade.heads.catseg.names import Residual

if TYPE_CHECKING:
    from torch import Tensor


def read_catseg_file(path: Path) -> "dict[str, Tensor] | None":
    """Read the tensors of a published CAT-Seg file; what lies beside them (an optimizer, say) is passed over.

    Args:
        path: any file.

    Returns:
        The tensors by their published names; None: it is something else.
    """
    from torch import Tensor

    from saccade.clip.checkpoint_file import read_checkpoint
    from saccade.clip.states import file_kind
    from saccade.heads.catseg.published import is_published

    if not path.is_file() or file_kind(path) != "torch":
        return None
    try:
        content = read_checkpoint(path)
    except InputError:  # whoever reads it as a CLIP says what is wrong with it
        return None
    state: Any = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not is_published(state):
        return None
    strange = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        raise InputError(f"{path}: need tensors under \"model\"; {len(strange)} entries are something else, such as "
                         f"{strange[0]!r}. Download it again.")  # fmt: skip
    return state


def write_catseg(
    state: "dict[str, Tensor]", partial: Path, *, source: str, residual: Residual | None, classes: str | None
) -> None:
    """Write the folder under a temporary name, and open it.

    Args:
        state: of `read_catseg_file`.
        partial: the temporary name.
        source: the file, for messages.
        residual: see `saccade.heads.catseg.published.read_published`.
        classes: the classes it was trained on, as `--vocab` takes them; None: COCO-Stuff's 171.

    Raises:
        InputError: the file is not whole, or of another network.
    """
    from saccade.clip.vocabulary import read_vocabulary
    from saccade.heads.catseg.product import load_catseg
    from saccade.heads.catseg.published import COCO_STUFF, write_published

    known = COCO_STUFF if classes is None else read_vocabulary(classes).classes
    found = write_published(state, partial, source=source, residual=residual, classes=known)
    load_catseg(partial)
    network = found.network
    guide = "" if network.backbone is None else f", guided by {network.backbone}"
    if found.unused:
        print(f"{source}: passed over {len(found.unused)} tensors of a stage that guides nothing, such as "
              f"{found.unused[0]}", file=sys.stderr)  # fmt: skip
    if residual is None and network.version == "2023":
        print("a file does not tell which residual it was trained with: took token, as CAT-Seg's own code of 2023; one "
              "that CLIPSelf's authors trained needs --residual cls", file=sys.stderr)  # fmt: skip
    sizes = found.clip_config["model_cfg"]["vision_cfg"]
    print(f"CAT-Seg of {network.version} on a ViT of {sizes['layers']} blocks, {sizes['width']} wide, patches of "
          f"{sizes['patch_size']} pixels{guide}; residual {network.residual}")  # fmt: skip
