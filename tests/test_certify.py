# SPDX-License-Identifier: Apache-2.0
"""Certificates: made, read, proven anew, and broken by any changed byte."""

import random
import shutil
from dataclasses import replace

import numpy as np
import pytest

import segship
from segship import certify as certifying
from segship import tune
from segship.backends import installed_version
from segship.backends.choice import processor_name
from segship.bundle import Bundle
from segship.bundle.certificate import CERTIFICATE_FILE, DOCUMENT, Certificate, Determinism, read_certificate
from segship.bundle.evidence import Choice
from segship.bundle.manifest import MANIFEST_FILE
from segship.certify import (
    CertifyOptions,
    certify,
    check_digests,
    require_certificate,
    require_held,
    verify_certificate,
)
from segship.datasets.calibration import CalibrateOptions, calibrate
from segship.datasets.image_list import read_image_list
from segship.errors import BackendUnavailable, BundleError, ComparisonFailed, InputError, SegshipError
from segship.images.comparison import draw_labelled_scene
from segship.tune import Budget, TuneOptions, tune_budget, tune_bundle
from tests.small_bundle import make_bundle

QUICK = CertifyOptions(threads=1)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return calibrate([], tmp_path_factory.mktemp("list") / "list", CalibrateOptions(limit=2, objects=2))


@pytest.fixture
def bundle(small_export, tmp_path):
    shutil.copytree(small_export[0].path, tmp_path / "bundle")
    return Bundle.open(tmp_path / "bundle")


def only(monkeypatch, *names):
    monkeypatch.setattr(tune, "candidates", lambda manifest=None: names)


def answering(monkeypatch, graph, spoil, precision="int8"):
    """Let a second precision in ONNX Runtime answer as fp32 does, but for one graph, whose answers are spoiled."""
    real = certifying.open_sessions

    def opened(bundle, options):
        sessions = real(bundle, replace(options, precision="fp32"))
        if options.precision != "fp32":
            run = sessions[graph].run
            sessions[graph].run = lambda inputs: spoil(run(inputs))
        return sessions

    monkeypatch.setattr(certifying, "open_sessions", opened)
    steady = Determinism(("0" * 64,), {"1": "0" * 64, "2": "0" * 64}, "0" * 64)
    monkeypatch.setattr(certifying, "_determinism", lambda *_: steady)
    only(monkeypatch, ("onnxruntime", "fp32"), ("onnxruntime", precision))


def changed_logits(by):
    return lambda found: {**found, **{name: by(found[name]) for name in found if name == "low_res_masks"}}


def test_everything_that_runs_here_is_certified(bundle, images):
    done = certify(bundle.path, images.path, QUICK)
    certificate = read_certificate(bundle.path)
    assert certificate == done.certificate and Bundle.read(bundle.path).digest == bundle.digest
    assert [(row.backend, row.precision) for row in certificate.certified] == list(tune.candidates())
    assert certificate.evaluation.sha256 == images.sha256 and certificate.evaluation.truth
    assert certificate.artifacts == {one.file: one.sha256 for one in bundle.manifest.artifacts}
    assert certificate.reference.scores.keys() == {"click_best", "click_first", "box"}
    (exact,) = [row for row in certificate.certified if (row.backend, row.precision) == ("onnxruntime", "fp32")]
    assert exact.verdict == "bit-exact" and exact.outputs == certificate.reference.outputs
    assert exact.determinism.is_steady and exact.scores == certificate.reference.scores
    for row in certificate.certified:
        assert row.version == installed_version(row.backend) and row.reason and row.cpu
        whats = {(one.graph, one.what) for one in row.evidence.rows}
        assert {("image_encoder", "image_embeddings"), ("mask_decoder", "iou_predictions")} <= whats
        assert {"masks", "masks, click", "masks, clicks", "masks, box", "masks, refined"} <= {what for _, what in whats}
        figures = next(one.figures for one in row.evidence.rows if one.what == "masks")
        assert figures.keys() >= {"mask_iou_mean", "mask_iou_p5", "mask_iou_min", "mask_iou_low", "boundary_f", "flips"}


def test_the_same_list_is_proven_anew(bundle, images, monkeypatch):
    only(monkeypatch, ("onnxruntime", "fp32"))
    certify(bundle.path, images.path, QUICK)
    lines = verify_certificate(bundle.path, images.path, QUICK)
    require_held(lines)
    assert {"digests", "image list", "onnxruntime fp32, verdict", "onnxruntime fp32, scores"} <= {
        one.what for one in lines
    }
    other = calibrate([], images.path.parent / "other", CalibrateOptions(limit=1))
    broken = verify_certificate(bundle.path, other.path, QUICK)
    with pytest.raises(ComparisonFailed, match="the certificate does not hold here: image list") as caught:
        require_held(broken)
    assert caught.value.code == "certificate_broken"


def test_a_folder_of_pictures_becomes_the_same_list_again(bundle, tmp_path, monkeypatch):
    only(monkeypatch, ("onnxruntime", "fp32"))
    photos = tmp_path / "photos"
    photos.mkdir()
    from PIL import Image

    for place in range(3):
        Image.fromarray(draw_labelled_scene((40, 60), place)[0]).save(photos / f"{place}.png")
    done = certify(bundle.path, photos, CertifyOptions(limit=2, objects=1, threads=1))
    assert done.certificate.evaluation.images == 2 and not done.certificate.evaluation.truth
    assert done.certificate.reference.scores == {}
    require_held(verify_certificate(bundle.path, photos))


@pytest.mark.parametrize(
    ("spoil", "verdict"),
    [
        (changed_logits(lambda logits: logits + np.float32(1e-6)), "gold"),
        (changed_logits(lambda logits: -logits), "fail"),
        (changed_logits(lambda logits: np.full_like(logits, np.nan)), "fail"),
    ],
)
def test_verdict_says_what_a_precision_costs(bundle, images, monkeypatch, spoil, verdict):
    answering(monkeypatch, "mask_decoder", spoil)
    certificate = certify(bundle.path, images.path, QUICK).certificate
    exact, reduced = certificate.certified
    assert exact.verdict == "bit-exact"
    assert reduced.verdict == verdict and reduced.reason


def test_a_loss_against_the_truth_alone_makes_silver_and_then_fails():
    from segship.bundle.certificate import Reference
    from segship.bundle.evidence import Evidence

    class Found:
        outputs, agreements = "b" * 64, [0.99, 0.999]

        def scores(self):
            return kept

    reference = Reference("c" * 64, "onnxruntime", "1", "a" * 64, {"box": 0.8, "click_best": 0.5})
    evidence = Evidence({}, ())
    for part, verdict in ((1.0, "gold"), (0.9991, "gold"), (0.9989, "silver"), (0.9901, "silver"), (0.9899, "fail")):
        kept = {"box": 0.8, "click_best": 0.5 * part}
        found, reason = certifying.judge(evidence, Found(), reference)
        assert found == verdict and "click_best" in reason or part == 1.0
    assert certifying.judge(evidence, Found(), replace(reference, scores={}))[0] == "silver"
    assert certifying.judge(evidence, Found(), replace(reference, outputs="b" * 64))[0] == "bit-exact"


def test_what_fails_needs_a_word_from_the_caller(bundle, images, monkeypatch):
    answering(monkeypatch, "mask_decoder", changed_logits(lambda logits: -logits), precision="fp32-again")
    certificate = certify(bundle.path, images.path, QUICK).certificate
    failing = replace(certificate.certified[1], precision="fp32")
    (bundle.path / CERTIFICATE_FILE).write_bytes(replace(certificate, certified=(failing,)).to_json())
    with pytest.raises(BackendUnavailable, match="fails its bar; .* or take it with accept_accuracy=True") as caught:
        segship.load(bundle.path, backend="onnxruntime")
    assert caught.value.code == "accuracy_failed" and "--accept-accuracy" in caught.value.on_command_line
    with segship.load(bundle.path, backend="onnxruntime", accept_accuracy=True) as predictor:
        assert predictor.precision == "fp32"


def test_what_a_budget_chose_and_a_certificate_fails_is_not_taken_by_auto(bundle, images, monkeypatch):
    only(monkeypatch, ("onnxruntime", "fp32"))
    choice = Choice("onnxruntime", installed_version("onnxruntime"), "fp16-weights", processor_name(), 1, {}, {}, 2)
    (bundle.path / MANIFEST_FILE).write_bytes(replace(bundle.manifest, choice=choice).to_json())
    certificate = certify(bundle.path, images.path, QUICK).certificate
    failing = replace(certificate.certified[0], precision="fp16-weights", verdict="fail")
    (bundle.path / CERTIFICATE_FILE).write_bytes(replace(certificate, certified=(failing,)).to_json())
    with segship.load(bundle.path, backend="auto", precision="auto") as predictor:
        assert predictor.precision == "fp32" and "budget" not in predictor.backend_reason
    with pytest.raises(BackendUnavailable, match="fp16-weights in onnxruntime fails its bar"):
        segship.load(bundle.path, backend="onnxruntime", precision="fp16-weights")


def test_a_certificate_of_other_artifacts_says_nothing_and_is_said_so(bundle, images, monkeypatch):
    only(monkeypatch, ("onnxruntime", "fp32"))
    certificate = certify(bundle.path, images.path, QUICK).certificate
    failing = replace(certificate.certified[0], verdict="fail")
    stale = replace(certificate, certified=(failing,), model="0" * 64)
    (bundle.path / CERTIFICATE_FILE).write_bytes(stale.to_json())
    with segship.load(bundle.path, backend="onnxruntime"):
        pass
    assert [one.holds for one in verify_certificate(bundle.path)] == [False]
    from segship.inspection import inspect

    assert "not this bundle's: model has the digest" in inspect(bundle.path).content["certificate"]["problem"]


def test_tuning_keeps_the_certificate_and_a_copy_takes_it_along(bundle, images, tmp_path, monkeypatch):
    only(monkeypatch, ("onnxruntime", "fp32"))
    certify(bundle.path, images.path, QUICK)
    copy = tune_bundle(bundle.path, TuneOptions(threads=1, repeats=1), out=tmp_path / "copy")
    assert all(one.holds for one in check_digests(copy, require_certificate(copy)))
    chosen, _ = tune_budget(copy.path, Budget({"mask_iou_mean": 0.9}), TuneOptions(threads=1, repeats=1))
    assert chosen.manifest.choice and all(one.holds for one in check_digests(chosen, require_certificate(chosen)))
    again = certify(copy.path, images.path, QUICK, out=tmp_path / "again").bundle
    assert Bundle.read(again.path).manifest.checks and require_certificate(again)


def test_semantic_bundles_are_certified_by_pixels_classes_and_miou(small_semantic_bundle, tmp_path, monkeypatch):
    only(monkeypatch, ("onnxruntime", "fp32"))
    from PIL import Image

    photos = tmp_path / "photos"
    (photos / "labels").mkdir(parents=True)
    for place in range(2):
        pixels, labels = draw_labelled_scene((64, 96), place)
        Image.fromarray(pixels).save(photos / f"{place}.png")
        Image.fromarray((labels % 2).astype(np.uint8)).save(photos / "labels" / f"{place}.png")
    done = certify(small_semantic_bundle.path, photos, CertifyOptions(truth=photos), out=tmp_path / "certified")
    (row,) = done.certificate.certified
    assert row.verdict == "bit-exact" and row.scores.keys() == {"miou", "pixel_accuracy"}
    assert row.evidence.rows[-1].figures == {"pixels_equal": 1.0, "map_iou": 1.0}
    require_held(verify_certificate(done.bundle.path, photos, CertifyOptions(truth=photos)))


def test_a_bundle_is_held_against_another_of_the_same_checkpoint(bundle, images, tmp_path, monkeypatch):
    only(monkeypatch, ("onnxruntime", "fp32"))
    other = shutil.copytree(bundle.path, tmp_path / "other")
    against = replace(QUICK, reference=other)
    done = certify(bundle.path, images.path, against)
    assert done.certificate.certified[0].verdict == "bit-exact"
    require_held(verify_certificate(bundle.path, images.path, against))
    stranger = make_bundle(tmp_path, name="stranger")
    with pytest.raises(BundleError, match="was made of another checkpoint") as caught:
        certify(bundle.path, images.path, replace(QUICK, reference=stranger.path))
    assert caught.value.code == "other_checkpoint"


def test_what_does_not_run_here_is_told_and_breaks_nothing(bundle, images, monkeypatch):
    only(monkeypatch, ("onnxruntime", "fp32"))
    certify(bundle.path, images.path, QUICK)
    only(monkeypatch)
    (digests, line) = verify_certificate(bundle.path)
    assert digests.holds and line.holds and line.found == "not certified here: it does not run here"


def test_other_bytes_on_the_same_machine_do_not_hold(bundle, images, monkeypatch):
    only(monkeypatch, ("onnxruntime", "fp32"))
    certify(bundle.path, images.path, QUICK)
    other = Determinism(("0" * 64,), {"1": "0" * 64, "2": "0" * 64}, "0" * 64)
    monkeypatch.setattr(certifying, "_determinism", lambda *_: other)
    (_, line) = verify_certificate(bundle.path)
    assert not line.holds and line.found == "other bytes"


def test_worse_figures_do_not_hold_and_better_ones_do(bundle, images, monkeypatch):
    answering(monkeypatch, "mask_decoder", changed_logits(lambda logits: logits + np.float32(1e-6)))
    certify(bundle.path, images.path, QUICK)
    answering(monkeypatch, "mask_decoder", lambda found: found)
    require_held(verify_certificate(bundle.path, images.path, QUICK))
    answering(monkeypatch, "mask_decoder", changed_logits(lambda logits: logits * np.float32(0.5) + np.float32(1)))
    broken = {line.what for line in verify_certificate(bundle.path, images.path, QUICK) if not line.holds}
    assert "onnxruntime int8, verdict" in broken and "onnxruntime int8, mask_decoder low_res_masks" in broken


def test_what_cannot_be_certified_or_proven_is_refused(bundle, images, tmp_path):
    with pytest.raises(InputError) as caught:
        certify("tiny", images.path, QUICK)
    assert caught.value.code == "bundle_in_package"
    with pytest.raises(BundleError, match="has no certificate; make one with `segship certify`") as caught:
        verify_certificate(bundle.path)
    assert caught.value.code == "no_certificate"
    with pytest.raises(InputError, match="which holds its own truth; leave truth out"):
        certify(bundle.path, images.path, CertifyOptions(truth=tmp_path))
    assert not (bundle.path / CERTIFICATE_FILE).exists()


def tampered(path, rng):
    """Change a byte of a file for the while."""
    data = bytearray(path.read_bytes())
    place = rng.randrange(len(data))
    data[place] ^= rng.randrange(1, 256)
    return data


def test_any_changed_byte_is_found_1000_of_1000(tmp_path, monkeypatch):
    only(monkeypatch, ("onnxruntime", "fp32"))
    bundle = make_bundle(tmp_path, external=True)
    photos = calibrate([], tmp_path / "list", CalibrateOptions(limit=2, objects=1))
    certify(bundle.path, photos.path, QUICK)

    def holds():
        opened = Bundle.read(bundle.path)
        return all(
            one.holds for one in check_digests(opened, require_certificate(opened), read_image_list(photos.path))
        )

    assert holds()
    files = sorted(path for folder in (bundle.path, photos.path) for path in folder.rglob("*") if path.is_file())
    assert len(files) == 10
    rng, found = random.Random(16), 0
    for number in range(1000):
        path = files[number % len(files)]
        whole = path.read_bytes()
        path.write_bytes(tampered(path, rng))
        try:
            found += not holds()
        except SegshipError:
            found += 1
        finally:
            path.write_bytes(whole)
    assert found == 1000 and holds()


def test_another_checkpoint_digest_or_calibration_list_breaks_a_certificate(bundle, images, monkeypatch):
    only(monkeypatch, ("onnxruntime", "fp32"))
    certificate = certify(bundle.path, images.path, QUICK).certificate
    for change in ({"checkpoint": "0" * 64}, {"calibration": {"image_encoder.onnx": "0" * 64}}, {"artifacts": {}}):
        (bundle.path / CERTIFICATE_FILE).write_bytes(DOCUMENT.write(Certificate, replace(certificate, **change)))
        assert not all(one.holds for one in verify_certificate(bundle.path))
