# SPDX-License-Identifier: Apache-2.0
"""Decide which backend runs a bundle, in which precision, and say why.

The manifest holds what was measured (`segship.bundle.evidence.Check`); nothing is timed and
no runtime is imported here. The rules:

- A backend or precision that was named is taken, whatever was measured.
- ``auto`` takes the fastest installed backend whose comparison passed. Checks made on a processor of this name with
  the installed versions count; where there are none, those made elsewhere decide, and only in fp32.
- What `segship tune --budget` chose on this processor with the installed version is followed where it is not ruled out
  by what was named.
- The precision is fp32 unless another was named, or ``auto`` allows it. A reduced precision is never taken on the
  word of another machine.
- Where nothing was measured, it is ONNX Runtime in fp32.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache

from segship.backends import BACKENDS, DEFAULT_BACKEND, backends_of, installed_version
from segship.backends.session import RunOptions
from segship.bundle.evidence import EXACT, Check, Choice
from segship.errors import BackendUnavailable
from segship.machine import describe_machine

AUTO = "auto"
_TUNE = "`segship tune BUNDLE` measures here"


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """What runs a bundle, neither of them ``auto``, and why, in a sentence without its full stop."""

    backend: str
    precision: str
    reason: str
    threads: int | None = None
    """Those that it was measured with, where a budget decided."""


def recorded_choice(choice: Choice | None, run: RunOptions) -> BackendChoice | None:
    """Return what a budget decided, if it holds here and for what was asked for."""
    if choice is None or run.backend != AUTO or run.precision not in (AUTO, choice.precision):
        return None
    here = choice.cpu == processor_name() and choice.version == installed_version(choice.backend)
    if not here or run.device != RunOptions().device or run.streams != 1 or run.threads not in (None, choice.threads):
        return None
    told = ", ".join(f"{name} {figure:g}" for name, figure in choice.budget.items())
    reason = f"chosen of {choice.tried} under the budget {told}, measured on this processor"
    return BackendChoice(choice.backend, choice.precision, reason, choice.threads)


def choose_backend(
    checks: Sequence[Check], run: RunOptions | None = None, held: Collection[str] = (EXACT,)
) -> BackendChoice:
    """Choose for a bundle on this machine, of whose artifacts the precisions are ``held``.

    The manifest's checks may be none; they are made on the CPU, so they decide nothing elsewhere. A precision that
    failed its comparison in every backend that was measured is refused as ``precision_unavailable``; whoever names the
    backend as well gets it all the same.
    """
    run = run or RunOptions()
    if AUTO not in (run.backend, run.precision):
        return BackendChoice(run.backend, run.precision, "it was asked for")
    if run.device != RunOptions().device:
        backend = DEFAULT_BACKEND if run.backend == AUTO else run.backend
        reason = f"checks of backends are made on the CPU, and {run.device} was asked for"
        return BackendChoice(backend, _exact(run), reason)
    wanted = [
        check
        for check in checks
        if run.backend in (AUTO, check.backend)
        and run.precision in (AUTO, check.precision)
        and (run.streams == 1 or _has_streams(check.backend))
    ]
    return _fastest(wanted) or _unmeasured(wanted, run, held)


def _exact(run: RunOptions) -> str:
    return EXACT if run.precision == AUTO else run.precision


@cache
def processor_name() -> str:
    """Return the name that checks made here carry."""
    return describe_machine().processor


def _fastest(wanted: Sequence[Check]) -> BackendChoice | None:
    versions = {name: installed_version(name) for name in {check.backend for check in wanted}}
    able = [name for name in backends_of() if versions.get(name) is not None]
    passed = [check for check in wanted if check.passed and check.backend in able]
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


def _unmeasured(wanted: Sequence[Check], run: RunOptions, held: Collection[str]) -> BackendChoice:
    """Return what is taken where no check decides."""
    reduced = run.precision not in (EXACT, AUTO)
    if run.backend != AUTO:
        reason = f"{run.backend} was asked for, and no check of it counts here; {_TUNE}"
        return BackendChoice(run.backend, _exact(run), reason)
    if not reduced and run.streams == 1:
        found = "nothing was measured" if not wanted else "no check of the manifest counts here"
        return BackendChoice(DEFAULT_BACKEND, EXACT, f"{found}, and this is the default; {_TUNE}")
    failed = sorted({check.backend for check in wanted if not check.passed})
    if failed and reduced:
        message = (
            f"precision {run.precision!r} was asked for, and in {', '.join(failed)} it failed its comparison "
            "(`segship inspect BUNDLE`, checks); name the backend to take it all the same, or use fp32"
        )
        raise BackendUnavailable(message, code="precision_unavailable")
    if run.precision in held and run.streams == 1:
        return BackendChoice(DEFAULT_BACKEND, run.precision, f"nothing was measured, and this is the default; {_TUNE}")
    asked = f"precision {run.precision}" if run.streams == 1 else f"{run.streams} streams"
    able = (name for name in backends_of() if BACKENDS[name].processor and name != DEFAULT_BACKEND)
    others = (name for name in able if run.streams == 1 or _has_streams(name))
    return BackendChoice(next(others), _exact(run), f"the backend that has {asked}; {_TUNE}")


def _has_streams(backend: str) -> bool:
    return backend in BACKENDS and BACKENDS[backend].streams
