"""Tools: functions that a client offers to the model, in chat templates and in grammars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from yocobit.serving import limits
from yocobit.serving.api.constraints import Constraint, Source
from yocobit.serving.api.protocol import Tool
from yocobit.serving.errors import APIError
from yocobit.serving.runtime.structured_output import Grammar


def constraint_of_calls(
    tools: Sequence[Tool], pointers: Sequence[str], is_array_allowed: bool
) -> Constraint:
    """Return the constraint of an output that is a bare call or, with `is_array_allowed`, an array.

    `pointers` are those of the parameters in the request. APIError 400 for parameters that nest
    too deep.
    """
    sources = [
        Source(pointer, bool(tool.function.strict), f"/$defs/tool_{i}")
        for i, (tool, pointer) in enumerate(zip(tools, pointers, strict=True))
    ]
    schema = schema_of_calls(tools, is_array_allowed)
    return Constraint("tools", Grammar.from_json("json", schema, "tools"), sources)


def schema_of_calls(tools: Sequence[Tool], is_array_allowed: bool = False) -> dict[str, Any]:
    """Return the JSON schema of a call or, with `is_array_allowed`, also of an array."""
    definitions: dict[str, Any] = {}
    calls: list[Any] = []
    for i, tool in enumerate(tools):
        try:
            parameters = tool.function.parameters or {}
            has_all_of = b'"allOf"' in msgspec.json.encode(parameters)
            parameters = _closed(parameters, True, closes_definitions=not has_all_of)
            definitions[f"tool_{i}"] = _embed(parameters, f"#/$defs/tool_{i}")
        except RecursionError:
            raise _too_deep(tool.function.name) from None
        calls.append(
            {
                "type": "object",
                "properties": {
                    "name": {"const": tool.function.name},
                    "arguments": {"$ref": f"#/$defs/tool_{i}"},
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    if is_array_allowed:
        items = {"anyOf": list(calls)}
        calls.append({"type": "array", "items": items, "minItems": 1, "maxItems": limits.TOOLS})
    return {"$defs": definitions, "anyOf": calls}


# Keywords with which an object's keys are not those of `properties` alone.
_OPEN = {
    "const",
    "enum",
    "additionalProperties",
    "patternProperties",
    "propertyNames",
    "unevaluatedProperties",
    "$ref",
    "allOf",
    "anyOf",
    "oneOf",
    "if",
    "dependentSchemas",
}


def _closed(schema: Any, is_outermost: bool = False, closes_definitions: bool = True) -> Any:
    """Return a schema whose objects have only the keys of their properties, unless it allows more.

    OpenAI: a function without `parameters` has no arguments. Definitions are unchanged if allOf may
    combine them.
    """
    if not isinstance(schema, dict):
        return schema

    def close(value: Any) -> Any:
        return _closed(value, closes_definitions=closes_definitions)

    closed: dict[str, Any] = {}
    for key, value in schema.items():
        if isinstance(value, dict) and (
            key == "properties" or (key in ("$defs", "definitions") and closes_definitions)
        ):
            closed[key] = {name: close(each) for name, each in value.items()}
        elif isinstance(value, list) and (
            key == "prefixItems" or (key in ("anyOf", "oneOf") and "properties" not in schema)
        ):
            closed[key] = [close(each) for each in value]
        else:
            closed[key] = close(value) if key == "items" else value
    if "type" not in schema and "$ref" not in schema and is_outermost:
        closed["type"] = "object"
    required, properties = schema.get("required"), schema.get("properties")
    names = required if isinstance(required, list) else []
    keys = properties if isinstance(properties, dict) else {}
    has_others = any(name not in keys for name in names if isinstance(name, str))
    if (properties is not None or is_outermost) and _OPEN.isdisjoint(schema) and not has_others:
        closed["additionalProperties"] = False
    return closed


# Keywords whose values are data, and keywords that map names to schemas.
_DATA_KEYWORDS = {"const", "enum", "default", "examples"}
_NAME_KEYWORDS = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}


def _embed(schema: Any, path: str) -> Any:
    """Return a schema with its local $refs rewritten for its new path within another schema.

    References by name ($id, $anchor) resolve unchanged.
    """
    if isinstance(schema, list):
        return [_embed(item, path) for item in schema]
    if not isinstance(schema, dict) or isinstance(schema.get("$id"), str):
        return schema
    embedded: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _NAME_KEYWORDS and isinstance(value, dict):
            embedded[key] = {name: _embed(each, path) for name, each in value.items()}
        else:
            embedded[key] = value if key in _DATA_KEYWORDS else _embed(value, path)
    reference = schema.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        embedded["$ref"] = path + reference[1:]
    return embedded


def to_template(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Return tools in the form of chat templates; APIError 400 if one is nested too deep."""
    found: list[dict[str, Any]] = []
    for tool in tools:
        try:
            builtins = msgspec.to_builtins(tool)
        except RecursionError:
            raise _too_deep(tool.function.name) from None
        function = {k: v for k, v in builtins["function"].items() if v is not None}
        found.append({**builtins, "function": function})
    return found


def _too_deep(name: str) -> APIError:
    return APIError(
        400,
        f"tools: the parameters of {name!r} are nested too deep; flatten them",
        param="tools",
    )
