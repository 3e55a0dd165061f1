# SPDX-License-Identifier: Apache-2.0
"""Pictures, a run of them that nothing has disturbed, and workers without a model."""

import os
from pathlib import Path

import pytest

from segship.run.plan import make_plan
from segship.run.running import start
from segship.run.storage import open_folder
from tests.run.runs import OPTIONS, PICTURES, picture, tables


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    for number in range(PICTURES):
        (folder / f"sub{number % 3}").mkdir(exist_ok=True)
        (folder / f"sub{number % 3}" / f"{number}.png").write_bytes(picture(number))
    return folder


@pytest.fixture(scope="session")
def undisturbed(source, tmp_path_factory):
    """The folder of a run that nothing has disturbed."""
    place = tmp_path_factory.mktemp("expected") / "run"
    make_plan(source, open_folder(place), OPTIONS)
    start(place, workers=1)
    return place


@pytest.fixture(scope="session")
def expected(undisturbed):
    """Its status and the bytes of its tables."""
    return start(undisturbed), tables(undisturbed)


def answer_by_stub(patch, seconds):
    """Have workers answer without a model, in so many seconds a picture; and know pictures that end or hold them."""
    there = [str(Path(__file__).parent / "deadly"), os.environ.get("PYTHONPATH", "")]
    patch.setenv("PYTHONPATH", os.pathsep.join(there))
    patch.setenv("SEGSHIP_STUB_SECONDS", str(seconds))


@pytest.fixture
def stub(monkeypatch):
    answer_by_stub(monkeypatch, 0.02)
    return monkeypatch


@pytest.fixture(scope="session")
def by_stub(source, tmp_path_factory):
    """The same as `expected`, answered without a model."""
    place = tmp_path_factory.mktemp("stub") / "run"
    make_plan(source, open_folder(place), OPTIONS)
    with pytest.MonkeyPatch.context() as patch:
        answer_by_stub(patch, 0)
        return start(place, workers=1), tables(place)
