# SPDX-License-Identifier: Apache-2.0
"""The published SAM and MobileSAM checkpoints: where each lies and what its bytes must be.

Sizes and digests agree across several independent public downloaders; the publishers give no checksum file.
"""

from __future__ import annotations

from dataclasses import dataclass

CHECKPOINT_SUFFIXES = (".pth", ".pt", ".safetensors")
"""Endings of the weight files that can be read."""

_SAM_URL = "https://dl.fbaipublicfiles.com/segment_anything"
_SAM_SOURCE = "https://github.com/facebookresearch/segment-anything"
_MOBILE_SAM_SOURCE = "https://github.com/ChaoningZhang/MobileSAM"


@dataclass(frozen=True, slots=True)
class KnownCheckpoint:
    """One published weight file.

    Attributes
    ----------
    architecture
        Its name in `segship.models.config.SAM_ARCHITECTURES`.
    file
        The published file name.
    url
        Where its publisher serves it.
    bytes
        Its exact size.
    sha256
        Its digest, 64 hexadecimal digits; the only one that is checked.
    md5
        Its MD5, whose first digits stand in SAM's file names.
    licence
        SPDX name of the weights' licence.
    source
        The project that published it.
    """

    architecture: str
    file: str
    url: str
    bytes: int
    sha256: str
    md5: str | None
    licence: str
    source: str


KNOWN_CHECKPOINTS: dict[str, KnownCheckpoint] = {
    "vit_b": KnownCheckpoint(
        architecture="vit_b",
        file="sam_vit_b_01ec64.pth",
        url=f"{_SAM_URL}/sam_vit_b_01ec64.pth",
        bytes=375_042_383,
        sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        md5="01ec64d29a2fca3f0661936605ae66f8",
        licence="Apache-2.0",
        source=_SAM_SOURCE,
    ),
    "vit_l": KnownCheckpoint(
        architecture="vit_l",
        file="sam_vit_l_0b3195.pth",
        url=f"{_SAM_URL}/sam_vit_l_0b3195.pth",
        bytes=1_249_524_607,
        sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        md5="0b3195507c641ddb6910d2bb5adee89c",
        licence="Apache-2.0",
        source=_SAM_SOURCE,
    ),
    "vit_h": KnownCheckpoint(
        architecture="vit_h",
        file="sam_vit_h_4b8939.pth",
        url=f"{_SAM_URL}/sam_vit_h_4b8939.pth",
        bytes=2_564_550_879,
        sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        md5="4b8939a88964f0f4ff5f5b2642c598a6",
        licence="Apache-2.0",
        source=_SAM_SOURCE,
    ),
    "vit_t": KnownCheckpoint(
        architecture="vit_t",
        file="mobile_sam.pt",
        url=f"{_MOBILE_SAM_SOURCE}/raw/master/weights/mobile_sam.pt",
        bytes=40_728_226,
        sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        md5="f3c0d8cda613564d499310dab6c812cd",
        licence="Apache-2.0",
        source=_MOBILE_SAM_SOURCE,
    ),
}

_BY_SHA256 = {known.sha256: known for known in KNOWN_CHECKPOINTS.values()}


def identify(sha256: str) -> KnownCheckpoint | None:
    """Return the published checkpoint of that digest, or None for any other file."""
    return _BY_SHA256.get(sha256.lower())
