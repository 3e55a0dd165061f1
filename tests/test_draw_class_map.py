# SPDX-License-Identifier: Apache-2.0
"""Overlays: colors where the classes are, borders between them, and a legend that hides nothing."""

import numpy as np
import pytest

from segship.datasets.known import ADE20K, CITYSCAPES
from segship.draw import add_legend, class_borders, draw_class_map, draw_labelled_masks, legend_rows, percent
from segship.errors import InputError
from segship.masks.rle import mask_to_runs
from segship.semantic.class_map import ClassMap


@pytest.fixture
def street():
    """Sky above road, a car, and a corner without a class."""
    array = np.full((90, 160), 10, np.uint8)
    array[50:] = 0
    array[40:60, 30:70] = 13
    array[:10, :10] = 255
    return ClassMap(array, CITYSCAPES)


@pytest.fixture
def gray():
    return np.full((90, 160, 3), 100, np.uint8)


def colors_in(picture):
    red, green, blue = (picture[..., channel].astype(int) for channel in range(3))
    return {(code >> 16, code >> 8 & 255, code & 255) for code in np.unique(red << 16 | green << 8 | blue).tolist()}


def test_classes_are_blended_and_what_has_none_stays(street, gray):
    drawn = draw_class_map(gray, street, opacity=0.5, legend=False)
    assert drawn.shape == gray.shape and (gray == 100).all()
    assert drawn[80, 100].tolist() == [114, 82, 114]
    assert drawn[5, 5].tolist() == [100, 100, 100]


def test_borders_are_between_classes(street, gray):
    borders = class_borders(street.array)
    assert borders[49, 100] and not borders[48, 100] and borders[45, 29] and not borders[45, 40]
    drawn = draw_class_map(gray, street, legend=False)
    assert drawn[49, 100].min() > 150


def test_legend_names_what_occurs_with_its_share_largest_first(street):
    rows = legend_rows(street)
    assert [row.name for row in rows] == ["sky", "road", "car", "no class"]
    assert [row.share for row in rows] == ["52.1 %", "41.7 %", "5.6 %", "0.7 %"]
    assert rows[1].color == (128, 64, 128)
    assert sum(float(row.share.split()[0]) for row in rows) == pytest.approx(100, abs=0.3)
    assert percent(0.0004) == "< 0.1 %" and percent(1.0) == "100.0 %"


@pytest.mark.parametrize("size", [(90, 160), (160, 90), (20, 300), (300, 20), (8, 8)])
def test_the_legend_stands_below_or_beside_and_hides_nothing(size):
    array = (np.arange(size[0] * size[1]) % 19).reshape(size).astype(np.uint8)
    class_map = ClassMap(array, CITYSCAPES)
    picture = np.zeros((*size, 3), np.uint8)
    plain = draw_class_map(picture, class_map, legend=False)
    drawn = draw_class_map(picture, class_map)
    assert np.array_equal(drawn[: size[0], : size[1]], plain)
    is_wide = size[1] >= size[0]
    assert (drawn.shape[0] > size[0]) if is_wide else (drawn.shape[1] > size[1])
    legend = drawn[size[0] :] if is_wide else drawn[:, size[1] :]
    # A swatch in the color of every class, and dark text.
    assert set(CITYSCAPES.palette) <= colors_in(legend) and legend.sum(axis=2).min() < 150


def test_every_row_of_a_legend_is_inside_of_it(gray):
    array = (np.arange(90 * 160) % 150).reshape(90, 160).astype(np.uint8)
    class_map = ClassMap(array, ADE20K)
    legend = draw_class_map(gray, class_map)[90:]
    assert set(ADE20K.palette) <= colors_in(legend)
    # Nothing is cut off at the edges.
    assert (legend[-1] == 255).all() and (legend[:, -1] == 255).all() and (legend[:, 0] == 255).all()


def test_a_map_without_classes_has_a_legend_that_says_so(gray):
    empty = ClassMap(np.full((90, 160), 255, np.uint8), CITYSCAPES)
    drawn = draw_class_map(gray, empty)
    assert (drawn[:90] == 100).all() and drawn.shape[0] > 90
    assert add_legend(gray, []) is gray


def test_masks_of_one_class_differ_a_little(gray):
    masks = np.zeros((3, 90, 160), bool)
    masks[0, 10:30, 10:30] = masks[1, 10:30, 50:70] = masks[2, 10:30, 90:110] = True
    runs = [mask_to_runs(mask) for mask in masks]
    drawn = draw_labelled_masks(gray, runs, ["car", "car", "object"], {"car": (0, 0, 142)})
    first, second, other = drawn[20, 20].astype(int), drawn[20, 60].astype(int), drawn[20, 100].astype(int)
    assert first[2] > first[0] and second[2] > second[0] and (first != second).any() and other.std() == 0
    assert drawn.shape[0] > 90 and drawn[70, 20].tolist() == [100, 100, 100]


@pytest.mark.parametrize(
    ("image", "opacity", "words"),
    [
        (np.zeros((90, 160), np.uint8), 0.5, "the image has the shape"),
        (np.zeros((90, 161, 3), np.uint8), 0.5, "the class map has the shape"),
        (np.zeros((90, 160, 3), np.uint8), 1.5, "opacity is 1.5"),
    ],
)
def test_what_cannot_be_drawn_is_refused(street, image, opacity, words):
    with pytest.raises(InputError, match=words) as caught:
        draw_class_map(image, street, opacity=opacity)
    assert caught.value.code == "bad_overlay"
