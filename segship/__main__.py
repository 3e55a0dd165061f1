# SPDX-License-Identifier: Apache-2.0
"""``python -m segship`` is the command line."""

from segship.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
