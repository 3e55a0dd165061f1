# SPDX-License-Identifier: Apache-2.0
"""The certificate of a bundle: what every artifact costs in masks or classes, on the runtimes that really ran it.

``certificate.json`` lies in the bundle and is tied to it by digests: of the checkpoint, of what the manifest says of
the model, of every artifact and its calibration list, of the list of pictures it was measured on. `segship.certify`
writes and proves it anew; what is here reads it and tells whether it is this bundle's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from segship.bundle.artifacts import Name, Sha256
from segship.bundle.documents import Document
from segship.bundle.evidence import Evidence, Figures, Label, Text
from segship.errors import BundleError, InputError
from segship.files import read_bytes

if TYPE_CHECKING:
    from segship.bundle.folder import Bundle

CERTIFICATE_FILE = "certificate.json"
DOCUMENT = Document(
    file=CERTIFICATE_FILE,
    key="certificate_sha256",
    version=1,
    most_bytes=1 << 24,
    code="bad_certificate",
    mend="make it anew with `segship certify`, or remove it",
    mend_older="make it anew with `segship certify`",
)

Verdict = Literal["bit-exact", "gold", "silver", "fail"]
VERDICTS: dict[Verdict, str] = {
    "bit-exact": "every output has the bytes of the reference's",
    "gold": (
        "holds the bar of its precision, and keeps 99.9 % of each of the reference's scores against the truth; "
        "without a truth, agrees with the reference to 0.999"
    ),
    "silver": "holds the bar of its precision, and with a truth keeps 99 % of each of the reference's scores",
    "fail": "misses the bar of its precision, or loses more than 1 % of a score, or does not run",
}
"""In the order of their worth. The reference is the bundle in fp32 in ONNX Runtime on one thread."""
GOLD, SILVER, GOLD_AGREEMENT = 0.999, 0.99, 0.999
_FAIL = b'"verdict": "fail"'


@dataclass(frozen=True, slots=True)
class EvaluationList:
    """The pictures that were measured; ``limit`` and ``objects`` are how they were chosen of a folder, if they were."""

    sha256: Sha256
    images: int
    truth: bool
    limit: int | None = None
    objects: int = 4


@dataclass(frozen=True, slots=True)
class Reference:
    """What all is held against: digest of its manifest, runtime, one digest of all its outputs, scores by the truth."""

    model: Sha256
    backend: Label
    version: Text
    outputs: Sha256
    scores: Figures


@dataclass(frozen=True, slots=True)
class Determinism:
    """Digests of the outputs for the same few cases: run after run, on one and two threads, in a process of its own."""

    runs: Annotated[tuple[Sha256, ...], Field(max_length=16)]
    threads: Annotated[dict[Label, Sha256], Field(max_length=16)]
    fresh: Sha256

    @property
    def is_steady(self) -> bool:
        """Whether equal runs on one thread gave equal bytes, in this process and in another."""
        return len({*self.runs, self.threads["1"], self.fresh}) == 1


@dataclass(frozen=True, slots=True)
class Certified:
    """One precision in one runtime.

    Attributes
    ----------
    outputs
        Digest of all outputs, for the whole list.
    evidence
        Errors of tensors, and agreement of masks or class maps with the reference, against the bar.
    scores
        Against the truth, where there is one.
    reason
        Why it has its verdict, in words.
    """

    backend: Label
    version: Text
    precision: Label
    cpu: Text
    threads: Annotated[int, Field(ge=1)]
    verdict: Verdict
    reason: Text
    outputs: Sha256 | None = None
    evidence: Evidence | None = None
    scores: Figures = field(default_factory=dict)
    determinism: Determinism | None = None


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What ``certificate.json`` says.

    Attributes
    ----------
    segship
        The version whose preprocessing was measured.
    checkpoint
        Digest of the weights that all was made from.
    model
        Digest of what the manifest says but for what `segship tune` writes there: sizes, rules, preprocessing,
        artifacts.
    artifacts
        Digest of every file of a graph, by its name.
    calibration
        Digest of the image list that an artifact was calibrated on, by its file.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    format_version: Literal[1] = 1
    segship: Text
    checkpoint: Sha256
    model: Sha256
    artifacts: Annotated[dict[Name, Sha256], Field(max_length=512)]
    calibration: Annotated[dict[Name, Text], Field(max_length=512)]
    evaluation: EvaluationList
    reference: Reference
    certified: Annotated[tuple[Certified, ...], Field(max_length=64)]
    machine: dict[Label, Any]
    created: Annotated[str, Field(max_length=64)]

    def to_json(self) -> bytes:
        """Return the bytes of ``certificate.json``."""
        return DOCUMENT.write(Certificate, self)

    def verdict(self, backend: str, precision: str) -> Certified | None:
        """Return what is certified of a precision in a runtime, or None."""
        return next((row for row in self.certified if (row.backend, row.precision) == (backend, precision)), None)


def identity(bundle: Bundle) -> dict[str, Any]:
    """Return the fields of a certificate that tie it to a bundle."""
    manifest = bundle.manifest
    files = {artifact.file: artifact.sha256 for artifact in manifest.artifacts}
    files |= {artifact.weights.file: artifact.weights.sha256 for artifact in manifest.artifacts if artifact.weights}
    calibration = {
        artifact.file: str(artifact.options["calibration"])
        for artifact in manifest.artifacts
        if "calibration" in artifact.options
    }
    model = hashlib.sha256(replace(manifest, checks=(), choice=None).to_json()).hexdigest()
    return {
        "checkpoint": manifest.checkpoint.sha256,
        "model": model,
        "artifacts": files,
        "calibration": calibration,
    }


def read_certificate(folder: Path) -> Certificate | None:
    """Return the certificate in a bundle's folder, whichever bundle it is of; None where there is none.

    Raises
    ------
    BundleError
        ``bad_certificate``, ``unknown_format_version`` or ``changed_file``.
    """
    data = _read(folder)
    if data is None:
        return None
    DOCUMENT.parse(data)
    return DOCUMENT.validate(Certificate, data)


def is_certificate(folder: Path) -> bool:
    """Return whether what lies in a bundle's folder is a certificate at all; ``changed_file`` for one that was."""
    try:
        return DOCUMENT.parse(_read(folder) or b"") is not None
    except BundleError as error:
        if error.code != DOCUMENT.code:
            raise
        return False


def failed(bundle: Bundle) -> set[tuple[str, str]]:
    """Return the runtimes and precisions that a bundle's own certificate calls ``fail``."""
    data = _read(bundle.path)
    # Every load asks; most need nothing but this look.
    if data is None or _FAIL not in data:
        return set()
    certificate = read_certificate(bundle.path)
    if certificate is None or any(strangeness(certificate, bundle)):
        return set()
    return {(row.backend, row.precision) for row in certificate.certified if row.verdict == "fail"}


def _read(folder: Path) -> bytes | None:
    try:
        return read_bytes(folder / CERTIFICATE_FILE, limit=DOCUMENT.most_bytes)
    except InputError as error:
        if error.code == "file_missing":
            return None
        raise BundleError(f"{CERTIFICATE_FILE} cannot be used: {error}; {DOCUMENT.mend}", code=DOCUMENT.code) from error


def strangeness(certificate: Certificate, bundle: Bundle) -> Iterator[str]:
    """Yield in what a certificate is not this bundle's: a line for each digest that differs."""
    for name, own in identity(bundle).items():
        stated = getattr(certificate, name)
        if not isinstance(own, Mapping):
            if stated != own:
                yield f"{name} has the digest {own}, and {CERTIFICATE_FILE} says {stated}"
            continue
        for file in sorted({*own, *stated}):
            if stated.get(file) != own.get(file):
                kind = "" if name == "artifacts" else f"{name} of "
                yield f"{kind}{file} has the digest {own.get(file)}, and {CERTIFICATE_FILE} says {stated.get(file)}"
