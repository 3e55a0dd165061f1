# SPDX-License-Identifier: Apache-2.0
"""From a bundle to further artifacts of it: held against fp32, mended, refused, written whole, and run by name."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

import segship
from segship import tune
from segship.bundle import Bundle
from segship.bundle.manifest import task_module
from segship.datasets.calibration import CalibrateOptions, calibrate
from segship.errors import BundleError, ComparisonFailed, InputError, OutputError
from segship.ship.locate import locate_in_bundle
from segship.ship.quantize import quantizing
from segship.ship.quantize.options import QuantizeOptions
from segship.ship.quantize.quantizing import quantize_bundle
from segship.tune import Budget, TuneOptions, tune_budget

# The small models have seeded weights, whose masks are all outline; what is tested is what is done about a bar.
EASY, IMPOSSIBLE = 0.3, 1.0


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """Compiled graphs go into a folder of the test."""
    monkeypatch.setenv("SEGSHIP_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def easy_bars(monkeypatch):
    """Bars that seeded weights can pass."""
    from segship.promptable import task as promptable
    from segship.semantic import task as semantic

    bars = {name: {"mask_iou_mean": EASY} for name in promptable.LOWER_BARS}
    monkeypatch.setattr(promptable, "LOWER_BARS", {**bars, "fp16": {"mask_iou_mean": 0.97}})
    monkeypatch.setattr(semantic, "LOWER_BARS", {name: {"pixels_equal": 0.3} for name in semantic.LOWER_BARS})


@pytest.fixture
def two_layers(monkeypatch):
    """Two layers that could go back, of the many whose ranking takes its time."""
    names = [(0.2, "image_encoder", "no layer"), (0.1, "mask_decoder", "nor this")]
    monkeypatch.setattr(quantizing, "_damages", lambda *_: names)


@pytest.fixture
def one_backend(monkeypatch):
    """Only one backend is measured at the end."""
    monkeypatch.setattr(tune, "candidates", lambda manifest: (("onnxruntime", "fp32"), *_lower(manifest)))


def _lower(manifest):
    return [("onnxruntime", name) for name in {artifact.precision for artifact in manifest.artifacts} - {"fp32"}]


@pytest.fixture(scope="module")
def calibrations(tmp_path_factory):
    """An image list for each task."""
    folder = tmp_path_factory.mktemp("lists")
    for task in ("promptable", "semantic"):
        calibrate((), folder / task, CalibrateOptions(task=task, limit=3, objects=1))
    return folder


@pytest.fixture
def bundle(small_export, tmp_path):
    shutil.copytree(small_export[0].path, tmp_path / "bundle")
    return tmp_path / "bundle"


def options(calibrations, precision="int8", task="promptable", **given):
    return QuantizeOptions(precision=precision, calibration=calibrations / task, **given)


@pytest.mark.parametrize("precision", ["int8", "int8-weights", "int4-weights", "fp16-weights", "fp16"])
def test_every_precision_is_made_held_against_fp32_and_run_by_its_name(bundle, calibrations, precision):
    before = Bundle.read(bundle)
    made = quantize_bundle(bundle, options(calibrations, precision))
    new = [artifact for artifact in made.manifest.artifacts if artifact.precision == precision]
    assert {artifact.graph for artifact in new} == {spec.name for spec in made.manifest.graphs}
    assert all(artifact in made.manifest.artifacts for artifact in before.manifest.artifacts)
    digests = {artifact.graph: artifact.sha256 for artifact in before.manifest.artifacts}
    assert all(artifact.made_from == digests[artifact.graph] for artifact in new)
    assert all(artifact.options["calibration"] for artifact in new)
    sizes = {artifact.graph: artifact.bytes for artifact in before.manifest.artifacts}
    assert all(artifact.bytes < 0.8 * sizes[artifact.graph] for artifact in new if artifact.graph == "image_encoder")
    checks = [check for check in made.manifest.checks if check.precision == precision]
    assert {check.backend for check in checks} >= {"onnxruntime"} and all(check.passed for check in checks)
    image = np.zeros((64, 96, 3), np.uint8)
    with segship.load(bundle, backend="onnxruntime", precision=precision, threads=1) as lower:
        with segship.load(bundle, backend="onnxruntime", threads=1) as exact:
            assert lower.precision == precision and lower.encoder_sha256 != exact.encoder_sha256
            embeddings = [model.encode(image).image_embeddings for model in (lower, exact)]
    distance = np.linalg.norm(embeddings[0] - embeddings[1]) / np.linalg.norm(embeddings[1])
    assert 0 < distance < 0.5


def test_semantic_graphs_are_quantized_by_the_same_command(small_semantic_bundle, calibrations, tmp_path):
    made = quantize_bundle(small_semantic_bundle.path, options(calibrations, task="semantic"), out=tmp_path / "int8")
    assert {artifact.precision for artifact in made.manifest.artifacts} == {"fp32", "int8"}
    with segship.load_semantic(made.path, precision="int8", backend="onnxruntime") as model:
        assert model.segment(np.zeros((48, 64, 3), np.uint8)).array.shape == (48, 64)


def test_a_bundle_of_its_own_holds_one_precision_and_no_graph_too_many(bundle, calibrations, one_backend, tmp_path):
    given = options(calibrations, only=True, lean=True)
    made = quantize_bundle(bundle, given, out=tmp_path / "lean")
    assert {(artifact.graph, artifact.precision) for artifact in made.manifest.artifacts} == {
        ("image_encoder", "int8"),
        ("mask_decoder", "int8"),
    }
    with pytest.raises(BundleError, match="ask for that: precision=int8"):
        segship.load(made.path, backend="onnxruntime")
    with pytest.raises(InputError, match="no graphs in fp32 to lower; quantize the bundle") as caught:
        quantize_bundle(made.path, given)
    assert caught.value.code == "precision_unavailable"
    with pytest.raises(InputError, match="no graph in fp32 to hold int8 against; name another reference"):
        next(locate_in_bundle(made.path, precision="int8"))
    located = list(locate_in_bundle(made.path, precision="int8", against=bundle))
    assert [one.graph for one in located] == ["image_encoder", "mask_decoder"] and all(one.depth for one in located)
    with segship.load(made.path, precision="int8") as model:
        assert model.predict(np.zeros((64, 96, 3), np.uint8), points=[[3, 4]]).masks.shape[-2:] == (64, 96)


def test_the_worst_layers_go_back_until_the_bar_holds(bundle, calibrations, one_backend):
    told = []
    free = quantize_bundle(bundle, options(calibrations, "int4-weights"), lambda step, rows: told.append((step, rows)))
    assert [step for step, _ in told] == ["all layers"]
    reached = {row.what: row.figures for row in told[0][1]}["masks"]["mask_iou_mean"]
    told.clear()
    wanted = options(calibrations, "int4-weights", mask_iou=(reached + 1) / 2)
    made = quantize_bundle(bundle, wanted, lambda step, rows: told.append((step, rows)))
    steps = [step for step, rows in told if rows]
    assert steps[0] == "all layers" and steps[1].startswith("1 of ")
    restored = [artifact.options.get("restored_count", 0) for artifact in made.manifest.artifacts]
    assert sum(restored) == 2 ** (len(steps) - 2)
    assert not any("restored" in artifact.options for artifact in free.manifest.artifacts)


def test_what_misses_its_bar_is_refused_and_nothing_is_written(bundle, calibrations, two_layers):
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    with pytest.raises(ComparisonFailed, match="int8 in onnxruntime misses its bar") as raised:
        quantize_bundle(bundle, options(calibrations, mask_iou=IMPOSSIBLE))
    assert raised.value.code == "accuracy_missed"
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before


def test_what_misses_its_bar_is_written_on_request_and_says_so(
    bundle, calibrations, two_layers, one_backend, monkeypatch
):
    monkeypatch.setitem(task_module("promptable").LOWER_BARS, "int8", {"mask_iou_mean": IMPOSSIBLE})
    made = quantize_bundle(bundle, options(calibrations, accept_accuracy=True))
    assert not any(check.passed for check in made.manifest.checks if check.precision == "int8")


def test_plain_float16_of_a_model_that_overflows_is_refused(bundle, calibrations, one_backend, monkeypatch):
    # What the encoder holds is as it was recorded, times a million.
    opened = quantizing.open_graph

    def overflowing(path):
        graph = opened(path)
        if path.name == "image_encoder.onnx":
            name = next(name for name in graph.weights if name.endswith("patch_embed.proj.weight"))
            graph.replace_constant(name, graph.weights[name] * np.float32(1e6))
        return graph

    monkeypatch.setattr(quantizing, "open_graph", overflowing)
    with pytest.raises(ComparisonFailed):
        quantize_bundle(bundle, options(calibrations, "fp16", islands=False))
    made = quantize_bundle(bundle, options(calibrations, "fp16"))
    notes = {artifact.graph: artifact.options for artifact in made.manifest.artifacts if artifact.precision == "fp16"}
    assert notes["image_encoder"]["float32_nodes_count"] > 0 and notes["image_encoder"]["float32"] == "ranges alone"


def test_drawn_scenes_calibrate_where_no_pictures_are_given(bundle, one_backend, monkeypatch):
    monkeypatch.setattr(quantizing, "DRAWN", 2)
    made = quantize_bundle(bundle, QuantizeOptions())
    assert all(len(artifact.options["calibration"]) == 64 for artifact in made.manifest.artifacts[4:])


def test_what_a_budget_chose_of_other_artifacts_is_forgotten(bundle, calibrations, one_backend):
    tune_budget(bundle, Budget({"mask_iou_mean": 0.9}), TuneOptions(threads=1, repeats=1))
    made = quantize_bundle(bundle, options(calibrations, "fp16-weights", only=True))
    assert made.manifest.choice is None


def test_a_precision_that_is_made_again_replaces_the_last(bundle, calibrations, one_backend):
    first = quantize_bundle(bundle, options(calibrations, "fp16-weights"))
    again = quantize_bundle(bundle, options(calibrations, "fp16-weights"))
    assert len(first.manifest.artifacts) == len(again.manifest.artifacts)
    assert len({(check.backend, check.precision) for check in again.manifest.checks}) == len(again.manifest.checks)


def test_the_model_inside_the_package_is_not_changed_and_a_taken_folder_is_kept(calibrations, tmp_path):
    with pytest.raises(InputError, match="lies inside the package"):
        quantize_bundle("tiny", options(calibrations, "fp16-weights"))
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputError) as raised:
        quantize_bundle("tiny", options(calibrations, "fp16-weights"), out=tmp_path / "there")
    assert raised.value.code == "output_exists"


@pytest.mark.parametrize("given", [{"mask_iou": 0.0}, {"mask_iou": 1.5}, {"precision": "int7"}, {"only": 1}])
def test_options_that_cannot_be_are_refused(given):
    with pytest.raises(InputError, match="accepted"):
        QuantizeOptions(**given)


def test_a_precision_that_the_bundle_does_not_hold_is_told_how_to_make(bundle):
    with pytest.raises(BundleError, match="segship quantize BUNDLE --precision int8") as raised:
        segship.load(bundle, precision="int8", backend="onnxruntime")
    assert raised.value.code == "precision_unavailable"


def test_every_fourth_picture_is_held_out(calibrations):
    from segship.datasets.image_list import read_image_list

    images = read_image_list(calibrations / "promptable")
    kept, used = (quantizing.part_of(images, held_out=held_out) for held_out in (True, False))
    names = [[entry.file.name for entry in part.listing.images] for part in (kept, used)]
    assert len(names[0]) == 1 and len(names[1]) == 2 and not set(names[0]) & set(names[1])
    one = replace(images, listing=replace(images.listing, images=images.listing.images[:1]))
    assert len(quantizing.part_of(one, held_out=False)) == 1
