# SPDX-License-Identifier: Apache-2.0
"""Files for phones: what needs no converter everywhere, each converter where it is (`make test-executorch` ...)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from segship.backends import is_installed
from segship.errors import BackendUnavailable, ComparisonFailed, ExportError, InputError
from segship.ship.targets import PHONES, TARGETS, ConvertOptions, convert, phones

TINY = Path(__file__).parents[3] / "recipes" / "tiny" / "tiny.safetensors"


def here(name):
    return all(map(is_installed, TARGETS[name].packages))


def needs(name):
    return pytest.param(name, marks=pytest.mark.skipif(not here(name), reason=f"make target-{name}"))


@pytest.fixture
def double(monkeypatch):
    """An engine of torch's own: what is tested is everything but the converters."""
    modules = {}

    def make(module, examples, path):
        modules[path.name] = (module, [tuple(example.shape) for example in examples])
        path.write_bytes(b"file")

    def open_file(path, spec):
        module, shapes = modules[path.name]

        def run(arrays):
            assert [array.shape for array in arrays] == shapes
            with torch.inference_mode():
                answers = module(*map(torch.from_numpy, arrays))
            return [answer.numpy() for answer in (answers if isinstance(answers, tuple) else (answers,))]

        return run

    engine = phones._Engine(".double", "numpy", make, open_file)
    monkeypatch.setitem(phones.ENGINES, "executorch", engine)
    monkeypatch.setattr("segship.ship.targets.require_packages", lambda target: None)
    return engine


@pytest.mark.parametrize(("objects", "places"), [(None, None), (3, 12), (8, 10)])
def test_files_of_fixed_sizes_answer_calls_of_any_size(small_checkpoint, double, tmp_path, objects, places):
    options = ConvertOptions(target="executorch", objects=objects, places=places)
    document = convert(small_checkpoint, tmp_path / "out", options)
    assert set(document["files"]) == {"image_encoder.double", "mask_decoder.double"}
    assert all(row["passed"] for row in document["comparison"]) and document["ran"]["own"]
    coords = document["graphs"]["mask_decoder"]["inputs"][1]
    assert tuple(coords["shape"]) == (objects or 1, places or 10, 2)
    assert json.loads((tmp_path / "out" / "export.json").read_text())["files"] == document["files"]


def test_semantic_models_have_one_size(small_semask_checkpoint, double, tmp_path):
    document = convert(small_semask_checkpoint, tmp_path / "out", ConvertOptions(target="executorch", size=(64, 128)))
    assert tuple(document["graphs"]["semantic"]["inputs"][0]["shape"]) == (1, 3, 64, 128)
    assert all(row["passed"] for row in document["comparison"])


def test_answers_that_are_off_are_refused_and_nothing_is_left(small_checkpoint, double, monkeypatch, tmp_path):
    real = double.open

    def worse(path, spec):
        run = real(path, spec)
        return lambda arrays: [answer + np.float32(0.01) * np.abs(answer).max() for answer in run(arrays)]

    monkeypatch.setitem(phones.ENGINES, "executorch", phones._Engine(".double", "numpy", double.make, worse))
    with pytest.raises(ComparisonFailed):
        convert(small_checkpoint, tmp_path / "out", ConvertOptions(target="executorch"))
    assert not list(tmp_path.iterdir())


def test_a_converter_that_gives_up_is_quoted(small_checkpoint, double, monkeypatch, tmp_path):
    def fail(module, examples, path):
        raise RuntimeError("no lowering for aten.what\nand a long trace")

    monkeypatch.setitem(phones.ENGINES, "executorch", phones._Engine(".double", "numpy", fail, None))
    with pytest.raises(ExportError, match="'image_encoder' was not converted: no lowering for aten.what$") as told:
        convert(small_checkpoint, tmp_path / "out", ConvertOptions(target="executorch"))
    assert told.value.code == "not_converted"
    monkeypatch.setitem(phones.ENGINES, "executorch", phones._Engine(".double", "numpy", lambda *_: None, None))
    with pytest.raises(ExportError, match="there is no file"):
        convert(small_checkpoint, tmp_path / "out", ConvertOptions(target="executorch"))


def test_options_without_effect_are_refused(small_checkpoint, small_semask_checkpoint, double, tmp_path):
    for checkpoint, options, words in (
        (small_checkpoint, {"size": (64, 128)}, "size is an option of semantic models"),
        (small_semask_checkpoint, {"places": 4}, "places is an option of promptable models"),
    ):
        with pytest.raises(InputError, match=words):
            convert(checkpoint, tmp_path / "out", ConvertOptions(target="executorch", **options))
    assert not list(tmp_path.iterdir())


def test_ncnn_takes_one_object(small_checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr("segship.ship.targets.require_packages", lambda target: None)
    with pytest.raises(ExportError, match="objects is 2, and ncnn takes one"):
        convert(small_checkpoint, tmp_path / "out", ConvertOptions(target="ncnn", objects=2))


def test_bundles_and_missing_packages_are_refused(small_export, small_checkpoint, tmp_path, monkeypatch):
    missing = [name for name in PHONES if not here(name)]
    for name in missing:
        with pytest.raises(BackendUnavailable, match=f'pip install "segship\\[{name}\\]"') as told:
            convert(small_checkpoint, tmp_path / "out", ConvertOptions(target=name))
        assert told.value.code == "target_missing"
    monkeypatch.setattr("segship.ship.targets.require_packages", lambda target: None)
    with pytest.raises(InputError, match="starts from a checkpoint") as told:
        convert(small_export[0].path, tmp_path / "out", ConvertOptions(target="litert"))
    assert told.value.code == "needs_checkpoint"


@pytest.mark.parametrize("name", [needs(name) for name in PHONES])
def test_tiny_converts_and_agrees(tmp_path, name):
    document = convert(TINY, tmp_path / "out", ConvertOptions(target=name))
    assert ("ran" in document) == (name != "coreml")
    assert {file.partition(".")[0] for file in document["files"]} == {"image_encoder", "mask_decoder"}
    assert len(document["comparison"]) == (0 if name == "coreml" else 4)
