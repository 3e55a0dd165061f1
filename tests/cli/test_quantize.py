# SPDX-License-Identifier: Apache-2.0
"""`segship quantize`, and commands that run what it made."""

import json

import pytest

from segship.bundle import Bundle
from segship.cli import main
from segship.images.reading import demo_photograph
from segship.ship.quantize import quantizing


@pytest.fixture(scope="module")
def lean(tmp_path_factory):
    """The model inside the package with its weights in 8 bits, alone: the folder, and what the command said."""
    folder = tmp_path_factory.mktemp("quantized")
    assert main(["calibrate", "--limit", "2", "--objects", "1", "-o", str(folder / "list"), "--quiet"]) == 0
    return folder


def test_a_lean_bundle_says_its_sizes_and_segments(lean, run, run_json):
    given = ("--precision", "int8-weights", "--calibration", lean / "list", "--only", "--lean", "-o", lean / "small")
    code, out, _ = run("quantize", "tiny", *given)
    assert code == 0 and "mask_decoder" in out and "passed" in out
    assert f"--model {lean / 'small'} --precision int8-weights" in out.replace("\n", " ")
    bundle = Bundle.read(lean / "small")
    assert sum(artifact.all_bytes for artifact in bundle.manifest.artifacts) < 5_000_000
    code, document = run_json(
        "segment", demo_photograph(), "--point", "365,290", "--model", lean / "small", "--precision", "int8-weights",
        "--out", lean / "masks",
    )  # fmt: skip
    assert (code, document["precision"]) == (0, "int8-weights")


def test_json_holds_artifacts_and_checks(lean, capsys):
    given = ["--precision", "fp16-weights", "--calibration", str(lean / "list"), "-o", str(lean / "half"), "--json"]
    assert main(["quantize", "tiny", *given]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["artifacts"]) == 4 and document["precision"] == "fp16-weights"
    assert all(check["passed"] for check in document["checks"])


def test_errors_speak_in_the_words_of_the_command_line(lean, run_json, monkeypatch):
    monkeypatch.setattr(quantizing, "_damages", lambda *_: [(1.0, "image_encoder", "no layer")])
    code, document = run_json("quantize", "tiny", "--mask-iou", "2")
    assert (code, document["error"]["code"]) == (3, "bad_option")
    code, document = run_json("quantize", "tiny")
    assert (code, document["error"]["code"]) == (3, "bundle_in_package") and "--out" in document["error"]["message"]
    given = ("--precision", "int4-weights", "--calibration", lean / "list", "--mask-iou", "1", "-o", lean / "never")
    code, document = run_json("quantize", "tiny", *given)
    assert (code, document["error"]["code"]) == (5, "accuracy_missed")
    assert "--accept-accuracy" in document["error"]["message"] and not (lean / "never").exists()
