# SPDX-License-Identifier: Apache-2.0
"""PNG files of labels."""

import numpy as np
import pytest
from PIL import Image

from segship.datasets import folders as label_images
from segship.datasets.folders import encode_label_image, read_label_image
from segship.errors import InputError

LABELS = np.random.default_rng(0).integers(0, 256, (7, 11), dtype=np.uint8)


def test_labels_come_back_and_any_reader_sees_them(tmp_path):
    path = tmp_path / "labels.png"
    path.write_bytes(encode_label_image(LABELS))
    assert np.array_equal(read_label_image(path), LABELS)
    assert np.array_equal(np.array(Image.open(path)), LABELS)


def test_the_numbers_of_a_palette_picture_are_its_indices(tmp_path):
    image = Image.fromarray(LABELS)
    image.putpalette([value for index in range(256) for value in (255 - index, index, 7)])
    image.save(tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as opened:
        assert opened.mode == "P"
    assert np.array_equal(read_label_image(tmp_path / "labels.png"), LABELS)


def test_a_link_to_a_file_is_followed(tmp_path):
    (tmp_path / "real.png").write_bytes(encode_label_image(LABELS))
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    assert np.array_equal(read_label_image(tmp_path / "link.png"), LABELS)


@pytest.mark.parametrize(
    ("pixels", "mode"), [(np.zeros((3, 3, 3), np.uint8), "RGB"), (np.zeros((3, 3), np.uint16), "I;16")]
)
def test_pictures_of_colors_or_of_16_bits_are_refused(tmp_path, pixels, mode):
    Image.fromarray(pixels).save(tmp_path / "colors.png")
    with pytest.raises(InputError, match=f"'{mode}'") as caught:
        read_label_image(tmp_path / "colors.png")
    assert caught.value.code == "bad_label_image"


@pytest.mark.parametrize("cut", [0, 10, 60, -20])
def test_damaged_files_are_named(tmp_path, cut):
    path = tmp_path / "cut.png"
    path.write_bytes(encode_label_image(np.random.default_rng(1).integers(0, 256, (40, 40), dtype=np.uint8))[:cut])
    with pytest.raises(InputError, match=r"cut\.png is damaged"):
        read_label_image(path)


def test_missing_and_huge_files_are_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no file"):
        read_label_image(tmp_path / "none.png")
    (tmp_path / "labels.png").write_bytes(encode_label_image(LABELS))
    monkeypatch.setattr(label_images, "MAX_LABEL_PIXELS", 76)
    with pytest.raises(InputError, match="11 x 7 pixels"):
        read_label_image(tmp_path / "labels.png")
