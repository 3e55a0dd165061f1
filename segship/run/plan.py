# SPDX-License-Identifier: Apache-2.0
"""The plan of a run: what is asked of which pictures, in shards, written once and never changed.

Its fingerprint names everything that the answers depend on. Items are in the order of their ids, and shards are row
groups of one Parquet file, so that a worker reads its own alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from segship.arrays import IntArray
from segship.backends.session import RunOptions
from segship.errors import BackendUnavailable, BundleError, InputError, option, shown, way
from segship.images import ImageLimits
from segship.options import check_types, check_whole
from segship.promptable.everything.options import AmgOptions
from segship.promptable.prediction import MaskChoice
from segship.run.sources import Item, find_items
from segship.run.storage import Folder
from segship.writers.tables import has_pyarrow

Task = Literal["everything", "prompts", "semantic"]
PLAN, ITEMS = "plan.json", "items.parquet"
FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What a run asks of every picture.

    Attributes
    ----------
    task
        ``everything``, ``prompts`` from the source's table, or ``semantic`` classes.
    bundle
        Which model.
    amg
        What to look for, in ``everything``.
    multimask_output
        Which masks come out, for ``prompts``.
    clip
        Move points outside a picture to its edge.
    flip
        The mirrored picture too, for ``semantic``.
    shard_items, shard_bytes
        A shard ends at so many pictures or bytes of them, whichever comes first. Left out, pictures are a 64th of all,
        from 4 to 256: what one worker does while others have nothing left to do, and what is done again after a crash.
    limits
        Bounds that a picture must keep.
    run
        What runs the model. Threads are part of the plan, since sums depend on them.
    """

    task: Task = "everything"
    bundle: str = "tiny"
    amg: AmgOptions = field(default_factory=AmgOptions)
    multimask_output: MaskChoice = "auto"
    clip: bool = False
    flip: bool = False
    shard_items: int | None = None
    shard_bytes: int = 64 * 2**20
    limits: ImageLimits = field(default_factory=ImageLimits)
    run: RunOptions = field(default_factory=lambda: RunOptions(threads=1))

    def __post_init__(self) -> None:
        check_types(self)
        if self.shard_items is not None:
            check_whole(self, 1, 100_000, "shard_items")
        check_whole(self, 1, 2**40, "shard_bytes")
        if self.amg.deadline_seconds is not None:
            message = f"{option('deadline_seconds')} makes answers depend on the machine's speed; leave it out"
            raise InputError(message, code="bad_option")

    def to_dict(self) -> dict[str, Any]:
        """Return every option for `json.dumps`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> PlanOptions:
        """Return the options that `to_dict` gave."""
        parts = {"amg": AmgOptions, "limits": ImageLimits, "run": RunOptions}
        return cls(**{name: parts[name](**value) if name in parts else value for name, value in found.items()})


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan that was written.

    Attributes
    ----------
    options
        What is asked.
    model
        Place and digest of the bundle.
    items, shards, size
        How many there are, and bytes of the pictures.
    fingerprint
        SHA-256 of all that answers depend on.
    source
        As it was given.
    versions
        With which it was planned; none in plans that have not noted them.
    """

    options: PlanOptions
    model: dict[str, str]
    items: int
    shards: int
    size: int
    fingerprint: str
    source: str
    versions: dict[str, str] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return the file of the plan."""
        document = {"format": FORMAT, "versions": self.versions}
        document |= {name: getattr(self, name) for name in _FIELDS}
        document["options"] = self.options.to_dict()
        return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


_FIELDS = ("model", "items", "shards", "size", "fingerprint", "source")


def make_plan(source: str | os.PathLike[str], folder: Folder, options: PlanOptions) -> Plan:
    """Find the pictures of a source and write the plan of a run; the same plan again changes nothing.

    Raises
    ------
    InputError
        ``nothing_found``, ``same_name``, ``other_plan`` where the folder has another plan, or what `find_items` says.
    BackendUnavailable
        ``pyarrow_missing``.
    """
    return write_plan(find_items(source), os.fspath(source), folder, options)


def write_plan(items: Iterable[Item], source: str, folder: Folder, options: PlanOptions) -> Plan:
    """Write the plan of a run of items that were found; errors are those of `make_plan`."""
    require_pyarrow()
    model = _model(options)
    found = _sorted(items)
    if not len(found["id"]):
        raise InputError(f"there is no picture in {shown(source)}", code="nothing_found")
    if options.task == "prompts" and not any(found["prompts"].to_pylist()):
        message = f"{shown(source)} has no prompts; give a .csv or .parquet with prompts, x and y, or x0, y0, x1 and y1"
        raise InputError(message, code="no_prompts")
    sizes = found["bytes"].to_numpy()
    groups = _shards(sizes, options)
    data = _encode(found, groups)
    used = versions()
    plan = Plan(
        options,
        model,
        len(found["id"]),
        len(groups),
        int(sizes[sizes > 0].sum()),
        _fingerprint(options, model["digest"], data, used),
        source,
        used,
    )
    folder.require_exclusive()
    # The items first: whoever sees a plan finds them.
    folder.create(f"plan/{plan.fingerprint[:16]}.{ITEMS}", data)
    if not folder.create(PLAN, plan.to_bytes()) and (there := read_plan(folder)).fingerprint != plan.fingerprint:
        message = (
            f"the folder has the run of another plan, of {shown(there.source)} ({_difference(there, plan)}); give "
            f"another folder, or go on with that one: {way('`start`', '`segship run start RUN`')}"
        )
        raise InputError(message, code="other_plan")
    return plan


def _fingerprint(options: PlanOptions, model: str, items: bytes, used: Mapping[str, str]) -> str:
    depends = {
        "items": hashlib.sha256(items).hexdigest(),
        "model": model,
        "options": {name: value for name, value in options.to_dict().items() if name != "bundle"},
        "versions": dict(used),
    }
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


def _difference(there: Plan, now: Plan) -> str:
    """Return in what a plan differs from one that is there."""
    found = [f"{name} {before}, now {after}" for name, before, after in _changed(_flat(there), _flat(now))]
    return ", ".join(found) or "other pictures, or others of them, than now"


def _flat(plan: Plan) -> dict[str, Any]:
    parts = {"model": plan.model["digest"][:8], "pictures": plan.items, **plan.versions}
    for name, value in plan.options.to_dict().items():
        parts |= value if isinstance(value, dict) else {name: value}
    del parts["bundle"]
    return parts


def _changed(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return what both have, and in which they differ."""
    return [(name, value, now[name]) for name, value in there.items() if name in now and now[name] != value]


def require_same(plan: Plan) -> None:
    """Refuse to work on a plan where its answers could differ.

    Raises
    ------
    BackendUnavailable
        ``other_versions`` than those it was planned with.
    BundleError
        ``other_model`` where its bundle was.
    """
    from segship.bundle import Bundle

    found = [f"{name} {before}, and here is {after}" for name, before, after in _changed(plan.versions, versions())]
    if found:
        message = (
            f"the run was planned with {', '.join(found)}; answers of one run come from one version: install that one, "
            "or plan another run"
        )
        raise BackendUnavailable(message, code="other_versions")
    place = plan.model["place"]
    if Bundle.open(place).digest != plan.model["digest"]:
        message = f"{place} is another model than when the run was planned; put that one back, or plan another run"
        raise BundleError(message, code="other_model")


def read_plan(folder: Folder) -> Plan:
    """Return the plan of a run.

    Raises
    ------
    BundleError
        ``no_plan``, or ``bad_plan`` for one that cannot be read, or that another version wrote.
    """
    try:
        found = json.loads(folder.read(PLAN))
        if found["format"] != FORMAT:
            message = f"the plan has the format {shown(found['format'])}; this version reads {FORMAT}"
            raise BundleError(message, code="bad_plan")
        known = {name: found[name] for name in _FIELDS}
        return Plan(PlanOptions.from_dict(found["options"]), **known, versions=dict(found.get("versions", {})))
    except FileNotFoundError:
        raise BundleError("there is no run here; plan one: `segship run plan SOURCE -o RUN`", code="no_plan") from None
    except (ValueError, KeyError, TypeError, InputError) as error:
        message = f"the plan of the run cannot be read: {shown(str(error))}"
        raise BundleError(message, code="bad_plan") from None


class Items:
    """The items of a plan, a shard at a time; ``bad_plan`` where the plan or they were changed or are missing."""

    def __init__(self, folder: Folder, plan: Plan) -> None:
        require_pyarrow()
        name = f"plan/{plan.fingerprint[:16]}.{ITEMS}"
        mend = "put them back from a copy, or plan the run into another folder"
        try:
            data = folder.read(name)
            self._file = import_module("pyarrow.parquet").ParquetFile(io.BytesIO(data))
        except FileNotFoundError:
            raise BundleError(f"{name} of the run is missing; {mend}", code="bad_plan") from None
        except ValueError as error:
            raise BundleError(f"{name} of the run cannot be read: {error}; {mend}", code="bad_plan") from None
        meant = _fingerprint(plan.options, plan.model["digest"], data, plan.versions)
        # Another version of this package may have more options, and then knows nothing of this fingerprint.
        is_changed = plan.versions.get("segship") == version("segship") and meant != plan.fingerprint
        if is_changed or (self._file.num_row_groups, self._file.metadata.num_rows) != (plan.shards, plan.items):
            raise BundleError(f"{PLAN} or {name} was changed after it was written; {mend}", code="bad_plan")

    def of(self, shard: int) -> list[Item]:
        """Return the items of a shard, in the plan's order."""
        rows = self._file.read_row_group(shard).to_pylist()
        return [Item(**{**row, "place": os.fsdecode(row["place"])}) for row in rows]


def require_pyarrow() -> None:
    """Refuse as ``pyarrow_missing`` where tables cannot be written."""
    if not has_pyarrow():
        message = 'a run writes Parquet, and pyarrow is not installed; pip install "segship[run]"'
        raise BackendUnavailable(message, code="pyarrow_missing")


def _model(options: PlanOptions) -> dict[str, str]:
    from segship.bundle import Bundle
    from segship.catalog import find_model

    place = find_model(options.bundle)
    if not place.is_dir():
        message = f"{place} is a checkpoint; make a bundle of it first: `segship bundle {place} -o BUNDLE`"
        raise BackendUnavailable(message, code="not_a_bundle")
    bundle = Bundle.open(place)
    wanted = "semantic" if options.task == "semantic" else "promptable"
    if bundle.manifest.task != wanted:
        message = f"{options.bundle} is a {bundle.manifest.task} model, and {options.task} needs a {wanted} one"
        raise InputError(message, code="other_family")
    return {"place": str(Path(place).resolve()), "digest": bundle.digest}


def versions() -> dict[str, str]:
    """Return versions on which the bytes of answers depend."""
    return {
        name: version(name)
        for name in ("segship", "numpy", "onnxruntime", "opencv-python-headless", "Pillow", "pyarrow")
    }


def _sorted(items: Iterable[Item]) -> Any:
    """Return items as a table in the order of their ids; two of one name are refused."""
    pyarrow = import_module("pyarrow")
    compute = import_module("pyarrow.compute")
    columns: dict[str, list[Any]] = {name: [] for name in Item._fields}
    parts = []
    for item in items:
        for name, value in zip(Item._fields, item, strict=True):
            columns[name].append(os.fsencode(str(value)) if name == "place" else _storable(value))
        if len(columns["id"]) >= _PART:
            parts.append(_table(pyarrow, columns))
            columns = {name: [] for name in Item._fields}
    parts.append(_table(pyarrow, columns))
    table = pyarrow.concat_tables(parts)
    del parts, columns
    order = compute.sort_indices(table["id"])
    # Column by column, so that never more than one is there twice; and what they leave goes back at once.
    for index, name in enumerate(Item._fields):
        table = table.set_column(index, table.schema.field(index), table[name].combine_chunks().take(order))
        pyarrow.default_memory_pool().release_unused()
    ids = table["id"].combine_chunks()
    twice = compute.equal(ids[1:], ids[:-1])
    if compute.any(twice).as_py():
        name = table["name"][compute.index(twice, True).as_py()].as_py()
        message = (
            f"two pictures have the name {shown(name)}; each must be there once: all prompts of a picture stand in one "
            "row, in the column prompts"
        )
        raise InputError(message, code="same_name")
    return table


# Rows that are Python's own before they are a table's.
_PART = 20_000


def _storable(value: Any) -> Any:
    # Names that are no text keep their bytes in an escaped form, which no file name has.
    return (
        value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        if isinstance(value, str)
        else value
    )


def _table(pyarrow: Any, columns: Mapping[str, list[Any]]) -> Any:
    kinds = dict.fromkeys(("offset", "bytes", "changed"), pyarrow.int64()) | {"place": pyarrow.binary()}
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in Item._fields])
    return pyarrow.table(dict(columns), schema=schema)


_SHARDS, _LEAST_ITEMS, _MOST_ITEMS = 64, 4, 256


def _shards(sizes: IntArray, options: PlanOptions) -> list[tuple[int, int]]:
    """Return first and last row, half-open, of each shard."""
    most = options.shard_items or min(max(math.ceil(len(sizes) / _SHARDS), _LEAST_ITEMS), _MOST_ITEMS)
    shards, begin, held = [], 0, 0
    for row, size in enumerate(sizes.tolist()):
        if row > begin and (row - begin >= most or held + max(size, 0) > options.shard_bytes):
            shards.append((begin, row))
            begin, held = row, 0
        held += max(size, 0)
    return [*shards, (begin, len(sizes))]


def _encode(table: Any, shards: list[tuple[int, int]]) -> bytes:
    parquet, stream = import_module("pyarrow.parquet"), io.BytesIO()
    with parquet.ParquetWriter(stream, table.schema, compression="zstd") as writer:
        for begin, end in shards:
            writer.write_table(table.slice(begin, end - begin), row_group_size=max(1, end - begin))
    return stream.getvalue()
