# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that only a browser downloads: checked as far as that goes."""

from dataclasses import replace

import pytest
import torch

from segship.catalog import KNOWN_CHECKPOINTS
from segship.errors import CheckpointError, FetchError
from segship.fetch import checkpoint_path, fetch_checkpoint
from segship.ship.by_hand import take_by_hand
from tests.small_models import small_sam
from tests.small_semask import save_checkpoint, small_semask

NAME = "semask_s_cityscapes"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SEGSHIP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def small_is_known(monkeypatch):
    """Let the name stand for the small model, since the published one is large."""
    known = replace(KNOWN_CHECKPOINTS[NAME], architecture="custom")
    monkeypatch.setitem(KNOWN_CHECKPOINTS, NAME, known)


def refuse(code, words, **options):
    with pytest.raises(FetchError, match=words) as caught:
        take_by_hand(NAME, **options)
    assert caught.value.code == code


@pytest.mark.parametrize("fetch", [take_by_hand, fetch_checkpoint])
def test_without_a_file_it_says_where_to_get_it_and_where_to_put_it(fetch):
    with pytest.raises(FetchError) as caught:
        fetch(NAME)
    assert caught.value.code == "fetch_by_hand"
    for words in (KNOWN_CHECKPOINTS[NAME].url, f"segship fetch {NAME} --from FILE", str(checkpoint_path(NAME))):
        assert words in str(caught.value)


def test_a_download_is_checked_and_copied(small_is_known, small_semask_checkpoint):
    found = take_by_hand(NAME, from_file=small_semask_checkpoint)
    assert found.path == checkpoint_path(NAME)
    assert found.path.read_bytes() == small_semask_checkpoint.read_bytes()
    assert (
        "architecture custom, classes 19, semantic classes 19" in found.checked
        and "no digest is published" in found.checked
    )
    # Again, by its place.
    assert take_by_hand(NAME) == found
    assert take_by_hand(NAME, from_file=small_semask_checkpoint) == found


def test_another_file_at_its_place_is_kept(small_is_known, small_semask_checkpoint, tmp_path):
    kept = take_by_hand(NAME, from_file=small_semask_checkpoint).path.read_bytes()
    other = save_checkpoint(tmp_path / "other.pth", classes=["a"] * 19)
    refuse("file_differs", "move it away", from_file=other)
    assert checkpoint_path(NAME).read_bytes() == kept


def test_another_model_is_refused_by_what_it_is(small_semask_checkpoint):
    words = "has architecture custom, classes 19, .* has architecture semask_s, classes 19, semantic classes 19"
    refuse("wrong_checkpoint", words, from_file=small_semask_checkpoint)
    assert not checkpoint_path(NAME).exists()


def test_another_family_is_refused(tmp_path):
    torch.save(small_sam().state_dict(), tmp_path / "sam.pth")
    refuse("wrong_checkpoint", "is no semask model, which semask_s_cityscapes is", from_file=tmp_path / "sam.pth")


def test_a_web_page_in_its_place_is_called_by_its_name(tmp_path):
    page = tmp_path / "download.pth"
    page.write_text("<html>Google Drive can't scan this file for viruses</html>")
    with pytest.raises(CheckpointError, match="a web page or XML"):
        take_by_hand(NAME, from_file=page)


def test_files_that_cannot_be_it(tmp_path):
    refuse("file_missing", "there is no file", from_file=tmp_path / "missing.pth")
    (tmp_path / "weights.zip").write_bytes(b"PK")
    refuse("wrong_checkpoint", "does not end in .pth", from_file=tmp_path / "weights.zip")


def test_the_small_model_has_as_many_classes_as_the_name(small_is_known):
    assert small_semask().config.classes == KNOWN_CHECKPOINTS[NAME].sizes["classes"]
