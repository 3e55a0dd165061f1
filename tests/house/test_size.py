# SPDX-License-Identifier: Apache-2.0
"""The package stays small enough to be read: a bound goes down, or up by what a new capability is worth."""

import ast

from tests.house.package import functions, sources

MOST_MODULES = 255
"""170 for what 0.4 did; 6 more make bundles without torch, 2 run graphs of other programs, 5 make image lists and read
them, 4 certify, 1 finds where graphs part, 8 write graphs in lower precisions, 24 convert for other engines and
programs and run some of these, 24 serve masks over HTTP, 12 run over many
pictures."""
MOST_LINES = 57_220
"""27,600 for what 0.4 did, 1,700 to make bundles without torch by templates, of a name too, 1,000 to run graphs of
other programs, 900 for image lists and what graphs are given for them, 380 for everything mode in fewer, faster and
second questions, 400 for masks that follow the picture, 1,300 for certificates, 550 to find where graphs part, 300 to
choose under a budget, 1,400 to write graphs in lower precisions, 5,800 for other engines and programs, 4,300 to
serve, 600 for a program's side of that, 450 for single graphs by a protocol, 600 for programs that people
label with, 400 for the document of its routes, 3,290 to
run over many pictures; the rest is what was wrong or missing in it when people used it."""
LONGEST_TENTH = 20
"""Lines of code, without its docstring, that nine of ten functions stay below."""


def test_modules_and_lines_are_counted():
    assert len(sources()) <= MOST_MODULES
    assert sum(len(path.read_text("utf-8").splitlines()) for path, _ in sources().values()) <= MOST_LINES


def lines_of_code(function):
    text = function.body[0] if ast.get_docstring(function) is not None else None
    lines = function.end_lineno - function.lineno + 1
    return lines if text is None else lines - (text.end_lineno - text.lineno + 1)


def test_functions_are_short():
    lengths = sorted(lines_of_code(function) for _, function in functions())
    assert lengths[int(0.9 * len(lengths))] <= LONGEST_TENTH
