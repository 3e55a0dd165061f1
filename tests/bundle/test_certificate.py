# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest

from segship.bundle import Bundle
from segship.bundle.certificate import (
    CERTIFICATE_FILE,
    Certificate,
    Certified,
    EvaluationList,
    Reference,
    failed,
    identity,
    read_certificate,
    strangeness,
)
from segship.errors import BundleError
from tests.small_bundle import make_bundle

SHA = "a" * 64


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path, external=True)


def certificate_of(bundle, *verdicts):
    row = Certified("onnxruntime", "1", "fp32", "a chip", 1, "gold", "told")
    return Certificate(
        segship="0.4.0",
        **identity(bundle),
        evaluation=EvaluationList(SHA, 1, False),
        reference=Reference(SHA, "onnxruntime", "1", SHA, {}),
        certified=tuple(replace(row, precision=precision, verdict=verdict) for precision, verdict in verdicts),
        machine={"cpu": "a chip", "features": ["avx2"], "memory_bytes": None},
        created="2026-11-28T00:00:00+00:00",
    )


def put(bundle, certificate):
    (bundle.path / CERTIFICATE_FILE).write_bytes(certificate.to_json())
    return certificate


def test_a_certificate_belongs_to_its_bundle(bundle):
    assert read_certificate(bundle.path) is None
    made = put(bundle, certificate_of(bundle, ("fp32", "gold")))
    assert read_certificate(bundle.path) == made and list(strangeness(made, bundle)) == []
    assert made.artifacts.keys() == {"image_encoder.onnx", "image_encoder.onnx.data", "mask_decoder.onnx"}
    assert Bundle.read(bundle.path).digest == bundle.digest


def test_what_fails_is_known_of_ones_own_certificate_alone(bundle):
    assert failed(bundle) == set()
    made = put(bundle, certificate_of(bundle, ("fp32", "gold"), ("int8", "fail")))
    assert failed(bundle) == {("onnxruntime", "int8")}
    put(bundle, replace(made, checkpoint="b" * 64))
    assert failed(bundle) == set()


def test_every_digest_that_differs_is_told(bundle):
    made = certificate_of(bundle)
    other = replace(made, model=SHA, artifacts={**made.artifacts, "extra.onnx": SHA}, calibration={"x.onnx": SHA})
    model, extra, calibration = strangeness(other, bundle)
    assert model.startswith("model has the digest") and extra.startswith("extra.onnx has the digest None")
    assert calibration.startswith("calibration of x.onnx")


def test_a_bundle_with_a_damaged_certificate_is_not_opened(bundle):
    data = bytearray(put(bundle, certificate_of(bundle)).to_json())
    data[data.index(b"told") if b"told" in data else data.index(b"a chip")] ^= 1
    (bundle.path / CERTIFICATE_FILE).write_bytes(data)
    with pytest.raises(BundleError, match="certificate.json was changed after it was written") as caught:
        Bundle.open(bundle.path)
    assert caught.value.code == "changed_file"
