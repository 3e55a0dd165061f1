# SPDX-License-Identifier: Apache-2.0
"""Things that are made once for all tests."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings

from segship.bundle import Bundle
from segship.ship import templates
from segship.ship.export import export_bundle
from segship.ship.families.sam.config import SAM_ARCHITECTURES
from segship.ship.families.semask.config import SEMASK_ARCHITECTURES
from segship.ship.options import ExportOptions
from tests import small_semask
from tests.oracle import SMALL_VIT
from tests.small_models import save_checkpoint
from tests.traces import locked, share_traces, trace_backwards

# No database in the working directory, no deadline on a busy machine; every run draws other examples.
settings.register_profile("suite", database=None, deadline=None, max_examples=60)
settings.load_profile("suite")


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory):
    """Keep what tests compile and fetch out of the user's own cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGSHIP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """The folder of all processes that run tests side by side."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def traces_of_the_tests(shared):
    """Trace every graph once for all tests, in one process or in several side by side."""
    (shared / "traces").mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        share_traces(patch, shared / "traces")
        yield


@pytest.fixture(scope="session")
def export_once(shared):
    """Export bundles once for all processes: by name the bundle, and the rows that were reported on the way.

    A test that changes one copies it first; at the end every byte is looked at.
    """
    given = []

    def export(name, checkpoint, options):
        folder = shared / "exports" / name
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "lock", meanwhile=lambda: trace_backwards(checkpoint, options)):
            if not (folder / "reported").exists():
                reported = []
                export_bundle(checkpoint, folder / "bundle", options, lambda step, rows: reported.append((step, rows)))
                (folder / "reported").write_bytes(pickle.dumps(reported))
        given.append(Bundle.read(folder / "bundle"))
        return given[-1], pickle.loads((folder / "reported").read_bytes())

    yield export
    for bundle in given:
        assert Bundle.read(bundle.path).digest == bundle.digest, f"a test has changed {bundle.path}"


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory):
    """A checkpoint of the small seeded model."""
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "small.pth")


@pytest.fixture(scope="session")
def small_export(small_checkpoint, export_once):
    """A bundle exported from it: the bundle, and the rows that were reported on the way."""
    return export_once("small", small_checkpoint, ExportOptions(measure=False))


@pytest.fixture
def small_templates(monkeypatch):
    """The small models as architectures of the package: ``custom`` with the template beside the tests of templates,
    and the SeMask ``small``, in windows in all stages."""
    monkeypatch.setattr(templates, "FOLDER", Path(__file__).parent / "ship" / "templates")
    monkeypatch.setitem(SAM_ARCHITECTURES, "custom", SMALL_VIT)
    small = replace(small_semask.SMALL_SEMASK, architecture="small")
    monkeypatch.setitem(SEMASK_ARCHITECTURES, "small", small)


@pytest.fixture(scope="session")
def small_semask_checkpoint(tmp_path_factory):
    """A checkpoint of the small seeded SeMask-FPN, as mmcv writes them."""
    return small_semask.save_checkpoint(tmp_path_factory.mktemp("semask") / "small_semask.pth")


@pytest.fixture(scope="session")
def small_semantic_export(small_semask_checkpoint, export_once):
    """A bundle of it that gives class maps, of one size and any batch, and the rows that were reported on the way."""
    return export_once("class_map", small_semask_checkpoint, ExportOptions(size=small_semask.SIZE_HW, measure=False))


@pytest.fixture(scope="session")
def small_semantic_bundle(small_semantic_export):
    """A bundle of the small SeMask-FPN that gives class maps, of one size and any batch."""
    return small_semantic_export[0]


@pytest.fixture(scope="session")
def small_semantic_logits(small_semask_checkpoint, export_once):
    """A bundle with the same weights that gives logits, of an odd size, one picture at a time."""
    options = ExportOptions(size=small_semask.ODD_SIZE_HW, batch=1, output="logits", simplify=False, measure=False)
    return export_once("logits", small_semask_checkpoint, options)[0]
