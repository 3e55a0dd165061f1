# SPDX-License-Identifier: Apache-2.0
import os
import time
from dataclasses import replace

import onnx
import pytest

from segship.bundle import Bundle
from segship.catalog import KNOWN_CHECKPOINTS, embedded_bundle
from segship.cli import export as exporting
from segship.files import sha256_of
from segship.semantic.preprocessing import ScaleLimits


def test_export_writes_a_bundle_and_prints_the_comparison(run, small_checkpoint, tmp_path):
    code, out, err = run("export", small_checkpoint, "-o", tmp_path / "bundle", "--no-simplify")
    assert code == 0
    assert Bundle.read(tmp_path / "bundle").manifest.architecture == "custom"
    for words in ("low_res_masks", "IoU", "passed"):
        assert words in out
    assert "traced" in err


def test_export_of_a_name_that_was_not_fetched_says_how(run_json, monkeypatch, tmp_path):
    monkeypatch.setenv("SEGSHIP_CACHE", str(tmp_path))
    code, document = run_json("export", "vit_b")
    assert code == 5
    assert "segship fetch vit_b" in document["error"]["message"]


def test_export_without_a_place_is_refused(run_json, small_checkpoint):
    assert run_json("export", small_checkpoint)[1]["error"]["code"] == "no_output"


def test_export_tells_what_a_killed_export_left(run, small_checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name == "onnxslim" else object())
    left = tmp_path / f".bundle.{'0' * 16}.partial"
    left.mkdir()
    (left / "image_encoder.onnx").touch()
    for told in ("is of a run that was killed or still writes", "was removed, which a killed run left 48 hours ago"):
        _, _, err = run("export", small_checkpoint, "-o", tmp_path / "bundle")
        assert told in " ".join(err.split())
        for path in (left / "image_encoder.onnx", left):
            if path.exists():
                os.utime(path, (time.time() - 48 * 3600,) * 2)
    assert not left.exists()


def test_export_without_its_packages_names_the_extra(run_json, small_checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name == "onnxslim" else object())
    code, document = run_json("export", small_checkpoint, "-o", tmp_path / "bundle")
    assert code == 4
    assert 'needs onnxslim, not installed here; run: pip install "segship[export]"' in document["error"]["message"]


@pytest.mark.parametrize("name", ["vit_b", "vit_t"])
def test_fetch_from_a_file_of_other_bytes_is_refused(run_json, tmp_path, monkeypatch, name):
    monkeypatch.setenv("SEGSHIP_CACHE", str(tmp_path / "cache"))
    wrong = tmp_path / "wrong.pth"
    wrong.write_bytes(b"not it")
    code, document = run_json("fetch", name, "--from", wrong)
    assert (code, document["error"]["code"]) == (4, "wrong_size")


@pytest.fixture
def semantic_checkpoint(small_semask_checkpoint, small_semantic_bundle):
    """The small SeMask-FPN, whose graph of 96 x 160 is not traced again."""
    return small_semask_checkpoint


def test_export_of_a_semantic_model_prints_the_comparison(run, semantic_checkpoint, tmp_path):
    folder, options = tmp_path / "bundle", ("--size", "96,160", "--scale", "640,480", "--no-simplify")
    code, out, err = run("export", semantic_checkpoint, "-o", folder, *options)
    assert code == 0 and "% of the pixels equal" in out and "traced" in err
    manifest = Bundle.read(folder).manifest
    assert (manifest.task, manifest.preprocessing.scale) == ("semantic", ScaleLimits(640, 480))
    assert {check.backend for check in manifest.checks} >= {"onnxruntime"}
    code, out, _ = run("tune", folder, "--repeats", 1)
    assert code == 0 and "segment ms" in out and "for a picture of 160 x 96" in out


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--image-size", "512"], "other_family", "leave out --image-size (promptable models alone)"),
        (
            ["--single-mask", "--target", "plain"],
            "other_family",
            "leave out --single-mask, --target (promptable models alone)",
        ),
        (["--contract", "official"], "other_family", "--contract official belongs to promptable ones"),
        (["--size", "1024"], "bad_size", "--size is '1024'; accepted is HEIGHT,WIDTH such as 1024,2048, or dynamic"),
        (["--size", "8,9000"], "bad_size", "a size of 8,9000"),
        (["--batch", "two"], "bad_batch", "--batch is 'two'"),
        (["--batch", "4"], "bad_batch", "a bundle's is 1 or dynamic"),
        (["--scale", "2048x1024"], "bad_scale", "accepted is LONG,SHORT"),
        (["--contract", "ascend", "--size", "dynamic"], "bad_option", "--contract ascend has fixed sizes"),
    ],
)
def test_options_that_a_semantic_export_cannot_follow(
    run_json, small_semask_checkpoint, tmp_path, options, code, words
):
    found, document = run_json("export", small_semask_checkpoint, "-o", tmp_path / "bundle", *options)
    assert (found, document["error"]["code"]) == (5, code) and words in document["error"]["message"]
    assert not (tmp_path / "bundle").exists()


def test_semantic_options_are_refused_for_promptable_models(run_json, small_checkpoint, tmp_path):
    options = ["--size", "96,160", "--semantic-window", "all"]
    code, document = run_json("export", small_checkpoint, "-o", tmp_path / "bundle", *options)
    assert (code, document["error"]["code"]) == (5, "other_family")
    assert "leave out --size, --semantic-window (semantic models alone)" in document["error"]["message"]


def test_fetch_of_a_semantic_model_says_how_and_checks_what_it_gets(
    run, run_json, tmp_path, monkeypatch, small_semask_checkpoint
):
    monkeypatch.setenv("SEGSHIP_CACHE", str(tmp_path / "cache"))
    code, document = run_json("fetch", "semask_t_cityscapes")
    assert (code, document["error"]["code"]) == (4, "fetch_by_hand")
    assert "drive.google.com/file/d/1_JBOJQSUVes" in document["error"]["message"]
    code, document = run_json("fetch", "semask_t_cityscapes", "--from", small_semask_checkpoint)
    assert (code, document["error"]["code"]) == (4, "wrong_checkpoint")
    code, document = run_json("fetch", "semask_t_cityscapes", "--mirror", "https://example.org")
    assert (code, document["error"]["code"]) == (4, "no_published_digest")
    known = replace(KNOWN_CHECKPOINTS["semask_t_cityscapes"], architecture="custom")
    monkeypatch.setitem(KNOWN_CHECKPOINTS, "semask_t_cityscapes", known)
    code, document = run_json("fetch", "semask_t_cityscapes", "--from", small_semask_checkpoint)
    assert code == 0 and document["path"] == str(tmp_path / "cache" / "checkpoints" / "semask_t_cityscapes.pth")
    assert "no digest is published" in run("fetch", "semask_t_cityscapes")[1]


def test_export_by_a_semantic_name_takes_the_fetched_file_and_knows_its_licence(
    run_json, tmp_path, monkeypatch, semantic_checkpoint
):
    monkeypatch.setenv("SEGSHIP_CACHE", str(tmp_path / "cache"))
    code, document = run_json("export", "semask_b_cityscapes")
    assert code == 5 and "run: segship fetch semask_b_cityscapes" in document["error"]["message"]
    place = tmp_path / "cache" / "checkpoints" / "semask_b_cityscapes.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(semantic_checkpoint.read_bytes())
    assert run_json("export", "semask_b_cityscapes", "--size", "96,160", "--no-simplify", "--no-measure")[0] == 0
    manifest = Bundle.read(tmp_path / "cache" / "bundles" / "semask_b_cityscapes").manifest
    assert manifest.checkpoint.licence == "Apache-2.0"


def test_fetch_makes_the_bundle_and_says_how_to_use_it(
    run, run_json, small_checkpoint, small_templates, monkeypatch, tmp_path
):
    monkeypatch.setenv("SEGSHIP_CACHE", str(tmp_path))
    size, digest = small_checkpoint.stat().st_size, sha256_of(small_checkpoint)
    monkeypatch.setitem(KNOWN_CHECKPOINTS, "vit_t", replace(KNOWN_CHECKPOINTS["vit_t"], bytes=size, sha256=digest))
    code, document = run_json("fetch", "vit_t", "--from", small_checkpoint, "--out", tmp_path / "own")
    assert (code, document["path"], document["bundle"]) == (0, str(tmp_path / "own" / "mobile_sam.pt"), None)
    code, out, err = run("fetch", "vit_t", "--from", small_checkpoint)
    assert code == 0 and "making the bundle of vit_t" in err and "ready in" in out
    assert out.splitlines()[-1] == "use it: segship segment photo.jpg --model vit_t --point 500,375"
    code, document = run_json("fetch", "vit_t")
    assert document["bundle"] == str(tmp_path / "bundles" / "vit_t") and document["sha256"] == digest
    assert "was there already, and is kept" in run("fetch", "vit_t")[1]
    assert run("demo", "--model", "vit_t", "-o", tmp_path / "demo")[0] == 0


def test_bundle_and_verify_say_what_is_proven(run, run_json, small_checkpoint, small_templates, tmp_path):
    folder = tmp_path / "bundle"
    code, out, _ = run("bundle", small_checkpoint, "-o", folder)
    assert code == 0 and "to compare it with torch: segship verify" in out and f"written to {folder}" in out
    code, document = run_json("bundle", small_checkpoint, "-o", folder, "--overwrite")
    assert (code, document["template"]) == (0, "custom.onnxruntime")
    assert run_json("bundle", small_checkpoint, "-o", folder)[1]["error"]["code"] == "output_exists"
    code, document = run_json("verify", folder, "--torch", small_checkpoint)
    assert code == 0 and all(row["passed"] for row in document["comparison"])
    assert "passed" in run("verify", folder, "--torch", small_checkpoint)[1]


def test_bundle_of_a_name_or_an_architecture_that_is_not_here_says_what_to_do(
    run_json, small_checkpoint, monkeypatch, tmp_path
):
    monkeypatch.setenv("SEGSHIP_CACHE", str(tmp_path))
    code, document = run_json("bundle", "vit_t")
    assert (code, document["error"]["code"]) == (5, "no_checkpoint")
    assert "run: segship fetch vit_t" in document["error"]["message"]
    code, document = run_json("bundle", small_checkpoint, "-o", tmp_path / "bundle")
    assert (code, document["error"]["code"]) == (5, "no_template")
    assert "`segship export" in document["error"]["message"]


def test_export_says_when_a_template_would_have_done(run, small_checkpoint, small_templates, tmp_path):
    hint = f"segship bundle {small_checkpoint} has the same graphs in seconds, without torch"
    assert hint in " ".join(run("export", small_checkpoint, "-o", tmp_path / "a", "--no-measure")[2].split("\n"))
    assert hint not in run("export", small_checkpoint, "-o", tmp_path / "b", "--no-measure", "--no-simplify")[2]


def test_template_of_an_unknown_architecture_lists_the_known_ones(run_json):
    code, document = run_json("template", "vit_x")
    assert (code, document["error"]["code"]) == (5, "unknown_architecture")


def test_verify_locates_the_tensor_that_leaves_its_reference(run, run_json, tmp_path):
    folder = embedded_bundle("tiny")
    changed = onnx.load(folder / "mask_decoder.onnx")
    guilty = [node for node in changed.graph.node if node.op_type == "LayerNormalization"][-1]
    next(entry for entry in guilty.attribute if entry.name == "epsilon").f = 0.5
    onnx.save(changed, tmp_path / "changed.onnx")
    plot, asked = tmp_path / "depth.svg", ("verify", folder, "--locate", "--against", tmp_path / "changed.onnx")
    code, document = run_json(*asked, "--plot", plot)
    (graph,) = document["graphs"]
    assert code == 5 and graph["first"]["tensor"] == guilty.output[0]
    assert "LayerNormalization" in plot.read_text("utf-8")
    code, out, err = run(*asked)
    assert code == 5 and "LayerNormalization" in out and "mask_decoder leave their reference" in err
    code, _, err = run("verify", folder, "--plot", plot)
    assert code == 3 and "belong to --locate" in err
