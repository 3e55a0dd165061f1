# SPDX-License-Identifier: Apache-2.0
import segship
from segship.backends import BACKENDS
from segship.catalog import KNOWN_CHECKPOINTS, bundle_folder, importable
from segship.ship import templates


def test_models_lists_every_name(run, run_json):
    names = [entry["name"] for entry in run_json("models")[1]["models"]]
    assert names == ["tiny", *KNOWN_CHECKPOINTS, *importable()] and names[1:5] == ["vit_b", "vit_l", "vit_h", "vit_t"]
    printed = run("models")[1]
    assert all(name in printed for name in names)
    assert "mIoU 77.13 / 79.14" in printed
    # In a pipe no address is folded, whatever its length.
    assert all(known.url in printed for known in KNOWN_CHECKPOINTS.values())
    assert max(map(len, printed.splitlines())) < 280


def test_models_say_what_has_to_be_fetched_and_whether_torch_is_needed(run, run_json, monkeypatch, tmp_path):
    monkeypatch.setenv("SEGSHIP_CACHE", str(tmp_path))
    found = {entry["name"]: entry for entry in run_json("models")[1]["models"]}
    assert (found["tiny"]["to_fetch"], found["tiny"]["needs_torch"]) == (0, False)
    assert (found["vit_t"]["to_fetch"], found["vit_t"]["needs_torch"]) == (40_728_226, False)
    assert found["vit_t"]["bundle_seconds"] == 2.4 and found["tiny"]["bundle_seconds"] is None
    assert found["osam_vit_b_quantized"]["to_fetch"] is None and not found["osam_vit_b_quantized"]["needs_torch"]
    monkeypatch.setattr(templates, "FOLDER", tmp_path)
    found = {entry["name"]: entry for entry in run_json("models")[1]["models"]}
    assert [name for name in ("tiny", "vit_t", "semask_t_ade20k") if found[name]["needs_torch"]] == [
        "vit_t",
        "semask_t_ade20k",
    ]
    bundle_folder("vit_t").mkdir(parents=True)
    line = next(line for line in run("models")[1].splitlines() if line.startswith("vit_t "))
    assert "bundle ready" in line and "nothing" in line and "not needed" in line


def test_inspect_tells_a_bundle_a_graph_and_a_checkpoint(run_json, model, small_checkpoint):
    kinds = [run_json("inspect", path)[1]["kind"] for path in (model, model / "mask_decoder.onnx", small_checkpoint)]
    assert kinds == ["bundle", "graph", "checkpoint"]


def test_inspect_describes_semantic_models(run_json, small_semantic_bundle, small_semask_checkpoint):
    bundle = run_json("inspect", small_semantic_bundle.path)[1]["bundle"]
    assert bundle["manifest"]["task"] == "semantic" and bundle["graphs"]["semantic"]["operators"]["ArgMax"] == 1
    checkpoint = run_json("inspect", small_semask_checkpoint)[1]["checkpoint"]
    assert (checkpoint["task"], checkpoint["family"]) == ("semantic", "semask")
    assert (checkpoint["classes"], checkpoint["semantic_window"]) == (19, "all")
    assert checkpoint["notes"] == ["taken from 'state_dict'; left out 'meta', 'optimizer'"]


def test_inspect_prints_text(run, model):
    code, out, _ = run("inspect", model)
    assert code == 0 and "mask_decoder.onnx" in out and "padding_point: without_box" in out


def test_doctor_names_backends_and_versions(run, run_json):
    document = run_json("doctor")[1]
    assert document["segship"] == segship.__version__
    assert {entry["name"] for entry in document["backends"]} == set(BACKENDS)
    assert "onnxruntime" in run("doctor")[1]
