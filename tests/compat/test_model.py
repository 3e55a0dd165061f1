# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from segship import compat
from segship.errors import BackendUnavailable, BundleError, InputError
from tests.compat.side_by_side import the_facade, the_reference


def test_sizes_are_those_of_the_reference():
    (_, model), (_, sam) = the_reference(), the_facade()
    assert sam.image_encoder.img_size == model.image_encoder.img_size
    for name in ("embed_dim", "image_embedding_size", "input_image_size", "mask_input_size"):
        assert getattr(sam.prompt_encoder, name) == getattr(model.prompt_encoder, name)
    assert sam.mask_threshold == model.mask_threshold and sam.image_format == model.image_format
    assert torch.zeros(1, device=sam.device).device == model.device


def test_registry_has_the_names_of_the_reference_and_ours():
    from segment_anything import sam_model_registry

    the_reference()
    assert set(compat.sam_model_registry) == {*sam_model_registry, "vit_t", "tiny"}
    assert compat.sam_model_registry["default"] is compat.build_sam is compat.build_sam_vit_h


def test_registry_loads_the_model_inside_the_package():
    sam = compat.sam_model_registry["tiny"](threads=1)
    before = sam.predictor
    assert sam.to(device=torch.device("cpu")) is sam and sam.eval() is sam
    assert sam.predictor is not before and sam.predictor.backend == "onnxruntime"
    assert "1 threads" in sam.predictor.description


def test_device_that_is_not_here_is_refused():
    if torch.cuda.is_available():
        pytest.skip("it is here")
    with pytest.raises(BackendUnavailable):
        compat.sam_model_registry["tiny"]().to("cuda")


def test_registry_refuses_another_architecture(small_checkpoint):
    with pytest.raises(InputError, match=r"small.pth holds a model of architecture 'custom' and 'vit_b' was asked"):
        compat.build_sam_vit_b(checkpoint=small_checkpoint)
    assert compat.Sam(small_checkpoint).image_encoder.img_size == 128


@pytest.mark.parametrize("build", [compat.build_sam_vit_b, compat.build_sam_vit_l, compat.build_sam_vit_h])
def test_model_that_was_never_fetched_says_how(build, monkeypatch, tmp_path):
    monkeypatch.setenv("SEGSHIP_CACHE", str(tmp_path))
    with pytest.raises(BundleError, match="segship fetch vit_"):
        build()


def test_model_in_a_given_predictor_does_not_move():
    with pytest.raises(InputError, match="cannot move to cuda; load it there with segship.load") as caught:
        the_facade()[1].to("cuda")
    assert caught.value.code == "loaded_elsewhere"
