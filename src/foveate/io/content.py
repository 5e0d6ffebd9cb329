"""What a file is by its first bytes, for messages about files that are not what their names promise."""

from typing import NamedTuple

HEAD = 64  # bytes that are enough for `content_kind`
AGAIN = "Fetch it again"
UNPACK = "Unpack it first"
CONVERT = "Convert it"


class Kind(NamedTuple):
    """What a file holds, as "a ...", and what to do if another file was needed."""

    noun: str
    advice: str

    @property
    def is_image(self) -> bool:
        """Whether it is an image of any format."""
        return self.noun.endswith(" image")


SIGNATURES = (
    (b"\xff\xd8\xff", Kind("a JPEG image", CONVERT)),
    (b"\x89PNG\r\n\x1a\n", Kind("a PNG image", CONVERT)),
    (b"II*\0", Kind("a TIFF image", CONVERT)),
    (b"MM\0*", Kind("a TIFF image", CONVERT)),
    (b"GIF8", Kind("a GIF image", CONVERT)),
    (b"\0\0\0\x0cjP  ", Kind("a JPEG 2000 image", CONVERT)),
    (b"\xff\x4f\xff\x51", Kind("a JPEG 2000 image", CONVERT)),
    (b"\xff\x0a", Kind("a JPEG XL image", CONVERT)),
    (b"\0\0\0\x0cJXL ", Kind("a JPEG XL image", CONVERT)),
    (b"8BPS", Kind("a Photoshop image", CONVERT)),
    (b"\x1f\x8b", Kind("a file compressed with gzip", UNPACK)),
    (b"BZh", Kind("a file compressed with bzip2", UNPACK)),
    (b"\xfd7zXZ\0", Kind("a file compressed with xz", UNPACK)),
    (b"\x28\xb5\x2f\xfd", Kind("a file compressed with zstd", UNPACK)),
    (b"PK\x03\x04", Kind("a zip archive", UNPACK)),
    (b"7z\xbc\xaf\x27\x1c", Kind("a 7z archive", UNPACK)),
    (b"Rar!", Kind("a rar archive", UNPACK)),
    (b"version https://git-lfs", Kind("a pointer of Git LFS, not the file itself", "Fetch it with `git lfs pull`")),
    (b"%PDF", Kind("a PDF", CONVERT)),
    (b"\x89HDF", Kind("an HDF5 file", CONVERT)),
    (b"PAR1", Kind("a Parquet file", CONVERT)),
)
BRANDS = {b"avif": "an AVIF image", b"avis": "an AVIF image", b"heic": "a HEIC image", b"heix": "a HEIC image",
          b"hevc": "a HEIC image", b"mif1": "a HEIC image", b"msf1": "a HEIC image"}  # fmt: skip


def content_kind(head: bytes) -> Kind | None:
    """Recognise a file by its first `HEAD` bytes; None: it is none of the kinds known here, such as text."""
    for signature, kind in SIGNATURES:
        if head.startswith(signature):
            return kind
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return Kind("a WebP image", CONVERT)
    if head.startswith(b"BM") and head[6:10] == bytes(4):
        return Kind("a BMP image", CONVERT)
    if head[4:8] == b"ftyp":
        return Kind(BRANDS.get(head[8:12], "a video"), CONVERT)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return Kind("a page of HTML, as after a failed download", AGAIN)
    if text.startswith((b"<svg", b"<!doctype svg")):
        return Kind("an SVG image", CONVERT)
    return Kind("XML", CONVERT) if text.startswith(b"<?xml") else None
