# SPDX-License-Identifier: Apache-2.0
"""Plans and kits of TensorRT: the kit on doubles everywhere, plans where TensorRT for RTX is installed."""

import importlib.util
import json
import shutil
import subprocess
import sys
from types import ModuleType

import numpy as np
import onnx
import pytest

from segship.bundle import Bundle
from segship.catalog import embedded_bundle
from segship.errors import BackendUnavailable, BundleError, InputError
from segship.ship.contracts import ascend_encoder_spec, export_contract, one_object_decoder_spec
from segship.ship.export import export_bundle
from segship.ship.options import ExportOptions
from segship.ship.targets import ConvertOptions, convert
from tests.backends import tensorrt_double
from tests.oracle import SMALL_VIT

RTX = importlib.util.find_spec("tensorrt_rtx") is not None
needs_rtx = pytest.mark.skipif(not RTX, reason="TensorRT for RTX is not installed; `make target-tensorrt-rtx`")


@pytest.fixture(scope="module")
def kit(small_export, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensorrt") / "kit"
    convert(small_export[0].path, folder, ConvertOptions(target="tensorrt"))
    return folder


def script(kit, name, monkeypatch):
    """Load a script of the kit as a program would, over doubles."""
    cuda = tensorrt_double.Cuda()
    bindings = ModuleType("cuda.bindings")
    bindings.runtime = cuda
    modules = {"tensorrt": tensorrt_double, "cuda": ModuleType("cuda"), "cuda.bindings": bindings}
    for known, module in {**modules, "cuda.bindings.runtime": cuda}.items():
        monkeypatch.setitem(sys.modules, known, module)
    spec = importlib.util.spec_from_file_location(f"kit_{name}", kit / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_the_kit_says_what_is_in_it(kit):
    export = json.loads((kit / "export.json").read_text())
    assert "ran" not in export and export["precision"] == "fp32"
    assert set(export["graphs"]) == {"image_encoder", "mask_decoder"}
    document = json.loads((kit / "kit.json").read_text())
    for graph in document["graphs"].values():
        model = onnx.load(kit / graph["file"])
        assert {value.name for value in model.graph.input} == set(graph["shapes"][0])
    assert len(document["graphs"]["mask_decoder"]["shapes"]) == 2
    assert len(list((kit / "acceptance").glob("mask_decoder.*.npz"))) >= 3


def test_the_lines_of_trtexec_name_every_input_in_three_shapes(kit):
    text = (kit / "trtexec.sh").read_text()
    subprocess.run(["bash", "-n", str(kit / "trtexec.sh")], check=True)
    lines = text.replace("\\\n", "").splitlines()[4:]
    assert len(lines) == 3 and all("--stronglyTyped" in line for line in lines)
    assert "--minShapes=image:1x3x128x128" in lines[0] and "point_coords:8x32x2" in lines[1]


def test_the_readme_names_the_scripts_and_the_ranges_of_the_kit(kit):
    text = (kit / "README.md").read_text("utf-8")
    assert all(name in text for name in ("python build.py", "bash trtexec.sh", "python run.py accept"))
    assert "| image_encoder | image | 1x3x128x128 |" in text and "| 8x32x2 |" in text
    assert "at least: cosine 0.9999, mask_iou 0.99;" in text


def test_its_scripts_build_and_accept(kit, monkeypatch):
    build, run = (script(kit, name, monkeypatch) for name in ("build", "run"))
    assert build.main() == 0
    assert run.accept() == 0
    report = json.loads((kit / "report.json").read_text())
    assert report["machine"] == {"tensorrt": "10.double", "gpu": "Double"}
    assert all(row["passed"] and row["cosine"] > 0.999999 for row in report["rows"])
    assert {row["tensor"] for row in report["rows"]} == {"image_embeddings", "iou_predictions", "low_res_masks"}


def test_plans_of_trtexec_are_accepted_too(kit, monkeypatch, tmp_path, capsys):
    shutil.copytree(kit, tmp_path / "kit", ignore=shutil.ignore_patterns("plans"))
    build, run = (script(tmp_path / "kit", name, monkeypatch) for name in ("build", "run"))
    with pytest.raises(SystemExit, match=r"image_encoder.plan is not there; run build.py or trtexec.sh first"):
        run.accept()
    kit_json = tmp_path / "kit" / "kit.json"
    document, plans = json.loads(kit_json.read_text()), tmp_path / "kit" / "plans"
    for place in range(2):
        graphs = {name: {**graph, "shapes": graph["shapes"][place:][:1]} for name, graph in document["graphs"].items()}
        kit_json.write_text(json.dumps({**document, "graphs": {name: g for name, g in graphs.items() if g["shapes"]}}))
        assert build.main() == 0
        for plan in plans.glob("*r.plan"):
            plan.rename(plan.with_suffix(f".{place}.plan"))
    kit_json.write_text(json.dumps(document))
    wanted = {line.partition("=plans/")[2] for line in (kit / "trtexec.sh").read_text().splitlines()} - {""}
    assert {path.name for path in plans.iterdir()} == wanted
    assert run.accept() == 0


def test_figures_are_of_all_masks_and_of_numbers(kit, monkeypatch, tmp_path):
    run = script(kit, "run", monkeypatch)
    empty, full = np.full((1, 1, 4, 4), -1, np.float32), np.ones((1, 1, 4, 4), np.float32)
    both = run.compared("", "low_res_masks", np.stack([empty, full]), np.stack([full, full]))
    assert both["mask_iou"] == 0.5
    assert run.compared("", "low_res_masks", empty, empty)["mask_iou"] == 1
    zeros = np.zeros((1, 4), np.float32)
    assert run.compared("", "iou_predictions", zeros, zeros)["cosine"] == 1
    assert run.compared("", "iou_predictions", zeros, zeros + 1)["cosine"] == 0


def test_a_report_is_json_whatever_was_answered(kit, monkeypatch):
    build, run = (script(kit, name, monkeypatch) for name in ("build", "run"))
    assert build.main() == 0
    real = run.Plan.run
    monkeypatch.setattr(
        run.Plan, "run", lambda plan, inputs: {name: array * np.nan for name, array in real(plan, inputs).items()}
    )
    assert run.accept() == 1

    def refuse(constant):
        raise AssertionError(constant)

    report = json.loads((kit / "report.json").read_text(), parse_constant=refuse)
    assert report["rows"][0]["cosine"] is None and not report["rows"][0]["passed"]


def test_accepting_refuses_what_answers_otherwise(kit, monkeypatch, tmp_path):
    build, run = (script(kit, name, monkeypatch) for name in ("build", "run"))
    assert build.main() == 0
    real = run.Plan.run
    monkeypatch.setattr(
        run.Plan, "run", lambda plan, inputs: {name: -array for name, array in real(plan, inputs).items()}
    )
    assert run.accept() == 1
    monkeypatch.setattr(run.Plan, "run", real)
    plan = run.Plan(
        kit / "plans" / "mask_decoder.plan",
        json.loads((kit / "kit.json").read_text())["graphs"]["mask_decoder"]["shapes"],
    )
    with np.load(sorted((kit / "acceptance").glob("mask_decoder.*"))[0]) as arrays:
        inputs = {key[3:]: arrays[key] for key in arrays.files if key.startswith("in.")}
    many = {
        name: np.repeat(array, 65, axis=0) if len(array) == 1 and name != "image_embeddings" else array
        for name, array in inputs.items()
    }
    with pytest.raises(SystemExit, match="no profile"):
        plan.run(many)


@pytest.mark.parametrize(
    ("options", "error", "code"),
    [
        ({"target": "tensorrt", "objects": 0}, InputError, "bad_option"),
        ({"target": "tensorrt", "places": -1}, InputError, "bad_option"),
        ({"target": "tensorrt", "precision": "fp16"}, BundleError, "precision_unavailable"),
        ({"target": "tensorrt", "capability": ("SM86",)}, InputError, "bad_option"),
        ({"target": "tensorrt-rtx", "capability": ("SM10",)}, InputError, "bad_option"),
    ],
)
def test_options_that_cannot_be_are_refused(small_export, options, error, code, tmp_path, monkeypatch):
    monkeypatch.setattr("segship.ship.targets.require_packages", lambda target: None)
    with pytest.raises(error) as told:
        convert(small_export[0].path, tmp_path / "out", ConvertOptions(**options))
    assert told.value.code == code and not (tmp_path / "out").exists()


def test_pictures_of_any_size_are_refused_with_what_to_do(small_street_bundle, tmp_path):
    with pytest.raises(BundleError, match="make a bundle of one size: size=") as told:
        convert(small_street_bundle.path, tmp_path / "out", ConvertOptions(target="tensorrt"))
    assert told.value.code == "no_profile"


@pytest.mark.skipif(RTX, reason="TensorRT for RTX is installed")
def test_plans_without_their_package_say_how_to_get_it(tmp_path):
    with pytest.raises(BackendUnavailable, match='pip install "segship\\[tensorrt-rtx\\]"') as told:
        convert("tiny", tmp_path / "out", ConvertOptions(target="tensorrt-rtx"))
    assert told.value.code == "target_missing"


def test_tensorrt_beside_the_one_for_rtx_builds_nothing_in_its_name(small_export, tmp_path, monkeypatch):
    monkeypatch.setattr("segship.ship.targets.require_packages", lambda target: None)
    monkeypatch.setattr("segship.ship.targets.tensorrt.is_installed", lambda name: True)
    with pytest.raises(BackendUnavailable, match="TensorRT itself is installed beside it") as told:
        convert(small_export[0].path, tmp_path / "out", ConvertOptions(target="tensorrt-rtx"))
    assert told.value.code == "target_missing" and not (tmp_path / "out").exists()
    document = convert(small_export[0].path, tmp_path / "kit", ConvertOptions(target="tensorrt"))
    assert document["checked_with"].startswith("nothing")


@needs_rtx
def test_tiny_builds_for_chosen_gpus(tmp_path):
    document = convert("tiny", tmp_path / "out", ConvertOptions(target="tensorrt-rtx", capability=("SM86",)))
    assert document["engine"]["name"] == "tensorrt-rtx" and "ran" not in document
    assert {name.partition(".")[0] for name in document["files"]} == {"image_encoder", "mask_decoder"}
    assert all(file["bytes"] > 1_000_000 for file in document["files"].values())


@needs_rtx
def test_what_tensorrt_has_no_layer_for_is_named():
    from segship.backends import tensorrt
    from segship.backends.profiles import Profile

    bundle = Bundle.read(embedded_bundle("tiny"))
    spec = bundle.manifest.graph_spec("selective_decoder")
    axes = {size for tensor in spec.inputs for size in tensor.shape if isinstance(size, str)}
    ranges: Profile = dict.fromkeys(axes, (1, 2, 4))
    with pytest.raises(BundleError, match="NonZero") as told:
        tensorrt.build_plan(bundle.verified(bundle.manifest.artifact("selective_decoder")), spec, (ranges,))
    assert told.value.code == "graph_rejected"


@needs_rtx
def test_the_small_model_and_its_semantic_sister_build(small_export, small_semask_checkpoint, tmp_path):
    document = convert(
        small_export[0].path, tmp_path / "sam", ConvertOptions(target="tensorrt-rtx", objects=4, places=4)
    )
    assert document["profiles"]["mask_decoder"][0]["objects"] == (1, 1, 4)
    bundle = export_bundle(small_semask_checkpoint, tmp_path / "bundle", ExportOptions(size=(64, 128), measure=False))
    assert (
        "semantic.plan" in convert(bundle.path, tmp_path / "semantic", ConvertOptions(target="tensorrt-rtx"))["files"]
    )


@needs_rtx
def test_the_pair_of_the_ascend_contract_builds(small_checkpoint, tmp_path):
    from segship.backends import tensorrt

    export_contract(small_checkpoint, tmp_path / "pair", ExportOptions(contract="ascend"))
    encoder, decoder = ascend_encoder_spec(SMALL_VIT.geometry), one_object_decoder_spec(SMALL_VIT.geometry, False)
    for spec, ranges in ((encoder, {"batch": (1, 1, 1)}), (decoder, {"num_points": (1, 2, 4)})):
        assert tensorrt.build_plan(tmp_path / "pair" / f"{spec.name}.onnx", spec, (ranges,))
