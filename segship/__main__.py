# SPDX-License-Identifier: Apache-2.0
"""``python -m segship`` is the command line."""

from segship.cli import main

raise SystemExit(main())
