"""Tools: parsing of calls in answers, and schemas and template variables of a client's tools."""

from __future__ import annotations

import json

import jsonschema_rs
import pytest

from yocobit import Engine
from yocobit.serving.api.protocol import (
    Function,
    FunctionCall,
    Message,
    Tool,
    ToolCall,
    to_template,
)
from yocobit.serving.api.tools import Call, ToolCallParser, schema_of_calls
from yocobit.serving.api.tools import to_template as tools_to_template
from yocobit.serving.errors import APIError
from yocobit.serving.runtime.structured_output import Grammars

DEEP = "[" * 100_000
CALL = '{"name": "f", "arguments": {"a": 1}}'


def parse(text: str, piece: int) -> tuple[str, list[Call]]:
    """Return the text and the calls of an answer that arrives in pieces of `piece` characters."""
    parser = ToolCallParser(["f"])
    parts = [parser.add(text[i : i + piece]) for i in range(0, len(text), piece)]
    parts.append(parser.finish())
    return "".join(shown for shown, _ in parts), [call for _, calls in parts for call in calls]


def nested(depth: int) -> dict:
    schema: dict = {"type": "object"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def tool(parameters: dict) -> Tool:
    return Tool(type="function", function=Function(name="f", parameters=parameters))


@pytest.mark.parametrize("piece", [1, 7, 10**6])
@pytest.mark.parametrize("text", [CALL, f"<tool_call>\n{CALL}\n</tool_call>", f"<tool_call>{CALL}"])
def test_tool_call_is_parsed(text, piece):
    assert parse(text, piece) == ("", [Call("f", '{"a":1}')])


def test_text_before_a_call_is_shown():
    shown, calls = parse(f"Well. <tool_call>{CALL}</tool_call>", piece=3)

    assert shown.strip() == "Well."
    assert calls == [Call("f", '{"a":1}')]


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
        f"<tool_call>{DEEP}</tool_call>",
        '<tool_call>{"name": ["f"]}</tool_call>',
    ],
    ids=lambda text: text[:24],
)
def test_json_that_is_not_a_call_is_text(text):
    assert parse(text, piece=10**6) == (text, [])


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

    schema = schema_of_calls([tool({"const": 1}), tool(parameters)])

    jsonschema_rs.validate(schema, call)
    with pytest.raises(jsonschema_rs.ValidationError):
        jsonschema_rs.validate(schema, {**call, "arguments": {"a": 8}})
    Grammars(Engine.load(threads=1)).compile(schema, "tools", max_tokens=100)


def test_values_that_look_like_references_are_unchanged():
    value = {"$ref": "#/x"}
    parameters = {
        "properties": {"const": {"const": value}, "other": {"enum": [value], "default": value}},
    }

    schema = schema_of_calls([tool(parameters)])

    assert schema["$defs"]["tool_0"] == parameters


def test_absent_fields_of_a_tool_are_not_in_the_template():
    (found,) = tools_to_template([tool({"type": "object"})])

    expected = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    assert json.dumps(found, sort_keys=True) == json.dumps(expected, sort_keys=True)
