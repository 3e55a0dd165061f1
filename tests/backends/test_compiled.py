# SPDX-License-Identifier: Apache-2.0
"""Files of compiled graphs: found whole or not at all, one of a kind, never in the way."""

import os
import time

import numpy as np
import pytest

from segship.backends.compiled import CompiledName, MappedFile, find_compiled, graph_digest, store_compiled

NAME = CompiledName("ab" * 32, "engine-fp32", {"version": "1"})


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SEGSHIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "compiled"


def store(name, data):
    return store_compiled(name, lambda stream: stream.write(data))


def test_what_was_stored_is_found():
    assert find_compiled(NAME) is None
    path = store(NAME, b"compiled")
    assert find_compiled(NAME) == path and path.read_bytes() == b"compiled"


@pytest.mark.parametrize(
    "other",
    [
        CompiledName("cd" * 32, NAME.kind, NAME.settings),
        CompiledName(NAME.graph, "engine-bf16", NAME.settings),
        CompiledName(NAME.graph, NAME.kind, {"version": "2"}),
    ],
)
def test_graph_kind_and_settings_are_all_part_of_the_name(other):
    store(NAME, b"compiled")
    assert find_compiled(other) is None


def test_file_that_was_cut_short_is_not_found():
    store(NAME, b"compiled").write_bytes(b"comp")
    assert find_compiled(NAME) is None


def test_newer_file_takes_the_place_of_its_kind_alone(folder):
    bf16 = store(CompiledName(NAME.graph, "engine-bf16", {}), b"other")
    store(NAME, b"old")
    new = store(CompiledName(NAME.graph, NAME.kind, {"version": "2"}), b"newer")
    assert set(folder.iterdir()) == {bf16, new}


def test_what_a_killed_process_left_goes_after_a_day(folder):
    folder.mkdir(parents=True)
    for hours, name in ((25, "old"), (1, "new")):
        left = folder / f".{name}.{'0' * 16}.partial"
        left.touch()
        os.utime(left, (time.time() - hours * 3600,) * 2)
    path = store(NAME, b"compiled")
    assert set(folder.iterdir()) == {path, left}


def test_writer_that_fails_leaves_nothing(folder):
    def fail(stream):
        stream.write(b"half")
        raise OSError("no space left")

    assert store_compiled(NAME, fail) is None
    assert list(folder.iterdir()) == []


def test_folder_that_cannot_be_made_means_no_cache(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SEGSHIP_CACHE", str(tmp_path / "file"))
    assert store(NAME, b"compiled") is None
    assert find_compiled(NAME) is None


def test_mapped_file_is_read_again_after_it_was_forgotten(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 64)
    mapped = MappedFile(path)
    expected = np.arange(256, dtype=np.uint8).tolist() * 64
    assert mapped.array.tolist() == expected
    mapped.forget()
    assert mapped.array.tolist() == expected


def test_writing_to_mapped_memory_does_not_reach_the_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"untouched")
    MappedFile(path).array[:] = 0
    assert path.read_bytes() == b"untouched"


def test_digest_of_a_graph_follows_its_sidecar(tmp_path):
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(b"graph")
    assert graph_digest(graph) == graph_digest(b"graph")
    (tmp_path / "graph.onnx.data").write_bytes(b"weights")
    assert graph_digest(graph) != graph_digest(b"graph")
