# SPDX-License-Identifier: Apache-2.0
"""How fast a model or a graph is here, and how much memory it takes: what ``segship bench`` runs.

At the end of the use road. Stages are measured through the public functions in a warm process, graphs alone in a pure
loop, cold start and peak memory in fresh processes. No number comes out without the machine, the versions, the
precision and the threads beside it.
"""

from segship.benchmarking.benchmark import benchmark
from segship.benchmarking.chart import draw_chart
from segship.benchmarking.options import BenchmarkOptions
from segship.benchmarking.report import BenchmarkReport, BenchmarkRow, FreshRow
from segship.benchmarking.timing import Timing, measure

__all__ = [
    "BenchmarkOptions",
    "BenchmarkReport",
    "BenchmarkRow",
    "FreshRow",
    "Timing",
    "benchmark",
    "draw_chart",
    "measure",
]
