# SPDX-License-Identifier: Apache-2.0
"""What a semantic predictor gives, against the published steps done with torch, and what it refuses."""

import io
import threading

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from segship.errors import BackendUnavailable, BundleError, ImageError, InputError
from segship.images import ImageLimits
from segship.loading import load_semantic
from segship.semantic import predictor as predictor_module
from segship.semantic.preprocessing import resize_pixels
from segship.semantic.views import MULTI_SCALE_RATIOS, SemanticOptions
from tests.semantic.networks import CONVOLUTION, MEAN, STD, TABLE, Network, logits_of, picture


def normalised(pixels):
    return torch.from_numpy(((pixels.astype(np.float64) - MEAN) / STD).transpose(2, 0, 1)[None].astype(np.float32))


@torch.inference_mode()
def published_logits(pixels, size_hw):
    """Resized, normalised, run, and brought back to the image's size."""
    logits = CONVOLUTION(normalised(resize_pixels(pixels, size_hw)))
    return F.interpolate(logits, pixels.shape[:2], mode="bilinear", align_corners=False)[0].numpy()


def agreement(first, second):
    return (first == second).mean()


def test_whole_image_is_argmax_of_the_published_logits():
    pixels, network = picture(), Network()
    class_map = network.predictor.segment(pixels)
    expected = published_logits(pixels, (40, 60)).argmax(0)
    assert class_map.array.dtype == np.uint8 and class_map.array.shape == (55, 83)
    assert agreement(class_map.array, expected) > 0.9999
    assert class_map.table is TABLE and class_map.notes == () and class_map.probability is None
    assert network.shapes == [(1, 3, 40, 60)]


def test_one_ratio_or_windows_need_no_softmax_and_equal_the_mean_of_softmaxes():
    pixels, predictor = picture(), Network().predictor
    for options in (
        SemanticOptions(ratios=(1.5,)),
        SemanticOptions(window=(16, 20), stride=(10, 13)),
        SemanticOptions(window=(100, 100)),
    ):
        probabilities = predictor.probabilities(pixels, options)
        assert agreement(predictor.segment(pixels, options).array, probabilities.argmax(0)) > 0.9999


def test_ratios_and_mirrors_are_the_argmax_of_their_mean():
    pixels, network = picture(), Network()
    options = SemanticOptions(ratios=MULTI_SCALE_RATIOS, flip=True, probability=True)
    class_map = network.predictor.segment(pixels, options)
    assert len(network.shapes) == 12
    probabilities = network.predictor.probabilities(pixels, options)
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
    assert np.array_equal(class_map.array, probabilities.argmax(0))
    assert np.array_equal(class_map.probability, probabilities.max(0))


@pytest.mark.parametrize(
    "options", [SemanticOptions(probability=True), SemanticOptions(window=(16, 20), probability=True)]
)
def test_probability_is_the_softmax_of_the_class(options):
    pixels, predictor = picture(), Network().predictor
    class_map = predictor.segment(pixels, options)
    expected = torch.from_numpy(predictor.logits(pixels, options)).softmax(0).max(0).values
    np.testing.assert_allclose(class_map.probability, expected, atol=1e-6)


def test_logits_are_those_of_the_published_steps():
    pixels, predictor = picture(), Network().predictor
    np.testing.assert_allclose(predictor.logits(pixels), published_logits(pixels, (40, 60)), atol=1e-3)


@pytest.mark.parametrize("output", ["logits", "class_map"])
@pytest.mark.parametrize(
    ("batch", "on_gpu", "runs"),
    [("batch", True, [4, 1]), ("batch", False, [1] * 5), (1, True, [1] * 5), (3, False, [3, 3, 3])],
)
def test_batches_give_what_single_images_give(output, batch, on_gpu, runs):
    network = Network(output, batch=batch, on_gpu=on_gpu)
    # Two that have one size after resizing though their own differ, one that has another, and a double.
    pictures = [picture(), picture(110, 166, seed=1), picture(40, 40, seed=2), picture(seed=3), picture()]
    together = network.predictor.segment_batch(pictures)
    assert [shape[0] for shape in network.shapes] == runs
    for pixels, class_map in zip(pictures, together, strict=True):
        alone = network.predictor.segment(pixels)
        assert np.array_equal(class_map.array, alone.array) and class_map.notes == alone.notes
    assert network.predictor.segment_batch([]) == []


def test_a_graph_of_one_size_gets_the_image_at_its_upper_left_and_zeros():
    seen = []

    def answer(images):
        seen.append(images.copy())
        return logits_of(images)

    predictor = Network(size=(50, 64), scale=(60, 40), answer=answer).predictor
    pixels = picture(40, 60)
    class_map = predictor.segment(pixels)
    assert class_map.notes == ("padded_to_graph",)
    np.testing.assert_allclose(seen[0][:, :, :40, :60], normalised(pixels), atol=1e-5)
    assert not seen[0][:, :, 40:].any() and not seen[0][:, :, :, 60:].any()
    assert np.array_equal(class_map.array, logits_of(seen[0])[0, :, :40, :60].argmax(0))


def test_an_image_larger_than_the_graph_is_made_to_fit_by_one_factor():
    network = Network(size=(30, 64), scale=(600, 400))
    pixels = picture(90, 120)
    class_map = network.predictor.segment(pixels)
    assert class_map.notes == ("scaled_to_graph", "padded_to_graph") and class_map.array.shape == (90, 120)
    small = normalised(resize_pixels(pixels, (30, 40)))
    with torch.inference_mode():
        logits = CONVOLUTION(F.pad(small, (0, 24)))[:, :, :, :40]
    expected = F.interpolate(logits, (90, 120), mode="bilinear", align_corners=False)[0].argmax(0)
    assert agreement(class_map.array, expected.numpy()) > 0.9999


def test_windows_of_a_graph_of_one_size_see_the_image_at_its_test_scale():
    pixels = picture(80, 120)
    fixed, free = Network(size=(30, 32), scale=(120, 80)), Network(scale=(120, 80))
    options = SemanticOptions(window=(30, 32))
    assert np.array_equal(fixed.predictor.segment(pixels, options).array, free.predictor.segment(pixels, options).array)
    assert set(fixed.shapes) == {(1, 3, 30, 32)}
    with pytest.raises(InputError, match=r"takes 30,32 only") as caught:
        fixed.predictor.segment(pixels, SemanticOptions(window=(20, 20)))
    assert caught.value.code == "bad_window"


def test_class_maps_are_resized_to_the_nearest_pixel_and_that_is_noted():
    pixels, network = picture(), Network("class_map")
    class_map = network.predictor.segment(pixels)
    resized = normalised(resize_pixels(pixels, (40, 60)))
    small = logits_of(resized.numpy())[0].argmax(0)
    # Half-pixel centres: the middle of a pixel of the image lies in this pixel of the small map.
    rows = ((np.arange(55) + 0.5) * 40 / 55).astype(int)
    columns = ((np.arange(83) + 0.5) * 60 / 83).astype(int)
    assert agreement(class_map.array, small[rows][:, columns]) > 0.9999
    assert class_map.notes == ("resized_class_map",)
    assert "--output logits" in predictor_module.NOTES["resized_class_map"]
    assert network.predictor.segment(picture(40, 60)).notes == ()


@pytest.mark.parametrize(
    "options",
    [
        SemanticOptions(window=(20, 20)),
        SemanticOptions(ratios=(0.5,)),
        SemanticOptions(flip=True),
        SemanticOptions(probability=True),
    ],
)
def test_what_needs_logits_is_refused_for_class_maps(options):
    network = Network("class_map")
    with pytest.raises(InputError, match="--output logits") as caught:
        network.predictor.segment(picture(), options)
    assert caught.value.code == "needs_logits" and network.shapes == []


@pytest.mark.parametrize("method", ["logits", "probabilities"])
def test_logits_and_probabilities_of_class_maps_are_refused(method):
    with pytest.raises(InputError) as caught:
        getattr(Network("class_map").predictor, method)(picture())
    assert caught.value.code == "needs_logits"


def test_several_looks_have_no_logits():
    with pytest.raises(InputError, match="probabilities"):
        Network().predictor.logits(picture(), SemanticOptions(flip=True))


def test_ratios_that_a_graph_of_one_size_would_undo_are_refused():
    network = Network(size=(40, 60), scale=(60, 40))
    with pytest.raises(InputError, match=r"ratio 1.5 makes an image of 60 x 90") as caught:
        network.predictor.segment(picture(40, 60), SemanticOptions(ratios=(0.5, 1.0, 1.5)))
    assert caught.value.code == "ratio_too_large"
    class_map = network.predictor.segment(picture(40, 60), SemanticOptions(ratios=(0.5, 1.0)))
    assert class_map.notes == ("padded_to_graph",)


def test_images_come_in_every_form_and_files_are_turned_upright(tmp_path):
    predictor, pixels = Network().predictor, picture()
    expected = predictor.segment(pixels).array
    image = Image.fromarray(np.ascontiguousarray(np.rot90(pixels)))
    exif = image.getexif()
    exif[0x0112] = 6
    path = tmp_path / "turned.png"
    image.save(path, exif=exif)
    for source in (path, str(path), path.read_bytes(), Image.fromarray(pixels)):
        assert np.array_equal(predictor.segment(source).array, expected)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert("RGBA").save(stream, "PNG")
    transparent = np.dstack([pixels, np.full((55, 83, 1), 128, np.uint8)])
    assert predictor.segment(Image.fromarray(transparent)).notes == ("transparency_composited",)


def test_limits_and_unreadable_images_are_those_of_every_command(tmp_path):
    predictor = Network().predictor
    with pytest.raises(ImageError) as caught:
        predictor.segment(picture(), limits=ImageLimits(pixels=1000))
    assert caught.value.code == "too_many_pixels"
    with pytest.raises(ImageError) as caught:
        predictor.segment_batch([picture(), tmp_path / "none.png"])
    assert caught.value.code == "missing_file"


def test_views_that_would_fill_the_memory_are_refused_before_the_graph_runs(monkeypatch):
    # Logits at the test scale, and one array of all classes at the image's size.
    monkeypatch.setattr(predictor_module, "MAX_CLASSES_BYTES", 5 * 4 * (40 * 60 + 55 * 83))
    network = Network()
    assert network.predictor.probabilities(picture()).shape == (5, 55, 83)
    assert network.predictor.segment(picture(), SemanticOptions(probability=True)).array.shape == (55, 83)
    network.shapes.clear()
    for options in (SemanticOptions(flip=True), SemanticOptions(ratios=(2.0,), window=(20, 20))):
        with pytest.raises(ImageError, match="take one view of it") as caught:
            network.predictor.segment(picture(), options)
        assert caught.value.code == "too_many_pixels" and network.shapes == []


def test_values_that_are_not_finite_are_never_a_class():
    def answer(images):
        logits = logits_of(images)
        logits[0, 2, 3, 4] = np.nan
        return logits

    with pytest.raises(BackendUnavailable, match="doctor") as caught:
        Network(answer=answer).predictor.segment(picture())
    assert caught.value.code == "nonfinite_output"


def test_a_graph_of_other_classes_than_its_manifest_is_refused():
    def answer(images):
        return np.full((len(images), *images.shape[2:]), 5, np.uint8)

    with pytest.raises(BundleError, match="the class 5, and the manifest names 5 classes") as caught:
        Network("class_map", answer=answer).predictor.segment(picture())
    assert caught.value.code == "graph_interface"


def test_threads_share_a_predictor():
    predictor = Network().predictor
    pictures = [picture(40 + 3 * index, 60, seed=index) for index in range(6)]
    expected = [predictor.segment(pixels).array for pixels in pictures]
    found = [None] * len(pictures)

    def work(index):
        for _ in range(5):
            found[index] = predictor.segment(pictures[index]).array

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(pictures))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_it_says_what_it_is_and_is_closed_after_use():
    with Network().predictor as predictor:
        assert (predictor.backend, predictor.precision, predictor.backend_reason) == ("fake", "fp32", "")
        assert predictor.description == "fake" and predictor.gives_logits and predictor.preprocessing.frame is None
    with pytest.raises(BackendUnavailable, match="closed"):
        predictor.segment(picture())


def test_bundle_of_class_maps_is_opened_and_equals_the_torch_model(small_semantic_bundle, small_semask_checkpoint):
    pixels = cv2.resize(picture(60, 100), (160, 96))
    with load_semantic(small_semantic_bundle.path, threads=1) as predictor:
        class_map = predictor.segment(pixels)
        assert predictor.manifest.task == "semantic" and predictor.table.name == "cityscapes"
        assert predictor.preprocessing.frame == (96, 160)
    settings = predictor.preprocessing
    tensor = (torch.from_numpy(pixels).float() - torch.tensor(settings.pixel_mean)) / torch.tensor(settings.pixel_std)
    from segship.ship.families.semask.model import SemanticGraph
    from tests.small_semask import small_semask

    with torch.inference_mode():
        expected = SemanticGraph(small_semask())(tensor.permute(2, 0, 1)[None])[0].numpy()
    assert len(np.unique(expected)) > 3
    assert agreement(class_map.array, expected) > 0.9999
    # Cityscapes' test scale is far above such a graph.
    assert class_map.notes == ("scaled_to_graph",)


def test_a_promptable_model_is_refused_with_the_commands_that_fit():
    with pytest.raises(InputError, match="segship.generate_masks") as caught:
        load_semantic("tiny", threads=1)
    assert caught.value.code == "other_family" and "`segship everything`" in caught.value.on_command_line
