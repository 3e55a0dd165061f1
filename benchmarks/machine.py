# SPDX-License-Identifier: Apache-2.0
"""What a number has to stand beside: the machine, the versions, the command, the date."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from segship.doctor import examine

RESULTS = Path(__file__).parent / "results"


def describe_run() -> dict[str, Any]:
    """Return machine, versions, command and date of this run."""
    report = examine()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        # Names alone: where a file lay on the machine says nothing to others.
        "command": " ".join(["python", *(Path(part).name if part[0] == "/" else part for part in sys.orig_argv[1:])]),
        "machine": {"cpu": report.cpu, "cores": report.usable_cores, "features": list(report.cpu_features)},
        "python": report.python,
        "versions": {package.name: package.version for package in report.packages},
        "backends": [asdict(backend)["version"] for backend in report.backends],
    }


def save_result(name: str, figures: dict[str, Any]) -> Path:
    """Write a result with its surroundings to ``benchmarks/results`` and return the path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**describe_run(), "figures": figures}, indent=2) + "\n", encoding="utf-8")
    return path
