# SPDX-License-Identifier: Apache-2.0
"""The bytes of an image file, before any decoder sees them: reading them, naming their format, finding their end.

First step of the use road, used by `segship.images` alone. A path is opened only if it is a regular file, so that a
FIFO or a device cannot hang the caller. The end of JPEG, PNG and WebP files is found here because Pillow neither
reports bytes behind the picture nor refuses every shortened file. Codes are listed in `segship.images`.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from segship.errors import ImageError, way

# First bytes of each format that can be read.
_SIGNATURES = {
    "jpeg": re.compile(rb"\xff\xd8\xff"),
    "png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "webp": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "tiff": re.compile(rb"II\x2a\x00|MM\x00\x2a|II\x2b\x00|MM\x00\x2b"),
    "gif": re.compile(rb"GIF8[79]a"),
    "bmp": re.compile(rb"BM"),
}
FORMATS = tuple(_SIGNATURES)
"""All that are read."""
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")
"""How names of pictures end, where a folder is looked through."""

# Formats that are named in the refusal and never read: their decoders are rare, or run programs.
_NEVER_READ = {
    "HEIC or AVIF": re.compile(rb"....ftyp", re.DOTALL),
    "PDF": re.compile(rb"%PDF"),
    "EPS": re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"),
    "SVG": re.compile(rb"\s*<(\?xml|svg)"),
    "PSD": re.compile(rb"8BPS"),
    "JPEG 2000": re.compile(rb"\x00\x00\x00\x0cjP|\xff\x4f\xff\x51"),
    "FITS": re.compile(rb"SIMPLE  ="),
}

# A marker that is no stuffed byte (00), fill byte (ff), restart (d0 to d7) or TEM (01): ITU T.81, table B.1.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd7])")
_JPEG_END_OF_IMAGE, _JPEG_START_OF_SCAN = 0xD9, 0xDA
# Real files have some dozens of either; thousands make a small file slow to decode.
_MAX_JPEG_SEGMENTS = 5_000
_MAX_JPEG_SCANS = 500
# A scan can be a few bytes and still walk the whole picture. Encoders write about ten; this many of any size decode in
# seconds, and up to 500 of pictures so small that they take no longer.
_JPEG_SCANS_OF_ANY_SIZE = 32
_MAX_JPEG_SCANNED_PIXELS = 1_600_000_000
_MAX_PNG_EXTRA_CHUNKS = 5_000
_PNG_PICTURE_CHUNKS = (b"IDAT", b"fdAT", b"fcTL")


def read_file(path: str | Path, limit: int) -> bytes:
    """Return the content of a regular file of at most ``limit`` bytes."""
    try:
        # Asked before opening, because opening alone can block (FIFO) or act (device).
        _check_file(path, os.stat(path), limit)
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(path, flags), "rb") as file:
            # Asked again of what was opened: the name may point to something else by now.
            status = os.fstat(file.fileno())
            _check_file(path, status, limit)
            data = file.read(status.st_size + 1)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise ImageError(f"there is no file {str(path)!r}; give the path of an image", code="missing_file") from None
    except OSError as error:
        raise ImageError(
            f"the file {str(path)!r} cannot be read ({error.strerror}); check its permissions", code="unreadable_file"
        ) from None
    check_byte_count(len(data), limit)
    return data


def _check_file(path: str | Path, status: os.stat_result, limit: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
        raise ImageError(f"{str(path)!r} is {kind}; give the path of one image file", code="not_a_file")
    check_byte_count(status.st_size, limit)


def check_byte_count(count: int, limit: int) -> None:
    """Refuse more encoded bytes than the limit."""
    if count > limit:
        raise ImageError(
            f"the image file has {count:,} bytes; at most {limit:,} are read; "
            f"{way('raise ImageLimits.bytes to accept it', 'save it smaller, or give its pixels in Python')}",
            code="too_many_bytes",
        )


def recognise_format(data: bytes, formats: Collection[str]) -> str:
    """Return the format that the first bytes show, such as ``jpeg``; refuse what ``formats`` does not list."""
    allowed = {name.lower() for name in formats}
    unknown = allowed - _SIGNATURES.keys()
    if unknown:
        raise ImageError(
            f"the image formats {sorted(unknown)} cannot be read; known are {list(_SIGNATURES)}",
            code="format_not_allowed",
        )
    if not data:
        raise ImageError("the image is empty (0 bytes); give a whole image file", code="empty_file")
    accepted = ", ".join(name for name in _SIGNATURES if name in allowed)
    for name, signature in _SIGNATURES.items():
        if signature.match(data):
            if name in allowed:
                return name
            raise ImageError(
                f"the image is a {name.upper()} file; accepted here: {accepted}; save it as one of them",
                code="format_not_allowed",
            )
    for title, signature in _NEVER_READ.items():
        if signature.match(data):
            raise ImageError(
                f"the image looks like {title}, which is never read; convert it to one of {accepted}",
                code="format_not_allowed",
            )
    raise ImageError(
        f"the data is no image of a known format; accepted here: {accepted}; "
        "check that the file is whole and not, say, a web page saved under an image's name",
        code="unknown_format",
    )


def picture_end(data: bytes, name: str) -> int | None:
    """Return the offset behind the picture, or None if the data stops before it.

    Known for JPEG, PNG and WebP. The other formats state no end that can be relied on: all data counts as picture, and
    the decoder finds out. Files of absurdly many parts are refused here, since they are slow to open too.
    """
    finder = {"jpeg": _jpeg_end, "png": _png_end, "webp": _webp_end}.get(name)
    if finder is None:
        return len(data)
    end = finder(data)
    return None if end is None or end > len(data) else end


def truncated() -> ImageError:
    """Return the refusal of a file that stops too early."""
    return ImageError("the image file ends before its picture does; copy or download it again", code="truncated")


def _too_complex(what: str, limit: int) -> ImageError:
    return ImageError(
        f"the image file has more than {limit:,} {what}, which no camera or editor writes; save it anew",
        code="too_complex",
    )


def _jpeg_markers(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield each marker of the first picture and the offset behind it, its end marker last if it has one."""
    position = 2
    for _ in range(_MAX_JPEG_SEGMENTS):
        # A search, not a read: entropy-coded data and stray bytes between segments are both stepped over.
        match = _JPEG_MARKER.search(data, position)
        if match is None:
            return
        marker, position = match.group(1)[0], match.end()
        yield marker, position
        if marker == _JPEG_END_OF_IMAGE:
            return
        position += int.from_bytes(data[position : position + 2], "big")
    raise _too_complex("segments", _MAX_JPEG_SEGMENTS)


def _jpeg_end(data: bytes) -> int | None:
    """Return the offset behind the end marker of the first picture, or None if there is none."""
    scans = 0
    for marker, position in _jpeg_markers(data):
        if marker == _JPEG_END_OF_IMAGE:
            return position
        scans += marker == _JPEG_START_OF_SCAN
        if scans > _MAX_JPEG_SCANS:
            raise _too_complex("scans", _MAX_JPEG_SCANS)
    return None


def check_jpeg_scans(data: bytes, pixels: int) -> None:
    """Refuse more scans than a picture of this many pixels can have in a time that anybody waits for."""
    limit = max(_JPEG_SCANS_OF_ANY_SIZE, _MAX_JPEG_SCANNED_PIXELS // max(pixels, 1))
    if sum(marker == _JPEG_START_OF_SCAN for marker, _ in _jpeg_markers(data)) > limit:
        raise _too_complex(f"scans for {pixels:,} pixels", limit)


def first_jpeg_scan(data: bytes) -> bytes:
    """Return a JPEG file up to the end of its first scan."""
    markers = _jpeg_markers(data)
    any(marker == _JPEG_START_OF_SCAN for marker, _ in markers)
    _, behind = next(markers, (0, len(data) + 2))
    return data[: behind - 2]


def _png_end(data: bytes) -> int | None:
    """Return the offset behind the IEND chunk, or None if there is none."""
    position, extra = 8, 0
    while position + 12 <= len(data):
        kind = data[position + 4 : position + 8]
        position += 12 + int.from_bytes(data[position : position + 4], "big")
        if kind == b"IEND":
            return position
        extra += kind not in _PNG_PICTURE_CHUNKS
        if extra > _MAX_PNG_EXTRA_CHUNKS:
            raise _too_complex("chunks", _MAX_PNG_EXTRA_CHUNKS)
    return None


def _webp_end(data: bytes) -> int | None:
    """Return the offset behind the RIFF container."""
    end = 8 + int.from_bytes(data[4:8], "little")
    # An odd container is padded by one byte, which some writers leave out.
    return end + 1 if end % 2 and end + 1 == len(data) else end


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) from a WebP header, or None if it states none.

    Needed because the decoder allocates its canvas when it is created, before Pillow can tell the size.
    Follows RFC 9649: VP8X in section 2.7, VP8L in 3.4, VP8 in RFC 6386 section 9.1.
    """
    kind, header = data[12:16], data[20:30]
    if len(header) < 10:
        return None
    if kind == b"VP8X":
        return int.from_bytes(header[7:10], "little") + 1, int.from_bytes(header[4:7], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(header[1:5], "little")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if kind == b"VP8 ":
        return int.from_bytes(header[8:10], "little") & 0x3FFF, int.from_bytes(header[6:8], "little") & 0x3FFF
    return None
