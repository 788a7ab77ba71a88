"""JSON schemas as pydantic and zod write them: what cannot be enforced is dropped and named."""

from __future__ import annotations

import datetime
import decimal
import ipaddress
import json
import pathlib
import re
import uuid
from typing import Any, Literal

import jsonschema_rs
import pydantic
import pytest
from pydantic import UUID1, UUID4, AnyUrl, BaseModel, Field, Json, SecretStr

from yocobit import Engine
from yocobit.serving.errors import APIError
from yocobit.serving.runtime.json_schema import FORMATS, UNSUPPORTED, enforceable
from yocobit.serving.runtime.structured_output import CheckedGrammar, Grammar, GrammarCompiler


@pytest.fixture(scope="module")
def grammars() -> GrammarCompiler:
    return GrammarCompiler(Engine.load(threads=1))


def check(grammars: GrammarCompiler, schema: Any) -> CheckedGrammar:
    return grammars.check(Grammar.from_json("json", schema, "schema"), "schema", 4000)


def shortest(grammars: GrammarCompiler, schema: Any) -> Any:
    """Return the shortest output for a schema."""
    tokens = check(grammars, schema).shortest or []
    return json.loads(b"".join(map(grammars.token_bytes, tokens)))


def dropped(grammars: GrammarCompiler, schema: Any) -> list[str]:
    return sorted(check(grammars, schema).dropped)


def accepts(grammars: GrammarCompiler, schema: Any, value: Any) -> bool:
    """Return whether the part of a schema that is enforced accepts a value."""
    make = grammars.compile(Grammar.from_json("json", schema, "schema"), "schema", 4000)
    tokens = grammars._tokenizer.tokenize_str(json.dumps(value, separators=(",", ":")))
    return grammars.completions.completes(make()._matcher, tokens)


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str


class Everything(BaseModel):
    tags: set[str] = Field(min_length=1)
    ids: frozenset[int]
    price: decimal.Decimal
    path: pathlib.Path
    id: uuid.UUID
    fourth: UUID4
    first: UUID1 | None
    when: datetime.datetime
    day: datetime.date
    at: datetime.time
    lasting: datetime.timedelta
    url: AnyUrl
    address: ipaddress.IPv4Address
    secret: SecretStr
    data: bytes
    text: Json[list[int]]
    counts: dict[str, int]
    named: dict[Literal["a", "b"], int]
    anything: Any
    pair: tuple[int, str]
    pet: Cat | Dog = Field(discriminator="kind")
    share: float = Field(gt=0, lt=1)
    word: str = Field(pattern=r"^\w+$", min_length=2)


def test_schema_of_pydantic_is_enforced_except_for_the_dropped_keywords(grammars):
    schema = Everything.model_json_schema()

    output = shortest(grammars, schema)

    assert dropped(grammars, schema) == [
        "/properties/data/format",
        "/properties/ids/uniqueItems",
        "/properties/path/format",
        "/properties/secret/format",
        "/properties/tags/uniqueItems",
        "/properties/text/contentSchema",
    ]
    jsonschema_rs.validate(schema, output)
    with pytest.raises(pydantic.ValidationError) as caught:  # of the field whose keyword is lost
        Everything.model_validate(output)
    # Decimals may be any text, and Python has no year 0.
    assert {error["loc"][0] for error in caught.value.errors()} <= {"text", "price", "when", "day"}


# As zod 4's toJSONSchema writes them.
UUID_PATTERN = (
    "^([0-9a-fA-F]{8}-[0-9a-fA-F]{4}-4[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12})$"
)
ZOD: dict[str, tuple[Any, list[str]]] = {
    "record": (
        {
            "type": "object",
            "propertyNames": {"type": "string"},
            "additionalProperties": {"type": "number"},
        },
        [],
    ),
    "record of an enum": (
        {
            "type": "object",
            "propertyNames": {"type": "string", "enum": ["a", "b"]},
            "additionalProperties": {"type": "boolean"},
            "required": ["a", "b"],
        },
        [],
    ),
    "uuidv4": ({"type": "string", "format": "uuid", "pattern": UUID_PATTERN}, []),
    "base64": (
        {
            "type": "string",
            "format": "base64",
            "contentEncoding": "base64",
            "pattern": "^$|^(?:[0-9a-zA-Z+/]{4})*(?:(?:[0-9a-zA-Z+/]{2}==)|"
            "(?:[0-9a-zA-Z+/]{3}=))?$",
        },
        [],
    ),
    "jwt": ({"type": "string", "format": "jwt"}, ["/format"]),
    "emoji": (
        {
            "type": "string",
            "format": "emoji",
            "pattern": "^(?=[\\s\\S]*[\\p{Extended_Pictographic}\\p{Regional_Indicator}\\u20E3])"
            "[\\p{Extended_Pictographic}\\p{Emoji_Component}]+$",
        },
        ["/pattern"],
    ),
    "regex": ({"type": "string", "pattern": "^(?!x)[a-z]+$"}, ["/pattern"]),
    "discriminated union": (
        {
            "oneOf": [
                {
                    "type": "object",
                    "properties": {"k": {"type": "string", "const": k}},
                    "required": ["k"],
                    "additionalProperties": False,
                }
                for k in "ab"
            ]
        },
        [],
    ),
    "tuple": (
        {
            "type": "array",
            "prefixItems": [{"type": "string"}, {"type": "number"}],
            "items": False,
            "minItems": 2,
            "maxItems": 2,
        },
        [],
    ),
}


@pytest.mark.parametrize("name", ZOD)
def test_schema_of_zod_is_enforced_except_for_the_dropped_keywords(grammars, name):
    inner, expected = ZOD[name]
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {"a": inner},
        "required": ["a"],
        "additionalProperties": False,
    }

    output = shortest(grammars, schema)

    assert dropped(grammars, schema) == [f"/properties/a{pointer}" for pointer in expected]
    if not expected:
        jsonschema_rs.validate(schema, output)
    assert output.keys() == {"a"}


MAIL = (
    "^(?:[A-Za-z0-9_'+\\-]+\\.)*[A-Za-z0-9_'+\\-]*[A-Za-z0-9_+-]@"
    "(?:[A-Za-z0-9][A-Za-z0-9\\-]*\\.)+[A-Za-z]{2,}$"
)


def test_output_with_many_times_and_addresses_is_found(grammars):
    fields: dict[str, Any] = {
        **{f"mail_{i}": {"type": "string", "format": "email", "pattern": MAIL} for i in range(8)},
        **{name: {"type": "string", "format": name} for name in sorted(FORMATS)},
        "host": {"type": "string", "format": "hostname", "minLength": 5},
    }
    schema = {"type": "object", "properties": fields, "required": list(fields)}

    jsonschema_rs.validate(schema, shortest(grammars, schema), validate_formats=True)


@pytest.mark.parametrize(
    "uri",
    [
        "http://json-schema.org/draft-07/schema#",
        "https://json-schema.org/draft/2020-12/schema",
        "http://json-schema.org/schema#",
        "https://a.b/unknown",
    ],
)
def test_dialect_of_an_mcp_tool_is_accepted(grammars, uri):
    schema = {"$schema": uri, "type": "object", "properties": {}, "additionalProperties": False}

    assert shortest(grammars, schema) == {}
    assert dropped(grammars, schema) == []


LOOKAHEAD = "^(?!^[-+.]*$)[+-]?0*\\d*\\.?\\d*$"  # pydantic's for Decimal


@pytest.mark.parametrize(
    ("schema", "expected", "enforced", "rejected"),
    [
        (
            {"anyOf": [{"type": "number"}, {"type": "string", "pattern": LOOKAHEAD}]},
            ["/anyOf/1/pattern"],
            ["x", 1],
            [True],
        ),
        (
            {"type": "array", "uniqueItems": True, "items": {"const": 1}, "maxItems": 2},
            ["/uniqueItems"],
            [[1, 1]],
            [[2], [1, 1, 1]],
        ),
        (
            {"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 1}], "maximum": 5},
            ["/oneOf"],
            [2],
            [7],
        ),
        (
            {
                "type": "object",
                "properties": {"a": {"const": 1}, "b": {"const": 2}},
                "minProperties": 1,
                "maxProperties": 1,
            },
            ["/maxProperties", "/minProperties"],
            [{}, {"a": 1, "b": 2}],
            [{"a": 2}],
        ),
        (
            {
                "patternProperties": {"^a": {"const": 1}, "b$": {"const": 2}},
                "additionalProperties": False,
                "type": "object",
            },
            ["/additionalProperties", "/patternProperties"],
            [{"c": 1}],
            [3],
        ),
        (
            {"type": "object", "properties": {"~/a": {"not": {"const": 1}}}},
            ["/properties/~0~1a/not"],
            [{"~/a": 1}],
            [],
        ),
        (
            {"type": "array", "items": {"$ref": "https://a.b/c#/d"}},
            ["/items/$ref"],
            [[1, "x"]],
            [1],
        ),
        (
            {"$ref": "#/$defs/a", "$defs": {"a": {"type": "string", "format": "x"}}},
            ["/$defs/a/format"],
            ["z"],
            [1],
        ),
        ({"type": "string", "if": {"const": 1}, "then": False}, ["/if"], ["a"], [1]),
        ({"type": "string", "pattern": r"^(a)\1$"}, ["/pattern"], ["b"], [1]),
        (
            {"type": "object", "propertyNames": {"minLength": 9}},
            ["/propertyNames"],
            [{"a": 1}],
            [1],
        ),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else None,
)
def test_only_the_keyword_that_cannot_be_enforced_is_dropped(
    grammars, schema, expected, enforced, rejected
):
    assert dropped(grammars, schema) == expected
    assert all(accepts(grammars, schema, value) for value in enforced)
    assert not any(accepts(grammars, schema, value) for value in rejected)


@pytest.mark.parametrize(
    ("schema", "accepted", "rejected"),
    [
        (
            {"type": "string", "format": "uuid4"},
            ["01234567-89ab-4def-8123-456789abcdef"],
            ["01234567-89ab-1def-8123-456789abcdef"],
        ),
        (
            {
                "type": "object",
                "propertyNames": {"enum": ["a"]},
                "additionalProperties": {"type": "integer"},
            },
            [{}, {"a": 1}],
            [{"b": 1}, {"a": "x"}],
        ),
        ({"type": "object", "propertyNames": {"pattern": "^a+$"}}, [{"aa": 1}], [{"b": 1}]),
        (
            {
                "oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
                "anyOf": [{"properties": {"n": {"const": 1}}}],
                "$defs": {
                    kind: {
                        "type": "object",
                        "properties": {"kind": {"enum": [kind]}, "n": {}},
                        "required": ["kind", "n"],
                        "additionalProperties": False,
                    }
                    for kind in "ab"
                },
            },
            [{"kind": "a", "n": 1}],
            [{"kind": "c", "n": 1}, {"kind": "a", "n": 2}],
        ),
        ({"type": "integer", "format": "int64", "deprecated": True}, [3], ["x"]),
        ({"type": "array", "uniqueItems": False}, [[1, 1]], [1]),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else None,
)
def test_keywords_with_an_equivalent_are_enforced(grammars, schema, accepted, rejected):
    assert dropped(grammars, schema) == []
    assert all(accepts(grammars, schema, value) for value in accepted)
    assert not any(accepts(grammars, schema, value) for value in rejected)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "("},
        {"type": "string", "pattern": "[a"},
        {"$ref": "#/$defs/missing"},
        {"type": "object", "required": 5, "oneOf": [{}, {}]},
        {"properties": 5, "patternProperties": {"a": {}, "b": {}}},
        {"type": "object", "properties": [], "minProperties": 1, "required": [[]]},
        {"oneOf": 5},
        {"type": 5, "format": "x"},
        {"anyOf": [{"type": "string"}, 5]},
    ],
    ids=json.dumps,
)
def test_invalid_schema_is_not_repaired(grammars, schema):
    with pytest.raises(APIError, match="invalid or not supported") as error:
        check(grammars, schema)

    assert error.value.status == 400


def test_values_that_look_like_keywords_are_kept(grammars):
    value = {"uniqueItems": True, "format": "x", "$schema": "y"}
    schema = {"const": value, "default": value, "properties": {"not": {"const": 1}}}

    assert enforceable(schema) == (schema, [])


@pytest.mark.parametrize("keyword", sorted(UNSUPPORTED - {"$recursiveRef", "dependencies"}))
def test_table_has_what_llguidance_does_not_implement(grammars, keyword):
    matcher = grammars._matcher(
        grammars._tokenizer and json.dumps({"grammars": [{"json_schema": {keyword: 1}}]})
    )
    implemented = "Unimplemented keys" not in matcher.get_error()

    # contentSchema is an annotation for llguidance.
    assert implemented == (keyword == "contentSchema")


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_formats_of_the_table_are_enforced(grammars, name):
    schema = {"type": "string", "format": name}

    assert dropped(grammars, schema) == []
    assert not accepts(grammars, schema, "?")
    assert re.search("[0-9A-Za-z:]", shortest(grammars, schema))
