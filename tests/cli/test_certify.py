# SPDX-License-Identifier: Apache-2.0
"""`segship certify`, and `segship verify` of what it wrote."""

import json
import shutil

import pytest

from segship import tune as tuning
from segship.bundle.certificate import CERTIFICATE_FILE
from segship.datasets.calibration import CalibrateOptions, calibrate


@pytest.fixture
def bundle(small_export, tmp_path, monkeypatch):
    # Which backends there are is another test's; one keeps this one quick.
    monkeypatch.setattr(tuning, "candidates", lambda manifest=None: (("onnxruntime", "fp32"),))
    return shutil.copytree(small_export[0].path, tmp_path / "bundle")


@pytest.fixture
def images(tmp_path):
    return calibrate([], tmp_path / "list", CalibrateOptions(limit=1, objects=1)).path


def test_a_certificate_is_made_shown_proven_and_broken(run, run_json, bundle, images, tmp_path):
    code, out, err = run("certify", bundle, "--images", images, "--threads", "1", "--plot", tmp_path / "plot.svg")
    assert code == 0 and "bit-exact" in out and f"written to {bundle / CERTIFICATE_FILE}" in out
    assert "onnxruntime fp32: bit-exact" in err
    assert "onnxruntime fp32" in (tmp_path / "plot.svg").read_text()
    code, document = run_json("inspect", bundle)
    assert document["bundle"]["certificate"]["verdicts"]["onnxruntime fp32"].startswith("bit-exact: ")
    code, document = run_json("verify", bundle, "--images", images, "--threads", "1")
    assert code == 0 and all(line["holds"] for line in document["certificate"])
    assert "holds" in run("verify", bundle)[1]
    graph = bundle / "mask_decoder.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\xff")
    code, document = run_json("verify", bundle)
    assert (code, document["error"]["code"]) == (3, "changed_file")


def test_what_does_not_hold_is_exit_5(run, run_json, bundle, images, tmp_path):
    assert run("certify", bundle, "--images", images, "--threads", "1")[0] == 0
    other = calibrate([], tmp_path / "other", CalibrateOptions(limit=2)).path
    code, out, err = run("verify", bundle, "--images", other)
    assert code == 5 and "DOES NOT HOLD" in out and "certificate_broken" in err
    code, document = run_json("verify", bundle, "--images", other)
    assert code == 5 and [line["what"] for line in document["certificate"] if not line["holds"]] == ["image list"]


def test_json_is_the_certificate(run_json, bundle, images, tmp_path):
    copy = tmp_path / "copy"
    code, document = run_json("certify", bundle, "--images", images, "--threads", "1", "-o", copy)
    assert code == 0 and document["path"] == str(copy)
    assert document["certificate"] == json.loads((copy / CERTIFICATE_FILE).read_bytes())
    assert not (bundle / CERTIFICATE_FILE).exists()


def test_verify_wants_one_thing_to_prove(run_json, bundle, images):
    code, document = run_json("verify", bundle)
    assert (code, document["error"]["code"]) == (3, "no_certificate")
    code, document = run_json("verify", bundle, "--torch", "x.pth", "--images", images)
    assert (code, document["error"]["code"]) == (3, "bad_option")
