# SPDX-License-Identifier: Apache-2.0
"""From a SeMask-FPN checkpoint to a checked bundle, and to the Ascend guide's graph."""

import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from segship.backends.onnxruntime import Session
from segship.backends.opening import open_sessions
from segship.backends.session import SessionOptions
from segship.bundle import Bundle
from segship.bundle.agreement import require_passed
from segship.bundle.manifest import parse_manifest
from segship.bundle.measured import SemanticBar, SemanticComparison
from segship.cases import comparison_tensors
from segship.datasets.classes import read_class_file
from segship.datasets.known import CITYSCAPES
from segship.errors import CheckpointError, ComparisonFailed, ExportError, InputError, OutputError
from segship.semantic.preprocessing import ScaleLimits
from segship.ship import steps
from segship.ship import verify_semantic as semantic
from segship.ship.export_semantic import SemanticExportOptions, export_ascend_semantic, export_semantic, with_batch
from segship.ship.families.config import IMAGENET_MEAN, IMAGENET_STD, SEMASK_ARCHITECTURES
from segship.ship.families.semask.loading import choose_settings, describe_semask, load_semask
from segship.ship.families.semask.model import SemanticGraph
from segship.ship.graph.trace import trace_graph
from segship.ship.verify_semantic import add_logits, compare_semantic, run_semantic_reference
from segship.spec import semantic_spec
from tests.small_semask import ODD_SIZE_HW, SIZE_HW, save_checkpoint, seeded_semask, small_semask


def run(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": images})[0]


def torch_logits(images, model=None):
    with torch.inference_mode():
        return SemanticGraph(model or small_semask(), "logits")(torch.from_numpy(images)).numpy()


def tensors(size_hw):
    return comparison_tensors(size_hw, IMAGENET_MEAN, IMAGENET_STD)


def test_bundle_says_what_it_is(small_semantic_bundle, small_semask_checkpoint):
    manifest = small_semantic_bundle.manifest
    assert (manifest.family, manifest.task, manifest.architecture) == ("semantic", "semantic", "custom")
    assert (manifest.data_set, manifest.table) == ("cityscapes", CITYSCAPES)
    assert (manifest.semantic_window, manifest.window_size, manifest.semantic_classes) == ("all", 5, 19)
    assert (manifest.size, manifest.scale, manifest.output) == (SIZE_HW, (2048, 1024), "class_map")
    assert manifest.preprocessing.padding == "right_bottom_zero_after_normalize"
    assert manifest.checkpoint.name == small_semask_checkpoint.name and manifest.checkpoint.licence == "unknown"
    spec = manifest.graph_spec("semantic")
    assert spec.inputs[0].shape == ("batch", 3, *SIZE_HW)
    assert (spec.outputs[0].dtype, spec.outputs[0].shape) == ("uint8", ("batch", *SIZE_HW))


def test_every_step_is_compared_and_written_down(small_semantic_export):
    bundle, reported = small_semantic_export
    assert [step for step, _ in reported] == ["traced", "simplified"]
    comparison = bundle.manifest.comparison
    assert isinstance(comparison, SemanticComparison)
    assert [row for _, rows in reported for row in rows] == comparison.steps
    assert [row.what for row in comparison.steps] == ["logits", "class_map"] * 2
    assert all(row.passed for row in comparison.steps)
    assert min(row.pixels_equal for row in comparison.steps[1::2]) >= 0.9999
    assert max(row.max_abs for row in comparison.steps[::2]) <= 1e-3


def test_bundle_reads_back_whole(small_semantic_bundle):
    assert Bundle.read(small_semantic_bundle.path).digest == small_semantic_bundle.digest


@pytest.mark.parametrize("batch", [4, 8])
def test_batches_answer_exactly_as_single_pictures(small_semantic_bundle, batch):
    pictures = tensors(SIZE_HW)
    noise = np.random.default_rng(0).normal(size=(batch - len(pictures), 3, *SIZE_HW)).astype(np.float32)
    images = np.concatenate([*pictures, noise])
    session = open_sessions(small_semantic_bundle, "onnxruntime", SessionOptions(threads=1))["semantic"]
    together = session.run({"image": images})["class_map"]
    alone = [session.run({"image": images[index : index + 1]})["class_map"][0] for index in range(batch)]
    assert together.dtype == np.uint8 and np.array_equal(together, alone)
    assert len(np.unique(together)) > 5


def test_logits_of_an_odd_size_equal_the_model(small_semantic_logits):
    session = open_sessions(small_semantic_logits, "onnxruntime", SessionOptions(threads=1))["semantic"]
    for image in tensors(ODD_SIZE_HW):
        expected, found = torch_logits(image), session.run({"image": image})["logits"]
        assert np.abs(expected - found).max() <= 1e-3 * np.abs(expected).max()
        assert np.mean(expected.argmax(axis=1) == found.argmax(axis=1)) >= 0.9999


@pytest.fixture(scope="module")
def ascend(small_semask_checkpoint, tmp_path_factory):
    """The Ascend guide's graph at the size of half a Cityscapes picture, and the folder that holds it."""
    folder = tmp_path_factory.mktemp("ascend") / "semask"
    options = SemanticExportOptions(contract="ascend", size=(512, 1024), batch=1)
    return export_ascend_semantic(small_semask_checkpoint, folder, options), folder


def test_ascend_graph_has_the_guides_contract(ascend):
    document, folder = ascend
    assert sorted(path.name for path in folder.iterdir()) == ["export.json", "small_semask_bs1.onnx"]
    assert json.loads((folder / "export.json").read_text()) == json.loads(json.dumps(document))
    graph = onnx.load(str(folder / "small_semask_bs1.onnx"))
    assert [entry.version for entry in graph.opset_import] == [14]
    (image,), (output,) = graph.graph.input, graph.graph.output
    sizes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in (image, output)}
    assert sizes == {"image": [1, 3, 512, 1024], "output": [1, 512, 1024]}
    assert output.type.tensor_type.elem_type == onnx.TensorProto.INT64
    assert "Softmax" in {node.op_type for node in graph.graph.node}
    assert [row["step"] for row in document["comparison"]["steps"][::2]] == [
        "traced",
        "simplified",
        "lowered to opset 14",
    ]


def test_class_maps_of_512_by_1024_equal_the_model(ascend):
    for image in tensors((512, 1024))[:2]:
        expected = torch_logits(image).argmax(axis=1)
        assert np.mean(expected == run(ascend[1] / "small_semask_bs1.onnx", image)) >= 0.9999
    logits = [row for row in ascend[0]["comparison"]["steps"] if row["what"] == "logits"]
    assert max(row["max_abs"] for row in logits) <= 1e-3


def test_wrong_graph_is_caught_by_the_comparison(small_semask_checkpoint, tmp_path, monkeypatch, small_semantic_bundle):
    simplify = steps.simplify_graph

    def spoil(model):
        """Change one weight of the head by a tenth: many classes stay, and the logits tell."""
        spoiled = simplify(model)
        weights = next(tensor for tensor in spoiled.graph.initializer if tuple(tensor.dims) == (19, 16, 1, 1))
        values = np.frombuffer(weights.raw_data, np.float32).copy()
        values[0] *= 1.1
        weights.raw_data = values.tobytes()
        return spoiled

    monkeypatch.setattr(steps, "simplify_graph", spoil)
    with pytest.raises(ComparisonFailed, match="simplified, logits: cosine .* Nothing was written"):
        export_semantic(small_semask_checkpoint, tmp_path / "bundle", SemanticExportOptions(size=SIZE_HW))
    assert list(tmp_path.iterdir()) == []


def test_too_few_equal_pixels_are_past_the_bar(small_semask_checkpoint, tmp_path, small_semantic_bundle):
    impossible = SemanticExportOptions(size=SIZE_HW, bar=SemanticBar(pixels_equal=1.1))
    with pytest.raises(ComparisonFailed, match=r"traced, class_map: \d+\.\d+ % of the pixels equal"):
        export_semantic(small_semask_checkpoint, tmp_path / "bundle", impossible)
    assert list(tmp_path.iterdir()) == []


def test_large_weights_go_into_the_sidecar(small_semask_checkpoint, tmp_path, small_semantic_bundle):
    options = SemanticExportOptions(size=SIZE_HW, simplify=False, largest_inline_bytes=50_000, measure=False)
    bundle = export_semantic(small_semask_checkpoint, tmp_path / "bundle", options)
    assert bundle.manifest.graphs["semantic"].external_data.file == "semantic.onnx.data"
    with pytest.raises(OutputError, match="exists"):
        export_semantic(small_semask_checkpoint, bundle.path, options)
    again = export_semantic(small_semask_checkpoint, bundle.path, replace(options, force=True, licence="MIT"))
    assert Bundle.read(bundle.path).digest == again.digest and again.manifest.checkpoint.licence == "MIT"


def test_classes_from_a_file_are_checked_before_anything_is_traced(small_semask_checkpoint, tmp_path):
    (tmp_path / "classes.json").write_text('["a", "b"]')
    with pytest.raises(CheckpointError, match="2 names of classes were given and .* has 19 classes"):
        export_semantic(
            small_semask_checkpoint, tmp_path / "bundle", SemanticExportOptions(classes=tmp_path / "classes.json")
        )
    (tmp_path / "classes.json").write_text("{}")
    with pytest.raises(InputError, match="no list of 1 to 255 names"):
        export_semantic(
            small_semask_checkpoint, tmp_path / "bundle", SemanticExportOptions(classes=tmp_path / "classes.json")
        )


@pytest.mark.parametrize(
    ("options", "words", "code"),
    [
        ({"opset": 13}, "opset 13 cannot be written; accepted are 14 to 24", "bad_opset"),
        ({"size": (16, 64)}, "a size of 16,64 .* sides of 32 to 8192", "bad_size"),
        ({"batch": 4}, "a bundle's is 1 or dynamic", "bad_batch"),
        ({"batch": 0, "contract": "ascend"}, "a batch of 0 cannot be exported", "bad_batch"),
        ({"output": "logits", "contract": "ascend"}, "--output logits, --classes and --scale belong to", "bad_option"),
        ({"scale": ScaleLimits(640, 480), "contract": "ascend"}, "holds neither names nor a scale", "bad_option"),
    ],
)
def test_options_out_of_range_are_refused(options, words, code):
    with pytest.raises(ExportError, match=words) as caught:
        SemanticExportOptions(**options)
    assert caught.value.code == code


def test_other_contract_is_no_bundle(tmp_path):
    with pytest.raises(ExportError, match="contract 'ascend' is no bundle"):
        export_semantic(tmp_path / "missing.pth", tmp_path / "bundle", SemanticExportOptions(contract="ascend"))


def test_reference_cases_cover_single_pictures_and_batches():
    model = small_semask()
    assert [case.image.shape[0] for case in run_semantic_reference(model, [(64, 96)])] == [1, 1, 2]
    assert [case.image.shape[0] for case in run_semantic_reference(model, [(64, 96)], batch=1)] == [1, 1]
    assert [case.image.shape[0] for case in run_semantic_reference(model, [(64, 96)], batch=4)] == [4]
    cases = run_semantic_reference(model, [(64, 96), (61, 90)])
    assert [case.image.shape for case in cases] == [(1, 3, 64, 96), (2, 3, 64, 96), (1, 3, 61, 90), (2, 3, 61, 90)]
    assert all(np.array_equal(case.class_map, case.logits.argmax(axis=1)) for case in cases)


def test_twin_gives_the_logits_that_classes_are_taken_from(small_semantic_bundle, tmp_path):
    graph = onnx.load(str(small_semantic_bundle.path / "semantic.onnx"))
    twin, spec = add_logits(graph, small_semantic_bundle.manifest.graph_spec("semantic"))
    onnx.save(twin, str(tmp_path / "twin.onnx"))
    image = tensors(SIZE_HW)[0]
    with Session(tmp_path / "twin.onnx", spec) as session:
        answer = session.run({"image": image})
    assert np.array_equal(answer["logits"].argmax(axis=1), answer["class_map"])
    del graph.graph.node[:]
    with pytest.raises(ExportError, match="0 ArgMax nodes"):
        add_logits(graph, spec)


@pytest.mark.slow
@pytest.mark.parametrize("window", ["all", "first-two"])
def test_one_bundle_takes_every_size(tmp_path, small_semask_checkpoint, window):
    options = SemanticExportOptions(output="logits", semantic_window=window, measure=False)
    bundle = export_semantic(small_semask_checkpoint, tmp_path / "bundle", options)
    assert bundle.manifest.size is None and bundle.manifest.semantic_window == window
    session = open_sessions(bundle, "onnxruntime", SessionOptions())["semantic"]
    model = small_semask() if window == "all" else seeded_semask(replace(small_semask().config, semantic_window=window))
    for size in [(64, 96), (61, 90), (33, 150), (512, 1024)]:
        image = tensors(size)[0]
        expected, found = torch_logits(image, model), session.run({"image": image})["logits"]
        assert np.abs(expected - found).max() <= 1e-3 * np.abs(expected).max()
        assert np.mean(expected.argmax(axis=1) == found.argmax(axis=1)) >= 0.9999


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"), [("semask_s", (512, 1024)), ("semask_s", (333, 517)), ("semask_b", (333, 517))]
)
def test_full_sizes_equal_the_model(tmp_path, name, size, monkeypatch):
    model = seeded_semask(SEMASK_ARCHITECTURES[name])
    spec = with_batch(semantic_spec(19, "class_map", size), None if size == (512, 1024) else 1)
    graph = trace_graph(SemanticGraph(model), spec, opset=18)
    path = tmp_path / "semantic.onnx"
    onnx.save(graph, str(path))
    cases = run_semantic_reference(model, [size], batch=None if size == (512, 1024) else 1)
    require_passed(compare_semantic("traced", cases, graph, path, spec, SemanticBar()))
    if size == (512, 1024):
        images = np.concatenate([*tensors(size)] * 3)[:8]
        alone = np.concatenate([run(path, images[index : index + 1]) for index in range(8)])
        assert np.array_equal(run(path, images[:4]), alone[:4]) and np.array_equal(run(path, images), alone)


def test_every_comparison_runs_the_saved_graph_itself(small_semantic_bundle, monkeypatch, tmp_path):
    """The rows are of the file that is shipped, not only of its twin."""
    opened = []
    monkeypatch.setattr(semantic, "Session", lambda path, *rest: opened.append(path.name) or Session(path, *rest))
    graph = onnx.load(str(small_semantic_bundle.path / "semantic.onnx"))
    path = tmp_path / "semantic.onnx"
    onnx.save(graph, str(path))
    spec = small_semantic_bundle.manifest.graph_spec("semantic")
    cases = run_semantic_reference(small_semask(), [SIZE_HW])
    assert all(row.passed for row in compare_semantic("saved", cases, graph, path, spec, SemanticBar()))
    assert opened == ["semantic.onnx", "semantic_logits.onnx"]


def test_own_classes_and_one_picture_at_a_time_stand_in_the_manifest(tmp_path):
    config = replace(small_semask().config, classes=7)
    model = load_semask(save_checkpoint(tmp_path / "seven.pth", seeded_semask(config), classes=()))
    (tmp_path / "classes.json").write_text(json.dumps(list("abcdefg")))
    settings = choose_settings(model, read_class_file(tmp_path / "classes.json"), ScaleLimits(640, 480))
    manifest = describe_semask(model, settings, output="logits", size=(32, 64), opset=18, comparison=None)
    assert (manifest.data_set, manifest.classes, len(manifest.palette)) == (None, list("abcdefg"), 7)
    assert (manifest.table.name, manifest.scale) == ("own", (640, 480))
    assert with_batch(manifest.contracts["semantic"], 1).outputs[0].shape == (1, 7, 32, 64)
    assert parse_manifest(manifest.to_json()).table == manifest.table
