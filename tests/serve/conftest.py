# SPDX-License-Identifier: Apache-2.0
"""Servers for tests: `serve` starts one with options, once for all, and `server` is the one without any."""

from contextlib import ExitStack

import pytest

from segship.serve.options import hash_key
from tests.serve.serving import serving


@pytest.fixture(scope="session")
def serve(tmp_path_factory):
    """Return a running server with these options; another with the same options is the same one."""
    with ExitStack() as stack:
        running = {}

        def start(*options, environment=None):
            asked = options, tuple((environment or {}).items())
            if asked not in running:
                log = tmp_path_factory.mktemp("serve") / "log"
                running[asked] = stack.enter_context(serving(*options, log=log, environment=environment))
            return running[asked]

        yield start


@pytest.fixture(scope="session")
def server(serve):
    return serve()


@pytest.fixture(scope="session")
def closed(serve, tmp_path_factory):
    """A server with keys: secret is anna's, to predict, and other is for metrics."""
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(f"anna predict {hash_key('secret')}\nprobe metrics {hash_key('other')}\n")
    return serve("--tensors", "--keys", str(keys))
