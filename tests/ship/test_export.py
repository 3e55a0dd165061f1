# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint to a checked bundle, and what happens when a step goes wrong."""

import numpy as np
import pytest

import segship
from segship.bundle import Bundle
from segship.bundle.evidence import Row
from segship.errors import ComparisonFailed, ExportError, OutputError
from segship.masks.scores import mask_iou
from segship.promptable.predictor import Predictor
from segship.promptable.prompts import Prompts
from segship.promptable.task import EXACT_BAR
from segship.ship import export
from segship.ship.contracts import export_contract
from segship.ship.export import export_bundle, take_steps
from segship.ship.loading import load_model
from segship.ship.options import ExportOptions
from segship.ship.verify import torch_sessions
from tests.oracle import SMALL_VIT
from tests.promptable.test_predictor import EXAMPLES, IMAGE, ask_oracle, reference_predictor
from tests.ship.graph.running import scale_weight
from tests.small_models import small_predictor

STEPS = [("traced", "trace"), ("simplified", "simplify"), ("lowered", "lower")]


def row(step, passed=True):
    return Row(step, "semantic", "class_map", 1, {"pixels_equal": 1.0 if passed else 0.5}, passed)


def taking(fails=lambda step, count: False):
    """Take the steps; return what happened, in order, and how it ended."""
    happened = []

    def compare(step, count):
        happened.append((step, count))
        return [row(step, not fails(step, count))]

    try:
        rows = take_steps(
            STEPS, lambda step, change: happened.append(change), compare, lambda *told: happened.append(told)
        )
    except ComparisonFailed as error:
        return happened, str(error)
    return happened, [found.step for found in rows]


def test_each_step_is_compared_on_one_case_and_the_last_on_all():
    happened, ended = taking()
    assert [what for what in happened if isinstance(what, str)] == ["trace", "simplify", "lower"]
    assert [what for what in happened if what[1] in (1, None)] == [("traced", 1), ("simplified", 1), ("lowered", None)]
    assert [what[0] for what in happened if isinstance(what[1], list)] == ended == ["traced", "simplified", "lowered"]


def test_step_that_fails_is_reported_and_the_last():
    happened, ended = taking(lambda step, count: step == "simplified")
    assert "simplified, class_map: 50.0000 % of the pixels equal" in ended
    assert happened[-1] == ("simplified", [row("simplified", False)]) and "lower" not in happened


@pytest.mark.parametrize("guilty", ["traced", "simplified", "lowered"])
def test_guilty_step_is_found_when_only_all_cases_show_it(guilty):
    # Whatever follows a wrong step is wrong too.
    wrong = [name for name, _ in STEPS][[name for name, _ in STEPS].index(guilty) :]
    happened, ended = taking(lambda step, count: count is None and step in wrong)
    assert f"{guilty}, class_map" in ended and happened[-1] == (guilty, [row(guilty, False)])


@pytest.mark.parametrize(
    ("contract", "code"), [("segship", "not_a_bundle"), ("official", "not_an_export"), ("ascend", "not_an_export")]
)
def test_folder_of_somebody_else_is_never_replaced(tmp_path, contract, code):
    run = export_bundle if contract == "segship" else export_contract
    for name in ("notes.txt", "export.json", "manifest.json"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(OutputError, match="so it is not replaced; choose another folder") as caught:
            run(tmp_path / "not read.pth", tmp_path, ExportOptions(contract=contract, force=True))
        assert caught.value.code == code and (tmp_path / "notes.txt").exists()


def test_place_that_cannot_be_written_is_refused_before_the_checkpoint_is_read(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "file").touch()
    for output, force in (("link", True), ("file", True), ("no/folder", False), ("x" * 5000, False)):
        with pytest.raises(OutputError):
            export_bundle(tmp_path / "not read.pth", tmp_path / output, ExportOptions(force=force))


def test_bundle_says_what_it_is(small_export, small_checkpoint):
    manifest = small_export[0].manifest
    assert (manifest.family, manifest.task, manifest.architecture) == ("sam", "promptable", "custom")
    assert manifest.geometry == SMALL_VIT.geometry and manifest.preprocessing.image_size == SMALL_VIT.image_size
    assert {(made.format, made.precision, made.options["opset"]) for made in manifest.artifacts} == {
        ("onnx", "fp32", 18)
    }
    assert manifest.prompt_rules.padding_point == "without_box"
    assert manifest.checkpoint.name == small_checkpoint.name
    assert not manifest.checkpoint.known and manifest.checkpoint.licence == "unknown"
    assert {"segship", "torch", "onnx", "onnxruntime"} <= manifest.tools.keys()


def test_every_step_is_compared_and_written_down(small_export):
    bundle, reported = small_export
    assert [step for step, _ in reported] == ["traced", "simplified"]
    evidence = bundle.manifest.evidence
    assert evidence.bar == EXACT_BAR
    assert tuple(row for _, rows in reported for row in rows) == evidence.rows
    assert {(row.graph, row.what) for row in evidence.rows} == {
        ("image_encoder", "image_embeddings"),
        ("image_side", "all tensors"),
        ("mask_decoder", "low_res_masks"),
        ("mask_decoder", "iou_predictions"),
        ("selective_decoder", "low_res_masks"),
        ("selective_decoder", "iou_predictions"),
        ("image_encoder, mask_decoder, selective_decoder", "masks"),
    }
    assert all(row.passed for row in evidence.rows)
    assert min(row.figures["cosine"] for row in evidence.rows if "cosine" in row.figures) >= 0.999999


def test_bundle_reads_back_whole(small_export):
    assert Bundle.read(small_export[0].path).digest == small_export[0].digest


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_through_the_exported_graphs_equal_the_reference(small_export, example):
    points, labels, boxes, multimask = EXAMPLES[example]
    oracle = reference_predictor()
    oracle.set_image(IMAGE)
    masks, scores, _ = ask_oracle(oracle, points, labels, boxes, multimask)
    predictor = segship.load(small_export[0].path)
    prediction = predictor.predict(IMAGE, Prompts(points, labels, boxes), multimask_output=multimask)
    assert prediction.masks.shape == masks.shape
    assert np.abs(prediction.iou_predictions - scores).max() <= 1e-4 * np.abs(scores).max()
    assert min(mask_iou(prediction.masks[at], masks[at]) for at in np.ndindex(masks.shape[:2])) >= 0.999


def test_exported_objects_of_different_lengths_share_a_call_exactly(small_export):
    predictor = segship.load(small_export[0].path)
    embedding = predictor.encode(IMAGE)
    forms = [
        Prompts(points=[[50, 40]]),
        Prompts(points=[[50, 40], [90, 60], [9, 9]], labels=[1, 1, 0]),
        Prompts(boxes=[42, 60, 70, 87]),
    ]
    together = predictor.decode(embedding, forms)
    for index, form in enumerate(forms):
        alone = predictor.decode(embedding, form).low_res_masks[0]
        assert np.abs(together.low_res_masks[index] - alone).max() <= 1e-5 * np.abs(alone).max()


def test_exported_bundle_agrees_with_the_torch_backend(small_export):
    expected = small_predictor().predict(IMAGE, points=[[50, 40]])
    actual = segship.load(small_export[0].path).predict(IMAGE, points=[[50, 40]])
    assert np.abs(expected.low_res_masks - actual.low_res_masks).max() <= 1e-4


def test_failed_comparison_leaves_nothing_behind(small_checkpoint, tmp_path):
    impossible = ExportOptions(bar={**EXACT_BAR, "max_abs": 0.0, "cosine": 1.1})
    with pytest.raises(ComparisonFailed, match="traced, image_embeddings: cosine .* nothing was written"):
        export_bundle(small_checkpoint, tmp_path / "bundle", impossible)
    assert list(tmp_path.iterdir()) == []


def test_wrong_graph_is_caught_by_the_comparison(small_checkpoint, tmp_path, monkeypatch):
    simplify = export.simplify_graph

    def spoil(model):
        """Change a weight of a decoder by a tenth."""
        spoiled = simplify(model)
        names = {value.name for value in spoiled.graph.input}
        if "mask_input" in names:
            scale_weight(spoiled, "mask_decoder.transformer.layers.0.norm1.weight")
        return spoiled

    monkeypatch.setattr(export, "simplify_graph", spoil)
    with pytest.raises(ComparisonFailed, match="simplified"):
        export_bundle(small_checkpoint, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_existing_bundle_is_kept_unless_forced(small_export, small_checkpoint):
    with pytest.raises(OutputError, match="exists"):
        export_bundle(small_checkpoint, small_export[0].path)
    assert Bundle.read(small_export[0].path).digest == small_export[0].digest


def test_large_weights_go_into_the_sidecar_and_are_checked(small_checkpoint, tmp_path):
    options = ExportOptions(simplify=False, largest_inline_bytes=50_000, measure=False)
    bundle = export_bundle(small_checkpoint, tmp_path / "bundle", options)
    sidecar = tmp_path / "bundle" / "image_encoder.onnx.data"
    assert bundle.manifest.artifact("image_encoder").weights.file == sidecar.name
    prediction = segship.load(bundle.path).predict(IMAGE, points=[[50, 40]])
    assert np.abs(prediction.low_res_masks).max() > 0
    data = bytearray(sidecar.read_bytes())
    data[len(data) // 2] ^= 1
    sidecar.write_bytes(data)
    with pytest.raises(segship.BundleError, match=r"image_encoder\.onnx\.data .* SHA-256 differs"):
        segship.load(bundle.path)


def test_forced_export_replaces_a_bundle(small_checkpoint, tmp_path):
    first = export_bundle(small_checkpoint, tmp_path / "bundle", ExportOptions(simplify=False, measure=False))
    second = export_bundle(small_checkpoint, first.path, ExportOptions(simplify=False, force=True, measure=False))
    assert Bundle.read(first.path).digest == second.digest


def test_every_graph_has_a_form_in_an_older_opset(small_checkpoint, tmp_path):
    options = ExportOptions(simplify=False, opset=14, measure=False)
    bundle = export_bundle(small_checkpoint, tmp_path / "bundle", options)
    assert [artifact.options["opset"] for artifact in bundle.manifest.artifacts] == [14] * 4
    expected, found = (
        predictor.predict(IMAGE, points=[[50, 40]]).low_res_masks
        for predictor in (small_predictor(), segship.load(bundle.path))
    )
    assert np.abs(expected - found).max() <= 1e-4


OTHER_SIZE = ExportOptions(simplify=False, image_size=96, measure=False)


def test_other_image_size_is_another_model_and_recorded(small_checkpoint):
    model = load_model(small_checkpoint, OTHER_SIZE)
    manifest = model.verbs.manifest(model, OTHER_SIZE)
    assert manifest.geometry.image_size == 96 and manifest.changes[0] == "image size 96 instead of 128"
    sessions = torch_sessions(model.networks.reference(model))
    predictor = Predictor(manifest, sessions, encoder_sha256="0" * 64, backend="torch")
    assert predictor.predict(IMAGE, points=[[50, 40]]).low_res_masks.shape == (1, 3, 24, 24)


@pytest.mark.slow
def test_other_image_size_is_exported(small_checkpoint, tmp_path):
    bundle = export_bundle(small_checkpoint, tmp_path / "bundle", OTHER_SIZE)
    assert bundle.manifest.geometry.image_size == 96
    assert segship.load(bundle.path).predict(IMAGE, points=[[50, 40]]).low_res_masks.shape == (1, 3, 24, 24)


def test_other_contracts_are_no_bundles(tmp_path):
    with pytest.raises(ExportError, match="contract 'ascend' is no bundle; use segship.ship.contracts.export_contract"):
        export_bundle(tmp_path / "missing.pth", tmp_path / "bundle", ExportOptions(contract="ascend"))
