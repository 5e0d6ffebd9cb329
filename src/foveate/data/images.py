"""Bounded image decoding: a file from anywhere -> uint8 RGB, or an error that names the file and what to do.

The header is checked before a pixel is decoded (number of pixels, aspect ratio, the annotated size), so that a
decompression bomb costs nothing. Only Pillow's JPEG, PNG, WebP and BMP readers open images, and only its PNG and TIFF
readers label maps; torchvision's PNG reader ends the process on damaged files. The result is what a viewer shows: EXIF
rotation applied, 16-bit grey scaled to 8 bits, alpha composited over a given colour, CMYK, palette and grey converted,
the first frame of an animation. Label maps keep their values. Colour profiles are ignored; truncated files are refused.
"""

import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from foveate.errors import InputError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAP_FORMATS = ("PNG", "TIFF")  # of label maps; lossless
NAMES = {"JPEG": "JPEG", "PNG": "PNG", "WEBP": "WebP", "BMP": "BMP", "TIFF": "TIFF"}
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
MAX_PIXELS = 50_000_000
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


class ImageError(InputError):
    """An image file that cannot be used; the message names it, what was expected, and what to do."""


def read_image(
    path: Path | str,
    *,
    expected_size: tuple[int, int] | None = None,
    part: tuple[int, int] | None = None,
    name: str | None = None,
) -> UInt8[Tensor, "3 H W"]:
    """Decode one image file, or an image within a file, within bounds.

    Args:
        path: a JPEG, PNG, WebP or BMP file, recognised by content, not by name.
        expected_size: annotated (height, width) [pixels]. EXIF rotation is then applied if the rotated image has this
            size, and ignored if only the unrotated image has it. None: always applied.
        part: (first byte, number of bytes) of the image within the file, as in a tar shard; None: the whole file.
        name: of the image in messages; default: its path.

    Returns:
        RGB in 0..255, contiguous; transparent pixels are composited over grey (128).

    Raises:
        ImageError: missing, empty, truncated or damaged, another format, over a limit, or not of the expected size.
    """
    name = str(path) if name is None else name
    with _opened(Path(path), name, part=part, expected_size=expected_size) as image:
        image.load()
        turn = _turn(name, image, expected_size)
        rgb = _to_rgb(image)
        upright = rgb if turn is None else rgb.transpose(turn)
        planes = np.stack([np.asarray(plane) for plane in upright.split()])  # (3, H, W); beats a transpose
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
        tiles: Any = getattr(image, "tile", None)
        arguments = tiles[0].args if tiles else ""
        if (arguments if isinstance(arguments, str) else arguments[0]) in ("L;2", "L;4"):
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
        _turn(str(path), image, size)


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
        raise ImageError(
            f"{name}: need a {kinds} image; the content has another format, or its header is damaged. "
            "Convert it, fetch it again, or remove it from the data."
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name}: need at most {MAX_PIXELS:,} pixels; {error} Make it smaller or remove it."
        ) from error
    except Exception as error:  # Pillow's readers raise exceptions of any kind on a damaged file
        raise ImageError(
            f"{name}: need a whole image; decoding stopped with {type(error).__name__}: {error}. "
            "The file is damaged or truncated: fetch it again, or remove it from the data."
        ) from error


def list_images(folder: Path | str) -> list[Path]:
    """List the image files under a folder, by their suffix, sorted by their path within it.

    Hidden files and folders are ignored, linked folders are not entered.

    Raises:
        InputError: the folder does not exist or contains no image, or a link leads out of it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: need a folder of images; not found. Check the path.")
    images = []
    for parent, folders, names in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        images += [Path(parent, name) for name in names if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
    for path in images:
        if path.is_symlink():
            check_inside(path, folder)
    if not images:
        raise InputError(
            f"{folder}: need images ({', '.join(SUFFIXES)}) in it or in folders below it; got none. "
            "Check the path (linked folders are not entered)."
        )
    return sorted(images, key=lambda path: path.relative_to(folder).as_posix())


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
        reason = "not found" if isinstance(error, FileNotFoundError) else str(error)
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
        raise ImageError(f"{name}: need a readable file; {error}. Fetch it again.") from error
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
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(f"{name}: need an aspect ratio of at most {MAX_ASPECT:g}; {stated}. Crop it or remove it.")
    if expected_size is not None and expected_size not in ((height, width), (width, height)):
        raise ImageError(
            f"{name}: need {expected_size[0]} x {expected_size[1]} (height x width), as annotated; {stated}. "
            "The image is not the annotated one, or was resized: restore it."
        )


def _turn(name: str, image: Image.Image, expected_size: tuple[int, int] | None) -> Image.Transpose | None:
    """Choose the EXIF rotation that agrees with the expected size; a damaged EXIF block counts as none."""
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # a hostile file may put anything there; the pixels are still usable
        orientation = None
    turn = TURNS.get(orientation) if isinstance(orientation, int) else None
    stored = (image.height, image.width)
    shown = stored[::-1] if turn is not None and orientation in (5, 6, 7, 8) else stored
    if expected_size is None or shown == expected_size:
        return turn
    if stored == expected_size:
        return None
    raise ImageError(
        f"{name}: need {expected_size[0]} x {expected_size[1]} (height x width), as annotated; it is "
        f"{shown[0]} x {shown[1]} after EXIF rotation. Restore the image (was it rotated, or its EXIF block removed?)."
    )


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
