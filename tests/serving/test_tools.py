"""Tools: parsing of calls in answers, and schemas and template variables of a client's tools."""

from __future__ import annotations

import json

import jsonschema_rs
import pytest

from yocobit import Engine
from yocobit.serving.api.field_names import OPENAI_NAMES
from yocobit.serving.api.protocol import (
    Function,
    FunctionCall,
    Message,
    Tool,
    ToolCall,
    to_template,
)
from yocobit.serving.api.tool_calls import CallArguments, CallStart, Piece, ToolCallParser
from yocobit.serving.api.tools import constraint_of_calls, schema_of_calls
from yocobit.serving.api.tools import to_template as tools_to_template
from yocobit.serving.errors import APIError
from yocobit.serving.runtime.structured_output import Grammar, GrammarCompiler

DEEP = "[" * 100_000
CALL = '{"name": "f", "arguments": {"a": 1}}'


def pieces(text: str, piece: int = 10**6, **options: int) -> list[Piece]:
    """Return what is parsed of an answer that arrives in pieces of `piece` characters."""
    parser = ToolCallParser(["f", "g_2"], **options)
    parts = [parser.add(text[i : i + piece]) for i in range(0, len(text), piece)]
    return [each for part in [*parts, parser.finish()] for each in part]


def parse(text: str, piece: int = 10**6, **options: int) -> tuple[str, list[tuple[str, str]]]:
    """Return the content of an answer, and the names and arguments of its calls."""
    content, names, arguments = "", list[str](), list[str]()
    for each in pieces(text, piece, **options):
        if isinstance(each, CallStart):
            assert each.index == len(names)
            names.append(each.name)
            arguments.append("")
        elif isinstance(each, CallArguments):
            assert each.index == len(names) - 1
            arguments[-1] += each.text
        else:
            content += each
    return content, list(zip(names, arguments, strict=True))


def nested(depth: int) -> dict:
    schema: dict = {"type": "object"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def tool(parameters: dict | None) -> Tool:
    return Tool(type="function", function=Function(name="f", parameters=parameters))


CALLS = {
    "bare": CALL,
    "marked": f"<tool_call>\n{CALL}\n</tool_call>",
    "marked and not closed": f"<tool_call>{CALL}",
    "truncated after the arguments": f"<tool_call>{CALL[:-1]}",
    "blanks around it": f" \n{CALL}\n ",
    "array": f"[{CALL}]",
    "parameters, and a type first": '{"type": "function", "name": "f", "parameters": {"a": 1}}',
    "an id last": '{"name": "f", "arguments": {"a": 1}, "id": "}"}',
    "arguments first": '{"arguments": {"a": 1}, "name": "f"}',
    "arguments first, marked": '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>',
    "arguments first, in an array": '[{"arguments": {"a": 1}, "name": "f"}]',
    "arguments as a text": '{"name": "f", "arguments": "{\\"a\\": 1}"}',
    "a long head": '{"type": "' + "x" * 2000 + '", "name": "f", "arguments": {"a": 1}}',
}


@pytest.mark.parametrize("piece", [1, 7, 10**6])
@pytest.mark.parametrize("form", CALLS)
def test_tool_call_is_parsed(form, piece):
    assert parse(CALLS[form], piece) == ("", [("f", '{"a": 1}')])


OTHER = '{"name": "g_2", "arguments": {"s": "</tool_call>}\\"{", "o": {"p": [{}]}}}'
OTHER_ARGUMENTS = '{"s": "</tool_call>}\\"{", "o": {"p": [{}]}}'


@pytest.mark.parametrize("piece", [1, 7, 10**6])
@pytest.mark.parametrize(
    "text",
    [
        f"<tool_call>{OTHER}</tool_call>\n<tool_call>{CALL}</tool_call>\n",
        f"[{OTHER}, {CALL}]",
        f"[\n{OTHER},{CALL}\n]",
        f"{OTHER}; {CALL}",
        f"{OTHER}\n{CALL}",
    ],
    ids=["marked", "array", "array with blanks", "semicolon", "lines"],
)
def test_several_calls_are_parsed(text, piece):
    assert parse(text, piece) == ("", [("g_2", OTHER_ARGUMENTS), ("f", '{"a": 1}')])


@pytest.mark.parametrize("piece", [1, 10**6])
@pytest.mark.parametrize(
    "text",
    [
        f"<tool_call>{CALL}</tool_call>\n<tool_call>{OTHER}</tool_call> Well.",
        f"[{CALL}, {OTHER}]",
        f'[{{"arguments": {{"a": 1}}, "name": "f"}}, {OTHER}]',
    ],
    ids=["marked", "array", "array in another order"],
)
def test_what_follows_the_largest_number_of_calls_is_dropped(text, piece):
    assert parse(text, piece, max_calls=1) == ("", [("f", '{"a": 1}')])


@pytest.mark.parametrize("start", ["", "[", "<tool_call>\n", "Well. <tool_call>"])
def test_arguments_stream_as_they_are_written(start):
    parser = ToolCallParser(["f"])
    parser.add(start)

    found = [parser.add(part) for part in ('{"name": "f", "arg', 'uments": {"a', '": [1', ", 2]}}")]

    assert found[0] == []
    [first, second] = found[1]
    assert isinstance(first, CallStart) and (first.index, first.name) == (0, "f")
    assert first.id.startswith("call_")
    assert second == CallArguments(0, '{"a')
    assert found[2:] == [[CallArguments(0, '": [1')], [CallArguments(0, ", 2]}")]]


def test_answer_that_ends_within_arguments_is_truncated():
    parser = ToolCallParser(["f"])
    parser.add(CALL[:-2])
    was_truncated = parser.is_truncated

    parser.add("}")

    assert was_truncated and not parser.is_truncated


@pytest.mark.parametrize("piece", [1, 3, 10**6])
def test_text_before_a_call_is_shown(piece):
    shown, calls = parse(f"Well. <tool_call>{CALL}</tool_call>", piece)

    assert shown.strip() == "Well."
    assert calls == [("f", '{"a": 1}')]


@pytest.mark.parametrize("piece", [1, 3, 10**6])
@pytest.mark.parametrize("text", [" a { b", "<tool", "[1] a", "[", "{", "\n", '{"a": 1} <b> [x]'])
def test_text_without_a_call_is_unchanged(text, piece):
    assert parse(text, piece) == (text, [])


@pytest.mark.parametrize(
    "text",
    [
        '{"name": ["f"]}',
        '{"name": {"f": 1}}',
        '{"name": "g"}',
        '{"name": null}',
        '["f"]',
        "7",
        DEEP,
        '{"name": "f", "arguments": ' + DEEP,
        '{"name": "f", "arguments": [1]}',
        '{"name": "f", "arguments": "1"}',
        '[{"name": "f", "arguments": {}, "x": {"a": }}]'.replace("f", "h"),
        '[{"arguments": {}, "name": "f"}, 1]',
        f"<tool_call>{DEEP}</tool_call>",
        '<tool_call>{"name": ["f"]}</tool_call>',
    ],
    ids=lambda text: text[:24],
)
def test_json_that_is_not_a_call_is_text(text):
    assert parse(text) == (text, [])


@pytest.mark.parametrize("arguments", [DEEP, '{"a": ', "1e999", "9" * 5000], ids=lambda a: a[:8])
def test_arguments_that_cannot_be_parsed_stay_text(arguments):
    call = ToolCall(function=FunctionCall(name="f", arguments=arguments))

    (message,) = to_template([Message(role="assistant", tool_calls=[call])])

    assert message["tool_calls"][0]["function"]["arguments"] == arguments


@pytest.mark.parametrize("make", [schema_of_calls, tools_to_template])
def test_too_deep_tools_are_rejected(make):
    with pytest.raises(APIError, match="nested too deep") as error:
        make([tool(nested(5000))])

    assert (error.value.status, error.value.param) == (400, "tools")


def test_references_are_rewritten_for_the_combined_schema():
    parameters = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/q"}, "b": {"$ref": "#"}},
        "$defs": {"q": {"type": "null"}},
    }

    schema = schema_of_calls([tool({"type": "object"}), tool(parameters)])

    moved = schema["$defs"]["tool_1"]
    assert moved["properties"]["a"] == {"$ref": "#/$defs/tool_1/$defs/q"}
    assert moved["properties"]["b"] == {"$ref": "#/$defs/tool_1"}
    assert moved["$defs"] == parameters["$defs"]


@pytest.mark.parametrize(
    ("name", "reference", "definition"),
    [
        ({"$id": "https://a.b/c"}, "#/$defs/q", {}),
        ({"$id": "https://a.b/c"}, "https://a.b/c#/$defs/q", {}),
        ({}, "#here", {"$anchor": "here"}),
    ],
)
def test_schemas_with_ids_and_anchors_still_resolve(name, reference, definition):
    parameters = {
        **name,
        "type": "object",
        "properties": {"a": {"$ref": reference}},
        "required": ["a"],
        "$defs": {"q": {**definition, "const": 7}},
    }
    call = {"name": "f", "arguments": {"a": 7}}

    schema = schema_of_calls([tool({"const": {}}), tool(parameters)])

    jsonschema_rs.validate(schema, call)
    with pytest.raises(jsonschema_rs.ValidationError):
        jsonschema_rs.validate(schema, {**call, "arguments": {"a": 8}})
    grammar = Grammar.from_json("json", schema, "tools")
    GrammarCompiler(Engine.load(threads=1)).compile(grammar, "tools", max_tokens=100)


def test_values_that_look_like_references_are_unchanged():
    value = {"$ref": "#/x"}
    parameters = {
        "properties": {"const": {"const": value}, "other": {"enum": [value], "default": value}},
    }

    schema = schema_of_calls([tool(parameters)])

    assert schema["$defs"]["tool_0"]["properties"] == parameters["properties"]


def test_absent_fields_of_a_tool_are_not_in_the_template():
    (found,) = tools_to_template([tool({"type": "object"})])

    expected = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    assert json.dumps(found, sort_keys=True) == json.dumps(expected, sort_keys=True)


# ---- the schema of required calls ----

POINT = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}


def follows(parameters: dict | None, arguments: object) -> bool:
    """Return whether arguments follow the schema of a call of a tool with those parameters."""
    schema = schema_of_calls([tool(parameters)])
    validator = jsonschema_rs.validator_for(schema)
    return validator.is_valid({"name": "f", "arguments": arguments})


@pytest.mark.parametrize("parameters", [None, {}, {"type": "object"}])
def test_tool_without_properties_has_no_arguments(parameters):
    assert follows(parameters, {})
    assert not follows(parameters, {"a": 1})
    assert not follows(parameters, 1)


@pytest.mark.parametrize(
    ("parameters", "place"),
    [
        (POINT, lambda point: point),
        ({"properties": {"p": POINT}}, lambda point: {"p": point}),
        ({"properties": {"p": {"anyOf": [POINT, {"type": "null"}]}}}, lambda point: {"p": point}),
        ({"properties": {"p": {"items": POINT}}}, lambda point: {"p": [point]}),
        (
            {"properties": {"p": {"$ref": "#/$defs/point"}}, "$defs": {"point": POINT}},
            lambda point: {"p": point},
        ),
        (
            {"$ref": "#/definitions/point", "definitions": {"point": POINT}},
            lambda point: point,
        ),
    ],
    ids=["outermost", "property", "option", "item", "definition", "reference"],
)
def test_arguments_have_no_keys_but_those_of_their_properties(parameters, place):
    assert follows(parameters, place({"x": 1}))
    assert not follows(parameters, place({"x": 1, "y": 2}))


@pytest.mark.parametrize(
    "parameters",
    [
        {**POINT, "additionalProperties": True},
        {**POINT, "additionalProperties": {"type": "integer"}},
        {**POINT, "patternProperties": {"^y$": {}}},
        {**POINT, "required": ["x", "y"]},
        {"const": {"x": 1, "y": 2}},
        {"type": "object", "allOf": [POINT, {"properties": {"y": {}}}]},
        {"type": "object", "properties": {"y": {}}, "anyOf": [POINT, {"required": ["z"]}]},
        {
            "type": "object",
            "allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
            "$defs": {"a": POINT, "b": {"properties": {"y": {}}}},
        },
    ],
    ids=[
        "true",
        "schema",
        "pattern",
        "required",
        "const",
        "all of",
        "any of",
        "all of definitions",
    ],
)
def test_arguments_have_the_keys_that_a_schema_requires(parameters):
    assert follows(parameters, {"x": 1, "y": 2})


def test_free_maps_within_arguments_stay_free():
    assert follows({"properties": {"m": {"type": "object"}}}, {"m": {"a": 1}})


@pytest.mark.parametrize("n", [0, 1, 2, 128, 129])
def test_array_of_calls_follows_the_schema_of_several_calls(n):
    schemas = [schema_of_calls([tool(POINT), tool(POINT)], several) for several in (False, True)]
    calls = [{"name": "f", "arguments": {"x": i}} for i in range(n)]

    one, several = [jsonschema_rs.validator_for(schema) for schema in schemas]

    assert not one.is_valid(calls)
    assert several.is_valid(calls) == (1 <= n <= 128)
    assert one.is_valid({"name": "f", "arguments": {"x": 0}})
    assert several.is_valid({"name": "f", "arguments": {"x": 0}})


def test_keywords_are_named_by_their_place_in_the_request():
    strict = Function(name="f", parameters=POINT, strict=True)
    tools = [tool(POINT)] * 10 + [Tool(type="function", function=strict)]

    pointers = [OPENAI_NAMES.tool_schema.format(i) for i in range(11)]

    constraint = constraint_of_calls(tools, pointers, is_array_allowed=True)

    assert [each.is_strict for each in constraint.sources] == [False] * 10 + [True]
    assert constraint.sources[10].pointer == "/tools/10/function/parameters"
    assert constraint.sources[1].within == "/$defs/tool_1"
