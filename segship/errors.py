# SPDX-License-Identifier: Apache-2.0
"""Every error that segship raises on purpose.

    SegshipError
    ├── InputError              what a user handed over cannot be used
    │   ├── ImageError          an image file or array
    │   └── PromptError         points, labels, boxes, mask inputs
    ├── CheckpointError         a weight file that cannot be read or does not fit
    │   └── UnsafeCheckpoint    a weight file that asks for code to be run
    ├── BundleError             a bundle that is incomplete, changed or unknown
    ├── FetchError              a download that failed or gave the wrong bytes
    ├── BackendUnavailable      a runtime that is not installed or cannot do what was asked
    ├── ExportError             a graph that could not be written
    │   └── ComparisonFailed    a graph that was written and differs from its model
    └── OutputError             a result that cannot be written where it was asked for

Every error carries ``code``, a short reason that never changes and is the same from Python, the command line and
HTTP. The message says what was wrong, the value found, what is accepted and what to do next.
"""

from __future__ import annotations

import re

_LONGEST_SHOWN = 80


def shown(value: object) -> str:
    """Return what a file holds as messages print it: one line of ASCII, escaped, and cut at 80 characters.

    Examples
    --------
    >>> shown("os\\n.system"), shown("x" * 1000)[-20:]
    ('os\\\\n.system', 'xxxxx... (1000 long)')
    """
    # Python refuses to write out numbers of more than 4,300 digits, and it need not: nobody reads them.
    if isinstance(value, int) and not -(10**_LONGEST_SHOWN) < value < 10**_LONGEST_SHOWN:
        return f"a number of {value.bit_length()} bits"
    text = str(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
    text, length = text[: _LONGEST_SHOWN + 1].encode("unicode_escape").decode("ascii"), len(text)
    if len(text) <= _LONGEST_SHOWN:
        return text
    more = f"... ({length} long)"
    return text[: _LONGEST_SHOWN - len(more)] + more


_WAY = re.compile("\x02([^\x03]*)\x03([^\x04]*)\x04([^\x05]*)\x05")


def way(python: str, command: str, http: str | None = None) -> str:
    """Return a part of a message that names a way out: an argument in Python, an option on the command line.

    ``http`` is what a server says, where it is not what Python does; nothing, where it has no such way.

    Examples
    --------
    >>> error = OutputError(f"x.png exists; replace it with {way('overwrite=True', '--overwrite')}")
    >>> str(error), error.on_command_line
    ('x.png exists; replace it with overwrite=True', 'x.png exists; replace it with --overwrite')
    """
    return f"\x02{python}\x03{command}\x04{python if http is None else http}\x05"


def option(name: str, command: str | None = None) -> str:
    """Return the name of an option for both doors: a field in Python, with dashes on the command line.

    Examples
    --------
    >>> InputError(f"{option('points_per_side')} is 0").on_command_line
    '--points-per-side is 0'
    """
    return way(name, command or f"--{name.replace('_', '-')}")


class SegshipError(Exception):
    """Root of the tree; never raised itself.

    Parameters
    ----------
    message
        What was wrong, the value found, what is accepted, the next step; `way` says it for both doors.
    code
        The stable reason, lower case with underscores, such as ``point_outside``.

    Attributes
    ----------
    code
        As above.
    on_command_line, over_http
        The message in the words of the command line, and of a server; ``str`` gives those of Python.
    """

    default_code = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(_WAY.sub(r"\1", message))
        self.on_command_line = _WAY.sub(r"\2", message)
        self.over_http = _WAY.sub(r"\3", message)
        self.code = code if code is not None else self.default_code


class SegshipWarning(UserWarning):
    """Something that was done otherwise than asked, or to no effect, by code whose result has no place for a note."""


class InputError(SegshipError):
    """What a user handed over cannot be used."""

    default_code = "bad_input"


class ImageError(InputError):
    """An image that cannot be read, or lies outside the limits."""

    default_code = "bad_image"


class PromptError(InputError):
    """Prompts that are malformed, contradictory or outside the image."""

    default_code = "bad_prompt"


class CheckpointError(SegshipError):
    """A weight file that cannot be read, or whose tensors fit no known architecture."""

    default_code = "bad_checkpoint"


class UnsafeCheckpoint(CheckpointError):
    """A weight file that asks for code to be run when it is read."""

    default_code = "unsafe_checkpoint"


class BundleError(SegshipError):
    """A bundle that is incomplete, was changed after it was written, or is of an unknown format."""

    default_code = "bad_bundle"


class FetchError(SegshipError):
    """A download that failed, or whose bytes are not the published ones."""

    default_code = "fetch_failed"


class BackendUnavailable(SegshipError):
    """A runtime that is not installed here, or that cannot do what was asked of it."""

    default_code = "backend_unavailable"


class ExportError(SegshipError):
    """A graph that could not be written."""

    default_code = "export_failed"


class ComparisonFailed(ExportError):
    """A graph that was written and whose results differ from the model's by more than the bar."""

    default_code = "comparison_failed"


class OutputError(SegshipError):
    """A result that cannot be written where it was asked for."""

    default_code = "cannot_write"
