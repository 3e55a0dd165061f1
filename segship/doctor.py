# SPDX-License-Identifier: Apache-2.0
"""Look at this machine and say what segship can do here, what it cannot, and the command that mends it.

Each part is tried for real: packages are imported, a one-node graph is run on every device, the bundle inside the
package is verified. What fails becomes a line of the report, never a traceback; so nothing is imported at
the top of this module that ``import segship`` does not need as well.
"""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import segship
from segship.backends import BACKENDS, DEFAULT_BACKEND, installed_version, is_installed, load_backend
from segship.errors import SegshipError
from segship.machine import describe_machine

CORE_PACKAGES = {
    "numpy": "numpy",
    "Pillow": "PIL",
    "opencv-python-headless": "cv2",
    "onnxruntime": "onnxruntime",
    "pydantic": "pydantic",
    "cyclopts": "cyclopts",
    "rich": "rich",
}
"""What segship is installed with: package -> the module that is imported."""

EMBEDDED_BUNDLE = Path(__file__).parent / "bundles" / "tiny"


@dataclass(frozen=True, slots=True)
class PackageStatus:
    """A package that segship needs; ``problem`` and ``command`` are None if it is well."""

    name: str
    version: str | None
    problem: str | None = None
    command: str | None = None


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """A backend, and what it really runs on here.

    ``devices`` were tried, such as ``cpu`` or ``cuda:0 NVIDIA H200``; ``providers`` are what the runtime says it was
    built with, and not all of them need work here. The problem is why it is not available, or which device does not
    start.
    """

    name: str
    available: bool
    version: str | None = None
    devices: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    problem: str | None = None
    command: str | None = None


@dataclass(frozen=True, slots=True)
class FolderStatus:
    """A folder that segship reads or writes; ``problem`` is None if it is well."""

    path: str
    problem: str | None = None
    command: str | None = None


@dataclass(frozen=True, slots=True)
class AutomaticChoice:
    """What ``--backend auto`` takes for the bundle inside the package, and why, in words.

    ``asked`` is the precision that is asked for: ``fp32``, which is the default, or ``auto``.
    """

    asked: str
    backend: str
    precision: str
    reason: str


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """What `examine` found."""

    segship: str
    python: str
    platform: str
    cpu: str
    cpu_features: tuple[str, ...]
    usable_cores: int
    packages: tuple[PackageStatus, ...]
    backends: tuple[BackendStatus, ...]
    cache: FolderStatus
    embedded_bundle: FolderStatus
    automatic: tuple[AutomaticChoice, ...]

    @property
    def healthy(self) -> bool:
        """True if images can be segmented here; backends other than the default may be missing."""
        default = next(backend for backend in self.backends if backend.name == DEFAULT_BACKEND)
        problems = (self.embedded_bundle.problem, *(package.problem for package in self.packages))
        return default.available and not any(problems)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can carry."""
        return {**asdict(self), "healthy": self.healthy}


def examine() -> DoctorReport:
    """Try everything that segship stands on and return what was found; never raises for a broken package."""
    machine = describe_machine()
    return DoctorReport(
        segship=segship.__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=machine.cpu,
        cpu_features=machine.features,
        usable_cores=machine.usable_cores,
        packages=tuple(_package(name, module) for name, module in CORE_PACKAGES.items()),
        backends=tuple(_backend(name) for name in BACKENDS),
        cache=_cache(),
        embedded_bundle=_embedded_bundle(),
        automatic=_automatic(),
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _reason(error: BaseException) -> str:
    """Return an error in one line."""
    text = str(error).strip().split("\n", 1)[0][:300]
    return text if isinstance(error, SegshipError) else f"{type(error).__name__}: {text}"


def _package(name: str, module: str) -> PackageStatus:
    version = _version(name)
    if not is_installed(module):
        return PackageStatus(name, version, "not installed", f'pip install "{name}"')
    try:
        loaded = import_module(module)
    # A broken package may raise anything when it is imported, and must not end the report.
    except Exception as error:
        return PackageStatus(
            name, version, f"cannot be imported: {_reason(error)}", f'pip install --force-reinstall "{name}"'
        )
    # Another build may stand in for the package, such as opencv-python for its headless sister.
    return PackageStatus(name, version or getattr(loaded, "__version__", None))


def _backend(name: str) -> BackendStatus:
    row = BACKENDS[name]
    version, command = installed_version(name), row.command
    if version is None:
        problem = f"not installed; {row.apart}" if row.apart else "not installed"
        return BackendStatus(name, False, problem=problem, command=command)
    try:
        return _tried(name)
    # A broken package may raise anything, and must not end the report.
    except Exception as error:
        again = f'pip install --force-reinstall "{row.distributions[0]}"'
        return BackendStatus(name, False, version, problem=_reason(error), command=again)


def _tried(name: str) -> BackendStatus:
    from segship.backends.opening import try_devices

    module = load_backend(name)
    names, tried = module.devices(), try_devices(module)
    started = tuple(f"{device} {names[device]}".rstrip() for device, problem in tried.items() if problem is None)
    problems = [f"{device} does not start: {problem}" for device, problem in tried.items() if problem is not None]
    return BackendStatus(
        name,
        bool(started),
        module.version(),
        started,
        # Only a runtime that is built of parts has a list of them.
        providers=getattr(module, "providers", tuple)(),
        precisions=module.precisions(),
        problem=problems[0] if problems else None if names else "installed, and finds no device here to run on",
        command=None if started or not names else f'pip install --force-reinstall "{BACKENDS[name].distributions[0]}"',
    )


def _cache() -> FolderStatus:
    from segship.files import cache_folder

    try:
        folder = cache_folder()
    # A user without a home folder, say.
    except (SegshipError, RuntimeError, OSError) as error:
        return FolderStatus("", _reason(error))
    # The folder is made when it is first needed, so its nearest parent tells whether that will work.
    existing = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    if not os.path.isdir(existing) or not os.access(existing, os.W_OK | os.X_OK):
        return FolderStatus(str(folder), f"{existing} cannot be written", f"chmod u+rwx {existing}")
    return FolderStatus(str(folder))


def _embedded_bundle() -> FolderStatus:
    # There is no segship on PyPI that could be had again.
    reinstall = "pip install --force-reinstall --no-deps ."
    try:
        from segship.bundle import Bundle

        Bundle.read(EMBEDDED_BUNDLE)
    # A broken pydantic or numpy ends here as well as a damaged file.
    except Exception as error:
        return FolderStatus(str(EMBEDDED_BUNDLE), _reason(error), reinstall)
    return FolderStatus(str(EMBEDDED_BUNDLE))


def _automatic() -> tuple[AutomaticChoice, ...]:
    try:
        from segship.backends.choice import choose_backend
        from segship.backends.session import RunOptions
        from segship.bundle import Bundle

        checks = Bundle.open(EMBEDDED_BUNDLE).manifest.checks
        choices = {asked: choose_backend(checks, RunOptions(precision=asked)) for asked in ("fp32", "auto")}
    # Whatever is broken is told where it belongs: with the bundle or the packages.
    except Exception:
        return ()
    return tuple(
        AutomaticChoice(asked, choice.backend, choice.precision, choice.reason) for asked, choice in choices.items()
    )
