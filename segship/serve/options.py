# SPDX-License-Identifier: Apache-2.0
"""What a server is told, by Python, a TOML file or the environment; names that there are not are refused."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from segship.backends.session import RunOptions
from segship.errors import InputError, option, shown, way
from segship.files import read_bytes
from segship.images import ImageLimits
from segship.options import check_types, check_whole
from segship.promptable.prompts import PromptLimits

PREFIX = "SEGSHIP_SERVE_"
SCOPES = ("predict", "metrics")
Scope = Literal["predict", "metrics"]
_MOST_CONFIG_BYTES = 1 << 20
_YES_NO = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeLimits:
    """The most that a request may be or take, besides what `ImageLimits` and `PromptLimits` bound.

    Attributes
    ----------
    body_bytes
        Bytes of a picture that is sent.
    json_bytes
        Bytes of prompts and options.
    tensor_bytes
        Bytes of the tensors that a single graph gives back.
    header_bytes, header_fields
        Bytes and number of the fields of a request's head.
    chunks
        Chunks of a body that is sent in chunks.
    head_seconds, body_seconds
        Until a request's head, and then its body, have arrived; and so long as the body may take, an answer waits for a
        client that reads nothing.
    read_seconds
        Until a picture is decoded; the worker that takes longer is ended.
    encode_seconds, decode_seconds, everything_seconds
        Until an answer, with the time in the queue, where the client names no deadline.
    encode_queue, decode_queue, everything_queue
        Requests that wait.
    connections
        Connections at once.
    requests_per_minute
        Of one key, or of one address where there are no keys: an encode counts ten, everything by its points; no bound
        when left out.
    """

    body_bytes: int = 32 * 2**20
    json_bytes: int = 2**20
    tensor_bytes: int = 64 * 2**20
    header_bytes: int = 64 * 2**10
    header_fields: int = 100
    chunks: int = 65_536
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    read_seconds: float = 10.0
    encode_seconds: float = 30.0
    decode_seconds: float = 5.0
    everything_seconds: float = 120.0
    encode_queue: int = 8
    decode_queue: int = 64
    everything_queue: int = 4
    connections: int = 2_000
    requests_per_minute: int | None = None

    def __post_init__(self) -> None:
        check_types(self)
        whole = [name for name, hint in get_type_hints(type(self)).items() if hint in (int, int | None)]
        check_whole(self, 1, 2**31, *whole)
        for name, hint in get_type_hints(type(self)).items():
            if hint is float and not 0 < getattr(self, name) <= 86_400:
                message = f"{option(name)} is {shown(getattr(self, name))}; accepted are seconds up to 86400"
                raise InputError(message, code="bad_option")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What `serve` is told.

    Attributes
    ----------
    bundle
        Bundles, checkpoints or known names that are served; the first is asked where a request names none.
    host, port
        Where it listens; port 0 takes a free one. Beyond this machine only with ``keys``.
    processes
        Server processes behind the port, each with workers and a part of the cache of its own.
    keys
        File with the hashes of keys, as `segship serve --new-key NAME` prints them; without it there are no keys.
    allowed_hosts
        Names that the Host field of a request may have, besides those of this machine and ``host``.
    cache_bytes, cache_seconds
        Bytes of embeddings that are kept, and for how long after their last use.
    tensors
        Answer the Open Inference Protocol for single graphs.
    label_studio
        Address of a Label Studio from which pictures of its tasks are fetched, such as http://localhost:8081; its token
        is read from SEGSHIP_LABEL_STUDIO_TOKEN.
    drain_seconds
        How long requests that are worked on may take after SIGTERM.
    page
        Serve the page at /.
    log
        Lines for people, JSON, or none, of requests.
    limits
        What a request may be or take.
    run
        What runs the models.
    """

    bundle: tuple[str, ...] = ("tiny",)
    host: str = "127.0.0.1"
    port: int = 8080
    processes: int = 1
    keys: Path | None = None
    allowed_hosts: tuple[str, ...] = ()
    cache_bytes: int = 512 * 2**20
    cache_seconds: float = 900.0
    tensors: bool = False
    label_studio: str | None = None
    drain_seconds: float = 30.0
    page: bool = True
    log: Literal["text", "json", "none"] = "text"
    limits: ServeLimits = field(default_factory=ServeLimits)
    run: RunOptions = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        check_types(self)
        check_whole(self, 0, 65_535, "port")
        check_whole(self, 2**20, 2**50, "cache_bytes")
        check_whole(self, 1, 64, "processes")
        if not self.bundle:
            raise InputError(f"{option('bundle')} names no model; give at least one", code="bad_option")
        if not self.keys and not _is_of_this_machine(self.host):
            message = (
                f"{option('host')} is {shown(self.host)}, which others reach, and there are no keys; make one with "
                f"`segship serve --new-key NAME`, put the line it prints into a file, and name that file with "
                f"{way('keys=', '--keys')}; or listen on 127.0.0.1"
            )
            raise InputError(message, code="needs_keys")

    @property
    def image_limits(self) -> ImageLimits:
        """What a picture may be."""
        return ImageLimits(bytes=self.limits.body_bytes)

    @property
    def prompt_limits(self) -> PromptLimits:
        """What prompts may be."""
        return PromptLimits(objects=64, points_per_object=64, json_bytes=self.limits.json_bytes)

    def to_dict(self) -> dict[str, Any]:
        """Return every setting by its name for `json.dumps`, those of ``limits`` and ``run`` beside the others."""
        flat = asdict(self)
        flat |= flat.pop("limits") | flat.pop("run")
        return {name: str(value) if isinstance(value, Path) else value for name, value in flat.items()}


def _is_of_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def make_serve_options(settings: Mapping[str, Any]) -> ServeOptions:
    """Make options of settings by their flat names; one that there is not is refused as ``unknown_setting``."""
    parts: dict[str, dict[str, Any]] = {"": {}, "limits": {}, "run": {}}
    places = _places()
    for name, value in settings.items():
        if name not in places:
            message = f"there is no setting {shown(name)}; `segship serve --print-config` lists all"
            raise InputError(message, code="unknown_setting")
        # TOML has lists.
        parts[places[name][0]][name] = tuple(value) if isinstance(value, list) else value
    return ServeOptions(**parts[""], limits=ServeLimits(**parts["limits"]), run=RunOptions(**parts["run"]))


def read_settings(config: str | Path | None, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the settings of a TOML file and, over them, those of the environment.

    A setting ``port`` is SEGSHIP_SERVE_PORT there; several values of one setting are parted by commas.

    Raises
    ------
    InputError
        ``unknown_setting``, ``bad_config`` for a file that is no TOML, ``bad_option`` for text that is no value.
    """
    settings: dict[str, Any] = {} if config is None else _read_toml(Path(config))
    places = _places()
    for name, text in (os.environ if environment is None else environment).items():
        if name.startswith(PREFIX):
            setting = name.removeprefix(PREFIX).lower()
            if setting not in places:
                message = f"there is no setting {shown(name)}; `segship serve --print-config` lists all"
                raise InputError(message, code="unknown_setting")
            settings[setting] = _from_text(name, text, places[setting][1])
    return settings


def _places() -> dict[str, tuple[str, Any]]:
    """Setting -> the options that it belongs to, and its type."""
    classes = {"": ServeOptions, "limits": ServeLimits, "run": RunOptions}
    return {
        one.name: (part, get_type_hints(kind)[one.name])
        for part, kind in classes.items()
        for one in fields(kind)
        if one.name not in classes
    }


def _read_toml(path: Path) -> dict[str, Any]:
    data = read_bytes(path, limit=_MOST_CONFIG_BYTES)
    try:
        settings = tomllib.loads(data.decode())
    except ValueError as error:
        raise InputError(f"{path} is no TOML: {shown(error)}", code="bad_config") from None
    return settings


def _from_text(name: str, text: str, hint: Any) -> Any:
    kinds = get_args(hint) if type(None) in get_args(hint) else (hint,)
    try:
        if bool in kinds:
            return _YES_NO[text.lower()]
        for kind in (int, float):
            if kind in kinds:
                return kind(text)
    except (KeyError, ValueError):
        wanted = "true or false" if bool in kinds else "a number"
        raise InputError(f"{name} is {shown(text)}; accepted is {wanted}", code="bad_option") from None
    return tuple(part.strip() for part in text.split(",")) if tuple[str, ...] in kinds else text


@dataclass(frozen=True, slots=True)
class Key:
    """One key: its name, the SHA-256 of it, and what it may do."""

    name: str
    sha256: str
    scopes: frozenset[str]


class KeyRing:
    """The keys of a file, read again when it changes, so that keys come and go without a restart.

    One line a key: its name, its scopes parted by commas, and the SHA-256 of the key in hexadecimal digits.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._keys: tuple[Key, ...] = ()
        self.refresh()

    def refresh(self) -> None:
        """Read the file if it has changed; errors are those of `parse_keys`."""
        status = self._path.stat()
        if (status.st_mtime_ns, status.st_size) != self._seen:
            self._keys = parse_keys(read_bytes(self._path, limit=_MOST_CONFIG_BYTES).decode("utf-8", "replace"))
            self._seen = (status.st_mtime_ns, status.st_size)

    def find(self, secret: str) -> Key | None:
        """Return the key that a request has brought; every one is compared, so that the time says nothing."""
        digest = hash_key(secret)
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found


def hash_key(secret: str) -> str:
    """Return what a file holds of a key; keys are random, so that one round of a hash is enough."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def parse_keys(text: str) -> tuple[Key, ...]:
    """Return the keys that lines name, or refuse the file as ``bad_keys``; no line is quoted."""
    keys: list[Key] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        scopes = frozenset(words[1].split(",")) if len(words) == 3 else frozenset()
        is_hash = len(words) == 3 and len(words[2]) == 64 and set(words[2]) <= set("0123456789abcdef")
        if not is_hash or not scopes or not scopes <= set(SCOPES) or any(words[0] == key.name for key in keys):
            message = (
                f"line {number} of the keys is not understood; accepted are a name that is there once, scopes "
                f"({','.join(SCOPES)}) and a SHA-256, as `segship serve --new-key NAME` prints them"
            )
            raise InputError(message, code="bad_keys")
        keys.append(Key(words[0], words[2], scopes))
    if not keys:
        raise InputError("the file of keys holds none; make one with `segship serve --new-key NAME`", code="bad_keys")
    return tuple(keys)


def describe_options(options: ServeOptions) -> str:
    """Return the settings as TOML that `read_settings` reads back; those that are not set are comments."""
    lines = []
    for name, value in options.to_dict().items():
        # TOML's strings, numbers, truths and lists are JSON's.
        lines.append(f"# {name} is not set" if value is None else f"{name} = {json.dumps(value)}")
    return "\n".join(lines) + "\n"
