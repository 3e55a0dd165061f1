# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of known architectures become bundles by templates: the graphs of an export, for every layout of a file.

The templates of the small models lie beside this file; ``test_making.py`` makes them anew.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import segship
from segship.bench.benchmark import benchmark
from segship.bench.options import BenchmarkOptions
from segship.bundle import Bundle
from segship.catalog import KNOWN_CHECKPOINTS
from segship.errors import BundleError, CheckpointError, ExportError, OutputError
from segship.files import sha256_of
from segship.promptable.everything.options import AmgOptions
from segship.semantic.preprocessing import ScaleLimits
from segship.ship import templates
from segship.ship.families.semask.config import SEMASK_ARCHITECTURES
from segship.ship.options import ExportOptions
from segship.ship.templates import answers_file, bundling
from segship.ship.templates.bundling import BundleOptions, bundle_checkpoint, would_do
from segship.ship.templates.making import store_answers
from segship.ship.verify import verify_bundle
from segship.tune import TuneOptions, tune_bundle
from tests.small_models import save_checkpoint, small_sam
from tests.small_semask import SIZE_HW, SMALL_SEMASK, mmcv_checkpoint, seeded_semask, small_semask

DEMO = segship.demo_photograph()
POINTS = [[[365, 290]], [[120, 80]], [[500, 350]]]

pytestmark = pytest.mark.usefixtures("small_templates")


def answer(path):
    with segship.load(path, backend="onnxruntime") as predictor:
        return predictor.predict(segship.demo_photograph(), points=POINTS)


def digests(bundle):
    return {artifact.graph: artifact.sha256 for artifact in bundle.manifest.artifacts}


@pytest.fixture(scope="session")
def made_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("templates") / "bundle"


@pytest.fixture
def made(made_folder, small_checkpoint):
    """The bundle that the template makes of the small checkpoint, made once."""
    return Bundle.read(made_folder) if made_folder.exists() else bundle_checkpoint(small_checkpoint, made_folder)


def test_instance_equals_the_exported_bundle(made, small_export):
    exported = small_export[0]
    found, expected = answer(made.path), answer(exported.path)
    for name in ("low_res_masks", "iou_predictions"):
        values, wanted = getattr(found, name), getattr(expected, name)
        assert np.abs(values - wanted).max() <= 1e-6 * np.abs(wanted).max()
    union = (found.masks | expected.masks).sum((-1, -2))
    assert ((found.masks & expected.masks).sum((-1, -2)) >= 0.9999 * union).all() and union.any()
    # More than that: the files are the same.
    assert digests(made) == digests(exported)
    same = (
        "graphs",
        "architecture",
        "geometry",
        "preprocessing",
        "prompt_rules",
        "mask_clean_up",
        "mask_edges",
        "checkpoint",
    )
    assert all(getattr(made.manifest, name) == getattr(exported.manifest, name) for name in same)


@pytest.mark.slow
def test_the_use_road_makes_no_difference(made, small_export, tmp_path):
    bundles = {"made": made, "exported": small_export[0]}
    # Of the small model, whose random weights are sure of nothing.
    options = AmgOptions(points_per_side=4, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    records = [
        [record.to_dict() for record in segship.generate_masks(segship.load(bundle.path), DEMO, options)]
        for bundle in bundles.values()
    ]
    assert records[0] == records[1] and records[0]
    quick = BenchmarkOptions(stages=("encode", "decode"), warm_up=0, repeats=1, objects=(1,), fresh=False)
    stages = [[row.name for row in benchmark(bundle.path, quick).rows] for bundle in bundles.values()]
    assert stages[0] == stages[1] and stages[0]
    tuned = [
        tune_bundle(bundle.path, TuneOptions(repeats=1), out=tmp_path / name).manifest.checks
        for name, bundle in bundles.items()
    ]
    first, second = ([(check.backend, check.precision, check.passed) for check in checks] for checks in tuned)
    assert first == second and any(passed for _, _, passed in first)


def test_manifest_says_what_was_proven_and_what_was_not(made):
    origin = made.manifest.template
    assert origin.name == "custom.onnxruntime" and origin.sha256 == sha256_of(
        templates.template_file("custom", "onnxruntime")
    )
    assert "these weights were not compared with torch" in origin.proven
    assert {row.step for row in made.manifest.evidence.rows} == {"self-check"} and made.manifest.tools["torch"]


def test_verify_holds_a_bundle_against_torch_and_refuses_another_checkpoint(made, small_checkpoint, tmp_path):
    rows = verify_bundle(made.path, small_checkpoint)
    assert len(rows) >= 6 and all(row.passed for row in rows)
    other = save_checkpoint(tmp_path / "other.pth", wrap=lambda state: {"model": state})
    with pytest.raises(BundleError, match="give the checkpoint that it was made of") as refusal:
        verify_bundle(made.path, other)
    assert refusal.value.code == "other_checkpoint"


def prefixed(state):
    return {f"module.sam.{name}": tensor for name, tensor in state.items()}


LAYOUTS = {
    "prefix": prefixed,
    "wrapper": lambda state: {"epoch": 3, "model": state, "optimizer": {"state": {}}},
    "wrapped prefix": lambda state: {"state_dict": prefixed(state)},
    "double": lambda state: {name: tensor.double() for name, tensor in state.items()},
    "other tensors": lambda state: {**prefixed(state), "teacher.weight": torch.zeros(3)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_fine_tuned_files_give_the_same_bytes(made, tmp_path, layout):
    path = save_checkpoint(tmp_path / "tuned.pth", wrap=LAYOUTS[layout])
    assert digests(bundle_checkpoint(path, tmp_path / "bundle")) == digests(made)


def test_safetensors_give_the_same_bytes(made, tmp_path):
    state = {name: tensor.contiguous() for name, tensor in small_sam().state_dict().items()}
    save_file(state, tmp_path / "tuned.safetensors")
    assert digests(bundle_checkpoint(tmp_path / "tuned.safetensors", tmp_path / "bundle")) == digests(made)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_that_of_the_rounded_weights(tmp_path, dtype):
    half, rounded = tmp_path / "half.pth", tmp_path / "rounded.pth"
    save_checkpoint(half, wrap=lambda state: {name: tensor.to(dtype) for name, tensor in state.items()})
    save_checkpoint(rounded, wrap=lambda state: {name: tensor.to(dtype).float() for name, tensor in state.items()})
    found, expected = (bundle_checkpoint(path, tmp_path / path.stem) for path in (half, rounded))
    assert np.array_equal(answer(found.path).low_res_masks, answer(expected.path).low_res_masks)
    sizes = [bundle.manifest.artifact("image_encoder").bytes for bundle in (found, expected)]
    assert sizes[0] < 0.6 * sizes[1] if dtype == torch.float16 else sizes[0] == sizes[1]


BIAS = "mask_decoder.iou_prediction_head.layers.0.bias"


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda state: {n: t for n, t in state.items() if n != BIAS}, "state_mismatch", f"missing.*{BIAS}"),
        (lambda state: {**state, "mask_decoder.more": torch.zeros(2)}, "state_mismatch", "unexpected.*mask_decoder.mo"),
        (lambda state: {**state, BIAS: torch.zeros(7)}, "state_mismatch", rf"{BIAS} \(7,\)"),
        (lambda state: {**state, BIAS: state[BIAS] * torch.nan}, "non_finite_weights", f"not finite.*{BIAS}"),
        (lambda state: {**state, BIAS: state[BIAS] + torch.inf}, "non_finite_weights", f"not finite.*{BIAS}"),
        (lambda state: {n: 1e30 * t for n, t in state.items()}, "self_check", "nothing was written"),
    ],
    ids=["missing", "unexpected", "shape", "nan", "infinite", "overflowing"],
)
def test_weights_that_make_no_model_are_refused_and_leave_nothing(tmp_path, change, code, words):
    path = save_checkpoint(tmp_path / "wrong.pth", wrap=change)
    with pytest.raises((CheckpointError, ExportError), match=words) as refusal:
        bundle_checkpoint(path, tmp_path / "bundle")
    assert refusal.value.code == code
    assert [entry.name for entry in tmp_path.iterdir()] == ["wrong.pth"]


def test_what_has_no_template_is_exported(monkeypatch, small_checkpoint, tmp_path):
    with pytest.raises(ExportError, match=r"or export it, which needs torch: `segship export .*small\.pth") as no:
        bundle_checkpoint(small_checkpoint, tmp_path / "bundle", BundleOptions(target="plain"))
    assert no.value.code == "no_template"
    monkeypatch.setattr(templates, "FOLDER", tmp_path)
    with pytest.raises(ExportError) as no:
        bundle_checkpoint(small_checkpoint, tmp_path / "bundle")
    assert no.value.code == "no_template"


def test_a_folder_that_is_there_stays_unless_it_is_a_bundle_and_force_is_given(made, small_checkpoint, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    for force in (False, True):
        with pytest.raises(OutputError):
            bundle_checkpoint(small_checkpoint, tmp_path / "mine", BundleOptions(force=force))
    assert (tmp_path / "mine" / "letter.txt").exists()
    first = bundle_checkpoint(small_checkpoint, tmp_path / "bundle")
    with pytest.raises(OutputError, match="replace a bundle with force=True"):
        bundle_checkpoint(small_checkpoint, tmp_path / "bundle")
    again = bundle_checkpoint(small_checkpoint, tmp_path / "bundle", BundleOptions(force=True))
    assert digests(again) == digests(first) == digests(made)


def test_options_of_the_other_task_are_refused(small_checkpoint, small_semask_checkpoint, tmp_path):
    for path, options, words in (
        (small_checkpoint, BundleOptions(size=(96, 160)), r"leave out size \(semantic"),
        (small_semask_checkpoint, BundleOptions(clean_masks=True), r"leave out clean_masks \(promptable"),
    ):
        with pytest.raises(ExportError, match=words) as refusal:
            bundle_checkpoint(path, tmp_path / "bundle", options)
        assert refusal.value.code == "other_family"


def test_an_export_knows_when_a_template_would_do(small_checkpoint, small_semask_checkpoint):
    assert would_do(small_checkpoint, ExportOptions(measure=False, clean_masks=True))
    assert would_do(small_semask_checkpoint, ExportOptions(size=(96, 160), scale=ScaleLimits(640, 480)))
    for other in (
        {"opset": 17},
        {"simplify": False},
        {"image_size": 96},
        {"target": "plain"},
        {"contract": "official"},
    ):
        assert not would_do(small_checkpoint, ExportOptions(**other))
    for other in ({"output": "logits"}, {"batch": 1}):
        assert not would_do(small_semask_checkpoint, ExportOptions(**other))


def segment(path, shape=(96, 160)):
    with segship.load_semantic(path, backend="onnxruntime") as predictor:
        return predictor.segment(np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)).array


def test_semantic_instance_equals_the_exported_bundle_at_its_size(
    small_semantic_bundle, small_semask_checkpoint, tmp_path
):
    fixed = bundle_checkpoint(small_semask_checkpoint, tmp_path / "fixed", BundleOptions(size=SIZE_HW))
    opened = bundle_checkpoint(small_semask_checkpoint, tmp_path / "open")
    spec = fixed.manifest.graph_spec("semantic")
    assert spec.inputs[0].shape[2:] == SIZE_HW and opened.manifest.graph_spec("semantic").inputs[0].shape[2:] != SIZE_HW
    expected = segment(small_semantic_bundle.path)
    assert np.array_equal(segment(fixed.path), expected) and len(np.unique(expected)) > 1
    assert all(row.passed for row in verify_bundle(opened.path, small_semask_checkpoint))


@pytest.mark.parametrize(
    ("classes", "semantic_classes"), [(3, 5), pytest.param(171, 150, marks=pytest.mark.slow, id="COCO-Stuff")]
)
def test_numbers_of_classes_are_the_checkpoints_own(tmp_path, classes, semantic_classes):
    config = replace(SMALL_SEMASK, classes=classes, semantic_classes=semantic_classes)
    names = [f"kind {index}" for index in range(classes)]
    document = mmcv_checkpoint(seeded_semask(config), classes=names, palette=[(i, i, 255 - i) for i in range(classes)])
    torch.save(document, tmp_path / "own.pth")
    options = BundleOptions(semantic_window="all")
    made = bundle_checkpoint(tmp_path / "own.pth", tmp_path / "bundle", options)
    assert (len(made.manifest.table.classes), made.manifest.semantic_classes) == (classes, semantic_classes)
    assert all(row.passed for row in verify_bundle(made.path, tmp_path / "own.pth"))


def test_counters_of_batches_may_be_missing(small_semask_checkpoint, tmp_path):
    document = mmcv_checkpoint(small_semask())
    counters = [name for name in document["state_dict"] if name.endswith("num_batches_tracked")]
    assert counters
    for name in counters:
        del document["state_dict"][name]
    torch.save(document, tmp_path / "without.pth")
    without = bundle_checkpoint(tmp_path / "without.pth", tmp_path / "a", BundleOptions(size=SIZE_HW))
    whole = bundle_checkpoint(small_semask_checkpoint, tmp_path / "b", BundleOptions(size=SIZE_HW))
    assert digests(without) == digests(whole)


def test_windows_without_a_template_are_exported(small_semask_checkpoint, tmp_path):
    assert "small" in SEMASK_ARCHITECTURES
    with pytest.raises(ExportError) as refusal:
        bundle_checkpoint(small_semask_checkpoint, tmp_path / "x", BundleOptions(semantic_window="first-two"))
    assert refusal.value.code == "no_template"


def test_stored_answers_of_a_published_checkpoint_are_asked_for(monkeypatch, small_checkpoint, tmp_path):
    with pytest.raises(ExportError, match="is no published checkpoint") as refusal:
        store_answers(small_checkpoint)
    assert refusal.value.code == "not_published"
    digest = sha256_of(small_checkpoint)
    known = replace(KNOWN_CHECKPOINTS["vit_t"], sha256=digest, bytes=small_checkpoint.stat().st_size)
    monkeypatch.setitem(KNOWN_CHECKPOINTS, "vit_t", known)
    monkeypatch.setattr(bundling, "template_targets", lambda name: ("onnxruntime",))
    template = bundling.read_template("custom", "onnxruntime")
    monkeypatch.setattr(bundling, "read_template", lambda name, target: template)
    monkeypatch.setattr(templates, "FOLDER", tmp_path / "package")
    (tmp_path / "package").mkdir()
    path = store_answers(small_checkpoint)
    assert path == answers_file(digest) and path.stat().st_size < 100_000
    made = bundle_checkpoint(small_checkpoint, tmp_path / "right")
    assert "self-check against stored answers" in {row.step for row in made.manifest.evidence.rows}
    stored = templates.read_answers(digest)
    np.savez_compressed(path, **{**stored, "scores": stored["scores"] + 0.01})
    with pytest.raises(ExportError, match="against stored answers") as refusal:
        bundle_checkpoint(small_checkpoint, tmp_path / "wrong")
    assert refusal.value.code == "self_check" and not (tmp_path / "wrong").exists()
