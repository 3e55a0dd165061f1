# SPDX-License-Identifier: Apache-2.0
"""The versions of everything that shapes a graph, for manifests."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import segship

TOOLS = ("torch", "onnx", "onnxscript", "onnxslim", "onnxruntime", "numpy")


def tool_versions() -> dict[str, str]:
    """Return the versions of everything that shaped the graphs."""
    versions = {"segship": segship.__version__}
    for name in TOOLS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
