# SPDX-License-Identifier: Apache-2.0
"""A run's answers in the formats that others read, and a new run of what was not answered; one picture at a time."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from itertools import groupby
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from segship.arrays import Pixels
from segship.errors import InputError, OutputError, option, shown
from segship.images import read_image
from segship.masks.rle import read_rle
from segship.run.ledger import Commit, Ledger
from segship.run.objects import is_address
from segship.run.plan import Items, Plan, read_plan, write_plan
from segship.run.sources import Item, read_item, renewed
from segship.run.storage import open_folder
from segship.run.work import Row
from segship.writers import check_formats, merge_results, write_result
from segship.writers.instances import Instance, Instances
from segship.writers.merged import MERGED
from segship.writers.names import compared, output_places

Told = Callable[[int, int], None]

_WITH_PIXELS = {"overlay", "yolo", "cutout", "panoptic"}
"""Formats that hold the picture too, which is read again for them."""


def export(
    place: str | os.PathLike[str],
    out: str | os.PathLike[str],
    formats: Sequence[str],
    *,
    overwrite: bool = False,
    told: Told = lambda done, of: None,
) -> int:
    """Write the answers of a run in other formats, and return how many pictures there are.

    Parameters
    ----------
    place
        Folder of the run, which must be finished.
    out
        Folder for the files: data sets of all pictures for coco, panoptic and yolo, files of each picture for others.
    formats
        Keys of ``WRITERS["masks"]`` of `segship.writers`.
    overwrite
        Replace files that are there.
    told
        Is told how many pictures are done, and of how many.

    Raises
    ------
    BundleError
        ``not_finished`` or ``bad_commit``.
    OutputError
        As `segship.writers.merge_results` and `write_result`; data sets of all pictures then do not appear.
    """
    if is_address(os.fspath(out)):
        message = f"{shown(os.fspath(out))} is an address; files of other formats go to a folder"
        raise OutputError(message, code="cannot_write")
    wanted = check_formats(formats, "masks")
    merged = [name for name in wanted if name in MERGED]
    single = [name for name in wanted if name not in MERGED]
    plan, count = read_plan(open_folder(place)), 0
    needs_pixels = bool(_WITH_PIXELS & set(wanted))
    with merge_results(out, merged, root="/", overwrite=overwrite) as data_sets:
        for instances, where in _pictures(place, plan, needs_pixels=needs_pixels):
            if merged:
                data_sets.add(instances)
            if single:
                write_result(instances, Path(out) / where, single, overwrite=overwrite)
            count += 1
            told(count, plan.items)
    return count


def _pictures(place: str | os.PathLike[str], plan: Plan, *, needs_pixels: bool) -> Iterator[tuple[Instances, PurePath]]:
    folder = open_folder(place)
    ledger, items = Ledger(folder, plan.shards), Items(folder, plan)
    ledger.require_finished()

    def names() -> Iterator[str]:
        for shard, commit in enumerate(ledger.read_commits()):
            yield from (item.name for item in _answered(items.of(shard), commit))

    places = _Places(names)
    for shard, commit in enumerate(ledger.read_commits()):
        table = import_module("pyarrow.parquet").read_table(io.BytesIO(ledger.check(commit))).to_pylist()
        rows = {key: list(found) for key, found in groupby(table, key=lambda row: row["image_id"])}
        for item in _answered(items.of(shard), commit):
            found = rows.get(item.id, [])
            where = places.of(item.name)
            if found or needs_pixels:
                pixels = _pixels(item, plan) if needs_pixels else _blank(found)
                yield _instances(item, found, pixels, where.name), where.parent


class _Places:
    """Where the files of pictures go, all different.

    Of a picture whose place is its own nothing is kept but a number, so that there may be millions.

    Parameters
    ----------
    names
        Of all pictures.
    """

    def __init__(self, names: Callable[[], Iterator[str]]) -> None:
        self._shared: dict[str, PurePath] = {}
        taken, twice = set[int](), set[int]()
        for name in names():
            number = _number(_own_place(name))
            (twice if number in taken else taken).add(number)
        new = twice
        while new:
            twins = [name for name in names() if _number(_own_place(name)) in twice]
            self._shared = dict(zip(twins, output_places([(name, Path(name)) for name in twins]), strict=True))
            # Where one makes way for its twin, a third may be.
            new = {_number(place) for place in self._shared.values()} & taken - twice
            twice |= new

    def of(self, name: str) -> PurePath:
        """Return the place of a picture: folders, and the stem of its files."""
        return self._shared.get(name) or _own_place(name)


def _own_place(name: str) -> PurePath:
    return output_places([(name, Path(name))])[0]


def _number(place: PurePath) -> int:
    return hash(compared(place.as_posix()))


def _answered(items: Sequence[Item], commit: Commit) -> Iterator[Item]:
    done = set(commit.done)
    return (item for item in items if item.id in done)


def _pixels(item: Item, plan: Plan) -> Pixels:
    limits = plan.options.limits
    return read_image(read_item(item, limits.bytes), limits=limits).pixels


def _blank(rows: Sequence[Row]) -> Pixels:
    """Return a picture of the right size that takes no memory; formats that show it are not written from it."""
    return np.broadcast_to(np.uint8(0), (rows[0]["height"], rows[0]["width"], 3))


def _instances(item: Item, rows: Sequence[Row], pixels: Pixels, stem: str) -> Instances:
    categories = tuple(dict.fromkeys(row["category"] or "object" for row in rows)) or ("object",)
    numbers = {name: number for number, name in enumerate(categories)}
    entries = tuple(_instance(row, numbers[row["category"] or "object"]) for row in rows)
    return Instances(stem, f"/{item.name}", pixels, entries, categories=categories)


def _instance(row: Row, category: int) -> Instance:
    size = row["height"], row["width"]
    runs, _ = read_rle({"size": list(size), "counts": row["counts"]}, max_pixels=size[0] * size[1])
    x, y, width, height = row["crop_box"] or (0, 0, row["width"], row["height"])
    more: dict[str, Any] = {}
    if row["object"] is not None:
        more["place"] = row["object"], row["mask"]
    else:
        more["bbox_xywh"] = tuple(row["bbox"])
    return Instance(
        runs=runs,
        size=size,
        score=row["predicted_iou"],
        category=category,
        point_coords=tuple((px, py) for px, py in row["point_coords"] or ()),
        stability_score=row["stability_score"],
        crop_box=(int(x), int(y), int(width), int(height)),
        **more,
    )


def retry(place: str | os.PathLike[str], out: str | os.PathLike[str], reasons: Sequence[str] = ()) -> Plan:
    """Plan a new run of the pictures that have no answer, as they are now, with the options of the old one.

    Parameters
    ----------
    place
        Folder of a finished run.
    out
        Folder of the new one.
    reasons
        Of the pictures that are tried again; all when left out.

    Raises
    ------
    InputError
        ``nothing_found`` when there is none.
    BundleError
        ``not_finished``.
    """
    folder = open_folder(place)
    plan = read_plan(folder)
    ledger, items = Ledger(folder, plan.shards), Items(folder, plan)
    ledger.require_finished()
    commits = list(ledger.read_commits())
    wanted = {entry.id for commit in commits for entry in commit.quarantined if not reasons or entry.code in reasons}
    if not wanted:
        known = ", ".join(sorted({entry.code for commit in commits for entry in commit.quarantined})) or "none"
        message = f"no picture is without an answer for {option('reason')} {', '.join(reasons)}; there are {known}"
        raise InputError(message, code="nothing_found")
    again = (
        renewed(item)
        for commit in commits
        if commit.quarantined
        for item in items.of(commit.shard)
        if item.id in wanted
    )
    return write_plan(again, plan.source, open_folder(out), plan.options)
