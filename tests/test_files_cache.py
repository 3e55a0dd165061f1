# SPDX-License-Identifier: Apache-2.0
"""Where the cache folder is, by system and environment."""

from pathlib import Path

import pytest

from segship.errors import OutputError
from segship.files import cache_folder, checkpoint_folder


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch, tmp_path):
    for name in ("SEGSHIP_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("platform.system", lambda: "Linux")


def test_own_variable_comes_first(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("SEGSHIP_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    assert checkpoint_folder() == tmp_path / "mine" / "checkpoints"


def test_own_variable_may_begin_with_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SEGSHIP_CACHE", "~/models")
    assert cache_folder() == tmp_path / "models"


def test_xdg_comes_second_and_must_be_absolute(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "segship"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "segship"


@pytest.mark.parametrize(
    ("system", "expected"),
    [("Linux", ".cache/segship"), ("Darwin", "Library/Caches/segship"), ("Windows", "local/segship")],
)
def test_each_system_has_its_place(monkeypatch, tmp_path, system, expected):
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_folder() == tmp_path / expected


def test_no_home_folder_is_an_error_that_names_the_variable(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(OutputError, match="set SEGSHIP_CACHE") as refusal:
        cache_folder()
    assert refusal.value.code == "no_cache_folder"


def test_nothing_is_made(tmp_path):
    checkpoint_folder()
    assert list(tmp_path.iterdir()) == []
