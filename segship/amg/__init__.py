# SPDX-License-Identifier: Apache-2.0
"""Everything in a picture: automatic masks ("AMG"), exact or fast, in bounded memory, on any backend.

On the use road behind the predictor. `AmgOptions` holds the reference's parameters and a few more; `generate_masks`
returns records, `iter_masks` yields them crop by crop, `generate` says besides what it took and how much of the image
is covered, and `estimate_cost` says what it will take. In reading order: options, grids, filters, crops,
duplicates, cleaning, partition, progressive, cost, generating.
"""

from segship.amg.cost import AmgCost, estimate_cost
from segship.amg.generating import AmgResult, Progress, generate, generate_masks, iter_masks
from segship.amg.options import AmgOptions, Thresholds, thresholds_for
from segship.amg.partition import coverage, label_map, partition_records

__all__ = [
    "AmgCost",
    "AmgOptions",
    "AmgResult",
    "Progress",
    "Thresholds",
    "coverage",
    "estimate_cost",
    "generate",
    "generate_masks",
    "iter_masks",
    "label_map",
    "partition_records",
    "thresholds_for",
]
