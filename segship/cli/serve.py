# SPDX-License-Identifier: Apache-2.0
"""``segship serve``."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter

from segship.cli.options import MODEL_GROUP, Fields, Json, Option, command, in_group
from segship.cli.output import dump_json, plain, results_console
from segship.errors import InputError, shown
from segship.serve.options import SCOPES, ServeOptions, describe_options, hash_key, make_serve_options, read_settings

ACCESS_GROUP = Group("Who may ask", sort_key=0.1)
LIMITS_GROUP = Group("Limits of requests", sort_key=0.2)
TIME_GROUP = Group("Time and queues", sort_key=0.3)


def settle(*, config: Path | None = None, **given: Any) -> ServeOptions:
    """Return the options of a file, of the environment, and over them those that were typed.

    Parameters
    ----------
    config
        TOML file with settings by the names of these options; SEGSHIP_SERVE_PORT and the like stand over it.
    """
    flat = {**given.pop("limits", {}), **given.pop("run", {}), **given}
    return make_serve_options({**read_settings(config), **flat})


def _as_given(**given: Any) -> dict[str, Any]:
    return given


OPTIONS = Fields(
    settle,
    bundle=Option(name=("--bundle", "--model"), group=MODEL_GROUP, negative=""),
    allowed_hosts=Option(group=ACCESS_GROUP, negative=""),
    **in_group(ACCESS_GROUP, "keys"),
    page=Option(negative="--no-page"),
    limits=Fields(
        _as_given,
        LIMITS_GROUP,
        **in_group(
            TIME_GROUP,
            *(f"{part}_seconds" for part in ("head", "body", "read", "encode", "decode", "everything")),
            *(f"{lane}_queue" for lane in ("encode", "decode", "everything")),
        ),
    ),
    run=Fields(_as_given, MODEL_GROUP),
)


@command
def serve(
    *,
    options: Annotated[ServeOptions, OPTIONS],
    new_key: Annotated[str | None, Parameter(group=ACCESS_GROUP)] = None,
    print_config: bool = False,
    json: Json = False,
) -> int:
    """Serve masks over HTTP, and a page to click in.

    Encodes a picture once and answers clicks in milliseconds, on this machine alone unless it is told otherwise.

    Parameters
    ----------
    new_key
        Make a key of this name, print it and the line for the file of keys, and end.
    print_config
        Print every setting as TOML, and end.

    Examples
    --------
    segship serve
    segship serve --bundle vit_b --port 9000
    segship serve --host 0.0.0.0 --keys keys.txt --allowed-hosts masks.example.org
    """
    if new_key is not None:
        return _print_new_key(new_key, json)
    if print_config:
        print(dump_json(options.to_dict()) if json else describe_options(options), end="")
        return 0
    from segship.serve.server import serve as run

    return run(options, started=_say_where)


def _print_new_key(name: str, json: bool) -> int:
    secret = secrets.token_urlsafe(32)
    line = f"{name} {','.join(SCOPES)} {hash_key(secret)}"
    if len(name.split()) != 1 or "#" in name:
        message = f"the name of a key is {shown(name)}; accepted is one word without #"
        raise InputError(message, code="bad_option")
    if json:
        print(dump_json({"key": secret, "line": line}))
        return 0
    console = results_console()
    console.print(f"the key, which is not stored anywhere: {plain(secret)}", soft_wrap=True)
    console.print(f"the line for the file of keys:         {plain(line)}", soft_wrap=True)
    return 0


def _say_where(address: str) -> None:
    results_console().print(f"segship serves at {address}; end it with Ctrl-C")
