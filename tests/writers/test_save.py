# SPDX-License-Identifier: Apache-2.0
"""Predictions, records and class maps save themselves, in the format that a name says."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import segship
from segship.datasets.known import CITYSCAPES
from segship.errors import InputError, OutputError
from segship.images.reading import demo_photograph
from segship.promptable.everything.records import ImageRecords, MaskRecords
from segship.semantic.class_map import ClassMap
from segship.writers import WRITERS, ClassMapResult, Result, encode_result


@pytest.fixture
def picture(result: Result, tmp_path: Path) -> Path:
    path = tmp_path / "my photo.png"
    Image.fromarray(result.pixels).save(path)
    return path


@pytest.fixture
def everything(records: ImageRecords, tmp_path: Path) -> MaskRecords:
    path = tmp_path / "my photo.png"
    Image.fromarray(records.pixels).save(path)
    return MaskRecords(records.records, (60, 80), records.notes, path)


@pytest.fixture
def class_map(tmp_path: Path) -> ClassMap:
    path = tmp_path / "my photo.png"
    Image.fromarray(np.full((60, 80, 3), 90, np.uint8)).save(path)
    return ClassMap(np.repeat(np.arange(20, dtype=np.uint8), 240).reshape(60, 80), CITYSCAPES, image_path=path)


@pytest.mark.parametrize(
    ("name", "format"),
    [("x.jpg", "overlay"), ("x.JPEG", "overlay"), ("x.json", "json"), ("x.npz", "npz"), ("x.txt", "yolo")]
    + [(f"x.{writer.extension}", name) for name, writer in WRITERS["masks"].items() if name != "png"],
)
def test_ending_says_the_format(name: str, format: str, result: Result, picture: Path, tmp_path: Path) -> None:
    prediction = replace(result.prediction, objects=result.objects, image_path=picture)
    paths = prediction.save(tmp_path / "new" / "deep" / name)
    assert paths == [tmp_path / "new" / "deep" / name]
    alike = replace(result, stem="x", name="my photo.png", prediction=prediction, notes=())
    expected = list(encode_result(alike, [format], image_path="../../my photo.png").values())
    written = sorted(path for path in (tmp_path / "new").rglob("*") if path.is_file())
    assert sorted(path.read_bytes() for path in written) == sorted(expected)


def test_format_says_it_whatever_the_name_is(everything: MaskRecords, tmp_path: Path) -> None:
    assert everything.save(tmp_path / "all", format="folder") == [tmp_path / "all"]
    assert len(list((tmp_path / "all").glob("*.png"))) == 6
    assert everything.save(tmp_path / "x.json", format="coco") == [tmp_path / "x.json"]
    assert json.loads((tmp_path / "x.json").read_text())["images"][0]["file_name"] == "my photo.png"
    paths = everything.save(tmp_path / "x.png", format="png")
    assert [path.name for path in paths] == [f"x.mask{index}.png" for index in range(6)]


@pytest.mark.parametrize(
    ("name", "format"),
    [("m.jpg", "overlay"), ("m.png", "classes"), ("m.json", "json")]
    + [(f"m.{writer.extension}", name) for name, writer in WRITERS["class maps"].items()],
)
def test_class_map_saves_itself(name: str, format: str, class_map: ClassMap, tmp_path: Path) -> None:
    (path,) = class_map.save(tmp_path / name)
    pixels = segship.read_image(tmp_path / "my photo.png").pixels
    (expected,) = encode_result(ClassMapResult("m", "my photo.png", pixels, class_map), [format]).values()
    assert path.read_bytes() == expected


def test_what_is_there_is_replaced_only_on_request(class_map: ClassMap, tmp_path: Path) -> None:
    class_map.save(tmp_path / "m.png")
    with pytest.raises(OutputError, match="exists") as caught:
        class_map.save(tmp_path / "m.png")
    assert caught.value.code == "output_exists"
    class_map.save(tmp_path / "m.png", overwrite=True)


@pytest.mark.parametrize("name", ["x.png", "x", "x.tiff", "png", ".jpg"])
def test_name_that_does_not_say_the_format_is_refused(name: str, everything: MaskRecords, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OutputError, match="does not say in which format to write; give format=, one of") as caught:
        everything.save(tmp_path / "new" / name)
    assert caught.value.code == "unknown_format" and sorted(tmp_path.iterdir()) == before
    with pytest.raises(OutputError, match="no output format 'gif' for masks"):
        everything.save(tmp_path / name, format="gif")


def test_overlay_of_an_image_from_memory_asks_for_it(result: Result, picture: Path, tmp_path: Path) -> None:
    prediction = replace(result.prediction, objects=result.objects)
    with pytest.raises(InputError, match="give image=, or save as .json or .npz") as caught:
        prediction.save(tmp_path / "x.jpg")
    assert caught.value.code == "needs_image" and not (tmp_path / "x.jpg").exists()
    (path,) = prediction.save(tmp_path / "x.jpg", image=result.pixels)
    (again,) = replace(prediction, image_path=picture).save(tmp_path / "y.jpg")
    assert path.read_bytes() == again.read_bytes()
    with pytest.raises(InputError, match="the image has .20, 30. pixels.* and the masks .37, 53.") as caught:
        prediction.save(tmp_path / "z.jpg", image=np.zeros((20, 30, 3), np.uint8))
    assert caught.value.code == "bad_source"


def test_models_say_where_their_image_came_from(tmp_path: Path) -> None:
    predictor, path = segship.load("tiny"), tmp_path / "cup.jpg"
    Image.fromarray(segship.read_image(demo_photograph()).pixels).save(path, quality=95)
    prompts = segship.Prompts(points=[[365, 290]], labels=[1])
    embedding = predictor.encode(str(path))
    for found in (predictor.predict(path, prompts), predictor.decode(embedding, prompts)):
        (overlay,) = found.save(tmp_path / "out" / "cup.jpg", overwrite=True)
        assert segship.read_image(overlay).size_hw == (400, 600)
    options = segship.AmgOptions(points_per_side=2, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    records = segship.generate_masks(predictor, path, options)
    (overlay,) = records.save(tmp_path / "out" / "all.jpg")
    assert isinstance(records, list) and segship.read_image(overlay).size_hw == (400, 600)
    assert pickle.loads(pickle.dumps(records)).image_path == path
    assert predictor.predict(path.read_bytes(), prompts).image_path is None
    assert predictor.predict(io.BytesIO(path.read_bytes()).getvalue(), prompts).save(tmp_path / "bytes.npz")


def scan(folder: Path) -> Path:
    Image.fromarray(np.linspace(1000, 5000, 40 * 60).astype(np.uint16).reshape(40, 60)).save(folder / "scan.png")
    return folder / "scan.png"


def wide(folder: Path) -> Path:
    Image.new("RGB", (30_100, 100), "teal").save(folder / "wide.png")
    return folder / "wide.png"


@pytest.mark.parametrize(
    ("make", "how"),
    [
        (scan, {"depth": "min-max"}),
        (scan, {"reduce": 2}),
        (wide, {"limits": segship.ImageLimits(side=40_000)}),
    ],
)
def test_overlay_is_drawn_on_the_picture_as_it_was_read(
    make: Callable[[Path], Path], how: dict[str, Any], tmp_path: Path
) -> None:
    path = make(tmp_path)
    loaded, predictor = segship.read_image(path, **how), segship.load("tiny")
    options = segship.AmgOptions(points_per_side=2, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    for name, found in (
        ("one", predictor.predict(loaded, points=[[10, 10]])),
        ("all", segship.generate_masks(predictor, loaded, options)),
    ):
        (again,) = found.save(tmp_path / f"{name}.jpg")
        (given,) = found.save(tmp_path / f"{name}_given.jpg", image=loaded)
        assert again.read_bytes() == given.read_bytes()
        (document,) = found.save(tmp_path / f"{name}.json")
        assert json.loads(document.read_text())["image"]["file_name"] == path.name
        assert pickle.loads(pickle.dumps(found.image_path)) == found.image_path != path


def test_reduced_image_is_not_written_beside_the_name_of_the_whole(tmp_path: Path) -> None:
    path = scan(tmp_path)
    predictor, loaded = segship.load("tiny"), segship.read_image(path, reduce=2)
    found = predictor.predict(loaded, points=[[10, 10]])
    for format in ("coco", "labelme", "panoptic"):
        with pytest.raises(InputError, match=f"{format} would place .* whole file; read it without reduce") as caught:
            found.save(tmp_path / "x", format=format)
        assert caught.value.code == "bad_option"
    with (
        pytest.raises(InputError, match="coco would place"),
        segship.writers.merge_results(tmp_path, ["coco"]) as merged,
    ):
        merged.add(Result("scan", "scan.png", loaded.pixels, found, found.objects))
    assert found.save(tmp_path / "x.txt")
    assert predictor.predict(path, points=[[10, 10]]).save(tmp_path / "x.coco.json")


@pytest.mark.parametrize(
    ("name", "format"),
    [("x.png", "overlay"), ("x.TIFF", "overlay"), ("x.jpg", "png"), ("x.txt", "coco"), ("x.json", "folder")],
)
def test_ending_of_another_format_is_refused(name: str, format: str, everything: MaskRecords, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OutputError, match=f"ends with .*, and the format {format} is written; give ") as caught:
        everything.save(tmp_path / name, format=format)
    assert caught.value.code == "unknown_format" and sorted(tmp_path.iterdir()) == before


def test_slice_of_records_saves_itself(everything: MaskRecords, tmp_path: Path) -> None:
    some = everything[1:3]
    assert isinstance(some, MaskRecords) and list(some) == list(everything)[1:3] and some[0] is everything[1]
    assert (some.size, some.notes, some.image_path) == (everything.size, everything.notes, everything.image_path)
    assert len(some.save(tmp_path / "x.png", format="png")) == 2 and some.save(tmp_path / "x.jpg")
    assert everything[:0].save(tmp_path / "none.json")


def test_write_result_is_public() -> None:
    assert segship.write_result is segship.writers.write_result
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = segship.nothing
