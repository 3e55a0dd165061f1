# SPDX-License-Identifier: Apache-2.0
"""From graphs to sessions in a backend by its name; what of its devices starts here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from segship.backends import BACKENDS, DEFAULT_BACKEND, backends_of, load_backend
from segship.backends.session import PROBE_SPEC, Graph, RunOptions, Session
from segship.bundle.artifacts import Artifact, LowerPrecision
from segship.errors import BackendUnavailable, BundleError, SegshipError, way
from segship.spec import GraphSpec

if TYPE_CHECKING:
    from segship.bundle import Bundle
    from segship.bundle.manifest import Manifest

LOWER = frozenset(get_args(LowerPrecision))


def open_session(graph: Graph | bytes | Path, spec: GraphSpec, run: RunOptions) -> Session:
    """Load one ONNX graph in the backend that is named, which is not ``auto``.

    Raises
    ------
    BundleError
        When the graph is not what it was, or the backend does not load it.
    BackendUnavailable
        When the backend, or what ``run`` asks of it, cannot be had; ``not_a_checkpoint`` when it runs checkpoints.
    """
    graph = graph if isinstance(graph, Graph) else Graph(graph)
    if run.backend in backends_of(checkpoints=True):
        what = "this graph" if isinstance(graph.source, bytes) else str(graph.source)
        raise BackendUnavailable(
            f"the {run.backend} backend runs checkpoints, and {what} is none; give the path of a checkpoint, or use "
            f"{way('backend=', '--backend ')}{' or '.join(backends_of())}",
            code="not_a_checkpoint",
        )
    return _open(load_backend(run.backend), graph, spec, run)


def open_sessions(bundle: Bundle, run: RunOptions, leave_out: Sequence[str] = ()) -> dict[str, Session]:
    """Verify every graph of a bundle, but those to leave out, and load it: graph -> session.

    Graphs in other people's contracts answer in ours. Those that a backend does not run are left out, if the model can
    do without.

    Raises
    ------
    BackendUnavailable
        ``graph_unavailable`` when the backend does not run what the model needs; else errors are those of
        `open_session`.
    """
    manifest, row = bundle.manifest, BACKENDS.get(run.backend)
    if row is not None and not row.runs(manifest.graph_sets[0]):
        message = (
            f"the {run.backend} backend runs no {manifest.task} models; "
            f"use {way('backend=', '--backend ')}{DEFAULT_BACKEND}"
        )
        raise BackendUnavailable(message, code="graph_unavailable")
    able = [spec for spec in manifest.graphs if row is None or row.runs([spec.name])]
    graphs = [spec for spec in able if spec.name not in leave_out]
    return manifest.adapt({spec.name: open_graph(bundle, spec, run) for spec in graphs})


def open_graph(bundle: Bundle, spec: GraphSpec, run: RunOptions) -> Session:
    """Verify one graph of a bundle and load it; errors are those of `open_session`."""
    if bundle.manifest.exact_only and run.precision != "fp32":
        message = f"precision {run.precision!r} was asked for, and graphs like these run in fp32 alone"
        raise BackendUnavailable(f"{message}; ask for fp32", code="precision_unavailable")
    artifact, arithmetic = choose_artifact(bundle.manifest, spec.name, run)
    graph = Graph(bundle.path / artifact.file, artifact.digest, partial(bundle.verified, artifact))
    return open_session(graph, spec, replace(run, precision=arithmetic))


def choose_artifact(manifest: Manifest, graph: str, run: RunOptions) -> tuple[Artifact, str]:
    """Return which artifact of a graph is loaded for a precision, and the precision of its arithmetic.

    A backend that computes float32 graphs in the precision that was asked for does so. Else it is that of artifacts,
    which some graphs may lack that a precision is of no use to.

    Raises
    ------
    BundleError
        ``precision_unavailable`` when neither is there.
    """
    held = {artifact.precision for artifact in manifest.artifacts}
    module = load_backend(run.backend)
    if run.precision in module.precisions() or (run.precision not in held and run.precision not in LOWER):
        return manifest.artifact(graph), run.precision
    if run.precision not in held:
        message = (
            f"precision {run.precision!r} was asked for, and the bundle holds {', '.join(sorted(held))}; "
            f"make it: `segship quantize BUNDLE --precision {run.precision}`, or use one that is there"
        )
        raise BundleError(message, code="precision_unavailable")
    return manifest.artifact(graph, run.precision), module.beside(run.precision)


def try_devices(module: ModuleType) -> dict[str, str | None]:
    """Run one number through every device that a backend's module lists: device -> why it does not start, or None."""
    found: dict[str, str | None] = {}
    for device in module.devices():
        try:
            with _open(module, module.PROBE, PROBE_SPEC, RunOptions(device=device)) as session:
                session.run({"x": np.zeros(1, np.float32)})
            found[device] = None
        except SegshipError as error:
            found[device] = str(error)
    return found


def _open(module: ModuleType, graph: Any, spec: GraphSpec, run: RunOptions) -> Session:
    session: Session = module.Session(module.compile(graph, spec, run), spec, run)
    return session
