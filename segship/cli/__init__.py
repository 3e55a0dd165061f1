# SPDX-License-Identifier: Apache-2.0
"""The command line: every command parses, calls one public function and prints what it returned.

Results go to standard output, as text for people or as one JSON document with ``--json``; progress and errors go to
standard error. Exit codes:

    0   done
    1   a fault of segship itself
    2   the command line was not understood
    3   an image, prompt, checkpoint or bundle cannot be used
    4   something is missing here: a runtime, a device, the network
    5   a graph could not be exported, or differs from its model by more than the bar
    6   a result cannot be written, or standard output not
    7   a run is done, and pictures are without an answer
    8   a run was ended by --max-quarantine
    130 interrupted
    141 nobody reads standard output any more

Of several pictures the first that fails decides; the others are done all the same.
"""

from segship.cli.main import main

__all__ = ["main"]
