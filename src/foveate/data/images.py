"""Bounded image decoding: a file from anywhere -> uint8 RGB, or an error that names the file and what to do.

The header is checked before a pixel is decoded (number of pixels, aspect ratio, the annotated size), so that a
decompression bomb costs nothing. Only Pillow's JPEG, PNG, WebP, BMP and TIFF readers open images, and only its PNG and
TIFF readers label maps; torchvision's PNG reader ends the process on damaged files. The result is what a viewer shows:
EXIF rotation applied, 16-bit grey scaled to 8 bits, alpha composited over a given colour, CMYK, palette and grey
converted, the first frame of an animation or page. Of TIFF only grey and RGB of 8 and 16 bits are read. Label maps keep
their values. Colour profiles are ignored; truncated files are refused.

An image of more than 25 million pixels is converted in strips; of a JPEG, brightness and colour are decoded apart, the
colour at half the size (Pillow's draft), as most encoders store it. So one of 50 million pixels takes 260 MB, 150 MB of
them the result, and coordinates stay those of the file. Other formats have no draft: PNG and BMP take 360 MB.
"""

import io
import math
import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from foveate.data.jpeg import file_content, find_gap, is_cut_short
from foveate.errors import InputError, listed
from foveate.io.content import HEAD, content_kind
from foveate.io.files import reason_of

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
MAP_FORMATS = ("PNG", "TIFF")  # of label maps; lossless
NAMES = {"JPEG": "JPEG", "PNG": "PNG", "WEBP": "WebP", "BMP": "BMP", "TIFF": "TIFF"}
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff")
UNREAD_SUFFIXES = (
    *(".gif", ".avif", ".heic", ".heif", ".jp2", ".j2k", ".jpx", ".jxl", ".svg", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".tga", ".ico", ".psd", ".exr", ".hdr", ".dcm", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
)  # of images in formats that are not read
PARTIAL_SUFFIXES = (".part", ".partial", ".crdownload", ".download", ".filepart", ".aria2", ".tmp")
COMPRESSED_SHARDS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
MAX_PROBED = 100  # files of each other suffix whose content is looked at
TIFF_MODES = ("L", "LA", "RGB", "RGBA", "RGBX", "YCbCr")  # Pillow's, besides 16-bit grey; YCbCr: compressed as JPEG
TILE_WIDTH, TILE_LENGTH = 322, 323  # tags of TIFF
MAX_PIXELS = 50_000_000
LARGE = 25_000_000  # pixels; larger images are converted in strips
STRIP = 64  # rows, a multiple of 2
MAX_ASPECT = 20.0
BYTES_PER_PIXEL = 8  # an upper bound for files: 16-bit RGBA, uncompressed
BACKGROUND = (128, 128, 128)  # of transparent pixels
TURNS = {  # EXIF orientation -> the transpose that shows the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ORIENTATION = 0x0112
ONE_COLOUR = "image of one colour"
DARK = "16-bit image without a value above 4095, nearly black: are these 12-bit data? Multiply the values by 16"
SWAPPING = (5, 6, 7, 8)  # orientations that swap height and width


class ImageError(InputError):
    """An image file that cannot be used; the message names it, what was expected, and what to do."""


def read_image(
    path: Path | str,
    *,
    expected_size: tuple[int, int] | None = None,
    part: tuple[int, int] | None = None,
    name: str | None = None,
    remarks: list[str] | None = None,
) -> UInt8[Tensor, "3 H W"]:
    """Decode one image file, or an image within a file, within bounds.

    Args:
        path: a JPEG, PNG, WebP, BMP or TIFF file, recognised by content, not by name.
        expected_size: annotated (height, width) [pixels]. EXIF rotation is then applied if the rotated image has this
            size, and ignored if only the unrotated image has it. None: always applied.
        part: (first byte, number of bytes) of the image within the file, as in a tar shard; None: the whole file.
        name: of the image in messages; default: its path.
        remarks: receives what is odd about the pixels (`ONE_COLOUR`, `DARK`).

    Returns:
        RGB in 0..255, contiguous; transparent pixels are composited over grey (128).

    Raises:
        ImageError: missing, empty, truncated or damaged, another format, over a limit, or not of the expected size.
    """
    name = str(path) if name is None else name
    with _opened(Path(path), name, part=part, expected_size=expected_size) as image:
        _check_tiff(name, image)
        is_deep = image.mode.startswith("I") or _raw_mode(image).startswith("RGB;16")
        if image.width * image.height > LARGE:
            planes = _read_large(Path(path), name, image, part=part, expected_size=expected_size)
        else:
            _load(name, image)
            turn = _turn(name, image, expected_size)
            rgb = _to_rgb(image)
            upright = rgb if turn is None else rgb.transpose(turn)
            planes = np.stack([np.asarray(plane) for plane in upright.split()])  # (3, H, W); beats a transpose
        if remarks is not None:
            remarks += _remarks(image, planes, is_deep=is_deep)
    return torch.from_numpy(planes)


def read_values(
    path: Path | str, *, bits: int | None, expected_size: tuple[int, int] | None = None
) -> Int64[Tensor, "H W"]:
    """Decode a label map: one integer per pixel, unchanged; of a palette image the palette indices.

    Args:
        path: a PNG or TIFF file, recognised by content, not by name.
        bits: 8 or 16 per pixel; None: either.
        expected_size: (height, width) [pixels] of the image that it labels.

    Raises:
        ImageError: as `read_image`, or the file has colours or another number of bits.
    """
    with _opened(Path(path), str(path), formats=MAP_FORMATS, expected_size=expected_size) as image:
        height, width = expected_size or (image.height, image.width)
        if (height, width) != (image.height, image.width):
            raise ImageError(f"{path}: need {height} x {width} (height x width), as the image; it is "
                             f"{image.height} x {image.width}. Was one of the two rotated?")  # fmt: skip
        is_deep, mode = image.mode.startswith("I;16"), image.mode
        # Pillow stretches grey of 2 and 4 bits to 0..255; only the raw mode of the file's tiles shows it
        if _raw_mode(image) in ("L;2", "L;4"):
            mode = "grey of less than 8 bits"
        depth = 16 if is_deep else 8 if mode in ("L", "P") else None
        if depth is None or bits not in (None, depth):
            titles = {"RGB": "colours", "RGBA": "colours", "L": "8 bits", "P": "a palette of 8 bits"}
            raise ImageError(
                f"{path}: need one integer of {bits or '8 or 16'} bits per pixel; got "
                f"{'16 bits' if is_deep else titles.get(mode, mode)}. "
                "Is this the map of another data set, or was it converted by another tool?"
            )
        values = np.asarray(image).astype(np.int64)  # (H, W)
    return torch.from_numpy(values)


def header_size(path: Path | str) -> tuple[int, int]:
    """Read (height, width) [pixels] from the header of a label map, without decoding it.

    Raises:
        ImageError: as `read_values`.
    """
    with _opened(Path(path), str(path), formats=MAP_FORMATS) as image:
        return image.height, image.width


def check_size(path: Path | str, size: tuple[int, int]) -> None:
    """Check the size in an image's header against (height, width) [pixels], without decoding the image.

    Raises:
        ImageError: as `read_image`, or another size.
    """
    with _opened(Path(path), str(path), expected_size=size) as image:
        if image.format != "TIFF":  # of which Pillow states the upright size, but the rotation too
            _turn(str(path), image, size)


def upright_size(path: Path | str) -> tuple[int, int]:
    """Read (height, width) [pixels] of an image as it is shown, after EXIF rotation, from its header.

    Raises:
        ImageError: as `read_image`.
    """
    with _opened(Path(path), str(path)) as image:
        # of TIFF, Pillow states the upright size, but the rotation too
        is_on_side = image.format != "TIFF" and _orientation(image) in SWAPPING
        return (image.width, image.height) if is_on_side else (image.height, image.width)


def is_turned_by_exif(path: Path | str, size: tuple[int, int]) -> bool:
    """Whether EXIF turns an image by 90 degrees, which `read_image` ignores since it is annotated as stored.

    Args:
        size: annotated (height, width) [pixels].

    Raises:
        ImageError: as `read_image`.
    """
    with _opened(Path(path), str(path)) as image:
        is_stored = size == (image.height, image.width) and image.height != image.width and image.format != "TIFF"
        return is_stored and _orientation(image) in SWAPPING


@contextmanager
def _opened(
    path: Path,
    name: str,
    *,
    part: tuple[int, int] | None = None,
    formats: tuple[str, ...] = FORMATS,
    expected_size: tuple[int, int] | None = None,
) -> Iterator[Image.Image]:
    """Open an image whose header is within the bounds; every error, also of decoding in the block, names the file."""
    kinds = ", ".join(NAMES[key] for key in formats[:-1]) + f" or {NAMES[formats[-1]]}"
    content = _open(path, name, part)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd EXIF blocks and of sizes that are checked below
            with Image.open(content, formats=formats) as image:
                _check_header(name, image, expected_size)
                yield image
    except (ImageError, MemoryError):  # without memory no image is readable, whatever it holds
        raise
    except UnidentifiedImageError as error:
        kind = content_kind(_head(path, part))
        got, do = "the content has another format, or its header is damaged", "Convert it, fetch it again"
        if kind is not None and kind.noun not in [f"a {NAMES[key]} image" for key in formats]:
            got, do = f"it is {kind.noun}", kind.advice
        raise ImageError(f"{name}: need a {kinds} image; {got}. {do}, or remove it from the data.") from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name}: need at most {MAX_PIXELS:,} pixels; {error} Make it smaller or remove it."
        ) from error
    except Exception as error:  # Pillow's readers raise exceptions of any kind on a damaged file
        if isinstance(error, OSError) and error.errno is not None:  # the system's, not a decoder's
            raise ImageError(f"{name}: need a readable file; {reason_of(error)}. Check its permissions.") from error
        raise ImageError(
            f"{name}: need a whole image; decoding stopped with {type(error).__name__}: {error}. "
            "The file is damaged or truncated: fetch it again, or remove it from the data."
        ) from error


class Listing(NamedTuple):
    """The image files of a folder, and which of its files are ignored."""

    images: list[Path]
    ignored: dict[str, tuple[int, str]]  # the number and the first, by reason
    folders: list[Path]  # the folder and those below it that were listed


def list_images(folder: Path | str) -> Listing:
    """List the image files under a folder, by their suffix, sorted by their path within it.

    Hidden files and folders are ignored, linked folders are not entered.

    Raises:
        InputError: the folder does not exist or contains no image, or a link leads out of it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: need a folder of images; not found. Check the path.")
    images, links, others = list[Path](), list[Path](), dict[str, list[Path]]()
    unreadable, listed_folders = list[Path](), list[Path]()
    for parent, folders, names in os.walk(folder, onerror=lambda error: unreadable.append(Path(error.filename))):
        listed_folders.append(Path(parent))
        folders[:] = [name for name in folders if not name.startswith(".")]
        links += [path for name in folders if (path := Path(parent, name)).is_symlink()]
        shown = [name for name in names if not name.startswith(".")]
        images += [Path(parent, name) for name in shown if name.lower().endswith(SUFFIXES)]
        for name in shown:
            if not name.lower().endswith(SUFFIXES):
                others.setdefault(_suffix(name), []).append(Path(parent, name))
    for path in images:
        if path.is_symlink():
            check_inside(path, folder)
    _check_names(folder, images)
    if not images:
        raise InputError(_no_images(folder, links, others))
    shards = [path for suffix in COMPRESSED_SHARDS for path in others.get(suffix, [])]
    unread, kinds = _unread(others)
    groups = {
        f"image in a format that is not read ({kinds}): convert it": unread,
        "download that is not complete": others.get(PARTIAL_SUFFIXES[0], []),
        "compressed shard, which is not read: unpack it": shards,
        "linked folder, which is not entered": links,
        "folder that cannot be read": unreadable,
    }
    ignored = {
        reason: (len(paths), min(path.relative_to(folder).as_posix() for path in paths))
        for reason, paths in groups.items()
        if paths
    }
    images.sort(key=lambda path: path.relative_to(folder).as_posix())
    return Listing(images, ignored, listed_folders)


def _suffix(name: str) -> str:
    """The suffix of a file that is not an image's; all partial downloads of images have the same one."""
    name = name.lower()
    if name.endswith(PARTIAL_SUFFIXES) and name.rpartition(".")[0].endswith(SUFFIXES):
        return PARTIAL_SUFFIXES[0]
    return next((suffix for suffix in COMPRESSED_SHARDS if name.endswith(suffix)), Path(name).suffix)


def _unread(others: dict[str, list[Path]]) -> tuple[list[Path], str]:
    """The files that are images by a suffix that is not read, or by content; and how many of each suffix."""
    unread = list[Path]()
    for suffix, paths in others.items():
        if suffix in UNREAD_SUFFIXES:
            unread += paths
        elif suffix not in PARTIAL_SUFFIXES:
            kinds = ((path, content_kind(_head(path, None))) for path in paths[:MAX_PROBED])
            unread += [path for path, kind in kinds if kind is not None and kind.is_image]
    counts = Counter(_suffix(path.name) or "without suffix" for path in unread)
    return unread, ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items()))


def _no_images(folder: Path, links: list[Path], others: dict[str, list[Path]]) -> str:
    """Why a folder without images is refused: what is in it instead."""
    counts = sorted(((len(paths), suffix) for suffix, paths in others.items()), reverse=True)
    got = listed([f"{count} {suffix or 'without suffix'}" for count, suffix in counts])
    do = "Check the path (linked folders are not entered)."
    shards = [path for suffix in COMPRESSED_SHARDS for path in others.get(suffix, [])]
    if shards:
        do = f"Compressed shards are not read: unpack them to .tar, such as {min(shards).name}."
    elif ".tar" in others:
        do = f"Give the folder of the shards: {min(others['.tar']).parent}."
    elif links:
        do = f"Linked folders are not entered: give one of the {len(links)} itself, such as {min(links)}."
    return (
        f"{folder}: need images ({', '.join(SUFFIXES)}) in it or in folders below it; got none"
        f"{f', but {got}' if got else ''}. {do}"
    )


def _head(path: Path, part: tuple[int, int] | None) -> bytes:
    """The first bytes of a file or of a part of it; none if it cannot be read."""
    with suppress(OSError, ValueError):
        if stat.S_ISREG(path.stat().st_mode):
            with path.open("rb") as file:
                file.seek(0 if part is None else part[0])
                return file.read(HEAD if part is None else min(HEAD, part[1]))
    return b""


def is_unicode(name: str) -> bool:
    """Whether a file name is valid UTF-8, and can be written into JSON."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_names(folder: Path, paths: list[Path]) -> None:
    """Refuse files whose names are in another encoding."""
    names = [path.relative_to(folder).as_posix() for path in paths]
    wrong = [name for name in names if not is_unicode(name)]
    if wrong:
        raise InputError(
            f"{folder}: need file names in UTF-8; got {len(wrong)} in another encoding, the first {wrong[0]!r}. "
            "Rename them, or move them away."
        )


def check_inside(path: Path, folder: Path) -> None:
    """Raise InputError for a path whose links lead out of a folder; the folder itself may be a link."""
    real, root = os.path.realpath(path), os.path.realpath(folder)
    if os.path.commonpath([real, root]) != root:
        raise InputError(
            f"{path}: need a file inside {folder}; it is a link to {real}. "
            "Copy the files behind the links into the folder (cp -rL)."
        )


def _open(path: Path, name: str, part: tuple[int, int] | None) -> Path | io.BytesIO:
    """What Pillow opens: the file, or the bytes of a part of it; the size is checked before anything is read."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = reason_of(error) if isinstance(error, OSError) else str(error)
        raise ImageError(
            f"{name}: need an image file; {reason}. Check the folder, and whether the download is complete."
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{name}: need an image file; it is a folder or a device. Remove it from the data.")
    size = status.st_size if part is None else part[1]
    if size == 0:
        raise ImageError(f"{name}: need an image file; it has 0 bytes. Fetch it again, or remove it from the data.")
    if size > MAX_PIXELS * BYTES_PER_PIXEL:
        raise ImageError(f"{name}: need at most {MAX_PIXELS * BYTES_PER_PIXEL:,} bytes; it has {size:,}. Shrink it.")
    if part is None:
        return path
    first = part[0]
    try:
        with path.open("rb") as file:
            file.seek(first)
            content = file.read(size)
    except OSError as error:
        raise ImageError(f"{name}: need a readable file; {reason_of(error)}. Check its permissions.") from error
    if len(content) < size:
        raise ImageError(
            f"{name}: need {size:,} bytes at {first:,}; the file ends after {len(content):,} of them. "
            "It was changed or truncated since the run started: fetch it again."
        )
    return io.BytesIO(content)


def _check_header(name: str, image: Image.Image, expected_size: tuple[int, int] | None) -> None:
    """Check the size in the header before anything of that size is allocated."""
    width, height = image.size
    stated = f"its header states {height} x {width} (height x width)"
    if min(width, height) < 1:
        raise ImageError(f"{name}: need at least 1 x 1 pixel; {stated}. Remove it from the data.")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name}: need at most {MAX_PIXELS:,} pixels; {stated}, {width * height:,} pixels. "
            "Make it smaller or remove it."
        )
    tags: Any = getattr(image, "tag_v2", {})  # of TIFF, whose tiles may be larger than the image
    tile = [side for side in (tags.get(TILE_WIDTH), tags.get(TILE_LENGTH)) if isinstance(side, int)]
    if math.prod(tile) > MAX_PIXELS:
        raise ImageError(f"{name}: need tiles of at most {MAX_PIXELS:,} pixels; it has {math.prod(tile):,}. Remove it.")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(f"{name}: need an aspect ratio of at most {MAX_ASPECT:g}; {stated}. Crop it or remove it.")
    if expected_size is not None and expected_size not in ((height, width), (width, height)):
        raise ImageError(
            f"{name}: need {expected_size[0]} x {expected_size[1]} (height x width), as annotated; {stated}. "
            "The image is not the annotated one, or was resized: restore it."
        )


def _check_tiff(name: str, image: Image.Image) -> None:
    """Refuse TIFF files whose values are not grey or RGB of 8 or 16 bits, before they are decoded."""
    if image.format != "TIFF" or image.mode.startswith("I;16") or image.mode in TIFF_MODES:
        return
    titles = {"F": "floating-point numbers", "I": "32-bit integers", "P": "a palette", "1": "1 bit"}
    raise ImageError(
        f"{name}: need a TIFF image in grey or RGB of 8 or 16 bits; it has {titles.get(image.mode, image.mode)}. "
        "Convert it to 8 bits, or remove it from the data."
    )


def _raw_mode(image: Image.Image) -> str:
    """Pillow's name of the values as the file stores them; "" once they are decoded."""
    tiles: Any = getattr(image, "tile", None)
    arguments = tiles[0].args if tiles else ""
    return str(arguments if isinstance(arguments, str) or not arguments else arguments[0])


def _remarks(image: Image.Image, planes: np.ndarray, *, is_deep: bool) -> list[str]:
    """What is odd about decoded planes (3, H, W); a few pixels decide for nearly every image."""
    if all((part == part[:, :1, :1]).all() for part in (planes[:, ::32, ::32], planes)):
        return [ONE_COLOUR]
    if is_deep:  # Pillow keeps 16 bits of grey, and the upper 8 bits of colours
        is_grey = image.mode.startswith("I")
        if (np.asarray(image) if is_grey else planes).max() < (4096 if is_grey else 16):
            return [DARK]
    return []


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of an image; 1, upright, if it has none."""
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # a hostile file may put anything there; the pixels are still usable
        return 1
    return orientation if isinstance(orientation, int) else 1


def _turn(name: str, image: Image.Image, expected_size: tuple[int, int] | None) -> Image.Transpose | None:
    """Choose the EXIF rotation that agrees with the expected size; a damaged EXIF block counts as none."""
    orientation = _orientation(image)
    turn = TURNS.get(orientation)
    stored = (image.height, image.width)
    shown = stored[::-1] if orientation in SWAPPING else stored
    if expected_size is None or shown == expected_size:
        return turn
    if stored == expected_size:
        return None
    raise ImageError(
        f"{name}: need {expected_size[0]} x {expected_size[1]} (height x width), as annotated; it is "
        f"{shown[0]} x {shown[1]} and no EXIF block rotates it. Width and height are swapped in the annotations, or "
        "the image was rotated, or its EXIF block removed: correct the annotations or restore the image."
    )


def _load(name: str, image: Image.Image) -> None:
    """Decode an image; a JPEG without all the data that its header promises is refused."""
    if not isinstance(image, JpegImageFile) or image.fp is None:
        image.load()
        return
    with file_content(image.fp) as content:
        gap, end = find_gap(content)
        if gap is None:
            image.load()
            gap = "less data than pixels" if end is not None and is_cut_short(content, end, image) else None
    if gap is not None:
        raise ImageError(
            f"{name}: need a whole JPEG; it has {gap}. The file is damaged or truncated: fetch it again, or remove it "
            "from the data."
        )


def _read_large(
    path: Path,
    name: str,
    image: Image.Image,
    *,
    part: tuple[int, int] | None,
    expected_size: tuple[int, int] | None,
) -> UInt8[np.ndarray, "3 H W"]:
    """Decode a large image with little memory beside the result."""
    has_luma = _has_luma(image)
    if has_luma:
        image.draft("L", None)
    _load(name, image)
    turn = _turn(name, image, expected_size)
    if not has_luma:
        return _from_strips(image, turn)
    with _opened(path, name, part=part) as colours:
        colours.draft("YCbCr", (image.width // 2, image.height // 2))
        colours.load()
        return _from_strips(image, turn, colours=colours)


def _has_luma(image: Image.Image) -> bool:
    """Whether a file is a JPEG of brightness and two colour channels, from which libjpeg computes RGB."""
    is_jpeg = isinstance(image, JpegImageFile) and image.mode == "RGB" and image.info.get("adobe_transform", 1) == 1
    return is_jpeg and [layer[0] for layer in getattr(image, "layer", [])] == [1, 2, 3]


def _from_strips(
    image: Image.Image, turn: Image.Transpose | None, *, colours: Image.Image | None = None
) -> UInt8[np.ndarray, "3 H W"]:
    """Convert a decoded image to upright RGB, strip by strip.

    Args:
        image: or its brightness alone.
        turn: EXIF rotation.
        colours: YCbCr at half the size, for `image` as brightness.
    """
    width, height = image.size
    is_sideways = turn in (TURNS[5], TURNS[6], TURNS[7], TURNS[8])
    planes = np.empty((3, width, height) if is_sideways else (3, height, width), dtype=np.uint8)
    rows = _unturned(planes, turn)  # (3, height, width) of the file
    for top in range(0, height, STRIP):
        bottom = min(top + STRIP, height)
        strip = image.crop((0, top, width, bottom))
        if colours is not None:
            box = (0, top / 2, width / 2, bottom / 2)
            full = colours.resize(strip.size, Image.Resampling.BILINEAR, box=box)
            strip = Image.merge("YCbCr", (strip, *full.split()[1:]))
        rows[:, top:bottom] = np.asarray(_to_rgb(strip)).transpose(2, 0, 1)
    return planes


def _unturned(planes: np.ndarray, turn: Image.Transpose | None) -> np.ndarray:
    """A view of upright planes (3, H, W) as they were before the transpose `turn`."""
    match turn:
        case Image.Transpose.FLIP_LEFT_RIGHT:
            return planes[:, :, ::-1]
        case Image.Transpose.FLIP_TOP_BOTTOM:
            return planes[:, ::-1]
        case Image.Transpose.ROTATE_180:
            return planes[:, ::-1, ::-1]
        case Image.Transpose.TRANSPOSE:
            return planes.transpose(0, 2, 1)
        case Image.Transpose.TRANSVERSE:
            return planes[:, ::-1, ::-1].transpose(0, 2, 1)
        case Image.Transpose.ROTATE_90:
            return planes[:, ::-1].transpose(0, 2, 1)
        case Image.Transpose.ROTATE_270:
            return planes[:, :, ::-1].transpose(0, 2, 1)
        case _:
            return planes


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's conversion would clip at 255
        return _grey_to_rgb(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        flat = Image.new("RGB", image.size, BACKGROUND)
        flat.paste(layer, mask=layer.getchannel("A"))
        return flat
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_to_rgb(image: Image.Image) -> Image.Image:
    """Scale 0..65535 to 0..255 (65535 / 257 = 255), rounded; the PNG's transparent grey level shows the background."""
    deep = np.asarray(image).astype(np.int64).clip(0, 65535)  # (H, W)
    grey = ((deep + 128) // 257).astype(np.uint8)
    rgb = np.repeat(grey[:, :, None], 3, axis=2)  # (H, W, 3)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        rgb[deep == clear] = BACKGROUND
    return Image.fromarray(rgb)
