# SPDX-License-Identifier: Apache-2.0
"""Train ids for whole splits."""

import numpy as np
import pytest
from PIL import Image

from recipes.streets.scenes import write_cityscapes
from segship.datasets.train_ids import TrainIdsOptions, write_train_ids
from segship.errors import InputError

SIZE = (48, 96)


def train_id_files(root):
    return sorted((root / "gtFine").rglob("*_labelTrainIds.png"))


@pytest.mark.parametrize(("truth", "workers"), [("polygons", 2), ("labelIds", 0)])
def test_every_split_gets_the_files_of_the_official_script(tmp_path, truth, workers):
    write_cityscapes(tmp_path / "all", {"train": 3, "val": 2}, size_hw=SIZE)
    write_cityscapes(tmp_path / "bare", {"train": 3, "val": 2}, size_hw=SIZE, truths=(truth,))
    told = []
    options = TrainIdsOptions(workers=workers)
    done = write_train_ids(tmp_path / "bare", options, progress=lambda *count: told.append(count))
    assert (done.written, done.kept, done.failed) == (5, 0, ())
    assert told == [(count, 5) for count in range(1, 6)]
    expected, written = train_id_files(tmp_path / "all"), train_id_files(tmp_path / "bare")
    assert [path.name for path in written] == [path.name for path in expected] and len(written) == 5
    for path, other in zip(written, expected, strict=True):
        assert np.array_equal(np.array(Image.open(path)), np.array(Image.open(other)))


def test_files_that_are_there_stay_unless_asked(tmp_path):
    write_cityscapes(tmp_path, {"val": 2}, size_hw=SIZE, truths=("polygons",))
    assert write_train_ids(tmp_path).written == 2
    (path, _) = train_id_files(tmp_path)
    path.write_bytes(b"mine")
    again = write_train_ids(tmp_path)
    assert (again.written, again.kept) == (0, 2) and path.read_bytes() == b"mine"
    assert write_train_ids(tmp_path, TrainIdsOptions(overwrite=True)).written == 2
    assert path.read_bytes() != b"mine"


def test_damaged_and_missing_files_are_listed_and_stop_nothing(tmp_path):
    write_cityscapes(tmp_path, {"val": 3}, size_hw=SIZE, truths=("polygons",))
    first, second, _ = sorted((tmp_path / "gtFine").rglob("*.json"))
    first.write_text("{}")
    second.unlink()
    done = write_train_ids(tmp_path)
    assert done.written == 1
    assert [failure.code for failure in done.failed] == ["bad_annotation", "missing_truth"]


def test_only_the_named_split_is_converted(tmp_path):
    write_cityscapes(tmp_path, {"train": 1, "val": 1}, size_hw=SIZE, truths=("polygons",))
    assert write_train_ids(tmp_path, TrainIdsOptions(splits=("train",))).written == 1


def test_a_folder_without_splits_is_refused(tmp_path):
    with pytest.raises(InputError, match="no split"):
        write_train_ids(tmp_path)
    (tmp_path / "gtFine" / "val").mkdir(parents=True)
    with pytest.raises(InputError, match="no polygons"):
        write_train_ids(tmp_path)
