# SPDX-License-Identifier: Apache-2.0
"""Published checkpoints onto this machine: from the cache, the network, a mirror or a file that the user has.

Only the files of `segship.catalog` are fetched, and a file gets its name only when its size and SHA-256 are the
published ones. Nothing is unpickled here.
"""

from segship.fetch.fetching import checkpoint_path, fetch_checkpoint

__all__ = ["checkpoint_path", "fetch_checkpoint"]
