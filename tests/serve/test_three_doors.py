# SPDX-License-Identifier: Apache-2.0
"""The same prompts through Python, the command line and HTTP: the same masks, or the same error with the same code.

Hypothesis makes what people and programs send by mistake; some hundred cases here, ten thousand with ``make slow``.
"""

import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from PIL import Image

import segship
from segship import PromptLimits, Prompts, SegshipError
from segship.cli import main
from segship.client import Client
from segship.images.comparison import draw_scene

HEIGHT, WIDTH = 60, 90
SCENE = draw_scene((HEIGHT, WIDTH), seed=7)
LIMITS = PromptLimits(objects=64, points_per_object=64)
ODD = st.sampled_from([math.nan, math.inf, -math.inf, 1e30, 1e39, -1e-3, -0.0, 10**400, None, "7", True, []])


def coordinates(side):
    inside = st.floats(0, side, width=32) | st.integers(0, side)
    edges = st.sampled_from([0, side, side - 0.5, side + 1e-3, -1e-3])
    return st.one_of(inside, inside, inside, inside, edges, st.floats(-2 * side, 3 * side, width=32))


XY = st.tuples(coordinates(WIDTH), coordinates(HEIGHT)).map(list)
BOX = st.tuples(XY, XY).map(lambda corners: [*corners[0], *corners[1]])


@st.composite
def spoiled(draw, good, chance=8):
    """What is good, or with one number in some replaced by what is odd, or of another rank."""
    value = draw(good)
    if draw(st.integers(0, chance)):
        return value
    kind = draw(st.sampled_from(["odd", "deeper", "flat", "longer", "nothing"]))
    if kind == "odd" and value and isinstance(value[-1], list):
        return [*value[:-1], [*value[-1][:-1], draw(ODD)]]
    if kind == "odd":
        return [*value[:-1], draw(ODD)]
    if kind == "longer":
        return [*value, value[0]] if value else [1]
    return {"deeper": [value], "flat": value[0] if value else 5, "nothing": []}[kind]


LABELS = st.sampled_from([0, 1, 1, 1, 1, 0, 1, True, 1.0, 2, -1, 3, 0.5])


@st.composite
def points(draw):
    """Points and labels of one object, of several, or too many."""
    objects, count = draw(st.sampled_from([0, 0, 0, 1, 2, 3])), draw(st.sampled_from([1, 1, 1, 2, 3, 0, 64, 65]))
    rows = st.lists(XY, min_size=count, max_size=count)
    labels = st.lists(LABELS, min_size=count, max_size=count)
    if objects:
        rows, labels = (st.lists(one, min_size=objects, max_size=objects) for one in (rows, labels))
    found = {"points": draw(spoiled(rows))}
    if draw(st.booleans()):
        found["labels"] = draw(spoiled(labels))
    return found


LOGITS = [np.zeros((1, 96, 96)), np.full((96, 96), -3.5), np.zeros((7, 7)), np.full((96, 96), math.nan), np.zeros(0)]
MASK_INPUTS = st.sampled_from([one.tolist() for one in LOGITS])


@st.composite
def parts(draw):
    """Prompts with the words of `Prompts`."""
    found = draw(points()) if draw(st.integers(0, 3)) else {}
    if not draw(st.integers(0, 2)):
        found["boxes"] = draw(spoiled(BOX | st.lists(BOX, max_size=3)))
    if not draw(st.integers(0, 7)):
        found["mask_input"] = draw(MASK_INPUTS)
    return found


TOO_MANY = st.just([{"points": [[1.0, 1.0]]}] * 65)
DOCUMENTS = st.one_of(
    parts(), parts(), parts(), st.lists(parts(), max_size=3).map(lambda all_: {"objects": all_}),
    TOO_MANY.map(lambda all_: {"objects": all_}),
)  # fmt: skip
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "multimask_output": st.sampled_from([True, False, "best", "auto"]),
        "edges": st.sampled_from([None, True, False]),
        "clip": st.booleans(),
    },
)


def outcome(work):
    """Masks, scores and notes; or the kind of error and its code."""
    try:
        found = work()
    except SegshipError as error:
        return type(error).__name__, error.code
    return [
        [[dict(rle) for rle in row] for row in found.rles],
        # As many digits as the server writes.
        [[round(float(score), 6) for score in row] for row in found.iou_predictions],
        list(found.notes),
    ]


class Doors:
    """One picture behind three doors."""

    def __init__(self, address, folder):
        self.predictor = segship.load("tiny")
        self.embedding = self.predictor.encode(SCENE)
        self.file = folder / "scene.png"
        Image.fromarray(SCENE).save(self.file)
        self.image = Client(address).upload(self.file)
        self.folder = folder

    def python(self, document, options, limits=LIMITS):
        def work():
            entries = document.get("objects")
            prompts = Prompts(**document) if entries is None else [Prompts(**entry) for entry in entries]
            return self.predictor.decode(
                self.embedding,
                prompts,
                multimask_output=options.get("multimask_output", "auto"),
                edges=options.get("edges"),
                outside="clip" if options.get("clip") else "error",
                limits=limits,
            )

        return outcome(work)

    def http(self, document, options):
        path, body = f"/v1/images/{self.image.id}/masks", json.dumps({**document, **options}).encode()

        def work():
            answer = self.image._line.ask("POST", path, body)
            from segship.client import _prediction

            return _prediction(answer, 1)

        return outcome(work)

    def command_line(self, document, capsys):
        """What it writes; an error's kind is not said, so its code alone."""
        prompts, out = self.folder / "prompts.json", self.folder / "out"
        prompts.write_text(json.dumps(document))
        main(["segment", str(self.file), "--prompts", str(prompts), "-o", str(out), "--format", "json", "--overwrite",
              "--json"])  # fmt: skip
        said = json.loads(capsys.readouterr().out)
        refused = said.get("error") or said["images"][0].get("error")
        if refused:
            return refused["code"]
        written = json.loads((out / "scene.prediction.json").read_text())
        return [[mask["segmentation"] for mask in row["masks"]] for row in written["objects"]], written["notes"]


@pytest.fixture(scope="module")
def doors(server, tmp_path_factory):
    found = Doors(server.address, tmp_path_factory.mktemp("doors"))
    yield found
    found.image._line.close()
    found.predictor.close()


MANY = settings(suppress_health_check=list(HealthCheck), deadline=None, database=None)


def compare(doors, document, options):
    expected, found = doors.python(document, options), doors.http(document, options)
    note(f"Python: {expected if isinstance(expected, tuple) else 'masks'}")
    assert found == expected


@settings(MANY, max_examples=300)
@given(DOCUMENTS, OPTIONS)
def test_python_and_http_agree(doors, document, options):
    compare(doors, document, options)


@pytest.mark.slow
@settings(MANY, max_examples=10_000)
@given(DOCUMENTS, OPTIONS)
def test_python_and_http_agree_ten_thousand_times(doors, document, options):
    compare(doors, document, options)


CASES = [
    {"points": [[30, 20]]},
    {"points": [[30, 20], [80, 50]], "labels": [1, 0]},
    {"points": [[90, 60]]},
    {"points": [[91, 20]]},
    {"points": [[math.nan, 20]]},
    {"points": [[30, 20]], "labels": [3]},
    {"points": [[30, 20]], "labels": [1, 1]},
    {"points": [[30, 20]], "labels": [0]},
    {"points": [30, 20]},
    {"boxes": [[50, 40, 10, 10]]},
    {"boxes": [[-5, -5, 30, 30]]},
    {"boxes": [[10, 10, 10, 30]]},
    {"boxes": [[100, 100, 120, 120]]},
    {"mask_input": [[0.0, 1.0]]},
    {},
    {"objects": []},
    {"objects": [{"points": [[30, 20]]}, {"boxes": [10, 10, 50, 40]}]},
    {"objects": 3},
    {"point": [[30, 20]]},
]


@pytest.mark.parametrize("document", CASES, ids=lambda case: json.dumps(case)[:40])
def test_the_command_line_agrees(doors, document, capsys):
    expected, found = doors.http(document, {}), doors.command_line(document, capsys)
    if isinstance(expected, tuple):
        assert found == expected[1]
    else:
        rles, _, notes = expected
        assert found == (rles, notes)
