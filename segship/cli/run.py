# SPDX-License-Identifier: Apache-2.0
"""``segship run``."""

from __future__ import annotations

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
from segship.machine import usable_cores
from segship.promptable.everything.options import AmgOptions
from segship.run.exporting import export, retry
from segship.run.local import Executor, LocalExecutor
from segship.run.plan import Plan, PlanOptions, make_plan, read_plan
from segship.run.running import Status, collect_garbage, start, status, verify
from segship.run.stages import Schedule, draw_graph, draw_graphviz
from segship.run.storage import open_folder
from segship.run.work import stage_names

PLAN_GROUP = Group("The plan", sort_key=-0.95)
ACTIONS = ("plan", "start", "status", "verify", "export", "retry", "gc")
_USAGE = (
    "`segship run SOURCE -o RUN`, or plan SOURCE -o RUN, start RUN, status RUN, verify RUN, export RUN -o FOLDER, "
    "retry RUN -o OTHER, gc RUN; a source that is called like one of these is ./plan"
)
_WITH_OUT = ("export", "retry")
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
    *words: Annotated[
        str, Parameter(help="A source; or plan, start, status, verify, export, retry or gc, and a source or run.")
    ],
    options: Annotated[PlanOptions, GIVEN],
    out: Annotated[str | None, Parameter(name=("--out", "-o"), help="Folder of the run.", group=OUTPUT_GROUP)] = None,
    schedule: Annotated[Schedule, Parameter(group=MODEL_GROUP)] = "serial",
    show_graph: Annotated[Literal["mermaid", "graphviz"] | None, Parameter(group=OUTPUT_GROUP)] = None,
    executor: Annotated[Literal["local", "ray"], Parameter(group=MODEL_GROUP)] = "local",
    address: Annotated[str | None, Parameter(group=MODEL_GROUP)] = None,
    gpus: Annotated[float, Parameter(group=MODEL_GROUP)] = 0.0,
    workers: Annotated[int | None, Parameter(group=MODEL_GROUP)] = None,
    format: Annotated[tuple[str, ...], Parameter(group=OUTPUT_GROUP, negative="")] = ("coco",),
    reason: Annotated[tuple[str, ...], Parameter(group=OUTPUT_GROUP, negative="")] = (),
    overwrite: Force = False,
    json: Json = False,
) -> int:
    """Segment any number of pictures into Parquet, each exactly once.

    A source is a folder, a .txt with a path a line, a .csv or .parquet with a column image and prompts, or tar
    archives. What was begun goes on where it stands, whatever has ended it: start it again.

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

    Examples
    --------
    segship run photos -o run --points-per-side 16
    segship run status run
    segship run verify run
    """
    given: dict[str, Any] = options  # type: ignore[assignment]
    action, place = _understood(words)
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
    folder = out if action == "all" and out is not None else place
    if action in ("all", "start"):
        by = _executor(executor, address, workers, gpus, schedule)
        with progress_bar(folder) as tick:
            found = start(folder, executor=by, told=tick)
        _show_graph(folder, by, schedule, show_graph)
        return _tell_status(found, folder, json)
    if action == "export" and out is not None:
        with progress_bar(folder) as tick:
            count = export(place, out, format, overwrite=overwrite, told=tick)
        return _tell({"pictures": count, "formats": list(format)}, json, f"{count:,} pictures in {plain(out)}")
    if action == "retry" and out is not None:
        return _tell_plan(retry(place, out, reason), out, json)
    if action == "status":
        return _tell_status(status(folder), folder, json)
    if action == "verify":
        return _tell(verify(folder), json, "each picture is there exactly once, and every byte as it was committed")
    return _tell({"deleted": collect_garbage(folder)}, json, "what nobody needs is deleted")


def _executor(kind: str, address: str | None, workers: int | None, gpus: float, schedule: Schedule) -> Executor:
    if kind == "ray":
        from segship.run.ray import RayExecutor

        return RayExecutor(address, workers, gpus, schedule)
    return LocalExecutor(usable_cores() if workers is None else workers, schedule)


def _show_graph(folder: str, executor: Executor, schedule: Schedule, form: str | None) -> None:
    if form is None:
        return
    names = ["read", *stage_names(read_plan(open_folder(folder)).options)]
    shares = executor.occupancy.shares if isinstance(executor, LocalExecutor) and executor.occupancy.total else None
    draw = draw_graph if form == "mermaid" else draw_graphviz
    print(draw(names, schedule, shares), end="")


def _understood(words: tuple[str, ...]) -> tuple[str, str]:
    """Return what is to be done and with which source or run."""
    if len(words) == 2 and words[0] in ACTIONS:
        return words[0], words[1]
    if len(words) == 1 and words[0] not in ACTIONS:
        return "all", words[0]
    found = " ".join(words) or "nothing"
    raise InputError(f"{found} is not understood; accepted are {_USAGE}", code="bad_option")


def _plan(source: str, out: str, given: dict[str, Any]) -> Plan:
    parts = {name: value for name, value in given.items() if value}
    if "run" in parts:
        parts["run"] = RunOptions(**{"threads": 1, **parts["run"]})
    return make_plan(source, open_folder(out), PlanOptions(**parts))


def _tell_plan(plan: Plan, out: str, json: bool) -> int:
    found = {"items": plan.items, "shards": plan.shards, "bytes": plan.size, "fingerprint": plan.fingerprint}
    if json:
        print(dump_json({"run": out, **found}))
        return 0
    console = results_console()
    console.print(f"{plan.items:,} pictures ({megabytes(plan.size)}) in {plan.shards:,} shards")
    console.print(f"begin: segship run start {plain(out)}")
    return 0


def _tell_status(found: Status, folder: str, json: bool) -> int:
    if json:
        print(dump_json({"run": folder, **found.to_dict()}))
    else:
        told = found.to_dict()
        lost = ", ".join(f"{count:,} {name}" for name, count in found.quarantined.items())
        rows = [
            ("pictures answered", f"{found.done:,} of {found.items:,}"),
            ("without an answer", lost or "none"),
            ("shards", f"{found.committed:,} of {found.shards:,}"),
            ("masks", f"{found.rows:,}, {megabytes(found.size)}"),
            ("pictures an hour", "" if told["per_hour"] is None else f"{told['per_hour']:,}"),
            ("finished", f"yes, {found.root}" if found.sealed else "no"),
        ]
        results_console().print(make_table(("", ""), rows))
    return DONE_WITH_QUARANTINE if found.sealed and found.quarantined else 0


def _tell(found: dict[str, Any], json: bool, words: str) -> int:
    if json:
        print(dump_json(found))
    else:
        results_console().print(words)
    return 0
