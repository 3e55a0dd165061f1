# SPDX-License-Identifier: Apache-2.0
"""The official folders, whole and with gaps."""

import pytest

from segship.datasets.folders import find_samples
from segship.errors import InputError


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def city_files(split="val"):
    return [
        f"leftImg8bit/{split}/bonn/bonn_1_leftImg8bit.png",
        f"gtFine/{split}/bonn/bonn_1_gtFine_polygons.json",
        f"gtFine/{split}/bonn/bonn_1_gtFine_labelIds.png",
        f"gtFine/{split}/bonn/bonn_1_gtFine_labelTrainIds.png",
        f"gtFine/{split}/bonn/bonn_1_gtFine_instanceIds.png",
        f"gtFine/{split}/bonn/bonn_1_gtFine_color.png",
        f"leftImg8bit/{split}/aachen/aachen_2_leftImg8bit.png",
        f"gtFine/{split}/aachen/aachen_2_gtFine_polygons.json",
    ]


def test_cityscapes_is_found_by_city_and_stem(tmp_path):
    touch(tmp_path, *city_files(), *city_files("train"), "leftImg8bit/val/bonn/._bonn_1_leftImg8bit.png")
    first, second = find_samples("cityscapes", tmp_path)
    assert (first.name, first.stem, first.truth_kind) == ("aachen/aachen_2", "aachen_2", "polygons")
    assert second.image == tmp_path / "leftImg8bit/val/bonn/bonn_1_leftImg8bit.png"
    assert second.truth == tmp_path / "gtFine/val/bonn/bonn_1_gtFine_labelTrainIds.png"


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds", "polygons"])
def test_the_kind_of_truth_can_be_asked_for(tmp_path, kind):
    touch(tmp_path, *city_files())
    first, second = find_samples("cityscapes", tmp_path, truth=kind)
    assert second.truth_kind == first.truth_kind == kind
    assert second.truth.name.startswith(f"bonn_1_gtFine_{kind}.")
    assert (first.truth is None) == (kind != "polygons")


def test_gaps_are_samples_too(tmp_path):
    touch(tmp_path, "leftImg8bit/val/a/a_1_leftImg8bit.png", "gtFine/val/a/a_2_gtFine_labelIds.png")
    first, second = find_samples("cityscapes", tmp_path)
    assert first.truth is None and first.image is not None
    assert second.image is None and second.truth is not None


@pytest.mark.parametrize("base", [".", "ADEChallengeData2016"])
@pytest.mark.parametrize("split", ["val", "validation"])
def test_ade20k_is_found_with_and_without_its_outer_folder(tmp_path, base, split):
    root = tmp_path / base
    touch(root, "images/validation/ADE_val_1.jpg", "annotations/validation/ADE_val_1.png")
    touch(root, "images/training/ADE_train_1.jpg", "annotations/validation/ADE_val_2.png")
    first, second = find_samples("ade20k", tmp_path, split)
    assert (first.name, first.truth_kind) == ("ADE_val_1", "annotation")
    assert first.image == root / "images/validation/ADE_val_1.jpg"
    assert second.image is None


def test_ade20k_in_a_folder_of_the_name_that_was_asked_for(tmp_path):
    touch(tmp_path, "images/val/ADE_val_1.jpg", "annotations/val/ADE_val_1.png")
    (sample,) = find_samples("ade20k", tmp_path, "val")
    assert sample.truth == tmp_path / "annotations/val/ADE_val_1.png"


def test_folders_may_be_links(tmp_path):
    touch(tmp_path / "elsewhere", *city_files())
    (tmp_path / "data").mkdir()
    for name in ("leftImg8bit", "gtFine"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "elsewhere" / name)
    assert len(find_samples("cityscapes", tmp_path / "data")) == 2


@pytest.mark.parametrize(
    ("data_set", "split", "code", "words"),
    [
        ("kitti", "val", "unknown_data_set", "cityscapes, ade20k"),
        ("cityscapes", "test", "missing_folder", "splits there are val"),
        ("ade20k", "val", "missing_folder", "images/SPLIT and annotations/SPLIT"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, data_set, split, code, words):
    touch(tmp_path, *city_files())
    with pytest.raises(InputError, match=words) as caught:
        find_samples(data_set, tmp_path, split)
    assert caught.value.code == code


def test_an_empty_split_and_a_truth_that_ade20k_does_not_have_are_refused(tmp_path):
    (tmp_path / "gtFine/val").mkdir(parents=True)
    with pytest.raises(InputError, match="no picture"):
        find_samples("cityscapes", tmp_path)
    with pytest.raises(InputError, match="annotations alone"):
        find_samples("ade20k", tmp_path, truth="polygons")
