# SPDX-License-Identifier: Apache-2.0
"""A report as a drawing: one bar a row, its length the median, a line from there to the slowest 1%; SVG, no library."""

from __future__ import annotations

from html import escape
from math import log

from segship.benchmarking.report import BenchmarkReport, BenchmarkRow

WIDTH = 960
_LABELS = 330
_VALUES = 210
_ROW = 26
_BAR = 16
_HEAD = 84
_COLORS = {"stage": "#2f6f9f", "graph": "#c27a2c"}
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#222}"
    ".title{font-size:17px;font-weight:600}"
    ".small{font-size:11px;fill:#555}"
)


def draw_chart(report: BenchmarkReport) -> str:
    """Return the report's rows as an SVG document, with machine, versions, precision and threads in its head.

    Lengths are on a logarithmic scale, since stages differ by orders of magnitude.
    """
    slowest = max((row.timing.percentile(99) for row in report.rows), default=1.0)
    fastest = min((row.timing.percentile(50) for row in report.rows), default=1.0)
    height = _HEAD + _ROW * len(report.rows) + 34
    scale = _Scale(fastest, slowest)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">',
        f"<style>{_STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        _text(12, 26, f"{report.target}: {report.runs_on}, {report.precision}", "title"),
        _text(12, 46, str(report.machine), "small"),
        _text(12, 62, ", ".join(f"{name} {number}" for name, number in report.versions.items()), "small"),
    ]
    for index, row in enumerate(report.rows):
        lines += _bar(row, _HEAD + _ROW * index, scale)
    lines.append(_text(12, height - 12, "bar: median; line: to p99; milliseconds, logarithmic", "small"))
    return "\n".join([*lines, "</svg>"]) + "\n"


class _Scale:
    """Milliseconds to pixels."""

    def __init__(self, fastest: float, slowest: float) -> None:
        # A bar of the fastest row is still to be seen.
        self._low = log(max(fastest, 1e-6) / 3)
        self._span = max(log(max(slowest, 1e-6)) - self._low, 1e-9)

    def __call__(self, milliseconds: float) -> float:
        part = (log(max(milliseconds, 1e-6)) - self._low) / self._span
        return max(1.0, part * (WIDTH - _LABELS - _VALUES))


def _bar(row: BenchmarkRow, top: int, scale: _Scale) -> list[str]:
    timing, middle = row.timing, top + _BAR / 2
    median, late = scale(timing.percentile(50)), scale(timing.percentile(99))
    color = _COLORS.get(row.kind, "#666")
    told = f"{timing.percentile(50):,.2f} ms, {timing.per_second:,.1f}/s"
    threads = f"{row.threads} thread{'s' if row.threads > 1 else ''}"
    return [
        _text(12, top + 13, f"{row.name}, {threads}", ""),
        f'<rect x="{_LABELS}" y="{top}" width="{median:.1f}" height="{_BAR}" rx="2" fill="{color}"/>',
        f'<line x1="{_LABELS + median:.1f}" x2="{_LABELS + late:.1f}" y1="{middle}" y2="{middle}" stroke="#222"/>',
        _text(_LABELS + late + 8, top + 13, told, ""),
    ]


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(text)}</text>'
