# SPDX-License-Identifier: Apache-2.0
"""`ResizeLongestSide`: images, points and boxes in the model frame, under the reference's names.

Follows segment_anything/utils/transforms.py. Its ``apply_image_torch`` is left out: it resizes otherwise than the
models expect, as its own documentation says.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segship.compat.arrays import TensorArray, as_array, as_tensor_array
from segship.transforms import resize_image, resized_size


class ResizeLongestSide:
    """Bring images and coordinates to the model frame, where an image's longer side is ``target_length``.

    Parameters
    ----------
    target_length
        Side of the model frame, in pixels.

    Examples
    --------
    >>> transform = ResizeLongestSide(1024)
    >>> transform.apply_coords(np.array([[500, 375]]), (1200, 1800))
    array([[284.44444444, 213.4375    ]])
    """

    def __init__(self, target_length: int) -> None:
        self.target_length = target_length

    def apply_image(self, image: Any) -> NDArray[np.uint8]:
        """Return (h, w, 3) uint8 of an image (H, W, 3) uint8, resized by Pillow's antialiased bilinear."""
        # A copy, since Pillow's memory is read-only and torch warns of such arrays.
        return np.array(resize_image(as_array(image), self.target_length))

    def apply_coords(self, coords: Any, original_size: tuple[int, ...]) -> NDArray[np.float64]:
        """Return points in the model frame.

        Parameters
        ----------
        coords
            (..., 2) x y pixels in the image frame.
        original_size
            (height, width) of the image.

        Returns
        -------
        NDArray
            (..., 2) float64.
        """
        height, width = original_size
        new_height, new_width = resized_size((height, width), self.target_length)
        # Each axis has its own exact ratio, since the resized sides are rounded.
        return np.asarray(as_array(coords).astype(np.float64) * (new_width / width, new_height / height))

    def apply_boxes(self, boxes: Any, original_size: tuple[int, ...]) -> NDArray[np.float64]:
        """Return boxes (B, 4) float64 x0 y0 x1 y1 in the model frame; see `apply_coords`."""
        return self.apply_coords(as_array(boxes).reshape(-1, 2, 2), original_size).reshape(-1, 4)

    def apply_coords_torch(self, coords: Any, original_size: tuple[int, ...]) -> TensorArray:
        """Return points (..., 2) float32 in the model frame, for `SamPredictor.predict_torch`."""
        return as_tensor_array(self.apply_coords(coords, original_size).astype(np.float32))

    def apply_boxes_torch(self, boxes: Any, original_size: tuple[int, ...]) -> TensorArray:
        """Return boxes (B, 4) float32 in the model frame, for `SamPredictor.predict_torch`."""
        return as_tensor_array(self.apply_boxes(boxes, original_size).astype(np.float32))

    @staticmethod
    def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int) -> tuple[int, int]:
        """Return (height, width) of an image of ``oldh`` x ``oldw`` whose longer side becomes ``long_side_length``."""
        return resized_size((oldh, oldw), long_side_length)
