# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint to weights and a manifest where torch, onnx and safetensors are not installed."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from segship.errors import BackendUnavailable, CheckpointError
from segship.files import sha256_of
from segship.ship.families.sam.config import SAM_ARCHITECTURES, TinyVitConfig
from segship.ship.families.sam.model import build_sam
from segship.ship.loading import load_model
from segship.ship.options import ExportOptions
from segship.ship.weights import read_weights
from tests.oracle import seeded_weights
from tests.small_models import save_checkpoint

ROOT = Path(__file__).parents[2]
BLOCKED = ("torch", "onnx", "onnxscript", "onnxslim", "safetensors")
SMALL_TINY_VIT = TinyVitConfig((16, 32, 64, 96), (1, 2, 1, 1), (2, 1, 2, 3), mlp_ratio=2.0)

WITHOUT = f"import sys; sys.modules |= dict.fromkeys({BLOCKED})"
CODE = """
import hashlib, json
from dataclasses import asdict
from pathlib import Path
from segship.ship.options import ExportOptions
from segship.ship.weights import read_weights
options = ExportOptions()
weights = read_weights(Path(sys.argv[1]), options)
digest = hashlib.sha256()
for name, array in sorted(weights.state.items()):
    digest.update(name.encode() + array.tobytes())
verbs, manifest = weights.verbs, weights.verbs.manifest(weights, options)
found = asdict(manifest) | {"created": None, "state": digest.hexdigest(), "task": weights.task}
found |= {"sizes": verbs.largest_sizes(weights), "variants": verbs.variants(options)}
found["specs"] = [asdict(spec) for spec in verbs.specs(weights, options).values()]
print(json.dumps(found, default=str))
"""


@pytest.fixture(scope="module")
def small_mobile_sam(tmp_path_factory):
    """A checkpoint in the layout of vit_t."""
    sam = build_sam(replace(SAM_ARCHITECTURES["vit_t"], architecture="custom", encoder=SMALL_TINY_VIT))
    path = tmp_path_factory.mktemp("mobile") / "mobile.pth"
    torch.save({"model": seeded_weights(sam)}, path)
    return path


@pytest.mark.parametrize("name", ["small_mobile_sam", "small_checkpoint", "small_semask_checkpoint"])
def test_weights_and_their_manifest_need_no_torch(request, name):
    path = request.getfixturevalue(name)
    command = [sys.executable, "-c", WITHOUT + CODE, str(path)]
    found = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)
    model = load_model(path)
    digest = hashlib.sha256()
    for key, tensor in sorted(model.module.state_dict().items()):
        digest.update(key.encode() + tensor.numpy().tobytes())
    assert found["state"] == digest.hexdigest()
    assert (found["family"], found["task"], found["architecture"]) == (model.family, model.task, "custom")
    assert found["checkpoint"]["sha256"] == sha256_of(path) and found["changes"] == list(model.changes)
    graphs = model.networks.graphs(model, ExportOptions())
    assert [spec["name"] for spec in found["specs"]] == list(graphs)
    assert set(found["variants"]) <= set(graphs)


def test_a_table_that_has_to_be_resized_says_that_it_needs_torch(small_checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert read_weights(small_checkpoint).config.image_size == 128
    with pytest.raises(BackendUnavailable, match=r"pos_embed has to be resized.*segship\[export\]") as refusal:
        read_weights(small_checkpoint, ExportOptions(image_size=96))
    assert refusal.value.code == "torch_missing"


def test_weights_name_what_cannot_become_weights_only_where_they_are_refused(tmp_path):
    def sparse(name):
        return lambda state: {**state, name: state[name].to_sparse()}

    unused = save_checkpoint(tmp_path / "a.pth", wrap=lambda state: {"model": state, "more": torch.eye(2).to_sparse()})
    assert read_weights(unused).state.keys() == read_weights(save_checkpoint(tmp_path / "b.pth")).state.keys()
    path = save_checkpoint(tmp_path / "c.pth", wrap=sparse("image_encoder.patch_embed.proj.weight"))
    with pytest.raises(CheckpointError, match=r"not recognised.*1 tensors of the file cannot become weights: image_en"):
        read_weights(path)
