# SPDX-License-Identifier: Apache-2.0
"""Encoders and decoders of other programs as bundles: recognised, checked by running, refused in words."""

import functools
import http.server
import json
import shutil
import subprocess
import sys
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn

import segship
from segship.bundle import Bundle
from segship.catalog import KNOWN_GRAPHS, GraphFile, bundle_folder
from segship.cli.main import main
from segship.errors import BundleError, FetchError, InputError, OutputError
from segship.files import sha256_of
from segship.images.comparison import comparison_images
from segship.masks.scores import mask_iou
from segship.promptable.task import prompt_mixes, prompt_tensors
from segship.ship.contracts import SINGLE_MASK_POINTS, export_contract
from segship.ship.importing import ImportOptions, fetch_bundle, import_graphs
from segship.ship.options import ExportOptions
from segship.ship.verify import verify_bundle
from segship.tune import TuneOptions, tune_bundle
from tests.bundle.test_folder import rewrite_manifest
from tests.oracle import SMALL_VIT, build_reference, reference
from tests.small_models import small_predictor, small_sam

SIDE, GRID = SMALL_VIT.image_size, SMALL_VIT.embedding_size
PIXEL_MEAN, PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
IMAGE = comparison_images()[0]


class Pixels(nn.Module):
    """An encoder that normalises by itself, as samexporter's with ``--use-preprocess`` and nndeploy's do."""

    def __init__(self, encoder, *, batched, pad=True, mean=PIXEL_MEAN):
        super().__init__()
        self.encoder, self.batched, self.pad = encoder, batched, pad
        shape = (1, 3, 1, 1) if batched else (3,)
        self.register_buffer("mean", torch.tensor(mean).reshape(shape))
        self.register_buffer("std", torch.tensor(PIXEL_STD).reshape(shape))

    def forward(self, image):
        normalised = (image.float() - self.mean) / self.std
        if not self.batched:
            normalised = normalised.permute(2, 0, 1)
            height, width = normalised.shape[-2:]
            normalised = nn.functional.pad(normalised, (0, SIDE - width, 0, SIDE - height))[None]
        return self.encoder(normalised)


def save(module, path, inputs, outputs, dynamic=None):
    """Export as other programs do: with torch's first exporter, and whatever it leaves in the graph."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.utils.export(
            module,
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=outputs,
            dynamic_axes=dynamic,
            opset_version=17,
        )
    return path


def save_encoder(encoder, path, name="x", image=None, **dynamic):
    image = torch.randn(1, 3, SIDE, SIDE) if image is None else image
    return save(encoder, path, {name: image}, ["image_embeddings"], {name: dynamic["axes"]} if dynamic else None)


def save_decoder(model, path, *, single):
    reference()
    from segment_anything.utils.onnx import SamOnnxModel

    inputs = {
        "image_embeddings": torch.randn(1, SMALL_VIT.embedding_channels, GRID, GRID),
        "point_coords": torch.rand(1, 5, 2) * SIDE,
        "point_labels": torch.randint(0, 4, (1, 5)).float(),
        "mask_input": torch.randn(1, 1, 4 * GRID, 4 * GRID),
        "has_mask_input": torch.ones(1),
        "orig_im_size": torch.tensor([150.0, 225.0]),
    }
    places = {"point_coords": {1: "num_points"}, "point_labels": {1: "num_points"}}
    outputs = ["masks", "iou_predictions", "low_res_masks"]
    return save(SamOnnxModel(model, return_single_mask=single), path, inputs, outputs, places)


def quantized(path):
    out = path.with_suffix(".quantized.onnx")
    quantize_dynamic(str(path), str(out), weight_type=QuantType.QUInt8)
    return out


class Files(dict):
    """Files by what they are; those of our own contracts, such as ``ascend encoder``, are exported when asked for."""

    def __init__(self, found, *, folder, checkpoint):
        super().__init__(found)
        self.folder, self.checkpoint = folder, checkpoint

    def __missing__(self, name):
        contract, _, part = name.partition(" ")
        folder = self.folder / contract
        if not folder.exists():
            export_contract(self.checkpoint, folder, ExportOptions(contract=contract, single_mask=False))
        (path,) = folder.glob(f"*{part}.onnx")
        return path


@pytest.fixture(scope="module")
def files(small_checkpoint, tmp_path_factory):
    """Encoders and decoders of the small model by what they are, in the contracts of all."""
    folder = tmp_path_factory.mktemp("foreign")
    model = build_reference(SMALL_VIT)
    model.load_state_dict(small_sam().state_dict(), strict=True)
    encoder = model.image_encoder
    rows = torch.rand(SIDE, SIDE, 3) * 255
    found = {
        "x": save_encoder(encoder, folder / "x.onnx"),
        "image": save_encoder(encoder, folder / "image.onnx", "image"),
        "strange name": save_encoder(encoder, folder / "strange.onnx", "pixels"),
        "pixels": save_encoder(
            Pixels(encoder, batched=False), folder / "pixels.onnx", "input_image", rows, axes={0: "height", 1: "width"}
        ),
        "batched pixels": save_encoder(Pixels(encoder, batched=True), folder / "batched.onnx", "input"),
        "bytes": save_encoder(
            Pixels(encoder, batched=True), folder / "bytes.onnx", "input", torch.zeros(1, 3, SIDE, SIDE).byte()
        ),
        "other mean": save_encoder(
            Pixels(encoder, batched=False, mean=(9.0, 9.0, 9.0)),
            folder / "other_mean.onnx",
            "input_image",
            rows,
            axes={0: "height", 1: "width"},
        ),
        "four": save_decoder(model, folder / "four.onnx", single=False),
        "one": save_decoder(model, folder / "one.onnx", single=True),
    }
    for name in ("x", "four", "one"):
        found[f"{name} quantized"] = quantized(found[name])
    return Files(found, folder=folder, checkpoint=small_checkpoint)


@pytest.fixture(scope="module")
def imported(files, tmp_path_factory):
    """Import a pair once: its bundle."""
    folder = tmp_path_factory.mktemp("bundles")

    @functools.cache
    def make(encoder, decoder):
        return import_graphs(files[encoder], files[decoder], folder / f"{encoder} {decoder}".replace(" ", "_"))

    return make


@pytest.fixture(scope="module")
def ours():
    return small_predictor()


PAIRS = {
    ("x", "four"): "osam",
    ("image", "four"): "official",
    ("pixels", "four"): "samexporter",
    ("batched pixels", "four"): "nndeploy",
    ("ascend encoder", "ascend decoder"): "ascend",
    ("samexporter encoder", "samexporter decoder"): "samexporter",
}


def iou_of_mixes(first, second):
    """The IoU of every mask for every mix of prompts on every comparison image."""
    for pixels in comparison_images():
        embeddings = [predictor.encode(pixels) for predictor in (first, second)]
        for prompts in prompt_mixes(pixels.shape[:2], 4 * GRID).values():
            for choice in (True, False):
                found = [
                    predictor.decode(embedding, list(prompts), multimask_output=choice).masks
                    for predictor, embedding in zip((first, second), embeddings, strict=True)
                ]
                assert found[0].shape == found[1].shape
                for place in np.ndindex(found[0].shape[:2]):
                    yield mask_iou(found[0][place], found[1][place])


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_an_imported_pair_answers_as_our_bundle_of_the_same_weights(imported, ours, pair):
    bundle = imported(*pair)
    assert bundle.manifest.foreign.contract == PAIRS[pair]
    assert bundle.manifest.foreign.empty_prompts
    with segship.load(bundle.path) as predictor:
        assert min(iou_of_mixes(ours, predictor)) >= 0.999


def test_pixels_of_8_bits_cost_no_more_than_their_padding(imported, ours):
    """The mean color is no whole number, so the padding is off by up to half a step of 255."""
    bundle = imported("bytes", "four")
    foreign = bundle.manifest.foreign
    assert (foreign.contract, foreign.dtype, foreign.values) == ("nndeploy", "uint8", "pixels")
    with segship.load(bundle.path) as predictor:
        assert np.mean(list(iou_of_mixes(ours, predictor))) >= 0.99


def test_quantized_pairs_run_and_say_so(imported, ours):
    bundle = imported("x quantized", "four quantized")
    assert all(artifact.options == {"quantized": True} for artifact in bundle.manifest.artifacts)
    with segship.load(bundle.path) as predictor:
        # Of random weights: what a trained model loses is not known here.
        assert np.mean(list(iou_of_mixes(ours, predictor))) >= 0.9


@pytest.mark.parametrize("precision", ["", " quantized"])
def test_a_decoder_of_one_mask_gives_that_mask_and_a_note(imported, ours, precision):
    bundle = imported("x" + precision, "one" + precision)
    assert bundle.manifest.decoder_masks == 1
    click = segship.Prompts(points=[[300, 200]])
    with segship.load(bundle.path) as predictor:
        embedding = predictor.encode(IMAGE)
        for choice, notes in ((True, ("one_mask_model",)), (False, ()), ("best", ()), ("auto", ())):
            prediction = predictor.decode(embedding, click, multimask_output=choice)
            assert prediction.masks.shape == (1, 1, *IMAGE.shape[:2]) and prediction.notes == notes
        assert predictor.decode_low_res(embedding, click)[1].shape == (1, 1, 4 * GRID, 4 * GRID)
        assert predictor.decode(embedding, segship.Prompts(boxes=np.zeros((0, 4)))).masks.shape[:2] == (0, 1)


def test_the_one_mask_is_the_one_that_the_reference_would_choose(imported, ours):
    rules = ours.manifest.prompt_rules
    with segship.load(imported("x", "one").path) as predictor:
        embeddings = ours.encode(IMAGE), predictor.encode(IMAGE)
        mixes = prompt_mixes(IMAGE.shape[:2], 4 * GRID)
        for name, tensors in prompt_tensors(IMAGE.shape[:2], SIDE, 4 * GRID, rules).items():
            scores, logits = ours.decode_low_res(embeddings[0], list(mixes[name]))
            places = (tensors["point_labels"] != -2).sum(axis=1)
            clear = (places[:, None] - SINGLE_MASK_POINTS) * np.array([1000.0, 0, 0, 0])
            best = (scores + clear).argmax(axis=1)
            found = predictor.decode_low_res(embeddings[1], list(mixes[name]))[1]
            for row, index in enumerate(best):
                assert mask_iou(logits[row, index] > 0, found[row, 0] > 0) >= 0.999, name


def test_an_imported_bundle_is_held_against_a_checkpoint_where_torch_is(imported, small_checkpoint, tmp_path):
    rows = verify_bundle(imported("x", "four").path, small_checkpoint)
    assert {row.graph for row in rows} >= {"image_encoder", "mask_decoder"} and all(row.passed for row in rows)
    state = small_sam().state_dict()
    other = {name: tensor * 1.1 if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    torch.save(other, tmp_path / "other.pth")
    assert not any(row.passed for row in verify_bundle(imported("x", "four").path, tmp_path / "other.pth"))
    with pytest.raises(BundleError, match="gives one mask") as caught:
        verify_bundle(imported("x", "one").path, small_checkpoint)
    assert caught.value.code == "one_mask"


def test_files_stay_byte_for_byte(imported, files):
    bundle = imported("x", "four")
    for name, file in (("image_encoder", "x"), ("mask_decoder", "four")):
        assert (bundle.path / f"{name}.onnx").read_bytes() == files[file].read_bytes()
    origin = bundle.manifest.checkpoint
    assert (origin.name, origin.sha256, origin.known) == ("x.onnx", sha256_of(files["x"]), False)
    assert bundle.manifest.evidence is None and "nothing here was compared" in bundle.manifest.changes[0]


@pytest.mark.parametrize(("decoder", "per_point"), [("four", 3), ("one", 1)])
def test_the_whole_use_road_takes_an_imported_bundle(imported, tmp_path, decoder, per_point):
    options = segship.AmgOptions(points_per_side=4, pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=1.0)
    with segship.load(imported("x", decoder).path) as predictor:
        records = segship.generate_masks(predictor, IMAGE, options)
        assert 0 < len(records) <= 16 * per_point
        prediction = predictor.predict(IMAGE, points=np.full((20, 1, 2), 150), multimask_output=False)
        assert prediction.masks.shape[:2] == (20, 1)
        for ending in ("json", "npz", "coco.json", "txt"):
            assert prediction.save(tmp_path / f"masks.{ending}")
    tuned = tune_bundle(imported("x", decoder).path, TuneOptions(threads=1, repeats=1), out=tmp_path / "tuned")
    assert [check.passed for check in tuned.manifest.checks if check.backend == "onnxruntime"] == [True]
    # Compiling a one-mask decoder for less would end the process.
    reduced = [check.problem or "" for check in tuned.manifest.checks if check.precision != "fp32"]
    assert all(("run in fp32 alone" in problem) == (decoder == "one") for problem in reduced)
    assert Bundle.read(tuned.path).manifest.foreign == imported("x", decoder).manifest.foreign


def test_facades_take_an_imported_bundle(imported):
    from segship.compat import Sam, SamPredictor

    predictor = SamPredictor(Sam(imported("x", "four").path))
    predictor.set_image(IMAGE)
    masks, scores, _ = predictor.predict(point_coords=np.array([[300, 200]]), point_labels=np.array([1]))
    assert masks.shape == (3, *IMAGE.shape[:2]) and scores.shape == (3,)


def test_importing_needs_neither_torch_nor_onnx(files, tmp_path):
    code = f"""
import sys
sys.modules.update(torch=None, onnx=None)
from pathlib import Path
from segship.ship.importing import import_graphs
import_graphs(Path({str(files["x"])!r}), Path({str(files["four"])!r}), Path({str(tmp_path / "bundle")!r}))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert Bundle.read(tmp_path / "bundle")


def refused(code, words, encoder, decoder, tmp_path, **options):
    with pytest.raises(BundleError, match=words) as caught:
        import_graphs(Path(encoder), Path(decoder), tmp_path / "out", ImportOptions(**options))
    assert caught.value.code == code
    assert not (tmp_path / "out").exists()
    return caught.value


def test_two_files_the_wrong_way_round(files, tmp_path):
    refused("swapped_graphs", "give the encoder first", files["four"], files["x"], tmp_path)


def test_preprocessing_is_asked_for_where_nothing_says_it(files, tmp_path):
    error = refused("unclear_preprocessing", "pixels float32", files["strange name"], files["four"], tmp_path)
    assert "with contract=NAME" in str(error) and "with --contract NAME" in error.on_command_line
    bundle = import_graphs(
        files["strange name"], files["four"], tmp_path / "asked", ImportOptions(contract="official", licence="MIT")
    )
    assert (bundle.manifest.foreign.contract, bundle.manifest.checkpoint.licence) == ("official", "MIT")


def test_an_encoder_that_prepares_images_in_a_way_of_its_own(files, tmp_path):
    refused("unclear_preprocessing", "neither padding them", files["other mean"], files["four"], tmp_path)


@pytest.mark.parametrize(
    ("contract", "encoder", "decoder", "words"),
    [
        ("ascend", "x", "four", "has an input orig_im_size, and the contract ascend has none"),
        ("official", "ascend encoder", "ascend decoder", "has no input orig_im_size, and the contract official has"),
        ("osam", "batched pixels", "four", "SAM's mean is taken off and its deviation divided by"),
        ("official", "pixels", "four", "normalised before"),
        ("nndeploy", "pixels", "four", "with a batch axis"),
        ("nndeploy", "x", "four", "nothing is done to the image, and the contract nndeploy takes raw pixels"),
    ],
)
def test_files_of_another_contract_than_was_asked_for(files, tmp_path, contract, encoder, decoder, words):
    refused("contract_differs", words, files[encoder], files[decoder], tmp_path, contract=contract)


def changed(path, target, change):
    model = onnx.load(str(path))
    change(model)
    onnx.save_model(model, str(target))
    return target


def prefixed(path, target, *steps):
    """An encoder with steps before it: operators with the second input or the attributes that they have."""

    def change(model):
        name, nodes = model.graph.input[0].name, []
        for node in model.graph.node:
            node.input[:] = [f"{name} {len(steps)}" if entry == name else entry for entry in node.input]
        for at, (op_type, other) in enumerate(steps):
            attributes = other if isinstance(other, dict) else {}
            inputs = [f"{name} {at}" if at else name]
            if not attributes:
                inputs.append(f"number {at}")
                model.graph.initializer.append(numpy_helper.from_array(np.asarray(other), inputs[1]))
                attributes = {"axis": 1} if op_type == "Gather" else {}
            nodes.append(helper.make_node(op_type, inputs, [f"{name} {at + 1}"], **attributes))
        nodes += model.graph.node
        del model.graph.node[:]
        model.graph.node.extend(nodes)

    return changed(path, target, change)


def channels(values):
    return np.array(values, np.float32).reshape(1, 3, 1, 1)


MEAN, STD = channels(PIXEL_MEAN), channels(PIXEL_STD)
INSIDE = {
    "folded": (("Mul", 1 / STD), ("Sub", MEAN / STD)),
    "added": (("Mul", 1 / STD), ("Add", -MEAN / STD)),
    "of one, scaled before": (("Div", np.float32(255)), ("Sub", MEAN / 255), ("Div", STD / 255)),
}


@pytest.mark.parametrize(
    ("name", "steps"), [*zip(("x", "image", "strange name"), INSIDE.values(), strict=True)], ids=INSIDE
)
def test_normalization_inside_is_found_in_any_form_and_under_any_name(files, tmp_path, ours, steps, name):
    encoder = prefixed(files[name], tmp_path / "e.onnx", *steps)
    bundle = import_graphs(encoder, files["four"], tmp_path / "bundle")
    assert (bundle.manifest.foreign.contract, bundle.manifest.foreign.values) == ("nndeploy", "pixels")
    with segship.load(bundle.path) as predictor:
        click = {"points": [[300, 200]]}
        found = predictor.predict(IMAGE, **click).masks, ours.predict(IMAGE, **click).masks
        assert min(mask_iou(*(masks[0, place] for masks in found)) for place in range(3)) >= 0.999
    refused("contract_differs", "official", encoder, files["four"], tmp_path, contract="official")


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ((("Sub", MEAN / 255), ("Div", STD / 255)), "normalises RGB from 0 to 1"),
        ((("Mul", 255 / STD), ("Sub", MEAN / STD)), "normalises RGB from 0 to 1"),
        ((("Sub", MEAN[:, ::-1]), ("Div", STD[:, ::-1]), ("Gather", np.array([2, 1, 0]))), "in the order BGR"),
    ],
    ids=["0 to 1", "0 to 1 folded", "BGR"],
)
def test_preparation_that_is_known_and_of_no_contract_is_refused_even_if_asked_for(files, tmp_path, steps, words):
    encoder = prefixed(files["x"], tmp_path / "e.onnx", *steps)
    for asked in ({}, {"contract": "nndeploy"}):
        error = refused("unclear_preprocessing", words, encoder, files["four"], tmp_path, **asked)
    assert "--contract nndeploy" in error.on_command_line


def test_rows_of_pixels_from_0_to_1_are_refused(files, tmp_path):
    encoder = Pixels(nn.Identity(), batched=False, mean=np.divide(PIXEL_MEAN, 255).tolist())
    encoder.std /= 255
    model = build_reference(SMALL_VIT)
    model.load_state_dict(small_sam().state_dict(), strict=True)
    encoder.encoder = model.image_encoder
    for axes in ({}, {"axes": {0: "height", 1: "width"}}):
        path = save_encoder(encoder, tmp_path / "e.onnx", "input_image", torch.rand(SIDE, SIDE, 3), **axes)
        refused("unclear_preprocessing", "RGB from 0 to 1", path, files["four"], tmp_path)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ((("Gather", np.array([2, 1, 0])),), "there is Gather"),
        ((("Transpose", {"perm": [0, 1, 3, 2]}),), "there is Transpose"),
        ((("Sub", np.zeros((1, 3, SIDE, SIDE), np.float32)),), "there is Sub"),
        ((("Div", np.float32(255)),), "multiplied by"),
    ],
    ids=["channels", "axes", "image", "scale"],
)
def test_other_steps_before_the_network_are_asked_about(files, tmp_path, steps, words):
    encoder = prefixed(files["x"], tmp_path / "e.onnx", *steps)
    refused("unclear_preprocessing", words, encoder, files["four"], tmp_path)
    asked = import_graphs(encoder, files["four"], tmp_path / "asked", ImportOptions(contract="osam"))
    assert asked.manifest.foreign.values == "normalized"


def with_last_step(path, target, name, op_type):
    """A decoder with one step more before one of its outputs."""

    def change(model):
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = ["before" if entry == name else entry for entry in names]
        model.graph.node.append(helper.make_node(op_type, ["before"], [name]))

    return changed(path, target, change)


def test_masks_that_are_probabilities_are_refused(files, tmp_path):
    decoder = with_last_step(files["four"], tmp_path / "d.onnx", "low_res_masks", "Sigmoid")
    refused("unexpected_answer", "logits, which have both signs", files["x"], decoder, tmp_path)


def test_a_decoder_that_sees_that_there_is_a_mask_and_not_which(files, tmp_path):
    decoder = prefixed_input(files["four"], tmp_path / "d.onnx", "mask_input", "Mul", np.float32(0))
    refused("unexpected_answer", "what the mask input holds", files["x"], decoder, tmp_path)


def prefixed_input(path, target, name, op_type, number):
    def change(model):
        for node in model.graph.node:
            node.input[:] = ["stepped" if entry == name else entry for entry in node.input]
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(number), "the number"))
        model.graph.node.insert(0, helper.make_node(op_type, [name, "the number"], ["stepped"]))

    return changed(path, target, change)


@pytest.mark.parametrize("name", ["a\n\x1b[31mb", "n" * 5000], ids=["control", "long"])
def test_names_that_no_manifest_holds_are_refused_first(files, tmp_path, name):
    def rename(model):
        old = model.graph.input[0].name
        model.graph.input[0].name = name
        for node in model.graph.node:
            node.input[:] = [name if entry == old else entry for entry in node.input]

    error = refused(
        "unknown_contract", "1 to 128", changed(files["x"], tmp_path / "e.onnx", rename), files["four"], tmp_path
    )
    assert str(error).isprintable() and len(str(error)) < 400


def test_a_tensor_that_cannot_be_driven_is_named_with_its_file(files, tmp_path):
    def whole_labels(model):
        labels = next(value for value in model.graph.input if value.name == "point_labels")
        labels.type.tensor_type.elem_type = onnx.TensorProto.INT64
        for node in model.graph.node:
            node.input[:] = ["float labels" if entry == "point_labels" else entry for entry in node.input]
        model.graph.node.insert(0, helper.make_node("Cast", ["point_labels"], ["float labels"], to=1))

    decoder = changed(files["four"], tmp_path / "d.onnx", whole_labels)
    error = refused("graph_interface", "d.onnx cannot be driven: input point_labels", files["x"], decoder, tmp_path)
    assert "export it again" not in str(error)


def test_paths_may_be_text_and_nothing_else(files, tmp_path):
    assert import_graphs(str(files["x"]), str(files["four"]), str(tmp_path / "bundle")).path == tmp_path / "bundle"
    with pytest.raises(InputError, match="decoder is 7; accepted is a path"):
        import_graphs(files["x"], 7, tmp_path / "out")


def test_the_runtime_keeps_its_log_to_itself(files, tmp_path, capfd):
    decoder = prefixed_input(files["four"], tmp_path / "d.onnx", "point_labels", "Reshape", np.array([1, 7]))
    with pytest.raises(segship.SegshipError):
        import_graphs(files["x"], decoder, tmp_path / "out")
    assert capfd.readouterr().err == ""


def test_a_manifest_that_contradicts_its_own_tensors_says_where(imported, tmp_path):
    folder = shutil.copytree(imported("x", "four").path, tmp_path / "bundle")
    rewrite_manifest(Bundle.read(folder), decoder_masks=1)
    with pytest.raises(BundleError, match=r"masks is float32 \(1, 4, .* there, and float32 \(1, 1, ") as caught:
        Bundle.open(folder)
    assert caught.value.code == "graph_interface"


def test_an_encoder_of_another_size(files, tmp_path):
    def halve(model):
        for axis in (2, 3):
            model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = SIDE // 2

    encoder = changed(files["x"], tmp_path / "half.onnx", halve)
    refused("other_model", "they are not of one model", encoder, files["four"], tmp_path)


def test_custom_operators_and_control_flow(files, tmp_path):
    def add(model, **how):
        node = helper.make_node(inputs=["image_embeddings"], outputs=["unused"], **how)
        model.graph.node.append(node)

    custom = changed(files["x"], tmp_path / "c.onnx", lambda m: add(m, op_type="PyOp", domain="ai.pyop"))
    refused("onnx_operator", "c.onnx uses ai.pyop::PyOp", custom, files["four"], tmp_path)
    looped = changed(files["four"], tmp_path / "l.onnx", lambda m: add(m, op_type="Loop"))
    refused("onnx_operator", "control flow", files["x"], looped, tmp_path)
    strange = changed(files["four"], tmp_path / "r.onnx", lambda m: add(m, op_type="RandomNormalLike"))
    refused("onnx_operator", "RandomNormalLike, which no", files["x"], strange, tmp_path)


def test_an_unused_operator_set_is_no_reason_to_refuse_a_file(files, tmp_path):
    """ONNX Runtime writes all that it knows into the files that it saves."""
    more = changed(
        files["x"], tmp_path / "m.onnx", lambda m: m.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    )
    assert import_graphs(more, files["four"], tmp_path / "bundle").manifest.foreign.contract == "osam"


def test_tensors_of_absurd_size(files, tmp_path):
    def grow(model):
        model.graph.initializer.append(numpy_helper.from_array(np.array([2**20, 2**20], np.int64), "huge"))
        model.graph.node.append(helper.make_node("ConstantOfShape", ["huge"], ["unused"]))

    refused("onnx_too_large", "elements", changed(files["x"], tmp_path / "g.onnx", grow), files["four"], tmp_path)


@pytest.mark.parametrize("location", ["../secret.bin", "encoder_data.bin"])
def test_weights_under_another_name(files, tmp_path, location):
    target = tmp_path / "e.onnx"
    onnx.save_model(
        onnx.load(str(files["x"])), str(target), save_as_external_data=True, location="e.bin", size_threshold=0
    )

    model = onnx.load(str(target), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entry.value
    target.write_bytes(model.SerializeToString())
    refused("external_data_location", "save it again with the onnx package", target, files["four"], tmp_path)


def test_weights_beside_the_file_under_the_name_of_a_bundle(files, tmp_path, ours):
    target, sidecar = tmp_path / "e.onnx", "image_encoder.onnx.data"
    onnx.save_model(
        onnx.load(str(files["x"])), str(target), save_as_external_data=True, location=sidecar, size_threshold=0
    )
    bundle = import_graphs(target, files["four"], tmp_path / "bundle")
    assert (bundle.path / sidecar).read_bytes() == (tmp_path / sidecar).read_bytes()
    with segship.load(bundle.path) as predictor:
        assert min(iou_of_mixes(ours, predictor)) >= 0.999
    (tmp_path / sidecar).unlink()
    refused("missing_file", "not beside it", target, files["four"], tmp_path)


def test_other_families_and_unknown_interfaces_are_named(files, tmp_path):
    def rename(model, name, to):
        for value in (*model.graph.input, *model.graph.output):
            value.name = to if value.name == name else value.name
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = [to if entry == name else entry for entry in names]

    sam2 = changed(files["x"], tmp_path / "s.onnx", lambda m: rename(m, "image_embeddings", "high_res_feats_0"))
    refused("other_family", "of SAM 2, which segship does not run yet", sam2, files["four"], tmp_path)
    odd = changed(files["four"], tmp_path / "o.onnx", lambda m: rename(m, "low_res_masks", "small_masks"))
    refused("unknown_contract", "o.onnx is of no contract that is known", files["x"], odd, tmp_path)


def test_a_decoder_that_takes_no_notice_of_its_prompts(files, tmp_path):
    def deafen(model):
        model.graph.initializer.append(numpy_helper.from_array(np.ones((1, 2), np.float32), "always"))
        for node in model.graph.node:
            node.input[:] = ["always" if name == "point_labels" else name for name in node.input]

    deaf = changed(files["four"], tmp_path / "d.onnx", deafen)
    with pytest.raises(segship.SegshipError):
        import_graphs(files["x"], deaf, tmp_path / "out")
    ignores = changed(files["four"], tmp_path / "i.onnx", ignore_the_flag)
    refused("unexpected_answer", "though has_mask_input is 0", files["x"], ignores, tmp_path)


def ignore_the_flag(model):
    model.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "always_one"))
    for node in model.graph.node:
        node.input[:] = ["always_one" if name == "has_mask_input" else name for name in node.input]


def test_a_folder_that_is_there_stays(files, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError):
        import_graphs(files["x"], files["four"], tmp_path / "out")
    with pytest.raises(OutputError, match="not a bundle"):
        import_graphs(files["x"], files["four"], tmp_path / "out", ImportOptions(force=True))
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_the_command_says_what_it_found(files, tmp_path, capsys):
    assert main(["import", str(files["x"]), str(files["one"]), "-o", str(tmp_path / "a"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["contract"], found["masks"], found["known"]) == ("osam", 1, False)
    assert any("-1" in rule for rule in found["rules"])
    assert main(["import", str(files["x"]), str(files["four"]), "-o", str(tmp_path / "b")]) == 0
    assert "not compared with a torch model" in capsys.readouterr().out
    assert main(["import", str(files["four"]), str(files["x"]), "-o", str(tmp_path / "c")]) == 3
    assert "swapped_graphs" in capsys.readouterr().err


@pytest.fixture
def served(files, tmp_path, monkeypatch):
    """A published pair under a test catalog, on a server that says how large its files are."""
    folder = tmp_path / "share"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"

        def publish(name):
            shutil.copyfile(files[name], folder / files[name].name)
            return GraphFile(files[name].name, f"{address}/{files[name].name}", sha256_of(files[name]))

        known = replace(
            KNOWN_GRAPHS["osam_vit_b_quantized"],
            name="small_quantized",
            encoder=publish("x quantized"),
            decoder=publish("four quantized"),
        )
        monkeypatch.setitem(KNOWN_GRAPHS, "small_quantized", known)
        monkeypatch.setenv("SEGSHIP_CACHE", str(tmp_path / "cache"))
        for name in ("SEGSHIP_MIRROR", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield folder
        server.shutdown()


def test_a_known_pair_is_fetched_checked_and_loaded_by_its_name(served, capsys):
    with pytest.raises(BundleError, match="segship fetch small_quantized"):
        segship.load("small_quantized")
    assert main(["fetch", "small_quantized", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["path"] == str(bundle_folder("small_quantized"))
    origin = Bundle.read(found["path"]).manifest
    assert origin.checkpoint.known and origin.checkpoint.licence == "Apache-2.0" and origin.architecture == "vit_b"
    with segship.load("small_quantized") as predictor:
        assert predictor.predict(IMAGE, points=[[300, 200]]).masks.shape[:2] == (1, 3)
    assert next(model for model in segship.list_models() if model.name == "small_quantized").status == "bundle ready"
    # A second time nothing is fetched.
    shutil.rmtree(served)
    assert fetch_bundle("small_quantized").path == bundle_folder("small_quantized")


def test_a_published_file_with_other_bytes_is_refused(served):
    file = served / KNOWN_GRAPHS["small_quantized"].decoder.file
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(FetchError) as caught:
        fetch_bundle("small_quantized")
    assert caught.value.code == "wrong_digest" and not bundle_folder("small_quantized").exists()


def test_published_pairs_of_families_that_are_not_run_yet(files, tmp_path, monkeypatch, capsys):
    assert main(["fetch", "osam_sam2.1_tiny"]) == 3
    assert "graphs, of SAM 2, which segship does not run yet" in " ".join(capsys.readouterr().err.split())
    published = [GraphFile(files[name].name, "https://x", sha256_of(files[name])) for name in ("x", "four")]
    known = replace(KNOWN_GRAPHS["osam_efficient_sam_vitt"], encoder=published[0], decoder=published[1])
    monkeypatch.setitem(KNOWN_GRAPHS, known.name, known)
    refused("other_family", "are the published osam_efficient_sam_vitt", files["x"], files["four"], tmp_path)
