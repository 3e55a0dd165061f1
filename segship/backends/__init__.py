# SPDX-License-Identifier: Apache-2.0
"""The backends by name. Each is one module that is imported when it is asked for, with the package that it wraps.

``segship.backends.fake`` is no runtime and not listed: tests make its session themselves.
"""

from __future__ import annotations

import os
from importlib import import_module
from types import ModuleType

from segship.errors import BackendUnavailable

BACKENDS: dict[str, str] = {
    "onnxruntime": "segship.backends.onnxruntime",
    "openvino": "segship.backends.openvino",
    "torch": "segship.backends.torch",
}
"""Name -> module."""

GRAPH_BACKENDS = ("onnxruntime", "openvino")
"""Those that run the graphs of a bundle; torch runs checkpoints."""

EXTRAS: dict[str, str] = {
    "onnxruntime": "segship",
    "openvino": "segship[openvino]",
    "torch": "segship[torch]",
}
"""Name -> what pip installs so that the backend can be imported."""


def load_backend(name: str) -> ModuleType:
    """Return the module of a backend.

    Raises
    ------
    BackendUnavailable
        When there is no such backend, or its package is missing or broken; the message holds the command that helps.
    """
    if name not in BACKENDS:
        message = f"backend {name!r} is unknown; known are {', '.join(sorted(BACKENDS))}"
        raise BackendUnavailable(message, code="unknown_backend")
    command = f'pip install "{EXTRAS[name]}"'
    try:
        return import_module(BACKENDS[name])
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] == "segship":
            raise
        message = f"backend {name!r} needs the package {error.name!r}, which is not installed; run: {command}"
        raise BackendUnavailable(message, code="backend_missing") from error
    except (ImportError, OSError) as error:
        # A shared library that is missing or built for another machine ends here.
        message = f"backend {name!r} is installed but cannot be imported ({error}); run: {command} --force-reinstall"
        raise BackendUnavailable(message, code="backend_broken") from error


def usable_cores() -> int:
    """Return how many cores this process may use, which in a container is often fewer than the machine has."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else (os.cpu_count() or 1)
