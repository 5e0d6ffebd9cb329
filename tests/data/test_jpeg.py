"""JPEGs without all their data are refused, whole ones of one colour are not; large ones are decoded in strips."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.data import images
from foveate.data.images import ImageError, read_image
from foveate.data.jpeg import find_gap

END = b"\xff\xd9"


def photo(height: int = 130, width: int = 150) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, "JPEG", **options)
    return content.getvalue()


def scans(content: bytes) -> list[int]:
    return [index for index in range(len(content)) if content[index : index + 2] == b"\xff\xda"]


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 7}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_whole_images_of_one_colour_are_not_refused(tmp_path, mode, options):
    path = tmp_path / "a.jpg"
    for grey in (0, 127, 128):  # 127 and 128 are what libjpeg paints where data is missing
        for size in ((1, 1), (17, 33), (1000, 800)):
            flat = Image.new("L", size, grey).convert(mode)
            for kind in ({"optimize": True}, {"optimize": True, "subsampling": 0, "quality": 1}):
                path.write_bytes(jpeg(flat, **kind, **options))
                read_image(path)
    path.write_bytes(jpeg(photo().convert(mode), **options))
    read_image(path)


@pytest.mark.parametrize(
    ("options", "part", "reason"),
    [
        # 10 x 9 units of 16 x 16 pixels, 6 blocks each, 2 bits a block: 135 bytes
        ({}, 0.001, r"it has \d+ bytes of data, and 130 x 150 pixels \(height x width\) need at least 135"),
        ({}, 0.5, "it has less data than pixels"),
        ({}, 0.9, "it has less data than pixels"),
        ({"restart_marker_rows": 1}, 0.5, r"it has \d of 8 restart markers: strips are missing"),
        ({"progressive": True}, 0.001, ".* need at least 68"),  # 1 bit a block
        ({"progressive": True}, 0.5, "it has all scans of 0 of its 3 channels only"),
    ],
)
def test_missing_data_before_a_valid_end_is_refused(tmp_path, options, part, reason):
    whole, path = jpeg(photo(), quality=90, **options), tmp_path / "a.jpg"
    start = scans(whole)[0] + 14
    path.write_bytes(whole[: start + int(part * (len(whole) - start))] + END)
    with pytest.raises(ImageError, match=f"need a whole JPEG; {reason}"):
        read_image(path)


def test_missing_strips_and_scans_are_refused(tmp_path):
    path = tmp_path / "a.jpg"
    whole = jpeg(photo(), restart_marker_rows=1)
    path.write_bytes(whole[: whole.index(b"\xff\xd3")] + whole[whole.index(b"\xff\xd5") :])
    with pytest.raises(ImageError, match="it has 6 of 8 restart markers"):
        read_image(path)
    whole = jpeg(photo(), progressive=True)
    for index in range(1, len(scans(whole))):
        assert find_gap(whole[: scans(whole)[index]] + END)[0] is not None
    assert find_gap(whole) == (None, len(whole) - 2)


def test_damaged_headers_are_left_to_the_decoder():
    whole = jpeg(photo())
    for position in range(2, scans(whole)[0] + 12):
        for value in (0, 1, 0xFF, whole[position] ^ 16):
            find_gap(whole[:position] + bytes([value]) + whole[position + 1 :])
        find_gap(whole[:position])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_large_image_is_upright_and_nearly_the_same(tmp_path, monkeypatch, orientation):
    exif, path = Image.Exif(), tmp_path / "image"
    exif[0x0112] = orientation
    for kind, options in (("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {})):
        for mode in ("RGB", "L") if kind == "JPEG" else ("RGB", "RGBA", "P"):
            photo(131, 151).convert(mode).save(path, kind, exif=exif, **options)
            with monkeypatch.context() as patch:
                expected = read_image(path).int()
                patch.setattr(images, "LARGE", 100)
                image = read_image(path).int()
            assert image.shape == expected.shape and image.is_contiguous()
            if kind == "JPEG" and mode == "RGB":  # colour is interpolated from half the size
                difference = (image - expected).abs().float()
                assert 0 < difference.mean() < 1 and difference.max() <= 12
            else:
                assert torch.equal(image, expected)


def test_a_large_image_in_a_shard_and_of_no_luma(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "LARGE", 100)
    content, path = jpeg(photo()), tmp_path / "a.tar"
    path.write_bytes(b"before" + content + b"after")
    assert torch.equal(read_image(path, part=(6, len(content))).float().round(), read_bytes(tmp_path, content).float())
    rgb = jpeg(photo(), keep_rgb=True)  # no channel is brightness
    image = read_bytes(tmp_path, rgb)
    monkeypatch.undo()
    assert torch.equal(image, read_bytes(tmp_path, rgb))
    with pytest.raises(ImageError, match="need a whole JPEG"):
        monkeypatch.setattr(images, "LARGE", 100)
        read_bytes(tmp_path, content[: len(content) // 2] + END)


def read_bytes(folder, content: bytes) -> torch.Tensor:
    path = folder / "plain.jpg"
    path.write_bytes(content)
    return read_image(path)


def test_a_whole_baseline_scan_may_name_no_coefficients(tmp_path: Path) -> None:
    """Some encoders write zeros where a scan's first and last coefficient belong; libjpeg reads such files."""
    path = tmp_path / "a.jpg"
    Image.effect_noise((64, 48), 60).convert("RGB").save(path)
    content = bytearray(path.read_bytes())
    start = content.index(b"\xff\xda")
    end = start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")
    assert content[end - 3 : end] == b"\x00\x3f\x00"
    content[end - 2] = 0
    path.write_bytes(content)
    assert read_image(path).shape == (3, 48, 64)
