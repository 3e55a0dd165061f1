# SPDX-License-Identifier: Apache-2.0
"""The public names, their documentation, and the documents that describe the repository."""

import ast
import doctest
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
from pathlib import Path

import pytest

import segship
from segship.backends import BACKENDS
from segship.cli.main import app
from tests.house.package import sources

ROOT = Path(__file__).parents[2]
RECORDED = json.loads(Path(__file__).with_name("surface.json").read_text("utf-8"))
"""The public names and the options of every command as version 0.4 had them."""
MODULES = sorted(name for _, name, _ in pkgutil.walk_packages(segship.__path__, "segship."))


def loaded(name):
    """A module; None where it wraps a runtime that is not in this environment."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        engines = {package for row in BACKENDS.values() for package in row.packages} | {"cuda"}
        if error.name not in engines:
            raise
        return None


def test_exported_names_are_sorted_and_there():
    assert segship.__all__ == sorted(segship.__all__)
    assert all(hasattr(segship, name) for name in segship.__all__)


@pytest.mark.parametrize("name", [name for name in segship.__all__ if name != "__version__"])
def test_every_public_name_is_documented(name):
    value = getattr(segship, name)
    assert inspect.getdoc(value), name
    members = inspect.getmembers(value, inspect.isfunction) if inspect.isclass(value) else []
    for member, function in members:
        if not member.startswith("_") and function.__qualname__.startswith(f"{value.__name__}."):
            assert inspect.getdoc(function), f"{name}.{member}"


def test_every_module_says_what_it_is_for():
    assert [name for name, (_, tree) in sources().items() if not (ast.get_docstring(tree) or "").strip()] == []


def test_docstring_examples_run():
    modules = filter(None, map(loaded, ("segship", *MODULES)))
    assert [module.__name__ for module in modules if doctest.testmod(module).failed] == []


# Where version 0.4 wrote None for what the options class has as its default, the default may stand there itself.
SPELLED_OUT = {"--max-pixels": "50000000", "--points-per-side": "32", "--ratios": "1"}
# What the manifest may say since, where it was the same for every model; None where it is left out.
LEFT_TO_THE_MODEL = {"--box-nms-thresh": "--box-nms-thresh", "--nms": "--nms", "--edges": "--edges --no-edges"}


def options_of(command):
    """Every argument of a command by its names, with its default as the command line would take it."""
    found = {}
    for argument in command.assemble_argument_collection(default_parameter=app.default_parameter):
        names = " ".join(sorted(name for name in argument.names if name.startswith("-") or name.isupper()))
        default = argument.field_info.default
        found[names] = None if default is inspect.Parameter.empty else str(default)
    return {names: default for names, default in found.items() if names}


def test_names_and_commands_of_version_0_4_are_still_there():
    assert set(RECORDED["names"]) <= set(segship.__all__)
    assert RECORDED["commands"].keys() <= set(app)


@pytest.mark.parametrize("command", RECORDED["commands"])
def test_every_option_of_version_0_4_has_its_default(command):
    now = options_of(app[command])
    for names, default in RECORDED["commands"][command].items():
        accepted = {default, SPELLED_OUT.get(names, default)} if default == "None" else {default}
        if command == "everything" and names in LEFT_TO_THE_MODEL:
            names, accepted = LEFT_TO_THE_MODEL[names], {"None", None}
        assert names in now and now[names] in accepted, f"{command} {names}: {now.get(names)}, was {default}"


def test_changelog_names_the_version():
    assert f"## [{segship.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def tracked_files():
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return listing.split("\n")[:-1]


def test_readme_tree_names_every_module_and_nothing_else():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = readme.split("<!-- tree -->")[1]
    named = set(re.findall(r"^ *([\w./-]+)(?: {2,}|$)", tree.replace("```", ""), flags=re.MULTILINE))
    named = {name.rstrip("/") for name in named}
    parts = [Path(file).parts for file in tracked_files()]
    modules = {part[1] for part in parts if part[0] == "segship" and len(part) > 1}
    top = {part[0] for part in parts if not part[0].startswith(".")}
    assert modules - named - {"__pycache__"} == set()
    assert {name for name in named if name not in modules | top} == set()


def test_no_file_names_a_path_of_a_machine():
    pattern = re.compile(r"(^|[^A-Za-z0-9._-])/(work|farm|root)/|python" + r"hosted|registry\.npm" + "js")
    for file in tracked_files():
        path = ROOT / file
        if path.suffix in {".py", ".md", ".toml", ".json", ""} and path.is_file():
            assert not pattern.search(path.read_text(encoding="utf-8", errors="ignore")), file
