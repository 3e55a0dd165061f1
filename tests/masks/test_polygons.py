# SPDX-License-Identifier: Apache-2.0
"""Polygons of masks and masks of polygons: the same pixels back, and rings that are what they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segship.errors import InputError
from segship.masks.polygons import Polygon, mask_to_polygons, polygons_to_mask, polygons_to_runs
from segship.masks.rle import mask_to_runs

masks = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(lambda size: arrays(np.bool_, size))


def rings_of(polygons: list[Polygon]) -> list[np.ndarray]:
    return [ring for polygon in polygons for ring in (polygon.outer, *polygon.holes)]


def area(ring: np.ndarray) -> float:
    """Shoelace; above 0 for a ring that is clockwise where y points down."""
    x, y = ring.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def inside(ring: np.ndarray, x: float, y: float) -> bool:
    """Whether a ray to the right crosses the ring an odd number of times."""
    crossings = 0
    for (x0, y0), (x1, y1) in zip(ring.tolist(), np.roll(ring, -1, axis=0).tolist(), strict=True):
        if (y0 <= y) != (y1 <= y):
            crossings += x0 + (y - y0) * (x1 - x0) / (y1 - y0) > x
    return crossings % 2 == 1


def slow_mask(polygons: list[Polygon], size_hw: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size_hw, bool)
    for y, x in np.ndindex(size_hw):
        for polygon in polygons:
            mask[y, x] |= sum(inside(ring, x + 0.5, y + 0.5) for ring in (polygon.outer, *polygon.holes)) % 2 == 1
    return mask


@given(masks)
def test_polygons_give_exactly_the_mask_back(mask: np.ndarray) -> None:
    polygons = mask_to_polygons(mask)
    assert np.array_equal(polygons_to_mask(polygons, mask.shape), mask)
    assert np.array_equal(polygons_to_runs(polygons, mask.shape), mask_to_runs(mask))
    assert np.array_equal(slow_mask(polygons, mask.shape), mask)


@given(masks)
def test_areas_of_rings_add_up_to_the_pixels(mask: np.ndarray) -> None:
    assert sum(area(ring) for ring in rings_of(mask_to_polygons(mask))) == mask.sum()


@given(masks)
def test_outer_rings_are_clockwise_and_holes_are_not(mask: np.ndarray) -> None:
    for polygon in mask_to_polygons(mask):
        assert area(polygon.outer) > 0
        assert all(area(hole) < 0 for hole in polygon.holes)


@given(masks)
def test_no_ring_visits_a_point_twice_nor_a_side_in_two_steps(mask: np.ndarray) -> None:
    for ring in rings_of(mask_to_polygons(mask)):
        assert len(np.unique(ring, axis=0)) == len(ring)
        steps = np.roll(ring, -1, axis=0) - ring
        # Level and upright in turn, so no corner lies on a straight line.
        assert ((steps[::2] == 0).argmax(axis=1) == (steps[0] == 0).argmax()).all()
        assert ((steps == 0).sum(axis=1) == 1).all()
        assert ((steps[::2] == 0) != (steps[1::2] == 0)).all()


def flood(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Label pieces that are connected by sides one after the other, from their first pixels, and count them."""
    labels, count = np.zeros(mask.shape, int), 0
    for start in map(tuple, np.argwhere(mask).tolist()):
        if labels[start]:
            continue
        count += 1
        todo = [start]
        while todo:
            y, x = todo.pop()
            if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x] and not labels[y, x]:
                labels[y, x] = count
                todo += [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
    return labels, count


@given(masks)
def test_polygons_are_the_pieces_connected_by_sides(mask: np.ndarray) -> None:
    labels, count = flood(mask)
    polygons = mask_to_polygons(mask)
    assert len(polygons) == count
    for number, polygon in enumerate(polygons, start=1):
        assert np.array_equal(polygons_to_mask([polygon], mask.shape), labels == number)


@given(masks, st.sampled_from([0.5, 1.0, 1.5, 3.0]))
def test_simplified_rings_keep_to_their_tolerance(mask: np.ndarray, tolerance: float) -> None:
    exact, simple = mask_to_polygons(mask), mask_to_polygons(mask, tolerance=tolerance)
    assert [len(polygon.holes) for polygon in exact] == [len(polygon.holes) for polygon in simple]
    for ring, kept in zip(rings_of(exact), rings_of(simple), strict=True):
        assert area(ring) * area(kept) > 0
        places = [np.flatnonzero((ring == corner).all(axis=1)).item() for corner in kept]
        for start, end in zip(places, np.roll(places, -1), strict=True):
            between = np.roll(ring, -start, axis=0)[: (end - start) % len(ring) + 1]
            assert distances(between, ring[start], ring[end]).max() <= tolerance + 1e-6


def distances(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """From points to the line through two others."""
    along = (end - start) / np.linalg.norm(end - start)
    away = points - start
    return np.abs(away[:, 0] * along[1] - away[:, 1] * along[0])


@pytest.mark.parametrize(("tolerance", "corners"), [(0.0, 500), (1.0, 80), (2.0, 45)])
def test_simplified_disc_stays_a_disc(tolerance: float, corners: int) -> None:
    y, x = np.mgrid[:200, :300]
    mask = (x - 150) ** 2 + (y - 100) ** 2 < 80**2
    (polygon,) = mask_to_polygons(mask, tolerance=tolerance)
    again = polygons_to_mask([polygon], mask.shape)
    assert len(polygon.outer) <= corners
    assert (again & mask).sum() / (again | mask).sum() > 0.98


def test_ring_of_pixels_has_a_hole_and_an_island_in_it_is_another_polygon() -> None:
    mask = np.ones((5, 5), bool)
    mask[1:4, 1:4] = False
    mask[2, 2] = True
    around, island = mask_to_polygons(mask)
    assert around.outer.tolist() == [[0, 0], [5, 0], [5, 5], [0, 5]]
    assert [hole.tolist() for hole in around.holes] == [[[4, 1], [1, 1], [1, 4], [4, 4]]]
    assert island.outer.tolist() == [[2, 2], [3, 2], [3, 3], [2, 3]] and island.holes == ()


def test_pixels_that_touch_with_a_corner_are_two_polygons() -> None:
    for mask in (np.eye(2, dtype=bool), np.eye(2, dtype=bool)[::-1]):
        assert [len(polygon.outer) for polygon in mask_to_polygons(mask)] == [4, 4]


def test_pocket_closed_by_a_corner_is_a_hole() -> None:
    mask = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], bool)
    (polygon,) = mask_to_polygons(mask)
    assert area(polygon.outer) == 8 and [area(hole) for hole in polygon.holes] == [-1]


def test_single_pixel_is_a_square() -> None:
    mask = np.zeros((4, 6), bool)
    mask[2, 3] = True
    for tolerance in (0, 5):
        (polygon,) = mask_to_polygons(mask, tolerance=tolerance)
        assert polygon.outer.tolist() == [[3, 2], [4, 2], [4, 3], [3, 3]] and polygon.outer.dtype == np.float64


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (3, 4)])
def test_mask_without_set_pixels_has_no_polygons(shape: tuple[int, int]) -> None:
    assert mask_to_polygons(np.zeros(shape, bool)) == []
    assert polygons_to_mask([], shape).shape == shape and not polygons_to_mask([], shape).any()


corners = arrays(
    np.float64, st.tuples(st.integers(3, 8), st.just(2)), elements=st.integers(-24, 72).map(lambda n: n / 4)
)


@given(st.lists(corners, min_size=1, max_size=3))
def test_any_polygons_are_drawn_as_the_slow_way_draws_them(rings: list[np.ndarray]) -> None:
    polygons = [Polygon(rings[0], tuple(rings[1:2])), *(Polygon(ring) for ring in rings[2:])]
    # A little aside, in a direction that no side has: of a centre on a side, either answer would be right.
    aside = np.array([1e-3, 0.618e-3])
    polygons = [Polygon(one.outer + aside, tuple(hole + aside for hole in one.holes)) for one in polygons]
    assert np.array_equal(polygons_to_mask(polygons, (9, 12)), slow_mask(polygons, (9, 12)))


def test_polygons_with_a_common_side_leave_no_gap_and_share_no_pixel() -> None:
    left = Polygon(np.array([[0.0, 0.0], [7.3, 0.0], [3.1, 11.0], [0.0, 11.0]]))
    right = Polygon(np.array([[7.3, 0.0], [12.0, 0.0], [12.0, 11.0], [3.1, 11.0]]))
    parts = [polygons_to_mask([part], (11, 12)) for part in (left, right)]
    assert np.array_equal(parts[0], ~parts[1])


def test_overlapping_polygons_are_united() -> None:
    square = np.array([[1.0, 1.0], [4.0, 1.0], [4.0, 4.0], [1.0, 4.0]])
    mask = polygons_to_mask([Polygon(square), Polygon(square + 1)], (7, 7))
    assert mask.sum() == 9 + 9 - 4


def test_what_lies_outside_the_image_is_cut_off() -> None:
    far = np.array([[-1e9, -1e3], [1e5, -1e3], [1e5, 1e9], [-1e9, 1e9]])
    assert polygons_to_mask([Polygon(far)], (4, 5)).all()
    assert not polygons_to_mask([Polygon(np.abs(far) / 2 + 9)], (4, 5)).any()


@pytest.mark.parametrize(
    ("ring", "message"),
    [
        (np.zeros((2, 2)), r"shape \(2, 2\); accepted is \(n, 2\), x y of 3 corners or more"),
        (np.zeros((4, 3)), r"shape \(4, 3\)"),
        (np.array([[0, 0], [1, 0], [1, np.nan]]), "NaN"),
        (np.array([[0, 0], [1, 0], [1, 1e308]]), "farther than 1e.09 pixels"),
    ],
)
def test_bad_rings_are_refused(ring: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        polygons_to_mask([Polygon(ring)], (4, 5))


@pytest.mark.parametrize("tolerance", [-1, float("nan"), float("inf")])
def test_bad_tolerance_is_refused(tolerance: float) -> None:
    with pytest.raises(InputError, match="tolerance is "):
        mask_to_polygons(np.ones((2, 2), bool), tolerance=tolerance)


def test_absurd_tolerances_are_as_large_ones():
    mask = np.zeros((40, 50), bool)
    mask[5:30, 10:40] = True
    (absurd,), (large,) = (mask_to_polygons(mask, tolerance=tolerance) for tolerance in (1e308, 1e6))
    assert np.array_equal(absurd.outer, large.outer)
