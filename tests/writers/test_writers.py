# SPDX-License-Identifier: Apache-2.0
"""What holds for every format, and how results come to disk."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segship.errors import BackendUnavailable, InputError, OutputError
from segship.masks.lazy import ArrayMasks
from segship.promptable.everything.records import ImageRecords
from segship.writers import (
    WRITERS,
    ClassMapResult,
    Result,
    as_instances,
    check_formats,
    encode_result,
    label_instances,
    output_paths,
    tables,
    write_files,
    write_result,
)
from segship.writers.instances import Kind

DOCS = Path(__file__).parents[2] / "docs"
MASKS = WRITERS["masks"]


@pytest.mark.parametrize("name", MASKS)
def test_every_format_names_its_files_by_stem_and_extension(name: str, result: Result) -> None:
    files = MASKS[name].write(result)
    assert files
    for file, data in files.items():
        # Of a file inside a folder, the name of the folder.
        outer = file.split("/")[0]
        assert outer.startswith("my photo.") and outer.endswith("." + MASKS[name].extension)
        assert data


@pytest.mark.parametrize("name", MASKS)
def test_every_format_takes_no_objects(name: str, result: Result) -> None:
    nobody = replace(
        result.prediction,
        held=ArrayMasks(np.zeros((0, 3, 37, 53), bool)),
        iou_predictions=np.zeros((0, 3), np.float32),
        low_res_masks=np.zeros((0, 3, 16, 16), np.float32),
    )
    files = MASKS[name].write(replace(result, prediction=nobody, objects=()))
    # One PNG a mask are no PNG.
    assert all(isinstance(data, bytes) for data in files.values()) and bool(files) == (name != "png")


@pytest.mark.parametrize("name", MASKS)
def test_every_format_is_the_same_twice(name: str, result: Result) -> None:
    assert MASKS[name].write(result) == MASKS[name].write(result)


@pytest.mark.parametrize("name", MASKS)
def test_every_format_takes_logits_for_masks(name: str, result: Result) -> None:
    logits = np.where(result.prediction.masks, np.float32(0.25), np.float32(0))
    with_logits = replace(result, prediction=replace(result.prediction, held=ArrayMasks(logits)))
    assert MASKS[name].write(with_logits) == MASKS[name].write(result)


@pytest.mark.parametrize("name", MASKS)
def test_no_format_carries_metadata_or_directories_of_the_input(name: str, result: Result) -> None:
    elsewhere = replace(result, name="/home/someone/secret place/my photo.jpg")
    for file, data in MASKS[name].write(elsewhere).items():
        assert b"secret" not in data
        if file.endswith((".jpg", ".png")):
            with Image.open(io.BytesIO(data)) as image:
                assert not image.getexif() and not {"icc_profile", "exif", "xmp", "comment"} & set(image.info)


@pytest.mark.parametrize("name", MASKS)
def test_every_format_takes_records_and_names_them_alike(name: str, records: ImageRecords, result: Result) -> None:
    files = MASKS[name].write(records)
    assert files == MASKS[name].write(records)
    assert files == MASKS[name].write(as_instances(records))
    for file in files:
        assert file.split("/")[0].endswith("." + MASKS[name].extension)
        assert b"dir" not in files[file][:60]


@pytest.mark.parametrize("name", MASKS)
def test_every_format_has_a_valid_file_for_an_image_without_records(
    name: str, no_records: ImageRecords, tmp_path: Path
) -> None:
    paths = write_result(no_records, tmp_path, [name])
    # One PNG a mask is none, and no label is an empty file.
    assert len(paths) == (0 if name == "png" else 1)
    assert all(path.exists() for path in paths)


@pytest.mark.parametrize("name", MASKS)
def test_every_format_takes_masks_that_were_named(name: str, result: Result) -> None:
    named = label_instances(result, ["cat", "dog", "cat", "dog", "dog", "cat"])
    assert MASKS[name].write(named)


@pytest.mark.parametrize("name", MASKS)
def test_every_format_takes_a_result_without_prompts(name: str, result: Result) -> None:
    assert MASKS[name].write(replace(result, objects=()))


def test_no_extension_is_the_end_of_another() -> None:
    extensions = [writer.extension for writers in WRITERS.values() for writer in writers.values()]
    # "png" is left out: its files are named .objectN.maskN.png.
    others = [extension for extension in extensions if extension != "png"]
    assert not [(a, b) for a in others for b in others if a != b and a.endswith(b)]
    assert len(set(extensions)) == len(extensions)


def test_results_are_written_in_the_order_of_the_formats(result: Result, tmp_path: Path) -> None:
    paths = write_result(result, tmp_path, ["json", "overlay", "png", "json"])
    assert [path.name for path in paths[:3]] == [
        "my photo.prediction.json",
        "my photo.overlay.jpg",
        "my photo.object0.mask0.png",
    ]
    assert len(paths) == 8 and sorted(paths) == sorted(tmp_path.iterdir())


def test_nothing_is_written_if_one_file_is_there(result: Result, tmp_path: Path) -> None:
    taken = tmp_path / "my photo.coco.json"
    taken.write_text("mine")
    with pytest.raises(OutputError, match=r"my photo\.coco\.json exists, and nothing was written") as caught:
        write_result(result, tmp_path, ["overlay", "coco"])
    assert caught.value.code == "output_exists"
    assert list(tmp_path.iterdir()) == [taken] and taken.read_text() == "mine"


def test_files_are_replaced_when_asked(result: Result, tmp_path: Path) -> None:
    taken = tmp_path / "my photo.coco.json"
    taken.write_text("mine")
    write_result(result, tmp_path, ["coco"], overwrite=True)
    assert taken.read_bytes() == MASKS["coco"].write(result)[taken.name]


def test_planted_link_is_never_written_through(result: Result, tmp_path: Path) -> None:
    victim, out = tmp_path / "victim", tmp_path / "out"
    victim.write_text("precious")
    out.mkdir()
    (out / "my photo.coco.json").symlink_to(victim)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="coco.json"):
            write_result(result, out, ["coco"], overwrite=overwrite)
    assert victim.read_text() == "precious"


def test_missing_directory_is_named(result: Result, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no directory") as caught:
        write_files(encode_result(result, ["json"]), tmp_path / "missing")
    assert caught.value.code == "output_directory_missing"


def test_directory_of_a_result_is_made(result: Result, tmp_path: Path) -> None:
    (path,) = write_result(result, tmp_path / "some" / "where", ["json"])
    assert path == tmp_path / "some" / "where" / "my photo.prediction.json" and path.exists()
    with pytest.raises(OutputError, match="a file is in the way") as caught:
        write_result(result, path, ["json"])
    assert caught.value.code == "cannot_write"


def test_unknown_format_lists_the_known_ones(result: Result, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="'gif' for masks; accepted are overlay, png, coco, npz, json") as caught:
        write_result(result, tmp_path, ["overlay", "gif"])
    assert caught.value.code == "unknown_format" and not list(tmp_path.iterdir())


def test_formats_are_taken_once_each() -> None:
    assert check_formats(["npz", "json", "npz"]) == ("npz", "json")


def test_anything_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="list cannot be written; accepted are Result, ImageRecords") as caught:
        write_result([], tmp_path, ["coco"])
    assert caught.value.code == "bad_source"


def test_missing_extra_is_named_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r'pip install "segship\[parquet\]"') as caught:
        check_formats(["overlay", "parquet"])
    assert caught.value.code == "pyarrow_missing"
    assert check_formats(["overlay"]) == ("overlay",)


def test_folder_appears_whole_and_is_named_as_one(records: ImageRecords, tmp_path: Path) -> None:
    paths = write_result(records, tmp_path, ["folder", "coco", "panoptic"])
    assert [path.name for path in paths] == ["my photo.masks", "my photo.coco.json", "my photo.panoptic"]
    assert sorted(paths) == sorted(tmp_path.iterdir())
    assert {path.name for path in paths[0].iterdir()} == {"metadata.csv", *(f"{index}.png" for index in range(6))}


def test_folder_is_replaced_with_all_that_was_in_it(
    records: ImageRecords, no_records: ImageRecords, tmp_path: Path
) -> None:
    (folder,) = write_result(records, tmp_path, ["folder"])
    with pytest.raises(OutputError, match="exists, and nothing was written"):
        write_result(no_records, tmp_path, ["folder"])
    write_result(no_records, tmp_path, ["folder"], overwrite=True)
    assert [path.name for path in folder.iterdir()] == ["metadata.csv"]


def test_masks_that_are_no_more_go_with_the_files_that_are_replaced(records: ImageRecords, tmp_path: Path) -> None:
    write_result(records, tmp_path, ["png", "coco", "npz"])
    others = ["other.mask5.png", "my photo.mask7.png", "my photo.object0.mask0.png", "my photo.mask.png"]
    for name in others:
        (tmp_path / name).touch()
    fewer = replace(records, records=records.records[:2])
    write_result(fewer, tmp_path, ["png", "coco"], overwrite=True)
    masks = ["my photo.mask0.png", "my photo.mask1.png"]
    expected = [*masks, "my photo.coco.json", "my photo.prediction.npz", *others]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(expected)
    write_result(replace(records, records=()), tmp_path, ["png"], overwrite=True)
    assert not [name for name in masks if (tmp_path / name).exists()]


def test_objects_that_are_no_more_go_with_the_files_that_are_replaced(result: Result, tmp_path: Path) -> None:
    (tmp_path / "my photo.mask0.png").touch()
    write_result(result, tmp_path, ["png"])
    instances = as_instances(result)
    one = replace(result.prediction, held=ArrayMasks(result.masks[:1, :1]), iou_predictions=np.ones((1, 1), np.float32))
    assert len(instances.entries) == 6
    write_result(replace(result, prediction=one), tmp_path, ["png"], overwrite=True)
    names = ["my photo.mask0.png", "my photo.object0.mask0.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.parametrize("overwrite", [False, True])
def test_full_disk_leaves_no_file_of_the_image(
    records: ImageRecords, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    if overwrite:
        write_result(replace(records, records=()), tmp_path, ["overlay", "npz", "folder"])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    synced = []

    def full(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device; free some space") as caught:
        write_result(records, tmp_path, ["overlay", "npz", "folder", "png"], overwrite=overwrite)
    assert caught.value.code == "disk_full"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_paths_are_known_before_anything_is_computed(
    records: ImageRecords, result: Result, no_records: ImageRecords, tmp_path: Path
) -> None:
    for source in (records, result, as_instances(records)):
        formats = [name for name in MASKS if name not in ("png",)]
        told = output_paths(type(source), tmp_path, source.stem, formats)
        assert not any(path.exists() for path in told)
        assert told == write_result(source, tmp_path, formats, overwrite=True)
        (first,) = output_paths(type(source), tmp_path, source.stem, ["png"])
        assert first == write_result(source, tmp_path, ["png"])[0]
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
    with pytest.raises(OutputError, match="no output format 'gif'"):
        output_paths(Result, tmp_path, "a", ["gif"])
    assert [path.name for path in output_paths(ClassMapResult, tmp_path, "a", WRITERS["class maps"])] == [
        f"a.{writer.extension}" for writer in WRITERS["class maps"].values()
    ]


@pytest.mark.parametrize("stem", ["a/b", "a\0b", "\ud800"])
def test_stem_that_cannot_name_files_is_refused_before_any_work(
    stem: str, records: ImageRecords, tmp_path: Path
) -> None:
    for refuse in (
        lambda: encode_result(replace(records, stem=stem), ["overlay"]),
        lambda: output_paths(ImageRecords, tmp_path, stem, ["json"]),
        lambda: write_result(replace(records, stem=stem), tmp_path, ["overlay", "json", "png"]),
    ):
        with pytest.raises(OutputError, match="cannot begin the name of a file; .*safe_stem") as caught:
            refuse()
        assert caught.value.code == "cannot_write" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", MASKS)
def test_text_that_is_none_is_written_as_escapes(name: str, records: ImageRecords) -> None:
    labels = ["\udc80cat"] * len(records.records)
    odd = replace(label_instances(records, labels), stem="\udc80photo", notes=("\ud800",), name="\udc80photo.jpg")
    for file, data in MASKS[name].write(odd).items():
        if file.endswith("json"):
            assert json.loads(data)


def plant_file(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")


def plant_link(folder: Path) -> None:
    (folder / "7.png").symlink_to(folder / "0.png")


def plant_folder(folder: Path) -> None:
    (folder / "8.png").mkdir()


@pytest.mark.parametrize("plant", [plant_file, plant_link, plant_folder])
def test_folder_with_anything_of_somebody_else_is_never_replaced(plant, records: ImageRecords, tmp_path: Path) -> None:
    (folder,) = write_result(records, tmp_path, ["folder"])
    plant(folder)
    before = sorted(folder.iterdir())
    with pytest.raises(OutputError, match="which is not of this format, and is not replaced") as caught:
        write_result(records, tmp_path, ["coco", "folder"], overwrite=True)
    assert caught.value.code == "output_not_ours"
    assert sorted(folder.iterdir()) == before and list(tmp_path.iterdir()) == [folder], "nothing was written"


def test_link_to_a_folder_is_never_followed(records: ImageRecords, tmp_path: Path) -> None:
    (folder,) = write_result(records, tmp_path, ["folder"])
    elsewhere = tmp_path / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    with pytest.raises(OutputError, match="is a link") as caught:
        write_result(records, tmp_path, ["folder"], overwrite=True)
    assert caught.value.code == "output_is_link" and (elsewhere / "0.png").exists()


def test_file_in_the_place_of_a_folder_is_not_replaced(records: ImageRecords, tmp_path: Path) -> None:
    (tmp_path / "my photo.masks").write_text("mine")
    with pytest.raises(OutputError, match="cannot be replaced by this"):
        write_result(records, tmp_path, ["folder"], overwrite=True)


@pytest.mark.parametrize(("page", "kind"), [("files.md", "masks"), ("semantic.md", "class maps")])
def test_docs_say_of_every_format_what_it_loses(page: str, kind: Kind) -> None:
    rows = (DOCS / page).read_text(encoding="utf-8").splitlines()
    for name, writer in WRITERS[kind].items():
        row = next(line for line in rows if line.startswith(f"| `{name}` |"))
        assert writer.loses in row and f".{writer.extension}" in row


def test_bytes_come_without_a_directory(records: ImageRecords, tmp_path: Path) -> None:
    files = encode_result(records, ["folder", "coco"])
    assert list(files)[-2:] == ["my photo.masks/metadata.csv", "my photo.coco.json"]
    write_files(files, tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*") if path.is_file()} == set(files)


def test_nothing_is_written_if_one_place_cannot_be_replaced(result: Result, tmp_path: Path) -> None:
    for path in write_result(result, tmp_path, WRITERS["masks"]):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        path.symlink_to("nowhere")
        with pytest.raises(OutputError, match="is a link"):
            write_result(result, tmp_path, WRITERS["masks"], overwrite=True)
        assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_written_if_a_file_is_in_the_place_of_a_folder(records: ImageRecords, tmp_path: Path) -> None:
    (tmp_path / "my photo.masks").write_text("mine")
    with pytest.raises(OutputError, match="cannot be replaced by this"):
        write_result(records, tmp_path, ["coco", "folder"], overwrite=True)
    assert list(tmp_path.iterdir()) == [tmp_path / "my photo.masks"]
