# SPDX-License-Identifier: Apache-2.0
"""The runtimes: one row of `BACKENDS` and one module each, imported when it is asked for with the package it wraps.

Every module has the same names:

- ``version()``, as text.
- ``devices()``, what may be asked for here: device -> what it is, or nothing to say. Each may still fail to start;
  `segship.backends.opening.failing_devices` tries them.
- ``precisions()``, those in which float32 graphs may be run on this chip.
- ``beside(precision)``, that of everything that an artifact of some precision leaves in float32, refused where the row
  has no ``lower``; not of torch, which runs no artifacts.
- ``compile(graph, spec, run)``, which makes of a `segship.backends.session.Graph` what the session loads.
- ``Session(compiled, spec, run)``, a `segship.backends.session.Session`.
- ``PROBE``, the identity of one number as ``compile`` takes it.

``segship.backends.fake`` is no runtime and has no row: tests make its session themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from types import ModuleType

from segship.errors import BackendUnavailable


@dataclass(frozen=True, slots=True)
class Backend:
    """What is known of a runtime before it is imported.

    Attributes
    ----------
    module
        Where it is wrapped.
    packages
        What that module imports: one of them, the first that is there.
    distributions
        Builds of it that pip may have installed; the first that is there says the version.
    extra
        What pip installs so that it can be imported; nothing where ``install`` says it.
    checkpoints
        It runs checkpoints, and no bundles.
    opener
        Where ``open_checkpoint(path, run)`` is, then.
    streams
        It works on several calls side by side.
    lower
        It runs artifacts in lower precisions than fp32.
    graphs
        All that it runs of a bundle; any when left out. A bundle needs no other to be opened.
    apart
        Why it is installed in an environment of its own, and how that is made; empty where it need not be.
    processor
        It runs on the processor, where backends are measured and compared.
    install
        The command where its makers' own wheels are needed, which no registry has.
    """

    module: str
    packages: tuple[str, ...]
    distributions: tuple[str, ...]
    extra: str
    checkpoints: bool = False
    opener: str = "segship.ship.loading"
    streams: bool = False
    lower: bool = True
    graphs: frozenset[str] | None = None
    apart: str = ""
    processor: bool = True
    install: str = ""

    def runs(self, graphs: Iterable[str]) -> bool:
        """Return whether it runs all of some graphs."""
        return self.graphs is None or self.graphs >= set(graphs)

    @property
    def command(self) -> str:
        """What installs it."""
        return self.install or f'pip install "{self.extra}"'


BACKENDS: dict[str, Backend] = {
    "onnxruntime": Backend(
        "segship.backends.onnxruntime",
        ("onnxruntime",),
        ("onnxruntime", "onnxruntime-gpu", "onnxruntime-cann"),
        extra="segship",
    ),
    "openvino": Backend(
        "segship.backends.openvino", ("openvino",), ("openvino",), extra="segship[openvino]", streams=True
    ),
    "mnn": Backend(
        "segship.backends.mnn",
        ("MNN",),
        ("MNN",),
        extra="segship[mnn]",
        lower=False,
        graphs=frozenset({"image_encoder", "mask_decoder"}),
    ),
    "tensorrt": Backend(
        "segship.backends.tensorrt",
        ("tensorrt", "tensorrt_rtx"),
        ("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13"),
        extra="segship[tensorrt]",
        processor=False,
        # Others have outputs whose sizes the values of a tensor decide.
        graphs=frozenset({"image_encoder", "mask_decoder", "semantic"}),
    ),
    "torch": Backend("segship.backends.torch", ("torch",), ("torch",), extra="segship[torch]", checkpoints=True),
    "mindspore": Backend(
        "segship.backends.mindspore",
        ("mindspore",),
        ("mindspore",),
        extra="segship[mindspore]",
        checkpoints=True,
        opener="segship.ship.families.sam.cells",
        apart="it needs numpy < 2, so give it an environment of its own: `make target-mindspore` in a clone",
    ),
    "ascend": Backend(
        "segship.backends.ascend",
        ("ais_bench",),
        ("ais_bench", "ais-bench"),
        extra="",
        lower=False,
        graphs=frozenset({"image_encoder", "mask_decoder", "semantic"}),
        processor=False,
        install="pip install aclruntime-*.whl ais_bench-*.whl",
    ),
    "mindspore_lite": Backend(
        "segship.backends.mindspore_lite",
        ("mindspore_lite",),
        ("mindspore-lite", "mindspore_lite"),
        extra="",
        lower=False,
        graphs=frozenset({"image_encoder", "mask_decoder"}),
        processor=False,
        install="pip install mindspore_lite-*.whl",
    ),
}
"""Name -> row."""

DEFAULT_BACKEND = "onnxruntime"
"""What runs a bundle where nothing was measured, and what others are measured against."""


def backends_of(*, checkpoints: bool = False) -> tuple[str, ...]:
    """Return the names of the backends that run bundles, or of those that run checkpoints."""
    return tuple(name for name, row in BACKENDS.items() if row.checkpoints == checkpoints)


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
    row = BACKENDS[name]
    command = row.command
    try:
        return import_module(row.module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] == "segship":
            raise
        apart = f"; {row.apart}" if row.apart else ""
        message = f"backend {name!r} needs the package {error.name!r}, which is not installed; run: {command}{apart}"
        raise BackendUnavailable(message, code="backend_missing") from error
    except (ImportError, OSError) as error:
        # A shared library that is missing or built for another machine ends here.
        command = f'pip install --force-reinstall "{row.distributions[0]}"'
        message = f"backend {name!r} is installed but cannot be imported ({error}); {row.apart or f'run: {command}'}"
        raise BackendUnavailable(message, code="backend_broken") from error


def installed_version(name: str) -> str | None:
    """Return the version of a backend's package without importing it; None if it is not installed, or unknown."""
    row = BACKENDS.get(name)
    if row is None or not any(map(is_installed, row.packages)):
        return None
    for distribution in row.distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def is_installed(package: str) -> bool:
    """Return whether a package can be found, without importing it."""
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False
