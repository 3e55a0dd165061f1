# SPDX-License-Identifier: Apache-2.0
"""Every transform against the reference's arithmetic, written out here with Pillow and torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from segship.errors import ImageError
from segship.promptable.transforms import (
    Preprocessing,
    prepare_image,
    resized_size,
    to_image_frame,
    to_model_frame,
    upscale_mask,
)

# No database in the working directory, and no deadline on a busy machine.
QUIET = settings(database=None, deadline=None)

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
SIZES = [(1, 1), (1, 1000), (1000, 1), (37, 53), (120, 180), (64, 64), (128, 128), (96, 128), (333, 257), (5, 900)]


def fitting(sizes: list[tuple[int, int]], sides: list[int]) -> list[tuple[tuple[int, int], int]]:
    """Return the pairs in which the shorter side does not shrink to nothing."""
    return [(size, side) for size in sizes for side in sides if max(size) <= 2 * side * min(size)]


def reference_size(height: int, width: int, side: int) -> tuple[int, int]:
    # segment_anything/utils/transforms.py, get_preprocess_shape
    scale = side * 1.0 / max(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def reference_frame(pixels: np.ndarray, side: int) -> torch.Tensor:
    # segment_anything/utils/transforms.py apply_image, then segment_anything/modeling/sam.py preprocess
    height, width = reference_size(*pixels.shape[:2], side)
    resized = np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
    image = torch.as_tensor(resized).permute(2, 0, 1)[None].float()
    image = (image - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)
    return torch.nn.functional.pad(image, (0, side - width, 0, side - height))


def reference_upscaled(
    low_res: np.ndarray, side: int, input_size: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    # segment_anything/modeling/sam.py postprocess_masks
    mask = torch.from_numpy(low_res)[None, None]
    mask = torch.nn.functional.interpolate(mask, (side, side), mode="bilinear", align_corners=False)
    mask = mask[..., : input_size[0], : input_size[1]]
    return torch.nn.functional.interpolate(mask, size, mode="bilinear", align_corners=False)[0, 0].numpy()


@QUIET
@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([64, 512, 1024]))
def test_the_resized_size_is_the_references(height: int, width: int, side: int) -> None:
    expected = reference_size(height, width, side)
    if min(expected) < 1:
        with pytest.raises(ImageError):
            resized_size((height, width), side)
    else:
        assert resized_size((height, width), side) == expected
        assert max(expected) == side


def test_an_image_that_would_shrink_to_nothing_is_refused() -> None:
    assert resized_size((1, 2048), 1024) == (1, 1024)
    with pytest.raises(ImageError, match="2049 x 1 pixels shrinks to 1024 x 0.*at most 2048 times") as caught:
        resized_size((1, 2049), 1024)
    assert caught.value.code == "aspect_ratio"


@pytest.mark.parametrize(("size", "side"), fitting(SIZES, [128, 512]))
def test_the_prepared_image_is_the_references(size: tuple[int, int], side: int) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (*size, 3), dtype=np.uint8)
    prepared = prepare_image(pixels, Preprocessing(side, MEAN, STD))
    assert prepared.dtype == np.float32 and prepared.flags.c_contiguous
    assert np.array_equal(prepared, reference_frame(pixels, side).numpy())


def test_padding_is_zero_after_normalisation() -> None:
    prepared = prepare_image(np.full((10, 20, 3), 200, np.uint8), Preprocessing(64, MEAN, STD))
    assert (prepared[:, :, :32] != 0).all() and (prepared[:, :, 32:] == 0).all()


def test_a_view_of_an_array_is_prepared_as_its_copy_is() -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (40, 60, 3), dtype=np.uint8)[:, ::-2]
    preprocessing = Preprocessing(64, MEAN, STD)
    assert np.array_equal(prepare_image(pixels, preprocessing), prepare_image(pixels.copy(), preprocessing))


def test_an_array_that_is_used_again_holds_nothing_of_the_picture_before() -> None:
    rng, preprocessing = np.random.default_rng(4), Preprocessing(256, MEAN, STD)
    frame = np.full((1, 3, 256, 256), np.nan, np.float32)
    for size in ((40, 60), (900, 700), (60, 40), (700, 900), (33, 33)):
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        assert prepare_image(pixels, preprocessing, threads=3, out=frame) is frame
        assert np.array_equal(frame, reference_frame(pixels, 256).numpy())


@pytest.mark.parametrize("kind", ["shape", "dtype", "order", "read-only"])
def test_another_array_to_write_into_is_refused(kind: str) -> None:
    frame = np.zeros((1, 3, 64, 64), np.float64 if kind == "dtype" else np.float32)
    frame = {"shape": frame[:, :, :63], "order": frame.transpose(0, 1, 3, 2)}.get(kind, frame)
    frame.setflags(write=kind != "read-only")
    with pytest.raises(ImageError, match=r"accepted is \(1, 3, 64, 64\) float32, contiguous and writeable") as caught:
        prepare_image(np.zeros((4, 5, 3), np.uint8), Preprocessing(64, MEAN, STD), out=frame)
    assert caught.value.code == "bad_out"


@pytest.mark.parametrize(("size", "side"), fitting([*SIZES, (1200, 1800), (30, 3000), (2000, 31)], [1024, 128, 96]))
def test_upscaled_masks_are_the_references(size: tuple[int, int], side: int) -> None:
    # Noise is the worst case: neighbours differ by as much as they can.
    low_res = (np.random.default_rng(5).standard_normal((side // 4, side // 4)) * 20).astype(np.float32)
    input_size = resized_size(size, side)
    upscaled = upscale_mask(low_res, image_size=side, input_size=input_size, original_size=size)
    assert upscaled.dtype == np.float32 and upscaled.shape == size
    expected = reference_upscaled(low_res, side, input_size, size)
    assert np.abs(upscaled - expected).max() <= 1e-4 * np.abs(low_res).max()


# The largest deviation seen is 3.9 of these; torch's own two steps do not keep a constant either, and deviate by 2.6.
HALF_ULPS = 8 * 2.0**-24


@QUIET
@given(
    st.tuples(st.integers(1, 700), st.integers(1, 700)),
    st.sampled_from([32, 96, 128, 256]),
    # A weight times the smallest numbers is 0, in torch as well.
    st.one_of(
        st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
        st.floats(-(2.0**-16), 2.0**-16, width=32, allow_subnormal=False),
    ),
)
def test_a_constant_mask_keeps_its_sign_everywhere_and_its_value_to_rounding(
    size: tuple[int, int], side: int, value: float
) -> None:
    # Exactly constant it cannot be: the two steps' weights are multiplied with each other beforehand, in float32, so
    # those of a pixel add up to 1 only to rounding. What masks depend on is exact. No weight is negative, so no sum
    # changes its sign, and what comes near 0 is computed in torch's own arithmetic.
    assume(max(size) <= 2 * side * min(size))
    low_res = np.full((side // 4, side // 4), value, np.float32)
    upscaled = upscale_mask(low_res, image_size=side, input_size=resized_size(size, side), original_size=size)
    assert (np.sign(upscaled) == np.sign(np.float32(value))).all()
    # Numbers below 1e-37 have fewer bits.
    assert np.abs(upscaled.astype(np.float64) - value).max() <= max(HALF_ULPS * abs(value), 1e-37)


def test_each_axis_has_its_own_exact_ratio() -> None:
    size, input_size = (1200, 1800), resized_size((1200, 1800), 1024)
    assert input_size == (683, 1024)
    points = to_model_frame([[1800, 1200], [0, 0], [900, 600]], size, input_size)
    assert points.dtype == np.float32
    assert np.array_equal(points, np.array([[1024, 683], [0, 0], [512, 341.5]], np.float32))


@QUIET
@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(0, 1), st.floats(0, 1))
def test_coordinates_come_back(height: int, width: int, across: float, down: float) -> None:
    if max(height, width) > 1000 * min(height, width):
        return
    input_size = resized_size((height, width), 1024)
    points = np.array([[[across * width, down * height]]], np.float32)
    there = to_model_frame(points, (height, width), input_size)
    assert there.shape == points.shape
    assert (there <= np.array(input_size[::-1]) * 1.000001).all()
    assert np.allclose(to_image_frame(there, (height, width), input_size), points, rtol=1e-6, atol=1e-6)
