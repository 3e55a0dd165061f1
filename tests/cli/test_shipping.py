# SPDX-License-Identifier: Apache-2.0
import pytest

from segship.bundle import Bundle
from segship.cli import shipping


def test_export_writes_a_bundle_and_prints_the_comparison(run, small_checkpoint, tmp_path, traced_once):
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


def test_export_without_its_packages_names_the_extra(run_json, small_checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(shipping, "find_spec", lambda name: None if name == "onnxslim" else object())
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
