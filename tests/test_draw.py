# SPDX-License-Identifier: Apache-2.0
"""Pixels of overlays: the colors of SAM, in the right places, at sizes that follow the image."""

from __future__ import annotations

import numpy as np
import pytest

from segship.draw import GREEN, PALETTE, RED, SAM_BLUE, draw_masks, draw_overlay, seeded_colors
from segship.errors import InputError
from segship.masks.rle import mask_to_runs
from segship.promptable.prompts import ObjectPrompt

GRAY = np.full((200, 300, 3), 100, np.uint8)
NOTHING = np.zeros((200, 300), bool)


def square(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    mask = NOTHING.copy()
    mask[y0:y1, x0:x1] = True
    return mask


def has_color(pixels: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    return (pixels == color).all(axis=-1)


def nearly_white(pixels: np.ndarray) -> np.ndarray:
    """True where an edge is white but for smoothing."""
    return (pixels > 190).all(axis=-1)


def blended(color: tuple[int, int, int], under: int = 100) -> tuple[int, ...]:
    return tuple(int(0.4 * under + 0.6 * channel + 0.5) for channel in color)


def test_mask_is_sam_blue_at_sixty_percent_and_nothing_else_changes() -> None:
    mask = square(20, 60, 30, 90)
    overlay = draw_overlay(GRAY, mask)
    assert overlay.dtype == np.uint8 and overlay.shape == GRAY.shape
    assert SAM_BLUE == (30, 144, 255)
    assert np.array_equal(has_color(overlay, blended(SAM_BLUE)), mask)
    assert np.array_equal(overlay[~mask], GRAY[~mask])


def test_blending_is_exact_for_every_value() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    overlay = draw_overlay(image, np.ones((16, 16), bool))
    expected = np.floor(image * 0.4 + np.array(SAM_BLUE) * 0.6 + 0.5)
    assert np.array_equal(overlay, expected)


def test_image_that_was_given_stays_as_it_is() -> None:
    image = GRAY.copy()
    image.setflags(write=False)
    draw_overlay(image, square(0, 200, 0, 300), points=[[5, 5]], boxes=[1, 2, 30, 40])
    assert np.array_equal(image, GRAY)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_small_object_is_on_top_of_a_large_one_in_any_order(order: list[int]) -> None:
    small, middle, large = square(40, 60, 40, 60), square(20, 80, 20, 80), square(0, 200, 0, 300)
    masks = np.stack([small, middle, large])[order]
    overlay = draw_overlay(GRAY, masks)
    # Each object has the color of its place, and shows a little of what it lies on.
    below = [blended(PALETTE[order.index(2)])]
    for size in (1, 0):
        color = PALETTE[order.index(size)]
        below.append(tuple(int(0.4 * b + 0.6 * c + 0.5) for b, c in zip(below[-1], color, strict=True)))
    assert [tuple(overlay[place, place].tolist()) for place in (5, 30, 50)] == below


def test_objects_have_colors_of_their_own_and_begin_again_after_the_last() -> None:
    masks = np.stack([square(0, 10, 10 * i, 10 * i + 10) for i in range(len(PALETTE) + 1)])
    overlay = draw_overlay(GRAY, masks)
    assert len(set(PALETTE)) == len(PALETTE)
    for index in range(len(masks)):
        expected = blended(PALETTE[index % len(PALETTE)])
        assert tuple(overlay[5, 10 * index + 5].tolist()) == expected


def test_foreground_star_is_green_and_background_star_red_with_white_edges() -> None:
    overlay = draw_overlay(GRAY, NOTHING, points=[[50.5, 80.5], [250.5, 80.5]], labels=[1, 0])
    assert tuple(overlay[80, 50]) == GREEN and tuple(overlay[80, 250]) == RED
    for x in (50, 250):
        assert nearly_white(overlay[60:100, x - 20 : x + 20]).sum() > 10


def test_star_points_up_and_is_symmetric() -> None:
    overlay = draw_overlay(GRAY, NOTHING, points=[[150.5, 100.5]])
    changed = (overlay != GRAY).any(axis=-1)
    left, right = changed[:, :150], changed[:, :150:-1]
    assert (left[:, ::-1][:, :40] != right[:, ::-1][:, :40]).mean() < 0.01
    rows = np.flatnonzero(changed.any(axis=1))
    assert changed[rows[0] + 2].sum() < changed[rows[-1] - 2].sum()


def test_labels_left_out_are_foreground() -> None:
    assert tuple(draw_overlay(GRAY, NOTHING, points=[[50, 80]])[80, 50]) == GREEN


def test_box_is_a_green_outline_and_is_not_filled() -> None:
    overlay = draw_overlay(GRAY, NOTHING, boxes=[40, 50, 140, 150])
    expected = square(50, 150, 40, 140) & ~square(51, 149, 41, 139)
    assert np.array_equal(has_color(overlay, GREEN), expected)
    assert np.array_equal(overlay[~expected], GRAY[~expected])


def test_prompts_of_objects_are_drawn_with_those_given_beside() -> None:
    prompt = ObjectPrompt(
        points=np.array([[50.5, 80.5], [100.5, 80.5]], np.float32),
        labels=np.array([1, 0]),
        box=np.array([10, 10, 290, 190], np.float32),
    )
    without_points = ObjectPrompt(points=np.zeros((0, 2), np.float32), labels=np.zeros(0, np.int64))
    overlay = draw_overlay(GRAY, NOTHING, objects=[prompt, without_points], points=[[150.5, 80.5]], labels=[0])
    assert [tuple(overlay[80, x]) for x in (50, 100, 150)] == [GREEN, RED, RED]
    assert has_color(overlay[10, 120], GREEN)


def test_stars_and_lines_grow_with_the_image() -> None:
    changed = []
    for scale in (4, 8):
        image = np.full((200 * scale, 300 * scale, 3), 100, np.uint8)
        overlay = draw_overlay(image, np.zeros(image.shape[:2], bool), points=[[150 * scale, 100 * scale]])
        changed.append((overlay != image).any(axis=-1).mean())
    assert changed[1] == pytest.approx(changed[0], rel=0.2)


def test_star_of_a_tiny_image_keeps_its_color() -> None:
    image = np.full((24, 32, 3), 100, np.uint8)
    overlay = draw_overlay(image, np.zeros((24, 32), bool), points=[[16.5, 12.5]], labels=[0])
    assert has_color(overlay, RED).sum() >= 5


def test_prompts_on_the_far_edge_and_a_single_pixel_are_drawn() -> None:
    corners = [[0, 0], [300, 0], [0, 200], [300, 200]]
    overlay = draw_overlay(GRAY, NOTHING, points=corners, boxes=[0, 0, 300, 200])
    assert all((overlay[y, x] != 100).any() for y, x in ((0, 0), (0, 299), (199, 0), (199, 299)))
    one = np.zeros((1, 1, 3), np.uint8)
    assert draw_overlay(one, np.ones((1, 1), bool), points=[[0.5, 0.5]], boxes=[0, 0, 1, 1]).shape == (1, 1, 3)


def test_contour_is_white_on_the_border_of_the_mask_alone() -> None:
    mask = square(50, 100, 60, 160)
    mask[70:80, 90:110] = False
    overlay = draw_overlay(GRAY, mask, contour=True)
    assert nearly_white(overlay[50, 60:160]).all()
    assert nearly_white(overlay[69:81, 89:111]).any(), "the border of the hole"
    assert tuple(overlay[60, 75]) == blended(SAM_BLUE)
    assert not nearly_white(draw_overlay(GRAY, mask)).any()


def test_no_masks_at_all_leave_the_image() -> None:
    assert np.array_equal(draw_overlay(GRAY, np.zeros((0, 200, 300), bool)), GRAY)


@pytest.mark.parametrize(
    ("image", "masks", "message"),
    [
        (GRAY[..., 0], NOTHING, r"image has the shape \(200, 300\)"),
        (GRAY.astype(np.float32), NOTHING, "type float32"),
        (GRAY[:0], NOTHING[:0], r"\(0, 300, 3\)"),
        (GRAY, NOTHING[:-1], r"masks have the shape \(199, 300\).*accepted is \(200, 300\)"),
        (GRAY, NOTHING[None, None], r"\(1, 1, 200, 300\)"),
        (GRAY, NOTHING.astype(np.float32), "masks .* type float32"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(image: np.ndarray, masks: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        draw_overlay(image, masks)
    assert caught.value.code == "bad_overlay"


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"points": [[1, 2, 3]]}, r"points has the shape \(1, 3\)"),
        ({"points": [[1, 2]], "labels": [1, 0]}, "1 points and 2 labels"),
        ({"points": [["a", "b"]]}, "points has .* type <U1"),
        ({"points": [[1, float("nan")]]}, "points holds a number that is not finite"),
        ({"boxes": [[1, 2, 3]]}, r"boxes has the shape \(1, 3\)"),
        ({"boxes": [0, 0, 1e9, 5]}, "boxes holds a number that is not finite or far outside"),
    ],
)
def test_prompts_that_cannot_be_drawn_are_refused(prompts: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw_overlay(GRAY, NOTHING, **prompts)


def test_colors_are_reproducible_and_do_not_depend_on_their_number() -> None:
    assert seeded_colors(50) == seeded_colors(400)[:50] == seeded_colors(50, seed=0)
    assert seeded_colors(50, seed=1) != seeded_colors(50)
    assert len(set(seeded_colors(300))) > 295


def test_colors_next_to_one_another_differ_well() -> None:
    colors = np.array(seeded_colors(200), int)
    assert np.abs(np.diff(colors, axis=0)).sum(axis=1).min() > 100 and colors.max(axis=1).min() > 150


def test_large_masks_are_drawn_first_whatever_their_order() -> None:
    large, small = square(0, 200, 0, 300), square(50, 100, 50, 100)
    colors = seeded_colors(2, seed=3)
    overlay = draw_masks(GRAY, np.stack([small, large]), seed=3, opacity=1, borders=False)
    assert np.array_equal(has_color(overlay, colors[0]), small)
    assert np.array_equal(has_color(overlay, colors[1]), large & ~small)


def test_of_equal_masks_the_later_is_on_top() -> None:
    mask = square(50, 100, 50, 100)
    overlay = draw_masks(GRAY, np.stack([mask, mask]), opacity=1, borders=False)
    assert np.array_equal(has_color(overlay, seeded_colors(2)[1]), mask)


def test_masks_and_their_run_lengths_are_drawn_alike() -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((5, 200, 300)) < np.array([0.001, 0.01, 0.1, 0.5, 0])[:, None, None]
    runs = [mask_to_runs(mask) for mask in masks]
    for borders in (False, True):
        assert np.array_equal(draw_masks(GRAY, masks, borders=borders), draw_masks(GRAY, runs, borders=borders))


@pytest.mark.parametrize("contour", [False, True])
def test_an_overlay_of_run_lengths_is_that_of_the_masks(contour: bool) -> None:
    rng = np.random.default_rng(1)
    masks = rng.random((4, 200, 300)) < np.array([0.01, 0.5, 0, 1.1])[:, None, None]
    runs = [mask_to_runs(mask) for mask in masks]
    prompts = {"points": [[50, 80]], "boxes": [40, 50, 140, 150], "contour": contour}
    assert np.array_equal(draw_overlay(GRAY, runs, **prompts), draw_overlay(GRAY, masks, **prompts))
    assert np.array_equal(draw_overlay(GRAY, [], **prompts), draw_overlay(GRAY, masks[2:3], **prompts))


@pytest.mark.parametrize("draw", [draw_overlay, draw_masks])
@pytest.mark.parametrize(
    "runs",
    [np.array([3, 4]), np.array([-1, 60_001]), np.array([60_000.0]), np.array([[60_000]]), np.array([60_001])],
)
def test_run_lengths_that_do_not_fill_the_image_are_refused(draw, runs: np.ndarray) -> None:
    full = mask_to_runs(np.ones((200, 300), bool))
    with pytest.raises(InputError, match="mask 1 has the shape .* with the sum 60000") as caught:
        draw(GRAY, [full, runs])
    assert caught.value.code == "bad_overlay"


def test_opacity_is_the_share_of_the_color() -> None:
    mask = square(20, 60, 30, 90)
    overlay = draw_masks(GRAY, mask, opacity=0.25, borders=False)
    expected = [int(0.75 * 100 + 0.25 * channel + 0.5) for channel in seeded_colors(1)[0]]
    assert (overlay[mask] == expected).all() and np.array_equal(overlay[~mask], GRAY[~mask])
    assert np.array_equal(draw_masks(GRAY, mask, opacity=0, borders=False), GRAY)


def test_border_has_the_color_of_its_mask_at_full_strength() -> None:
    mask = square(50, 100, 60, 160)
    mask[70:80, 90:110] = False
    overlay = draw_masks(GRAY, mask)
    color = np.array(seeded_colors(1)[0], int)
    assert np.abs(overlay[50, 61:159] - color).max() <= 8, "the outer border, but for smoothing"
    assert np.abs(overlay[75, 88:112] - color).sum(axis=1).min() <= 16, "the border of the hole"
    assert np.abs(overlay[60, 75] - color).sum() > 60, "inside the picture is seen"


def test_image_given_to_draw_masks_stays_as_it_is() -> None:
    image = GRAY.copy()
    image.setflags(write=False)
    draw_masks(image, square(0, 200, 0, 300))
    assert np.array_equal(image, GRAY) and np.array_equal(draw_masks(image, []), GRAY)


@pytest.mark.parametrize(
    ("image", "masks", "options", "message"),
    [
        (GRAY[..., 0], [], {}, r"image has the shape \(200, 300\)"),
        (GRAY, NOTHING[:-1], {}, r"\(199, 300\)"),
        (GRAY, [np.array([5, 7])], {}, r"mask 0 has .* sum 12; accepted is run lengths .* 60000"),
        (GRAY, [np.array([60001, -1])], {}, "sum 60000"),
        (GRAY, [np.array([6e4])], {}, "type float64"),
        (GRAY, [NOTHING], {}, r"mask 0 has the shape \(200, 300\)"),
        (GRAY, NOTHING, {"opacity": 1.5}, "opacity is 1.5; accepted is a number from 0 to 1"),
        (GRAY, NOTHING, {"opacity": float("nan")}, "opacity is nan"),
    ],
)
def test_masks_that_cannot_be_drawn_are_refused(image, masks, options, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        draw_masks(image, masks, **options)
    assert caught.value.code == "bad_overlay"
