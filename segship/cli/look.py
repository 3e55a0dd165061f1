# SPDX-License-Identifier: Apache-2.0
"""Commands that only look: inspect, models, doctor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from segship.catalog import list_models
from segship.cli.output import make_table, megabytes, plain, print_json, results_console

Json = Annotated[bool, Parameter(name="--json", help="Print one JSON document.")]


def inspect(path: Path, /, *, json: Json = False) -> None:
    """Say what a bundle, an ONNX graph or a checkpoint holds, without running it.

    Parameters
    ----------
    path
        A bundle's folder, an .onnx file, or a .pth, .pt or .safetensors file.
    """
    from segship.inspection import inspect as look

    document = look(path).to_dict()
    if json:
        print_json(document)
        return
    _print_tree(document)


def models(*, json: Json = False) -> None:
    """List the models that have a name, and where each stands on this machine."""
    found = list_models()
    if json:
        print_json({"models": [asdict(model) for model in found]})
        return
    rows = [
        (model.name, model.status, megabytes(model.bytes), model.licence, model.published, model.location)
        for model in found
    ]
    results_console().print(make_table(("name", "status", ">size", "licence", "published", "location"), rows))


def doctor(*, json: Json = False) -> None:
    """Say what runs here, what is missing, and the command that mends it."""
    from segship.doctor import examine

    document = examine().to_dict()
    if json:
        print_json(document)
        return
    _print_tree(document)


def _print_tree(document: Mapping[str, Any]) -> None:
    console = results_console()
    for line in _lines(document, 0):
        console.print(line)


def _lines(value: Any, depth: int) -> list[str]:
    """Write nested dicts and lists as indented text, leaving out what is empty."""
    indent = "  " * depth
    if isinstance(value, Mapping):
        lines = []
        for key, item in value.items():
            if item is None or item in ([], (), {}, ""):
                continue
            if _is_short(item):
                lines.append(f"{indent}[bold]{plain(str(key))}[/]: {plain(_short(item))}")
            else:
                lines.append(f"{indent}[bold]{plain(str(key))}[/]:")
                lines.extend(_lines(item, depth + 1))
        return lines
    if isinstance(value, list | tuple):
        return [line for item in value for line in _item_lines(item, depth)]
    return [f"{indent}{plain(str(value))}"]


def _item_lines(item: Any, depth: int) -> list[str]:
    lines = _lines(item, depth + 1)
    if lines:
        lines[0] = f"{'  ' * depth}- {lines[0].lstrip()}"
    return lines


def _is_short(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(not isinstance(item, Mapping | list | tuple) for item in value) and len(str(value)) < 100
    return not isinstance(value, Mapping)


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
