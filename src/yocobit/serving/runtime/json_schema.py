"""JSON schemas without the keywords that llguidance cannot enforce.

Most of these keywords are listed in a table. Others cannot be enforced with certain values only,
such as a pattern with a lookahead: llguidance's error message selects the rule that drops them.
Dropping a keyword only widens a schema. Dropped keywords are named by JSON pointers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from llguidance import LLMatcher

Schema = dict[str, Any]

# Keywords whose values are a schema, a list of schemas, or schemas by name.
_ONE = {"items", "additionalItems", "additionalProperties"}
_LIST = {"items", "prefixItems", "anyOf", "oneOf", "allOf"}
_NAMED = {"properties", "patternProperties", "$defs", "definitions"}

# Keywords that llguidance does not implement.
UNSUPPORTED = {
    "uniqueItems",
    "contains",
    "minContains",
    "maxContains",
    "unevaluatedItems",
    "unevaluatedProperties",
    "propertyNames",
    "dependentRequired",
    "dependentSchemas",
    "dependencies",
    "not",
    "if",
    "contentSchema",
    "$dynamicRef",
    "$recursiveRef",
}
# Keywords without an effect of their own; "$schema" would only change how others are spelled.
_WITHOUT_EFFECT = {
    "$schema",
    "$vocabulary",
    "$dynamicAnchor",
    "$recursiveAnchor",
    "deprecated",
    "then",
    "else",
    "x-guidance",  # llguidance's extension, which could set separators that JSON does not have
}
# Values with which an unsupported keyword has no effect.
_TRIVIAL: Mapping[str, tuple[Any, ...]] = {
    "uniqueItems": (False,),
    "propertyNames": (True, {}, {"type": "string"}),
    "unevaluatedItems": (True, {}),
    "unevaluatedProperties": (True, {}),
    "contentSchema": (True, {}),
}
FORMATS = {
    "date-time",
    "time",
    "date",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "uuid",
    "uri",
}
# Formats by which zod names what it also writes as a pattern.
_PATTERN_FORMATS = {
    "base64",
    "base64url",
    "cidrv4",
    "cidrv6",
    "cuid",
    "cuid2",
    "e164",
    "emoji",
    "ends_with",
    "includes",
    "lowercase",
    "nanoid",
    "starts_with",
    "ulid",
    "uppercase",
}
_UUID = re.compile(r"uuid([1-8])")  # pydantic's formats of a UUID's versions
_HEX = "[0-9a-fA-F]"
_MAX_DEPTH = 8  # of schemas that are compared, and of references to references


def enforceable(schema: Schema) -> tuple[Schema, list[str]]:
    """Return a schema without the keywords in the table, and the pointers of those dropped.

    RecursionError if it nests too deep.
    """
    return _rewrite(schema, _without_unsupported)


def relaxed(schema: Schema, error: str) -> tuple[Schema, list[str]]:
    """Return a schema without the kind of keywords that llguidance's error concerns.

    Also returns the pointers of the dropped keywords: none if the schema is invalid.
    """
    for text, rule in _RULES.items():
        if text in error:
            return _rewrite(schema, rule(schema, error))
    return _rewrite(schema, _Patterns())


# A rule returns a schema without some of its own keywords, and appends these.
_Rule = Callable[[Schema, list[str]], Schema]


def _rewrite(schema: Schema, rule: _Rule) -> tuple[Schema, list[str]]:
    """Return a schema with a rule applied to each of its subschemas, and pointers of its drops."""
    dropped: list[str] = []

    def visit(value: Any, path: str) -> Any:
        if not isinstance(value, dict):
            return value
        names: list[str] = []
        value = rule(value, names)
        dropped.extend(f"{path}/{_escaped(name)}" for name in names)
        return {
            key: visit_keyword(key, each, f"{path}/{_escaped(key)}") for key, each in value.items()
        }

    def visit_keyword(key: str, value: Any, path: str) -> Any:
        if key in _LIST and isinstance(value, list):
            return [visit(each, f"{path}/{i}") for i, each in enumerate(value)]
        if key in _NAMED and isinstance(value, dict):
            return {name: visit(each, f"{path}/{_escaped(name)}") for name, each in value.items()}
        return visit(value, path) if key in _ONE else value

    return visit(schema, ""), dropped


def _escaped(name: str) -> str:
    """Return a name as part of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def _without_unsupported(schema: Schema, names: list[str]) -> Schema:
    """Drop the keywords and formats that the tables list as unsupported."""
    schema, kept = _with_listed_names(schema), {}
    for key, value in schema.items():
        if key in UNSUPPORTED and value not in _TRIVIAL.get(key, ()):
            names.append(key)
        elif key not in UNSUPPORTED and key not in _WITHOUT_EFFECT:
            kept[key] = value
    name, types = kept.get("format"), _types(kept)
    if types and "string" not in types:
        return kept  # formats of numbers have no effect
    if isinstance(name, str) and name not in FORMATS:
        del kept["format"]
        if (version := _UUID.fullmatch(name)) and "pattern" not in kept:
            kept["pattern"] = (
                f"^{_HEX}{{8}}-{_HEX}{{4}}-{version[1]}{_HEX}{{3}}-[89abAB]{_HEX}{{3}}-{_HEX}{{12}}$"
            )
        elif name not in _PATTERN_FORMATS or "pattern" not in kept:
            names.append("format")
    return kept


def _with_listed_names(schema: Schema) -> Schema:
    """Express propertyNames, if they are an enum or a pattern, by supported keywords."""
    names, others = schema.get("propertyNames"), ("properties", "patternProperties")
    if not isinstance(names, dict) or any(key in schema for key in others):
        return schema
    restrictions = {key: value for key, value in names.items() if key != "type"}
    value = schema.get("additionalProperties", True)
    listed, pattern = _texts(restrictions), restrictions.get("pattern")
    if len(restrictions) != 1 or (listed is None and not isinstance(pattern, str)):
        return schema
    kept = {key: each for key, each in schema.items() if key != "propertyNames"}
    if listed is None:
        return {**kept, "patternProperties": {pattern: value}, "additionalProperties": False}
    named = dict.fromkeys(dict.fromkeys(restrictions.get("enum", listed)), value)
    return {**kept, "properties": named, "additionalProperties": False}


def _one_of(root: Schema, error: str) -> _Rule:
    """Replace oneOf by anyOf; it counts as dropped unless the alternatives exclude each other."""

    def rule(schema: Schema, names: list[str]) -> Schema:
        options = schema.get("oneOf")
        if not isinstance(options, list):
            return schema
        if any(
            not _are_disjoint(root, a, b) for i, a in enumerate(options) for b in options[i + 1 :]
        ):
            names.append("oneOf")
        if "anyOf" not in schema:
            return {"anyOf" if key == "oneOf" else key: each for key, each in schema.items()}
        kept = {key: each for key, each in schema.items() if key != "oneOf"}
        return {**kept, "allOf": [*_array(kept, "allOf"), {"anyOf": options}]}

    return rule


def _property_counts(root: Schema, error: str) -> _Rule:
    """Drop limits on the number of properties from objects with optional properties."""

    def rule(schema: Schema, names: list[str]) -> Schema:
        required = _array(schema, "required")
        if all(name in required for name in _object(schema, "properties")):
            return schema
        return _without(schema, ("minProperties", "maxProperties"), names)

    return rule


def _pattern_properties(root: Schema, error: str) -> _Rule:
    """Drop several patterns of names, which may overlap, and additionalProperties with them."""

    def rule(schema: Schema, names: list[str]) -> Schema:
        if len(_object(schema, "patternProperties")) < 2:
            return schema
        return _without(schema, ("patternProperties", "additionalProperties"), names)

    return rule


def _remote_references(root: Schema, error: str) -> _Rule:
    """Drop references to another document, which is not loaded."""

    def rule(schema: Schema, names: list[str]) -> Schema:
        reference = schema.get("$ref")
        if isinstance(reference, str) and f"{reference.partition('#')[0]}'" in error:
            return _without(schema, ("$ref",), names)
        return schema

    return rule


# Rules for keywords that depend on their values, by a part of llguidance's error message.
_RULES: Mapping[str, Callable[[Schema, str], _Rule]] = {
    "oneOf constraints are not supported": _one_of,
    "min/maxProperties only supported": _property_counts,
    "patternProperty regexes": _pattern_properties,
    "is not present in a registry": _remote_references,
}


# Parts of llguidance's error messages about ECMAScript syntax that its own patterns lack.
_DIALECT_ERRORS = ("not supported", "property not found", "unrecognized escape")


class _Patterns:
    """The rule that drops patterns of other dialects than llguidance's."""

    def __init__(self) -> None:
        self._is_supported: dict[str, bool] = {}

    def __call__(self, schema: Schema, names: list[str]) -> Schema:
        pattern, named = schema.get("pattern"), schema.get("patternProperties")
        if isinstance(pattern, str) and not self._supports(pattern):
            schema = _without(schema, ("pattern",), names)
        if isinstance(named, dict) and not all(map(self._supports, named)):
            schema = _without(schema, ("patternProperties", "additionalProperties"), names)
        return schema

    def _supports(self, pattern: str) -> bool:
        """Return False for a pattern that is valid, but not in llguidance's dialect."""
        if pattern not in self._is_supported:
            schema = json.dumps({"type": "string", "pattern": pattern})
            grammar = LLMatcher.grammar_from_json_schema(schema)
            error = LLMatcher.validate_grammar(grammar)
            self._is_supported[pattern] = not error or not _is_of_another_dialect(pattern, error)
        return self._is_supported[pattern]


def _is_of_another_dialect(pattern: str, error: str) -> bool:
    """Return whether a pattern that llguidance rejects is valid in another dialect."""
    if any(text in error for text in _DIALECT_ERRORS):
        return True
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _without(schema: Schema, keywords: tuple[str, ...], names: list[str]) -> Schema:
    names += [key for key in keywords if key in schema]
    return {key: value for key, value in schema.items() if key not in keywords}


def _are_disjoint(root: Schema, a: Any, b: Any, depth: int = 0) -> bool:
    """Return whether certainly no value satisfies both schemas."""
    a, b = _resolved(root, a), _resolved(root, b)
    if not isinstance(a, dict) or not isinstance(b, dict) or depth == _MAX_DEPTH:
        return a is False or b is False
    texts_a, texts_b = _texts(a), _texts(b)
    if texts_a is not None and texts_b is not None:
        return not texts_a & texts_b
    types_a, types_b = _types(a), _types(b)
    if types_a and types_b and not types_a & types_b:
        return True
    properties_a, properties_b = _object(a, "properties"), _object(b, "properties")
    required = [*_array(a, "required"), *_array(b, "required")]
    return types_a == types_b == {"object"} and any(
        _are_disjoint(root, properties_a[name], properties_b[name], depth + 1)
        for name in properties_a
        if name in properties_b and name in required
    )


def _resolved(root: Schema, schema: Any) -> Any:
    """Return the definition that a local reference names; any other schema unchanged."""
    for _ in range(_MAX_DEPTH):
        reference = schema.get("$ref") if isinstance(schema, dict) else None
        if not isinstance(reference, str) or not reference.startswith("#/"):
            break
        schema = root
        for part in reference[2:].split("/"):
            schema = schema.get(part) if isinstance(schema, dict) else None
    return schema


def _texts(schema: Schema) -> set[str] | None:
    """Return the values of const or enum if all are strings; None if they are not."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
        return None
    return set(values)


def _types(schema: Schema) -> set[str]:
    """Return the types that a schema allows; empty without `type`."""
    types = schema.get("type", [])
    names = {each for each in (types if isinstance(types, list) else [types]) if type(each) is str}
    return {"number" if name == "integer" else name for name in names}


def _object(schema: Schema, key: str) -> dict[str, Any]:
    value = schema.get(key)
    return value if isinstance(value, dict) else {}


def _array(schema: Schema, key: str) -> list[Any]:
    value = schema.get(key)
    return value if isinstance(value, list) else []
