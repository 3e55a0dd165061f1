# SPDX-License-Identifier: Apache-2.0
"""Published checkpoints onto this machine: from the cache, the network, a mirror or a file that the user has.

Only the files of `segship.catalog` are fetched, and a file gets its name only when its size and SHA-256 are the
published ones; one download serves all who ask at once. Nothing is unpickled here.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import SplitResult, quote, urlsplit
from urllib.request import url2pathname

from segship.catalog import KNOWN_CHECKPOINTS, GraphFile, KnownCheckpoint, KnownGraphs
from segship.errors import FetchError, SegshipError, way
from segship.fetch.download import Download, Progress, exclusive_lock
from segship.fetch.download import download as download_file
from segship.files import (
    CHUNK_BYTES,
    atomic_file,
    checkpoint_folder,
    open_regular,
    real_path,
    sha256_of,
    tidy_directory,
)

MIRROR_VARIABLE = "SEGSHIP_MIRROR"
# Seconds without a byte after which a connection counts as lost.
DEFAULT_TIMEOUT = 30.0


def checkpoint_path(name: str, destination: Path | None = None) -> Path:
    """Return where the checkpoint of a known model lies once it is fetched; the file may not be there yet."""
    return (destination if destination is not None else checkpoint_folder()) / known_checkpoint(name).file


def fetch_checkpoint(
    name: str,
    *,
    destination: Path | None = None,
    mirror: str | None = None,
    from_file: Path | None = None,
    progress: Progress | None = None,
    timeout: float = DEFAULT_TIMEOUT,
) -> Path:
    """Put a published checkpoint on this machine and return its path.

    A file that is there and right is returned at once. A download that was cut off goes on where it stopped. Two
    processes may fetch the same name: the second waits and takes what the first fetched.

    Parameters
    ----------
    name
        A key of `segship.catalog.KNOWN_CHECKPOINTS`.
    destination
        Folder to put the file into under its published name; the cache folder's ``checkpoints`` when left out.
    mirror
        Base address to which the file name is appended (``https://``, ``http://`` or ``file://``); when left out, the
        environment variable ``SEGSHIP_MIRROR``, else the publisher's own address.
    from_file
        A copy that was got by other means; it is checked and copied, and the network is not touched.
    progress
        Called with the bytes that are there and the bytes of the whole file.
    timeout
        Seconds without a byte after which a connection counts as lost.

    Raises
    ------
    FetchError
        When the file cannot be had or is not the published one; ``code`` tells the reasons apart. ``fetch_by_hand`` for
        the semantic models, whose message says how; `segship.ship.by_hand` takes the file then.
    """
    known = known_checkpoint(name)
    if known.by_hand:
        raise by_hand_error(known)
    target = checkpoint_path(name, destination)
    take = f"run `segship fetch {name} --from FILE`, which checks it and puts it at {target}"
    return _fetch(known, target, mirror, from_file, progress, timeout, take)


def fetch_graphs(
    known: KnownGraphs,
    *,
    destination: Path | None = None,
    mirror: str | None = None,
    progress: Progress | None = None,
    timeout: float = DEFAULT_TIMEOUT,
) -> tuple[Path, Path]:
    """Put a published encoder and decoder on this machine and return their paths.

    Parameters and errors are those of `fetch_checkpoint`; ``progress`` counts each file by itself.
    """
    folder = destination if destination is not None else checkpoint_folder()
    take = f"put it into {folder} and run `segship fetch {known.name}` again, which checks it"
    encoder, decoder = (_fetch(file, folder / file.file, mirror, None, progress, timeout, take) for file in known.files)
    return encoder, decoder


def _fetch(
    known: KnownCheckpoint | GraphFile,
    target: Path,
    mirror: str | None,
    from_file: Path | None,
    progress: Progress | None,
    timeout: float,
    take: str,
) -> Path:
    """Put one file at its place unless it is there; ``take`` says what to do with one got by other means."""
    with _writable(target):
        os.makedirs(target.parent, exist_ok=True)
        if _is_there(known, target):
            return target
        with exclusive_lock(target.with_name(f".{known.file}.lock")):
            # Another process may have fetched it while this one waited.
            if not _is_there(known, target):
                _obtain(known, target, mirror, from_file, progress or (lambda done, total: None), timeout, take)
    return target


def known_checkpoint(name: str) -> KnownCheckpoint:
    """Return what is known of a published checkpoint; an unknown name is a `FetchError` that lists the known ones."""
    if name not in KNOWN_CHECKPOINTS:
        message = f"no published checkpoint is named {name!r}; known are {', '.join(KNOWN_CHECKPOINTS)}"
        raise FetchError(message, code="unknown_checkpoint")
    return KNOWN_CHECKPOINTS[name]


def by_hand_error(known: KnownCheckpoint) -> FetchError:
    """Return the error that says how to get a checkpoint which cannot be downloaded by a program."""
    message = (
        f"{known.name} lies on Google Drive, which gives it to browsers alone, and its publisher gives no digest: "
        f"download {known.url} (about {known.bytes / 1e6:.0f} MB or more), then run `segship fetch {known.name} --from "
        f"FILE`, which checks what can be checked and puts it at {checkpoint_path(known.name)}; or put it there "
        f"yourself and run `segship fetch {known.name}` again"
    )
    return FetchError(message, code="fetch_by_hand")


@contextmanager
def _writable(target: Path) -> Iterator[None]:
    try:
        yield
    except SegshipError:
        raise
    # ValueError: a NUL. RecursionError: a thousand folders in one another.
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        message = f"cannot write {target}: {reason}; choose another folder or free some space"
        raise FetchError(message, code="cannot_write") from error


def _is_there(known: KnownCheckpoint | GraphFile, target: Path) -> bool:
    """Tell whether the right file has its name already; a wrong one under that name is never replaced."""
    if not os.path.exists(target):
        return False
    # The name may be a link that the user made to a copy elsewhere; what counts is the content.
    real = real_path(target)
    size = real.stat().st_size
    if size == (known.bytes or size) and sha256_of(real) == known.sha256:
        return True
    message = (
        f"{target} is there and is not the published {known.file} "
        f"({size} bytes, published are {known.bytes or 'none'}, or its SHA-256 differs); move it away and fetch again"
    )
    raise FetchError(message, code="file_differs")


def _obtain(
    known: KnownCheckpoint | GraphFile,
    target: Path,
    mirror: str | None,
    from_file: Path | None,
    progress: Progress,
    timeout: float,
    take: str,
) -> None:
    assert known.sha256 is not None
    base = mirror or os.environ.get(MIRROR_VARIABLE)
    url = f"{base.rstrip('/')}/{quote(known.file)}" if base else known.url
    if from_file is not None:
        _adopt(known, from_file, target, progress)
    elif (address := _address(url)) and address.scheme == "file":
        _adopt(known, Path(url2pathname(address.path)), target, progress)
    elif address and address.scheme in ("http", "https") and address.hostname:
        part = target.with_name(f"{known.file}.part")
        by_hand = f"get {url} by other means and {take}"
        download_file(Download(url, part, target, known.bytes, known.sha256, timeout, by_hand), progress)
    else:
        message = (
            f"{url} cannot be fetched from; a mirror ({MIRROR_VARIABLE} or {way('mirror=', '--mirror')}) is a base "
            "address that begins with https://, http:// or file://"
        )
        raise FetchError(message, code="bad_mirror")


def _address(url: str) -> SplitResult | None:
    """Return the parts of an address; nothing where it has none, or a port that no port can be."""
    try:
        address = urlsplit(url)
        return address if address.port != 0 else None
    except ValueError:
        return None


def _adopt(known: KnownCheckpoint | GraphFile, source: Path, target: Path, progress: Progress) -> None:
    """Copy a file of the user's to the target if it is the published one."""
    if not os.path.isfile(source):
        message = f"there is no file {source}; give the path of a copy of {known.file}"
        raise FetchError(message, code="file_missing")
    tidy_directory(target.parent)
    digest, done = hashlib.sha256(), 0
    with open_regular(real_path(source)) as stream, atomic_file(target) as copy:
        size = os.fstat(stream.fileno()).st_size
        if size != (known.bytes or size):
            message = (
                f"{source} has {size} bytes and the published {known.file} has {known.bytes}; it is another file; a "
                "fine-tuned one becomes a bundle by `segship bundle FILE -o BUNDLE`"
            )
            raise FetchError(message, code="wrong_size")
        while piece := stream.read(CHUNK_BYTES):
            digest.update(piece)
            copy.write(piece)
            done += len(piece)
            progress(done, size)
        if digest.hexdigest() != known.sha256:
            message = (
                f"{source} has the SHA-256 {digest.hexdigest()} and the published {known.file} has {known.sha256}; "
                "it is damaged or another file"
            )
            raise FetchError(message, code="wrong_digest")
