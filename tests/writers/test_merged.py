# SPDX-License-Identifier: Apache-2.0
"""One data set of many images, read back by the tools that people read them with."""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import json
import tracemalloc
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from segship.errors import InputError, OutputError
from segship.promptable.everything.records import ImageRecords
from segship.writers import Outlines, Result, label_instances
from segship.writers.merged import MERGED, merge_results
from tests.writers.test_shapes import fill_even_odd, read_yolo


def read_coco(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(path)


@contextlib.contextmanager
def old_array_protocol() -> Iterator[None]:
    with warnings.catch_warnings():
        # pycocotools has an __array__ of before numpy 2.
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        yield


@pytest.fixture
def three(records: ImageRecords, no_records: ImageRecords) -> list:
    """Masks with names, none, and masks with other names in another order."""
    first = label_instances(records, ["cat", "dog", "cat", "cat", "dog", "cat"])
    second = replace(no_records, stem="empty", name="b/empty.jpg")
    third = label_instances(
        replace(records, stem="third", name="c/third.jpg"), ["eel", "dog", "dog", "cat", "eel", "eel"]
    )
    return [first, second, third]


@pytest.mark.parametrize("polygons", [False, True])
def test_coco_of_many_images_is_read_by_pycocotools(
    three: list, record_masks: np.ndarray, tmp_path: Path, polygons: bool
) -> None:
    with merge_results(tmp_path / "new", ["coco"], outlines=Outlines(coco_polygons=polygons)) as merged:
        for result in three:
            merged.add(result)
    assert merged.files == (tmp_path / "new" / "coco.json",) and merged.images == 3
    coco = read_coco(tmp_path / "new" / "coco.json")
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == [
        "my photo.jpg",
        "empty.jpg",
        "third.jpg",
    ]
    annotations = coco.loadAnns(coco.getAnnIds())
    masks = [mask for mask in record_masks if mask.any() or not polygons]
    assert [annotation["id"] for annotation in annotations] == list(range(1, 2 * len(masks) + 1))
    assert [annotation["image_id"] for annotation in annotations] == [1] * len(masks) + [3] * len(masks)
    names = {category["id"]: category["name"] for category in coco.loadCats(coco.getCatIds())}
    assert sorted(names) == list(range(1, len(names) + 1)) and len(set(names.values())) == len(names)
    labels = [names[annotation["category_id"]] for annotation in annotations]
    expected = ["cat", "dog", "cat", "cat", "dog", "cat"][: len(masks)], ["eel", "dog", "dog", "cat", "eel", "eel"]
    assert labels == [*expected[0], *expected[1][: len(masks)]]
    with old_array_protocol():
        for annotation, mask in zip(annotations, [*masks, *masks], strict=True):
            assert np.array_equal(coco.annToMask(annotation).astype(bool), mask)


def test_coco_of_many_images_is_read_by_supervision(three: list, tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision")
    with merge_results(tmp_path, ["coco", "yolo"]) as merged:
        for result in three:
            merged.add(replace(result, name=f"{result.stem}.jpg"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        of_coco = supervision.DetectionDataset.from_coco(
            str(tmp_path / "yolo" / "images"), str(tmp_path / "coco.json"), force_masks=True
        )
        of_yolo = supervision.DetectionDataset.from_yolo(
            str(tmp_path / "yolo" / "images"),
            str(tmp_path / "yolo" / "labels"),
            str(tmp_path / "yolo" / "data.yaml"),
            force_masks=True,
        )
    assert len(of_coco) == len(of_yolo) == 3
    assert of_yolo.classes == ["cat", "dog", "object", "eel"]
    for data in (of_coco, of_yolo):
        sizes = {Path(path).stem: (image.shape, detections) for path, image, detections in data}
        assert sizes["my photo"][0] == (60, 80, 3) and len(sizes["empty"][1]) == 0
        # The empty mask is in COCO alone.
        assert len(sizes["third"][1]) == (6 if data is of_coco else 5)
    assert sizes["third"][1].class_id.tolist() == [3, 1, 1, 0, 3]


def test_yolo_of_many_images_has_the_layout_that_trainers_ask(
    three: list, record_masks: np.ndarray, tmp_path: Path
) -> None:
    with merge_results(tmp_path, ["yolo"]) as merged:
        for result in three:
            merged.add(result)
    root = tmp_path / "yolo"
    stems = ["empty", "my photo", "third"]
    assert sorted(path.name for path in (root / "images").iterdir()) == [f"{stem}.jpg" for stem in stems]
    assert sorted(path.name for path in (root / "labels").iterdir()) == [f"{stem}.txt" for stem in stems]
    for image in (root / "images").iterdir():
        with Image.open(image) as opened:
            assert opened.size == (80, 60)
    text = (root / "data.yaml").read_text().splitlines()
    expected = ["train: images", "val: images", "names:", '  0: "cat"', '  1: "dog"', '  2: "object"', '  3: "eel"']
    assert text[1:] == expected
    lines = read_yolo((root / "labels" / "third.txt").read_bytes(), (60, 80))
    assert [category for category, _ in lines] == [3, 1, 1, 0, 3]
    for (_, ring), mask in zip(lines, record_masks, strict=False):
        assert np.array_equal(fill_even_odd(ring, mask.shape), mask)
    assert (root / "labels" / "empty.txt").read_bytes() == b""


def test_panoptic_of_many_images_says_what_its_pictures_hold(three: list, tmp_path: Path) -> None:
    with merge_results(tmp_path, ["panoptic"]) as merged:
        for result in three:
            merged.add(result)
    document = json.loads((tmp_path / "panoptic" / "panoptic.json").read_text())
    assert (
        [image["id"] for image in document["images"]]
        == [one["image_id"] for one in document["annotations"]]
        == [1, 2, 3]
    )
    names = {category["id"]: category["name"] for category in document["categories"]}
    assert {category["isthing"] for category in document["categories"]} == {1}
    for image, annotation in zip(document["images"], document["annotations"], strict=True):
        with Image.open(tmp_path / "panoptic" / "panoptic" / annotation["file_name"]) as picture:
            colors = np.asarray(picture).astype(int)
        ids = colors @ (1, 256, 65536)
        assert ids.shape == (image["height"], image["width"])
        segments = {segment["id"]: segment for segment in annotation["segments_info"]}
        assert set(np.unique(ids)) - {0} == set(segments)
        assert all((ids == number).sum() == segment["area"] for number, segment in segments.items())
    third = document["annotations"][2]["segments_info"]
    assert {names[segment["category_id"]] for segment in third} == {"eel", "dog", "cat"}


def test_images_are_called_by_their_path_below_the_root(records: ImageRecords, tmp_path: Path) -> None:
    pictures = [tmp_path / "set" / folder / "dog.jpg" for folder in ("a", "b")]
    with merge_results(tmp_path, ["coco"], root=tmp_path / "set") as merged:
        for index, picture in enumerate([*pictures, tmp_path / "elsewhere" / "cat.jpg"]):
            merged.add(replace(records, stem=f"dog-{index}", name=str(picture)))
    document = json.loads((tmp_path / "coco.json").read_text())
    assert [image["file_name"] for image in document["images"]] == ["a/dog.jpg", "b/dog.jpg", "cat.jpg"]


def test_two_images_of_one_name_are_refused_and_leave_nothing(records: ImageRecords, tmp_path: Path) -> None:
    with merge_results(tmp_path, MERGED) as merged:
        merged.add(records)
        with pytest.raises(InputError, match="another image of the data set is called 'my photo.jpg'") as caught:
            merged.add(replace(records, stem="other"))
        assert caught.value.code == "same_image"
    assert len(json.loads((tmp_path / "coco.json").read_text())["images"]) == 1 == merged.images


def test_images_whose_names_differ_in_forbidden_characters_alone_keep_apart(
    records: ImageRecords, tmp_path: Path
) -> None:
    with merge_results(tmp_path, ["coco"]) as merged:
        for name in ("a:b.jpg", "a?b.jpg", "a_b.jpg"):
            merged.add(replace(records, name=name))
        with pytest.raises(InputError, match="another image"):
            merged.add(replace(records, name="a?b.jpg"))
    document = json.loads((tmp_path / "coco.json").read_text())
    assert [image["file_name"] for image in document["images"]] == ["a_b.jpg", "a_b-2.jpg", "a_b-3.jpg"]


def test_two_images_of_one_stem_get_files_of_their_own(records: ImageRecords, tmp_path: Path) -> None:
    with merge_results(tmp_path, MERGED) as merged:
        for index, stem in enumerate(("a", "A", "a")):
            merged.add(replace(records, stem=stem, name=f"{index}.jpg"))
    stems = ["A-2", "a", "a-3"]
    for folder in ("yolo/images", "yolo/labels", "panoptic/panoptic"):
        assert sorted(path.stem for path in (tmp_path / folder).iterdir()) == stems
    document = json.loads((tmp_path / "panoptic" / "panoptic.json").read_text())
    assert [annotation["file_name"] for annotation in document["annotations"]] == ["a.png", "A-2.png", "a-3.png"]


def test_image_that_one_format_refuses_is_in_none(records: ImageRecords, tmp_path: Path) -> None:
    wide = replace(records, stem="wide", name="wide.jpg", pixels=np.zeros((1, 70_000, 3), np.uint8), records=())
    with merge_results(tmp_path, MERGED) as merged:
        with pytest.raises(OutputError) as caught:
            merged.add(wide)
        assert caught.value.code == "cannot_encode"
        merged.add(records)
    document = json.loads((tmp_path / "coco.json").read_text())
    assert [image["file_name"] for image in document["images"]] == ["my photo.jpg"]
    assert len(list((tmp_path / "panoptic" / "panoptic").iterdir())) == 1


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_block_that_fails_leaves_nothing(error: type[BaseException], records: ImageRecords, tmp_path: Path) -> None:
    with pytest.raises(error), merge_results(tmp_path, MERGED) as merged:
        merged.add(records)
        raise error
    assert not list(tmp_path.iterdir())


def test_full_disk_while_it_grows_is_an_error_and_nothing_is_kept(
    records: ImageRecords, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        pytest.raises(OutputError, match="lack a part that could not be written"),
        merge_results(tmp_path, MERGED) as merged,
    ):
        merged.add(records)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", full)
            with pytest.raises(OutputError, match="free some space") as caught:
                merged.add(replace(records, stem="b", name="b.jpg"))
        assert caught.value.code == "disk_full"
        merged.add(replace(records, stem="c", name="c.jpg"))
    assert not list(tmp_path.iterdir())


def test_data_sets_are_replaced_together_and_only_on_request(three: list, tmp_path: Path) -> None:
    for overwrite in (False, True):
        with merge_results(tmp_path, MERGED, overwrite=overwrite) as merged:
            merged.add(three[overwrite])
    assert [path.name for path in (tmp_path / "yolo" / "images").iterdir()] == ["empty.jpg"]
    with pytest.raises(OutputError) as caught, merge_results(tmp_path, ["yolo"]):
        raise AssertionError("it is refused before any work")
    assert caught.value.code == "output_exists"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco.json", "panoptic", "yolo"]


@pytest.mark.parametrize("name", ["yolo", "panoptic"])
def test_folder_of_somebody_else_is_never_replaced(name: str, tmp_path: Path) -> None:
    (tmp_path / name / "images").mkdir(parents=True)
    (tmp_path / name / "data.yaml").write_text("names: [mine]")
    with pytest.raises(OutputError, match="is not a data set that segship made") as caught:
        with merge_results(tmp_path, [name], overwrite=True):
            raise AssertionError("it is refused before any work")
    assert caught.value.code == "output_not_ours" and (tmp_path / name / "data.yaml").exists()


def test_formats_that_cannot_be_merged_are_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="'npz' cannot be merged; accepted are coco, panoptic, yolo") as caught:
        with merge_results(tmp_path, ["coco", "npz"]):
            raise AssertionError("it is refused before any work")
    assert caught.value.code == "unknown_format" and not list(tmp_path.iterdir())


def test_data_set_without_an_image_is_valid(tmp_path: Path) -> None:
    with merge_results(tmp_path, MERGED):
        pass
    assert read_coco(tmp_path / "coco.json").getImgIds() == []
    assert json.loads((tmp_path / "panoptic" / "panoptic.json").read_text())["annotations"] == []
    assert (tmp_path / "yolo" / "data.yaml").read_text().splitlines()[-1] == "names: {}"


def test_prompted_masks_can_be_merged(result: Result, tmp_path: Path) -> None:
    with merge_results(tmp_path, MERGED) as merged:
        for index in range(2):
            merged.add(replace(result, stem=str(index), name=f"{index}.jpg"))
    assert len(read_coco(tmp_path / "coco.json").getAnnIds()) == 12
    assert len((tmp_path / "yolo" / "labels" / "1.txt").read_text().splitlines()) == 2


def test_memory_does_not_grow_with_the_images(records: ImageRecords, tmp_path: Path) -> None:
    # No more than one picture and its masks, but for names, whose share is small.
    with merge_results(tmp_path, ["coco", "panoptic"]) as merged:
        merged.add(records)
        gc.collect()
        tracemalloc.start()
        for index in range(200):
            merged.add(replace(records, stem=f"{index}", name=f"{index}.jpg"))
        gc.collect()
        grown, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert grown < 200 * 1000
    assert (tmp_path / "coco.json").stat().st_size > 200 * 3000
