"""`segmentation`: Cat-Seg and panoptic inference at 640 pixels beside the same encoder alone, in time and memory.

    python benchmarks/segmentation.py --model EVA02-B-16 --size 640 --classes 150

The encoder alone makes one dense map of the whole image. Cat-Seg sees five views of 384 pixels and aggregates a map
a class; panoptic inference runs its generator (100 masks, Mask2Former's decoders on the tower) and the CLIP that names
masks. Random weights, random words: what is measured does not depend on them.
"""

import argparse
import json

import torch
import torch.nn.functional as F

from foveate.clip.load import load
from foveate.data.images import read_image
from foveate.heads.catseg.model import CatSeg, Network
from foveate.heads.common.text import ClassEmbeddings
from foveate.heads.panoptic.decoder import TowerEncoder, build_decoder
from foveate.heads.panoptic.mask2former import MaskGenerator
from foveate.heads.panoptic.segment import PanopticSegmenter, Query
from foveate.ops.resample import normalize
from foveate.types import Sample
from inputs import photographs
from measure import alone, arguments, passed_on, read, report, rise, take_turns

SIDES = ("encoder", "catseg", "panoptic")


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, size=640, batch=1, crops=0, repeats=1)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--only", choices=SIDES, help=argparse.SUPPRESS)
    options = read(parser)
    torch.manual_seed(0)
    device, count = options.device, options.classes
    ((path, _),) = photographs(1, crops=1, data=options.data)
    sample = Sample("image", read_image(path), torch.zeros(0, 4))

    clip = load(options.model, seed=0, device=device)
    rows = F.normalize(torch.randn(count, clip.embed_dim, device=device), dim=1)
    side = options.size // (2 * clip.patch_size) * 2 * clip.patch_size
    image = F.interpolate(sample.image[None].to(device).float(), size=(side, side), mode="bilinear", antialias=True)
    image = normalize(image, mean=clip.mean, std=clip.std)

    encoder = TowerEncoder(clip)
    is_novel = torch.zeros(count, dtype=torch.bool)
    classes = ClassEmbeddings(rows, torch.arange(count), count)
    generator = MaskGenerator(encoder, build_decoder(encoder.widths), is_novel=is_novel, size=side, classes=classes)
    asked = Query(classes, classes, torch.ones(count, dtype=torch.bool), is_novel)
    segmenter = PanopticSegmenter(generator.to(device), clip, asked, size=side)
    other = load(options.model, seed=0, device=device)  # Cat-Seg changes what learns
    network = Network(
        version="2024", residual="cls", backbone=None, size=384, clip_size=24 * other.patch_size, test_size=640,
        longest=2560, stride=256, window=12, hidden=128, guidance=128, decoder=(64, 32), decoder_guidance=(32, 16),
        tower_guidance=(256, 128), heads=4, layers=2, most=256,
    )  # fmt: skip
    catseg = CatSeg(other, network, vocabulary=["thing"]).eval()
    autocast = torch.autocast(device, torch.bfloat16, enabled=options.precision == "bfloat16")

    def encode() -> None:
        with torch.no_grad(), autocast:
            clip.encode_dense(image)

    def name_pixels() -> None:
        with autocast:
            catseg.label_maps([sample], rows[:, None], at_once=1)

    def find_things() -> None:
        with autocast:
            segmenter.panoptic(segmenter.score(sample))

    sides = dict(zip(SIDES, (encode, name_pixels, find_things), strict=True))
    if options.only:
        sides[options.only]()  # loads the library's code, which is nobody's tensors
        print(json.dumps(rise(sides[options.only], device)))
        return
    words = [*passed_on(options), "--classes", str(count), "--only"]
    memory = {name: int(alone(__file__, [*words, name])) / 1e6 for name in SIDES}
    seconds = take_turns(sides, repeats=options.repeats, device=device)
    report(
        "segmentation",
        options,
        ours=seconds["catseg"],
        plain=seconds["encoder"],
        ratio=seconds["encoder"] / seconds["catseg"],
        unit="seconds an image",
        seconds=seconds,
        megabytes=memory,
        classes=count,
    )


if __name__ == "__main__":
    main()
