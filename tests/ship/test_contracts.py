# SPDX-License-Identifier: Apache-2.0
"""Exports for other programs: the files, their interfaces, and a run as those programs do it."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest

from segship.errors import ComparisonFailed
from segship.masks.scores import mask_iou
from segship.promptable.prompts import Prompts
from segship.promptable.task import EXACT_BAR
from segship.promptable.transforms import resize_image, resized_size, to_model_frame
from segship.ship.contracts import export_contract
from segship.ship.options import ExportOptions
from tests.oracle import SMALL_VIT
from tests.promptable.test_predictor import IMAGE
from tests.small_models import small_predictor

FILES = {
    "official": {"small.decoder.onnx"},
    "ascend": {"encoder.onnx", "decoder.onnx"},
    "samexporter": {"small.encoder.onnx", "small.decoder.onnx"},
}
INTERFACES = {
    "small.encoder.onnx": (["input_image"], ["image_embeddings"]),
    "encoder.onnx": (["x"], ["image_embeddings"]),
    "decoder.onnx": (
        ["image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input"],
        ["iou_predictions", "low_res_masks"],
    ),
    "small.decoder.onnx": (
        ["image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size"],
        ["masks", "iou_predictions", "low_res_masks"],
    ),
}


@pytest.fixture(scope="module", params=FILES)
def exported(request, small_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "out"
    options = ExportOptions(contract=request.param, single_mask=request.param == "ascend")
    opset = {"official": 17, "ascend": 14, "samexporter": 17}[request.param]
    return request.param, folder, export_contract(small_checkpoint, folder, options), opset


def test_files_and_interfaces_are_those_of_the_contract(exported):
    contract, folder, document, opset = exported
    assert {path.name for path in folder.iterdir()} == {*FILES[contract], "export.json"}
    assert json.loads((folder / "export.json").read_text()) == json.loads(json.dumps(document))
    for file in FILES[contract]:
        model = onnx.load(str(folder / file))
        onnx.checker.check_model(model, full_check=True)
        assert model.opset_import[0].version == opset
        names = ([value.name for value in model.graph.input], [value.name for value in model.graph.output])
        assert names == INTERFACES[file]


def test_every_step_passed(exported):
    steps = exported[2]["comparison"]["steps"]
    assert {row["step"] for row in steps} == {"traced", "simplified", f"lowered to opset {exported[3]}"}
    assert all(row["passed"] for row in steps)


def test_samexporter_pair_runs_as_its_readers_run_it(exported):
    """Raw pixels in, box as labels 2 and 3, one padding point, masks of the image's size out."""
    contract, folder, *_ = exported
    if contract != "samexporter":
        pytest.skip("only this contract has a pixel encoder")
    size = IMAGE.shape[:2]
    pixels = resize_image(IMAGE, SMALL_VIT.image_size).astype(np.float32)
    encoder = onnxruntime.InferenceSession(str(folder / "small.encoder.onnx"))
    decoder = onnxruntime.InferenceSession(str(folder / "small.decoder.onnx"))
    embedding = encoder.run(None, {"input_image": pixels})[0]
    point = to_model_frame([[50, 40], [0, 0]], size, resized_size(size, SMALL_VIT.image_size))
    masks = decoder.run(
        None,
        {
            "image_embeddings": embedding,
            "point_coords": point[None],
            "point_labels": np.array([[1, -1]], np.float32),
            "mask_input": np.zeros((1, 1, 32, 32), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
            "orig_im_size": np.array(size, np.float32),
        },
    )[0]
    expected = small_predictor().predict(IMAGE, Prompts(points=[[50, 40]])).masks[0]
    assert masks.shape == (1, 4, *size)
    for ours, theirs in zip(expected, masks[0, 1:] > 0, strict=True):
        assert mask_iou(ours, theirs) >= 0.999


def test_failed_comparison_leaves_nothing_behind(small_checkpoint, tmp_path):
    options = ExportOptions(contract="official", bar={**EXACT_BAR, "max_abs": 0.0})
    with pytest.raises(ComparisonFailed, match="nothing was written"):
        export_contract(small_checkpoint, tmp_path / "out", options)
    assert list(tmp_path.iterdir()) == []
