# SPDX-License-Identifier: Apache-2.0
"""Things that are made once for all tests."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings

from segship.ship import templates
from segship.ship.export import export_bundle
from segship.ship.families.sam.config import SAM_ARCHITECTURES
from segship.ship.families.semask.config import SEMASK_ARCHITECTURES
from segship.ship.options import ExportOptions
from tests import small_semask
from tests.oracle import SMALL_VIT
from tests.small_models import save_checkpoint
from tests.traces import share_traces

# No database in the working directory, no deadline on a busy machine; every run draws other examples.
settings.register_profile("suite", database=None, deadline=None, max_examples=60)
settings.load_profile("suite")


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory):
    """Keep what tests compile and fetch out of the user's own cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGSHIP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def traces_of_the_tests(tmp_path_factory):
    """Trace every graph once for all tests, in one process or in several side by side."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "traces"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        share_traces(patch, folder)
        yield


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory):
    """A checkpoint of the small seeded model."""
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "small.pth")


@pytest.fixture(scope="session")
def small_export(small_checkpoint, tmp_path_factory):
    """A bundle exported from it: the bundle, and the rows that were reported on the way."""
    reported = []
    folder = tmp_path_factory.mktemp("export") / "bundle"
    bundle = export_bundle(
        small_checkpoint, folder, ExportOptions(measure=False), lambda step, rows: reported.append((step, rows))
    )
    return bundle, reported


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
def small_semantic_export(small_semask_checkpoint, tmp_path_factory):
    """A bundle of it that gives class maps, of one size and any batch, and the rows that were reported on the way."""
    reported = []
    options = ExportOptions(size=small_semask.SIZE_HW, measure=False)
    folder = tmp_path_factory.mktemp("semantic") / "class_map"
    bundle = export_bundle(small_semask_checkpoint, folder, options, lambda step, rows: reported.append((step, rows)))
    return bundle, reported


@pytest.fixture(scope="session")
def small_semantic_bundle(small_semantic_export):
    """A bundle of the small SeMask-FPN that gives class maps, of one size and any batch."""
    return small_semantic_export[0]


@pytest.fixture(scope="session")
def small_semantic_logits(small_semask_checkpoint, tmp_path_factory):
    """A bundle with the same weights that gives logits, of an odd size, one picture at a time."""
    options = ExportOptions(size=small_semask.ODD_SIZE_HW, batch=1, output="logits", simplify=False, measure=False)
    return export_bundle(small_semask_checkpoint, tmp_path_factory.mktemp("semantic") / "logits", options)
