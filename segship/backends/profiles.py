# SPDX-License-Identifier: Apache-2.0
"""Ranges of free axes, which TensorRT plans for; by itself it does not hold those of different inputs together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from segship.errors import BundleError, way
from segship.spec import GraphSpec

Range = tuple[int, int, int]
"""The least size of an axis, the one that is planned for, and the most."""
Profile = Mapping[str, Range]
"""Axis of a contract -> its range."""

PROFILES: dict[str, tuple[Profile, ...]] = {
    "image_encoder": ({"batch": (1, 1, 4)},),
    "mask_decoder": (
        {"objects": (1, 1, 8), "points": (1, 2, 32)},
        {"objects": (1, 64, 64), "points": (1, 1, 2)},
    ),
    "semantic": ({"batch": (1, 1, 4)},),
}
"""Graph -> ranges that its plan is made for: of the decoder those of clicks and those of everything mode."""


def profiles_of(spec: GraphSpec, given: Sequence[Profile] = ()) -> tuple[Profile, ...]:
    """Return the ranges of a contract's free axes: some, or those of `PROFILES`.

    Raises
    ------
    BundleError
        ``no_profile`` when an axis has none, as that of pictures of any size; ``bad_profile`` when a range is none.
    """
    axes = {size for tensor in spec.inputs for size in tensor.shape if isinstance(size, str)}
    chosen = tuple(given) or PROFILES.get(spec.name, ({},))
    for profile in chosen:
        missing = sorted(axes - profile.keys())
        if missing:
            size = way("size=(HEIGHT, WIDTH)", "--size HEIGHT,WIDTH")
            message = f"graph {spec.name!r} leaves {', '.join(missing)} open, and TensorRT needs a range of every axis"
            raise BundleError(f"{message}; make a bundle of one size: {size}", code="no_profile")
        for axis, (least, usual, most) in profile.items():
            if not 1 <= least <= usual <= most:
                message = f"the range of {axis} is {least}, {usual}, {most}; accepted are three sizes from 1 up, rising"
                raise BundleError(message, code="bad_profile")
    return tuple({axis: profile[axis] for axis in sorted(axes)} for profile in chosen)


def shapes_of(spec: GraphSpec, profile: Profile) -> dict[str, list[tuple[int, ...]]]:
    """Return the least, the usual and the largest shape of every input."""
    return {
        tensor.name: [
            tuple(profile[size][place] if isinstance(size, str) else size for size in tensor.shape)
            for place in range(3)
        ]
        for tensor in spec.inputs
    }
