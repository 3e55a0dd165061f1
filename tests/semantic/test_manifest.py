# SPDX-License-Identifier: Apache-2.0
"""The manifest of a semantic bundle, and what a semantic bundle may hold."""

import json
import shutil
from pathlib import Path

import jsonschema
import pytest

from segship.bundle import Bundle, write_bundle
from segship.bundle.manifest import manifest_schema, parse_manifest
from segship.datasets.known import CITYSCAPES
from segship.errors import BundleError
from segship.promptable.manifest import PromptableManifest
from segship.semantic.manifest import SemanticManifest
from segship.semantic.preprocessing import ScaleLimits
from tests.bundle.test_manifest import changed, signed
from tests.small_bundle import save_models, small_manifest
from tests.small_semask import SIZE_HW

EMBEDDED = Path(__file__).parents[2] / "segship" / "bundles" / "tiny" / "manifest.json"


def document_of(bundle):
    document = json.loads(bundle.manifest.to_json())
    del document["manifest_sha256"]
    return document


def refused(data):
    with pytest.raises(BundleError) as caught:
        parse_manifest(data)
    assert caught.value.code == "bad_manifest"
    return str(caught.value)


def test_it_round_trips_and_knows_its_table(small_semantic_bundle):
    manifest = parse_manifest((small_semantic_bundle.path / "manifest.json").read_bytes())
    assert isinstance(manifest, SemanticManifest) and manifest == small_semantic_bundle.manifest
    assert parse_manifest(manifest.to_json()).to_json() == manifest.to_json()
    assert manifest.table == CITYSCAPES
    assert manifest.preprocessing.scale == ScaleLimits(2048, 1024)
    assert (manifest.graph_sets, manifest.batch) == ((frozenset({"semantic"}),), None)


def test_the_task_decides_the_class():
    assert isinstance(parse_manifest(small_manifest().to_json()), PromptableManifest)
    document = {"format_version": 2, "task": ["promptable"]}
    assert "task: Input should be 'promptable' or 'semantic'" in refused(signed(document))


def test_manifest_inside_the_package_is_read_as_ever():
    manifest = parse_manifest(EMBEDDED.read_bytes())
    assert isinstance(manifest, PromptableManifest)
    assert list(json.loads(EMBEDDED.read_text())) == list(json.loads(manifest.to_json()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"table.palette": [[1, 2, 3]]}, "there are 19 classes and 1 colors"),
        ({"table.classes": []}, "table.classes: Tuple should have at least 1 item"),
        ({"table.classes": ["a"] * 256}, "table.classes: Tuple should have at most 255 items"),
        ({"table.palette": [[0, 0, 256]] * 19}, "palette.0.2: Input should be less than or equal to 255"),
        ({"table.name": "kitti"}, "the classes are of 'kitti'; known are cityscapes, ade20k, cocostuff, own"),
        ({"semantic_window": "some"}, "semantic_window: Input should be 'all' or 'first-two'"),
        ({"preprocessing.frame": None}, "frame is null, and the graph takes"),
        ({"preprocessing.frame": [96]}, "preprocessing.frame.1: Field required"),
        ({"image_size": 1024}, "image_size: Unexpected keyword argument"),
    ],
)
def test_manifest_that_does_not_fit_names_the_field(small_semantic_bundle, change, words):
    assert words in refused(signed(changed(document_of(small_semantic_bundle), change)))


def test_a_class_that_stands_twice_is_refused(small_semantic_bundle):
    document = document_of(small_semantic_bundle)
    document["table"]["classes"][1] = "road"
    assert "the class 'road' stands twice in cityscapes" in refused(signed(document))


def test_a_manifest_from_before_names_could_be_assumed_is_read(small_semantic_bundle):
    document = document_of(small_semantic_bundle)
    assert document.pop("names_assumed") is False
    assert parse_manifest(signed(document)) == small_semantic_bundle.manifest


def test_schema_covers_both_tasks(small_semantic_bundle):
    validator = jsonschema.Draft202012Validator(manifest_schema())
    validator.validate(json.loads(small_semantic_bundle.manifest.to_json()))
    validator.validate(json.loads(small_manifest().to_json()))
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({**json.loads(small_semantic_bundle.manifest.to_json()), "task": "promptable"})


def test_sizes_of_the_graph_have_to_be_those_of_the_manifest(small_semantic_bundle, tmp_path):
    shutil.copytree(small_semantic_bundle.path, tmp_path / "bundle")
    document = changed(document_of(small_semantic_bundle), {"preprocessing.frame": [SIZE_HW[0], SIZE_HW[1] + 1]})
    (tmp_path / "bundle" / "manifest.json").write_bytes(signed(document))
    with pytest.raises(BundleError, match="states other tensors for semantic") as caught:
        Bundle.open(tmp_path / "bundle")
    assert caught.value.code == "graph_interface"


def test_graphs_of_another_task_are_refused(small_semantic_bundle, tmp_path):
    with pytest.raises(BundleError, match=r"needs the graphs \['semantic'\] and no other"):
        write_bundle(tmp_path / "bundle", small_semantic_bundle.manifest, save_models(tmp_path / "graphs"))
