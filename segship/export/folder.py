# SPDX-License-Identifier: Apache-2.0
"""A folder of graphs for another program: the graphs, and ``export.json``, which describes them. No bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from segship.files import sha256_of, write_directory, write_file

EXPORT_FILE = "export.json"


def files_of(graphs: Iterable[Path]) -> list[Path]:
    """Return graphs with the files of their weights, where there are any beside them."""
    return [file for path in graphs for file in (path, path.with_name(f"{path.name}.data")) if file.exists()]


def describe_files(files: Iterable[Path]) -> dict[str, dict[str, int | str]]:
    """Return the size and the digest of each file, by its name."""
    return {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files}


def write_folder(output: Path, files: Iterable[Path], document: Mapping[str, Any], *, force: bool) -> None:
    """Copy files into a new folder, with the document beside them; whole or not at all.

    Raises
    ------
    OutputError
        When ``output`` exists and ``force`` is off, or cannot be written.
    """

    def fill(target: Path) -> None:
        for path in files:
            shutil.copyfile(path, target / path.name)
        write_file(target / EXPORT_FILE, (json.dumps(document, indent=2) + "\n").encode())

    write_directory(output, fill, overwrite=force)
