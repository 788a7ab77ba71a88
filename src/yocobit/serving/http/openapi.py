"""OpenAPI 3.1, generated from the endpoint table and the types of request bodies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from yocobit.serving.api.endpoints import Endpoint
from yocobit.version import __version__

_ERRORS = {
    "400": "The request is invalid.",
    "401": "The API key is missing or wrong.",
    "403": "The host name is not allowed.",
    "404": "The model does not exist.",
    "405": "The method is not allowed.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The body is not declared as JSON.",
    "429": "The queue is full; Retry-After says when to try again.",
    "500": "Internal server error; see the server's log.",
    "503": "The server is loading, draining, out of memory, or has too many connections.",
    "504": "The request exceeded the server's time limit.",
}
_GET_ERRORS = ("401", "403", "405", "500", "503")
_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def describe(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """Return the OpenAPI description of endpoints."""
    bodies = [endpoint.body for endpoint in endpoints if endpoint.body is not None]
    schemas, components = msgspec.json.schema_components(
        bodies, ref_template="#/components/schemas/{name}"
    )
    components["Error"] = _ERROR_SCHEMA
    by_body = dict(zip(bodies, schemas, strict=True))
    return {
        "openapi": "3.1.0",
        "info": {"title": "yocobit", "version": __version__},
        "paths": {endpoint.paths[0]: _path(endpoint, by_body) for endpoint in endpoints},
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _path(endpoint: Endpoint, schemas: dict[type, dict[str, Any]]) -> dict[str, Any]:
    path: dict[str, Any] = {endpoint.method.lower(): _operation(endpoint, schemas)}
    if "{id}" in endpoint.path:
        path["parameters"] = [
            {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
        ]
    return path


def _operation(endpoint: Endpoint, schemas: dict[type, dict[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {endpoint.content_type: {}}
    if endpoint.is_streamed:
        content = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}}
    operation: dict[str, Any] = {"summary": endpoint.summary}
    statuses = list(_GET_ERRORS)
    if endpoint.body is not None:
        schema = schemas[endpoint.body]
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
        statuses = list(_ERRORS)
    elif "{id}" in endpoint.path:
        statuses.append("404")
    if endpoint.is_public:
        operation["security"] = []
        statuses = [status for status in statuses if status not in ("401", "403")]
    ok = {"description": "The response; server-sent events if streamed.", "content": content}
    own = {
        str(status): {"description": description, "content": content}
        for status, description in endpoint.own_statuses.items()
    }
    operation["responses"] = {"200": ok, **{s: _error(s) for s in statuses}, **own}
    return operation


def _error(status: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {"description": _ERRORS[status], "content": content}
