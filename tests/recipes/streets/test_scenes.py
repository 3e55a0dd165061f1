# SPDX-License-Identifier: Apache-2.0
"""Data sets of streets in the official layouts."""

import numpy as np
import pytest
from PIL import Image

from recipes.streets.scenes import main, write_ade20k, write_cityscapes
from segship.datasets.folders import find_samples
from segship.errors import OutputError

SIZE = (48, 96)


def test_cityscapes_has_the_official_files(tmp_path):
    write_cityscapes(tmp_path, {"train": 2, "val": 1}, size_hw=SIZE)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*_000000_000000_*"))
    endings = ("labelIds.png", "labelTrainIds.png", "polygons.json")
    expected = [
        f"gtFine/{split}/{split}ville/{split}ville_000000_000000_gtFine_{end}"
        for split in ("train", "val")
        for end in endings
    ]
    expected += [
        f"leftImg8bit/{split}/{split}ville/{split}ville_000000_000000_leftImg8bit.png" for split in ("train", "val")
    ]
    assert files == expected
    images = [np.array(Image.open(sample.image)) for sample in find_samples("cityscapes", tmp_path, "train")]
    assert images[0].shape == (*SIZE, 3) and not np.array_equal(*images)


def test_splits_differ_and_seeds_repeat(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_cityscapes(tmp_path / name, {"train": 1, "val": 1}, size_hw=SIZE, seed=seed)

    def data(name, split):
        return next((tmp_path / name / "leftImg8bit" / split).rglob("*.png")).read_bytes()

    assert data("a", "val") == data("b", "val") != data("c", "val")
    assert data("a", "val") != data("a", "train")


def test_ade20k_has_the_official_files(tmp_path):
    write_ade20k(tmp_path, {"val": 1}, size_hw=SIZE)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*"))
    assert files == ["annotations/validation/ADE_val_00000001.png", "images/validation/ADE_val_00000001.jpg"]
    annotation = np.array(Image.open(tmp_path / files[0]))
    assert annotation.dtype == np.uint8 and annotation.shape == SIZE and annotation.max() <= 150


def test_nothing_is_overwritten(tmp_path):
    write_ade20k(tmp_path, {"val": 1}, size_hw=SIZE)
    with pytest.raises(OutputError, match="exists"):
        write_ade20k(tmp_path, {"val": 1}, size_hw=SIZE)


def test_the_command_writes_a_data_set(tmp_path, capsys):
    main([str(tmp_path), "--layout", "ade20k", "--train", "1", "--val", "2", "--size", "32x64", "--seed", "3"])
    assert len(find_samples("ade20k", tmp_path)) == 2 and len(find_samples("ade20k", tmp_path, "train")) == 1
    for size, words in (("32", "HEIGHTxWIDTH"), ("8x8", "32 to 4096")):
        with pytest.raises(SystemExit):
            main([str(tmp_path / "other"), "--size", size])
        assert words in capsys.readouterr().err
