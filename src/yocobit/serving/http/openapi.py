"""OpenAPI 3.1, generated from the endpoint table and the types of request bodies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from yocobit.serving.api.endpoints import Endpoint
from yocobit.serving.api.wire import WireFormat
from yocobit.version import __version__

_ERRORS = {
    "400": "The request is invalid.",
    "401": "The API key is missing or wrong.",
    "403": "The host name is not allowed.",
    "404": "The model, or the stored response, does not exist.",
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


def describe(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """Return the OpenAPI description of endpoints."""
    bodies = [endpoint.body for endpoint in endpoints if endpoint.body is not None]
    schemas, components = msgspec.json.schema_components(
        bodies, ref_template="#/components/schemas/{name}"
    )
    components |= {e.wire.error_name: dict(e.wire.error_schema) for e in endpoints}
    by_body = dict(zip(bodies, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.paths[0], {}).update(_path(endpoint, by_body))
    return {
        "openapi": "3.1.0",
        "info": {"title": "yocobit", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{}, {"key": []}, {"x-api-key": []}],
    }


def _path(endpoint: Endpoint, schemas: dict[type, dict[str, Any]]) -> dict[str, Any]:
    path: dict[str, Any] = {endpoint.method.lower(): _operation(endpoint, schemas)}
    if "{id}" in endpoint.path:
        path["parameters"] = [_parameter("id", "path", {"type": "string"})]
    return path


def _parameter(name: str, place: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "schema": schema}


def _operation(endpoint: Endpoint, schemas: dict[type, dict[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {endpoint.content_type: {}}
    if endpoint.is_streamed:
        content = {
            "application/json": {"schema": {"type": "object"}},
            endpoint.wire.stream_type: {},
        }
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
    if endpoint.query is not None:
        statuses.append("400")
        _, found = msgspec.json.schema_components([endpoint.query])
        fields = found[endpoint.query.__name__]["properties"]
        operation["parameters"] = [_parameter(name, "query", fields[name]) for name in fields]
    if endpoint.is_public:
        operation["security"] = []
        statuses = [status for status in statuses if status not in ("401", "403")]
    description = "The response; events if streamed." if endpoint.is_streamed else "The response."
    ok = {"description": description, "content": content}
    own = {
        str(status): {"description": description, "content": content}
        for status, description in endpoint.own_statuses.items()
    }
    operation["responses"] = {"200": ok, **{s: _error(s, endpoint.wire) for s in statuses}, **own}
    return operation


def _error(status: str, wire: WireFormat) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{wire.error_name}"}
    return {"description": _ERRORS[status], "content": {"application/json": {"schema": schema}}}
