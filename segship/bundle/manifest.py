# SPDX-License-Identifier: Apache-2.0
"""What ``manifest.json`` of a bundle says: what the model is, where it came from, its artifacts and its evidence.

`Manifest` is what all tasks share; each task adds fields of its own in its module `manifest`, and ``task`` tells which
a file is. Fields are the dataclasses that the code works with, validated strictly: unknown keys, wrong types and
numbers that are not finite are refused. The JSON schema stands in ``docs/manifest.schema.json``. A manifest without
artifacts describes a model that runs straight from its checkpoint. Its last key, ``manifest_sha256``, is its own digest
(`segship.bundle.documents`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from segship.bundle.artifacts import Artifact, FileBytes, Name, Sha256
from segship.bundle.documents import Document
from segship.bundle.evidence import Check, Choice, Evidence, Label, Text
from segship.errors import BundleError, way
from segship.spec import GraphSpec

MANIFEST_FILE = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20
FORMAT_VERSION = 2
TASKS: dict[str, str] = {"promptable": "segship.promptable.task", "semantic": "segship.semantic.task"}
"""Task -> the module that has its verbs, imported when a manifest names it."""

DOCUMENT = Document(
    file=MANIFEST_FILE,
    key="manifest_sha256",
    version=FORMAT_VERSION,
    most_bytes=MAX_MANIFEST_BYTES,
    code="bad_manifest",
    mend="export the bundle again or fetch it anew",
    mend_older="export it again: `segship export CHECKPOINT -o BUNDLE --force`",
)


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """The weight file that the graphs were made from; ``known`` if its digest is that of a published one."""

    name: Annotated[str, Field(min_length=1, max_length=255)]
    bytes: FileBytes
    sha256: Sha256
    licence: Text
    known: bool


@dataclass(frozen=True, slots=True)
class TemplateOrigin:
    """The template that the graphs were filled from, without torch: its name and digest, and what that proves."""

    name: Text
    sha256: Sha256
    proven: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What manifests of all tasks say.

    Attributes
    ----------
    task
        A key of `TASKS`.
    family, architecture
        How the weights are laid out, and which of its sizes they are.
    graphs
        The contract of every graph as this bundle has it: with its fixed sizes, if it has any.
    artifacts
        The files of the graphs.
    checkpoint
        Where the weights came from.
    changes
        What was changed in them, in words.
    tools
        The versions of everything that shaped the graphs.
    template
        Where the graphs came from, if they were not traced from these weights.
    evidence
        The graphs held against their model; where they are of a template, against each other.
    checks
        Backends held against the graphs and timed; `segship.tune` makes them, `segship.backends.choice` decides by
        them.
    choice
        What was taken under a budget, which ``auto`` follows on the machine that it was measured on.
    created
        Date and time in UTC.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    added: ClassVar[frozenset[str]] = frozenset({"template", "choice"})
    """Fields that came later. A file says them only where they say something, so that an older segship reads it."""

    format_version: Literal[2] = 2
    task: Label
    family: Label
    architecture: Label
    graphs: Annotated[tuple[GraphSpec, ...], Field(max_length=16)] = ()
    artifacts: Annotated[tuple[Artifact, ...], Field(max_length=256)] = ()
    checkpoint: CheckpointFile
    changes: Annotated[tuple[Text, ...], Field(max_length=1000)] = ()
    tools: Annotated[dict[Name, Text], Field(max_length=100)]
    template: TemplateOrigin | None = None
    evidence: Evidence | None = None
    checks: Annotated[tuple[Check, ...], Field(max_length=64)] = ()
    choice: Choice | None = None
    created: Annotated[str, Field(max_length=64)]

    @property
    def contracts(self) -> dict[str, GraphSpec]:
        """The contract of every graph that a bundle of this task may have."""
        raise NotImplementedError

    @property
    def graph_sets(self) -> tuple[frozenset[str], ...]:
        """The sets of graphs of which a bundle has exactly one; each holds the first."""
        raise NotImplementedError

    @property
    def first_graph(self) -> str:
        """The graph whose digest ties what it makes to this bundle."""
        raise NotImplementedError

    @property
    def exact_only(self) -> bool:
        """Whether the graphs must not be compiled for another precision than fp32."""
        return False

    def graph_kind(self, graph: str) -> str:
        """Return which operators a graph may hold: a key of `segship.bundle.onnx_rules.OPERATORS`."""
        return graph

    def adapt(self, sessions: dict[str, Any]) -> dict[str, Any]:
        """Return what the task runs, from the sessions of the artifacts by graph; those themselves but for foreign."""
        return sessions

    def graph_spec(self, graph: str) -> GraphSpec:
        """Return the contract of one graph as this bundle has it."""
        return next(spec for spec in self.graphs if spec.name == graph)

    def artifact(self, graph: str, precision: str = "fp32") -> Artifact:
        """Return the artifact of a graph in a precision, or else in fp32, which a backend may run in another.

        Raises
        ------
        BundleError
            ``unknown_graph``; ``precision_unavailable`` when there is neither.
        """
        found = {artifact.precision: artifact for artifact in self.artifacts if artifact.graph == graph}
        if not found:
            names = ", ".join(spec.name for spec in self.graphs)
            raise BundleError(f"the bundle has no graph {graph!r}; it has {names}", code="unknown_graph")
        chosen = found.get(precision) or found.get("fp32")  # type: ignore[call-overload]
        if chosen is None:
            message = (
                f"precision {precision!r} was asked for, and the bundle holds {graph} in {', '.join(found)}; "
                f"ask for that: {way('precision=', '--precision ')}{next(iter(found))}"
            )
            raise BundleError(message, code="precision_unavailable")
        return chosen

    def to_json(self) -> bytes:
        """Return the bytes of ``manifest.json``: UTF-8, indented, keys in the order of the fields, the digest last."""
        later = [field for field in fields(self) if field.name in self.added]
        needless = {field.name for field in later if getattr(self, field.name) == field.default}
        return DOCUMENT.write(type(self), self, needless)


@cache
def task_module(task: str) -> ModuleType:
    """Return the module with the verbs of a task: ``Manifest``, cases, answer, compare, open, timings, bar."""
    return import_module(TASKS[task])


def manifest_schema() -> dict[str, Any]:
    """Return the JSON schema of ``manifest.json``."""
    schemas = [TypeAdapter(task_module(task).Manifest).json_schema() for task in TASKS]
    definitions = {name: value for schema in schemas for name, value in schema.pop("$defs", {}).items()}
    for schema in schemas:
        schema["properties"]["manifest_sha256"] = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
        schema["required"].append("manifest_sha256")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "manifest.json",
        "oneOf": schemas,
        "$defs": definitions,
    }


def parse_manifest(data: bytes) -> Manifest:
    """Return the manifest that stands in the bytes of ``manifest.json``: that of its task.

    Raises
    ------
    BundleError
        ``bad_manifest``; ``unknown_format_version`` when another segship wrote it; ``changed_file`` when a byte of it
        was changed since it was written.
    """
    task = DOCUMENT.parse(data).get("task")
    if not isinstance(task, str) or task not in TASKS:
        raise DOCUMENT.bad(f"task: Input should be {' or '.join(map(repr, TASKS))}, and it is {str(task)[:40]!r}")
    manifest: Manifest = DOCUMENT.validate(task_module(task).Manifest, data)
    return manifest
