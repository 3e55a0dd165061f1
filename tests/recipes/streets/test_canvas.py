# SPDX-License-Identifier: Apache-2.0
"""What streets are painted on."""

import numpy as np
from PIL import Image, ImageDraw

from recipes.streets.canvas import Camera, Canvas, cut_to_frame


def canvas(height=40, width=60):
    return Canvas(np.random.default_rng(0), (height, width))


def test_what_is_painted_is_what_the_polygon_covers():
    paint = canvas()
    before = paint.image.copy()
    covered = paint.put("car", [(-10, 5), (30.4, 2.6), (45, 80)], (200, 10, 10), grain=0)
    (polygon,) = paint.polygons
    picture = Image.new("1", (60, 40))
    ImageDraw.Draw(picture).polygon([tuple(corner) for corner in polygon.corners.tolist()], fill=1)
    assert polygon.label == "car" and np.array_equal(covered, np.array(picture))
    assert (paint.image[covered] == (200, 10, 10)).all() and np.array_equal(paint.image[~covered], before[~covered])


def test_details_are_not_written_down_and_stay_within():
    paint = canvas()
    body = paint.put("car", [(10, 10), (20, 10), (20, 20), (10, 20)], (9, 9, 9), grain=0)
    paint.detail([(0, 12), (59, 12), (59, 14), (0, 14)], (250, 250, 250), grain=0, within=body)
    assert len(paint.polygons) == 1
    assert (paint.image[12, 10:21] == 250).all() and (paint.image[12, :10] == 0).all()


def test_what_cannot_be_seen_is_left_out():
    paint = canvas()
    paint.put("car", [(100, 100), (120, 100), (120, 120)], (9, 9, 9))
    paint.put("car", [(5, 5), (6, 5), (6, 6)], (9, 9, 9))
    assert paint.polygons == [] and not paint.image.any()


def test_cutting_keeps_what_is_inside():
    square = np.array([(-10.0, -10.0), (25.0, -10.0), (25.0, 20.0), (-10.0, 20.0)])
    cut = cut_to_frame(square, 40, 60)
    assert {tuple(corner) for corner in cut.tolist()} == {(0, 0), (25, 0), (25, 20), (0, 20)}
    assert len(cut_to_frame(square - 100, 40, 60)) == 0
    assert np.array_equal(cut_to_frame(square + 12, 40, 60), square + 12)


def test_the_camera_sees_twice_as_far_things_half_as_large():
    camera = Camera(focal=100, height=1.5, vanishing_x=30, horizon_y=20)
    near, far = camera.project([(1, 0, 5), (1, 0, 10)])
    assert near.tolist() == [50, 50] and far.tolist() == [40, 35]
    assert camera.project([(0, 1.5, 7)]).tolist() == [[30, 20]]
