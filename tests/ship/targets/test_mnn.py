# SPDX-License-Identifier: Apache-2.0
"""Files for MNN: what a conversion writes, what it refuses, and the calls of the guide that they were written for."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import segship
from segship.bundle import Bundle
from segship.catalog import find_model
from segship.errors import ComparisonFailed, InputError, OutputError
from segship.promptable.task import EXACT_BAR
from segship.ship import contracts
from segship.ship.official import object_cases
from segship.ship.options import ExportOptions
from segship.ship.targets import ConvertOptions, convert
from tests.small_bundle import make_bundle

pytest.importorskip("MNN")
from segship.backends import mnn as backend
from segship.ship.targets import mnn

with backend.quiet():
    import MNN
    import MNN.cv as cv
    import MNN.numpy as numpy


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Tiny in MNN, and what was said of it."""
    output = tmp_path_factory.mktemp("mnn") / "tiny"
    return output, convert("tiny", output, ConvertOptions("mnn"))


def test_two_files_and_their_proof_are_written(converted):
    output, document = converted
    assert {path.name for path in output.iterdir()} == {"tiny.encoder.mnn", "tiny.decoder.mnn", "export.json"}
    assert json.loads(json.dumps(document)) == json.loads((output / "export.json").read_text("utf-8"))
    assert document["flags"] == ["--useGeluApproximation", "0"]
    assert (document["engine"], document["weights"]) == ({"name": "mnn", "version": backend.version()}, "fp32")
    assert list(document["graphs"]) == ["tiny.encoder.mnn", "tiny.decoder.mnn"]
    decoder = document["graphs"]["tiny.decoder.mnn"]
    assert [tensor["name"] for tensor in decoder["inputs"]] == [
        "image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size",
    ]  # fmt: skip
    assert [tensor["name"] for tensor in decoder["outputs"]] == ["masks", "iou_predictions", "low_res_masks"]


def test_masks_keep_the_bar_of_fp32(converted):
    rows = converted[1]["comparison"]["rows"]
    assert len(rows) == 10 and all(row["passed"] for row in rows)
    chained = [row["figures"]["mask_iou_mean"] for row in rows if row["graph"] == "encoder, decoder"]
    # Exactly, and as MNN shortens convolutions by itself.
    assert chained[0] > 0.99999 and chained[1] > EXACT_BAR["mask_iou_mean"]


def test_nothing_is_imported_that_installs_packages(converted):
    assert not [name for name in sys.modules if name.startswith(("MNN.tools", "_tools"))]


def test_the_calls_of_the_guide_give_the_masks_of_segship(converted):
    """The steps of the MNN guide for SAM, in its order, with the picture's channels as RGB."""
    output, _ = converted
    tiny = Bundle.open(find_model("tiny"))
    side = tiny.manifest.geometry.image_size
    known = next(
        one
        for one in object_cases(tiny, single_mask=False)[0].objects
        if one.prompts["point_labels"].tolist() == [[1, -1]] and not one.prompts["has_mask_input"].any()
    )
    config = {"precision": "high", "backend": "CPU", "numThread": 1}
    with backend.quiet():
        runtime = MNN.nn.create_runtime_manager((config,))
        embed = MNN.nn.load_module_from_file(str(output / "tiny.encoder.mnn"), [], [], runtime_manager=runtime)
        sam = MNN.nn.load_module_from_file(
            str(output / "tiny.decoder.mnn"),
            ["point_coords", "point_labels", "image_embeddings", "has_mask_input", "mask_input", "orig_im_size"],
            ["iou_predictions", "low_res_masks", "masks"],
            runtime_manager=runtime,
        )
    image = cv.cvtColor(cv.imread(str(segship.demo_photograph())), cv.COLOR_BGR2RGB)
    height, width, _ = image.shape
    new_height, new_width = (round(length * side / max(height, width)) for length in (height, width))
    mean, normal = [123.675, 116.28, 103.53], [1 / 58.395, 1 / 57.12, 1 / 57.375]
    pixels = cv.resize(image, (new_width, new_height), 0.0, 0.0, cv.INTER_LINEAR, -1, mean, normal)
    padded = numpy.pad(pixels, [[0, side - new_height], [0, side - new_width], [0, 0]], "constant")
    embedding = embed.forward(MNN.expr.convert(numpy.expand_dims(padded, 0), MNN.expr.NC4HW4))
    x, y = known.prompts["point_coords"][0, 0] * (width / new_width, height / new_height)
    points = numpy.array([[float(x), float(y)], [0.0, 0.0]])
    points = points * numpy.array([new_width / width, new_height / height])
    scores, low_res, masks = sam.onForward([
        numpy.expand_dims(points.astype(numpy.float32), 0),
        numpy.array([[1.0, -1.0]], dtype=numpy.float32),
        MNN.expr.convert(embedding, MNN.expr.NCHW),
        numpy.zeros([1], dtype=numpy.float32),
        numpy.zeros([1, 1, side // 4, side // 4], dtype=numpy.float32),
        numpy.array([height, width], dtype=numpy.float32),
    ])  # fmt: skip
    assert tuple(scores.shape) == (1, 4) and tuple(low_res.shape) == (1, 4, side // 4, side // 4)
    found = np.array(masks.read()).reshape(4, height, width)[1:] > 0
    expected = known.masks[1:]
    overlaps = [np.sum(a & b) / np.sum(a | b) for a, b in zip(found, expected, strict=True)]
    print(overlaps)
    # MNN resizes without antialias, which is all that is left between them.
    assert min(overlaps) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["fp16", "int8"])
def test_weights_in_fewer_bits_are_smaller_and_have_their_own_bar(tmp_path, converted, weights):
    document = convert("tiny", tmp_path / "out", ConvertOptions("mnn", weights=weights))
    assert document["flags"][2:] == list(mnn.FLAGS[weights]) and document["options"]["weights"] == weights
    whole, small = (sum(file["bytes"] for file in one["files"].values()) for one in (converted[1], document))
    assert small < {"fp16": 0.55, "int8": 0.35}[weights] * whole


def test_one_mask_instead_of_four(tmp_path):
    bundle = make_bundle(tmp_path)
    document = convert(bundle.path, tmp_path / "out", ConvertOptions("mnn", single_mask=True))
    assert document["graphs"]["custom.decoder.mnn"]["outputs"][0]["shape"] == (1, 1, "height", "width")
    assert document["single_mask"] and all(row["passed"] for row in document["comparison"]["rows"])


def test_what_misses_its_bar_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(mnn.BARS, "fp32", {"cosine": 1.1})
    bundle = make_bundle(tmp_path)
    with pytest.raises(ComparisonFailed, match=r"mnn fp32.*cosine"):
        convert(bundle.path, tmp_path / "out", ConvertOptions("mnn"))
    assert not (tmp_path / "out").exists()


def test_a_file_that_found_no_room_is_told_as_that(tmp_path, monkeypatch):
    # MNN writes what it can, and says that it succeeded.
    monkeypatch.setattr(backend.shutil, "disk_usage", lambda folder: SimpleNamespace(free=4096))
    with pytest.raises(OutputError, match="no space is left on the device; free some space") as told:
        convert(make_bundle(tmp_path).path, tmp_path / "out", ConvertOptions("mnn"))
    assert told.value.code == "disk_full" and not (tmp_path / "out").exists()


def test_weights_are_of_a_known_kind():
    with pytest.raises(InputError, match="weights"):
        ConvertOptions("mnn", weights="int4")


def test_a_checkpoint_is_exported_as_a_bundle_is_converted(tmp_path, monkeypatch):
    bundle, asked = make_bundle(tmp_path), []
    monkeypatch.setattr(contracts, "export_bundle", lambda *arguments: asked.append(arguments) or bundle)
    options = ExportOptions(contract="mnn", single_mask=True, image_size=512)
    document = contracts.export_contract(tmp_path / "mine.pth", tmp_path / "out", options)
    ((source, folder, own, *_),) = asked
    assert (source.name, own.contract, own.image_size, own.single_mask) == ("mine.pth", "segship", 512, None)
    assert not folder.parent.exists()
    assert document["options"] == {"target": "mnn", "single_mask": True} and (tmp_path / "out/export.json").is_file()
