# SPDX-License-Identifier: Apache-2.0
"""Things that are made once for all tests."""

import copy

import pytest

from segship.ship import steps
from segship.ship.export_promptable import ExportOptions, export_bundle
from segship.ship.export_semantic import SemanticExportOptions, export_semantic
from tests import small_semask
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
def small_semask_checkpoint(tmp_path_factory):
    """A checkpoint of the small seeded SeMask-FPN, as mmcv writes them."""
    return small_semask.save_checkpoint(tmp_path_factory.mktemp("semask") / "small_semask.pth")


@pytest.fixture(scope="session")
def small_semantic_export(small_semask_checkpoint, tmp_path_factory, traced_graphs):
    """A bundle of it that gives class maps, of one size and any batch, and the rows that were reported on the way."""
    reported = []
    options = SemanticExportOptions(size=small_semask.SIZE_HW, measure=False)
    folder = tmp_path_factory.mktemp("semantic") / "class_map"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "trace_graph", remembering(steps.trace_graph, traced_graphs))
        bundle = export_semantic(
            small_semask_checkpoint, folder, options, lambda step, rows: reported.append((step, rows))
        )
    return bundle, reported


@pytest.fixture(scope="session")
def small_semantic_bundle(small_semantic_export):
    """A bundle of the small SeMask-FPN that gives class maps, of one size and any batch."""
    return small_semantic_export[0]


@pytest.fixture(scope="session")
def small_semantic_logits(small_semask_checkpoint, tmp_path_factory):
    """A bundle with the same weights that gives logits, of an odd size, one picture at a time."""
    options = SemanticExportOptions(
        size=small_semask.ODD_SIZE_HW, batch=1, output="logits", simplify=False, measure=False
    )
    return export_semantic(small_semask_checkpoint, tmp_path_factory.mktemp("semantic") / "logits", options)


@pytest.fixture(scope="session")
def traced_graphs():
    """Traced graphs by what they were traced from; tracing is the slow part of an export."""
    return {}


@pytest.fixture
def traced_once(monkeypatch, traced_graphs):
    """Trace each graph of the small models once for all tests that export it."""
    monkeypatch.setattr(steps, "trace_graph", remembering(steps.trace_graph, traced_graphs))


def remembering(trace, graphs):
    """A ``trace`` that takes graphs from those that were traced before, by module, contract and opset."""

    def trace_or_copy(module, spec, *, opset, **options):
        key = (type(module), spec, opset)
        if key not in graphs:
            graphs[key] = trace(module, spec, opset=opset, **options)
        return copy.deepcopy(graphs[key])

    return trace_or_copy
