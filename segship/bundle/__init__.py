# SPDX-License-Identifier: Apache-2.0
"""Read, check and write bundles: the folder that the ship road hands to the use road, whole or refused.

A bundle holds ``manifest.json``, the graphs that it names, and at most one sidecar of weights a graph; nothing else, no
folders, no links. File names are fixed, so nothing in a manifest or in a graph can point elsewhere. Every byte of a
graph is compared with its digest before a runtime sees it.
"""

from segship.bundle.folder import Bundle, write_bundle

__all__ = ["Bundle", "write_bundle"]
