"""The OpenAPI description of the endpoints, made from the types that requests are read into."""

from __future__ import annotations

from typing import Any

import msgspec

from yocobit.serving import protocol
from yocobit.version import __version__

_BODIES = {
    "/chat/completions": (protocol.ChatRequest, "Answer a conversation."),
    "/completions": (protocol.CompletionRequest, "Continue a text."),
    "/tokenize": (protocol.TokenizeRequest, "Turn text into tokens."),
    "/detokenize": (protocol.DetokenizeRequest, "Turn tokens into text."),
}
_ERRORS = {
    "400": "The request cannot be served as it is.",
    "401": "The API key is missing or wrong.",
    "403": "The server is not called by that name.",
    "404": "There is no such model.",
    "405": "The method is not offered here.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The body is not declared as JSON.",
    "429": "Too many requests wait; Retry-After says when to come again.",
    "500": "The server failed; its log says more.",
    "503": "The server is loading, draining, out of memory, or has too many connections.",
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
    paths["/v1/models/{id}"] = {"get": _get("Describe a model.", more_errors=("404",))}
    paths["/v1/models/{id}"]["parameters"] = [
        {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    ]
    paths["/v1/tokenizer_info"] = {"get": _get("Describe the tokenizer.")}
    paths["/health"] = {"get": _health()}
    paths["/metrics"] = {"get": _get("Counts for Prometheus.", "text/plain")}
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
    summary: str, content: str = "application/json", more_errors: tuple[str, ...] = ()
) -> dict[str, Any]:
    ok = {"description": "The answer.", "content": {content: {}}}
    errors = ("401", "403", "405", "500", "503", *more_errors)
    return {"summary": summary, "responses": {"200": ok, **{e: _error(e) for e in errors}}}


def _health() -> dict[str, Any]:
    content = {"application/json": {"schema": {"type": "object", "required": ["status"]}}}
    return {
        "summary": "Say whether requests are taken.",
        "security": [],
        "responses": {
            "200": {"description": "They are.", "content": content},
            "503": {"description": "Not now; status says why.", "content": content},
        },
    }


def _any_of_both() -> dict[str, Any]:
    return {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}}


def _error(status: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {"description": _ERRORS[status], "content": content}
