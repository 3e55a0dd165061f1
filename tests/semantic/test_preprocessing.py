# SPDX-License-Identifier: Apache-2.0
"""Sizes for graphs of one size; the steps of the published pipeline are tested with inference."""

import pytest

from segship.errors import ImageError
from segship.semantic.preprocessing import size_in_frame


@pytest.mark.parametrize(
    ("size", "scaled", "frame", "expected"),
    [
        ((1024, 2048), (1024, 2048), None, (1024, 2048)),
        ((1024, 2048), (1024, 2048), (1024, 2048), (1024, 2048)),
        # Smaller than the frame: the test scale holds, the rest is padding.
        ((480, 640), (512, 683), (512, 1024), (512, 683)),
        # Too wide, too high, both: one factor, from the image's own ratio.
        ((512, 1500), (512, 1500), (512, 1024), (350, 1024)),
        ((1500, 512), (1500, 512), (512, 1024), (512, 175)),
        ((2000, 3000), (1024, 1536), (512, 512), (341, 512)),
        ((96, 160), (1024, 1706), (96, 160), (96, 160)),
    ],
)
def test_images_fit_into_a_frame_by_one_factor(size, scaled, frame, expected):
    assert size_in_frame(size, scaled, frame) == expected
    assert frame is None or (expected[0] <= frame[0] and expected[1] <= frame[1])


def test_an_image_of_which_nothing_would_be_left_is_refused():
    with pytest.raises(ImageError) as caught:
        size_in_frame((1, 3000), (2, 6000), (100, 100))
    assert caught.value.code == "aspect_ratio"
