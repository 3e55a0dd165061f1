# SPDX-License-Identifier: Apache-2.0
"""Limits, arrays and hostile files; files and formats are in test_file_bytes, pixels in test_pixel_modes."""

from __future__ import annotations

import io
import random
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from segship.errors import ImageError
from segship.images import ImageLimits, LoadedImage, read_image
from segship.images.comparison import draw_scene
from segship.promptable.transforms import Preprocessing, prepare_image

ALL_FORMATS = ("jpeg", "png", "webp", "tiff", "gif", "bmp")
TRUCK = Path(__file__).parents[2] / "../shared/images/truck.jpg"


def encoded(name: str, size: tuple[int, int] = (40, 30), **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (200, 30, 90)).save(file, name, **options)
    return file.getvalue()


def refusal(source: object, code: str, **options: object) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(source, **options)  # type: ignore[arg-type]
    assert caught.value.code == code
    return str(caught.value)


def declared(name: str, width: int, height: int) -> bytes:
    """Return a file of some hundred bytes whose header states a huge picture."""
    data = bytearray(encoded(name))
    if name == "png":
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif name == "jpeg":
        frame = data.index(b"\xff\xc0")
        data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    elif name == "gif":
        data[6:10] = struct.pack("<HH", width, height)
    elif name == "bmp":
        data[18:26] = struct.pack("<ii", width, height)
    elif name == "webp":
        data[26:30] = struct.pack("<HH", width, height)
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "width", "height"),
    [
        ("png", 2**31 - 1, 2**31 - 1),
        ("jpeg", 65_500, 65_500),
        ("gif", 65_535, 65_535),
        ("bmp", 10**6, 10**6),
        ("webp", 16_383, 16_383),
    ],
)
def test_decompression_bombs_are_refused_from_the_header(name: str, width: int, height: int) -> None:
    bomb = declared(name, width, height)
    started = time.perf_counter()
    message = refusal(bomb, "too_many_pixels", formats=ALL_FORMATS)
    assert time.perf_counter() - started < 0.5
    assert f"{width:,} x {height:,}" in message and "50,000,000" in message


def test_a_tiff_bomb_is_refused_from_the_header() -> None:
    data = encoded("tiff")
    width_tag = data.index(struct.pack("<HHI", 256, 4, 1)) if struct.pack("<HHI", 256, 4, 1) in data else -1
    assert width_tag > 0
    bomb = bytearray(data)
    bomb[width_tag + 8 : width_tag + 12] = bomb[width_tag + 20 : width_tag + 24] = struct.pack("<I", 100_000)
    refusal(bytes(bomb), "too_many_pixels", formats=("tiff",))


def test_each_limit_holds_at_the_limit_and_one_past_it() -> None:
    data = encoded("png", (40, 30))
    for source in (data, Image.open(io.BytesIO(data)), np.zeros((30, 40, 3), np.uint8)):
        for name, limit, code in (("pixels", 1200, "too_many_pixels"), ("side", 40, "side_too_long")):
            assert read_image(source, limits=ImageLimits(**{name: limit})).size_hw == (30, 40)
            assert "40 x 30" in refusal(source, code, limits=ImageLimits(**{name: limit - 1}))


def test_the_aspect_ratio_is_bounded_both_ways() -> None:
    for shape in ((1, 1000, 3), (1000, 1, 3), (2, 2000, 3)):
        assert read_image(np.zeros(shape, np.uint8)).size_hw == shape[:2]
    for shape in ((1, 1001, 3), (1001, 1, 3), (2, 2001, 3)):
        assert "1,000 times the shorter" in refusal(np.zeros(shape, np.uint8), "aspect_ratio")
    refusal(encoded("png", (2049, 1)), "aspect_ratio")


def test_pillows_own_pixel_limit_stands_in_nobodys_way(monkeypatch: pytest.MonkeyPatch) -> None:
    # Image.open would warn of the second size, which the tests turn into an error, and refuse the first.
    for limit in (500, 1000):
        monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", limit)
        for name in ("jpeg", "png", "gif", "bmp"):
            assert read_image(encoded(name, (40, 30)), formats=ALL_FORMATS).size_hw == (30, 40)


def test_one_pixel_is_an_image() -> None:
    for name in ALL_FORMATS:
        assert read_image(encoded(name, (1, 1)), formats=ALL_FORMATS).size_hw == (1, 1)


@pytest.mark.parametrize("name", ["gif", "png", "webp", "tiff"])
def test_the_first_frame_is_taken_and_noted(name: str) -> None:
    frames = [Image.new("RGB", (9, 7), color) for color in ("red", "blue", "lime")]
    file = io.BytesIO()
    frames[0].save(
        file, name, save_all=True, append_images=frames[1:], **({"lossless": True} if name == "webp" else {})
    )
    for source in (file.getvalue(), Image.open(file)):
        loaded = read_image(source, formats=ALL_FORMATS)
        assert loaded.notes == ("animated_first_frame",)
        assert (loaded.pixels == (255, 0, 0)).all()


def test_rgb_arrays_are_taken_as_they_are() -> None:
    array = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    assert np.shares_memory(read_image(array).pixels, array)
    mirrored = read_image(array[:, ::-1]).pixels
    assert mirrored.flags.c_contiguous and (mirrored == array[:, ::-1]).all()


def test_gray_arrays_equal_their_rgb_twins() -> None:
    gray = np.arange(63, dtype=np.uint8).reshape(7, 9)
    assert (read_image(gray).pixels == np.stack([gray] * 3, axis=2)).all()


@pytest.mark.parametrize("shape", [(7,), (7, 9, 1), (7, 9, 4), (3, 7, 9), (1, 7, 9, 3), (0, 9, 3), (7, 0), ()])
def test_arrays_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    assert str(shape) in refusal(np.zeros(shape, np.uint8), "bad_array_shape")


@pytest.mark.parametrize("dtype", [np.int64, np.int16, np.uint32, bool, object])
def test_arrays_of_other_dtypes_are_refused(dtype: type) -> None:
    assert "accepted are uint8" in refusal(np.zeros((7, 9, 3), dtype), "bad_array_dtype")


@pytest.mark.parametrize("source", [None, 3, [[1, 2], [3, 4]], object()])
def test_other_sources_are_refused_by_type(source: object) -> None:
    assert type(source).__name__ in refusal(source, "unsupported_source")


@pytest.mark.parametrize("background", [(0, 0), (0, 0, 256), (-1, 0, 0), (0.5, 0, 0)])
def test_a_background_is_three_bytes(background: tuple[int, ...]) -> None:
    assert "three whole numbers" in refusal(encoded("png"), "bad_background", background=background)


@pytest.mark.parametrize("name", ALL_FORMATS)
def test_damaged_files_end_in_pixels_or_a_code(name: str) -> None:
    generator = random.Random(name)
    noise = np.random.default_rng(1).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, name)
    limits = ImageLimits(pixels=100_000)
    codes = set()
    for _ in range(150):
        damaged = bytearray(file.getvalue())
        for _ in range(generator.randint(1, 6)):
            damaged[generator.randrange(min(len(damaged), generator.choice((60, 10_000))))] = generator.randrange(256)
        try:
            assert read_image(bytes(damaged), limits=limits, formats=ALL_FORMATS).pixels.shape[2] == 3
        except ImageError as error:
            codes.add(error.code)
            assert error.__cause__ is None and "0x" not in str(error)
    assert codes


def test_a_decoder_that_runs_out_of_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(self: object) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", exhausted)
    assert "not enough memory" in refusal(encoded("png"), "out_of_memory")


def test_pillow_raising_its_own_limit_is_reported_as_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 100)
    assert "Pillow's own limit of 100" in refusal(encoded("tiff"), "too_many_pixels", formats=("tiff",))


def test_the_text_of_pillow_reaches_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def leak(self: object) -> None:
        raise ValueError("<_io.BytesIO object at 0x7f00deadbeef>")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", leak)
    assert "0x" not in refusal(encoded("png"), "corrupt")


def test_a_damaged_exif_block_costs_neither_the_picture_nor_a_warning() -> None:
    for block in (b"Exif\0\0", b"Exif\0\0II*\0" + b"\xff" * 60, b"Exif\0\0MM\0*" + bytes(8) + b"\xff\xd9" * 90):
        for name in ("jpeg", "png", "webp"):
            assert read_image(encoded(name, exif=block)).size_hw == (30, 40)


@pytest.mark.parametrize("name", ALL_FORMATS)
@pytest.mark.parametrize("reduce", [2, 4, 8])
def test_a_picture_is_read_at_a_part_of_its_size(name: str, reduce: int) -> None:
    loaded = read_image(encoded(name, (45, 31)), formats=ALL_FORMATS, reduce=reduce)
    assert loaded.size_hw == (-(-31 // reduce), -(-45 // reduce)) and f"reduced_{reduce}" in loaded.notes
    assert np.abs(loaded.pixels.astype(int) - (200, 30, 90)).max() <= 6


@pytest.mark.parametrize("size", [(w, h) for w in range(1, 36, 5) for h in (1, 7, 8, 33)])
def test_every_source_is_reduced_to_the_same_size(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size)
    for reduce in (2, 4, 8):
        expected = (-(-size[1] // reduce), -(-size[0] // reduce))
        sources = (encoded("jpeg", size), encoded("png", size), image, np.asarray(image))
        assert {read_image(source, reduce=reduce).size_hw for source in sources} == {expected}


def test_a_reduced_jpeg_is_upright_and_its_limits_are_those_of_the_whole() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded("jpeg", (40, 30), exif=exif)
    assert read_image(data, reduce=2).size_hw == (20, 15)
    refusal(data, "too_many_pixels", reduce=8, limits=ImageLimits(pixels=1000))


@pytest.mark.parametrize("reduce", [0, 3, 16, "2", None])
def test_other_reductions_are_refused(reduce: object) -> None:
    assert "accepted are 1, 2, 4, 8" in refusal(encoded("png"), "bad_reduction", reduce=reduce)


@pytest.mark.skipif(not TRUCK.exists(), reason="the shared photographs are not beside the checkout")
def test_a_photograph_has_the_pixels_that_pillow_gives() -> None:
    loaded = read_image(TRUCK)
    assert loaded.size_hw == (1200, 1800) and loaded.notes == ()
    assert (loaded.pixels == np.asarray(Image.open(TRUCK).convert("RGB"))).all()


def photograph(width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(width).integers(0, 256, (height // 4 + 2, width // 4 + 2, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def jpeg_bytes(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def opencv_pixels(data: bytes) -> np.ndarray:
    # The reader of the reference's notebooks: another libjpeg-turbo, with its own conversion and its own turning.
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


@pytest.mark.parametrize("size", [(64, 48), (1, 1), (7, 5), (33, 17), (301, 227)])
@pytest.mark.parametrize(
    "options",
    [{"subsampling": subsampling} for subsampling in ("4:4:4", "4:2:2", "4:2:0")]
    + [{"quality": 30}, {"quality": 100}, {"progressive": True}, {"optimize": True}]
    + [{"restart_marker_blocks": 3}, {"keep_rgb": True}],
)
def test_every_kind_of_jpeg_has_the_pixels_that_opencv_gives(size: tuple[int, int], options: dict[str, object]) -> None:
    kinds = {"RGB": 0} if options.keys() & {"subsampling", "keep_rgb"} else {"RGB": 0, "L": 0, "CMYK": 1}
    for mode, largest in kinds.items():
        data = jpeg_bytes(photograph(*size).convert(mode), **options)
        pixels, expected = read_image(data).pixels, opencv_pixels(data)
        assert pixels.shape == expected.shape
        # The two round the product of ink and black differently.
        assert np.abs(pixels.astype(int) - expected).max() <= largest


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_jpeg_has_the_pixels_that_opencv_gives(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg_bytes(photograph(45, 31), exif=exif)
    assert np.array_equal(read_image(data).pixels, opencv_pixels(data))


def test_what_was_read_is_taken_as_it_is() -> None:
    loaded = read_image(encoded("jpeg") + b"junk")
    assert read_image(loaded) is loaded and loaded.notes == ("trailing_data",)
    # Its own limits are those of whoever takes it now.
    refusal(loaded, "too_many_pixels", limits=ImageLimits(pixels=1199))
    reduced = read_image(loaded, reduce=2)
    assert reduced.size_hw == (15, 20) and reduced.notes == ("trailing_data", "reduced_2")
    assert loaded.size_hw == (30, 40)


def test_pixels_are_made_when_asked_for_and_kept() -> None:
    loaded = read_image(jpeg_bytes(photograph(45, 31)))
    assert isinstance(loaded.picture, Image.Image) and loaded.size_hw == (31, 45)
    expected = np.asarray(loaded.picture)
    pixels = loaded.pixels
    assert np.array_equal(pixels, expected) and pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous and pixels.flags.writeable
    assert loaded.pixels is pixels and loaded.picture is pixels
    assert loaded.with_notes(("reduced_2",)).pixels is pixels


def test_a_picture_is_prepared_like_its_pixels() -> None:
    preprocessing = Preprocessing(128, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    loaded = read_image(jpeg_bytes(photograph(301, 227)))
    by_picture = prepare_image(loaded.picture, preprocessing)
    assert np.array_equal(by_picture, prepare_image(loaded.pixels, preprocessing))


def test_threads_that_ask_for_pixels_at_once_get_the_same() -> None:
    expected = np.asarray(photograph(301, 227))
    for _ in range(20):
        loaded = read_image(photograph(301, 227))
        loaded_late = read_image(encoded_png(expected))
        start = threading.Barrier(4)

        def ask(image: LoadedImage, start: threading.Barrier = start) -> np.ndarray:
            start.wait(20)
            return image.pixels

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(ask, [loaded, loaded_late, loaded_late, loaded_late]))
        assert all(np.array_equal(pixels, expected) for pixels in found)


def encoded_png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", compress_level=1)
    return file.getvalue()


def test_a_picture_that_the_caller_changes_later_was_copied() -> None:
    picture = photograph(45, 31)
    loaded, before = read_image(picture), np.array(picture)
    picture.paste((0, 0, 0), (0, 0, 45, 31))
    assert np.array_equal(loaded.pixels, before)


def test_open_files_are_images(tmp_path):
    path = tmp_path / "scene.png"
    Image.fromarray(draw_scene((40, 60), seed=1)).save(path)
    expected = read_image(path).pixels
    assert np.array_equal(read_image(io.BytesIO(path.read_bytes())).pixels, expected)
    with open(path, "rb") as stream:
        assert np.array_equal(read_image(stream).pixels, expected)
    with open(path, encoding="latin-1") as stream, pytest.raises(ImageError, match="open it in binary mode") as caught:
        read_image(stream)
    assert caught.value.code == "unsupported_source"
    with pytest.raises(ImageError) as caught:
        read_image(io.BytesIO(path.read_bytes()), limits=ImageLimits(bytes=100))
    assert caught.value.code == "too_many_bytes"


@pytest.mark.parametrize(
    ("shape", "advice"),
    [
        ((40, 60, 4), r"drop alpha: image\[..., :3\]"),
        ((3, 40, 60), r"transpose it: image.transpose\(1, 2, 0\)"),
        ((1, 40, 60, 3), r"take the image out of its batch: image\[0\]"),
        ((40, 60, 1), r"drop the axis: image\[..., 0\]"),
    ],
)
def test_arrays_of_other_axes_are_told_what_to_do(shape, advice):
    with pytest.raises(ImageError, match=advice) as caught:
        read_image(np.zeros(shape, np.uint8))
    assert caught.value.code == "bad_array_shape"


def test_what_was_read_was_judged_then(tmp_path: Path) -> None:
    loaded = read_image(np.zeros((100, 30_100, 3), np.uint8), limits=ImageLimits(side=40_000))
    assert read_image(loaded) is loaded and repr(loaded) == "LoadedImage(size_hw=(100, 30100), notes=())"
    # Limits that are given hold for it too, a model's own among them.
    with pytest.raises(ImageError, match="longer side may be at most 300 times"):
        read_image(loaded, limits=ImageLimits(side=40_000, aspect_ratio=300))
    Image.new("RGB", (9, 7)).save(tmp_path / "small.png")
    whole = read_image(tmp_path / "small.png")
    assert whole.path == tmp_path / "small.png" and read_image(whole, reduce=2).path is None
