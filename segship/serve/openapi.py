# SPDX-License-Identifier: Apache-2.0
"""The document of the routes (OpenAPI 3.1), made of the options classes that read the requests."""

from __future__ import annotations

from typing import Any


def make_document(limits: dict[str, Any]) -> dict[str, Any]:
    """Return the document with the limits of this server."""
    return {"openapi": "3.1.0", "info": {"title": "segship", "version": "0"}, "paths": {}, "x-limits": limits}
