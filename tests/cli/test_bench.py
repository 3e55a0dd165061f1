# SPDX-License-Identifier: Apache-2.0
import pytest

QUICK = ("--repeats", "1", "--warm-up", "0", "--threads", "1", "--no-fresh")


def test_json_holds_rows_and_surroundings(run_json, model):
    arguments = ("--stage", "decode", "--objects", "1,2", *QUICK)
    code, document = run_json("bench", model, *arguments)
    assert code == 0
    assert [row["name"] for row in document["rows"]] == ["decode image", "decode 1 object", "decode 2 objects"]
    assert document["machine"]["usable_cores"] >= 1 and document["versions"]["onnxruntime"]


def test_text_stands_under_machine_versions_precision_and_threads(run, model):
    code, out, err = run("bench", model, "--stage", "preprocess", *QUICK)
    assert code == 0 and "preprocess" in err
    for word in ("fp32", "1 threads", "segship 0", "cores", "p99 ms"):
        assert word in out


def test_one_graph_with_given_shapes(run_json, model):
    graph = model / "mask_decoder.onnx"
    arguments = ("--shape", "point_coords:3,2,2;point_labels:3,2", "--loop", "2", *QUICK[2:])
    _, document = run_json("bench", graph, *arguments)
    (row,) = document["rows"]
    assert document["kind"] == "graph" and row["calls"] == 2 and row["items_per_call"] == 3


def test_drawing_is_written_and_not_replaced_unasked(run, run_json, model, tmp_path):
    arguments = ("--stage", "preprocess", *QUICK, "--plot", tmp_path / "out.svg")
    assert run("bench", model, *arguments)[0] == 0
    assert (tmp_path / "out.svg").read_text().startswith("<svg")
    assert run_json("bench", model, *arguments)[0] == 6
    assert run_json("bench", model, *arguments, "--overwrite")[0] == 0


@pytest.mark.parametrize(
    "arguments",
    [("--threads", "two"), ("--objects", "1,,2"), ("--shape", "1,2"), ("--size", "objects"), ("--size", "objects=x")],
)
def test_malformed_numbers_are_refused(run_json, model, arguments):
    code, document = run_json("bench", model, *arguments)
    assert (code, document["error"]["code"]) == (3, "bad_benchmark_option")


def test_a_number_is_refused_where_the_machine_has_no_name(run_json, model):
    code, document = run_json("bench", model, "--stage", "preprocess", *QUICK, "--machine-name", "")
    assert (code, document["error"]["code"]) == (3, "incomplete_report")
    assert "rows" not in document
