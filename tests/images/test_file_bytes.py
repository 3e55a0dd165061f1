# SPDX-License-Identifier: Apache-2.0
"""Files, formats and ends, through the public door `read_image`."""

from __future__ import annotations

import io
import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segship.errors import ImageError
from segship.images import ImageLimits, read_image
from segship.images.file_bytes import picture_end, webp_size
from segship.images.reading import demo_photograph

ALL_FORMATS = ("jpeg", "png", "webp", "tiff", "gif", "bmp")


def encoded(name: str, size: tuple[int, int] = (40, 30), **options: object) -> bytes:
    gradient = np.arange(size[0] * size[1] * 3, dtype=np.uint32).reshape(size[1], size[0], 3).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(gradient).save(file, name, **options)
    return file.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def refusal(source: object, code: str, **options: object) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(source, **options)  # type: ignore[arg-type]
    assert caught.value.code == code
    return str(caught.value)


def test_a_path_and_its_bytes_give_the_same_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded("png"))
    by_path, by_text, by_bytes = read_image(path), read_image(str(path)), read_image(path.read_bytes())
    assert by_path.pixels.shape == (30, 40, 3)
    assert (by_path.pixels == by_bytes.pixels).all() and (by_text.pixels == by_bytes.pixels).all()


@pytest.mark.parametrize("name", ["missing.png", "a.png/below.png", "nul\0byte.png"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.png").write_bytes(encoded("png"))
    assert "there is no file" in refusal(str(tmp_path / name), "missing_file")


def test_a_directory_is_refused(tmp_path: Path) -> None:
    assert "is a directory" in refusal(tmp_path, "not_a_file")


def test_a_fifo_and_a_device_are_refused_without_waiting(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.png"
    os.mkfifo(fifo)
    assert "pipe, socket or device" in refusal(fifo, "not_a_file")
    assert "pipe, socket or device" in refusal("/dev/zero", "not_a_file")


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Asked for by hand: the tests may run as a user who may read everything.
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "a.png"
    path.write_bytes(encoded("png"))
    monkeypatch.setattr(os, "open", refuse)
    assert "Permission denied" in refusal(path, "unreadable_file")


def test_the_byte_limit_holds_at_the_limit_and_one_past_it(tmp_path: Path) -> None:
    data = encoded("png")
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for source in (data, bytearray(data), path):
        assert read_image(source, limits=ImageLimits(bytes=len(data))).size_hw == (30, 40)
        assert f"{len(data):,} bytes" in refusal(source, "too_many_bytes", limits=ImageLimits(bytes=len(data) - 1))


@pytest.mark.parametrize("name", ALL_FORMATS)
def test_every_format_is_read_unless_the_caller_takes_fewer(name: str) -> None:
    assert read_image(encoded(name)).size_hw == (30, 40)
    assert read_image(encoded(name), formats=[name.upper()]).size_hw == (30, 40)
    fewer = [other for other in ALL_FORMATS if other != name]
    message = refusal(encoded(name), "format_not_allowed", formats=fewer)
    assert f"{name.upper()} file" in message and ", ".join(fewer) in message


@pytest.mark.parametrize(
    ("start", "title"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0", "EPS"),
        (b"%PDF-1.7", "PDF"),
        (b"8BPS\0\1", "PSD"),
        (b"<?xml version='1.0'?><svg/>", "SVG"),
        (b"\0\0\0\x18ftypheic", "HEIC or AVIF"),
        (b"\0\0\0\x0cjP  \r\n", "JPEG 2000"),
        (b"SIMPLE  =", "FITS"),
    ],
)
def test_some_formats_are_never_read(start: bytes, title: str) -> None:
    assert f"looks like {title}, which is never read" in refusal(start + bytes(64), "format_not_allowed")


def test_a_format_that_does_not_exist_cannot_be_asked_for() -> None:
    assert "['eps']" in refusal(encoded("png"), "format_not_allowed", formats=("png", "eps"))


def test_empty_and_foreign_data_are_told_apart() -> None:
    assert "0 bytes" in refusal(b"", "empty_file")
    assert "no image of a known format" in refusal(b"<!doctype html><title>404</title>", "unknown_format")


@pytest.mark.parametrize("name", ["jpeg", "png", "webp"])
def test_every_truncation_is_refused(name: str) -> None:
    data = encoded(name)
    assert picture_end(data, name) == len(data)
    for length in range(16, len(data) - 1):
        refusal(data[:length], "truncated")


def photograph(**options: object) -> bytes:
    file = io.BytesIO()
    Image.open(demo_photograph()).save(file, "jpeg", **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"quality": 30}, {"restart_marker_blocks": 50}, {"subsampling": 0}]
)
@pytest.mark.parametrize("kept", [0.05, 0.3, 0.9])
def test_a_jpeg_that_lacks_most_of_its_scan_is_noted(options: dict[str, object], kept: float) -> None:
    data = photograph(**options)
    start = data.index(b"\xff\xda")
    scan_end = data.find(b"\xff\xc4", start) if options.get("progressive") else len(data) - 2
    cut = data[: start + int(kept * (scan_end - start))].rstrip(b"\xff")
    for damaged in (cut + b"\xff\xd9", cut + data[scan_end:]):
        assert "image_damaged" in read_image(damaged).notes
        assert "image_damaged" in read_image(damaged, reduce=2).notes
    assert read_image(data).notes == ()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_ends_gray_is_whole(mode: str, progressive: bool) -> None:
    file = io.BytesIO()
    picture = Image.open(demo_photograph()).convert(mode)
    gray = Image.new(mode, (picture.width, 200), (128,) * len(picture.getbands()))
    picture.paste(gray, (0, 200))
    picture.save(file, "jpeg", progressive=progressive)
    assert read_image(file.getvalue()).notes == ()


@pytest.mark.parametrize("name", ["tiff", "gif", "bmp"])
def test_every_truncation_of_the_rarer_formats_ends_in_a_code(name: str) -> None:
    data = encoded(name)
    for length in range(8, len(data)):
        try:
            read_image(data[:length], formats=ALL_FORMATS)
        except ImageError as error:
            assert error.code in ("truncated", "corrupt")


def test_truncation_is_refused_whatever_pillow_is_set_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    for name in ("jpeg", "png", "webp"):
        refusal(encoded(name)[:-20], "truncated")


@pytest.mark.parametrize("name", ["jpeg", "png", "webp"])
@pytest.mark.parametrize("junk", [b"\0", b"junk behind", encoded("jpeg")])
def test_data_behind_the_picture_is_ignored_and_noted(name: str, junk: bytes) -> None:
    loaded = read_image(encoded(name) + junk)
    assert loaded.notes == ("trailing_data",)
    assert (loaded.pixels == read_image(encoded(name)).pixels).all()


def test_a_progressive_jpeg_with_a_thumbnail_inside_ends_at_its_own_end() -> None:
    thumbnail = b"Exif\0\0II*\0" + bytes(8) + encoded("jpeg", (8, 8))
    data = encoded("jpeg", (200, 100), progressive=True, exif=thumbnail)
    assert read_image(data).notes == ()


def test_a_jpeg_of_thousands_of_segments_is_refused() -> None:
    data = encoded("jpeg")
    assert "5,000 segments" in refusal(data[:2] + b"\xff\xfe\x00\x02" * 6000 + data[2:], "too_complex")


def test_a_jpeg_of_hundreds_of_scans_is_refused() -> None:
    data = encoded("jpeg")
    scan = data[data.index(b"\xff\xda") : -2]
    assert "500 scans" in refusal(data[:-2] + scan * 600 + data[-2:], "too_complex")


def test_scans_of_a_large_jpeg_are_bounded_by_the_time_they_take() -> None:
    file = io.BytesIO()
    Image.new("RGB", (7000, 7000), (90, 100, 200)).save(file, "jpeg", progressive=True)
    data = file.getvalue()
    last = data[data.rindex(b"\xff\xc4") : -2]
    started = time.perf_counter()
    assert "32 scans for 49,000,000 pixels" in refusal(data[:-2] + last * 480 + data[-2:], "too_complex")
    assert time.perf_counter() - started < 1
    small = encoded("jpeg", (200, 100), progressive=True)
    assert read_image(small[:-2] + small[small.rindex(b"\xff\xc4") : -2] * 400 + small[-2:]).notes == ()


def test_a_png_of_thousands_of_chunks_is_refused() -> None:
    data = encoded("png")
    assert "5,000 chunks" in refusal(data[:33] + png_chunk(b"tEXt", b"k\0v") * 6000 + data[33:], "too_complex")


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0II*\0" + bytes(8)}])
def test_the_webp_header_states_the_size(options: dict[str, object]) -> None:
    assert webp_size(encoded("webp", (123, 45), **options)) == (45, 123)


def test_a_webp_header_that_states_no_size_is_left_to_the_decoder() -> None:
    assert webp_size(b"RIFF\0\0\0\0WEBPVP8 ") is None
    assert webp_size(b"RIFF\0\0\0\0WEBPALPH" + bytes(32)) is None
    refusal(b"RIFF\x18\0\0\0WEBPALPH" + bytes(16), "corrupt")
