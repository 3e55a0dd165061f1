# SPDX-License-Identifier: Apache-2.0
"""Processes that are killed at every step of their work, and what is made old enough to be tidied."""

import os
import signal
import sys
import time
import warnings

import pytest

from segship import files


def in_child(work):
    """Fork a process that works and ends at once; return its id."""
    with warnings.catch_warnings():
        # Of threads of the test runner, which the child does not use.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        return child
    try:
        # What a killed process wrote is in the system's hands; only a power cut asks for more.
        os.fsync = lambda _descriptor: None
        work()
        os._exit(0)
    finally:
        os._exit(1)


# What Python tells of every call that touches the disk, and of a rename that it has no call for.
TOUCHES = ("os.", "shutil.", "open", "segship.")


def die_at(step, work, touches):
    """Do work, killed before its step of that number."""
    seen = 0

    def count(event, _arguments):
        nonlocal seen
        if event.startswith(touches):
            seen += 1
            if seen == step:
                os.kill(os.getpid(), signal.SIGKILL)

    renamed = files._Directory._renamed

    def audited(*arguments):
        sys.audit("segship.renamed")
        return renamed(*arguments)

    files._Directory._renamed = audited
    sys.addaudithook(count)
    work()


def each_kill(work, touches=TOUCHES, *, least=20, most=400):
    """Do work again and again, killed one step later every time, until it is not killed any more."""
    for step in range(1, most):
        child = in_child(lambda step=step: die_at(step, work, touches))
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0 and step > least
            return
        yield step
    raise AssertionError("it never ends")


def make_old(folder):
    for partial in folder.glob(".*.partial"):
        for path in (*partial.rglob("*"), partial):
            os.utime(path, (time.time() - 90_000,) * 2)


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
