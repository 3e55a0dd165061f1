# SPDX-License-Identifier: Apache-2.0
"""``python -m segship`` and the script ``segship`` are the command line."""

import signal


def main() -> int:
    """Run the command line and return its exit code; see `segship.cli`."""
    # Until modules are imported an interrupt ends the process as the system does it, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from segship.cli import main as run

    # What asks a process to end, too, so that it takes away what is half written.
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.default_int_handler)
    return run()


if __name__ == "__main__":
    raise SystemExit(main())
