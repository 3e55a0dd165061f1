# SPDX-License-Identifier: Apache-2.0
"""What holds for every format, and how results come to disk."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segship.errors import OutputError
from segship.writers import WRITERS, Result, check_formats, write_result


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_names_its_files_by_stem_and_extension(name: str, result: Result) -> None:
    files = WRITERS[name].write(result)
    assert files
    for file, data in files.items():
        assert file.startswith("my photo.") and file.endswith("." + WRITERS[name].extension) and data


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_is_the_same_twice(name: str, result: Result) -> None:
    assert WRITERS[name].write(result) == WRITERS[name].write(result)


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_takes_logits_for_masks(name: str, result: Result) -> None:
    logits = np.where(result.prediction.masks, np.float32(0.25), np.float32(0))
    with_logits = replace(result, prediction=replace(result.prediction, masks=logits))
    assert WRITERS[name].write(with_logits) == WRITERS[name].write(result)


@pytest.mark.parametrize("name", WRITERS)
def test_no_format_carries_metadata_or_directories_of_the_input(name: str, result: Result) -> None:
    elsewhere = replace(result, name="/home/someone/secret place/my photo.jpg")
    for data in WRITERS[name].write(elsewhere).values():
        assert b"secret" not in data
        if name in ("overlay", "png"):
            with Image.open(io.BytesIO(data)) as image:
                assert not image.getexif() and not {"icc_profile", "exif", "xmp", "comment"} & set(image.info)


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_takes_a_result_without_prompts(name: str, result: Result) -> None:
    assert WRITERS[name].write(replace(result, objects=()))


def test_no_extension_is_the_end_of_another() -> None:
    extensions = [writer.extension for writer in WRITERS.values()]
    # "png" is left out: its files are named .objectN.maskN.png.
    others = [extension for extension in extensions if extension != "png"]
    assert not [(a, b) for a in others for b in extensions if a != b and a.endswith(b)]


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
    assert taken.read_bytes() == WRITERS["coco"].write(result)[taken.name]


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
        write_result(result, tmp_path / "missing", ["json"])
    assert caught.value.code == "output_directory_missing"


def test_unknown_format_lists_the_known_ones(result: Result, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="'gif'; accepted are overlay, png, coco, npz, json") as caught:
        write_result(result, tmp_path, ["overlay", "gif"])
    assert caught.value.code == "unknown_format" and not list(tmp_path.iterdir())


def test_formats_are_taken_once_each() -> None:
    assert check_formats(["npz", "json", "npz"]) == ("npz", "json")
