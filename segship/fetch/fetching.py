# SPDX-License-Identifier: Apache-2.0
"""`fetch_checkpoint`: the cache folder, mirrors, files of the user, and one download for all who ask at once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

from segship.catalog import KNOWN_CHECKPOINTS, SEMANTIC_CHECKPOINTS, KnownCheckpoint
from segship.errors import FetchError, SegshipError
from segship.fetch.download import Download, Progress, download, exclusive_lock
from segship.files import CHUNK_BYTES, atomic_file, checkpoint_folder, open_regular, sha256_of

MIRROR_VARIABLE = "SEGSHIP_MIRROR"
# Seconds without a byte after which a connection counts as lost.
DEFAULT_TIMEOUT = 30.0


def checkpoint_path(name: str, destination: Path | None = None) -> Path:
    """Return where the checkpoint of a known model lies once it is fetched; the file may not be there yet.

    Raises
    ------
    FetchError
        When the name is unknown; the message lists the known ones.
    """
    semantic = SEMANTIC_CHECKPOINTS.get(name)
    file = _known(name).file if semantic is None else semantic.file
    return (destination if destination is not None else checkpoint_folder()) / file


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
        ``vit_b``, ``vit_l``, ``vit_h`` or ``vit_t``.
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
    known = _known(name)
    target = checkpoint_path(name, destination)
    with _writable(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if _is_there(known, target):
            return target
        with exclusive_lock(target.with_name(f".{known.file}.lock")):
            # Another process may have fetched it while this one waited.
            if not _is_there(known, target):
                _obtain(name, target, mirror, from_file, progress or _ignore, timeout)
    return target


def _known(name: str) -> KnownCheckpoint:
    known = KNOWN_CHECKPOINTS.get(name)
    if name in SEMANTIC_CHECKPOINTS:
        raise FetchError(how_to_fetch(name), code="fetch_by_hand")
    if known is None:
        names = ", ".join((*KNOWN_CHECKPOINTS, *SEMANTIC_CHECKPOINTS))
        message = f"no published checkpoint is named {name!r}; known are {names}"
        raise FetchError(message, code="unknown_checkpoint")
    return known


def how_to_fetch(name: str) -> str:
    """Return how to get the checkpoint of a semantic model, which cannot be downloaded by a program."""
    known = SEMANTIC_CHECKPOINTS[name]
    return (
        f"{name} lies on Google Drive, which gives it to browsers alone, and its publisher gives no digest: download "
        f"{known.url} (about {known.bytes / 1e6:.0f} MB or more), then run `segship fetch {name} --from FILE`, which "
        f"checks what can be checked and puts it at {checkpoint_path(name)}; or put it there yourself and run "
        f"`segship fetch {name}` again"
    )


def _ignore(done: int, total: int) -> None:
    """Draw nothing."""


@contextmanager
def _writable(target: Path) -> Iterator[None]:
    try:
        yield
    except SegshipError:
        raise
    except OSError as error:
        message = f"cannot write {target}: {error.strerror or error}; choose another folder or free some space"
        raise FetchError(message, code="cannot_write") from error


def _is_there(known: KnownCheckpoint, target: Path) -> bool:
    """Tell whether the right file has its name already; a wrong one under that name is never replaced."""
    if not target.exists():
        return False
    # The name may be a link that the user made to a copy elsewhere; what counts is the content.
    real = target.resolve()
    size = real.stat().st_size
    if size == known.bytes and sha256_of(real) == known.sha256:
        return True
    message = (
        f"{target} is there and is not the published {known.file} "
        f"({size} bytes, published are {known.bytes}, or its SHA-256 differs); move it away and fetch again"
    )
    raise FetchError(message, code="file_differs")


def _obtain(
    name: str, target: Path, mirror: str | None, from_file: Path | None, progress: Progress, timeout: float
) -> None:
    known = KNOWN_CHECKPOINTS[name]
    base = mirror or os.environ.get(MIRROR_VARIABLE)
    url = f"{base.rstrip('/')}/{quote(known.file)}" if base else known.url
    address = urlsplit(url)
    if from_file is not None:
        _adopt(known, from_file, target, progress)
    elif address.scheme == "file":
        _adopt(known, Path(url2pathname(address.path)), target, progress)
    elif address.scheme in ("http", "https") and address.hostname:
        part = target.with_name(f"{known.file}.part")
        by_hand = f"get {url} by other means and run `segship fetch {name} --from FILE`, which checks it and puts it at"
        download(Download(url, part, target, known.bytes, known.sha256, timeout, f"{by_hand} {target}"), progress)
    else:
        message = (
            f"{url} cannot be fetched from; a mirror ({MIRROR_VARIABLE} or --mirror) is a base address that begins "
            "with https://, http:// or file://"
        )
        raise FetchError(message, code="bad_mirror")


def _adopt(known: KnownCheckpoint, source: Path, target: Path, progress: Progress) -> None:
    """Copy a file of the user's to the target if it is the published one."""
    if not source.is_file():
        message = f"there is no file {source}; give the path of a copy of {known.file}"
        raise FetchError(message, code="file_missing")
    digest, done = hashlib.sha256(), 0
    with open_regular(source.resolve()) as stream, atomic_file(target) as copy:
        size = os.fstat(stream.fileno()).st_size
        if size != known.bytes:
            message = f"{source} has {size} bytes and the published {known.file} has {known.bytes}; it is another file"
            raise FetchError(message, code="wrong_size")
        while piece := stream.read(CHUNK_BYTES):
            digest.update(piece)
            copy.write(piece)
            done += len(piece)
            progress(done, known.bytes)
        if digest.hexdigest() != known.sha256:
            message = (
                f"{source} has the SHA-256 {digest.hexdigest()} and the published {known.file} has {known.sha256}; "
                "it is damaged or another file"
            )
            raise FetchError(message, code="wrong_digest")
