# SPDX-License-Identifier: Apache-2.0
"""From a bundle to one session for each of its graphs, in the backend that was chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from segship.backends import GRAPH_BACKENDS, load_backend
from segship.backends.session import Session, SessionOptions
from segship.errors import BackendUnavailable

if TYPE_CHECKING:
    from segship.bundle import Bundle


def open_sessions(bundle: Bundle, backend: str, options: SessionOptions) -> dict[str, Session]:
    """Verify every graph of a bundle and load it.

    Returns
    -------
    dict
        Graph -> session, for every graph that the bundle has.

    Raises
    ------
    BundleError
        When a byte of a graph differs from the manifest, or the backend does not load it.
    BackendUnavailable
        When the backend, device, precision or number of streams cannot be had.
    """
    if backend not in GRAPH_BACKENDS and backend == "torch":
        raise BackendUnavailable(
            f"{bundle.path} is a bundle and the torch backend runs checkpoints; give the checkpoint's path, "
            f"or use --backend {' or --backend '.join(GRAPH_BACKENDS)}",
            code="not_a_checkpoint",
        )
    runtime = load_backend(backend)
    sessions: dict[str, Session] = {}
    for spec in bundle.manifest.graphs:
        name, artifact = spec.name, bundle.manifest.artifact(spec.name, options.precision)
        graph = bundle.verified(artifact)
        if backend == "openvino":
            # By its path, so that these bytes are gone before OpenVINO needs as many; by the digest that was verified,
            # so that a graph that was compiled before is not read again.
            sessions[name] = runtime.Session(bundle.path / artifact.file, spec, options, digest=artifact.digest)
        else:
            sessions[name] = runtime.Session(graph, spec, options)
    return sessions
