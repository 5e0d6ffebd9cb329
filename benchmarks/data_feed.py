"""`data_feed`: JPEG files to training samples, loader worker and transport included; ours beside the plain loader.

    python benchmarks/data_feed.py --size 1024 --crops 13 --images 64

CPU milliseconds an image of this process and of its workers, which are waited for; and bytes a sample, as shipped. Our
workers decode; cutting and resizing happen on the compute device. What they cost where that device is this CPU is
`resize_ms` (and `ratio_with_resize` counts it in); on a GPU they are part of `step_exact`.
"""

import torch
from torch.utils.data import DataLoader

from foveate.clip.load import load
from foveate.data.loader import BatchSampler, ImageSource, make_loader
from foveate.data.records import Dataset, Record
from foveate.ops.boxes import boxes_on_input
from foveate.ops.resample import crop_and_resize, normalize, square_inputs
from inputs import Item, photographs, to_batch
from measure import arguments, read, report, seconds, take_turns
from sides import plain_images


def feed(items: list[Item], *, batch: int, workers: int) -> int:
    """Go once through our loader; bytes of all samples."""
    records = tuple(Record(str(i), path) for i, (path, _) in enumerate(items))
    source = ImageSource(Dataset("benchmark", (), records, {}), seed=0)
    sampler = BatchSampler(len(items), batch=batch, seed=0, batches=len(items) // batch)
    samples = [one for some in make_loader(source, sampler, workers=workers) for one in some.samples]
    assert len(samples) == len(sampler) * batch, "images are missing"
    return sum(tensor.nbytes for sample in samples for tensor in (sample.image, sample.boxes))


def plain_feed(loader: DataLoader) -> int:
    """Go once through the plain loader; bytes of all samples."""
    return sum(tensor.nbytes for batch in loader for tensor in batch)


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, size=1024, crops=13)
    parser.add_argument("--images", type=int, default=48, help="files a turn")
    parser.add_argument("--workers", type=int, default=1, help="loader processes")
    options = read(parser)
    count = options.images // options.batch * options.batch
    items = photographs(count, crops=options.crops, data=options.data)
    count = len(items) // options.batch * options.batch
    clip = load(options.model, device="meta")
    images = plain_images(items[:count], clip, size=options.size)
    loader = DataLoader(images, batch_size=options.batch, num_workers=options.workers)
    sizes: dict[str, int] = {}
    sides = {
        "ours": lambda: sizes.update(ours=feed(items[:count], batch=options.batch, workers=options.workers)),
        "plain": lambda: sizes.update(plain=plain_feed(loader)),
    }
    taken = {side: 1000 * one / count for side, one in take_turns(sides, repeats=options.repeats, device="cpu").items()}
    resize = min(resize_ms(items[:4], clip, options) for _ in range(options.repeats + 1))
    report(
        "data_feed",
        options,
        ours=taken["ours"],
        plain=taken["plain"],
        ratio=taken["plain"] / taken["ours"],
        unit="CPU milliseconds an image",
        images_per_second_a_core=1000 / taken["ours"],
        megabytes={side: one / count / 1e6 for side, one in sizes.items()},
        resize_ms=resize,
        ratio_with_resize=taken["plain"] / (taken["ours"] + resize),
        workers=options.workers,
    )


@torch.inference_mode()
def resize_ms(items: list[Item], clip, options) -> float:
    """What the compute device does for an image, here on the CPU."""
    samples = to_batch(items).samples

    def run() -> None:
        for sample in samples:
            normalize(crop_and_resize(sample.image, sample.boxes, size=clip.native_size), mean=clip.mean, std=clip.std)
            square_inputs([sample.image], size=options.size, mean=clip.mean, std=clip.std)
            height, width = sample.image.shape[1:]
            boxes_on_input(sample.boxes, height=height, width=width, size=options.size)

    return 1000 * seconds(run, "cpu") / len(samples)


if __name__ == "__main__":
    main()
