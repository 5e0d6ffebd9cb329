"""COCO-Stuff -> label maps of 171 classes (CAT-Seg's training data; A.3).

    ROOT/[images/]{train,val}2017/ID.jpg    ROOT/{annotations,stuffthingmaps}/{train,val}2017/ID.png (or the folders
    of ROOT/stuffthingmaps_trainval2017)    labels.txt of the data set's repository: "1: person" ... "182: wood"
    ROOT/annotations_detectron2/{train,val}2017/ID.png    as prepared for CAT-Seg: labels 0 to 170

The values of a map are ids minus one; 255 is unlabelled. Eleven of the 182 ids were never annotated and are no classes;
a pixel with one of them is an error. Ids up to 91 are things.
"""

from dataclasses import replace
from pathlib import Path

from foveate.data.labels import Labels, Repeated, read_labels
from foveate.data.semantic import PREPARED, SemanticData, coding_of, first_folder, pair_files
from foveate.errors import InputError

UNUSED_IDS = frozenset((12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91))  # never annotated
IDS = tuple(number for number in range(1, 183) if number not in UNUSED_IDS)
LAST_THING = 91
UNLABELLED = 255
NAMES = (  # of `labels.txt`, in the order of IDS; published models trained on these classes do not name them
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush", "banner", "blanket",
    "branch", "bridge", "building-other", "bush", "cabinet", "cage", "cardboard", "carpet", "ceiling-other",
    "ceiling-tile", "cloth", "clothes", "clouds", "counter", "cupboard", "curtain", "desk-stuff", "dirt", "door-stuff",
    "fence", "floor-marble", "floor-other", "floor-stone", "floor-tile", "floor-wood", "flower", "fog", "food-other",
    "fruit", "furniture-other", "grass", "gravel", "ground-other", "hill", "house", "leaves", "light", "mat", "metal",
    "mirror-stuff", "moss", "mountain", "mud", "napkin", "net", "paper", "pavement", "pillow", "plant-other",
    "plastic", "platform", "playingfield", "railing", "railroad", "river", "road", "rock", "roof", "rug", "salad",
    "sand", "sea", "shelf", "sky-other", "skyscraper", "snow", "solid-other", "stairs", "stone", "straw",
    "structural-other", "table", "tent", "textile-other", "towel", "tree", "vegetable", "wall-brick", "wall-concrete",
    "wall-other", "wall-panel", "wall-stone", "wall-tile", "wall-wood", "water-other", "waterdrops", "window-blind",
    "window-other", "wood",
)  # fmt: skip
HOMES = ("annotations", "stuffthingmaps", "stuffthingmaps_trainval2017", PREPARED)  # folders of the maps in a root


def read_stuff_labels(path: Path | str, *, repeated: Repeated = "refuse") -> Labels:
    """Read the names of the 171 classes from the data set's `labels.txt`, or another list with its ids.

    Raises:
        InputError: as `read_labels`, or a class is missing.
    """
    labels = read_labels(path, repeated=repeated, ids=IDS).choose(IDS)
    return replace(labels, is_thing=tuple(number <= LAST_THING for number in IDS))


def read_stuff(
    root: Path | str, *, split: str, labels: Labels, maps: Path | None = None, with_images: bool = True
) -> SemanticData:
    """Read one split of COCO-Stuff.

    Args:
        root: see the module.
        split: "train" or "val".
        labels: of `read_stuff_labels`, or another list with the same ids.
        maps: the folder that contains the label maps of both splits, if not in the root.
        with_images: as for `pair_files`.

    Raises:
        InputError: a folder or a map is missing, or the list has other classes.
    """
    root = Path(root)
    if split not in ("train", "val"):
        raise InputError(f'split: must be "train" or "val" for COCO-Stuff; got "{split}".')
    if labels.ids != IDS:
        raise InputError(f"labels: need COCO-Stuff's 171 classes by their ids; got {len(labels.ids)}.")
    year = f"{split}2017"
    image_folder = root / year
    if with_images:
        image_folder = first_folder(root, [f"images/{year}", year], what="images of COCO-Stuff")
    homes = [f"{home}/{year}" for home in HOMES]
    folder = first_folder(root, homes, what="maps of COCO-Stuff") if maps is None else maps / year
    return pair_files(
        f"COCO-Stuff {split}",
        image_folder=image_folder,
        maps=folder,
        labels=labels,
        coding=coding_of([number - 1 for number in IDS], none=UNLABELLED, maps=folder),
        with_images=with_images,
    )
