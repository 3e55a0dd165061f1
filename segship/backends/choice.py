# SPDX-License-Identifier: Apache-2.0
"""Decide which backend runs a bundle, in which precision, and say why.

The manifest holds what was measured (`segship.bundle.evidence.Check`); nothing is timed and
no runtime is imported here. The rules:

- A backend or precision that was named is taken, whatever was measured.
- ``auto`` takes the fastest installed backend whose comparison passed. Checks made on a processor of this name with
  the installed versions count; where there are none, those made elsewhere decide, and only in fp32.
- The precision is fp32 unless another was named, or ``auto`` allows it. A reduced precision is never taken on the
  word of another machine.
- Where nothing was measured, it is ONNX Runtime in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec

from segship.backends import GRAPH_BACKENDS
from segship.bundle.evidence import EXACT, Check
from segship.errors import BackendUnavailable
from segship.machine import describe_machine

AUTO = "auto"
DEFAULT_BACKEND = "onnxruntime"
# Builds of one runtime under other names; the first that is installed gives the version.
_DISTRIBUTIONS = {"onnxruntime": ("onnxruntime", "onnxruntime-gpu")}
_TUNE = "`segship tune BUNDLE` measures here"


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """What runs a bundle.

    Attributes
    ----------
    backend, precision
        Neither is ``auto``.
    reason
        Why, in a sentence without its full stop.
    """

    backend: str
    precision: str
    reason: str


def choose_backend(
    checks: Sequence[Check],
    *,
    backend: str = AUTO,
    precision: str = EXACT,
    device: str = "cpu",
    streams: int = 1,
) -> BackendChoice:
    """Choose for a bundle on this machine.

    Parameters
    ----------
    checks
        What the manifest measured; may be empty.
    backend, precision
        ``auto``, or a name that is taken as it is.
    device
        Checks are made on the CPU, so they decide nothing elsewhere.
    streams
        More than one leaves only backends that have them.

    Raises
    ------
    BackendUnavailable
        ``precision_unavailable`` when a named precision failed its comparison in every backend that was measured;
        name the backend to take it all the same.
    """
    if backend != AUTO and precision != AUTO:
        return BackendChoice(backend, precision, "it was asked for")
    if device != "cpu":
        chosen, exact = (DEFAULT_BACKEND if backend == AUTO else backend), (EXACT if precision == AUTO else precision)
        return BackendChoice(chosen, exact, f"checks of backends are made on the CPU, and {device} was asked for")
    wanted = [
        check
        for check in checks
        if backend in (AUTO, check.backend)
        and precision in (AUTO, check.precision)
        and (streams == 1 or check.backend == "openvino")
    ]
    return _fastest(wanted) or _unmeasured(wanted, backend, precision, streams)


def installed_version(backend: str) -> str | None:
    """Return the version of a backend's package without importing it; None if it is not installed."""
    if not _is_installed(backend):
        return None
    for name in _DISTRIBUTIONS.get(backend, (backend,)):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


@cache
def processor_name() -> str:
    """Return the name that checks carry: brand, family and model."""
    machine = describe_machine()
    if machine.cpu_family is None:
        return machine.cpu
    return f"{machine.cpu} (family {machine.cpu_family}, model {machine.cpu_model})"


def _is_installed(backend: str) -> bool:
    try:
        return find_spec(backend) is not None
    except (ImportError, ValueError):
        return False


def _fastest(wanted: Sequence[Check]) -> BackendChoice | None:
    versions = {name: installed_version(name) for name in {check.backend for check in wanted}}
    passed = [check for check in wanted if check.passed and versions[check.backend] is not None]
    here = [check for check in passed if check.cpu == processor_name() and check.version == versions[check.backend]]
    where, counted = "this processor", here
    if not here:
        counted = [check for check in passed if check.precision == EXACT]
        where = f"another processor or version; {_TUNE}"
    if not counted:
        return None
    best = min(counted, key=lambda check: check.milliseconds)
    others = sorted((check for check in counted if check is not best), key=lambda check: check.milliseconds)
    against = ", ".join(f"{check.backend} {check.precision} {check.milliseconds:.0f} ms" for check in others[:3])
    reason = (
        f"fastest of {len(counted)} that passed their comparison: {best.milliseconds:.0f} ms for {best.timed}"
        f"{f' against {against}' if against else ''}, measured on {where}"
    )
    return BackendChoice(best.backend, best.precision, reason)


def _unmeasured(wanted: Sequence[Check], backend: str, precision: str, streams: int) -> BackendChoice:
    """Return what is taken where no check decides."""
    exact = EXACT if precision == AUTO else precision
    if backend != AUTO:
        return BackendChoice(backend, exact, f"{backend} was asked for, and no check of it counts here; {_TUNE}")
    if precision in (EXACT, AUTO) and streams == 1:
        found = "nothing was measured" if not wanted else "no check of the manifest counts here"
        return BackendChoice(DEFAULT_BACKEND, EXACT, f"{found}, and this is the default; {_TUNE}")
    failed = sorted({check.backend for check in wanted if not check.passed})
    if failed and precision not in (EXACT, AUTO):
        message = (
            f"precision {precision!r} was asked for, and in {', '.join(failed)} it failed its comparison "
            "(`segship inspect BUNDLE`, backends); name the backend to take it all the same, or use fp32"
        )
        raise BackendUnavailable(message, code="precision_unavailable")
    asked = f"precision {precision}" if streams == 1 else f"{streams} streams"
    return BackendChoice(
        next(name for name in GRAPH_BACKENDS if name != DEFAULT_BACKEND),
        exact,
        f"the backend that has {asked}; {_TUNE}",
    )
