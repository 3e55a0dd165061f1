# SPDX-License-Identifier: Apache-2.0
"""A serverless function of CVAT that asks `segship serve`; function.yaml beside it says where that is."""

import json
import os
import urllib.error
import urllib.request


def init_context(context):
    """Nothing is loaded here: the model is the server's."""


def handler(context, event):
    """Pass on what CVAT asks an interactor, and what the server answers: a mask, or why there is none."""
    # Over the network of functions the body comes as JSON that has been read.
    body = event.body if isinstance(event.body, bytes) else json.dumps(event.body).encode()
    fields = {"Content-Type": "application/json", "X-API-Key": os.environ.get("SEGSHIP_KEY", "")}
    request = urllib.request.Request(os.environ["SEGSHIP_ADDRESS"] + "/cvat/interactor", body, fields)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            status, text = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            status, text = error.code, error.read()
    return context.Response(body=text.decode(), headers={}, content_type="application/json", status_code=status)
