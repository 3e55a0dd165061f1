# SPDX-License-Identifier: Apache-2.0
"""Every kind of pixel and the eight orientations, through the public door `read_image`."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from segship.errors import ImageError
from segship.images import LoadedImage, read_image
from segship.images.pixel_modes import DEPTHS, exif_orientation
from segship.images.reading import demo_photograph

ALL_FORMATS = ("jpeg", "png", "webp", "tiff", "gif", "bmp")
GRAY = np.arange(256, dtype=np.uint8).reshape(16, 16)
RED, BLUE = (255, 0, 0), (0, 0, 255)


def through_file(
    image: Image.Image, name: str, background: tuple[int, int, int] = (0, 0, 0), **options: object
) -> LoadedImage:
    file = io.BytesIO()
    image.save(file, name, **options)
    return read_image(file.getvalue(), background=background, formats=ALL_FORMATS)


def refusal(image: object, code: str, **options: object) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(image, **options)
    assert caught.value.code == code
    return str(caught.value)


def replicated(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[:, :, None], 3, axis=2)


@pytest.mark.parametrize("name", ["png", "tiff", "bmp", "gif"])
def test_grayscale_equals_its_rgb_twin(name: str) -> None:
    assert (through_file(Image.fromarray(GRAY), name).pixels == replicated(GRAY)).all()


def test_one_bit_pictures_become_black_and_white() -> None:
    bits = (GRAY % 3 == 0).astype(np.uint8) * 255
    for name in ("png", "tiff"):
        assert (through_file(Image.fromarray(bits).convert("1"), name).pixels == replicated(bits)).all()


def test_alpha_is_laid_over_the_background() -> None:
    alpha = GRAY.T
    colors = np.dstack([GRAY, 255 - GRAY, np.full_like(GRAY, 7), alpha])
    background = (10, 200, 90)
    loaded = through_file(Image.fromarray(colors), "png", background)
    share = alpha[:, :, None] / 255
    assert np.abs(loaded.pixels - (colors[:, :, :3] * share + np.array(background) * (1 - share))).max() <= 0.51
    assert loaded.notes == ("transparency_composited",)


def test_gray_with_alpha_equals_its_rgba_twin() -> None:
    gray_alpha = Image.fromarray(np.dstack([GRAY, GRAY.T]))
    assert gray_alpha.mode == "LA"
    expected = read_image(gray_alpha.convert("RGBA"), background=RED).pixels
    assert (through_file(gray_alpha, "png", RED).pixels == expected).all()


def test_premultiplied_alpha_is_undone_first() -> None:
    for mode, color in (("RGBa", (100, 0, 0, 128)), ("La", (100, 128))):
        loaded = read_image(Image.new(mode, (2, 2), color), background=(0, 0, 0))
        assert abs(int(loaded.pixels[0, 0, 0]) - 100) <= 1


def test_opaque_alpha_leaves_no_note() -> None:
    loaded = through_file(Image.new("RGBA", (3, 2), (1, 2, 3, 255)), "png")
    assert loaded.notes == () and (loaded.pixels == (1, 2, 3)).all()


def palette_picture() -> Image.Image:
    picture = Image.new("P", (2, 1))
    picture.putpalette([*RED, *BLUE])
    picture.putpixel((1, 0), 1)
    return picture


def test_palette_pictures_get_their_colors() -> None:
    for name in ("png", "gif", "bmp"):
        assert through_file(palette_picture(), name).pixels.tolist() == [[list(RED), list(BLUE)]]


def test_a_transparent_palette_entry_shows_the_background() -> None:
    for name in ("png", "gif"):
        loaded = through_file(palette_picture(), name, (9, 8, 7), transparency=1)
        assert loaded.pixels.tolist() == [[list(RED), [9, 8, 7]]]
        assert loaded.notes == ("transparency_composited",)


def test_a_transparent_color_shows_the_background() -> None:
    gray = Image.fromarray(GRAY)
    wide = Image.fromarray(GRAY.astype(np.uint16) * 257)
    for picture, key in ((gray, 5), (gray.convert("RGB"), (5, 5, 5)), (wide, 5 * 257)):
        pixels = through_file(picture, "png", (9, 8, 7), transparency=key).pixels
        assert pixels[0, 5].tolist() == [9, 8, 7] and pixels[0, 6].tolist() == [6, 6, 6]


# Inks as Pillow counts them (255 full ink) and the color they print.
INKS = {(0, 0, 0, 0): (255, 255, 255), (0, 255, 255, 0): RED, (255, 255, 0, 0): BLUE, (0, 0, 0, 255): (0, 0, 0)}


@pytest.mark.parametrize(("inks", "color"), INKS.items())
@pytest.mark.parametrize("name", ["jpeg", "tiff"])
def test_cmyk_has_the_colors_it_prints(inks: tuple[int, ...], color: tuple[int, ...], name: str) -> None:
    pixels = through_file(
        Image.new("CMYK", (16, 16), inks), name, **({"quality": 100} if name == "jpeg" else {})
    ).pixels
    assert np.abs(pixels.astype(int) - color).max() <= 2


@pytest.mark.parametrize(("inks", "color"), INKS.items())
def test_ycck_jpeg_has_the_colors_it_prints(inks: tuple[int, ...], color: tuple[int, ...]) -> None:
    # A CMYK file holding luma and chroma, whose Adobe marker is then set to YCCK (transform 2). The inks are stored
    # inverted and inverted once more by the conversion (libjpeg.txt, "Special color spaces"), so luma is the inks' own.
    luma = Image.new("RGB", (1, 1), inks[:3]).convert("YCbCr").getpixel((0, 0))
    file = io.BytesIO()
    stored = (*luma, 255 - inks[3])
    Image.new("CMYK", (16, 16), tuple(255 - value for value in stored)).save(file, "jpeg", quality=100, subsampling=0)
    data = bytearray(file.getvalue())
    marker = data.index(b"Adobe")
    assert data[marker + 11] == 0
    data[marker + 11] = 2
    pixels = read_image(bytes(data)).pixels.astype(int)
    assert np.abs(pixels - color).max() <= 3
    # OpenCV's conversion is its own.
    other = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    assert np.abs(pixels - other).max() <= 4


def test_sixteen_bits_scale_linearly() -> None:
    values = np.arange(0, 65_536, 16, dtype=np.uint16).reshape(64, 64)
    values[-1, -1] = 65_535
    expected = replicated(np.rint(values / 65_535 * 255).astype(np.uint8))
    for name in ("png", "tiff"):
        assert (through_file(Image.fromarray(values), name).pixels == expected).all()
    assert (read_image(Image.fromarray(values.astype(">u2"))).pixels == expected).all()
    assert (read_image(Image.fromarray(values.astype(np.int32))).pixels == expected).all()


@pytest.mark.parametrize("wrong", [-1, 65_536])
def test_values_past_sixteen_bits_are_refused(wrong: int) -> None:
    message = refusal(Image.fromarray(np.array([[0, wrong]], np.int32)), "value_range")
    assert "int32" in message and str(wrong) in message and "0 to 65535" in message


def gray_photograph() -> np.ndarray:
    gray = np.asarray(Image.open(demo_photograph()).convert("L"))
    low, high = gray.min(), gray.max()
    return ((gray - low) * (255.0 / (high - low))).round().astype(np.uint16)


def wide_sources(values: np.ndarray) -> list[object]:
    """The same 16-bit values as gray array, RGB array, Pillow image, PNG and TIFF, in gray and in colors."""
    colors = replicated(values)
    sources: list[object] = [values, colors, Image.fromarray(values)]
    for name in (".png", ".tiff"):
        for form in (values, colors, np.dstack([colors, np.full_like(values, 65_535)])):
            sources.append(cv2.imencode(name, form)[1].tobytes())
    return sources


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_pictures_that_do_not_fill_sixteen_bits_are_noted_and_spread_on_request(bits: int) -> None:
    gray = gray_photograph()
    for source in wide_sources(gray << (bits - 8)):
        dark = read_image(source)
        assert dark.notes == ("narrow_range",) and dark.pixels.max() <= 2 ** (bits - 8)
        spread = read_image(source, depth="min-max")
        assert spread.notes == () and (spread.pixels == replicated(gray.astype(np.uint8))).all()
        clipped = read_image(source, depth="percentile").pixels
        low, high = np.percentile(gray, [0.5, 99.5])
        expected = np.rint((gray.clip(low, high) - low) * (255 / (high - low)))
        assert np.abs(clipped - replicated(expected)).max() <= 1


def test_a_thermal_picture_is_spread_between_its_own_values() -> None:
    gray = gray_photograph()
    thermal = (7000 + gray * (2000 / 255)).round().astype(np.uint16)
    for source in wide_sources(thermal):
        assert read_image(source).notes == ("narrow_range",)
        assert np.abs(read_image(source, depth="min-max").pixels.astype(int) - replicated(gray)).max() <= 1


def test_colors_keep_their_proportions_and_full_pictures_get_no_note() -> None:
    values = np.array([[[0, 1000, 2000], [500, 1500, 4000]]], np.uint16)
    assert read_image(values, depth="min-max").pixels.tolist() == [[[0, 64, 128], [32, 96, 255]]]
    for source in wide_sources(gray_photograph() * 257):
        for depth in DEPTHS[:2]:
            loaded = read_image(source, depth=depth)
            assert loaded.notes == () and (loaded.pixels == replicated(gray_photograph())).all()


@pytest.mark.parametrize("depth", ["min-max", "percentile"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_pictures_of_any_range_are_spread_on_request(depth: str, dtype: type) -> None:
    gray = gray_photograph()
    values = (gray * 3.0 - 300).astype(dtype)
    expected = read_image(gray, depth=depth).pixels.astype(int)
    assert np.abs(read_image(values, depth=depth).pixels - expected).max() <= 1
    assert "min-max or percentile" in refusal(values, "value_range")
    assert (read_image(gray / 255).pixels == replicated(gray)).all()


def plain_tiff(array: np.ndarray, order: str = "<", planes: int = 1) -> bytes:
    """An uncompressed TIFF of one strip, or of one a plane, with the sample format that the array has."""
    height, width, channels = array.shape
    formats = {"u": 1, "i": 2, "f": 3}
    data = (array.transpose(2, 0, 1) if planes == 2 else array).astype(array.dtype.newbyteorder(order)).tobytes()
    strips = channels if planes == 2 else 1
    entries = [
        (256, 3, [width]), (257, 3, [height]), (258, 3, [8 * array.itemsize] * channels), (259, 3, [1]),
        (262, 3, [2 if channels > 2 else 1]), (273, 4, [8 + index * (len(data) // strips) for index in range(strips)]),
        (277, 3, [channels]), (278, 3, [height]), (279, 4, [len(data) // strips] * strips), (284, 3, [planes]),
        (339, 3, [formats[array.dtype.kind]] * channels),
    ]  # fmt: skip
    start = 8 + len(data) + len(data) % 2
    place = start + 2 + 12 * len(entries) + 4
    directory, extra = struct.pack(order + "H", len(entries)), b""
    for tag, kind, values in entries:
        packed = struct.pack(order + ("H" if kind == 3 else "I") * len(values), *values)
        if len(packed) > 4:
            packed, extra = struct.pack(order + "I", place + len(extra)), extra + packed
        directory += struct.pack(order + "HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start)
    return head + data.ljust(start - 8, b"\0") + directory + bytes(4) + extra


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("depth", DEPTHS)
def test_numbers_that_are_read_as_others_are_refused(order: str, depth: str) -> None:
    colors = np.arange(24, dtype=np.uint16).reshape(2, 4, 3) * 2000
    assert read_image(plain_tiff(colors, order), depth="min-max").pixels.max() == 255
    refused = [
        plain_tiff(colors, order, planes=2),
        plain_tiff(np.array([[[-5], [5]]], np.int8), order),
        plain_tiff(np.zeros((2, 3, 1), np.float64), order),
        plain_tiff(np.zeros((2, 3, 3), np.float32), order),
        plain_tiff(np.zeros((2, 3, 1), np.float16), order),
    ]
    for data in refused:
        assert "the TIFF holds" in refusal(data, "unsupported_mode", depth=depth)
    planes = plain_tiff(colors.astype(np.uint8), order, planes=2)
    assert (read_image(planes, depth=depth).pixels == colors.astype(np.uint8)).all()


def test_unsigned_numbers_of_32_bits_stay_unsigned() -> None:
    values = np.repeat(np.array([1000, 3_000_000_000], np.uint32), 6).reshape(4, 3, 1)
    assert read_image(plain_tiff(values), depth="min-max").pixels[:, 0, 0].tolist() == [0, 0, 255, 255]
    assert "3000000000" in refusal(plain_tiff(values), "value_range")
    signed = plain_tiff(np.array([[[-1000], [1000]]], np.int32))
    assert read_image(signed, depth="min-max").pixels[0, :, 0].tolist() == [0, 255]


def test_eight_bits_and_flat_pictures_need_no_depth() -> None:
    picture = Image.fromarray(GRAY[:4])
    assert (read_image(picture, depth="min-max").pixels == replicated(GRAY[:4])).all()
    assert not read_image(np.full((3, 4), 900, np.uint16), depth="percentile").pixels.any()
    assert "'linear'; accepted are type-range, min-max, percentile" in refusal(picture, "bad_depth", depth="linear")


def test_sixteen_bit_colors_with_orientation_and_gray_with_alpha() -> None:
    values = replicated(np.arange(12, dtype=np.uint16).reshape(3, 4) * 100)
    data = cv2.imencode(".png", values)[1].tobytes()
    exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    turned = read_image(data[:33] + chunk + data[33:], depth="min-max").pixels
    assert (turned == read_image(data, depth="min-max").pixels[::-1].transpose(1, 0, 2)).all()


def test_float_pictures_scale_linearly_from_zero_to_one() -> None:
    values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    for loaded in (read_image(Image.fromarray(values)), through_file(Image.fromarray(values), "tiff")):
        assert (loaded.pixels == replicated(np.rint(values * 255).astype(np.uint8))).all()
    assert "0 to 1" in refusal(Image.fromarray(values * 2), "value_range")


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_float_pictures_that_are_not_finite_are_refused(wrong: float) -> None:
    assert "NaN or infinite" in refusal(Image.fromarray(np.array([[0, wrong]], np.float32)), "non_finite_pixels")


def test_a_wide_tiff_with_zero_as_white_is_refused() -> None:
    file = io.BytesIO()
    Image.fromarray(np.array([[0, 1000]], np.uint16)).save(file, "tiff", tiffinfo={262: 0})
    with pytest.raises(ImageError, match="0 means white") as caught:
        read_image(file.getvalue(), formats=("tiff",))
    assert caught.value.code == "unsupported_mode"


def test_other_color_spaces_are_converted_or_refused_by_name() -> None:
    red = Image.new("RGB", (4, 4), RED)
    for mode in ("YCbCr", "HSV", "RGBX"):
        assert np.abs(read_image(red.convert(mode)).pixels.astype(int) - RED).max() <= 2
    assert "mode LAB" in refusal(Image.new("LAB", (4, 4)), "unsupported_mode")


# What each orientation stores for the upright picture, done by Pillow.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(
    ("name", "options"),
    [("png", {}), ("webp", {"lossless": True}), ("tiff", {}), ("jpeg", {"quality": 100, "subsampling": 0})],
)
def test_orientation_is_applied_once(orientation: int, name: str, options: dict[str, object]) -> None:
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16], upright[8:, :16], upright[8:, 16:] = RED, BLUE, (0, 255, 0)
    turn = STORED[orientation]
    stored = Image.fromarray(upright) if turn is None else Image.fromarray(upright).transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    loaded = through_file(stored, name, exif=exif, **options)
    assert loaded.pixels.shape == upright.shape and loaded.pixels.flags.c_contiguous
    assert np.abs(loaded.pixels.astype(int) - upright).max() <= (2 if name == "jpeg" else 0)


def test_a_pillow_image_is_turned_as_its_file_is() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("jpeg", "png", "tiff"):
        file = io.BytesIO()
        Image.new("RGB", (5, 3)).save(file, name, exif=exif)
        assert read_image(Image.open(file)).size_hw == (5, 3)


def directory(order: str, tag: int, kind: int, value: int, start: int = 8, entries: int = 1) -> bytes:
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start)
    return head + struct.pack(order + "HHHIHH", entries, tag, kind, 1, value, 0)


def test_the_orientation_is_read_from_either_byte_order() -> None:
    for order in "<>":
        assert exif_orientation(b"Exif\0\0" + directory(order, 0x0112, 3, 6)) == 6
        assert exif_orientation(directory(order, 0x0112, 3, 6)) == 6
    # As LONG, which some writers use.
    assert exif_orientation(directory("<", 0x0112, 4, 6)) == 6
    assert exif_orientation(directory(">", 0x0112, 4, 0)[:-2] + b"\0\6") == 6


@pytest.mark.parametrize(
    "block",
    [
        None,
        b"",
        b"Exif\0\0",
        b"Exif\0\0XX*\0",
        directory("<", 0x0112, 3, 9),
        directory("<", 0x0112, 3, 0),
        directory("<", 0x0112, 1, 6),
        directory("<", 0x0113, 3, 6),
        directory("<", 0x0112, 3, 6, start=0xFFFFFFFF),
        directory("<", 0x0112, 3, 6)[:-4],
        directory("<", 0x0100, 3, 6, entries=0xFFFF),
    ],
)
def test_a_damaged_exif_block_states_no_orientation(block: bytes | None) -> None:
    assert exif_orientation(block) == 1
