# SPDX-License-Identifier: Apache-2.0
"""Masks over HTTP and in a page, for many people at once; needs the extra ``serve``.

    HTTP  protocol     bytes of a connection within limits of size and time
          door         host, origin, key, rate; headers of every answer; metrics and log
          tasks, page  routes: what is asked becomes jobs of lanes
          lanes        queues with seats, deadlines and back-pressure; one encode for one picture
          cache        embeddings in files, bounded in bytes
          workers      processes that are started, asked and started anew
    ----- wire         what the processes say to each other: JSON, bytes, and arrays in files
          worker       a worker's side: reads a picture, encodes, decodes, finds everything, segments classes

The server itself reads no picture and runs no model: pictures are decoded in a process with limits, encoding and
everything run in one of low priority, clicks in a third. Nothing but the wire lies between them, so that each may die.
"""

from segship.serve.options import ServeOptions
from segship.serve.server import serve

__all__ = ["ServeOptions", "serve"]
