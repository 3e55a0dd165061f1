# SPDX-License-Identifier: Apache-2.0
"""Python reads this at its start: pictures with a certain text then end the process, as a broken decoder would."""

import os
import signal

from segship.run import work

_read = work.read_image


def read_image(data, **how):
    if isinstance(data, bytes) and b"deadly" in data:
        os.kill(os.getpid(), signal.SIGSEGV)
    return _read(data, **how)


work.read_image = read_image
