# SPDX-License-Identifier: Apache-2.0
"""Short names for the arrays of the use road; the docstring beside each says shape, unit and frame."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

AnyArray = NDArray[Any]
FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Pixels = NDArray[np.uint8]
"""(H, W, 3) uint8 RGB, or (H, W) uint8."""
Points = NDArray[np.float64]
"""(..., 2) x y."""
Size = tuple[int, int]
"""(height, width), in pixels."""
Color = tuple[int, int, int]
"""Red, green and blue, each 0 to 255."""
