# SPDX-License-Identifier: Apache-2.0
"""Measure every installed backend on a bundle, on this machine, and write the result into the bundle's manifest.

Stands beside both roads: an export ends with it, and whoever carries a bundle to another machine runs it there, without
torch. The graphs were held against the model when they were exported; here the backends are held against those graphs
in ONNX Runtime in fp32, on the same images and prompts. `segship.backends.choice` decides by what is written.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from segship.bundle import Bundle
from segship.bundle.manifest import MANIFEST_FILE
from segship.bundle.measured import AnyCheck
from segship.catalog import EMBEDDED_MODELS, embedded_bundle, find_model
from segship.errors import InputError
from segship.files import write_directory, write_file
from segship.tune.candidates import Report, TuneOptions
from segship.tune.promptable import measure_promptable
from segship.tune.semantic import measure_semantic


def tune_bundle(
    model: str | Path,
    options: TuneOptions | None = None,
    report: Report | None = None,
    *,
    out: Path | None = None,
) -> Bundle:
    """Measure the backends on a bundle and write what was found into its manifest, in place or into a copy.

    Parameters
    ----------
    model
        A bundle's folder, or a name of `segship.load`.
    options
        See `TuneOptions`.
    report
        Called with every check when it is done.
    out
        Folder for a copy; without it the manifest is replaced.

    Raises
    ------
    InputError
        ``bundle_in_package`` for the model inside the package, whose files are not changed: name a copy with ``out``.
    BundleError
        When the bundle cannot be used.
    OutputError
        When the manifest cannot be written.
    """
    path = find_model(model)
    if out is None and any(path.resolve() == embedded_bundle(name).resolve() for name in EMBEDDED_MODELS):
        message = f"{path} lies inside the package, whose files are not changed; write a copy: --out FOLDER"
        raise InputError(message, code="bundle_in_package")
    bundle = Bundle.read(path)
    if bundle.manifest.family == "semantic":
        checks: tuple[AnyCheck, ...] = measure_semantic(bundle, options, report)
    else:
        checks = measure_promptable(bundle, options, report)
    manifest = bundle.manifest.model_copy(update={"backends": list(checks)}).to_json()
    if out is None:
        write_file(path / MANIFEST_FILE, manifest, overwrite=True)
        return Bundle.open(path)

    def fill(folder: Path) -> None:
        for file in sorted(path.iterdir()):
            if file.name != MANIFEST_FILE:
                shutil.copyfile(file, folder / file.name)
        write_file(folder / MANIFEST_FILE, manifest)

    write_directory(out, fill)
    return Bundle.open(out)
