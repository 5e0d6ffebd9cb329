"""The real architectures: the sizes of each, built without memory; full-size numbers are in docs/architectures.md."""

import pytest
import torch

from foveate.clip.dense import default_windows, tower_stages
from foveate.clip.load import load
from foveate.errors import InputError

# native size and patch size [pixels], embedding size, stages: from the papers' and the libraries' tables
SIZES = {
    "EVA02-B-16": (224, 16, 512, 12),
    "EVA02-L-14": (224, 14, 768, 24),
    "EVA02-L-14-336": (336, 14, 768, 24),
    "ViT-B-32-quickgelu": (224, 32, 512, 12),
    "ViT-B-16-quickgelu": (224, 16, 512, 12),
    "ViT-L-14-quickgelu": (224, 14, 768, 24),
    "ViT-L-14-336-quickgelu": (336, 14, 768, 24),
    "ViT-B-32": (224, 32, 512, 12),
    "ViT-H-14": (224, 14, 1024, 32),
    "RN50": (224, 32, 1024, 5),
    "RN101": (224, 32, 512, 5),
    "RN50x4": (288, 32, 640, 5),
    "RN50x16": (384, 32, 768, 5),
    "RN50x64": (448, 32, 1024, 5),
    "ViT-B-16-SigLIP": (224, 16, 768, 13),
    "ViT-B-16-SigLIP2": (224, 16, 768, 13),
}
REFUSED = {
    "convnext_base": "ConvNeXt has no dense head in Foveate",
    "EVA02-E-14": "not EVA-02's pre-norm blocks",
    "PE-Core-B-16": "not EVA-02's pre-norm blocks",
    "MobileCLIP-B": "not gathered by SigLIP's attention pool",
    "MobileCLIP-S1": "FastVit has no dense head in Foveate",
    "ViT-L-14-CLIPA": "not the class token's",
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_of_architectures(name):
    with torch.device("meta"):
        clip = load(name, device="meta")
    found = (clip.native_size, clip.patch_size, clip.embed_dim, len(tower_stages(clip.visual)))
    assert found == SIZES[name]


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_towers_are_refused_with_a_reason(name):
    with torch.device("meta"), pytest.raises(InputError) as caught:
        load(name, device="meta")
    assert str(caught.value).startswith(f"{name}: ") and REFUSED[name] in str(caught.value)


@pytest.mark.parametrize(
    ("name", "whole"), [("EVA02-B-16", [2, 5, 8, 11]), ("EVA02-L-14", [5, 11, 17, 23]), ("ViT-H-14", [7, 15, 23, 31])]
)
def test_default_windows_equal_the_papers(name, whole):
    # Sec. 4.4: all blocks but the last of each quarter
    with torch.device("meta"):
        clip = load(name, device="meta")
    windows = default_windows(clip.visual)
    assert windows.size == 16
    assert sorted({*range(len(tower_stages(clip.visual)))} - set(windows.blocks)) == whole


def test_the_pool_of_siglip_has_no_windows():
    with torch.device("meta"):
        clip = load("ViT-B-16-SigLIP", device="meta")
    assert default_windows(clip.visual).blocks == (0, 1, 3, 4, 6, 7, 9, 10)
