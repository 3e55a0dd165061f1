# SPDX-License-Identifier: Apache-2.0
"""From graphs to sessions in a backend by its name; what of its devices starts here."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from segship.backends import backends_of, load_backend
from segship.backends.session import PROBE_SPEC, Graph, RunOptions, Session
from segship.errors import BackendUnavailable, SegshipError, way
from segship.spec import GraphSpec

if TYPE_CHECKING:
    from segship.bundle import Bundle


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


def open_sessions(bundle: Bundle, run: RunOptions) -> dict[str, Session]:
    """Verify every graph of a bundle and load it: graph -> session; errors are those of `open_session`.

    Graphs in other people's contracts answer in ours.
    """
    return bundle.manifest.adapt({spec.name: open_graph(bundle, spec, run) for spec in bundle.manifest.graphs})


def open_graph(bundle: Bundle, spec: GraphSpec, run: RunOptions) -> Session:
    """Verify one graph of a bundle and load it; errors are those of `open_session`."""
    if bundle.manifest.exact_only and run.precision != "fp32":
        message = f"precision {run.precision!r} was asked for, and graphs like these run in fp32 alone"
        raise BackendUnavailable(f"{message}; ask for fp32", code="precision_unavailable")
    artifact = bundle.manifest.artifact(spec.name, run.precision)
    return open_session(
        Graph(bundle.path / artifact.file, artifact.digest, partial(bundle.verified, artifact)), spec, run
    )


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
