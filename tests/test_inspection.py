# SPDX-License-Identifier: Apache-2.0
import json
import shutil
import sys
from dataclasses import replace
from types import ModuleType

import pytest

from segship.errors import BundleError, InputError
from segship.inspection import CHECKPOINT_SUFFIXES, inspect
from segship.loading import load
from tests.small_bundle import make_bundle, save_models


def as_json(path):
    return json.loads(json.dumps(inspect(path).to_dict(), allow_nan=False))


def test_bundle_is_described_with_its_graphs(tmp_path):
    bundle = make_bundle(tmp_path, external=True)
    document = as_json(bundle.path)
    assert (document["kind"], document["path"]) == ("bundle", str(bundle.path))
    assert document["bundle"]["digest"] == bundle.digest
    assert document["bundle"]["manifest"]["geometry"]["image_size"] == 32
    assert document["bundle"]["graphs"]["image_encoder"]["operators"] == {"Conv": 1}


def test_damaged_bundle_is_refused(tmp_path):
    bundle = make_bundle(tmp_path)
    (bundle.path / "mask_decoder.onnx").unlink()
    with pytest.raises(BundleError, match="lacks mask_decoder.onnx"):
        inspect(bundle.path)


def test_a_folder_for_another_program_is_described_and_run_by_nobody(tmp_path):
    save_models(tmp_path)
    (tmp_path / "export.json").write_text('{"contract": "ascend", "architecture": "vit_b"}')
    document = as_json(tmp_path)
    assert (document["kind"], document["contract"]["export"]["contract"]) == ("contract", "ascend")
    assert document["contract"]["graphs"]["image_encoder"]["operators"] == {"Conv": 1}
    with pytest.raises(BundleError, match="a contract for another program, and is no bundle; export the ch") as caught:
        load(tmp_path)
    assert caught.value.code == "contract_folder"
    (tmp_path / "export.json").write_text("{")
    with pytest.raises(BundleError, match="is no JSON"):
        inspect(tmp_path)


def test_graph_is_described(tmp_path):
    document = as_json(save_models(tmp_path)["image_encoder"])
    assert document["kind"] == "graph"
    assert document["graph"]["inputs"] == [{"name": "image", "dtype": "float32", "shape": ["batch", 3, 32, 32]}]


class Described:
    def to_dict(self):
        return {"architecture": "vit_b"}


@pytest.mark.parametrize("suffix", [*CHECKPOINT_SUFFIXES, ".PTH"])
def test_checkpoint_is_handed_to_its_reader(tmp_path, monkeypatch, suffix):
    seen = []
    reader = ModuleType("segship.ship.describe")
    reader.describe_checkpoint = lambda path: seen.append(path) or Described()
    monkeypatch.setitem(sys.modules, "segship.ship.describe", reader)
    path = tmp_path / f"weights{suffix}"
    path.touch()
    assert as_json(path) == {"kind": "checkpoint", "path": str(path), "checkpoint": {"architecture": "vit_b"}}
    assert seen == [path]


def test_other_files_list_what_is_accepted(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"does not end in one of \.onnx, \.pth, \.pt, \.safetensors") as caught:
        inspect(tmp_path / "notes.txt")
    assert caught.value.code == "unknown_file"


def test_missing_path_is_named(tmp_path):
    with pytest.raises(InputError, match="there is no file or folder .*absent") as caught:
        inspect(tmp_path / "absent.onnx")
    assert caught.value.code == "file_missing"


def test_empty_folder_is_no_bundle(tmp_path):
    with pytest.raises(BundleError, match="manifest.json"):
        inspect(tmp_path)


def test_graph_in_two_precisions_is_described_twice(tmp_path):
    bundle = make_bundle(tmp_path)
    encoder = replace(bundle.manifest.artifact("image_encoder"), precision="int8", file="image_encoder.int8.onnx")
    shutil.copyfile(bundle.path / "image_encoder.onnx", bundle.path / encoder.file)
    manifest = replace(bundle.manifest, artifacts=(*bundle.manifest.artifacts, encoder))
    (bundle.path / "manifest.json").write_bytes(manifest.to_json())
    assert list(as_json(bundle.path)["bundle"]["graphs"]) == ["image_encoder", "mask_decoder", "image_encoder.int8"]
