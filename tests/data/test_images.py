"""Image decoding: one fixed result per format, and errors for hostile files."""

import errno
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from foveate.data import images
from foveate.data.images import DARK, ONE_COLOUR, ImageError, check_size, list_images, read_image
from foveate.errors import InputError


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def solid(mode: str, colour: object, size: tuple[int, int] = (16, 12)) -> Image.Image:
    return Image.new(mode, size, colour)  # size is PIL's (width, height)


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG put together by hand from (type, data) chunks."""
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def header(width: int, height: int, *, depth: int = 8, colour: int = 2) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)


def tiled(width: int, length: int, *, side: int = 16) -> bytes:
    """A TIFF of side x side grey pixels that states tiles of this size and has no data."""
    tags = {256: side, 257: side, 258: 8, 259: 1, 262: 1, 277: 1, 322: width, 323: length, 324: 8, 325: side * side}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4)


def put(folder: Path, content: bytes, name: str = "image.bin") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


# ----------------------------------------------------------------------------------------------------- what is read


def test_rgb_png_is_decoded_exactly(tmp_path):
    pixels = noise(5, 7)
    image = read_image(put(tmp_path, encoded(Image.fromarray(pixels), "PNG")))
    assert image.dtype == torch.uint8 and image.shape == (3, 5, 7) and image.is_contiguous()
    assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels)


def test_the_image_is_writable(tmp_path):
    image = read_image(put(tmp_path, encoded(solid("RGB", (1, 2, 3), (1, 1)), "PNG")))
    image += 1
    assert image.flatten().tolist() == [2, 3, 4]


SOLID = {  # name: (bytes, expected colour, tolerance in grey levels)
    "jpeg": (encoded(solid("RGB", (200, 100, 50)), "JPEG", quality=95), (200, 100, 50), 2),
    "progressive jpeg": (encoded(solid("RGB", (9, 9, 9)), "JPEG", progressive=True), (9, 9, 9), 2),
    "grey jpeg": (encoded(solid("L", 77), "JPEG"), (77, 77, 77), 1),
    # CMYK: no cyan, full magenta and yellow, no black is red
    "cmyk jpeg": (encoded(solid("CMYK", (0, 255, 255, 0)), "JPEG", quality=95), (255, 0, 0), 3),
    "grey png": (encoded(solid("L", 77), "PNG"), (77, 77, 77), 0),
    "1-bit png": (encoded(solid("1", 1), "PNG"), (255, 255, 255), 0),
    "palette png": (encoded(solid("RGB", (10, 20, 30)).quantize(2), "PNG"), (10, 20, 30), 0),
    "webp": (encoded(solid("RGB", (10, 20, 30)), "WEBP", lossless=True), (10, 20, 30), 0),
    "bmp": (encoded(solid("RGB", (10, 20, 30)), "BMP"), (10, 20, 30), 0),
    "tiff": (encoded(solid("RGB", (10, 20, 30)), "TIFF"), (10, 20, 30), 0),
    "grey tiff, deflate": (encoded(solid("L", 77), "TIFF", compression="tiff_deflate"), (77, 77, 77), 0),
    "16-bit grey tiff": (encoded(solid("I;16", 0x8000), "TIFF"), (128, 128, 128), 0),
    "rgba tiff": (encoded(solid("RGBA", (255, 0, 0, 128)), "TIFF"), (192, 64, 64), 1),
    "tiff, first page": (
        encoded(solid("RGB", "red"), "TIFF", save_all=True, append_images=[solid("RGB", "blue")]),
        (255, 0, 0),
        0,
    ),
    "1-bit bmp": (encoded(solid("1", 0), "BMP"), (0, 0, 0), 0),
    # alpha 128 of 255 on grey 128: 255 * 128/255 + 128 * 127/255 = 191.7, and 0 + 63.7
    "rgba png": (encoded(solid("RGBA", (255, 0, 0, 128)), "PNG"), (192, 64, 64), 1),
    "rgba webp": (encoded(solid("RGBA", (255, 0, 0, 128)), "WEBP", lossless=True), (192, 64, 64), 1),
    "grey with alpha": (encoded(solid("LA", (255, 128)), "PNG"), (192, 192, 192), 1),
    "all transparent": (encoded(solid("RGBA", (255, 0, 0, 0)), "PNG"), (128, 128, 128), 0),
    "rgb with a clear colour": (encoded(solid("RGB", (7, 8, 9)), "PNG", transparency=(7, 8, 9)), (128, 128, 128), 0),
    "grey with a clear grey": (encoded(solid("L", 7), "PNG", transparency=7), (128, 128, 128), 0),
    "palette with a clear entry": (encoded(solid("P", 0), "PNG", transparency=0), (128, 128, 128), 0),
    # 0x8000 / 257 = 127.5 -> 128 by rounding half up
    "16-bit grey png": (encoded(solid("I;16", 0x8000), "PNG"), (128, 128, 128), 0),
    "white 16-bit grey png": (encoded(solid("I;16", 65535), "PNG"), (255, 255, 255), 0),
    "16-bit rgb png": (  # one pixel a row: filter byte, then 16-bit R G B
        png(
            header(1, 2, depth=16),
            (b"IDAT", zlib.compress(struct.pack(">BHHH", 0, 65535, 257 * 100, 0) * 2)),
            (b"IEND", b""),
        ),
        (255, 100, 0),
        1,
    ),
    "16-bit grey with a clear grey": (
        png(
            header(1, 1, depth=16, colour=0),
            (b"tRNS", struct.pack(">H", 5000)),
            (b"IDAT", zlib.compress(struct.pack(">BH", 0, 5000))),
            (b"IEND", b""),
        ),
        (128, 128, 128),
        0,
    ),
    "animated webp, first frame": (
        encoded(solid("RGB", "red"), "WEBP", save_all=True, append_images=[solid("RGB", "blue")], lossless=True),
        (255, 0, 0),
        0,
    ),
    "animated png, first frame": (
        encoded(solid("RGB", "red"), "PNG", save_all=True, append_images=[solid("RGB", "blue")]),
        (255, 0, 0),
        0,
    ),
    "two images in one jpeg (MPO)": (
        encoded(solid("RGB", "red"), "MPO", save_all=True, append_images=[solid("RGB", "blue")], quality=95),
        (255, 0, 0),
        3,
    ),
    "jpeg with a torn EXIF block": (
        encoded(solid("RGB", (9, 9, 9)), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff broken"),
        (9, 9, 9),
        2,
    ),
    "1 x 1": (encoded(solid("RGB", (1, 2, 3), (1, 1)), "PNG"), (1, 2, 3), 0),
    "1 pixel wide, 20 high": (encoded(solid("RGB", (1, 2, 3), (1, 20)), "PNG"), (1, 2, 3), 0),
}


@pytest.mark.parametrize("name", SOLID)
def test_every_format_is_decoded_to_rgb(tmp_path, name):
    content, colour, tolerance = SOLID[name]
    image = read_image(put(tmp_path, content))
    assert image.dtype == torch.uint8 and image.shape[0] == 3
    off = (image.int() - torch.tensor(colour)[:, None, None]).abs().max()
    assert off <= tolerance, f"{name}: {image[:, 0, 0].tolist()} instead of {colour}"


def test_sixteen_bit_greys_are_rounded_not_clipped(tmp_path):
    deep = np.arange(0, 65536, 13, dtype=np.uint16).reshape(1, -1).repeat(400, axis=0)
    image = read_image(put(tmp_path, encoded(Image.fromarray(deep), "PNG")))
    expected = np.array(
        [round(value / 65535 * 255) for value in deep[0].tolist()]
    )  # no value is halfway between two integers
    assert np.abs(image[0, 0].numpy().astype(int) - expected).max() == 0


def test_transparent_pixels_show_the_background(tmp_path):
    path = put(tmp_path, encoded(solid("RGBA", (0, 0, 0, 0)), "PNG"))
    assert read_image(path)[:, 0, 0].tolist() == [128, 128, 128]


def test_the_suffix_is_ignored(tmp_path):
    path = put(tmp_path, encoded(solid("RGB", (1, 2, 3)), "PNG"), "image.jpg")
    assert read_image(path)[:, 0, 0].tolist() == [1, 2, 3]


# ------------------------------------------------------------------------------------------------------ EXIF rotation

# Where the stored pixel (r, c) of an H x W image is shown, read off the EXIF standard's table
# "the 0th row is the visual top/bottom/left/right side, the 0th column the visual ... side".
SHOWN = {
    1: lambda r, c, h, w: (r, c),
    2: lambda r, c, h, w: (r, w - 1 - c),
    3: lambda r, c, h, w: (h - 1 - r, w - 1 - c),
    4: lambda r, c, h, w: (h - 1 - r, c),
    5: lambda r, c, h, w: (c, r),
    6: lambda r, c, h, w: (c, h - 1 - r),
    7: lambda r, c, h, w: (w - 1 - c, h - 1 - r),
    8: lambda r, c, h, w: (w - 1 - c, r),
}


def rotated(orientation: int, height: int = 2, width: int = 3) -> tuple[bytes, np.ndarray]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = noise(height, width)
    return encoded(Image.fromarray(pixels), "PNG", exif=exif), pixels


@pytest.mark.parametrize("orientation", SHOWN)
def test_exif_rotation_shows_the_image_upright(tmp_path, orientation):
    content, stored = rotated(orientation)
    image = read_image(put(tmp_path, content))
    assert image.shape == ((3, 2, 3) if orientation < 5 else (3, 3, 2))
    for r in range(2):
        for c in range(3):
            row, column = SHOWN[orientation](r, c, 2, 3)
            assert image[:, row, column].tolist() == stored[r, c].tolist()


def test_exif_rotation_is_read_from_jpeg_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = put(tmp_path, encoded(solid("RGB", (9, 9, 9), (16, 8)), "JPEG", exif=exif))
    assert read_image(path).shape == (3, 16, 8)


def test_the_annotated_size_decides_about_exif_rotation(tmp_path):
    content, stored = rotated(6)  # stored 2 x 3, shown 3 x 2
    path = put(tmp_path, content)
    assert read_image(path, expected_size=(3, 2)).shape == (3, 3, 2)
    unturned = read_image(path, expected_size=(2, 3))  # annotated on the stored pixels
    assert np.array_equal(unturned.permute(1, 2, 0).numpy(), stored)
    with pytest.raises(ImageError, match="need 4 x 4"):
        read_image(path, expected_size=(4, 4))


def test_a_rotated_image_without_exif_is_refused(tmp_path):
    path = put(tmp_path, encoded(Image.fromarray(noise(2, 3)), "PNG"))
    with pytest.raises(
        ImageError, match=r"need 3 x 2 .*; it is 2 x 3 and no EXIF block .*Width and height are swapped"
    ):
        read_image(path, expected_size=(3, 2))


# --------------------------------------------------------------------------------------------------- what is refused

PHOTO = Image.fromarray(noise(40, 60))
REFUSED = {  # name: (bytes, part of the message)
    "empty": (b"", "0 bytes"),
    "one byte": (b"\xff", "another format"),
    "text": (b"404 not found", "another format"),
    "html": (b"<html>404</html>", "it is a page of HTML, .* Fetch it again"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS.* with `git lfs pull`"),
    "gif": (encoded(PHOTO.convert("P"), "GIF"), "it is a GIF image. Convert it"),
    "avif": (encoded(PHOTO, "AVIF") if features.check("avif") else b"\0\0\0 ftypavif", "it is an AVIF image"),
    "svg": (b"<svg xmlns='x'/>", "it is an SVG image"),
    "float tiff": (encoded(solid("F", 0.5), "TIFF"), "8 or 16 bits; it has floating-point numbers"),
    "palette tiff": (encoded(PHOTO.convert("P"), "TIFF"), "it has a palette"),
    "cmyk tiff": (encoded(PHOTO.convert("CMYK"), "TIFF"), "it has CMYK"),
    "1-bit tiff": (encoded(PHOTO.convert("1"), "TIFF"), "it has 1 bit"),
    "32-bit tiff": (encoded(solid("I", 70000), "TIFF"), "it has 32-bit integers"),
    "tiff, half": (encoded(PHOTO, "TIFF")[:3000], "image"),
    "tiff of large tiles": (tiled(60_000, 60_000), "tiles of at most 50,000,000 pixels; it has 3,600,000,000"),
    "144 Mpx tiff": (tiled(16, 16, side=12_000), "at most 50,000,000 pixels"),
    "postscript": (encoded(PHOTO, "EPS"), "another format"),  # Pillow would start another program for it
    "numpy": (b"\x93NUMPY\x01\x00", "another format"),
    "jpeg, half": (encoded(PHOTO, "JPEG")[:1000], "whole image"),
    "jpeg without its end": (encoded(PHOTO, "JPEG", quality=95)[:-300], "whole image"),
    "png, half": (encoded(PHOTO, "PNG")[:3000], "whole image"),
    "webp, half": (encoded(PHOTO, "WEBP")[:500], "image"),
    "bmp, half": (encoded(PHOTO, "BMP")[:3000], "whole image"),
    "png header only": (png(header(60, 40)), "image"),
    "png of no width": (png(header(0, 40), (b"IDAT", b""), (b"IEND", b"")), "image"),
    "png, wrong sum": (encoded(PHOTO, "PNG")[:40] + b"\0" + encoded(PHOTO, "PNG")[41:], "image"),
    "144 Mpx": (png(header(12000, 12000), (b"IDAT", b"")), "at most 50,000,000 pixels"),
    "900 Mpx": (png(header(30000, 30000), (b"IDAT", b"")), "at most 50,000,000 pixels"),
    "20000 x 1": (encoded(solid("L", 0, (1, 20000)), "PNG"), "aspect ratio of at most 20"),
    "10 x 30000": (encoded(solid("L", 0, (30000, 10)), "PNG"), "aspect ratio of at most 20"),
    "1 pixel wide, 21 high": (encoded(solid("L", 0, (1, 21)), "PNG"), "aspect ratio of at most 20"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_unreadable_file_is_refused_with_its_path_and_advice(tmp_path, name):
    content, reason = REFUSED[name]
    path = put(tmp_path, content, "bad.jpg")
    with pytest.raises(ImageError, match=reason) as caught:
        read_image(path)
    message = str(caught.value)
    assert str(path) in message and "need" in message
    assert any(word in message for word in ("Fetch", "fetch", "emove", "Convert", "Make it smaller"))


def test_a_missing_file_a_folder_and_a_name_with_a_zero_byte_are_refused(tmp_path):
    with pytest.raises(ImageError, match="not found"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(ImageError, match="folder or a device"):
        read_image(tmp_path)
    with pytest.raises(ImageError, match="null"):
        read_image("a\0b.jpg")


def test_a_file_without_permission_is_not_called_damaged(tmp_path, monkeypatch):
    path = put(tmp_path, encoded(PHOTO, "JPEG"))
    opened = Image.open

    def denied(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(images.Image, "open", denied)  # root may read everything
    with pytest.raises(ImageError, match="need a readable file; permission denied") as caught:
        read_image(path)
    assert "damaged" not in str(caught.value)
    monkeypatch.setattr(images.Image, "open", opened)
    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(ImageError, match="need a readable file; permission denied"):
        read_image(path, part=(0, 10))
    monkeypatch.setattr(Path, "stat", denied)  # a folder that may not be entered
    with pytest.raises(ImageError, match="permission denied"):
        read_image(path)


def test_names_that_are_not_utf8_are_refused_with_their_number(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    put(tmp_path, b"", "a.jpg")
    (tmp_path / os.fsdecode(b"caf\xe9") / "b.jpg").touch()
    with pytest.raises(InputError, match=r"got 1 in another encoding, the first 'caf\\udce9/b.jpg'. Rename them"):
        list_images(tmp_path)
    assert len(list_images(tmp_path / os.fsdecode(b"caf\xe9")).images) == 1


def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="folder or a device"):
        read_image(tmp_path / "pipe.jpg")


def test_a_file_over_the_size_limit_is_not_read(tmp_path):
    path = tmp_path / "large.webp"
    with path.open("wb") as file:
        file.write(b"RIFF\xff\xff\xff\x7fWEBPVP8L")
        file.truncate(3_000_000_000)  # sparse: takes no disk
    with pytest.raises(ImageError, match="bytes"):
        read_image(path)


def test_images_at_the_limits_are_read_and_images_above_are_refused(tmp_path, monkeypatch):
    path = put(tmp_path, encoded(PHOTO, "PNG"))  # 40 x 60
    monkeypatch.setattr(images, "MAX_PIXELS", 2400)
    monkeypatch.setattr(images, "MAX_ASPECT", 1.5)
    assert read_image(path).shape == (3, 40, 60)
    monkeypatch.setattr(images, "MAX_ASPECT", 1.4)
    with pytest.raises(ImageError, match=r"aspect ratio of at most 1\.4"):
        read_image(path)
    monkeypatch.setattr(images, "MAX_PIXELS", 2399)
    with pytest.raises(ImageError, match="at most 2,399 pixels"):
        read_image(path)


# ---------------------------------------------------------------------- hostile files, in a process of their own

READ_ALL = """
import json, resource, sys, time
from pathlib import Path
from foveate.data import images
from foveate.data.images import ImageError, read_image
files = sorted(Path(sys.argv[1]).iterdir())
read_image(files[0])  # loads Pillow's readers
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
results = []
for path in files:
    start = time.process_time()
    try:
        read_image(path)
        result = "read"
    except ImageError as error:
        result = str(error)
    results.append((path.name, result, time.process_time() - start))
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(json.dumps({"results": results, "grown": grown}))
"""


def read_all(folder: Path) -> tuple[dict[str, str], float, float]:
    """Read every file of a folder in a child: (result by name, slowest [s], growth of memory [MB])."""
    child = subprocess.run(
        [sys.executable, "-c", READ_ALL, str(folder)], capture_output=True, text=True, timeout=120, check=False
    )
    assert child.returncode == 0, f"the reader died with {child.returncode}: {child.stderr[-2000:]}"
    answer = json.loads(child.stdout)
    slowest = max(seconds for _, _, seconds in answer["results"])
    return {name: result for name, result, _ in answer["results"]}, slowest, answer["grown"]


def test_fuzzed_files_neither_crash_nor_hang(tmp_path):
    rng = np.random.default_rng(1)
    photo = Image.fromarray(np.asarray(Image.fromarray(noise(16, 16)).resize((160, 120))))
    put(tmp_path, encoded(photo, "PNG"), "0.png")
    for kind in ("JPEG", "PNG", "WEBP"):
        content = encoded(photo, kind)
        for i in range(60):
            flipped = bytearray(content)
            flipped[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
            put(tmp_path, bytes(flipped), f"{kind}-flip-{i}")
            put(tmp_path, content[: rng.integers(1, len(content) - 1)], f"{kind}-cut-{i}")
    results, slowest, _ = read_all(tmp_path)
    assert len(results) == 361 and slowest <= 1.0
    assert sum(result != "read" for name, result in results.items() if "cut" in name) >= 170  # of 180


def test_decompression_bombs_take_no_memory(tmp_path):
    put(tmp_path, encoded(PHOTO, "PNG"), "0.png")
    rows = zlib.compressobj(1)
    data = b"".join([rows.compress(bytes(12001)) for _ in range(12000)]) + rows.flush()  # a whole, valid 144 Mpx
    put(tmp_path, png(header(12000, 12000, colour=0), (b"IDAT", data), (b"IEND", b"")), "144 Mpx.png")
    put(tmp_path, png(header(30000, 30000), (b"IDAT", b""), (b"IEND", b"")), "900 Mpx.png")
    text = b"Comment\0\0" + zlib.compress(bytes(300_000_000), 1)
    put(tmp_path, png(header(1, 1), (b"zTXt", text), (b"IDAT", zlib.compress(bytes(4))), (b"IEND", b"")), "text.png")
    size = (16383 - 1) | (16383 - 1) << 14  # VP8L: 14 bits a side
    lossless = b"VP8L" + struct.pack("<I", 6) + b"\x2f" + struct.pack("<I", size) + b"\0"
    put(tmp_path, b"RIFF" + struct.pack("<I", 4 + len(lossless)) + b"WEBP" + lossless, "268 Mpx.webp")
    bitmap = struct.pack("<IiiHHIIiiII", 40, 30000, 30000, 1, 24, 0, 0, 0, 0, 0, 0)
    put(tmp_path, b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + bitmap, "900 Mpx.bmp")
    results, slowest, grown = read_all(tmp_path)
    assert results.pop("0.png") == "read"
    assert len(results) == 5 and all("need" in result for result in results.values()), results
    assert grown < 100 and slowest <= 1.0


# ---------------------------------------------------------------------------------------------------------- folders


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_images_are_listed_by_path_without_hidden_and_other_files(tmp_path):
    touch(tmp_path, "b.JPG", "a/2.png", "a/10.webp", ".hidden.png", ".cache/x.png", "notes.txt", "a.bmp", "c.jpeg")
    touch(tmp_path, "._b.jpg", "Thumbs.db", "d.jfif", "e.JPE", "f.TIF", "g.tiff", "labels/b.txt", "README")
    listing = list_images(tmp_path)
    names = [path.relative_to(tmp_path).as_posix() for path in listing.images]
    assert names == ["a.bmp", "a/10.webp", "a/2.png", "b.JPG", "c.jpeg", "d.jfif", "e.JPE", "f.TIF", "g.tiff"]
    assert listing.ignored == {}


def test_files_that_are_not_read_are_counted_by_reason_with_the_first(tmp_path):
    touch(tmp_path / "data", "a.jpg", "y.gif", "x.GIF", "z.avif", "b.jpg.part", "c.tmp", "0.tar.gz", "secret/x.jpg")
    (tmp_path / "data/hash").write_bytes(encoded(PHOTO, "PNG"))  # an image by content, without a suffix
    (tmp_path / "data/d.jpg_large").write_bytes(encoded(PHOTO, "JPEG"))
    (tmp_path / "other").mkdir()
    (tmp_path / "data/linked").symlink_to(tmp_path / "other")
    listing = list_images(tmp_path / "data")
    assert [path.name for path in listing.images] == ["a.jpg", "x.jpg"]
    unread = "image in a format that is not read (1 .avif, 2 .gif, 1 .jpg_large, 1 without suffix): convert it"
    assert listing.ignored == {
        unread: (5, "d.jpg_large"),
        "download that is not complete": (1, "b.jpg.part"),
        "compressed shard, which is not read: unpack it": (1, "0.tar.gz"),
        "linked folder, which is not entered": (1, "linked"),
    }


def test_a_folder_that_cannot_be_read_is_counted(tmp_path, monkeypatch):
    touch(tmp_path, "a.jpg", "locked/b.jpg")
    scan = os.scandir

    def refused(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert list_images(tmp_path).ignored == {"folder that cannot be read": (1, "locked")}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a.gif", "b.gif", "c"), r"got none, but 2 \.gif, 1 without suffix\. Check"),
        (("0.tar.gz", "1.tgz"), r"Compressed shards are not read: unpack them to \.tar, such as 0\.tar\.gz"),
        (("parts/0.tar",), r"Give the folder of the shards: .*parts\."),
    ],
)
def test_a_folder_without_images_is_refused_with_what_is_in_it(tmp_path, names, message):
    with pytest.raises(InputError, match=message):
        list_images(touch(tmp_path, *names))


def test_what_is_odd_about_an_image_is_remarked(tmp_path):
    def remarks_of(image: Image.Image, kind: str = "PNG") -> list[str]:
        remarks: list[str] = []
        read_image(put(tmp_path, encoded(image, kind)), remarks=remarks)
        return remarks

    assert remarks_of(PHOTO) == [] and remarks_of(solid("RGB", (3, 3, 3))) == [ONE_COLOUR]
    nearly = solid("RGB", (3, 3, 3), (65, 65))
    nearly.putpixel((1, 1), (3, 3, 4))  # not among the pixels that are looked at first
    assert remarks_of(nearly) == []
    dark = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    for kind in ("PNG", "TIFF"):
        assert remarks_of(Image.fromarray(dark), kind) == [DARK]
        assert remarks_of(Image.fromarray(dark + 1), kind) == []  # 4096
    assert remarks_of(Image.fromarray((dark // 256).astype(np.uint8))) == []  # dark, but of 8 bits
    for largest, expected in ((4095, [DARK]), (4096, [])):  # of RGB Pillow keeps the upper 8 bits
        rows = struct.pack(">BHHH", 0, 0, 0, 0) + struct.pack(">BHHH", 0, largest, 0, 0)
        image = png(header(1, 2, depth=16), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
        remarks: list[str] = []
        read_image(put(tmp_path, image), remarks=remarks)
        assert remarks == expected


def test_a_rotated_tiff_is_shown_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = put(tmp_path, encoded(PHOTO, "TIFF", exif=exif))
    expected = torch.from_numpy(noise(40, 60)).rot90(-1).permute(2, 0, 1)
    for size in (None, (60, 40)):
        assert torch.equal(read_image(path, expected_size=size), expected)
    check_size(path, (60, 40))


def test_a_missing_or_empty_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="not found"):
        list_images(tmp_path / "gone")
    with pytest.raises(InputError, match="got none"):
        list_images(tmp_path)


def test_links_may_not_leave_the_folder(tmp_path):
    inside, outside = tmp_path / "data", tmp_path / "secret"
    inside.mkdir()
    outside.mkdir()
    (outside / "x.png").touch()
    (inside / "a.png").touch()
    (inside / "loop").symlink_to(inside)  # linked folders are not entered
    (inside / "b.png").symlink_to(inside / "a.png")
    assert [path.name for path in list_images(inside).images] == ["a.png", "b.png"]
    (tmp_path / "alias").symlink_to(inside)  # the folder itself may be a link
    assert len(list_images(tmp_path / "alias").images) == 2
    (inside / "c.png").symlink_to(outside / "x.png")
    with pytest.raises(InputError, match="link to"):
        list_images(inside)
