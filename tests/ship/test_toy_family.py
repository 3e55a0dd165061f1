# SPDX-License-Identifier: Apache-2.0
"""A new family is a folder, and nothing else: a toy of one is exported, compared, loaded and clicked."""

import sys

import numpy as np
import pytest
import torch

import segship
from segship.errors import CheckpointError
from segship.ship import families
from segship.ship.describe import describe_checkpoint
from segship.ship.export import export_bundle
from segship.ship.options import ExportOptions

RECOGNISE = """
from dataclasses import dataclass

@dataclass(frozen=True)
class ToyConfig:
    architecture: str
    channels: int

def recognise(shapes):
    return ToyConfig("toy", shapes["toy.weight"][0]) if "toy.weight" in shapes else None

def describe(config):
    return {"task": "promptable", "architecture": config.architecture, "image_size": 32}
"""
FAMILY = """
from segship.promptable.manifest import PromptableManifest
from segship.promptable.prompts import PromptRules
from segship.promptable.transforms import Preprocessing
from segship.ship.families import IMAGENET_MEAN, IMAGENET_STD
from segship.ship.weights import manifest_fields
from segship.spec import SamGeometry, image_encoder_spec, mask_decoder_spec

TASK = "promptable"

def prepare(path, config, state, options):
    return config, state, ()

def geometry(weights):
    return SamGeometry(32, weights.config.channels, 2)

def specs(weights, options, *, known_sizes=False):
    return {spec.name: spec for spec in (make(geometry(weights)) for make in (image_encoder_spec, mask_decoder_spec))}

def largest_sizes(weights):
    return {"objects": 64, "points": 64}

def variants(options):
    return {}

def manifest(weights, options):
    return PromptableManifest(
        **manifest_fields(weights, options), geometry=geometry(weights),
        preprocessing=Preprocessing(32, IMAGENET_MEAN, IMAGENET_STD), prompt_rules=PromptRules("without_box"),
    )
"""
GRAPHS = '''
import torch
from torch import nn
from segship.ship.families.toy.family import specs
from segship.ship.options import ExportOptions

class Toy(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.toy = nn.Conv2d(3, config.channels, 16, stride=16)

    def forward(self, image):
        return self.toy(image)

class Decoder(nn.Module):
    """Masks of one sign: whether there are more foreground than background points."""

    def forward(self, image_embeddings, point_coords, point_labels, mask_input, has_mask_input):
        real = (point_labels >= 0).float()
        votes = ((2 * point_labels - 1) * real).sum(1)[:, None, None, None]
        shown = mask_input * has_mask_input[:, None, None, None] + image_embeddings.mean() + 0 * point_coords.sum()
        masks = (votes * 1000 + shown) * torch.ones(1, 4, 1, 1)
        return votes[:, :, 0, 0] * 0 + torch.tensor([[0.9, 0.8, 0.7, 0.6]]), masks

build = Toy

def reference(model):
    return graphs(model, ExportOptions())

def graphs(model, options, *, known_sizes=False):
    modules = {"image_encoder": model.module, "mask_decoder": Decoder()}
    return {name: (modules[name], spec) for name, spec in specs(model, options).items()}
'''


@pytest.fixture
def toy_checkpoint(tmp_path, monkeypatch):
    """A checkpoint of a family whose folder lies outside the package."""
    folder = tmp_path / "families" / "toy"
    folder.mkdir(parents=True)
    files = {"__init__": '"""A toy."""\n', "recognise": RECOGNISE, "family": FAMILY, "graphs": GRAPHS}
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path / "families")])
    state = {"toy.weight": torch.randn(4, 3, 16, 16), "toy.bias": torch.zeros(4)}
    torch.save(state, tmp_path / "toy.pth")
    yield tmp_path / "toy.pth"
    for name in [name for name in sys.modules if name.startswith("segship.ship.families.toy")]:
        del sys.modules[name]


def test_a_family_is_a_folder(toy_checkpoint, tmp_path):
    assert families.families() == ("sam", "semask", "toy")
    description = describe_checkpoint(toy_checkpoint)
    assert (description.family, description.task, description.architecture) == ("toy", "promptable", "toy")
    bundle = export_bundle(toy_checkpoint, tmp_path / "bundle", ExportOptions(measure=False))
    assert (bundle.manifest.family, bundle.manifest.task) == ("toy", "promptable")
    assert all(row.passed for row in bundle.manifest.evidence.rows)
    image = np.zeros((20, 30, 3), np.uint8)
    for model, backend in ((bundle.path, "onnxruntime"), (toy_checkpoint, "torch")):
        with segship.load(model, backend=backend) as predictor:
            click = predictor.predict(image, points=[[5, 5]], labels=[1], multimask_output=False)
            other = predictor.predict(image, points=[[5, 5]], labels=[0], multimask_output=False)
            assert click.masks.all() and not other.masks.any()


def test_without_its_folder_it_is_unknown(toy_checkpoint, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"it has 2 tensors, under toy\.bias, toy\.weight|toy\.weight, toy\.bias"):
        families.recognise({"toy.weight": (4, 3, 16, 16), "toy.bias": (4,)})
