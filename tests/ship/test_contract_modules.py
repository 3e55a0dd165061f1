# SPDX-License-Identifier: Apache-2.0
"""Graphs of other people's contracts against the reference's own wrapper and exact interfaces."""

import copy

import numpy as np
import onnx
import pytest
import torch

from segship.ship.contracts import (
    PixelEncoder,
    append_upscaling,
    official_decoder_spec,
    one_object_decoder_spec,
    pixel_encoder_spec,
)
from segship.ship.graph.lower import lower_opset
from tests.oracle import SMALL_VIT, build_reference, reference
from tests.ship.graph.running import random_inputs, relative_difference, run_proto, traced_graph
from tests.ship.graph.test_trace import assert_contract, interface

SIZES_HW = [(128, 128), (75, 128), (300, 211), (33, 57)]


@pytest.fixture(scope="module")
def reference_sam(sam):
    model = build_reference(SMALL_VIT)
    model.load_state_dict(sam.state_dict(), strict=True)
    return model


def official_proto(cut_decoder_protos, single):
    spec = official_decoder_spec(SMALL_VIT.geometry, single)
    return append_upscaling(copy.deepcopy(cut_decoder_protos[single]), spec, SMALL_VIT.image_size)


@pytest.mark.parametrize("single", [False, True])
def test_interfaces_are_exact(cut_decoder_protos, single):
    assert_contract(cut_decoder_protos[single], one_object_decoder_spec(SMALL_VIT.geometry, single))
    assert_contract(official_proto(cut_decoder_protos, single), official_decoder_spec(SMALL_VIT.geometry, single))


def test_official_names_are_the_published_ones(cut_decoder_protos):
    model = official_proto(cut_decoder_protos, False)
    assert [name for name, _ in interface(model.graph.input)] == [
        "image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size",
    ]  # fmt: skip
    assert [name for name, _ in interface(model.graph.output)] == ["masks", "iou_predictions", "low_res_masks"]


@pytest.fixture(scope="module", params=[17, 18])
def official_protos(request, cut_decoder_protos):
    """The official decoder with four masks and with the single one, at one opset."""
    protos = {single: official_proto(cut_decoder_protos, single) for single in (False, True)}
    if request.param < 18:
        protos = {single: lower_opset(model, request.param) for single, model in protos.items()}
    for model in protos.values():
        onnx.checker.check_model(model, full_check=True)
    return protos


@pytest.mark.parametrize("size_hw", SIZES_HW)
@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("points", [2, 3, 5])
def test_official_decoder_equals_the_reference_wrapper(official_protos, reference_sam, single, size_hw, points):
    reference()
    from segment_anything.utils.onnx import SamOnnxModel

    inputs = random_inputs(official_decoder_spec(SMALL_VIT.geometry, single), seed=points, num_points=points)
    inputs["orig_im_size"] = np.array(size_hw, np.float32)
    wrapper = SamOnnxModel(reference_sam, return_single_mask=single)
    with torch.inference_mode():
        expected = wrapper(*(torch.from_numpy(value) for value in inputs.values()))
    actual = run_proto(official_protos[single], inputs)
    for name, value in zip(("masks", "iou_predictions", "low_res_masks"), expected, strict=True):
        assert value.shape == actual[name].shape
        assert relative_difference(value.numpy(), actual[name]) <= 1e-4


def test_pixel_encoder_normalises_and_pads_inside(sam):
    spec = pixel_encoder_spec(SMALL_VIT.geometry)
    sizes = dict.fromkeys(("image_height", "image_width"), SMALL_VIT.image_size)
    model = traced_graph(PixelEncoder(sam), spec, largest_sizes=sizes)
    assert_contract(model, spec)
    for height, width in ((128, 128), (70, 128), (128, 3)):
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.float32)
        frame = np.zeros((1, 3, 128, 128), np.float32)
        normalised = (pixels - SMALL_VIT.pixel_mean) / SMALL_VIT.pixel_std
        frame[0, :, :height, :width] = normalised.transpose(2, 0, 1)
        with torch.inference_mode():
            expected = sam.image_encoder(torch.from_numpy(frame)).numpy()
        actual = run_proto(model, {"input_image": pixels})["image_embeddings"]
        assert relative_difference(expected, actual) <= 1e-5
