# SPDX-License-Identifier: Apache-2.0
import hashlib
import json
import math
from pathlib import Path

import jsonschema
import pytest
from pydantic import ValidationError

from segship.bundle.entries import GraphEntry, TensorEntry
from segship.bundle.manifest import manifest_schema, parse_manifest
from segship.bundle.measured import Comparison, ComparisonBar, ComparisonStep
from segship.errors import BundleError
from tests.small_bundle import GEOMETRY, small_manifest

SCHEMA_FILE = Path(__file__).parents[2] / "docs" / "manifest.schema.json"


def full_manifest():
    tensor = TensorEntry(name="image", dtype="float32", shape=["batch", 3, 32, 32])
    graph = GraphEntry(file="image_encoder.onnx", bytes=10, sha256="b" * 64, inputs=[tensor], outputs=[tensor])
    step = ComparisonStep(
        step="traced", graph="image_encoder", what="image_embeddings", cases=3, cosine=1.0, max_abs=1e-7, scale=2.5,
        mask_iou_mean=None, mask_iou_min=None, passed=True,
    )  # fmt: skip
    comparison = Comparison(bar=ComparisonBar(), steps=[step])
    return small_manifest(graphs={"image_encoder": graph}, comparison=comparison, changes=["größer"])


def signed(document):
    """Return the bytes of a document with the digest that belongs to them."""
    data = (json.dumps({**document, "manifest_sha256": "0" * 64}, indent=2) + "\n").encode()
    return data[:-68] + hashlib.sha256(data).hexdigest().encode() + data[-4:]


def refused(data, code="bad_manifest"):
    with pytest.raises(BundleError) as caught:
        parse_manifest(data)
    assert caught.value.code == code
    return str(caught.value)


def test_manifest_round_trips():
    manifest = full_manifest()
    read = parse_manifest(manifest.to_json())
    assert read.model_copy(update={"manifest_sha256": "0" * 64}) == manifest
    assert read.to_json() == manifest.to_json()
    assert read.geometry == GEOMETRY


def test_contract_of_a_graph_is_what_the_manifest_states():
    spec = full_manifest().graph_spec("image_encoder")
    assert spec.name == "image_encoder"
    assert spec.inputs[0].shape == ("batch", 3, 32, 32)


def test_every_single_bit_of_the_file_is_guarded():
    data = full_manifest().to_json()
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << (position % 8)
        with pytest.raises(BundleError):
            parse_manifest(bytes(flipped))


def test_every_truncation_is_refused():
    data = full_manifest().to_json()
    for length in range(0, len(data), 7):
        with pytest.raises(BundleError):
            parse_manifest(data[:length])


def test_edited_manifest_says_so():
    document = json.loads(full_manifest().to_json())
    document["image_size"] = 64
    message = refused((json.dumps(document, indent=2) + "\n").encode(), "changed_file")
    assert "manifest.json was changed after it was written" in message
    assert "was changed" in refused(json.dumps(document).encode(), "changed_file")


@pytest.mark.parametrize(
    ("version", "shown"), [(2, "2"), (0, "0"), (True, "True"), ("1", "1"), (None, "None"), (1.0, "1.0")]
)
def test_other_format_is_named(version, shown):
    message = refused(signed({"format_version": version}), "unknown_format_version")
    assert f"format_version {shown}, and this segship reads 1; update segship" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"family": "semask"}, "family: Input should be 'sam'"),
        ({"image_size": "32"}, "image_size: Input should be a valid integer"),
        ({"image_size": 0}, "image_size: Input should be greater than or equal to 1"),
        ({"embedding_size": 1 << 40}, "embedding_size"),
        ({"architecture": "../vit_b"}, "architecture: String should match pattern"),
        ({"precision": "fp4"}, "precision"),
        ({"graphs": {"text_encoder": {}}}, "graphs.text_encoder"),
        ({"preprocessing": {"pixel_mean": [0, 0, 0], "pixel_std": [1, 1, 0]}}, "pixel_std.2: Input should be greater"),
        ({"preprocessing": {"pixel_mean": [0, 0, 1e999], "pixel_std": [1, 1, 1]}}, "Infinity is no JSON number"),
        ({"prompt_rules": {"padding_point": "sometimes"}}, "prompt_rules.padding_point"),
        ({"checkpoint": {}}, "and 2 more"),
    ],
)  # fmt: skip
def test_manifest_that_does_not_fit_names_the_field(change, words):
    document = json.loads(full_manifest().to_json())
    del document["manifest_sha256"]
    assert words in refused(signed({**document, **change}))


@pytest.mark.parametrize("name", ["a" * 63, "A" * 64, "a" * 64 + "\n"])
def test_digest_has_exactly_64_small_digits(name):
    with pytest.raises(ValidationError, match="sha256"):
        GraphEntry(file="x.onnx", bytes=1, sha256=name, inputs=[], outputs=[])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"a": 1, "a": 2}', "key 'a' stands twice"),
        (b'{"a": {"b": 1, "b": 2}}', "key 'b' stands twice"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b"[" * 100_000, "not strict JSON"),
        (b'{"a": ' + b"1" * 10_000 + b"}", "not strict JSON"),
        (b"\xff\xfe", "not strict JSON"),
        (b"", "not strict JSON"),
        (b" " * ((1 << 20) + 1), "at most 1048576 are read"),
    ],
)
def test_hostile_json_is_refused(data, words):
    assert words in refused(data)


def test_document_that_is_no_object_is_refused():
    assert "it is no JSON object" in refused(b"[]")


def test_comparison_that_failed_with_nan_can_be_reported():
    step = ComparisonStep(
        step="traced", graph="g", what="w", cases=1, cosine=math.nan, max_abs=math.nan, scale=1.0, mask_iou_mean=None,
        mask_iou_min=None, passed=False,
    )  # fmt: skip
    assert math.isnan(step.cosine)


def test_schema_in_the_docs_is_the_schema_of_the_models():
    assert json.loads(SCHEMA_FILE.read_text(encoding="utf-8")) == manifest_schema()


def test_schema_accepts_what_is_written_and_refuses_what_is_not():
    jsonschema.Draft202012Validator.check_schema(manifest_schema())
    validator = jsonschema.Draft202012Validator(manifest_schema())
    document = json.loads(full_manifest().to_json())
    assert validator.is_valid(document)
    assert not validator.is_valid({**document, "surprise": 1})
