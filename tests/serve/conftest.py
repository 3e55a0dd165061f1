# SPDX-License-Identifier: Apache-2.0
"""Servers for tests: `serve` starts one with options, once a module, and `server` is the one without any."""

from contextlib import ExitStack

import pytest

from tests.serve.serving import serving


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def server(serve):
    return serve()
