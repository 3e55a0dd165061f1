# SPDX-License-Identifier: Apache-2.0
"""What nndeploy gets: graphs held against segship, and, where nndeploy is installed apart, its own engine on them."""

import json
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import segship
from segship.backends import onnxruntime
from segship.bundle import Bundle
from segship.catalog import find_model
from segship.errors import InputError
from segship.images.reading import read_image
from segship.masks.scores import mask_iou
from segship.promptable.transforms import prepare_image
from segship.ship.official import object_cases
from segship.ship.targets import ConvertOptions, convert, nndeploy
from segship.spec import GraphSpec, TensorSpec, image_encoder_spec
from tests.small_bundle import GEOMETRY, make_bundle, make_model, small_manifest

ENVIRONMENT = Path(__file__).parents[3] / ".targets" / "nndeploy" / "bin"
"""Made by `make target-nndeploy`."""
TRUCK = Path(__file__).parents[3] / "../shared/images/truck.jpg"


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    output = tmp_path_factory.mktemp("nndeploy") / "tiny"
    return output, convert("tiny", output, ConvertOptions("nndeploy"))


def test_graphs_and_what_runs_them_are_written(converted):
    output, document = converted
    graphs = {"tiny.encoder.onnx", "tiny.decoder.onnx"}
    assert {path.name for path in output.iterdir()} == graphs | {
        "workflow.json", "segment.py", "README.md", "export.json",
    }  # fmt: skip
    assert document["graphs"].keys() == graphs
    for name in graphs:
        model = onnx.load(output / name)
        onnx.checker.check_model(model, full_check=True)
        # What ONNX Runtime 1.18 reads.
        assert (model.opset_import[0].version, model.ir_version) == (18, 10)
    compile((output / "segment.py").read_text("utf-8"), "segment.py", "exec")
    assert all(name in (output / "segment.py").read_text("utf-8") for name in graphs)


def test_masks_are_those_of_segship(converted):
    rows = {(row["graph"], row["what"]): row for row in converted[1]["comparison"]["rows"]}
    assert all(row["passed"] for row in rows.values())
    assert rows["decoder", "masks"]["figures"]["mask_iou_mean"] > 0.9995
    assert rows["encoder, decoder", "masks"]["figures"]["mask_iou_min"] > 0.99


def test_edges_of_the_workflow_join_an_output_to_inputs_of_its_kind(converted):
    document = json.loads((converted[0] / "workflow.json").read_text("utf-8"))
    made = {port["name_"]: port["type_"] for node in document["node_repository_"] for port in node["outputs_"]}
    taken = {port["name_"]: port["type_"] for node in document["node_repository_"] for port in node["inputs_"]}
    assert taken.items() <= made.items() and set(made) - set(taken) == set()
    # The server of nndeploy downloads what stands there.
    assert not any(document[f"{kind}_url_"] for kind in ("image", "video", "audio", "model", "other"))


@pytest.fixture(scope="module")
def preprocessing():
    """The nodes before the encoder alone: bytes in, the encoder's input out."""
    spec = image_encoder_spec(GEOMETRY)
    image = TensorSpec("image", "float32", (1, 3, 32, 32))
    identity = onnx.helper.make_node("Identity", ["image"], ["image_embeddings"])
    output = TensorSpec("image_embeddings", "float32", image.shape)
    model = make_model([identity], (image,), (output,), opset=18)
    nndeploy.prepend_preprocessing(model, small_manifest().preprocessing)
    known = GraphSpec(spec.name, nndeploy.encoder_spec(GEOMETRY).inputs, (output,))
    nndeploy.set_interface(model, known)
    with onnxruntime.Session(model.SerializeToString(), known) as session:
        yield lambda pixels: session.run({"input": np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])})[
            "image_embeddings"
        ]


@pytest.mark.parametrize("size_hw", [(100, 150), (151, 99), (32, 32), (20, 11), (1024, 1000), (3, 40), (683, 1024)])
def test_pictures_of_any_size_are_prepared_as_segship_does(preprocessing, size_hw):
    pixels = np.random.default_rng(0).integers(0, 256, (*size_hw, 3), np.uint8)
    pixels[-size_hw[0] // 3 :] = 0
    found, expected = preprocessing(pixels), prepare_image(pixels, small_manifest().preprocessing)
    # A rounding of the resize, which Pillow does after each axis; zeros of the padding stay zeros.
    assert np.abs(found - expected).max() < 1.01 / 57
    np.testing.assert_array_equal(found == 0, expected == 0)


def test_the_frame_of_samgraph_is_taken_for_what_it_is(preprocessing):
    picture = np.random.default_rng(1).integers(1, 256, (512, 1024, 3), np.uint8)
    framed = np.zeros((1024, 1024, 3), np.uint8)
    framed[:512] = picture
    np.testing.assert_allclose(preprocessing(framed), preprocessing(picture), atol=1e-6)
    assert np.isfinite(preprocessing(np.zeros_like(framed))).all()


def test_another_opset_is_refused(tmp_path):
    bundle = make_bundle(tmp_path)
    with pytest.raises(InputError, match="have opset 17 .* nndeploy is given 18 .* export the checkpoint") as caught:
        convert(bundle.path, tmp_path / "out", ConvertOptions("nndeploy"))
    assert caught.value.code == "bad_opset" and not (tmp_path / "out").exists()


def test_options_of_another_target_are_refused():
    with pytest.raises(InputError, match="weights is an option of mnn, and the target is nndeploy; leave it out"):
        ConvertOptions("nndeploy", weights="int8")


def photograph_and_click():
    """The demo's photograph, a click of the cases that every export is compared on, and its mask."""
    tiny = Bundle.open(find_model("tiny"))
    known = next(
        one
        for one in object_cases(tiny, single_mask=True)[0].objects
        if one.prompts["point_labels"].tolist() == [[1, -1]]
    )
    photograph = read_image(segship.demo_photograph()).pixels
    # The model frame's longer side is the picture's.
    point = known.prompts["point_coords"][0, 0] * max(photograph.shape) / tiny.manifest.geometry.image_size
    return photograph, point.tolist(), known.masks[0]


def truck_and_click():
    """The truck of the published examples, a click of theirs, and the mask that the graphs give and segship chooses."""
    truck = read_image(TRUCK).pixels
    found = segship.load("tiny").predict(truck, points=[[500, 375]], clean_up=False, edges=False)
    return truck, [500, 375], found.masks[0][int(np.argmax(found.iou_predictions[0]))]


def run_nndeploy(folder, out, way, point):
    """Segment ``picture.jpg`` of a converted folder by nndeploy itself, and return the mask."""
    x, y = point
    command = [ENVIRONMENT / "python", "segment.py", "picture.jpg", out / "mask.png", "--point", f"{x},{y}"]
    if way != "script":
        text = (folder / "workflow.json").read_text("utf-8").replace("mask.png", str(out / "mask.png"))
        if way == "task":
            text = text.replace("kParallelTypeSequential", "kParallelTypeTask")
        document = json.loads(text)
        prompt = next(node for node in document["node_repository_"] if node["name_"] == "prompt")
        prompt["param_"]["points"] = [x, y, 0, 0]
        (out / "workflow.json").write_text(json.dumps(document))
        command = [ENVIRONMENT / "nndeploy-run-json", "--json_file", out / "workflow.json", "--name", "segment"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
    return np.array(Image.open(out / "mask.png"))


@pytest.mark.slow
@pytest.mark.skipif(not ENVIRONMENT.is_dir(), reason="nndeploy is not here; make target-nndeploy")
@pytest.mark.parametrize("way", ["workflow", "task", "script"])
@pytest.mark.parametrize(
    "picture_and_click",
    [
        photograph_and_click,
        pytest.param(
            truck_and_click,
            marks=pytest.mark.skipif(not TRUCK.exists(), reason="the shared photographs are not beside the checkout"),
        ),
    ],
)
def test_the_engine_of_nndeploy_gives_the_mask_of_segship(converted, tmp_path, picture_and_click, way):
    picture, point, known = picture_and_click()
    Image.fromarray(picture).save(converted[0] / "picture.jpg", quality=100, subsampling=0)
    mask = run_nndeploy(converted[0], tmp_path, way, point)
    assert set(np.unique(mask)) == {0, 255}
    iou = mask_iou(mask > 0, known)
    print(f"nndeploy, {way}, {picture_and_click.__name__}: IoU {iou:.4f}")
    assert iou >= 0.99
