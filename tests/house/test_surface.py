# SPDX-License-Identifier: Apache-2.0
"""The public names, their documentation, and the documents that describe the repository."""

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
from pathlib import Path

import pytest

import segship

ROOT = Path(__file__).parents[2]
MODULES = sorted(name for _, name, _ in pkgutil.walk_packages(segship.__path__, "segship."))


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


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is_for(name):
    assert (importlib.import_module(name).__doc__ or "").strip()


@pytest.mark.parametrize("name", ["segship", *MODULES])
def test_docstring_examples_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


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
