# SPDX-License-Identifier: Apache-2.0
import hashlib
import json
import math
from pathlib import Path

import jsonschema
import pytest
from pydantic import TypeAdapter, ValidationError

from segship.bundle.artifacts import Artifact, Sha256
from segship.bundle.evidence import Evidence, Row
from segship.bundle.manifest import manifest_schema, parse_manifest
from segship.errors import BundleError
from segship.spec import image_encoder_spec
from tests.small_bundle import GEOMETRY, small_manifest

SCHEMA_FILE = Path(__file__).parents[2] / "docs" / "manifest.schema.json"


def full_manifest():
    artifact = Artifact(
        graph="image_encoder", format="onnx", precision="fp32", target="onnxruntime", file="image_encoder.onnx",
        bytes=10, sha256="b" * 64, made_from="a" * 64, options={"opset": 18, "simplify": True},
    )  # fmt: skip
    row = Row("traced", "image_encoder", "image_embeddings", 3, {"cosine": 1.0, "max_abs": 1e-7, "scale": 2.5}, True)
    return small_manifest(
        graphs=(image_encoder_spec(GEOMETRY),), artifacts=(artifact,), evidence=Evidence({"cosine": 0.999999}, (row,)),
        changes=("größer",),
    )  # fmt: skip


def signed(document):
    """Return the bytes of a document with the digest that belongs to them."""
    data = (json.dumps({**document, "manifest_sha256": "0" * 64}, indent=2) + "\n").encode()
    return data[:-68] + hashlib.sha256(data).hexdigest().encode() + data[-4:]


def changed(document, change):
    """Return a copy with other values, at keys such as ``geometry.image_size``."""
    document = json.loads(json.dumps(document))
    for key, value in change.items():
        *outer, last = key.split(".")
        place = document
        for name in outer:
            place = place[name]
        place[last] = value
    return document


def refused(data, code="bad_manifest"):
    with pytest.raises(BundleError) as caught:
        parse_manifest(data)
    assert caught.value.code == code
    return str(caught.value)


def test_manifest_round_trips():
    manifest = full_manifest()
    read = parse_manifest(manifest.to_json())
    assert read == manifest
    assert read.to_json() == manifest.to_json()
    assert read.geometry == GEOMETRY


def test_contract_of_a_graph_is_what_the_manifest_states():
    spec = parse_manifest(full_manifest().to_json()).graph_spec("image_encoder")
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
    document["geometry"]["image_size"] = 64
    message = refused((json.dumps(document, indent=2) + "\n").encode(), "changed_file")
    assert "manifest.json was changed after it was written" in message
    assert "was changed" in refused(json.dumps(document).encode(), "changed_file")


@pytest.mark.parametrize(
    ("version", "shown", "mend"),
    [
        (3, "3", "update segship"), (1, "1", "an older segship wrote it; export it again"), (0, "0", "an older"),
        (True, "True", "update segship"), ("2", "2", "update segship"), (None, "None", "update segship"),
        (2.0, "2.0", "update segship"),
    ],
)  # fmt: skip
def test_other_format_is_named(version, shown, mend):
    message = refused(signed({"format_version": version}), "unknown_format_version")
    assert f"format_version {shown}, and this segship reads 2; {mend}" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"surprise": 1}, "surprise: Unexpected keyword argument"),
        ({"geometry.surprise": 1}, "geometry.surprise: Unexpected keyword argument"),
        ({"task": "detection"}, "task: Input should be 'promptable' or 'semantic', and it is 'detection'"),
        ({"geometry.image_size": "32"}, "geometry.image_size: Input should be a valid integer"),
        ({"geometry.image_size": 0}, "geometry.image_size: Input should be greater than or equal to 1"),
        ({"geometry.image_size": 64}, "image_size is 64 in geometry and 32 in preprocessing"),
        ({"geometry.embedding_size": 1 << 40}, "embedding_size"),
        ({"architecture": "../vit_b"}, "architecture: String should match pattern"),
        ({"artifacts": [{"precision": "fp4"}]}, "artifacts.0.precision"),
        ({"artifacts": [{"graph": "text_encoder"}]}, "artifacts.0.graph"),
        ({"preprocessing.pixel_std": [1, 1, 0]}, "pixel_std.2: Input should be greater"),
        ({"preprocessing.pixel_std": [1, 1, 1e999]}, "Infinity is no JSON number"),
        ({"prompt_rules.padding_point": "sometimes"}, "prompt_rules.padding_point"),
        ({"evidence.rows": [{}]}, "and 3 more"),
        ({"checkpoint": {}}, "and 2 more"),
    ],
)  # fmt: skip
def test_manifest_that_does_not_fit_names_the_field(change, words):
    document = json.loads(full_manifest().to_json())
    del document["manifest_sha256"]
    assert words in refused(signed(changed(document, change)))


@pytest.mark.parametrize("name", ["a" * 63, "A" * 64, "a" * 64 + "\n"])
def test_digest_has_exactly_64_small_digits(name):
    with pytest.raises(ValidationError, match="String should"):
        TypeAdapter(Sha256).validate_python(name)


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


def test_figures_that_are_no_numbers_can_be_written_and_read():
    row = Row("openvino bf16", "image_encoder", "image_embeddings", 1, {"cosine": math.nan, "max_abs": math.inf}, False)
    manifest = small_manifest(evidence=Evidence({}, (row,)))
    (read,) = parse_manifest(manifest.to_json()).evidence.rows
    assert read.figures == {"cosine": None, "max_abs": None} and not read.passed


def test_schema_in_the_docs_is_the_schema_of_the_models():
    assert json.loads(SCHEMA_FILE.read_text(encoding="utf-8")) == manifest_schema()


def test_schema_accepts_what_is_written_and_refuses_what_is_not():
    jsonschema.Draft202012Validator.check_schema(manifest_schema())
    validator = jsonschema.Draft202012Validator(manifest_schema())
    document = json.loads(full_manifest().to_json())
    assert validator.is_valid(document)
    assert not validator.is_valid({**document, "surprise": 1})
