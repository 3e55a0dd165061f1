# SPDX-License-Identifier: Apache-2.0
"""``segship run``."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from segship.backends.session import RunOptions
from segship.cli.everything import AMG
from segship.cli.options import (
    INPUT_GROUP,
    MODEL_GROUP,
    OUTPUT_GROUP,
    Fields,
    Force,
    Json,
    Option,
    command,
    in_group,
)
from segship.cli.output import dump_json, make_table, megabytes, plain, progress_bar, results_console
from segship.errors import InputError
from segship.images import ImageLimits
from segship.promptable.everything.options import AmgOptions
from segship.run.exporting import export, retry
from segship.run.local import ITEM_TIMEOUT
from segship.run.plan import Plan, PlanOptions, make_plan, read_plan
from segship.run.ray import RayExecutor
from segship.run.report import duration, write_report
from segship.run.running import Estimate, Status, collect_garbage, estimate, read_starts, start, status, verify
from segship.run.stages import Occupancy, Schedule, draw_graph, draw_graphviz
from segship.run.storage import open_folder
from segship.run.work import stage_names

PLAN_GROUP = Group("The plan", sort_key=-0.95)
ACTIONS = ("plan", "estimate", "start", "status", "report", "verify", "export", "retry", "gc")
_USAGE = (
    "`segship run SOURCE -o RUN`, or plan SOURCE -o RUN, estimate RUN, start RUN, status RUN, report RUN -o FILE.html, "
    "verify RUN, export RUN -o FOLDER, retry RUN -o OTHER, gc RUN; a source that is called like one of these is ./plan"
)
_WITH_OUT = ("export", "retry", "report")
_TO_START = {"schedule", "show_graph", "executor", "workers", "item_timeout", "max_quarantine"}
_TAKEN = {
    "all": _TO_START,
    "start": _TO_START,
    "estimate": {"workers", "price_per_hour"},
    "status": {"watch", "show_graph"},
    "report": {"overwrite"},
    "export": {"overwrite", "format"},
    "retry": {"reason"},
}
"""Which of the options that are none of a plan each action takes."""
_WATCH_SECONDS = 5.0
DONE_WITH_QUARANTINE = 7
"""The exit code of a run that is done, and has pictures without an answer."""


def _amg(**given: Any) -> AmgOptions | None:
    return AMG.make(**given) if given and AMG.make is not None else None


def _limits(**given: Any) -> ImageLimits | None:
    return ImageLimits(**given) if given else None


def _as_given(**given: Any) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value not in (None, {})}


GIVEN = Fields(
    _as_given,
    amg=Fields(_amg, **{**AMG.fields, "deadline_seconds": None}),
    limits=Fields(
        _limits,
        pixels=Option(name="--max-pixels", help="Take images of up to this many pixels.", group=INPUT_GROUP),
        bytes=None,
        side=None,
        aspect_ratio=None,
    ),
    bundle=Option(name=("--bundle", "--model"), group=MODEL_GROUP),
    run=Fields(_as_given, MODEL_GROUP, compile=None, streams=None),
    **in_group(PLAN_GROUP, "task", "multimask_output", "clip", "flip", "shard_items", "shard_bytes"),
)


@command
def run(
    *words: Annotated[str, Parameter(help="A source; or one of the actions below, and a source or run.")],
    options: Annotated[PlanOptions, GIVEN],
    out: Annotated[
        str | None,
        Parameter(
            name=("--out", "-o"), help="Folder or s3:// address of the run, or what is written.", group=OUTPUT_GROUP
        ),
    ] = None,
    schedule: Annotated[Schedule, Parameter(group=MODEL_GROUP)] = "serial",
    show_graph: Annotated[Literal["mermaid", "graphviz"] | None, Parameter(group=OUTPUT_GROUP)] = None,
    executor: Annotated[Literal["local", "ray"], Parameter(group=MODEL_GROUP)] = "local",
    address: Annotated[str | None, Parameter(group=MODEL_GROUP)] = None,
    gpus: Annotated[float, Parameter(group=MODEL_GROUP)] = 0.0,
    workers: Annotated[int | None, Parameter(group=MODEL_GROUP)] = None,
    item_timeout: Annotated[float, Parameter(group=MODEL_GROUP)] = ITEM_TIMEOUT,
    max_quarantine: Annotated[float | None, Parameter(group=MODEL_GROUP)] = None,
    price_per_hour: Annotated[float | None, Parameter(group=OUTPUT_GROUP)] = None,
    watch: Annotated[bool, Parameter(group=OUTPUT_GROUP, negative="")] = False,
    format: Annotated[tuple[str, ...], Parameter(group=OUTPUT_GROUP, negative="")] = ("coco",),
    reason: Annotated[tuple[str, ...], Parameter(group=OUTPUT_GROUP, negative="")] = (),
    overwrite: Force = False,
    json: Json = False,
) -> int:
    """Segment any number of pictures into Parquet, each exactly once.

    A source is a folder, a .txt with a path a line, a .csv or .parquet with a column image and prompts, tar archives,
    or s3://bucket/prefix. What was begun goes on where it stands, whatever has ended it: start it again. Actions: plan,
    estimate, start, status, report, verify, export, retry, gc. Exit codes of its own: 7 done, and pictures are without
    an answer; 8 ended by --max-quarantine.

    Parameters
    ----------
    schedule
        Of the stages of a worker: one picture after the other, each stage in a thread, or all but the last beside the
        last; results do not depend on it.
    show_graph
        Draw the stages and, after a run, how busy each was.
    executor
        Processes of this machine, or a Ray cluster, all of whose machines see the folder of the run.
    address
        Of the Ray cluster; a new one on this machine when left out.
    gpus
        With ray: of a GPU that each shard takes.
    format
        With export: formats of masks, as `segship everything` has them; once each.
    reason
        With retry: why pictures have no answer that are tried again; all of them when left out.
    workers
        Shards that are worked on at once; one for each usable core when left out.
    item_timeout
        Seconds after which a picture is given up; the second time it is left out as timed_out.
    max_quarantine
        End when more pictures than this are without an answer; below 1 it is a share of all, such as 0.05.
    price_per_hour
        With estimate: of all workers together.
    watch
        With status: every five seconds, until the run is finished.

    Examples
    --------
    segship run photos -o run --points-per-side 16
    segship run status run
    segship run verify run
    """
    given: dict[str, Any] = options  # type: ignore[assignment]
    action, place = _understood(words)
    more = {"schedule": schedule != "serial", "executor": executor != "local", "address": address, "gpus": gpus}
    more |= {"item_timeout": item_timeout != ITEM_TIMEOUT, "format": format != ("coco",), "reason": bool(reason)}
    more |= {"workers": workers is not None, "max_quarantine": max_quarantine is not None, "show_graph": show_graph}
    more |= {"price_per_hour": price_per_hour is not None, "watch": watch, "overwrite": overwrite}
    _check_taken(action, executor, {name for name, is_given in more.items() if is_given})
    if action in ("plan", "all"):
        if out is None:
            raise InputError("the folder of the run is missing; give it with --out", code="bad_option")
        plan = _plan(place, out, given)
        if action == "plan":
            return _tell_plan(plan, out, json)
    elif given or (out is None) == (action in _WITH_OUT):
        needs = "needs --out, and" if action in _WITH_OUT else "takes no --out and"
        message = f"{action} goes on with what was planned: it {needs} takes no options of a plan"
        raise InputError(message, code="bad_option")
    if action in ("all", "start"):
        folder = place if out is None else out
        by = RayExecutor(address, workers, gpus, schedule, item_timeout) if executor == "ray" else None
        with _going_on(folder), progress_bar(folder) as tick:
            found = start(
                folder,
                workers=workers,
                schedule=schedule,
                item_timeout=item_timeout,
                executor=by,
                max_quarantine=max_quarantine,
                told=tick,
            )
        return _tell_status(found, folder, json, _graph(folder, schedule, show_graph))
    if out is not None:
        return _write(action, place, out, format, reason, overwrite=overwrite, json=json)
    if action == "estimate":
        return _tell_estimate(estimate(place, workers=workers, price_per_hour=price_per_hour), json)
    if action == "status":
        graph = _graph(place, schedule, show_graph)
        return _watch(place, json, graph) if watch else _tell_status(status(place), place, json, graph)
    if action == "verify":
        return _tell(verify(place), json, "each picture is there exactly once, and every byte as it was committed")
    return _tell({"deleted": collect_garbage(place)}, json, "what nobody needs is deleted")


def _write(
    action: str,
    place: str,
    out: str,
    formats: tuple[str, ...],
    reasons: tuple[str, ...],
    *,
    overwrite: bool,
    json: bool,
) -> int:
    """Write what is made of a run."""
    if action == "retry":
        return _tell_plan(retry(place, out, reasons), out, json)
    if action == "report":
        write_report(place, out, overwrite=overwrite)
        return _tell({"report": out}, json, f"the report is {plain(out)}")
    with progress_bar(place) as tick:
        count = export(place, out, formats, overwrite=overwrite, told=tick)
    return _tell({"pictures": count, "formats": list(formats)}, json, f"{count:,} pictures in {plain(out)}")


@contextmanager
def _going_on(folder: str) -> Iterator[None]:
    """Say after an interrupt how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        message = f"interrupted; what is committed stays, and this goes on: segship run start {shlex.quote(folder)}"
        raise KeyboardInterrupt(message) from None


def _check_taken(action: str, executor: str, given: set[str]) -> None:
    """Refuse what an action would leave aside."""
    taken = _TAKEN.get(action, set()) | ({"address", "gpus"} if executor == "ray" and "executor" in given else set())
    for name in sorted(given - taken):
        by = " or ".join(action for action, options in _TAKEN.items() if name in options and action != "all")
        message = f"--{name.replace('_', '-')} is for {by or '--executor ray'}, and would do nothing here; leave it out"
        raise InputError(message, code="bad_option")


def _graph(folder: str, schedule: Schedule, form: str | None) -> str | None:
    if form is None:
        return None
    opened = open_folder(folder)
    names = ["read", *stage_names(read_plan(opened).options)]
    starts = read_starts(opened)
    occupancy = Occupancy()
    if starts:
        occupancy.add(starts[-1]["occupancy"])
        schedule = starts[-1]["schedule"]
    draw = draw_graph if form == "mermaid" else draw_graphviz
    return draw(names, schedule, occupancy.shares if occupancy.total else None)


def _understood(words: tuple[str, ...]) -> tuple[str, str]:
    """Return what is to be done and with which source or run."""
    if len(words) == 2 and words[0] in ACTIONS:
        return words[0], words[1]
    if len(words) == 1 and words[0] not in ACTIONS:
        return "all", words[0]
    found = " ".join(words) or "nothing"
    raise InputError(f"{found} is not understood; accepted are {_USAGE}", code="bad_option")


def _plan(source: str, out: str, given: dict[str, Any]) -> Plan:
    parts = dict(given)
    if "run" in parts:
        parts["run"] = RunOptions(**{"threads": 1, **parts["run"]})
    return make_plan(source, open_folder(out), PlanOptions(**parts))


def _tell_plan(plan: Plan, out: str, json: bool) -> int:
    found = {"items": plan.items, "shards": plan.shards, "bytes": plan.size, "fingerprint": plan.fingerprint}
    if json:
        print(dump_json({"run": out, **found}))
        return 0
    console = results_console()
    console.print(f"pictures: {plan.items:,} ({megabytes(plan.size)}), in shards: {plan.shards:,}")
    console.print(f"what it will take: segship run estimate {plain(shlex.quote(out))}")
    console.print(f"begin: segship run start {plain(shlex.quote(out))}")
    return 0


def _tell_estimate(found: Estimate, json: bool) -> int:
    if json:
        print(dump_json(found.to_dict()))
        return 0
    expected, low, high = map(duration, found.seconds)
    rows = [
        ("pictures to do", f"{found.items:,}"),
        ("a picture", f"{found.seconds_each:.3g} s on one worker, mean of {found.samples} samples"),
        ("the run", f"{expected} with {found.workers} workers; 95% interval {low} to {high}"),
    ]
    if found.price is not None:
        cost, least, most = (f"{price:,.2f}" if price >= 1 else f"{price:.2g}" for price in found.price)
        rows.append(("price", f"{cost}; {least} to {most}"))
    if found.without_answer:
        rows.append(("without an answer", f"{found.without_answer} of the samples"))
    console = results_console()
    console.print(make_table(("", ""), rows))
    console.print("if the others are like the samples, and each worker has a core like those of this machine")
    return 0


def _watch(folder: str, json: bool, graph: str | None) -> int:
    while not (found := status(folder)).sealed:
        _tell_status(found, folder, json)
        time.sleep(_WATCH_SECONDS)
    return _tell_status(found, folder, json, graph)


def _tell_status(found: Status, folder: str, json: bool, graph: str | None = None) -> int:
    more = {} if graph is None else {"graph": graph}
    if json:
        print(dump_json({"run": folder, **found.to_dict(), **more}), flush=True)
    else:
        print(graph or "", end="")
        lost = ", ".join(f"{count:,} {name}" for name, count in found.quarantined.items())
        rows = [
            ("pictures answered", f"{found.done:,} of {found.items:,}"),
            ("without an answer", lost or "none"),
            ("shards", f"{found.committed:,} of {found.shards:,}"),
            ("masks", f"{found.rows:,}, {megabytes(found.size)}"),
            ("pictures an hour", _rate(found)),
            ("time left", "" if found.seconds_left is None else duration(found.seconds_left)),
            ("last commit", "" if found.since_commit is None else f"{duration(found.since_commit)} ago"),
            ("finished", f"yes, {found.root}" if found.sealed else "no"),
        ]
        console = results_console()
        console.print(make_table(("", ""), rows))
        if found.sealed and found.quarantined:
            console.print(f"which: segship run report {plain(shlex.quote(folder))} -o report.html")
            console.print(f"again, once they are mended: segship run retry {plain(shlex.quote(folder))} -o OTHER")
    return DONE_WITH_QUARANTINE if found.sealed and found.quarantined else 0


def _rate(found: Status) -> str:
    if found.per_hour is None or found.per_hour_now is None:
        return ""
    return f"{found.per_hour:,.0f}" + ("" if found.sealed else f", {found.per_hour_now:,.0f} now")


def _tell(found: dict[str, Any], json: bool, words: str) -> int:
    if json:
        print(dump_json(found))
    else:
        results_console().print(words)
    return 0
