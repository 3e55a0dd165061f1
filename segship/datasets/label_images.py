# SPDX-License-Identifier: Apache-2.0
"""PNG files that hold a number for each pixel instead of a colour: how data sets keep their truth."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from segship.errors import InputError
from segship.files import read_bytes
from segship.images.file_bytes import picture_end

MAX_LABEL_BYTES = 128 * 2**20
"""Largest file of labels that is read; Cityscapes' polygons have up to some 100 kB, its PNG files less."""
MAX_LABEL_PIXELS = 100_000_000


def read_label_image(path: Path) -> NDArray[np.uint8]:
    """Read a PNG of one 8-bit number a pixel, gray or with a palette whose indices are the numbers.

    Returns
    -------
    ndarray
        (H, W) uint8.

    Raises
    ------
    InputError
        ``bad_label_image`` when it is no such PNG, or what `segship.files.read_bytes` raises.
    """
    data = read_bytes(path.resolve(), limit=MAX_LABEL_BYTES)
    try:
        # The plugin itself: Image.open would try every format, and change the process's warnings for large pictures.
        image = PngImagePlugin.PngImageFile(io.BytesIO(data))
        width, height = image.size
        if width * height > MAX_LABEL_PIXELS:
            raise _bad(path, f"has {width} x {height} pixels; at most {MAX_LABEL_PIXELS:,} are read")
        mode = image.mode
        if mode in ("L", "P"):
            labels = np.array(image)
            # Pillow takes a file whose last chunks are missing.
            if picture_end(data, "png") is None:
                raise ValueError("no end")
            return labels
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        # SyntaxError is what Pillow raises for bytes that are no PNG.
        raise _bad(path, "is damaged or no PNG; copy it again") from error
    raise _bad(path, f"has pixels of kind {mode!r}; accepted are 8-bit gray or palette, one number of a class a pixel")


def encode_label_image(labels: NDArray[np.uint8]) -> bytes:
    """Return the bytes of an 8-bit gray PNG of labels (H, W) uint8."""
    stream = io.BytesIO()
    Image.fromarray(labels).save(stream, "PNG")
    return stream.getvalue()


def _bad(path: Path, problem: str) -> InputError:
    return InputError(f"{path} {problem}", code="bad_label_image")
