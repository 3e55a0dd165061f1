# SPDX-License-Identifier: Apache-2.0
"""Things that are made once for all tests."""

import copy

import pytest

from segship import export
from segship.export import ExportOptions, export_bundle
from tests.small_models import save_checkpoint


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory):
    """Keep what tests compile and fetch out of the user's own cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGSHIP_CACHE", str(tmp_path_factory.mktemp("cache")))
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


@pytest.fixture(scope="session")
def traced_graphs():
    """Traced graphs by what they were traced from; tracing is the slow part of an export."""
    return {}


@pytest.fixture
def traced_once(monkeypatch, traced_graphs):
    """Trace each graph of the small model once for all tests that export it."""
    trace = export.trace_graph

    def trace_or_copy(module, spec, *, opset, **options):
        key = (spec, opset)
        if key not in traced_graphs:
            traced_graphs[key] = trace(module, spec, opset=opset, **options)
        return copy.deepcopy(traced_graphs[key])

    monkeypatch.setattr(export, "trace_graph", trace_or_copy)
