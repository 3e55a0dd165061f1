# SPDX-License-Identifier: Apache-2.0
"""Files of class maps are read back, found again by an evaluation, and never written over what is there."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from recipes.streets.scenes import write_cityscapes
from segship.datasets.classes import ClassTable
from segship.datasets.folders import find_samples, read_label_image, read_truth
from segship.datasets.known import ADE20K, CITYSCAPES
from segship.errors import OutputError
from segship.evaluation import EvaluateOptions, evaluate
from segship.semantic.class_map import ClassMap
from segship.writers import WRITERS, ClassMapResult, check_formats, class_map_document, write_result
from segship.writers.names import output_stems

CLASS_MAPS = WRITERS["class maps"]


@pytest.fixture
def result():
    array = np.random.default_rng(0).integers(0, 19, (30, 50)).astype(np.uint8)
    array[:3, :4] = 255
    pixels = np.random.default_rng(1).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    class_map = ClassMap(array, CITYSCAPES, ("trailing_data",))
    return ClassMapResult("my photo", "dir/my photo.jpg", pixels, class_map, {"backend": "fake"})


def test_classes_are_indices_whose_palette_is_the_data_set_s(result, tmp_path):
    (path,) = write_result(result, tmp_path, ["classes"])
    assert path.name == "my photo.classes.png"
    assert np.array_equal(read_label_image(path), result.class_map.array)
    with Image.open(path) as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image.convert("RGB")), result.class_map.coloured())


def test_label_ids_are_gray_and_the_data_set_s_own(result, tmp_path):
    (path,) = write_result(result, tmp_path, ["label-ids"])
    labels = read_label_image(path)
    road = result.class_map.array == 0
    assert set(labels[road]) == {7} and not labels[:3, :4].any()
    with Image.open(path) as image:
        assert image.mode == "L"


def test_colours_are_a_picture(result, tmp_path):
    (path,) = write_result(result, tmp_path, ["colours"])
    assert np.array_equal(np.asarray(Image.open(path)), result.class_map.coloured())


def test_the_document_has_areas_shares_and_how_it_was_made(result, tmp_path):
    (path,) = write_result(result, tmp_path, ["json"])
    document = json.loads(path.read_bytes())
    assert document == class_map_document(result)
    assert document["image"] == {"file_name": "my photo.jpg", "width": 50, "height": 30}
    assert document["made_by"] == {"backend": "fake"} and document["data_set"] == "cityscapes"
    assert document["notes"] == ["trailing_data"] and document["unclassified_pixels"] == 12
    pixels = [entry["pixels"] for entry in document["classes"]]
    assert sum(pixels) + 12 == 1500 and pixels == sorted(pixels, reverse=True)
    for entry in document["classes"]:
        assert entry["pixels"] == (result.class_map.array == entry["class"]).sum()
        assert entry["share"] == pytest.approx(entry["pixels"] / 1500, abs=1e-6)
        assert CITYSCAPES.classes[entry["class"]] == entry["name"]
        assert tuple(entry["color"]) == CITYSCAPES.palette[entry["class"]]
    road = next(entry for entry in document["classes"] if entry["name"] == "road")
    assert road["label_id"] == 7


@pytest.mark.parametrize("name", CLASS_MAPS)
def test_every_format_is_named_by_stem_the_same_twice_and_without_the_input_s_path(name, result):
    files = CLASS_MAPS[name].write(result)
    assert files == CLASS_MAPS[name].write(result)
    ((file, data),) = files.items()
    assert file == f"my photo.{CLASS_MAPS[name].extension}" and b"dir/" not in data
    if not file.endswith(".json"):
        with Image.open(io.BytesIO(data)) as image:
            assert image.width >= 50 and not image.getexif()


@pytest.mark.parametrize(("format", "ids"), [("classes", "train"), ("label-ids", "label")])
def test_an_evaluation_finds_what_was_written_and_nothing_else(format, ids, tmp_path):
    write_cityscapes(tmp_path / "data", {"val": 2}, size_hw=(32, 64), seed=4, truths=("labelIds",))
    samples, maps = find_samples("cityscapes", tmp_path / "data"), tmp_path / "maps"
    maps.mkdir()
    for sample, stem in zip(samples, output_stems([sample.image for sample in samples]), strict=True):
        truth = read_truth(sample)
        pixels = np.asarray(Image.open(sample.image))
        result = ClassMapResult(stem, sample.image.name, pixels, ClassMap(truth, CITYSCAPES))
        write_result(result, maps, list(CLASS_MAPS))
    options = EvaluateOptions(predictions=maps, ids=ids, workers=0)
    evaluation = evaluate("cityscapes", tmp_path / "data", options)
    assert evaluation.summary() == {"aAcc": 100.0, "mIoU": 100.0, "mAcc": 100.0} and not evaluation.failed


def test_own_classes_and_ade20k_have_the_numbers_that_they_have(result, tmp_path):
    array = np.array([[0, 149]], np.uint8)
    (path,) = write_result(
        ClassMapResult("a", "a.png", np.zeros((1, 2, 3), np.uint8), ClassMap(array, ADE20K)), tmp_path, ["label-ids"]
    )
    assert read_label_image(path).tolist() == [[1, 150]]
    own = ClassMap(np.zeros((1, 2), np.uint8), ClassTable("own", ("weed",), ((0, 9, 0),)))
    mine = ClassMapResult("b", "b.png", np.zeros((1, 2, 3), np.uint8), own)
    assert "label_id" not in class_map_document(mine)["classes"][0]
    with pytest.raises(OutputError, match="write classes"):
        write_result(mine, tmp_path, ["classes", "label-ids"])
    assert not (tmp_path / "b.classes.png").exists()


def test_nothing_is_overwritten_unless_asked_and_nothing_written_if_one_is_there(result, tmp_path):
    taken = tmp_path / "my photo.colours.png"
    taken.write_text("mine")
    with pytest.raises(OutputError) as caught:
        write_result(result, tmp_path, ["classes", "colours"])
    assert caught.value.code == "output_exists" and [path.name for path in tmp_path.iterdir()] == [taken.name]
    write_result(result, tmp_path, ["colours"], overwrite=True)
    assert taken.read_bytes() != b"mine"


def test_unknown_formats_list_the_known_ones():
    assert check_formats(["json", "classes", "json"], "class maps") == ("json", "classes")
    with pytest.raises(OutputError, match="'png' for class maps; accepted are overlay, classes") as caught:
        check_formats(["png"], "class maps")
    assert caught.value.code == "unknown_format"
