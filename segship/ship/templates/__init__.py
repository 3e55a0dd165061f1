# SPDX-License-Identifier: Apache-2.0
"""Graphs of known architectures without weights: a checkpoint becomes a bundle in seconds, without torch.

The graph of an architecture is always the same; only its weights differ. `segship.ship.templates.making` traces each
once, and the files beside this one keep them: a graph, and a small one that makes its weights of the checkpoint's
tensors (`segship.ship.graph.fill`). `segship.ship.templates.bundling` fills them.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segship.arrays import AnyArray
from segship.bundle.manifest import TemplateOrigin
from segship.errors import BundleError
from segship.ship.graph.fill import Template
from segship.spec import Dimension

FOLDER = Path(__file__).parent
FORMAT = 1
INDEX_FILE = "index.json"
PROVEN = (
    "the graphs were held against the torch model on other weights when the template was made; these weights were not "
    "compared with torch"
)


@dataclass(frozen=True, slots=True, eq=False)
class ArchitectureTemplate:
    """All graphs of one architecture, written for one target.

    Attributes
    ----------
    name, target
        What its file is called by.
    graphs
        Graph -> its two parts.
    tensors
        Every tensor that a checkpoint must have: whether it holds floating-point numbers, and its shape; a size may
        have the name of one that checkpoints choose, such as ``classes``.
    options
        Graph -> what decided its bytes, for the manifest.
    tools
        The versions of what made it.
    sha256
        Of the file.
    """

    name: str
    target: str
    graphs: Mapping[str, Template]
    tensors: Mapping[str, tuple[bool, tuple[Dimension, ...]]]
    options: Mapping[str, Mapping[str, Any]]
    tools: Mapping[str, str]
    sha256: str

    @property
    def origin(self) -> TemplateOrigin:
        """What a manifest says of it."""
        return TemplateOrigin(f"{self.name}.{self.target}", self.sha256, PROVEN)


def template_file(name: str, target: str) -> Path:
    """Return where the template of an architecture and a target lies, or would."""
    return FOLDER / f"{name}.{target}.zip"


def template_targets(name: str | None) -> tuple[str, ...]:
    """Return the targets for which there is a template of this name; none for None."""
    if name is None:
        return ()
    found = (path.name.removesuffix(".zip") for path in FOLDER.glob(f"{name}.*.zip"))
    return tuple(sorted(stem.rpartition(".")[2] for stem in found if stem.rpartition(".")[0] == name))


def read_template(name: str, target: str) -> ArchitectureTemplate:
    """Read a template that is in the package.

    Raises
    ------
    BundleError
        ``damaged_template``.
    """
    path = template_file(name, target)
    try:
        with zipfile.ZipFile(path) as archive:
            index = json.loads(archive.read(INDEX_FILE))
            graphs = {
                graph: Template(*(archive.read(f"{graph}.{part}.onnx") for part in ("prepare", "body")))
                for graph in index["options"]
            }
    except (zipfile.BadZipFile, lzma.LZMAError, OSError, EOFError, KeyError, ValueError) as error:
        message = f"{path}, a part of segship, is damaged ({error}); install segship again"
        raise BundleError(message, code="damaged_template") from error
    return ArchitectureTemplate(
        name=name,
        target=target,
        graphs=graphs,
        tensors={key: (floating, tuple(shape)) for key, (floating, *shape) in index["tensors"].items()},
        options=index["options"],
        tools=index["tools"],
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def template_bytes(template: ArchitectureTemplate) -> dict[str, bytes]:
    """Return the members of a template's file by name; equal ones for equal graphs."""
    index = {
        "format": FORMAT,
        "options": {graph: dict(options) for graph, options in template.options.items()},
        "tools": dict(template.tools),
        "tensors": {name: [floating, *shape] for name, (floating, shape) in template.tensors.items()},
    }
    members = {INDEX_FILE: json.dumps(index, indent=0).encode()}
    for graph, parts in template.graphs.items():
        members |= {f"{graph}.prepare.onnx": parts.prepare, f"{graph}.body.onnx": parts.body}
    return members


def answers_file(sha256: str) -> Path:
    """Return where what a published checkpoint answers is kept, by its digest."""
    return FOLDER / "answers" / f"{sha256}.npz"


def read_answers(sha256: str) -> dict[str, AnyArray] | None:
    """Return what is kept of a checkpoint's answers, as its task's ``remember`` made it; None where nothing is."""
    path = answers_file(sha256)
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def write_template(template: ArchitectureTemplate, path: Path) -> None:
    """Write a template's file; its bytes follow from its contents alone."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in template_bytes(template).items():
            # A fixed date, the oldest that the format has.
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_LZMA)
