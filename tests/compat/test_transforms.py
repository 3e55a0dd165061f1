# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from segship.compat import ResizeLongestSide
from segship.images.comparison import draw_scene
from tests.compat.side_by_side import the_reference


@pytest.mark.parametrize("size", [(120, 180), (683, 1024), (41, 97), (1200, 1800)])
def test_everything_equals_the_reference(size):
    mine, theirs = ResizeLongestSide(128), the_reference()[0].ResizeLongestSide(128)
    image = draw_scene(size, seed=1)
    assert np.array_equal(mine.apply_image(image), theirs.apply_image(image))
    points = np.array([[[0, 0], [size[1], size[0]]], [[13, 7], [5.25, 8.75]]])
    boxes = points.reshape(-1, 4)
    assert np.allclose(mine.apply_coords(points, size), theirs.apply_coords(points, size), rtol=1e-15)
    assert np.allclose(mine.apply_boxes(boxes, size), theirs.apply_boxes(boxes, size), rtol=1e-15)
    for name, given in (("apply_coords_torch", points), ("apply_boxes_torch", boxes)):
        ours = getattr(mine, name)(torch.as_tensor(given), size)
        expected = getattr(theirs, name)(torch.as_tensor(given), size)
        assert ours.dtype == np.float32 and np.allclose(ours.cpu().numpy(), expected.numpy(), rtol=1e-6)
    assert mine.get_preprocess_shape(*size, 128) == theirs.get_preprocess_shape(*size, 128)


def test_coordinates_that_were_given_stay_as_they_are():
    points = np.array([[100, 50]])
    ResizeLongestSide(128).apply_coords(points, (120, 180))
    assert points.tolist() == [[100, 50]]
