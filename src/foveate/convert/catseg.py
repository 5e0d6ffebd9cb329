"""`foveate convert` of a published CAT-Seg file: a folder for `foveate segment` and `evaluate semantic`."""

import sys

from torch import Tensor

from foveate.clip.vocabulary import read_vocabulary
from foveate.convert.flags import Convert
from foveate.heads.catseg.product import load_catseg
from foveate.heads.catseg.published import COCO_STUFF, write_published
from foveate.io.files import folder_written_whole


def convert_catseg(config: Convert, state: dict[str, Tensor]) -> None:
    """Save the CAT-Seg and the CLIP of a published state dictionary.

    Raises:
        InputError: the file is incomplete, or of another network.
    """
    source, residual = config.source, config.residual
    classes = COCO_STUFF if config.vocab is None else read_vocabulary(config.vocab).classes
    with folder_written_whole(config.out) as partial:
        converted = write_published(state, partial, source=source, residual=residual, classes=classes)
        load_catseg(partial)
    network = converted.network
    guide = "" if network.backbone is None else f", guided by {network.backbone}"
    if converted.unused:
        print(f"{source}: ignored {len(converted.unused)} tensors of an unused stage, such as "
              f"{converted.unused[0]}", file=sys.stderr)  # fmt: skip
    if residual is None and network.version == "2023":
        print("the file does not state its residual: token is used, as in CAT-Seg's code of 2023; files of CLIPSelf's "
              "authors need --residual cls", file=sys.stderr)  # fmt: skip
    sizes = converted.clip_config["model_cfg"]["vision_cfg"]
    print(f"CAT-Seg of {network.version} on a ViT of {sizes['layers']} blocks, {sizes['width']} wide, patches of "
          f"{sizes['patch_size']} pixels{guide}; residual {network.residual}")  # fmt: skip
    print(f"{config.out}: {', '.join(sorted(path.name for path in config.out.iterdir()))}")
    print(f'  foveate segment IMAGES --model {config.out} --vocab "grass, dog, sky" --out ...')
