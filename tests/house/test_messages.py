# SPDX-License-Identifier: Apache-2.0
"""Errors speak with one voice: clauses joined by commas and semicolons, and no full stop."""

import ast
import re

from segship import errors
from tests.house.package import sources

ERRORS = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}


def text_of(node):
    """The words of a string, with an x for every value that is put in; None of anything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "x" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def messages(tree):
    """Every string in an error that is made, and in the functions that make one."""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and getattr(call.func, "id", None) in ERRORS | {"ValueError", "TypeError"}:
            parts = {id(part) for node in ast.walk(call) if isinstance(node, ast.JoinedStr) for part in node.values}
            yield from (text_of(node) or "" for node in ast.walk(call) if id(node) not in parts)


def test_no_message_is_a_row_of_sentences():
    found = {
        module
        for module, (_, tree) in sources().items()
        if any(re.search(r"\w\.$|[a-z]\. [A-Z]", message) for message in messages(tree))
    }
    assert found == set()
