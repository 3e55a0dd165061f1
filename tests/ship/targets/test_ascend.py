# SPDX-License-Identifier: Apache-2.0
"""The kit for Ascend, through doubles of the device's own tools; see docs/ascend.md for what that cannot show."""

import ast
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from PIL import Image

import segship
from segship.backends.opening import open_sessions
from segship.backends.session import RunOptions
from segship.bundle.certificate import Certificate, EvaluationList, Reference, identity, read_certificate
from segship.bundle.manifest import task_module
from segship.certify import certify_kit, verify_certificate
from segship.cli.main import main
from segship.datasets.calibration import CalibrateOptions, calibrate
from segship.datasets.known import label_ids_to_train_ids
from segship.errors import BundleError, ComparisonFailed, ExportError, InputError
from segship.evaluation.report import ConfusionMatrix
from segship.images.comparison import comparison_images
from segship.masks.scores import mask_iou
from segship.semantic.preprocessing import to_tensor
from segship.ship.quantize.opened import open_graph
from segship.ship.targets import ConvertOptions, convert
from segship.ship.targets.ascend import commands, graphs, runner, write
from segship.spec import GraphSpec, TensorSpec
from tests.small_bundle import make_bundle, make_model
from tests.small_semask import SIZE_HW

SOC = "Ascend310P3"


def ascend(**options):
    return ConvertOptions("ascend", soc=SOC, **options)


@pytest.fixture(scope="module")
def kit(small_sam_bundle, tmp_path_factory, ascend_machine):
    """The kit of the small SAM in both precisions, calibrated, quantized and compiled."""
    folder = tmp_path_factory.mktemp("kits")
    images = calibrate([], folder / "list", CalibrateOptions(limit=2, objects=1))
    convert(small_sam_bundle.path, folder / "kit", ascend(int8=True, calibration=images.path))
    for name in ("00_check", "10_quantize", "20_compile"):
        ascend_machine.script(folder / "kit", name)
    return folder / "kit"


@pytest.fixture(scope="module")
def geared(small_sam_bundle, tmp_path_factory, ascend_machine):
    folder = tmp_path_factory.mktemp("kits") / "geared"
    convert(small_sam_bundle.path, folder, ascend(gears="2..9", cann=8))
    for name in ("00_check", "20_compile", "30_bench"):
        ascend_machine.script(folder, name)
    # As if AMCT had quantized it, which takes no unknown sizes itself.
    model = onnx.load(folder / "graphs" / "mask_decoder.onnx")
    model.metadata_props.add(key="amct", value="deploy")
    onnx.save(model, folder / "quantized.onnx")
    return folder


@pytest.fixture(scope="module")
def streets(small_street_bundle, tmp_path_factory, ascend_machine):
    """The compiled kit of the small SeMask, and a folder of five pictures in the layout of Cityscapes."""
    folder = tmp_path_factory.mktemp("streets")
    images = calibrate([], folder / "list", CalibrateOptions(task="semantic", limit=1))
    options = ascend(cann=6, size=SIZE_HW, int8=True, calibration=images.path)
    convert(small_street_bundle.path, folder / "kit", options)
    for name in ("00_check", "10_quantize", "20_compile", "30_bench"):
        ascend_machine.script(folder / "kit", name)
    rng = np.random.default_rng(0)
    for number in range(5):
        for part, suffix, mode in (("leftImg8bit", "leftImg8bit", 3), ("gtFine", "gtFine_labelIds", 0)):
            place = folder / "data" / part / "val" / "ulm"
            place.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256 if mode else 34, (*SIZE_HW, 3) if mode else SIZE_HW, np.uint8)
            Image.fromarray(pixels).save(place / f"ulm_{number:06d}_000019_{suffix}.png")
    return folder


def entries(kit):
    return json.loads((kit / "kit.json").read_text())["graphs"]


def accept(machine, kit, precision, **more):
    done = machine.run("python3", kit / "run.py", "accept", "--precision", precision, **more)
    return done, json.loads((kit / "report.json").read_text())


def test_graphs_are_of_fixed_sizes_in_opset_14_and_every_operator_is_registered(kit):
    for name in entries(kit):
        model = onnx.load(kit / "graphs" / f"{name}.onnx")
        onnx.checker.check_model(model, full_check=True)
        assert model.opset_import[0].version == 14 and model.ir_version <= 8
        assert {node.op_type for node in model.graph.node}.isdisjoint({"LayerNormalization", "Einsum", "Shape"})
        sizes = [dim for value in model.graph.input for dim in value.type.tensor_type.shape.dim]
        assert all(dim.HasField("dim_value") for dim in sizes)


def test_the_readme_names_the_scripts_and_the_files_of_the_kit(kit, streets, geared):
    for folder, more in (
        (kit, "run.py segment picture.jpg"),
        (streets / "kit", "run.py cityscapes DATA --work WORK --batch 1"),
        (geared, "points 2 to"),
    ):
        text = (folder / "README.md").read_text("utf-8")
        scripts = {f"scripts/{path.name}" for path in (folder / "scripts").iterdir()}
        assert scripts == set(re.findall(r"scripts/\w+\.sh", text)) and more in text
        compiled = (folder / "scripts/20_compile.sh").read_text()
        named = {f"om/{name}" for name in re.findall(r"`(\w+)\.om`", text)}
        assert named == set(re.findall(r"--output=(\S+)", compiled))


def test_later_cann_gets_opset_18_with_whole_norms(geared):
    model = onnx.load(geared / "graphs" / "mask_decoder.onnx")
    assert model.opset_import[0].version == 18
    assert "LayerNormalization" in {node.op_type for node in model.graph.node}
    points = model.graph.input[2].type.tensor_type.shape
    assert (points.dim[0].dim_value, points.dim[1].dim_param) == (1, "points")


def test_the_norm_behind_the_transposed_convolution_is_kept_apart(kit):
    decoder = entries(kit)["mask_decoder"]
    assert len(decoder["kept_apart"]) == 1 and entries(kit)["image_encoder"]["kept_apart"] == []
    model = onnx.load(kit / "graphs" / "mask_decoder.onnx")
    (division,) = (node for node in model.graph.node if node.output[0] == decoder["kept_apart"][0])
    (power,) = (node for node in model.graph.node if node.output[0] == division.input[0])
    exponent = next(tensor for tensor in model.graph.initializer if tensor.name == power.input[1])
    assert power.op_type == "Pow" and onnx.numpy_helper.to_array(exponent) == 1


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_compiled_models_are_accepted(kit, ascend_machine, precision):
    done, report = accept(ascend_machine, kit, precision)
    assert "within the bar" in done.stdout
    figures = {(row["graph"], row["what"]): row["figures"] for row in report["rows"]}
    assert figures["mask_decoder", "masks"]["mask_iou_min"] > 0.99
    assert figures["image_encoder", "image_embeddings"]["cosine"] > 0.999999
    assert report["precision"] == precision and "310P3" in report["machine"]["npu_smi"]
    assert report["graphs"] == {name: entry["made_from"] for name, entry in entries(kit).items()}


def test_a_device_that_answers_otherwise_is_not_accepted(kit, ascend_machine):
    done, report = accept(ascend_machine, kit, "fp16", check=False, DOUBLE_NOISE="0.1")
    assert done.returncode == 1 and "PAST the bar" in done.stdout
    assert min(row["figures"].get("cosine", 1.0) for row in report["rows"]) < 0.999


def test_gears_are_accepted_with_the_smallest_that_fits(geared, ascend_machine):
    assert [form["points"] for form in entries(geared)["mask_decoder"]["forms"]] == list(range(2, 10))
    places = {np.load(geared / case["inputs"][1]).shape[1] for case in entries(geared)["mask_decoder"]["cases"]}
    assert places == {4}
    assert "within the bar" in accept(ascend_machine, geared, "fp16")[0].stdout


def test_calibration_is_paired_and_has_prompts_of_every_kind(kit):
    decoder = entries(kit)["mask_decoder"]
    files = {tensor["name"]: sorted((kit / "calibration/mask_decoder" / tensor["name"]).iterdir())
             for tensor in decoder["inputs"]}  # fmt: skip
    names = [[file.name for file in found] for found in files.values()]
    assert names == [[f"{number:06d}.bin" for number in range(decoder["samples"])]] * 5
    labels = np.stack([np.fromfile(file, "<f4") for file in files["point_labels"]])
    assert labels.shape[1] == 10 and set(np.unique(labels)) >= {-2, 1, 2, 3}
    assert any(np.fromfile(file, "<f4").any() for file in files["mask_input"])


def test_the_runner_segments_as_the_bundle_does(kit, small_sam_bundle, ascend_machine, tmp_path):
    picture = tmp_path / "picture.png"
    Image.fromarray(comparison_images()[0]).save(picture)
    predictor = segship.load(small_sam_bundle.path, backend="onnxruntime")
    for given, prompts, many in (
        (["--point", "120,90"], {"points": [[120, 90]]}, True),
        (["--point", "120,90,1", "--point", "30,40,0"], {"points": [[120, 90], [30, 40]], "labels": [1, 0]}, False),
        (["--box", "40,30,200,180"], {"boxes": [40, 30, 200, 180]}, False),
    ):
        out = tmp_path / "out.png"
        ascend_machine.run("python3", kit / "run.py", "segment", picture, *given, "--out", out)
        mask = np.asarray(Image.open(tmp_path / "out.mask.png")) > 0
        known = predictor.predict(picture, **prompts, multimask_output=many, clean_up=False)
        chosen = known.masks[0][int(np.argmax(known.iou_predictions[0]))]
        assert mask_iou(mask, chosen) > 0.99
        changed = np.asarray(Image.open(out)).astype(int) - np.asarray(Image.open(picture))
        assert not changed[~mask].any() and changed[mask].any()


def test_the_runner_tells_what_it_lacks(kit, ascend_machine, tmp_path):
    Image.fromarray(comparison_images()[0]).save(tmp_path / "x.png")
    many = [part for number in range(11) for part in ("--point", f"{number},5")]
    for arguments, words in (
        ([], "there is no prompt"),
        (many, "the prompt has 12 places and the kit 10"),
        (["--point", "1,1", "--device", "7"], None),
    ):
        command = ["python3", kit / "run.py", "segment", tmp_path / "x.png", *arguments]
        if words is not None:
            assert words in ascend_machine.run(*command, check=False).stderr
    assert (
        "this kit is of a promptable model"
        in ascend_machine.run(
            "python3", kit / "run.py", "cityscapes", tmp_path, "--work", tmp_path / "w", check=False
        ).stderr
    )
    kit_alone = tmp_path / "uncompiled"
    shutil.copytree(kit, kit_alone, ignore=shutil.ignore_patterns("om"))
    done = ascend_machine.run("python3", kit_alone / "run.py", "accept", check=False)
    assert done.returncode == 1 and "run scripts/20_compile.sh first" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--point", "5"], "'5' is no point; give X,Y or X,Y,LABEL"),
        (["--point", "1,2,3"], "'1,2,3' is no point"),
        (["--point", "nan,2"], "invalid point value: 'nan,2'"),
        (["--box", "1,2,3"], "'1,2,3' is no box; give X0,Y0,X1,Y1"),
        (["--box", "9,9,1,1"], "'9,9,1,1' is no box"),
        (["--point", "1,1", "--out", "x.txt"], "x.txt cannot be written; give --out a name"),
        (["--point", "1,1", "--out", "nowhere/x.png"], "nowhere/x.png cannot be written"),
    ],
)
def test_the_runner_refuses_what_it_does_not_understand(kit, ascend_machine, tmp_path, arguments, words):
    Image.fromarray(comparison_images()[0]).save(tmp_path / "x.png")
    done = ascend_machine.run("python3", kit / "run.py", "segment", tmp_path / "x.png", *arguments, check=False)
    assert words in done.stderr and "Traceback" not in done.stderr and done.returncode


def test_the_runner_refuses_pictures_that_are_none(kit, ascend_machine, tmp_path):
    (tmp_path / "x.png").write_bytes(b"no picture")
    Image.new("RGB", (1000, 1)).save(tmp_path / "line.png")
    for name, words in (
        ("x.png", "cannot be read as a picture"),
        ("none.png", "cannot be read as a picture"),
        ("line.png", "1000 x 1 pixels shrinks to nothing"),
    ):
        command = ["python3", kit / "run.py", "segment", tmp_path / name, "--point", "1,0"]
        done = ascend_machine.run(*command, check=False)
        assert words in done.stderr and "Traceback" not in done.stderr and done.returncode


def test_a_kit_works_wherever_it_lies(kit, ascend_machine, tmp_path):
    strange = tmp_path / "a kit, 図 $HOME"
    shutil.copytree(kit, strange, ignore=shutil.ignore_patterns("om", "quantized"))
    for name in ("00_check", "10_quantize", "20_compile", "30_bench"):
        ascend_machine.script(strange, name)
    assert "within the bar" in accept(ascend_machine, strange, "int8")[0].stdout


def test_semantic_kits_have_a_graph_for_each_batch(streets, ascend_machine):
    kit = streets / "kit"
    assert {name: entry["sizes"] for name, entry in entries(kit).items()} == {
        f"semantic_bs{batch}": {"batch": batch, "height": SIZE_HW[0], "width": SIZE_HW[1]} for batch in (1, 4, 8)
    }
    done, report = accept(ascend_machine, kit, "fp16")
    assert "within the bar" in done.stdout
    assert [row["figures"] for row in report["rows"]] == [{"pixels_equal": 1.0}] * 3


def class_maps(bundle, data):
    """Yield the name of each picture, what the bundle's graph answers to it, and its truth."""
    task = task_module("semantic")
    preprocessing = replace(bundle.manifest.preprocessing, frame=SIZE_HW)
    (session,) = open_sessions(bundle, RunOptions(backend="onnxruntime", threads=1)).values()
    for picture in sorted((data / "leftImg8bit/val/ulm").iterdir()):
        truth = data / "gtFine/val/ulm" / picture.name.replace("leftImg8bit", "gtFine_labelIds")
        (answer,) = task.answer(
            task.Cases((to_tensor(np.asarray(Image.open(picture)), preprocessing),)), {"semantic": session}
        )
        yield picture.stem, answer["class_map"][0], label_ids_to_train_ids(np.asarray(Image.open(truth)))


def test_cityscapes_becomes_bins_and_a_score(streets, ascend_machine, small_street_bundle):
    kit, data, work = streets / "kit", streets / "data", streets / "work"
    command = ["python3", kit / "run.py", "cityscapes", data, "--work", work, "--batch", 4]
    found = json.loads(ascend_machine.run(*command).stdout)
    matrix = ConfusionMatrix(19)
    for stem, classes, truth in class_maps(small_street_bundle, data):
        assert np.array_equal(np.fromfile(work / "outputs" / f"{stem}_0.bin", np.uint8), classes.ravel())
        matrix.add(classes, truth)
    known = matrix.scores()
    expected = {"aAcc": known.pixel_accuracy, "mAcc": known.mean_accuracy, "mIoU": known.mean_iou}
    assert found == pytest.approx({"pictures": 5, **expected}, abs=1e-6)


def test_ais_bench_alone_and_maps_of_other_types_score_the_same(streets, ascend_machine):
    kit, data, work = streets / "kit", streets / "data", streets / "alone"
    ascend_machine.run("python3", kit / "run.py", "preprocess", data, "--work", work / "in")
    ascend_machine.run(
        *("python3", "-m", "ais_bench", "--model", kit / "om/semantic_bs4_fp16.om", "--batchsize", 4),
        *("--input", work / "in", "--output", work, "--output_dirname", "out", "--outfmt", "BIN"),
    )
    # The guide's own graph gives int64.
    (work / "wide").mkdir()
    for file in (work / "out").iterdir():
        np.fromfile(file, np.uint8).astype(np.int64).tofile(work / "wide" / file.name)
    said = [
        ascend_machine.run("python3", kit / "run.py", "score", data, "--work", work / name).stdout
        for name in ("out", "wide")
    ]
    assert said[0] == said[1] and json.loads(said[0])["pictures"] == 5


def test_what_does_not_fit_a_kit_of_streets_is_refused(streets, ascend_machine, tmp_path):
    kit, data = streets / "kit", streets / "data"

    def said(*command):
        done = ascend_machine.run("python3", kit / "run.py", *command, check=False)
        assert done.returncode and "Traceback" not in done.stderr
        return done.stderr

    for batch in (0, 3):
        assert f"--batch is {batch}, and models take 1, 4, 8 pictures" in said(
            "cityscapes", data, "--work", tmp_path, "--batch", batch
        )
    assert not list(tmp_path.iterdir())
    for picture in (data / "leftImg8bit/val/ulm").iterdir():
        np.full(SIZE_HW, 19, np.uint8).tofile(tmp_path / f"{picture.stem}_0.bin")
    assert "do not fit each other, or a kit of 19 classes" in said("score", data, "--work", tmp_path)
    other = tmp_path / "other"
    shutil.copytree(data, other)
    for truth in (other / "gtFine/val/ulm").iterdir():
        Image.new("L", (8, 8)).save(truth)
    for file in tmp_path.glob("*.bin"):
        np.zeros(SIZE_HW, np.uint8).tofile(file)
    assert "do not fit each other" in said("score", other, "--work", tmp_path)


def test_a_kit_of_one_batch_takes_no_rest(ascend_machine, streets, tmp_path):
    shutil.copytree(streets / "kit", tmp_path / "kit")
    document = json.loads((tmp_path / "kit/kit.json").read_text())
    document["graphs"] = {"semantic_bs4": document["graphs"]["semantic_bs4"]}
    (tmp_path / "kit/kit.json").write_text(json.dumps(document))
    command = ["cityscapes", streets / "data", "--work", tmp_path / "work", "--batch", 4]
    done = ascend_machine.run("python3", tmp_path / "kit/run.py", *command, check=False)
    assert "models take 4 pictures; 1 would be left over" in done.stderr


@pytest.mark.parametrize("setting", [{}, {"DOUBLE_MSIT": "1"}])
def test_both_spellings_of_ais_bench_are_used(kit, ascend_machine, setting):
    # Each double knows one spelling alone, and refuses the other.
    assert ascend_machine.script(kit, "30_bench", **setting).stdout.count("throughput") == 4


def test_the_check_names_what_is_missing(kit, ascend_machine):
    def said(**environment):
        return ascend_machine.script(kit, "00_check", check=False, **environment).stderr

    assert "npu-smi info shows no 310P3; convert again" in said(DOUBLE_CHIP="910B3")
    # As chips are listed whose compiler's name has a second part.
    assert 'Ascend)?910" <<<' in commands.check_script("Ascend910_9391", False)
    assert ascend_machine.script(kit, "00_check", DOUBLE_CHIP="Ascend310P3").returncode == 0
    assert "python3 lacks ais_bench or aclruntime" in said(PYTHONPATH="")
    assert "no CANN toolkit is set" in said(ASCEND_TOOLKIT_HOME="")
    assert "npu-smi is not on PATH" in said(PATH="/usr/bin:/bin")


def test_a_changed_graph_is_seen_on_the_device(kit, ascend_machine, tmp_path):
    shutil.copytree(kit, tmp_path / "kit")
    with open(tmp_path / "kit/graphs/mask_decoder.onnx", "ab") as stream:
        stream.write(b"x")
    assert "a graph was changed" in ascend_machine.script(tmp_path / "kit", "00_check", check=False).stderr


def test_the_runner_is_python_3_7():
    ast.parse(Path(runner.__file__).read_text("utf-8"), feature_version=(3, 7))


DECODER = "image_embeddings:1,32,8,8;point_coords:1,{p},2;point_labels:1,{p};mask_input:1,1,32,32;has_mask_input:1"


def change(**changes):
    """A wrong use of atc: what is changed in the right line, None to leave it out."""
    return lambda flags: {**flags, **changes}


def dims(gears, places=-1):
    return change(dynamic_dims=gears, input_shape=DECODER.format(p=places))


WRONG = {
    "no framework": (change(framework=None), "E10007"),
    "another framework": (change(framework="0"), "E10007"),
    "no chip": (change(soc_version=None), "E10007"),
    "the chip without Ascend": (change(soc_version="310P3"), "E10001"),
    "a space behind the equals sign": (change(soc_version=""), "E10004"),
    "a layout of Caffe": (change(input_format="NHWC"), "E10061"),
    "an unknown log level": (change(log="loud"), "E10010"),
    "an unknown precision": (change(precision_mode="fp8"), "E10061"),
    "a folder as output": (change(output="om/"), "E10022"),
    "no such model": (change(model="graphs/none.onnx"), "E10041"),
    "no integer in a shape": (change(input_shape="image_embeddings:1,c,8,8"), "E10002"),
    "a size of zero": (change(input_shape=DECODER.format(p=0)), "E10011"),
    "an unknown input": (change(input_shape="x:1,3,128,128"), "E10016"),
    "inputs in another order": (
        change(input_shape=";".join(reversed(DECODER.format(p=10).split(";")))),
        "E10001",
    ),
    "a missing input": (change(input_shape=DECODER.format(p=10).rpartition(";")[0]), "E10001"),
    "another rank": (change(input_shape=DECODER.format(p=10).replace("10,2", "10,2,1")), "E10001"),
    "another fixed size": (change(input_shape=DECODER.format(p=10).replace("8,8", "8,9")), "E10001"),
    "one gear": (dims("2,2"), "E10035"),
    "too many gears": (dims(";".join(f"{n},{n}" for n in range(1, 102))), "E10036"),
    "gears of unequal length": (dims("2,2;3"), "E10037"),
    "a negative gear": (dims("2,2;-3,-3"), "E10038"),
    "a gear twice": (dims("2,2;3,3;2,2"), "E10039"),
    "gears of a fixed model": (dims("2,2;3,3", 10), "E10040"),
    "a range with gears": (dims("2,2;3,3", "1~4"), "E10040"),
    "more unknown sizes than a gear has": (dims("2;3"), "E10045"),
    "fewer unknown sizes than a gear has": (dims("2,2,2;3,3,3"), "E10046"),
    "two kinds of gears": (change(dynamic_dims="2,2;3,3", dynamic_batch_size="1,2"), "E10009"),
    "int8 with gears": (
        change(model="quantized.onnx", dynamic_dims="2,2;3,3", input_shape=DECODER.format(p=-1)),
        "E10055",
    ),
    "int8 kept in float32": (
        change(model="quantized/mask_decoder_deploy_model.onnx", precision_mode="force_fp32"),
        "E10055",
    ),
    "an unknown option": (change(soc="Ascend310P3"), "unknown command line flag 'soc'"),
}


@pytest.fixture(scope="module")
def right(kit):
    """The kit's own line of atc for the decoder."""
    line = next(line for line in (kit / "scripts/20_compile.sh").read_text().splitlines() if "mask_decoder" in line)
    parts = [part.strip("'").removeprefix("--").partition("=") for part in line.split()[1:]]
    return {name: value for name, _, value in parts}


def run_atc(machine, kit, flags):
    words = " ".join(f"--{name}='{value}'" for name, value in flags.items() if value is not None)
    return machine.run("bash", "-c", f"cd '{kit}' && mkdir -p om && atc {words}", check=False)


@pytest.mark.parametrize("use", WRONG)
def test_wrong_uses_of_the_compiler_get_its_own_code(kit, geared, right, ascend_machine, use):
    make, code = WRONG[use]
    flags = make(right)
    # The kit of fixed sizes declares them; only that of gears may be asked for others.
    where = geared if "dynamic_dims" in flags else kit
    done = run_atc(ascend_machine, where, flags)
    assert done.returncode == 1 and code in done.stdout, done.stdout


def test_the_right_line_is_taken(kit, right, ascend_machine):
    assert "ATC run success" in run_atc(ascend_machine, kit, right).stdout


def test_an_operator_or_an_opset_without_a_parser_is_refused_by_the_compiler(kit, right, ascend_machine, tmp_path):
    for opset, kind in ((20, "Gelu"), (19, "Relu")):
        tensor = TensorSpec("x", "float32", (1, 4))
        node = helper.make_node(kind, ["x"], ["y"])
        model = make_model([node], [tensor], [TensorSpec("y", "float32", (1, 4))], opset=opset)
        onnx.save(model, tmp_path / "one.onnx")
        flags = {**right, "model": tmp_path / "one.onnx", "input_shape": "x:1,4"}
        assert "EZ9010: No parser is registered" in run_atc(ascend_machine, kit, flags).stdout


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "point_labels/000000.bin").write_bytes(b"1234"), "has 4 bytes"),
        (lambda folder: (folder / "mask_input/000000.bin").unlink(), "must hold as many files"),
        (lambda folder: shutil.rmtree(folder / "has_mask_input"), "does not exist"),
    ],
)
def test_wrong_calibration_is_refused_by_amct(kit, ascend_machine, tmp_path, spoil, words):
    shutil.copytree(kit, tmp_path / "kit")
    spoil(tmp_path / "kit/calibration/mask_decoder")
    done = ascend_machine.script(tmp_path / "kit", "10_quantize", check=False)
    assert done.returncode == 1 and words in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"soc": None}, "soc is None; accepted is Ascend and the chip's name"),
        ({"soc": "310P3"}, "soc is '310P3'"),
        ({"soc": "Ascend"}, "soc is 'Ascend'"),
        ({"soc": "Ascend３１０"}, "soc is 'Ascend３１０'"),
        ({"gears": "2..9", "int8": True}, "gears and int8 exclude each other"),
        ({"gears": "2..9", "places": 4}, "both say how many places"),
        ({"gears": "9..2"}, "2 to 100 numbers of 1 or more"),
        ({"gears": "0..4"}, "2 to 100 numbers of 1 or more"),
        ({"gears": "1..200"}, "2 to 100 numbers of 1 or more"),
        ({"gears": "2-9"}, "two numbers of places"),
        ({"calibration": Path("x")}, "calibration is of int8, which was not asked for"),
        ({"cann": 5}, "cann is 5; accepted is 6 or 7 or 8 or None"),
        ({"places": 0}, "places is 0"),
        ({"size": (64, 64)}, "size is an option of semantic models, and this is a promptable one"),
    ],
)
def test_options_that_do_not_fit_are_refused(small_sam_bundle, tmp_path, options, words):
    with pytest.raises(InputError, match=words) as caught:
        convert(small_sam_bundle.path, tmp_path / "kit", ConvertOptions("ascend", **{"soc": SOC, **options}))
    assert caught.value.code == "bad_option" and not (tmp_path / "kit").exists()


def test_semantic_models_have_no_places_and_give_class_maps_of_their_size(small_street_bundle, tmp_path):
    manifest = small_street_bundle.manifest
    framed = replace(manifest, preprocessing=replace(manifest.preprocessing, frame=SIZE_HW))
    with pytest.raises(InputError, match="places is an option of promptable models, and this is a semantic one"):
        convert(small_street_bundle.path, tmp_path / "kit", ascend(places=4))
    for other, options, words in (
        (framed, {"size": (64, 64)}, r"accepted is \(96, 160\), the one size of this bundle"),
        (replace(manifest, output="logits"), {}, "gives logits, and a kit holds class maps"),
    ):
        with pytest.raises(InputError, match=words):
            write(replace(small_street_bundle, manifest=other), tmp_path, ascend(**options), lambda *_: None)


def one_node(tmp_path, kind, opset=18, **attributes):
    spec = GraphSpec("one", (TensorSpec("x", "float32", ("n", 4)),), (TensorSpec("y", "float32", ("n", 4)),))
    model = make_model([helper.make_node(kind, ["x"], ["y"], **attributes)], spec.inputs, spec.outputs, opset=opset)
    onnx.save(model, tmp_path / "one.onnx")
    return open_graph(tmp_path / "one.onnx")


def test_operators_that_cann_does_not_know_are_refused_by_name(tmp_path):
    with pytest.raises(ExportError, match=r"CANN 8 registers no Gelu .* for opset 20, which graph 'one'") as caught:
        graphs.check_operators(one_node(tmp_path, "Gelu", 20), "one", 8)
    assert caught.value.code == "unsupported_operator"
    graphs.check_operators(one_node(tmp_path, "IsInf"), "one", 8)
    with pytest.raises(ExportError, match="CANN 7 registers no IsInf"):
        graphs.check_operators(one_node(tmp_path, "IsInf"), "one", 7)


def test_a_norm_that_is_written_in_another_way_is_refused(tmp_path):
    spec = GraphSpec("up", (TensorSpec("x", "float32", (1, 2, 3, 3)),), (TensorSpec("y", "float32", (1, 1, 6, 6)),))
    weight = np.ones((2, 1, 2, 2), np.float32)
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w"], ["up"], strides=[2, 2]),
        helper.make_node("ReduceMean", ["up"], ["mean"], axes=[1]),
        helper.make_node("Sub", ["up", "mean"], ["y"]),
    ]
    onnx.save(make_model(nodes, spec.inputs, spec.outputs, {"w": weight}), tmp_path / "up.onnx")
    with pytest.raises(ExportError, match="written in an unknown way") as caught:
        graphs.keep_norms_apart(open_graph(tmp_path / "up.onnx"))
    assert caught.value.code == "unknown_pattern"


def test_bundles_of_any_kind_of_graph_are_compared(tmp_path):
    # Its decoder adds labels up, so that places that are filled in change it: no decoder of ours, and so refused.
    with pytest.raises(ComparisonFailed, match="fixed sizes"):
        convert(make_bundle(tmp_path).path, tmp_path / "kit", ascend())
    assert not (tmp_path / "kit").exists()


@pytest.fixture
def certified(small_sam_bundle, tmp_path):
    """A copy of the bundle with a certificate in which nothing was measured yet."""
    folder = tmp_path / "bundle"
    shutil.copytree(small_sam_bundle.path, folder)
    known = identity(small_sam_bundle)
    certificate = Certificate(
        segship=segship.__version__,
        **known,
        evaluation=EvaluationList("0" * 64, 1, False),
        reference=Reference(known["model"], "onnxruntime", "1", "0" * 64, {}),
        certified=(),
        machine={},
        created="2026-11-29T00:00:00+00:00",
    )
    (folder / "certificate.json").write_bytes(certificate.to_json())
    return folder


def test_a_report_becomes_part_of_the_certificate(kit, ascend_machine, certified, capsys):
    accept(ascend_machine, kit, "fp16")
    assert main(["verify", str(certified), "--kit", str(kit / "report.json")]) == 0
    assert "ascend fp16 on Ascend310P3: gold" in capsys.readouterr().out
    row = read_certificate(certified).verdict("ascend", "fp16")
    assert row.cpu == "Ascend310P3" and "cann unknown" in row.version and row.evidence.bar["cosine"] == 0.999
    assert {one.what for one in row.evidence.rows} >= {"image_embeddings", "masks"}
    # Taken in again it stands there once.
    certify_kit(certified, kit / "report.json")
    accept(ascend_machine, kit, "int8")
    certify_kit(certified, kit / "report.json")
    assert [one.precision for one in read_certificate(certified).certified] == ["fp16", "int8"]
    assert all(line.holds for line in verify_certificate(certified))


def test_a_report_of_a_device_that_answers_otherwise_fails_and_is_refused_when_loading(
    kit, ascend_machine, certified, capsys
):
    accept(ascend_machine, kit, "fp16", check=False, DOUBLE_NOISE="0.3")
    assert main(["verify", str(certified), "--kit", str(kit / "report.json")]) == 5
    assert read_certificate(certified).verdict("ascend", "fp16").verdict == "fail"
    with pytest.raises(segship.BackendUnavailable, match="says that fp16 in ascend fails its bar") as caught:
        segship.load(certified, backend="ascend", device="npu", precision="fp16")
    assert caught.value.code == "accuracy_failed"
    # What is no number is past every bar.
    accept(ascend_machine, kit, "fp16", check=False, DOUBLE_NOISE="nan")
    assert certify_kit(certified, kit / "report.json").verdict == "fail"


def test_other_reports_are_refused(kit, streets, ascend_machine, certified, tmp_path):
    accept(ascend_machine, kit, "fp16")
    accept(ascend_machine, streets / "kit", "fp16")
    with pytest.raises(BundleError, match="made of other graphs than those of") as caught:
        certify_kit(certified, streets / "kit/report.json")
    assert caught.value.code == "other_bundle"
    for text in ("{}", "[", '{"format_version": "1"}'):
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(InputError, match="is no report of a kit") as caught:
            certify_kit(certified, tmp_path / "report.json")
        assert caught.value.code == "bad_report"
    report = json.loads((kit / "report.json").read_text())
    encoder = [row for row in report["rows"] if row["graph"] == "image_encoder"]
    tensors = [row for row in report["rows"] if row["what"] != "masks"]
    for changes, words in (
        ({"precision": "fp32"}, "precision: Input should be 'fp16' or 'int8'"),
        ({"format_version": 2}, "format_version: Input should be 1"),
        ({"rows": encoder}, "measures too little: figures of mask_decoder are missing"),
        ({"rows": tensors}, "or its masks or classes are missing"),
        ({"rows": [{**row, "figures": {}} for row in report["rows"]]}, "image_encoder, mask_decoder are missing"),
        ({"rows": encoder, "graphs": {"image_encoder": report["graphs"]["image_encoder"]}}, "measures too little"),
    ):
        (tmp_path / "report.json").write_text(json.dumps({**report, **changes}))
        with pytest.raises(InputError, match=words) as caught:
            certify_kit(certified, tmp_path / "report.json")
        assert caught.value.code == "bad_report"
    (certified / "certificate.json").unlink()
    with pytest.raises(BundleError, match="has no certificate"):
        certify_kit(certified, kit / "report.json")
