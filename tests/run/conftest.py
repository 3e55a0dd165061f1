# SPDX-License-Identifier: Apache-2.0
"""Pictures, a run of them that nothing has disturbed, and workers without a model."""

import os
from pathlib import Path

import pytest

from segship.run import objects
from segship.run.plan import make_plan
from segship.run.running import start
from segship.run.storage import open_folder
from tests.run.runs import OPTIONS, PICTURES, picture, tables
from tests.run.stores import SECRETS, Store


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


@pytest.fixture(scope="module")
def store():
    """A store with the buckets `runs` and `photos`, which AWS's client finds in this process and below it."""
    found = Store()
    given = {"AWS_ENDPOINT_URL": found.endpoint, "AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in {**SECRETS, **given, "AWS_CONFIG_FILE": os.devnull}.items():
            patch.setenv(name, value)
        objects._client.cache_clear()
        for bucket in ("runs", "photos"):
            objects._client().create_bucket(Bucket=bucket)
        yield found
        objects._client.cache_clear()
    found.end()
