# SPDX-License-Identifier: Apache-2.0
"""What a number has to stand beside: the machine, the versions, the command, the date."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import segship
from segship.machine import describe_machine

RESULTS = Path(__file__).parent / "results"
OURS = ("numpy", "Pillow", "opencv-python-headless", "onnxruntime", "pydantic")
PEERS = ("torch", "segment-anything", "onnx", "onnxscript", "onnxslim", "openvino", "MNN", "pycocotools")


def describe_run() -> dict[str, Any]:
    """Return machine, versions, command and date of this run."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        # Names alone: where a file lay on the machine says nothing to others.
        "command": " ".join(["python", *(Path(part).name if part[0] == "/" else part for part in sys.orig_argv[1:])]),
        "machine": describe_machine().to_dict(),
        "load_at_the_end": round(os.getloadavg()[0], 1),
        "python": ".".join(map(str, sys.version_info[:3])),
        "versions": {"segship": segship.__version__, **versions(OURS)},
    }


def peers() -> dict[str, str]:
    """Return the versions of the packages that we compare ourselves with or export by."""
    return versions(PEERS)


def versions(names: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def save_result(name: str, figures: dict[str, Any], *, versions: Mapping[str, str] | None = None) -> Path:
    """Write a result with its surroundings to ``benchmarks/results`` and return the path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    run = describe_run()
    run["versions"].update(versions or {})
    path.write_text(json.dumps({**run, "figures": figures}, indent=2) + "\n", encoding="utf-8")
    return path


def write_result(path: Path | None, found: Mapping[str, Any]) -> None:
    """Write what was found with its surroundings to a file of the caller's, unless it names none."""
    if path is not None:
        path.write_text(json.dumps({**describe_run(), **found}, indent=1) + "\n", encoding="utf-8")
