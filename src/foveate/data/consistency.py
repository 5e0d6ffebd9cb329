"""Annotations that contradict their image, area or mask: counted by kind, and refused where they are the rule.

A reader shows each object to `Checks`, which returns its box and at the end a `Consistency`. Single contradictions are
a line each. Where more than a fifth of the boxes contradict their image, the file has another meaning (corners for
sides, parts for pixels, turned or resized images), which would go unnoticed: `open_data` refuses it by that meaning,
unless the user accepts it. Rounding, up to 3 pixels or 2 % of the image, is no contradiction; boxes of crowds may be
loose.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float64

from foveate.data.boxes import ImageBoxes
from foveate.data.images import ImageError, is_turned_by_exif, upright_size
from foveate.data.instance_masks import encode_mask, extent_of_mask, extent_of_polygons
from foveate.data.panoptic import compare_segments, extent_of_segment
from foveate.data.records import Box, Consistency, Dataset, IgnoredEntries, Record
from foveate.data.validation import NOT_FINITE, ListedImage, clip_box, count_ignored, read_xywh
from foveate.errors import InputError

MAX_SHARE = 0.2  # of the boxes; above it the file is refused
MIN_FITTING = 0.9  # of the contradicting boxes, which another meaning explains
MIN_REFUSED = 3  # objects; fewer never refuse a file
SLACK_PIXELS, SLACK = 3.0, 0.02  # rounding [pixels, part of the image's side]
MAX_HEADERS, MAX_PNGS = 64, 16  # images of which headers, and panoptic PNGs, are read when the data is opened
MAX_AREA = 1e18  # [square pixels]; a larger one is no area
MAX_DECODED = 1_000  # PNGs that are decoded for boxes that are missing

NO_BOX = "object has no `bbox`, and no mask to take it from"
BOX_OF_MASK = "object has no `bbox`: its box is the extent of its mask"
BEYOND = f"box reaches beyond its image by more than {SLACK:.0%}"
OFF_MASK = "box is not the extent of its mask"
TWICE = "object is listed twice (equal image, category and box)"
IMAGE_TWICE = "image is listed twice (one file under two ids)"
UNLISTED = "image has pixels of segments that its annotation does not list, or that were ignored"

Form = Literal["[x, y, width, height]", "[x1, y1, x2, y2]"]
CORNERS = "are these corners [x1, y1, x2, y2]?"
SIDES = "are these [x, y, width, height]?"
CENTRES = "are these centres [x, y, width, height]?"
NEGATIVE = "their width or height is negative."
TURNED = "were the images turned (width and height swapped)?"
OTHER_SIZE = "are these boxes of other images, or of another size of them?"
ACCEPT = "Correct the file; --accept-annotations takes it as it is."


class Checks:
    """Counts what the objects of one annotation file contradict."""

    def __init__(self, path: Path | str, *, form: Form = "[x, y, width, height]") -> None:
        """Start with no object.

        Args:
            path: of the file, for messages.
            form: how the file writes boxes, for messages.
        """
        self.path, self.form = path, form
        self.ignored: dict[str, IgnoredEntries] = {}  # objects, by reason; the reader counts them
        self.kinds: dict[str, IgnoredEntries] = {}
        self.objects = self.boxes = self.crowds = self.parts = self.fit_corners = self.images = self.decoded = 0
        self.contradicting: IgnoredEntries | None = None
        self.meanings: Counter[str] = Counter()  # of the contradicting boxes, those that fit another meaning
        self.seen: set[int] = set()  # hashes of (image, category, box)
        self.outside: dict[int | str, None] = {}  # ids of images whose boxes fit the turned image

    def see_images(self, images: dict[int | str, ListedImage]) -> None:
        """Count the images whose file another id has too."""
        self.images = len(images)
        names: set[PurePosixPath] = set()
        for key, image in images.items():
            name = PurePosixPath(image.name)
            if name in names:
                count_ignored(self.kinds, IMAGE_TWICE, f"{self.path}: image {key!r}")
            names.add(name)

    def box_of(
        self,
        where: str,
        entry: dict[str, Any],
        image: ListedImage,
        *,
        label: int,
        crowd: bool,
        mask: bytes | str = b"",
        png: Path | None = None,
    ) -> Box | str:
        """Read the box of an annotation, or the reason why the object is ignored.

        Args:
            where: the annotation's name in messages.
            entry: the annotation.
            image: that it is of.
            label: of its category.
            crowd: whether it is a crowd, whose box may be loose.
            mask: compressed run lengths, where masks are read.
            png: of a panoptic file, whose pixels of this segment give a box that is missing.

        Returns:
            xyxy, pixels of the image, clipped to it. An object without `bbox` has the extent of its mask.
        """
        self.objects += 1
        self.crowds += crowd
        box = read_xywh(where, entry.get("bbox"))
        extent = None if crowd else extent_of_polygons(entry.get("segmentation"))
        if extent is None and mask and isinstance(mask, bytes) and not crowd:
            extent = extent_of_mask(mask, height=image.height, width=image.width)
        if box is None:
            box = box_of_segmentation(where, entry, image) if png is None else self._box_in_png(entry, image, png)
            if box is None:
                return NO_BOX
            count_ignored(self.kinds, BOX_OF_MASK, where)
            extent = None
        area = entry.get("area")
        return self.see(
            where,
            box,
            image,
            key=(entry["image_id"], label) if "image_id" in entry else None,
            crowd=crowd,
            area=float(area) if isinstance(area, int | float) and abs(area) < MAX_AREA else None,
            extent=extent,
        )

    def _box_in_png(self, entry: dict[str, Any], image: ListedImage, png: Path) -> Box | None:
        """The extent of a segment as x, y, width, height; None: it is not found, or so many were decoded already."""
        self.decoded += 1
        is_read = self.decoded <= MAX_DECODED and not png.is_symlink()  # where links lead is checked later
        extent = extent_of_segment(png, entry["id"], size=(image.height, image.width)) if is_read else None
        return None if extent is None else (extent[0], extent[1], extent[2] - extent[0], extent[3] - extent[1])

    def see(
        self,
        where: str,
        box: Box,
        image: ListedImage,
        *,
        key: tuple[Any, int] | None = None,
        crowd: bool,
        area: float | None = None,
        extent: Box | None = None,
    ) -> Box | str:
        """Clip a box and count what it contradicts.

        Args:
            where: the annotation's name in messages.
            box: x, y, width, height [pixels], as the file has them.
            image: that it is of.
            key: (id of the image, label of the category), of which each box occurs once; None: not counted.
            crowd: whether it is a crowd.
            area: as the file has it [square pixels].
            extent: of the object's mask, xyxy [pixels].

        Returns:
            xyxy, clipped to the image, or the reason why it is ignored.
        """
        x, y, w, h = box
        x2, y2 = x + w, y + h
        clipped = clip_box((x, y, x2, y2), height=image.height, width=image.width)
        if clipped is NOT_FINITE:
            return clipped
        self.boxes += 1
        if key is not None:
            identity = hash((key, box))
            if identity in self.seen:
                count_ignored(self.kinds, TWICE, where)
            self.seen.add(identity)
        # the common case first: files have millions of boxes
        across, down = _slack(image)
        is_beyond = x < -across or y < -down or x2 > image.width + across or y2 > image.height + down
        is_off = extent is not None and not (
            abs(x - extent[0]) <= across
            and abs(x2 - extent[2]) <= across
            and abs(y - extent[1]) <= down
            and abs(y2 - extent[3]) <= down
        )
        if is_beyond or is_off or w < 0 or h < 0 or (area and w > x and h > y and _is_area_of_corners(box, area)):
            is_turned = self._contradict(where, box, image, extent)
            if is_off and not isinstance(clipped, str):
                count_ignored(self.kinds, OFF_MASK, where)
            if is_beyond and not isinstance(clipped, str):
                count_ignored(self.kinds, BEYOND, where)
            if is_turned and key is not None and len(self.outside) < MAX_HEADERS:
                self.outside[key[0]] = None
        self.fit_corners += x < w <= image.width + across and y < h <= image.height + down
        self.parts += isinstance(clipped, str) and min(box) >= 0 and max(box) <= 1 and any(side % 1 for side in box)
        return clipped

    def _contradict(self, where: str, box: Box, image: ListedImage, extent: Box | None) -> bool:
        """Count a box that contradicts its image, and the other meanings that it may have.

        Returns:
            Whether it is one of the turned image.
        """
        entry = IgnoredEntries(1, where)
        self.contradicting = entry if self.contradicting is None else self.contradicting + entry
        x, y, w, h = box
        sides = (x, y, x + w, y + h)
        if self.form == "[x1, y1, x2, y2]":
            meanings = {SIDES: (x, y, x + sides[2], y + sides[3])}
        else:
            meanings = {CORNERS: box, CENTRES: (x - w / 2, y - h / 2, x + w / 2, y + h / 2)}
            self.meanings[NEGATIVE] += w < 0 or h < 0
        for meaning, corners in meanings.items():
            is_near = extent is None or _is_near(corners, extent, image)
            self.meanings[meaning] += is_near and _is_within(corners, image)
        turned = ListedImage(image.name, image.width, image.height)
        is_turned = _is_within(sides, turned)
        if extent is None or _is_near(sides, extent, image):
            is_turned = is_turned and not _is_within(sides, image)
        else:  # the mask, in the image as stored, turned to either side
            x1, y1, x2, y2 = extent
            either = ((image.height - y2, x1, image.height - y1, x2), (y1, image.width - x2, y2, image.width - x1))
            is_turned = is_turned and any(_is_near(sides, corners, turned) for corners in either)
        self.meanings[TURNED] += is_turned
        return is_turned

    def finish(self) -> Consistency:
        """What was counted."""
        return Consistency(dict(self.kinds), self._doubt(), tuple(self.outside))

    def _doubt(self) -> str:
        """Why the file is refused unless the user accepts it; empty: it is not."""
        need = f"{self.path}: need boxes {self.form} in pixels of their images"
        contradicting = self.contradicting
        ignored = sum(entry.count for entry in self.ignored.values())
        if self.boxes and _is_rule(self.parts, self.boxes):
            return (
                f"{need}; {self.parts} of {self.boxes} are fractions of the image's sides, from 0 to 1 (normalised). "
                "Multiply them by the image's width and height."
            )
        if contradicting is not None and (_is_rule(contradicting.count, self.boxes) or self._are_corners()):
            meaning, fitting = self.meanings.most_common(1)[0]
            question = meaning if fitting >= MIN_FITTING * contradicting.count else OTHER_SIZE
            return (
                f"{need}; {contradicting.count} of {self.boxes} contradict their image, area or mask, the first: "
                f"{contradicting.first}; {question} {ACCEPT}"
            )
        if MIN_REFUSED <= self.objects == self.crowds:
            return (
                f"{self.path}: need objects; all {self.objects} objects are crowds (`iscrowd` 1), which are neither "
                "trained on nor measured; exporters set it for run lengths. Set `iscrowd` to 0; --accept-annotations "
                "takes the file as it is."
            )
        if MIN_REFUSED <= self.objects == ignored:
            reason, entry = max(self.ignored.items(), key=lambda item: item[1].count)
            return (
                f"{self.path}: need objects that can be used; all {self.objects} are ignored, {entry.count} because: "
                f"{reason} (the first: {entry.first}). Correct the file."
            )
        for kind, total in ((IMAGE_TWICE, self.images), (TWICE, self.boxes)):
            if kind in self.kinds and _is_rule(self.kinds[kind].count, total):
                return (
                    f"{self.path}: need every image and object once; got {self.kinds[kind].count} of {total} "
                    f"repeated: {kind}, the first: {self.kinds[kind].first}. Was a file merged with itself? {ACCEPT}"
                )
        return ""

    def _are_corners(self) -> bool:
        """Whether every box fits as corners, and some fit only so; near the origin corners fit as sides too."""
        count = 0 if self.contradicting is None else self.contradicting.count
        return self.fit_corners == self.boxes and MIN_REFUSED <= count == self.meanings[CORNERS]


def box_of_segmentation(where: str, entry: dict[str, Any], image: ListedImage) -> Box | None:
    """The extent of an annotation's mask as x, y, width, height [pixels]; None: it has no usable mask."""
    extent = extent_of_polygons(entry.get("segmentation"))
    if extent is None and isinstance(entry.get("segmentation"), dict):
        mask = encode_mask(where, entry["segmentation"], height=image.height, width=image.width)
        extent = None if isinstance(mask, str) else extent_of_mask(mask, height=image.height, width=image.width)
    return None if extent is None else (extent[0], extent[1], extent[2] - extent[0], extent[3] - extent[1])


def usable_areas(
    areas: Sequence[float], boxes: Sequence[Box]
) -> tuple[Float64[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
    """Replace areas that are none by those of the boxes.

    An area is none if it is NaN, negative, or above its box's by more than rounding; if it is 0 though the box has
    pixels; and if all are below a hundredth of their boxes', as where they are parts of the image.

    Args:
        areas: of the objects as the file has them [square pixels]; NaN: it has none.
        boxes: x, y, width, height [pixels].

    Returns:
        The areas, and which of them were replaced.
    """
    given = np.array(areas, dtype=np.float64)
    sides = np.array(boxes, dtype=np.float64).reshape(-1, 4)[:, 2:]
    whole = sides.prod(axis=1)
    with np.errstate(invalid="ignore"):
        is_none = ~(given >= 0)
        is_none |= (given > 1.1 * whole) & (given > whole + 2 * sides.sum(axis=1) + 4)
        is_none |= (given == 0) & (whole >= 4)
        if len(given) >= MIN_REFUSED and (given[whole >= 4] < 0.01 * whole[whole >= 4]).all():
            is_none |= whole >= 4
    return np.where(is_none, whole, given), is_none


# ------------------------------------------------------------------------------------------------- the data when opened


def accepted(dataset: Dataset, *, accept: bool) -> Dataset:
    """Check a data set that is opened: what its reader found, the EXIF rotation of images, panoptic boxes.

    Args:
        dataset: of any reader.
        accept: `--accept-annotations`.

    Returns:
        The data set with what was found in its `consistency`.

    Raises:
        InputError: a contradiction that is the rule, which is not accepted.
    """
    found = dataset.consistency
    if not found.doubt and any(record.panoptic for record in dataset.records[:1]):
        found = _with_segments(dataset)
    if CORNERS not in found.doubt:
        found = _with_turns(dataset, found)
    if found.doubt and not accept:
        raise InputError(found.doubt)
    return dataset if found == dataset.consistency else replace(dataset, consistency=found)


def check_file_boxes(path: Path, images: Sequence[tuple[Record, ImageBoxes]], *, accept: bool) -> Consistency:
    """Check the boxes of a file of boxes, which need no classes and may be repeated.

    Args:
        path: of the file, for messages.
        images: with the boxes that the file has of each. Where neither states its size, the headers of some are read.
        accept: `--accept-annotations`.

    Raises:
        InputError: as `accepted`.
    """
    as_corners = any(boxes.as_corners for _, boxes in images)
    checks = Checks(path, form="[x1, y1, x2, y2]" if as_corners else "[x, y, width, height]")
    unknown = 0
    for record, given in images:
        size = record.size or ((given.height, given.width) if given.height and given.width else None)
        if size is None and unknown < MAX_HEADERS and record.member is None:
            unknown += 1
            with suppress(ImageError):  # reported where it is read
                size = upright_size(record.path)
        if size is not None:
            for x1, y1, x2, y2 in given.boxes:
                image = ListedImage(str(record.id), *size)
                checks.see(f"{path}: image {record.id}", (x1, y1, x2 - x1, y2 - y1), image, crowd=False)
    found = checks.finish()
    if found.doubt and not accept:
        raise InputError(found.doubt)
    return found


def _with_turns(dataset: Dataset, found: Consistency) -> Consistency:
    """Count the images that are annotated as they are stored, although their EXIF block turns them."""
    if not any(record.size for record in dataset.records[:1]):
        return found
    outside = set(found.outside)
    records = [record for record in dataset.records if record.id in outside] if outside else []
    records += [record for record in _spread(dataset.records, MAX_HEADERS) if record.id not in outside]
    turned = [record for record in records if _is_stored(record)]
    if not turned:
        return found
    suspects = [record for record in turned if record.id in outside]
    kind = f"image is annotated as stored: its EXIF rotation is not applied ({len(records)} images looked at)"
    kinds = {**found.kinds, kind: IgnoredEntries(len(turned), str(turned[0].path))}
    doubt = found.doubt
    if len(suspects) >= min(MIN_REFUSED, len(turned)) and len(suspects) > MAX_SHARE * len(turned):
        doubt = (
            f"{dataset.file or dataset.name}: need boxes in the frame of the stated height and width; {len(turned)} of "
            f"{len(records)} images looked at are stated as stored, but their EXIF block rotates them, and the boxes "
            f"of {len(suspects)} fit only the rotated image, the first: {suspects[0].path}. Write the height and width "
            "of the rotated image; --accept-annotations takes the file as it is."
        )
    return replace(found, kinds=kinds, doubt=doubt)


def _is_stored(record: Record) -> bool:
    """Whether an image is annotated as stored although EXIF turns it by 90 degrees; False: it cannot be read."""
    try:
        return record.size is not None and record.member is None and is_turned_by_exif(record.path, record.size)
    except ImageError:  # reported where it is read
        return False


def _with_segments(dataset: Dataset) -> Consistency:
    """Compare the annotated boxes of things with the pixels of their segments, in some of the PNGs."""
    checks = Checks(dataset.file or dataset.name)
    unlisted = 0
    records = [record for record in _spread(dataset.records, MAX_PNGS) if record.panoptic is not None]
    for record in records:
        assert record.size is not None, f"{record.id}: a record of a panoptic file has a size"
        try:
            extents, pixels = compare_segments(record)
        except ImageError:  # reported where it is read
            continue
        image = ListedImage(str(record.id), *record.size)
        rows = zip(record.boxes, record.labels, record.crowd, record.segment_ids, extents, strict=True)
        for (x1, y1, x2, y2), label, crowd, key, extent in rows:
            is_compared = dataset.categories[label].is_thing and not crowd
            where = f"{record.panoptic}: segment {key}"
            box = (x1, y1, x2 - x1, y2 - y1)
            checks.see(where, box, image, crowd=crowd, extent=extent if is_compared else None)
        if pixels:
            unlisted += pixels
            count_ignored(checks.kinds, UNLISTED, f"{record.panoptic} ({pixels:,} pixels)")
    found = checks.finish()
    kinds = dict(dataset.consistency.kinds)
    for kind in (OFF_MASK, UNLISTED):
        if kind in found.kinds:
            kinds[f"{kind} ({len(records)} images looked at)"] = found.kinds[kind]
    return replace(dataset.consistency, kinds=kinds, doubt=found.doubt)


def _spread(records: Sequence[Record], limit: int) -> list[Record]:
    """At most so many records, evenly spread over all."""
    return [records[index] for index in sorted({i * len(records) // limit for i in range(limit)})] if records else []


def _is_rule(count: int, total: int) -> bool:
    return count >= MIN_REFUSED and count > MAX_SHARE * total


def _slack(image: ListedImage) -> tuple[float, float]:
    return max(SLACK_PIXELS, SLACK * image.width), max(SLACK_PIXELS, SLACK * image.height)


def _is_within(box: Box, image: ListedImage) -> bool:
    across, down = _slack(image)
    is_within = -across <= box[0] < box[2] and -down <= box[1] < box[3]
    return is_within and box[2] <= image.width + across and box[3] <= image.height + down


def _is_near(box: Box, extent: Box, image: ListedImage) -> bool:
    return all(abs(a - b) <= c for a, b, c in zip(box, extent, 2 * _slack(image), strict=True))


def _is_area_of_corners(box: Box, area: float) -> bool:
    """Whether the area is that of the box if its numbers are corners, and far from that of its sides."""
    x, y, w, h = box
    return w > x and h > y and abs((w - x) * (h - y) - area) <= 0.01 * area and abs(w * h - area) > 0.1 * area
