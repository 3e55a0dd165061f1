# SPDX-License-Identifier: Apache-2.0
"""What ``manifest.json`` of a bundle says: what the model is, where it came from, and the digest of every file.

One class a family: `SamManifest`, `SemanticManifest`; ``family`` tells which a file is. The models are strict: unknown
keys, wrong types and numbers that are not finite are refused. The JSON schema stands in ``docs/manifest.schema.json``.
A manifest without graphs describes a model that runs straight from its checkpoint.

The last field, ``manifest_sha256``, is the SHA-256 of the file itself with 64 zeros in the digest's place, so that no
changed byte goes unseen. It guards against damage, not against somebody who computes it anew.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from segship.bundle.entries import FORMAT_VERSION, NO_DIGEST, with_digest
from segship.bundle.entries import GRAPH_FILES as GRAPH_FILES
from segship.bundle.entries import CheckpointEntry as CheckpointEntry
from segship.bundle.entries import ExternalData as ExternalData
from segship.bundle.entries import GraphEntry as GraphEntry
from segship.bundle.entries import GraphName as GraphName
from segship.bundle.entries import Precision as Precision
from segship.bundle.entries import TensorEntry as TensorEntry
from segship.bundle.entries import sidecar_of as sidecar_of
from segship.bundle.measured import Comparison as Comparison
from segship.bundle.measured import ComparisonBar as ComparisonBar
from segship.bundle.measured import ComparisonStep as ComparisonStep
from segship.errors import BundleError
from segship.promptable.manifest import (
    SamManifest,
)
from segship.semantic.manifest import SemanticManifest

MANIFEST_FILE = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20
_DIGEST_AT_THE_END = re.compile(rb'"manifest_sha256": "([0-9a-f]{64})"\n}\n\Z')

Manifest = SamManifest | SemanticManifest
_FAMILIES: dict[object, type[SamManifest] | type[SemanticManifest]] = {"sam": SamManifest, "semantic": SemanticManifest}


def manifest_schema() -> dict[str, Any]:
    """Return the JSON schema of ``manifest.json``."""
    manifests: TypeAdapter[Manifest] = TypeAdapter(Annotated[Manifest, Field(discriminator="family")])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **manifests.json_schema()}


def parse_manifest(data: bytes) -> Manifest:
    """Return the manifest that stands in the bytes of ``manifest.json``.

    Raises
    ------
    BundleError
        ``bad_manifest``; ``unknown_format_version`` when a newer segship wrote it; ``changed_file`` when a byte of it
        was changed since it was written.
    """
    document = _parse_json(data)
    if not isinstance(document, dict):
        raise _bad("it is no JSON object")
    version = document.get("format_version")
    # True equals 1 in Python, and is no version.
    if type(version) is not int or version != FORMAT_VERSION:
        message = (
            f"{MANIFEST_FILE} has format_version {str(version)[:40]}, and this segship reads {FORMAT_VERSION}; "
            "update segship, or export the bundle again"
        )
        raise BundleError(message, code="unknown_format_version")
    _check_digest(data)
    family = document.get("family", "sam")
    if not isinstance(family, str) or family not in _FAMILIES:
        names = " or ".join(repr(name) for name in _FAMILIES)
        raise _bad(f"family: Input should be {names}, and it is {str(family)[:40]!r}")
    try:
        return _FAMILIES[family].model_validate_json(data)
    except ValidationError as error:
        raise _bad(_first_problems(error)) from error


def _check_digest(data: bytes) -> None:
    stated = _DIGEST_AT_THE_END.search(data)
    if stated is None or hashlib.sha256(with_digest(data, NO_DIGEST)).hexdigest().encode() != stated[1]:
        message = f"{MANIFEST_FILE} was changed after it was written; export the bundle again or fetch it anew"
        raise BundleError(message, code="changed_file")


def _parse_json(data: bytes) -> object:
    """Parse strictly: UTF-8, no key twice, no NaN or Infinity, no bottomless nesting."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise _bad(f"it has {len(data)} bytes, and at most {MAX_MANIFEST_BYTES} are read")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _bad(f"it is not strict JSON ({error})") from error


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    document = dict(pairs)
    if len(document) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)[:64]!r} stands twice")
    return document


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON number")


def _first_problems(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    lines = [
        f"{'.'.join(str(part)[:64] for part in problem['loc']) or 'document'}: {problem['msg']}" for problem in problems
    ]
    more = f"; and {len(lines) - 3} more" if len(lines) > 3 else ""
    return "; ".join(lines[:3]) + more


def _bad(problem: str) -> BundleError:
    message = f"{MANIFEST_FILE} cannot be used: {problem}; export the bundle again or fetch it anew"
    return BundleError(message, code="bad_manifest")
