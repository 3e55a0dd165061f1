# SPDX-License-Identifier: Apache-2.0
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from segship import plot
from segship.draw import SAM_BLUE
from segship.errors import BackendUnavailable, InputError
from segship.masks.rle import encode_rle, mask_to_runs
from segship.promptable.everything.records import MaskRecord


@pytest.fixture
def ax():
    return Figure().add_subplot()


def square(first, last, size=(40, 60)):
    mask = np.zeros(size, bool)
    mask[first:last, first:last] = True
    return mask


def layer_of(ax):
    (image,) = ax.images
    return np.asarray(image.get_array())


@pytest.mark.parametrize("mask", [square(5, 9), square(5, 9)[None], square(5, 9)[None, None] * 2.5 - 1])
def test_mask_is_translucent_blue_and_the_rest_is_clear(ax, mask):
    plot.show_mask(mask, ax)
    layer = layer_of(ax)
    assert layer[6, 6].tolist() == [*SAM_BLUE, 153] and not layer[20, 20].any()
    assert np.array_equal(layer[..., 3] > 0, square(5, 9))


def test_random_colour_comes_from_the_seed():
    colours = []
    for seed in (1, 1, 2):
        axes = Figure().add_subplot()
        plot.show_mask(square(5, 9), axes, random_color=True, seed=seed)
        colours.append(layer_of(axes)[6, 6].tolist())
    assert colours[0] == colours[1] != colours[2]


def test_points_are_green_and_red_stars(ax):
    plot.show_points([[5, 6], [7, 8], [9, 10]], [1, 0, 1], ax, marker_size=100)
    green, red = ax.collections
    assert green.get_offsets().tolist() == [[5, 6], [9, 10]] and red.get_offsets().tolist() == [[7, 8]]
    assert green.get_facecolor()[0].tolist() == pytest.approx([0, 128 / 255, 0, 1])
    assert red.get_facecolor()[0].tolist() == [1, 0, 0, 1] and red.get_sizes().tolist() == [100]


@pytest.mark.parametrize("box", [[5, 6, 25, 16], np.array([[5, 6, 25, 16]])])
def test_box_is_a_rectangle_of_its_corners(ax, box):
    plot.show_box(box, ax)
    (rectangle,) = ax.patches
    assert rectangle.get_bbox().extents.tolist() == [5, 6, 25, 16] and not rectangle.get_facecolor()[3]


def record(mask):
    return MaskRecord(
        mask_to_runs(mask), mask.shape, int(mask.sum()), (0, 0, 1, 1), 1.0, ((0, 0),), 1.0, (0, 0, 60, 40)
    )


@pytest.mark.parametrize(
    "form",
    [
        lambda mask: {"segmentation": mask, "area": mask.sum()},
        lambda mask: {"segmentation": encode_rle(mask), "area": mask.sum()},
        lambda mask: {"segmentation": encode_rle(mask, compressed=False), "area": mask.sum()},
        record,
    ],
)
def test_records_lie_smaller_over_larger_each_in_its_colour(ax, form):
    plot.show_anns([form(square(8, 12)), form(square(2, 20)), form(square(30, 34))], ax)
    layer = layer_of(ax)
    small, large, apart = layer[10, 10], layer[4, 4], layer[31, 31]
    assert len({tuple(colour) for colour in (small, large, apart)}) == 3
    assert small[3] == large[3] == 89 and not layer[25, 25].any()
    again = Figure().add_subplot()
    plot.show_anns([form(square(8, 12)), form(square(2, 20)), form(square(30, 34))], again)
    assert np.array_equal(layer_of(again), layer)


def test_borders_are_opaque(ax):
    plot.show_anns([{"segmentation": square(8, 20), "area": 144}], ax, borders=True, opacity=0.5)
    layer = layer_of(ax)
    assert layer[8, 12, 3] == 255 and layer[14, 14, 3] == 128 and np.array_equal(layer[8, 12, :3], layer[14, 14, :3])


def test_no_records_draw_nothing(ax):
    plot.show_anns([], ax)
    assert not ax.images


def test_current_axes_are_drawn_into_when_none_are_given():
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure()
    try:
        plot.show_mask(square(5, 9))
        plot.show_points([[5, 6]], [1])
        plot.show_box([1, 2, 3, 4])
        plot.show_anns([{"segmentation": square(5, 9), "area": 16}])
        assert len(figure.axes) == 1 and len(figure.axes[0].images) == 2
        figure.canvas.draw()
    finally:
        plt.close(figure)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda ax: plot.show_mask(np.zeros((3, 4, 5)), ax), r"mask has the shape \(3, 4, 5\); accepted is \(H, W\)"),
        (lambda ax: plot.show_mask(np.zeros(5), ax), r"mask has the shape \(5,\)"),
        (lambda ax: plot.show_points([1, 2], [1], ax), r"points have the shape \(2,\) and the labels \(1,\)"),
        (lambda ax: plot.show_points([[1, 2]], [1, 0], ax), r"labels \(2,\); accepted is \(N, 2\) points"),
        (lambda ax: plot.show_box([1, 2, 3], ax), r"box has the shape \(3,\); accepted is \(4,\)"),
    ],
)
def test_what_cannot_be_drawn_is_refused(ax, draw, message):
    with pytest.raises(InputError, match=message) as caught:
        draw(ax)
    assert caught.value.code == "bad_overlay"


def test_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(BackendUnavailable, match=r'pip install "segship\[plot\]"') as caught:
        plot.show_mask(square(5, 9))
    assert caught.value.code == "matplotlib_missing"
