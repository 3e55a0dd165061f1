# SPDX-License-Identifier: Apache-2.0
"""From a SeMask-FPN checkpoint to a checked bundle, and to the Ascend guide's graph."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from segship.backends.onnxruntime import Session
from segship.backends.opening import open_sessions
from segship.backends.session import RunOptions
from segship.bundle import Bundle
from segship.bundle.evidence import require_passed
from segship.bundle.manifest import parse_manifest
from segship.datasets.known import CITYSCAPES
from segship.errors import CheckpointError, ComparisonFailed, ExportError, InputError, OutputError
from segship.semantic.preprocessing import ScaleLimits, SemanticPreprocessing
from segship.semantic.task import EXACT_BAR, OPEN_SIZES, answer, compare, comparison_tensors, make_cases
from segship.ship import export, verify
from segship.ship.contracts import export_contract
from segship.ship.export import export_bundle
from segship.ship.families import IMAGENET_MEAN, IMAGENET_STD
from segship.ship.families.semask import family, graphs
from segship.ship.families.semask.config import SEMASK_ARCHITECTURES
from segship.ship.families.semask.family import with_batch
from segship.ship.families.semask.model import SemanticGraph
from segship.ship.graph.wire import add_logits
from segship.ship.loading import LoadedModel, load_model
from segship.ship.options import ExportOptions
from segship.ship.verify import open_graph, torch_sessions
from segship.spec import TensorSpec, semantic_spec
from tests.ship.graph.running import scale_weight, traced_graph
from tests.small_semask import ODD_SIZE_HW, SIZE_HW, save_checkpoint, seeded_semask, small_semask


def run(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": images})[0]


def torch_logits(images, model=None):
    with torch.inference_mode():
        return SemanticGraph(model or small_semask(), "logits")(torch.from_numpy(images)).numpy()


def preprocessing(frame=None):
    return SemanticPreprocessing(ScaleLimits(2048, 1024), IMAGENET_MEAN, IMAGENET_STD, frame=frame)


def tensors(size_hw):
    return comparison_tensors(size_hw, preprocessing())


def reference_answers(cases, module):
    """What the model answers to every picture by itself."""
    loaded = LoadedModel("semask", None, module.config, {}, (), module)
    return answer(cases, torch_sessions(graphs.reference(loaded)))


def compare_with_model(step, path, spec, module, frame, batch=None):
    """The rows of a saved graph of one size against its model."""
    cases = make_cases(preprocessing(frame), batch)
    with open_graph(path, spec) as session:
        found = answer(cases, {"semantic": session})
    return compare(step, cases, reference_answers(cases, module), found, EXACT_BAR)


def test_bundle_says_what_it_is(small_semantic_bundle, small_semask_checkpoint):
    manifest = small_semantic_bundle.manifest
    assert (manifest.family, manifest.task, manifest.architecture) == ("semask", "semantic", "custom")
    assert (manifest.table.name, manifest.table) == ("cityscapes", CITYSCAPES)
    assert (manifest.semantic_window, manifest.window_size, manifest.semantic_classes) == ("all", 5, 19)
    assert (manifest.preprocessing.frame, manifest.output) == (SIZE_HW, "class_map")
    assert manifest.preprocessing.scale == ScaleLimits(2048, 1024)
    assert manifest.preprocessing.padding == "to_frame_right_bottom_zero_after_normalize"
    assert manifest.checkpoint.name == small_semask_checkpoint.name and manifest.checkpoint.licence == "unknown"
    spec = manifest.graph_spec("semantic")
    assert spec.inputs[0].shape == ("batch", 3, *SIZE_HW)
    assert (spec.outputs[0].dtype, spec.outputs[0].shape) == ("uint8", ("batch", *SIZE_HW))


def test_every_step_is_compared_and_written_down(small_semantic_export):
    bundle, reported = small_semantic_export
    assert [step for step, _ in reported] == ["traced", "simplified"]
    evidence = bundle.manifest.evidence
    assert evidence.bar == EXACT_BAR
    assert tuple(row for _, rows in reported for row in rows) == evidence.rows
    assert [row.what for row in evidence.rows] == ["logits", "class_map"] * 2
    assert all(row.passed for row in evidence.rows)
    assert min(row.figures["pixels_equal"] for row in evidence.rows[1::2]) >= 0.9999
    assert max(row.figures["max_abs"] for row in evidence.rows[::2]) <= 1e-3


def test_bundle_reads_back_whole(small_semantic_bundle):
    assert Bundle.read(small_semantic_bundle.path).digest == small_semantic_bundle.digest


@pytest.mark.parametrize("batch", [4, 8])
def test_batches_answer_exactly_as_single_pictures(small_semantic_bundle, batch):
    pictures = tensors(SIZE_HW)
    noise = np.random.default_rng(0).normal(size=(batch - len(pictures), 3, *SIZE_HW)).astype(np.float32)
    images = np.concatenate([*pictures, noise])
    session = open_sessions(small_semantic_bundle, RunOptions(backend="onnxruntime", threads=1))["semantic"]
    together = session.run({"image": images})["class_map"]
    alone = [session.run({"image": images[index : index + 1]})["class_map"][0] for index in range(batch)]
    assert together.dtype == np.uint8 and np.array_equal(together, alone)
    assert len(np.unique(together)) > 5


def test_logits_of_an_odd_size_equal_the_model(small_semantic_logits):
    session = open_sessions(small_semantic_logits, RunOptions(backend="onnxruntime", threads=1))["semantic"]
    for image in tensors(ODD_SIZE_HW):
        expected, found = torch_logits(image), session.run({"image": image})["logits"]
        assert np.abs(expected - found).max() <= 1e-3 * np.abs(expected).max()
        assert np.mean(expected.argmax(axis=1) == found.argmax(axis=1)) >= 0.9999


@pytest.fixture(scope="module")
def ascend(small_semask_checkpoint, tmp_path_factory):
    """The Ascend guide's graph at the size of half a Cityscapes picture, and the folder that holds it."""
    folder = tmp_path_factory.mktemp("ascend") / "semask"
    options = ExportOptions(contract="ascend", size=(512, 1024), batch=1)
    return export_contract(small_semask_checkpoint, folder, options), folder


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
    assert max(row["figures"]["max_abs"] for row in logits) <= 1e-3


def test_wrong_graph_is_caught_by_the_comparison(small_semask_checkpoint, tmp_path, monkeypatch, small_semantic_bundle):
    simplify = export.simplify_graph

    def spoil(model):
        """Change one weight of the head by a tenth: many classes stay, and the logits tell."""
        spoiled = simplify(model)
        scale_weight(spoiled, "decode_head.conv_seg.weight", row=0)
        return spoiled

    monkeypatch.setattr(export, "simplify_graph", spoil)
    with pytest.raises(ComparisonFailed, match="simplified, logits: cosine .* nothing was written"):
        export_bundle(small_semask_checkpoint, tmp_path / "bundle", ExportOptions(size=SIZE_HW))
    assert list(tmp_path.iterdir()) == []


def test_too_few_equal_pixels_are_past_the_bar(small_semask_checkpoint, tmp_path, small_semantic_bundle):
    impossible = ExportOptions(size=SIZE_HW, bar={**EXACT_BAR, "pixels_equal": 1.1})
    with pytest.raises(ComparisonFailed, match=r"traced, class_map: \d+\.\d+ % of the pixels equal"):
        export_bundle(small_semask_checkpoint, tmp_path / "bundle", impossible)
    assert list(tmp_path.iterdir()) == []


def test_large_weights_go_into_the_sidecar(small_semask_checkpoint, tmp_path, small_semantic_bundle):
    options = ExportOptions(size=SIZE_HW, simplify=False, largest_inline_bytes=50_000, measure=False)
    bundle = export_bundle(small_semask_checkpoint, tmp_path / "bundle", options)
    assert bundle.manifest.artifact("semantic").weights.file == "semantic.onnx.data"
    with pytest.raises(OutputError, match="exists"):
        export_bundle(small_semask_checkpoint, bundle.path, options)
    again = export_bundle(small_semask_checkpoint, bundle.path, replace(options, force=True, licence="MIT"))
    assert Bundle.read(bundle.path).digest == again.digest and again.manifest.checkpoint.licence == "MIT"


def test_classes_from_a_file_are_checked_before_anything_is_traced(small_semask_checkpoint, tmp_path):
    (tmp_path / "classes.json").write_text('["a", "b"]')
    with pytest.raises(CheckpointError, match="2 names of classes were given and .* has 19 classes"):
        export_bundle(small_semask_checkpoint, tmp_path / "bundle", ExportOptions(classes=tmp_path / "classes.json"))
    (tmp_path / "classes.json").write_text("{}")
    with pytest.raises(InputError, match="no list of 1 to 255 names"):
        export_bundle(small_semask_checkpoint, tmp_path / "bundle", ExportOptions(classes=tmp_path / "classes.json"))


def test_other_contract_is_no_bundle(tmp_path):
    with pytest.raises(ExportError, match="contract 'ascend' is no bundle"):
        export_bundle(tmp_path / "missing.pth", tmp_path / "bundle", ExportOptions(contract="ascend"))


def test_reference_cases_cover_single_pictures_and_batches():
    def batches(batch=None):
        return [image.shape[0] for image in make_cases(preprocessing((64, 96)), batch).images]

    assert (batches(), batches(1), batches(4)) == ([1, 1, 2], [1, 1], [4])
    sizes = [(count, 3, *size_hw) for size_hw in OPEN_SIZES for count in (1, 2)]
    assert [image.shape for image in make_cases(preprocessing(), None).images] == sizes


def test_reference_answers_every_picture_by_itself():
    cases = make_cases(preprocessing((64, 96)), None)
    one, other, both = (answers["logits"] for answers in reference_answers(cases, small_semask()))
    assert one.shape == (1, 19, 64, 96) and np.array_equal(both, np.concatenate([one, other]))
    assert np.array_equal(one, torch_logits(cases.images[0]))


def test_twin_gives_the_logits_that_classes_are_taken_from(small_semantic_bundle, tmp_path):
    source, spec = tmp_path / "semantic.onnx", small_semantic_bundle.manifest.graph_spec("semantic")
    shutil.copyfile(small_semantic_bundle.path / "semantic.onnx", source)
    add_logits(source, tmp_path / "twin.onnx")
    onnx.checker.check_model(tmp_path / "twin.onnx", full_check=True)
    image = tensors(SIZE_HW)[0]
    logits = TensorSpec("logits", "float32", ("batch", 19, *SIZE_HW))
    with Session(tmp_path / "twin.onnx", replace(spec, outputs=(*spec.outputs, logits))) as session:
        answer = session.run({"image": image})
    assert np.array_equal(answer["logits"].argmax(axis=1), answer["class_map"])
    graph = onnx.load(source)
    del graph.graph.node[:]
    onnx.save(graph, source)
    with pytest.raises(ExportError, match="0 ArgMax nodes"):
        add_logits(source, tmp_path / "twin.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("window", ["all", "first-two"])
def test_one_bundle_takes_every_size(tmp_path, small_semask_checkpoint, window):
    # Open sizes are computed in the graph, which is lowered with them.
    opset = 14 if window == "all" else 18
    options = ExportOptions(output="logits", semantic_window=window, opset=opset, measure=False)
    bundle = export_bundle(small_semask_checkpoint, tmp_path / "bundle", options)
    assert bundle.manifest.preprocessing.frame is None and bundle.manifest.semantic_window == window
    session = open_sessions(bundle, "onnxruntime", RunOptions())["semantic"]
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
    model, batch = seeded_semask(SEMASK_ARCHITECTURES[name]), None if size == (512, 1024) else 1
    spec = with_batch(semantic_spec(19, "class_map", size), batch)
    graph = traced_graph(SemanticGraph(model), spec)
    path = tmp_path / "semantic.onnx"
    onnx.save(graph, str(path))
    require_passed(compare_with_model("traced", path, spec, model, size, batch))
    if size == (512, 1024):
        images = np.concatenate([*tensors(size)] * 3)[:8]
        alone = np.concatenate([run(path, images[index : index + 1]) for index in range(8)])
        assert np.array_equal(run(path, images[:4]), alone[:4]) and np.array_equal(run(path, images), alone)


def test_every_comparison_runs_the_saved_graph_itself(small_semantic_bundle, monkeypatch, tmp_path):
    """The rows are of the file that is shipped, not only of its twin."""
    opened = []
    spy = SimpleNamespace(Session=lambda path, *rest, **once: opened.append(path.name) or Session(path, *rest, **once))
    monkeypatch.setattr(verify, "onnxruntime", spy)
    graph = onnx.load(str(small_semantic_bundle.path / "semantic.onnx"))
    path = tmp_path / "semantic.onnx"
    onnx.save(graph, str(path))
    spec = small_semantic_bundle.manifest.graph_spec("semantic")
    rows = compare_with_model("saved", path, spec, small_semask(), SIZE_HW)
    assert [row.what for row in rows] == ["logits", "class_map"] and all(row.passed for row in rows)
    assert opened == ["semantic.onnx", "semantic_logits.onnx"]


def test_own_classes_and_one_picture_at_a_time_stand_in_the_manifest(tmp_path):
    config = replace(small_semask().config, classes=7)
    model = load_model(save_checkpoint(tmp_path / "seven.pth", seeded_semask(config), classes=()))
    names = tmp_path / "classes.json"
    names.write_text(json.dumps(list("abcdefg")))
    options = ExportOptions(classes=names, scale=ScaleLimits(640, 480), output="logits", size=(32, 64))
    manifest = family.manifest(model, options)
    assert (manifest.table.name, manifest.table.classes) == ("own", tuple("abcdefg"))
    assert len(manifest.table.palette) == 7 and manifest.preprocessing.scale == ScaleLimits(640, 480)
    assert with_batch(manifest.contracts["semantic"], 1).outputs[0].shape == (1, 7, 32, 64)
    assert parse_manifest(manifest.to_json()).table == manifest.table
