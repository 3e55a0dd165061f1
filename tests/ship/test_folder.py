# SPDX-License-Identifier: Apache-2.0
"""A folder of graphs for another program holds the graphs, their weights and the document; whole or not at all."""

import hashlib
import json

import pytest

from segship.bundle.folder import refuse_taken
from segship.errors import OutputError
from segship.ship.contracts import EXPORT_FILE, describe_files, files_of, refuse_stranger, write_folder


@pytest.fixture
def graphs(tmp_path):
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "decoder.onnx").write_bytes(b"graph")
    (folder / "decoder.onnx.data").write_bytes(b"weights")
    (folder / "decoder_logits.onnx").write_bytes(b"for the comparison")
    return files_of([folder / "decoder.onnx"])


def test_graphs_and_their_weights_are_described(graphs):
    files = describe_files(graphs)
    assert list(files) == ["decoder.onnx", "decoder.onnx.data"]
    assert files["decoder.onnx.data"] == {"bytes": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}


def test_folder_holds_the_graphs_and_the_document(graphs, tmp_path):
    output = tmp_path / "out"
    write_folder(output, graphs, {"contract": "ascend"}, force=False)
    assert sorted(path.name for path in output.iterdir()) == ["decoder.onnx", "decoder.onnx.data", EXPORT_FILE]
    assert (output / "decoder.onnx.data").read_bytes() == b"weights"
    assert json.loads((output / EXPORT_FILE).read_text()) == {"contract": "ascend"}


def test_folder_that_is_there_stays_unless_forced(graphs, tmp_path):
    output = tmp_path / "out"
    write_folder(output, graphs, {"opset": 14}, force=False)
    with pytest.raises(OutputError):
        write_folder(output, graphs, {"opset": 17}, force=False)
    assert json.loads((output / EXPORT_FILE).read_text()) == {"opset": 14}
    refuse_stranger(output)
    write_folder(output, graphs, {"opset": 17}, force=True)
    assert json.loads((output / EXPORT_FILE).read_text()) == {"opset": 17}


def test_folder_that_is_there_is_refused_unless_forced(tmp_path):
    with pytest.raises(OutputError, match="exists; choose another folder, or replace a bundle with force=True"):
        refuse_taken(tmp_path, force=False)
    refuse_taken(tmp_path, force=True)
    refuse_taken(tmp_path / "new", force=False)
