# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint to graphs that were held against its model: the middle of the ship road.

`export_bundle` and `export_semantic` write bundles of the two families; `export_foreign` and `export_ascend_semantic`
write the graphs that other people's programs expect. Needs torch and onnx.
"""

from segship.export.foreign import export_foreign
from segship.export.promptable import ExportOptions, export_bundle
from segship.export.semantic import SemanticExportOptions, export_ascend_semantic, export_semantic

__all__ = [
    "ExportOptions",
    "SemanticExportOptions",
    "export_ascend_semantic",
    "export_bundle",
    "export_foreign",
    "export_semantic",
]
