"""`foveate convert` of a published CAT-Seg file: a folder for `foveate segment` and `evaluate semantic`.

Deliberately absent: what the file's names mean (`foveate.heads.catseg.published`).
"""

import sys

from torch import Tensor

from foveate.clip.vocabulary import read_vocabulary
from foveate.convert.flags import Convert
from foveate.heads.catseg.product import load_catseg
from foveate.heads.catseg.published import COCO_STUFF, write_published
from foveate.io.files import folder_written_whole


def convert_catseg(config: Convert, state: dict[str, Tensor]) -> None:
    """Write the CAT-Seg of a published file, with the CLIP that is inside the file.

    Args:
        config: of the command; `out` is new or empty.
        state: the file's state dictionary.

    Raises:
        InputError: the file is not whole, or of another network.
    """
    source, residual = config.source, config.residual
    classes = COCO_STUFF if config.vocab is None else read_vocabulary(config.vocab).classes
    with folder_written_whole(config.out) as partial:
        found = write_published(state, partial, source=source, residual=residual, classes=classes)
        load_catseg(partial)
    network = found.network
    guide = "" if network.backbone is None else f", guided by {network.backbone}"
    if found.unused:
        print(f"{source}: ignored {len(found.unused)} tensors of a stage that guides nothing, such as "
              f"{found.unused[0]}", file=sys.stderr)  # fmt: skip
    if residual is None and network.version == "2023":
        print("a file does not tell which residual it was trained with: took token, as CAT-Seg's own code of 2023; one "
              "that CLIPSelf's authors trained needs --residual cls", file=sys.stderr)  # fmt: skip
    sizes = found.clip_config["model_cfg"]["vision_cfg"]
    print(f"CAT-Seg of {network.version} on a ViT of {sizes['layers']} blocks, {sizes['width']} wide, patches of "
          f"{sizes['patch_size']} pixels{guide}; residual {network.residual}")  # fmt: skip
    print(f"{config.out}: {', '.join(sorted(path.name for path in config.out.iterdir()))}")
    print(f'  foveate segment IMAGES --model {config.out} --vocab "grass, dog, sky" --out ...')
