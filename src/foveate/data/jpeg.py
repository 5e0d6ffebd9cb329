"""Whether a JPEG file has the data that its header promises, by its markers: nothing is decoded.

libjpeg paints grey what is missing before the end marker, and Pillow does not pass its warning on. Bounds are of the
standard (ITU-T T.81): a Huffman code has at least one bit. A block of a sequential scan needs two codes (DC and end of
block), one of a progressive DC scan needs one, and progressive AC scans have codes for many empty blocks.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from mmap import ACCESS_READ, mmap
from typing import IO

from PIL import Image

_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # neither a stuffed zero nor a restart marker
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1), (0xC2,)  # frames with Huffman codes; of others nothing is known here
_FILLER = bytes(range(1, 255))  # data that is no marker
_GREY = {127, 128}  # what libjpeg paints, also inverted as in CMYK


@dataclass
class _Frame:
    """The header of a JPEG, and what was found of its coefficients."""

    is_progressive: bool
    height: int
    width: int
    factors: dict[int, tuple[int, int]]  # component -> horizontal and vertical sampling
    missing_bits: dict[int, list[int]] = field(default_factory=dict)  # component -> of each of 64 coefficients

    def counts(self, components: list[int]) -> tuple[int, int]:
        """The numbers of blocks and of units (MCUs) in a scan of these components."""
        across = max(h for h, _ in self.factors.values())
        down = max(v for _, v in self.factors.values())
        if len(components) == 1:
            h, v = self.factors[components[0]]
            blocks = _ceil(_ceil(self.width * h, across), 8) * _ceil(_ceil(self.height * v, down), 8)
            return blocks, blocks
        units = _ceil(self.width, 8 * across) * _ceil(self.height, 8 * down)
        return units * sum(h * v for h, v in (self.factors[key] for key in components)), units


@contextmanager
def file_content(file: IO[bytes]) -> Iterator[bytes | mmap]:
    """The bytes of an open file, mapped, or of a `BytesIO`."""
    if isinstance(file, io.BytesIO):
        yield file.getvalue()
    else:
        with mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            yield content


def find_gap(content: bytes | mmap) -> tuple[str | None, int | None]:
    """What a JPEG lacks, and where its data ends.

    Returns:
        A reason for a message, or None; and the position of the end marker [bytes], None: it has none (which the
        decoder reports), or nothing is known of this kind of JPEG.
    """
    try:
        return _walk(content)
    except (IndexError, KeyError, ValueError, ZeroDivisionError):  # a damaged header, which the decoder reports
        return None, None


def is_cut_short(content: bytes | mmap, end: int, image: Image.Image) -> bool:
    """Whether the decoder ran out of data before the last pixel.

    It did if the last block is grey, and more data before the end marker, at `end`, would change the image.
    """
    left, top = (image.width - 1) // 8 * 8, (image.height - 1) // 8 * 8
    block = image.crop((left, top, image.width, image.height))
    if not {value for channel in block.split() for value in channel.getextrema()} <= _GREY:
        return False
    return _thumbnail(content[:end] + b"\xff\xd9") != _thumbnail(content[:end] + _FILLER + b"\xff\xd9")


def _thumbnail(content: bytes) -> bytes:
    with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
        image.draft("L", (max(1, image.width // 8), max(1, image.height // 8)))
        return image.tobytes()


def _walk(content: bytes | mmap) -> tuple[str | None, int | None]:
    """Follow the markers up to the end marker."""
    frame, interval, position = None, 0, 2
    while (found := _MARKER.search(content, position)) is not None:
        marker, start = content[found.start() + 1], found.end()
        if marker == 0xD9:
            return (None if frame is None else _missing_scans(frame)), found.start()
        if marker in (0x01, 0xD8):
            position = start
            continue
        position = start + int.from_bytes(content[start : start + 2])
        body = content[start + 2 : position]
        if marker in _SEQUENTIAL + _PROGRESSIVE:
            frame = _read_frame(marker, body)
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return None, None
        elif marker == 0xDD:
            interval = int.from_bytes(body[:2])
        elif marker == 0xDA:
            if frame is None:
                return None, None
            following = _MARKER.search(content, position)
            if following is None:
                return None, None
            gap = _check_scan(frame, body, content, (position, following.start()), interval)
            if gap is not None:
                return gap, None
            position = following.start()
    return None, None


def _read_frame(marker: int, body: bytes) -> _Frame:
    parts = [body[6 + 3 * index : 9 + 3 * index] for index in range(body[5])]
    factors = {part[0]: (part[1] >> 4, part[1] & 15) for part in parts}
    return _Frame(
        marker in _PROGRESSIVE,
        int.from_bytes(body[1:3]),
        int.from_bytes(body[3:5]),
        factors,
        {key: [1] * 64 for key in factors},
    )


def _check_scan(frame: _Frame, body: bytes, content: bytes | mmap, span: tuple[int, int], interval: int) -> str | None:
    """Note what a scan adds, and return what its data lacks."""
    components = [body[1 + 2 * index] for index in range(body[0])]
    # the coefficients of a baseline scan are all 64, whatever the bytes say, which are zeros in some whole files
    first, last, low = (body[-3], body[-2], body[-1] & 15) if frame.is_progressive else (0, 63, 0)
    for key in components:
        frame.missing_bits[key][first : last + 1] = [low] * (last + 1 - first)
    blocks, units = frame.counts(components)
    bits = 2 * blocks if not frame.is_progressive else blocks if first == 0 else 0
    size = span[1] - span[0]
    if 8 * size < bits:
        return (
            f"{size:,} bytes of data, and {frame.height} x {frame.width} pixels (height x width) need at least "
            f"{_ceil(bits, 8):,}"
        )
    if interval:
        expected, found = _ceil(units, interval) - 1, sum(1 for _ in _RESTART.finditer(content, *span))
        if found < expected:
            return f"{found:,} of {expected:,} restart markers: strips are missing"
    return None


def _missing_scans(frame: _Frame) -> str | None:
    incomplete = [key for key, bits in frame.missing_bits.items() if any(bits)]
    if not incomplete:
        return None
    return f"all scans of {len(frame.factors) - len(incomplete)} of its {len(frame.factors)} channels only"


def _ceil(number: int, divisor: int) -> int:
    return -(-number // divisor)
