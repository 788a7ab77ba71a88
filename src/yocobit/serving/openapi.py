"""The OpenAPI description of the endpoints, made from the types that requests are read into."""

from __future__ import annotations

from typing import Any

import msgspec

from yocobit import __version__
from yocobit.serving import protocol

_BODIES = {
    "/chat/completions": (protocol.ChatRequest, "Answer a conversation."),
    "/completions": (protocol.CompletionRequest, "Continue a text."),
    "/tokenize": (protocol.TokenizeRequest, "Turn text into tokens."),
    "/detokenize": (protocol.DetokenizeRequest, "Turn tokens into text."),
}
_ERRORS = {
    "400": "The request cannot be served as it is.",
    "401": "The API key is missing or wrong.",
    "404": "There is no such model.",
    "413": "The body is too large.",
    "415": "The body is not declared as JSON.",
    "429": "Too many requests wait; Retry-After says when to come again.",
    "503": "The server is loading, draining or out of memory.",
    "504": "The answer took longer than the server allows.",
}
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


def describe() -> dict[str, Any]:
    """Return the description, OpenAPI 3.1."""
    kinds = [kind for kind, _ in _BODIES.values()]
    schemas, components = msgspec.json.schema_components(
        kinds, ref_template="#/components/schemas/{name}"
    )
    components["Error"] = _ERROR_SCHEMA
    paths: dict[str, Any] = {}
    for (path, (_, summary)), schema in zip(_BODIES.items(), schemas, strict=True):
        paths[f"/v1{path}"] = {"post": _post(summary, schema)}
    paths["/v1/models"] = {"get": _get("List the models.")}
    paths["/health"] = {"get": _get("Say whether requests are taken.", errors=("503",))}
    paths["/metrics"] = {"get": _get("Counts for Prometheus.", "text/plain", errors=("401",))}
    return {
        "openapi": "3.1.0",
        "info": {"title": "yocobit", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _post(summary: str, schema: dict[str, Any]) -> dict[str, Any]:
    ok = {"description": "The answer; events if it is streamed.", "content": _any_of_both()}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {"200": ok, **{status: _error(status) for status in _ERRORS}},
    }


def _get(
    summary: str, content: str = "application/json", errors: tuple[str, ...] = ("401", "503")
) -> dict[str, Any]:
    ok = {"description": "The answer.", "content": {content: {}}}
    return {"summary": summary, "responses": {"200": ok, **{e: _error(e) for e in errors}}}


def _any_of_both() -> dict[str, Any]:
    return {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}}


def _error(status: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {"description": _ERRORS[status], "content": content}
