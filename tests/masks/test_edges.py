# SPDX-License-Identifier: Apache-2.0
"""Masks that follow the picture: against the filter written out, in every corner that masks and pictures have."""

import pickle

import numpy as np
import pytest
from PIL import Image

import segship
from segship.images import read_image
from segship.masks.cleanup import MaskCleanUp, clean_mask
from segship.masks.edges import LONGEST_SIDE, EdgeGuide, EdgePainter, MaskEdges
from segship.masks.scores import mask_iou
from segship.masks.upscaling import LogitsPatch, crop_patch, upscaler

CELLS, FRAME = 48, 192
EDGES = MaskEdges(radius=2)
Y, X = np.mgrid[:CELLS, :CELLS] + 0.5


def resized(size_hw):
    scale = FRAME / max(size_hw)
    return tuple(int(side * scale + 0.5) for side in size_hw)


def painter(pixels, edges=EDGES, clean_up=None, points=(), labels=(), has_box=False):
    guide = EdgeGuide(pixels)
    size_hw = guide.size_hw
    up = upscaler(CELLS, FRAME, resized(size_hw), size_hw)
    points = np.array(points, np.float32).reshape(-1, 2)
    return EdgePainter(guide, edges, up, clean_up, points, np.array(labels, np.int64), has_box)


def window_means(plane, radius):
    """The mean of every window that is cut off at the border, one by one."""
    height, width = plane.shape
    return np.array(
        [
            [
                plane[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1].mean()
                for x in range(width)
            ]
            for y in range(height)
        ]
    )


def guided(color, p, radius, eps):
    """He, Sun, Tang 2013, equations 19 to 21: slopes and constant of each place of a picture (3, h, w)."""
    height, width = p.shape
    slopes, constants = np.zeros((3, height, width)), np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            here = np.s_[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]
            colors, values = color[:, *here].reshape(3, -1), p[here].ravel()
            covariance = np.cov(colors, bias=True) + eps * np.eye(3)
            both = (colors * values).mean(axis=1) - colors.mean(axis=1) * values.mean()
            slopes[:, y, x] = np.linalg.solve(covariance, both)
            constants[y, x] = values.mean() - slopes[:, y, x] @ colors.mean(axis=1)
    return np.stack([window_means(plane, radius) for plane in (*slopes, constants)])


def cell_colors(pixels, up):
    """The mean color of every cell, pixel by pixel, each weighed by how much of it lies in the cell."""
    cells, planes = up.valid_cells, np.moveaxis(pixels / 255.0, 2, 0)
    for axis, count in enumerate(cells, 1):
        length = planes.shape[axis]
        ends = np.arange(count + 1) * max(round(count * up.pixels_per_cell[axis - 1]), length) / count
        inside = [
            [max(0.0, min(stop, pixel + 1) - max(start, pixel)) for pixel in range(int(np.ceil(ends[-1] - 1e-9)))]
            for start, stop in zip(ends, ends[1:], strict=False)
        ]
        weights = np.array(inside)
        # Beyond the picture is what its last pixel is.
        weights[:, length - 1] += weights[:, length:].sum(axis=1)
        weights = weights[:, :length] / weights[:, :length].sum(axis=1, keepdims=True)
        planes = np.moveaxis(np.tensordot(weights, planes, (1, axis)), 0, axis)
    return planes


def oracle(pixels, logits, edges=EDGES):
    """What follows the picture, over the whole frame: the value of every pixel, a mask where it is above 0."""
    up = upscaler(CELLS, FRAME, resized(pixels.shape[:2]), pixels.shape[:2])
    logits = up.valid(logits).logits
    functions = guided(cell_colors(pixels, up), np.tanh(logits), edges.radius, edges.eps)
    for y, x in np.ndindex(logits.shape):
        r = edges.radius
        window = logits[max(y - r, 0) : y + r + 1, max(x - r, 0) : x + r + 1] > 0
        if window.all() or not window.any():
            functions[:, y, x] = 0, 0, 0, 1 if window.all() else -1
    planes = [up.enlarge(LogitsPatch(plane.astype(np.float32))) for plane in functions]
    return planes[3] + sum(plane * pixels[..., index] / 255.0 for index, plane in enumerate(planes[:3]))


@pytest.fixture(scope="module")
def photograph():
    return read_image(str(segship.demo_photograph())).pixels


def cups(photograph, size_hw):
    return np.asarray(Image.fromarray(photograph).resize(size_hw[::-1], Image.Resampling.BOX))


SHAPES = {
    "disc": 8 - np.hypot(Y - 20, X - 22),
    "soft disc": 1 - np.hypot(Y - 20, X - 22) / 9,
    "ring with a hole": 3 - abs(np.hypot(Y - 20, X - 22) - 8),
    "scattered": 4 * np.sin(X / 2) * np.sin(Y / 2),
    "at the frame": 12 - np.hypot(Y, X - 44),
    "one cell": np.where((Y == 9.5) & (X == 11.5), 2.0, -2.0),
    "a thin bar": np.where(X == 20.5, 1.0, -1.0),
    "full": np.full((CELLS, CELLS), 3.0),
    "empty": np.full((CELLS, CELLS), -3.0),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size_hw", [(120, 180), (96, 40)])
def test_masks_are_those_of_the_filter_written_out(photograph, shape, size_hw):
    pixels, logits = cups(photograph, size_hw), SHAPES[shape].astype(np.float32)
    one = painter(pixels)
    patch = crop_patch(one.upscaler.valid(logits), EDGES.margin)
    expected = oracle(pixels, logits)
    differs = one.mask(patch, size_hw) != (expected > 0)
    # Colors of cells are rounded to 8 bits, so a value next to 0 may fall on either side.
    assert not (differs & (abs(expected) > 0.05)).any()
    assert differs.mean() < 0.004


@pytest.mark.parametrize(
    "pixels",
    [
        np.full((90, 60, 3), 77, np.uint8),
        np.zeros((1, 1, 3), np.uint8),
        np.full((1, 90, 3), 200, np.uint8),
        np.full((2, 3, 3), 5, np.uint8),
        np.repeat(np.random.default_rng(1).integers(0, 256, (64, 90, 1), np.uint8), 3, axis=2),
    ],
    ids=["flat", "one pixel", "one row", "six pixels", "gray noise"],
)
@pytest.mark.parametrize("shape", ["disc", "scattered", "full", "empty", "at the frame"])
def test_pictures_without_colors_and_without_pixels(pixels, shape):
    size_hw, logits = pixels.shape[:2], SHAPES[shape].astype(np.float32)
    one = painter(pixels)
    mask = one.mask(crop_patch(one.upscaler.valid(logits), EDGES.margin), size_hw)
    expected = oracle(pixels, logits)
    assert mask.shape == size_hw and mask.dtype == bool
    assert not ((mask != (expected > 0)) & (abs(expected) > 0.05)).any()


def test_a_mask_too_small_grows_to_the_border_of_a_thing_and_not_beyond():
    pixels = np.full((96, 96, 3), (40, 90, 60), np.uint8)
    pixels[20:70, 30:80] = (200, 60, 50)
    truth = (pixels == (200, 60, 50)).all(axis=2)
    # A cell too small on each side, and round at the corners.
    logits = (11.5 - np.hypot(*np.maximum(np.abs([Y - 22.5, X - 27.5]) - 6, 0)) - 6).astype(np.float32)
    one = painter(pixels, MaskEdges())
    plain = one.upscaler.enlarge(LogitsPatch(logits)) > 0
    mask = one.mask(LogitsPatch(logits), (96, 96))
    assert mask_iou(plain, truth) < 0.81
    assert mask_iou(mask, truth) > 0.91
    assert not (mask & ~truth).any()


def test_cells_of_the_decoder_are_fine_enough_for_the_filter(photograph):
    """Held against the filter of the paper on every pixel of the picture, with windows of as many pixels."""
    size_hw = (96, 144)
    pixels, logits = cups(photograph, size_hw), (9 - np.hypot(Y - 16, X - 24)).astype(np.float32)
    one = painter(pixels)
    whole = one.upscaler.enlarge(LogitsPatch(logits))
    color = np.moveaxis(pixels / 255.0, 2, 0)
    functions = guided(color, np.tanh(whole), 6, EDGES.eps)
    expected = functions[3] + (functions[:3] * color).sum(axis=0) > 0
    mask = one.mask(one.upscaler.valid(logits), size_hw)
    assert mask_iou(mask, expected) > 0.95


def test_nothing_beyond_the_band_changes(photograph):
    pixels, logits = cups(photograph, (192, 192)), SHAPES["disc"].astype(np.float32)
    one = painter(pixels)
    changed = one.mask(LogitsPatch(logits), (192, 192)) != (one.upscaler.enlarge(LogitsPatch(logits)) > 0)
    far = abs(np.hypot(*(np.mgrid[:192, :192] + 0.5 - np.array([80, 88])[:, None, None])) - 32)
    assert changed.any()
    # The band is counted along rows and columns, and a pixel lies between two cells.
    assert far[changed].max() < 4 * (EDGES.radius * 2**0.5 + 2)


def test_a_large_picture_is_held_small_and_its_masks_are_as_large_as_it_is():
    pixels = np.zeros((LONGEST_SIDE * 2, 600, 3), np.uint8)
    pixels[1000:3000, 200:500] = 255
    one = painter(pixels)
    assert one.guide.pixels.shape == (LONGEST_SIDE, 300, 3)
    rows = slice(1000, 3000)
    logits = np.full((CELLS, CELLS), -3, np.float32)
    logits[12:35, 3:6] = 3
    mask = one.mask(one.upscaler.valid(logits), pixels.shape[:2])
    truth = pixels[..., 0] > 0
    assert mask.shape == truth.shape
    assert mask_iou(mask[rows], truth[rows]) > 0.98


def test_a_guide_keeps_its_picture_whatever_the_caller_does_with_the_array():
    pixels = np.full((20, 30, 3), 9, np.uint8)
    guide = EdgeGuide(pixels)
    pixels[:] = 1
    assert (guide.pixels == 9).all()
    assert (pickle.loads(pickle.dumps(guide)).pixels == 9).all()
    assert (EdgeGuide(Image.new("RGB", (30, 20), (7, 7, 7))).pixels == 7).all()


# Clean-up of what the picture made ragged


def cleaned(mask, **more):
    mask = mask.copy()
    how = {"points_xy": np.zeros((0, 2), np.float32), "labels": np.zeros(0, np.int64), "has_box": False, **more}
    clean_mask(mask, MaskCleanUp(), area=mask.size, **how)
    return mask


@pytest.mark.parametrize("size", [(60, 90), (700, 500), (1301, 1103), (3001, 2003)])
def test_specks_and_pinholes_go_at_every_size(size):
    mask = np.zeros(size, bool)
    rows, columns = size[0] // 5, size[1] // 5
    mask[rows : 4 * rows, columns : 4 * columns] = True
    ragged = mask.copy()
    ragged[3, 3] = ragged[-1, -1] = True
    ragged[2 * rows, 2 * columns] = False
    assert (cleaned(ragged) == mask).all()
    # A background point lies in the pinhole, so it is meant.
    meant = cleaned(ragged, points_xy=np.array([[2 * columns + 0.5, 2 * rows + 0.5]]), labels=np.array([0]))
    assert not meant[2 * rows, 2 * columns]


def test_the_clicked_piece_stays_and_points_outside_the_window_count_for_nothing():
    mask = np.zeros((50, 80), bool)
    mask[5:20, 5:20] = mask[30:45, 40:70] = True
    kept = cleaned(mask, points_xy=np.array([[10.0, 10.0]]), labels=np.array([1]))
    assert kept[5:20, 5:20].all() and kept.sum() == 225
    for outside in ([-3.0, 10.0], [80.0, 10.0], [10.0, 50.0]):
        assert (cleaned(mask, points_xy=np.array([outside]), labels=np.array([1])) == mask).all()


def test_a_hole_at_the_side_of_the_picture_stays():
    mask = np.ones((40, 64), bool)
    mask[0, 5] = mask[39, 63] = False
    assert (cleaned(mask) == mask).all()
