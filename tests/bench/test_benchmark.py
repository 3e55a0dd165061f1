# SPDX-License-Identifier: Apache-2.0
"""Models by their stages."""

import pytest

import segship
from segship.backends.session import RunOptions
from segship.bench import stages
from segship.bench.benchmark import benchmark
from segship.bench.fresh import run_fresh
from segship.bench.options import BenchmarkOptions
from segship.errors import BackendUnavailable, InputError

QUICK = {"repeats": 1, "warm_up": 0, "threads": (1,), "points_per_side": 2, "objects": (1, 2)}


@pytest.fixture(scope="module")
def whole(small_export):
    options = BenchmarkOptions(**QUICK, batch_sizes=(1, 2), fresh_repeats=1)
    told = []
    return benchmark(small_export[0].path, options, progress=told.append), told


def test_every_stage_and_every_graph_is_a_row(whole, small_export):
    report, told = whole
    names = [row.name for row in report.rows if row.kind == "stage"]
    assert names == [
        "decode image",
        "preprocess",
        "encode with preprocess",
        "decode 1 object",
        "decode 2 objects",
        "everything",
    ]
    graphs = {row.name.split(",")[0].removeprefix("graph ") for row in report.rows if row.kind == "graph"}
    assert graphs == {spec.name for spec in small_export[0].manifest.graphs}
    assert [row.timing.items for row in report.rows if row.name.startswith("graph image_encoder")] == [1, 2]
    assert any("decode 2 objects" in line for line in told)


def test_surroundings_are_told(whole):
    report, _ = whole
    assert report.backend == "onnxruntime" and report.precision == "fp32" and "1 threads" in report.runs_on
    assert report.versions["segship"] == segship.__version__ and report.versions["onnxruntime"]


def test_fresh_processes_tell_cold_start_and_peak(whole):
    report, _ = whole
    events = [(row.scenario, row.event) for row in report.fresh]
    assert events == [
        ("click", "segship imported"),
        ("click", "model loaded"),
        ("click", "first image encoded"),
        ("click", "first click decoded"),
        ("click", "second image encoded"),
        ("everything", "model loaded"),
        ("everything", "everything found"),
    ]
    click = [row for row in report.fresh if row.scenario == "click"]
    assert [row.milliseconds for row in click] == sorted(row.milliseconds for row in click)
    assert [row.peak_bytes for row in click] == sorted(row.peak_bytes for row in click)


def test_stages_are_chosen_by_how_they_begin(small_export):
    options = BenchmarkOptions(**QUICK, stages=("decode 2", "preprocess"), fresh=False)
    assert [row.name for row in benchmark(small_export[0].path, options).rows] == ["preprocess", "decode 2 objects"]
    options = BenchmarkOptions(**QUICK, stages=("graph",), fresh=False)
    assert {row.kind for row in benchmark(small_export[0].path, options).rows} == {"graph"}


def test_unknown_stage_names_those_there_are(small_export):
    with pytest.raises(InputError, match=r"no stage begins with 'nope'.*decode image") as caught:
        benchmark(small_export[0].path, BenchmarkOptions(**QUICK, stages=("nope",), fresh=False))
    assert caught.value.code == "unknown_stage"


def test_each_number_of_threads_is_measured(small_export):
    options = BenchmarkOptions(**{**QUICK, "threads": (1, 2)}, stages=("preprocess",), fresh=False)
    assert [row.threads for row in benchmark(small_export[0].path, options).rows] == [1, 2]


def test_a_checkpoint_is_measured_in_torch(small_checkpoint):
    options = BenchmarkOptions(**QUICK, stages=("encode",), fresh=False)
    report = benchmark(small_checkpoint, options)
    assert report.backend == "torch" and report.versions["torch"] in report.runs_on


def test_a_task_is_one_entry(small_export, monkeypatch):
    def only(predictor, data, options):
        yield stages.Stage("segment", lambda: predictor.encode(data))

    monkeypatch.setitem(stages.STAGES, "promptable", only)
    report = benchmark(small_export[0].path, BenchmarkOptions(**QUICK, stages=("segment",), fresh=False))
    assert [row.name for row in report.rows] == ["segment"]


def test_a_task_without_stages_is_told(small_export, monkeypatch):
    monkeypatch.delitem(stages.STAGES, "promptable")
    with pytest.raises(InputError, match=r"task 'promptable'"):
        benchmark(small_export[0].path, BenchmarkOptions(**QUICK, stages=("preprocess",), fresh=False))


def test_a_picture_may_be_given(small_export, tmp_path):
    from PIL import Image

    Image.new("RGB", (90, 60)).save(tmp_path / "p.png")
    options = BenchmarkOptions(**QUICK, image=tmp_path / "p.png", stages=("decode image",), fresh=False)
    assert benchmark(small_export[0].path, options).rows[0].detail["image"] == "90 x 60"


def test_a_fresh_process_that_fails_tells_why():
    parameters = {"model": "nope", "photo": "none.jpg"}
    with pytest.raises(BackendUnavailable, match=r"'click' failed: no model 'nope'") as caught:
        run_fresh("click", parameters, RunOptions(threads=1), processes=1)
    assert caught.value.code == "fresh_failed"
