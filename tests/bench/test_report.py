# SPDX-License-Identifier: Apache-2.0
"""No number without what it stands beside; and the drawing of those there are."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from segship.bench.report import BenchmarkReport, BenchmarkRow, FreshRow, Timing, draw_chart
from segship.errors import InputError
from segship.machine import describe_machine

ROWS = (
    BenchmarkRow("decode image", "stage", 2, Timing((4.0, 5.0))),
    BenchmarkRow("graph <mask> & co", "graph", 1, Timing((400.0, 900.0), items=8)),
)


def report(**changes):
    fields = {
        "target": "tiny",
        "kind": "model",
        "machine": replace(describe_machine(), cpu="a processor"),
        "versions": {"segship": "1"},
        "runs_on": "a runtime, 2 threads",
        "backend": "onnxruntime",
        "precision": "fp32",
        "rows": ROWS,
        "fresh": (FreshRow("click", "model loaded", 2, 100.0, 50_000_000, 3),),
    }
    return BenchmarkReport(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"machine": replace(describe_machine(), cpu="")}, "processor"),
        ({"versions": {}}, "versions"),
        ({"precision": ""}, "precision"),
        ({"runs_on": ""}, "runs on"),
        ({"rows": (replace(ROWS[0], threads=0),)}, "threads of decode image"),
    ],
)
def test_a_number_without_its_surroundings_is_refused(changes, word):
    with pytest.raises(InputError, match=word) as caught:
        report(**changes)
    assert caught.value.code == "incomplete_report"


def test_document_is_json_and_holds_every_figure():
    document = json.loads(json.dumps(report().to_dict(), allow_nan=False))
    assert document["rows"][1]["per_second"] == pytest.approx(8000 / 650, rel=1e-3)
    assert document["fresh_processes"][0]["peak_mb"] == 50.0
    assert document["machine"]["cpu"] == "a processor" and document["precision"] == "fp32"


def test_drawing_is_a_document_with_a_bar_a_row_and_the_surroundings():
    root = ElementTree.fromstring(draw_chart(report()))
    space = "{http://www.w3.org/2000/svg}"
    bars = [bar for bar in root.iter(f"{space}rect") if bar.get("x") is not None]
    texts = " ".join(text.text for text in root.iter(f"{space}text"))
    assert len(bars) == 2 and float(bars[0].get("width")) < float(bars[1].get("width"))
    for word in ("a processor", "segship 1", "fp32", "2 threads", "graph <mask> & co", "650.00 ms"):
        assert word in texts
