# SPDX-License-Identifier: Apache-2.0
"""The source of the package as the guards see it: modules by their names, and what each of them imports."""

import ast
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "segship"


def name_of(path):
    """``masks.rle`` of ``segship/masks/rle.py``, ``masks`` of ``segship/masks/__init__.py``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@cache
def sources():
    """Path and syntax tree of every module by its name; the package itself is the empty name."""
    return {name_of(path): (path, ast.parse(path.read_text("utf-8"))) for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def imports(module):
    """Every full name that a module imports anywhere, inside functions and for types too."""
    found = set()
    for node in ast.walk(sources()[module][1]):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


@cache
def own_imports(module):
    """The modules of the package that a module imports, without itself."""
    own = [name.removeprefix("segship.") for name in imports(module) if name.startswith("segship.")]
    return {name if name in sources() else name.rpartition(".")[0] for name in own} - {module, ""}


def is_within(module, rooms):
    """Whether a module is one of some rooms of the house or inside one."""
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


def functions():
    """Every function and method with its module's name."""
    for module, (_, tree) in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                yield module, node
