# SPDX-License-Identifier: Apache-2.0
"""The photograph inside the package, for demonstrations, examples and comparisons.

A cup of coffee on a wooden table, by Rachel Michetti, who dedicated it to the public domain (CC0); taken from the
data of scikit-image, 600 x 400 pixels.
"""

from __future__ import annotations

from pathlib import Path

# On the spoon.
DEMO_POINT_XY = (365, 290)


def demo_photograph() -> Path:
    """Return the path of the photograph inside the package, a JPEG of 600 x 400 pixels."""
    return Path(__file__).parent / "assets" / "coffee.jpg"
