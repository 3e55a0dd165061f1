# SPDX-License-Identifier: Apache-2.0
"""What became of a run, as one page that needs nothing else: counts, rates, quarantine with pictures, sizes, scores.

The page has no script and asks nobody for anything: it carries a policy that forbids both, and everything that comes
from outside, names of files above all, is text in it. Tables are read shard by shard.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import import_module
from typing import Any

import numpy as np
from PIL import Image

from segship.errors import SegshipError
from segship.files import check_target, write_file
from segship.images import read_image
from segship.run.ledger import Commit, Ledger, Quarantined
from segship.run.plan import Items, Plan, read_plan
from segship.run.running import Status, read_starts, status
from segship.run.sources import Item, read_item, renewed
from segship.run.stages import Occupancy
from segship.run.storage import open_folder
from segship.run.work import stage_names

THUMBNAILS = 24
"""The most pictures that are shown; each is of at most 160 pixels."""
_THUMBNAIL_SIDE = 160
# Of quarantine in words, and of categories.
_MOST_LINES = 200
# These have ended a process, and would end this one.
_NOT_READ_AGAIN = {"worker_died", "timed_out", "out_of_memory"}
_BINS = 40
_COLUMNS = ["image_id", "height", "width", "category", "area", "predicted_iou", "stability_score"]


@dataclass(slots=True)
class _Histogram:
    """Counts of values, or of their logarithms, in bins of one width; the last bins take what is beyond."""

    title: str
    low: float
    high: float
    is_log: bool = False
    counts: Any = field(default_factory=lambda: np.zeros(_BINS, np.int64))

    def add(self, values: Any) -> None:
        """Count values; what is no number is left out."""
        found = np.asarray(values, np.float64)
        found = found[np.isfinite(found)]
        scaled = np.log10(np.maximum(found, 1e-300)) if self.is_log else found
        places = np.floor(self.place(scaled))
        self.counts += np.bincount(np.clip(places, 0, _BINS - 1).astype(np.intp), minlength=_BINS)

    def place(self, value: Any) -> Any:
        """Return where a value, or a logarithm, is among the bins."""
        return (value - self.low) / (self.high - self.low) * _BINS

    def text(self, value: float) -> str:
        """Return a value, or what a logarithm is of, for people."""
        return f"{10**value:.3g}" if self.is_log and value < 2 else f"{10**value if self.is_log else value:,.5g}"

    def edge(self, place: int) -> str:
        return self.text(self.low + (self.high - self.low) * place / _BINS)

    def marks(self) -> list[float]:
        """Return what stands below the bins: powers of ten, or both ends and the middle."""
        return [*range(int(self.low), int(self.high) + 1)] if self.is_log else [0, 0.5, 1]


@dataclass(slots=True)
class _Found:
    """What the tables of a run say, counted."""

    iou: _Histogram = field(default_factory=lambda: _Histogram("predicted IoU of masks", 0, 1))
    stability: _Histogram = field(default_factory=lambda: _Histogram("stability score of masks", 0, 1))
    area: _Histogram = field(default_factory=lambda: _Histogram("area of masks, part of the picture", -6, 0, True))
    masks: _Histogram = field(default_factory=lambda: _Histogram("masks of a picture that has any", 0, 4, True))
    pixels: _Histogram = field(default_factory=lambda: _Histogram("megapixels of pictures with masks", -3, 2, True))
    categories: Counter[str] = field(default_factory=Counter)
    with_masks: int = 0

    def add(self, table: Any) -> None:
        """Count the rows of a shard's table."""
        columns = {name: table[name].combine_chunks() for name in _COLUMNS}
        size = columns["height"].to_numpy().astype(np.float64) * columns["width"].to_numpy()
        self.area.add(columns["area"].to_numpy() / size)
        self.iou.add(columns["predicted_iou"].drop_null().to_numpy())
        self.stability.add(columns["stability_score"].drop_null().to_numpy())
        # Rows of a picture follow one another.
        ids = columns["image_id"].to_numpy(zero_copy_only=False)
        first = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]])) if len(ids) else np.zeros(0, np.intp)
        self.masks.add(np.diff(np.append(first, len(ids))))
        self.pixels.add(size[first] / 1e6)
        self.with_masks += len(first)
        names = columns["category"].drop_null().value_counts()
        self.categories.update({entry["values"]: entry["counts"] for entry in names.to_pylist()})


def write_report(place: str | os.PathLike[str], out: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write the page of a run, finished or not.

    Parameters
    ----------
    place
        Folder of the run.
    out
        The file.
    overwrite
        Replace a file that is there.

    Raises
    ------
    BundleError
        ``no_plan``, or ``bad_commit`` where a table is not what was committed.
    OutputError
        When it cannot be written.
    """
    check_target(out, overwrite=overwrite)
    folder = open_folder(place)
    plan = read_plan(folder)
    ledger, items, found = Ledger(folder, plan.shards), Items(folder, plan), _Found()
    lost: list[tuple[Commit, Quarantined]] = []
    for commit in ledger.read_commits(sorted(ledger.state().committed)):
        table = import_module("pyarrow.parquet").read_table(io.BytesIO(ledger.check(commit)), columns=_COLUMNS)
        found.add(table)
        lost += [(commit, entry) for entry in commit.quarantined]
    parts = [
        _summary(status(place), plan, found),
        _quarantine(lost, items, plan),
        _chapter("Masks", "".join(map(_chart, (found.masks, found.area, found.iou, found.stability, found.pixels)))),
        _categories(found.categories),
        _starts(read_starts(folder), ("read", *stage_names(plan.options))),
        _asked(plan),
    ]
    write_file(out, _page(f"Run of {plan.source}", parts).encode("utf-8", "backslashreplace"), overwrite=overwrite)


def duration(seconds: float) -> str:
    """Return a time for people, in its two largest units.

    Examples
    --------
    >>> duration(12.4), duration(3700), duration(200_000)
    ('12 s', '1 h 1 min', '2 d 7 h')
    """
    left, parts = round(seconds), list[tuple[str, str]]()
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or (unit == "s" and not parts):
            parts.append((unit, f"{count} {unit}"))
    units = [unit for unit, _ in parts]
    # Seconds after hours say nothing.
    return " ".join(text for unit, text in parts[:2] if not (unit == "s" and "h" in units))


def _text(value: object) -> str:
    """Return what comes from outside as text of a page, in which nothing steers a reader."""
    visible = (
        repr(char)[1:-1] if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") else char
        for char in str(value)
    )
    return escape("".join(visible), quote=True)


def _chapter(title: str, inside: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{inside}</section>" if inside else ""


def _table(rows: Iterable[Sequence[object]], heads: Sequence[str] = ()) -> str:
    head = f"<tr>{''.join(f'<th>{escape(name)}</th>' for name in heads)}</tr>" if heads else ""
    body = "".join(f"<tr>{''.join(f'<td><bdi>{_text(cell)}</bdi></td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{head}{body}</table>"


def _summary(stands: Status, plan: Plan, found: _Found) -> str:
    lost = sum(stands.quarantined.values())
    rate = f"{stands.per_hour:,.0f} an hour over {duration(stands.seconds)} of work" if stands.per_hour else "not known"
    rows = [
        ("pictures", f"{stands.items:,}, {plan.size / 1e6:,.1f} MB"),
        ("answered", f"{stands.done:,} ({stands.done / stands.items:.2%}), of which {found.with_masks:,} have masks"),
        ("without an answer", f"{lost:,} ({lost / stands.items:.2%})"),
        ("not done yet", f"{stands.left:,}"),
        ("masks", f"{stands.rows:,}, {stands.size / 1e6:,.1f} MB in {stands.committed:,} of {stands.shards:,} tables"),
        ("pictures", rate),
        ("finished", f"yes; root {stands.root}" if stands.sealed else "no: this page tells what is committed so far"),
    ]
    return _chapter("What became of it", _table(rows))


def _quarantine(lost: Sequence[tuple[Commit, Quarantined]], items: Items, plan: Plan) -> str:
    if not lost:
        return _chapter("Without an answer", "<p>None.</p>")
    reasons = Counter(entry.code for _, entry in lost)
    parts = [_table([(code, f"{count:,}") for code, count in reasons.most_common()], ("reason", "pictures"))]
    cards = []
    for commit, entry in _some_of_each(lost):
        item = next(item for item in items.of(commit.shard) if item.id == entry.id)
        shown = _thumbnail(item, entry, plan)
        caption = f"<b>{_text(entry.code)}</b> <bdi>{_text(entry.name)}</bdi>"
        cards.append(f"<figure>{shown}<figcaption>{caption}</figcaption></figure>")
    parts.append(f'<div class="cards">{"".join(cards)}</div>')
    rows = [(entry.name, entry.code, entry.message, entry.attempts) for _, entry in lost[:_MOST_LINES]]
    parts.append(_table(rows, ("picture", "reason", "in words", "attempts")))
    if len(lost) > _MOST_LINES:
        parts.append(f"<p>{len(lost) - _MOST_LINES:,} more stand in commits/*.json of the run.</p>")
    return _chapter("Without an answer", "".join(parts))


def _some_of_each(lost: Sequence[tuple[Commit, Quarantined]]) -> list[tuple[Commit, Quarantined]]:
    """Return a bounded number of pictures in which every reason has its turn."""
    turns: Counter[str] = Counter()
    placed = []
    for place, (commit, entry) in enumerate(lost):
        placed.append((turns[entry.code], place, commit, entry))
        turns[entry.code] += 1
    placed.sort(key=lambda one: one[:2])
    chosen = placed[:THUMBNAILS]
    return [(commit, entry) for _, _, commit, entry in sorted(chosen, key=lambda one: one[3].code)]


def _thumbnail(item: Item, entry: Quarantined, plan: Plan) -> str:
    """Return a small picture of an item as it is now, or a word where there is none."""
    if entry.code in _NOT_READ_AGAIN:
        return '<p class="none">not read again</p>'
    limits = plan.options.limits
    try:
        image = Image.fromarray(read_image(read_item(renewed(item), limits.bytes), limits=limits).pixels)
    except (SegshipError, MemoryError):
        return '<p class="none">cannot be read</p>'
    stream = io.BytesIO()
    image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    image.save(stream, "PNG")
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<img alt="" width="{image.width}" height="{image.height}" src="data:image/png;base64,{data}">'


def _chart(histogram: _Histogram) -> str:
    counts, total = histogram.counts, int(histogram.counts.sum())
    if not total:
        return ""
    top, bars = counts.max(), []
    for place, count in enumerate(counts.tolist()):
        height = 100 * count / top
        said = f"{histogram.edge(place)} to {histogram.edge(place + 1)}: {count:,}"
        where = f'x="{10 * place}" y="{100 - height:.2f}" width="9" height="{height:.2f}"'
        bars.append(f"<rect {where}><title>{said}</title></rect>")
    marks = "".join(
        f'<text x="{10 * histogram.place(value):.0f}" y="114" text-anchor="middle">{histogram.text(value)}</text>'
        for value in histogram.marks()
    )
    title = f"{histogram.title} ({total:,})"
    inside, box = "".join(bars) + marks, f"-22 0 {10 * _BINS + 44} 118"
    svg = f'<svg viewBox="{box}" role="img" aria-label="{escape(title)}">{inside}</svg>'
    return f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{svg}</figure>'


def _categories(found: Counter[str]) -> str:
    rows = [(name, f"{count:,}") for name, count in found.most_common(_MOST_LINES)]
    return _chapter("Classes", _table(rows, ("class", "masks")) if rows else "")


def _starts(starts: Sequence[dict[str, Any]], stages: Sequence[str]) -> str:
    """Return who has worked, with what, and how busy the stages were."""
    if not starts:
        return _chapter("Starts", "<p>None has ended by itself; who is killed leaves no note.</p>")
    occupancy = Occupancy()
    for one in starts:
        occupancy.add(one["occupancy"])
    named = dict.fromkeys(name for name in (*stages, *occupancy.busy) if name in occupancy.busy)
    shares = [(name, occupancy.shares[name]) for name in named]
    bars = "".join(
        f'<text x="0" y="{22 * row + 15}">{_text(name)}</text>'
        f'<rect x="90" y="{22 * row}" width="{250 * min(share, 1.0):.1f}" height="18"/>'
        f'<text x="{95 + 250 * min(share, 1.0):.1f}" y="{22 * row + 15}">{share:.0%}</text>'
        for row, (name, share) in enumerate(shares)
    )
    height = 22 * max(1, len(occupancy.busy))
    svg = f'<svg viewBox="0 0 400 {height}" role="img" aria-label="how busy stages were">{bars}</svg>'
    chart = f'<figure class="chart"><figcaption>part of a worker\'s time in each stage</figcaption>{svg}</figure>'
    heads = ("ended", "time", "executor", "workers", "schedule", "machine", "versions")
    rows = [_start_row(one) for one in starts[-_MOST_LINES:]]
    return _chapter("Starts", (chart if bars else "") + _table(rows, heads))


def _start_row(one: dict[str, Any]) -> tuple[object, ...]:
    machine, versions = one["machine"], ", ".join(f"{name} {found}" for name, found in one["versions"].items())
    told = f"{machine['cpu']}, {machine['usable_cores']} cores, {machine['platform']}"
    return one["ended"], duration(one["seconds"]), one["executor"], one["workers"], one["schedule"], told, versions


def _asked(plan: Plan) -> str:
    options = plan.options.to_dict()
    rows = [
        ("source", plan.source),
        ("fingerprint", plan.fingerprint),
        ("model", f"{plan.options.bundle}, {plan.model['digest']}"),
        *(
            (name, json.dumps(value) if isinstance(value, dict) else "left out" if value is None else value)
            for name, value in options.items()
        ),
    ]
    return _chapter("What was asked", _table(rows))


_STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;color:CanvasText;background:Canvas}
body{max-width:72rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;overflow-wrap:anywhere}h2{font-size:1.15rem;margin-top:2rem}
section{overflow-x:auto}
table{border-collapse:collapse;margin:.5rem 0}
th,td{text-align:left;vertical-align:top;padding:.25rem .8rem .25rem 0;border-bottom:1px solid #8885}
td{overflow-wrap:break-word;max-width:44rem}
th,td:first-child{color:GrayText}
figure{margin:0}
.cards{display:flex;flex-wrap:wrap;gap:.8rem;margin:1rem 0}
.cards figure{width:10rem;border:1px solid #8885;border-radius:6px;padding:.5rem;overflow-wrap:anywhere}
.none{height:4rem;margin:0;color:GrayText}
img{max-width:100%;height:auto}
.chart{display:inline-block;width:min(100%,26rem);margin:.5rem 1.5rem .5rem 0}
.chart figcaption{color:GrayText}
svg{width:100%;overflow:visible}rect{fill:#1e90ff}text{fill:CanvasText;font-size:12px}
"""


def _page(title: str, parts: Iterable[str]) -> str:
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>"
        f"<body><h1>{_text(title)}</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
