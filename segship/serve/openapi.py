# SPDX-License-Identifier: Apache-2.0
"""The document of the routes (OpenAPI 3.1): of their table, and of the options classes that read the requests.

What options are called, what they take, their defaults and their descriptions are those of the classes; what is said of
a route is said at the method that answers it.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

import segship
from segship.options import read_help
from segship.promptable.everything.options import AmgOptions
from segship.serve.questions import NOT_ASKED, MapQuestion, MaskQuestion

if TYPE_CHECKING:
    from segship.serve.app import Row

Schema = dict[str, Any]

STATUSES = {
    400: "What is not HTTP, or a field of it, as it should be: `bad_request`, `bad_deadline`",
    401: "`missing_key`, `unknown_key`",
    403: "`forbidden_scope`; `foreign_origin` for pages of other places",
    404: "`unknown_image`, `unknown_model`, `not_found`",
    408: "`too_slow`: the head or the body of the request did not arrive in time",
    410: "`embedding_evicted`: the picture was forgotten, send it again",
    413: "`body_too_large`, `too_many_chunks`",
    415: "`encoded_body`: there is a Content-Encoding",
    421: "`unknown_host`: the Host field names no server of this place",
    422: "What cannot be used, with the code that Python's errors have, such as `point_outside` or `unknown_format`",
    429: "`rate_limited`",
    431: "`head_too_large`",
    500: "`internal`: a fault of the server's own",
    503: "`overloaded`, `starting`, `draining`, `worker_died`: Retry-After says when to ask again; `model_failed`: not",
    504: "`deadline_exceeded`",
}
_ALWAYS, _WITH_BODY, _OF_IMAGE = (400, 403, 408, 421, 431, 500, 503), (413, 415, 422, 504), (404, 410)
_KINDS = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}

_TEXT: Schema = {"type": "string"}
_WHOLE: Schema = {"type": "integer"}
_NUMBER: Schema = {"type": "number"}
_TRUTH: Schema = {"type": "boolean"}


def _list(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def _object(optional: Sequence[str] = (), /, **properties: Schema) -> Schema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}


def _named(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_PAIR, _BOX = _list(_NUMBER, minItems=2, maxItems=2), _list(_NUMBER, minItems=4, maxItems=4)
_RLE = _object(size=_list(_WHOLE, minItems=2, maxItems=2), counts=_TEXT)
_MILLISECONDS: Schema = {"type": "object", "additionalProperties": _NUMBER}
_NOTES = _list(_TEXT)
_COLOR = _list(_WHOLE, minItems=3, maxItems=3)
_LOGITS = _object(dtype={"const": "float32"}, shape=_list(_WHOLE), data={**_TEXT, "contentEncoding": "base64"})
_LIMIT: Schema = {
    "anyOf": [_object(name=_TEXT, accepted=_WHOLE, found={"type": ["integer", "null"]}), {"type": "null"}]
}
_ABOUT_ERRORS: dict[str, Schema] = {
    "code": {**_TEXT, "description": "The reason, which never changes; the same in Python and on the command line."},
    "kind": {"type": ["string", "null"], "description": "The error that Python raises for the same."},
    "request_id": _TEXT,
    "retryable": _TRUTH,
    "limit": _LIMIT,
}
_TENSOR = _object(
    ("parameters", "data"), name=_TEXT, shape=_list(_WHOLE), datatype=_TEXT, parameters={"type": "object"}, data={}
)
_TENSOR_ROW = _object(name=_TEXT, datatype=_TEXT, shape=_list(_WHOLE))
_VERSION: dict[str, Schema] = {"model_version": _TEXT}


def schema_of(hint: Any) -> Schema:
    """Return the schema of a type that options classes use.

    Examples
    --------
    >>> schema_of(bool | Literal["best", "auto"])
    {'anyOf': [{'type': 'boolean'}, {'enum': ['best', 'auto']}]}
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return {"anyOf": [schema_of(part) for part in parts]}
    if origin is Literal:
        return {"enum": list(parts)}
    if hint in _KINDS:
        return {"type": _KINDS[hint]}
    return {"type": "array"}


def options_schema(options_class: type, leave_out: Sequence[str] = ()) -> dict[str, Schema]:
    """Return the schema of each field of an options class, with its default and what its docstring says."""
    hints, helps, found = get_type_hints(options_class), read_help(options_class), {}
    for one in fields(options_class):
        if one.name not in leave_out:
            default = {} if one.default is MISSING else {"default": one.default}
            found[one.name] = {**schema_of(hints[one.name]), **default, "description": helps.get(one.name, "")}
    return found


def _prompt_parts(limits: dict[str, Any]) -> dict[str, Schema]:
    objects, points = limits["objects"], limits["points_per_object"]
    labels, one = _list(_WHOLE, maxItems=points), _list(_PAIR, maxItems=points)
    parts = {
        "points": ([one, _list(one, maxItems=objects)], "x y in pixels of the upright picture: (N, 2), or (B, N, 2)."),
        "labels": ([labels, _list(labels, maxItems=objects)], "1 foreground, 0 background; 1 where left out."),
        "boxes": ([_BOX, _list(_BOX, maxItems=objects)], "x0 y0 x1 y1 in the same pixels."),
        "mask_input": ([_named("Logits"), {"type": "array"}], "Logits of an earlier answer."),
    }
    return {name: {"anyOf": [*forms, {"type": "null"}], "description": text} for name, (forms, text) in parts.items()}


def _schemas(limits: dict[str, Any]) -> dict[str, Schema]:
    """Return the named parts of requests and answers."""
    parts, question = _prompt_parts(limits), options_schema(MaskQuestion)
    objects = _list(_object(tuple(parts), **parts), maxItems=limits["objects"])
    one_mask = _object(
        ("segmentation", "png", "polygons", "low_res_logits"),
        predicted_iou=_NUMBER,
        area=_WHOLE,
        bbox={**_list(_WHOLE, minItems=4, maxItems=4), "description": "x y width height."},
        segmentation=_RLE,
        png={**_TEXT, "contentEncoding": "base64", "contentMediaType": "image/png"},
        polygons=_list(_object(outer=_list(_PAIR), holes=_list(_list(_PAIR)))),
        low_res_logits=_named("Logits"),
    )
    return {
        "Logits": _LOGITS,
        "Error": _object(error=_object(message=_TEXT, **_ABOUT_ERRORS)),
        "PlainError": _object(error=_TEXT, **_ABOUT_ERRORS),
        "MaskQuestion": {
            **_object((*parts, *question, "objects"), **parts, objects=objects, **question),
            "additionalProperties": False,
        },
        "EverythingQuestion": {
            "type": "object",
            "properties": options_schema(AmgOptions, NOT_ASKED),
            "additionalProperties": False,
        },
        "Image": _object(
            ("cached", "milliseconds"),
            id=_TEXT,
            model=_TEXT,
            width=_WHOLE,
            height=_WHOLE,
            notes=_NOTES,
            expires_in=_NUMBER,
            cached=_TRUTH,
            milliseconds=_MILLISECONDS,
        ),
        "Masks": _object(
            ("id", "model"),
            id=_TEXT,
            model=_TEXT,
            width=_WHOLE,
            height=_WHOLE,
            objects=_list(_object(masks=_list(one_mask))),
            notes=_NOTES,
            milliseconds=_MILLISECONDS,
        ),
        "ClassMap": _class_map(),
        "Part": _part(),
        **_other_protocols(),
    }


def _class_map() -> Schema:
    row = _object(("segmentation",), id=_WHOLE, name=_TEXT, color=_COLOR, area=_WHOLE, share=_NUMBER, segmentation=_RLE)
    png = _object(png={**_TEXT, "contentEncoding": "base64", "contentMediaType": "image/png"})
    return _object(
        ("class_map",),
        model=_TEXT,
        width=_WHOLE,
        height=_WHOLE,
        classes=_list(row),
        class_map=png,
        notes=_NOTES,
        milliseconds=_MILLISECONDS,
    )


def _part() -> Schema:
    """Return the schema of one line of everything in a picture."""
    progress = _object(type={"const": "progress"}, points=_WHOLE, of=_WHOLE)
    record = _object(
        type={"const": "record"},
        index=_WHOLE,
        segmentation=_RLE,
        area=_WHOLE,
        bbox=_BOX,
        predicted_iou=_NUMBER,
        point_coords=_list(_PAIR),
        stability_score=_NUMBER,
        crop_box=_BOX,
    )
    end = _object(type={"const": "end"}, records=_WHOLE, notes=_NOTES, milliseconds=_MILLISECONDS)
    failure = _object(type={"const": "error"}, error=_object(message=_TEXT, **_ABOUT_ERRORS))
    return {"oneOf": [progress, record, end, failure]}


def _other_protocols() -> dict[str, Schema]:
    region = {"type": "object", "properties": {"type": _TEXT, "value": {"type": "object"}}}
    prediction = _object(**_VERSION, score=_NUMBER, result=_list(region))
    point_lists = {"pos_points": _list(_PAIR), "neg_points": _list(_PAIR), "obj_bbox": {}}
    return {
        "Models": _object(
            version=_TEXT,
            models=_list(
                _object(
                    name=_TEXT,
                    task={"enum": ["promptable", "semantic"]},
                    ready=_TRUTH,
                    failure={"type": ["string", "null"]},
                )
            ),
            limits={"type": "object"},
        ),
        "LabelStudioTasks": _object(
            ("label_config", "params"), tasks=_list({"type": "object"}), label_config=_TEXT, params={"type": "object"}
        ),
        "LabelStudioPredictions": _object(results=_list(prediction), **_VERSION),
        "CvatQuestion": _object(tuple(point_lists), image={**_TEXT, "contentEncoding": "base64"}, **point_lists),
        "CvatAnswer": _object(mask=_list(_list(_WHOLE)), points=_list(_PAIR), score=_NUMBER),
        "Graph": _object(name=_TEXT, platform=_TEXT, inputs=_list(_TENSOR_ROW), outputs=_list(_TENSOR_ROW)),
        "InferQuestion": _object(
            ("id", "parameters", "outputs"),
            id=_TEXT,
            parameters={"type": "object"},
            inputs=_list(_TENSOR),
            outputs=_list(_object(("parameters",), name=_TEXT, parameters={"type": "object"})),
        ),
        "InferAnswer": _object(("id",), model_name=_TEXT, id=_TEXT, outputs=_list(_TENSOR)),
    }


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


_PICTURE: Schema = {"description": "A picture's own bytes: JPEG, PNG, WebP, TIFF, GIF or BMP.", "required": True}
_PICTURE_BODY: Schema = {**_PICTURE, "content": {"application/octet-stream": {}, "image/*": {}}}
_STREAM: Schema = {"schema": {"$ref": "#/components/schemas/Part"}}
_HTML: Schema = {"text/html": {"schema": _TEXT}}


def _asked(name: str, *, required: bool = True) -> Schema:
    return {"required": required, "content": _json(_named(name))}


_BODIES: dict[str, Schema] = {
    "upload": _PICTURE_BODY,
    "segment": _PICTURE_BODY,
    "semantic": _PICTURE_BODY,
    "masks": _asked("MaskQuestion"),
    "everything": _asked("EverythingQuestion", required=False),
    "setup": {"content": _json({})},
    "predict": _asked("LabelStudioTasks"),
    "cvat": _asked("CvatQuestion"),
    "infer": {"required": True, "content": {**_json(_named("InferQuestion")), "application/octet-stream": {}}},
}
_ANSWERS: dict[str, Schema] = {
    "models": _json(_named("Models")),
    "upload": _json(_named("Image")),
    "image": _json(_named("Image")),
    "delete": _json(_object(deleted=_TRUTH)),
    "picture": {"image/png": {}, "image/jpeg": {}},
    "masks": _json(_named("Masks")),
    "segment": _json(_named("Masks")),
    "everything": {"application/x-ndjson": _STREAM, "text/event-stream": {"schema": _TEXT}},
    "semantic": _json(_named("ClassMap")),
    "setup": _json(_object(**_VERSION)),
    "predict": _json(_named("LabelStudioPredictions")),
    "health": _json(_object(status=_TEXT, model_class=_TEXT)),
    "cvat": _json(_named("CvatAnswer")),
    "live": _json(_object(live=_TRUTH)),
    "ready": _json(_object(ready=_TRUTH, failures=_list(_TEXT))),
    "metrics": {"text/plain": {"schema": _TEXT}},
    "openapi": _json({"type": "object"}),
    "tensors": _json(_object(name=_TEXT, version=_TEXT, extensions=_list(_TEXT), models=_list(_TEXT))),
    "graph": _json(_named("Graph")),
    "graph_ready": _json(_object(name=_TEXT, ready=_TRUTH)),
    "infer": {**_json(_named("InferAnswer")), "application/octet-stream": {}},
    "index": _HTML,
    "page": {"*/*": {}},
}
_LINKS = {
    name: {"operationId": name, "parameters": {"id": "$response.body#/id"}}
    for name in ("image", "delete", "picture", "masks", "everything")
}
_POINT = "x,y or x,y,label in pixels of the upright picture; may be there several times."
_QUERIES: dict[str, dict[str, Schema]] = {
    "upload": {},
    "cvat": {},
    "segment": {
        "point": {**_list(_TEXT), "description": _POINT},
        "box": {**_list(_TEXT), "description": "x0,y0,x1,y1 in the same pixels; may be there several times."},
        "prompts": {**_TEXT, "description": "Instead of these, JSON as for POST /v1/images/{id}/masks."},
        **options_schema(MaskQuestion),
    },
    "semantic": options_schema(MapQuestion),
}
_DEADLINE = "Segship-Deadline"
_NO_MODEL = "Name of a model of GET /v1/models; the first that can do it when left out."


def _parameters(row: Row, most_deadline: float, graphs: Sequence[str]) -> list[Schema]:
    forms = {"id": _TEXT, "file": _TEXT, "model": {"enum": list(graphs)} if graphs else _TEXT}
    found: list[Schema] = [
        {"name": name, "in": "path", "required": True, "schema": form}
        for name, form in forms.items()
        if f"{{{name}}}" in row.path
    ]
    query = _QUERIES.get(row.name)
    if query is not None:
        query = {"model": {**_TEXT, "description": _NO_MODEL}, **query}
        for name, schema in query.items():
            form = {key: value for key, value in schema.items() if key != "description"}
            found.append({"name": name, "in": "query", "schema": form, "description": schema["description"]})
    if row.name in (*_BODIES, "picture") and row.name != "setup":
        deadline: Schema = {"type": "number", "exclusiveMinimum": 0, "maximum": most_deadline}
        text = "Seconds after which an answer is of no use."
        found.append({"name": _DEADLINE, "in": "header", "schema": deadline, "description": text})
    if row.name == "infer":
        text = "How many bytes of the body are JSON, where binary tensors follow it."
        field: Schema = {"name": "Inference-Header-Content-Length", "in": "header", "schema": _WHOLE}
        found.append({**field, "description": text})
    return found


def _responses(row: Row, is_plain: bool) -> dict[str, Schema]:
    statuses = {*_ALWAYS, *(_WITH_BODY if row.name in _BODIES else ()), *((401, 429) if row.scope else ())}
    if "{id}" in row.path or row.name in (*_QUERIES, "predict"):
        statuses |= {*_OF_IMAGE, *((422, 504) if row.name == "picture" else ())}
    elif "{" in row.path or row.name == "setup":
        statuses.add(404)
    kind = "Plain" if is_plain else ""
    refused: dict[str, Schema] = {
        str(status): {"$ref": f"#/components/responses/{kind}{status}"} for status in sorted(statuses)
    }
    if row.name in ("ready", "graph_ready"):
        refused["503"] = {"description": "Not yet, or not any more.", "content": _ANSWERS[row.name]}
    links = {"links": _LINKS} if row.name == "upload" else {}
    return {"200": {"description": "What was asked for.", "content": _ANSWERS[row.name], **links}, **refused}


def make_document(
    rows: Sequence[Row],
    answers: type,
    limits: dict[str, Any],
    *,
    has_keys: bool,
    most_deadline: float,
    graphs: Sequence[str] = (),
    plain: Sequence[Row] = (),
) -> dict[str, Any]:
    """Return the document of a server.

    Parameters
    ----------
    rows
        Its routes.
    answers
        The class whose methods answer them.
    limits
        Every limit by its name; all of them stand in it under ``x-limits``.
    has_keys
        Whether a key is needed.
    most_deadline
        The longest that a client may name, in seconds.
    graphs
        Names of single graphs.
    plain
        Routes whose errors have text as ``error``.
    """
    paths: dict[str, dict[str, Any]] = {}
    for row in rows:
        about = inspect.getdoc(getattr(answers, row.name)) or ""
        operation: dict[str, Any] = {
            "operationId": row.name,
            "summary": about.splitlines()[0],
            "parameters": _parameters(row, most_deadline, graphs),
            "responses": _responses(row, row in plain),
        }
        if row.name in _BODIES:
            operation["requestBody"] = _BODIES[row.name]
        if row.scope is None or not has_keys:
            operation["security"] = []
        paths.setdefault(row.path, {})[row.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "segship serve",
            "version": segship.__version__,
            "summary": "Masks over HTTP: a picture is encoded once, and clicks are answered in milliseconds.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": _schemas(limits), "responses": _refusals(), "securitySchemes": _KEYS},
        "security": [{"bearer": []}, {"header": []}, {"password": []}],
        "x-limits": limits,
    }


_KEYS: dict[str, Schema] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "password": {"type": "http", "scheme": "basic", "description": "The key is the password, of any user."},
}


def _refusals() -> dict[str, Schema]:
    again = {"Retry-After": {"schema": _WHOLE, "description": "Seconds."}}
    found = {}
    for status, text in STATUSES.items():
        for kind in ("", "Plain"):
            one: Schema = {"description": f"{text}.", "content": _json(_named(f"{kind}Error"))}
            found[f"{kind}{status}"] = {**one, **({"headers": again} if status in (429, 503) else {})}
    return found
