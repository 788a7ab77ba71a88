"""Constraints in the spellings of OpenAI, vLLM and llama.cpp: one grammar, one error, one limit."""

from __future__ import annotations

import json
import math
import re
from typing import Any
from urllib.parse import unquote

import msgspec
import numpy as np
import pytest
import servers

from yocobit import Engine
from yocobit.serving import ServerSettings, limits
from yocobit.serving.api.constraints import (
    DROPPED_HEADER,
    Constrained,
    constraint_of,
    dropped_header,
)
from yocobit.serving.errors import APIError
from yocobit.serving.runtime.structured_output import CheckedGrammar, Grammar, GrammarCompiler

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SEA = [{"role": "user", "content": "Tell me about the sea."}]
TAGS = {
    "type": "object",
    "properties": {"tags": {"type": "array", "items": {"const": "a"}, "uniqueItems": True}},
    "required": ["tags"],
    "additionalProperties": False,
}
INTEGER = {"type": "integer"}


@pytest.fixture(scope="module")
def grammars(engine) -> GrammarCompiler:
    return GrammarCompiler(engine)


def body(**fields: Any) -> Constrained:
    return msgspec.convert(fields, Constrained)


def grammar(**fields: Any) -> Grammar:
    constraint = constraint_of(body(**fields))
    assert constraint is not None
    return constraint.grammar


def json_grammar(schema: Any) -> Grammar:
    return Grammar.from_json("json", schema, "schema")


# ---- spellings ----

SPELLINGS: dict[str, tuple[dict[str, Any], Grammar]] = {
    "json_object": (
        {"response_format": {"type": "json_object"}},
        json_grammar({"type": "object"}),
    ),
    "json_schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": INTEGER}}},
        json_grammar(INTEGER),
    ),
    "llama.cpp's json_object": (
        {"response_format": {"type": "json_object", "schema": INTEGER}},
        json_grammar(INTEGER),
    ),
    "llama.cpp's json_schema": ({"json_schema": INTEGER}, json_grammar(INTEGER)),
    "llama.cpp's grammar": ({"grammar": 'root ::= "a"'}, Grammar("cfg", 'root ::= "a"')),
    "structured_outputs.json": ({"structured_outputs": {"json": INTEGER}}, json_grammar(INTEGER)),
    "structured_outputs.json as text": (
        {"structured_outputs": {"json": json.dumps(INTEGER)}},
        json_grammar(INTEGER),
    ),
    "structured_outputs.regex": ({"structured_outputs": {"regex": "a+"}}, Grammar("regex", "a+")),
    "structured_outputs.choice": (
        {"structured_outputs": {"choice": ["a", "b"]}},
        Grammar("choice", '["a","b"]'),
    ),
    "structured_outputs.grammar": (
        {"structured_outputs": {"grammar": 'start: "a"'}},
        Grammar("cfg", 'start: "a"'),
    ),
    "structured_outputs.json_object": (
        {"structured_outputs": {"json_object": True}},
        json_grammar({"type": "object"}),
    ),
    "guided_json": ({"guided_json": INTEGER}, json_grammar(INTEGER)),
    "guided_regex": ({"guided_regex": "a+"}, Grammar("regex", "a+")),
    "guided_choice": ({"guided_choice": ["a"]}, Grammar("choice", '["a"]')),
    "guided_grammar": ({"guided_grammar": 'start: "a"'}, Grammar("cfg", 'start: "a"')),
    "with empty texts": (
        {"grammar": "", "guided_regex": "", "json_schema": True},
        json_grammar(True),
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_each_spelling_is_one_grammar(name):
    fields, expected = SPELLINGS[name]

    assert grammar(**fields) == expected
    assert body(**fields).is_constrained


@pytest.mark.parametrize("fields", [{}, {"response_format": {"type": "text"}}, {"grammar": None}])
def test_request_without_a_constraint_has_none(fields):
    assert constraint_of(body(**fields)) is None
    assert not body(**fields).is_constrained


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        (
            {"response_format": {"type": "json_object"}, "grammar": "x"},
            "grammar",
            "response_format and grammar both constrain the output",
        ),
        (
            {"structured_outputs": {"regex": "a", "choice": ["a"]}},
            "structured_outputs.choice",
            "structured_outputs.regex and structured_outputs.choice both",
        ),
        ({"guided_json": {}, "json_schema": {}}, "json_schema", "guided_json and json_schema both"),
        ({"structured_outputs": {}}, "structured_outputs", "has no constraint"),
        ({"guided_json": "{"}, "guided_json", "is not a JSON schema"),
        ({"guided_json": "7"}, "guided_json", "is not a JSON schema"),
        (
            {"structured_outputs": {"structural_tag": "{}"}},
            "structured_outputs.structural_tag",
            "not supported",
        ),
        (
            {"structured_outputs": {"json": {}, "disable_any_whitespace": True}},
            "structured_outputs.disable_any_whitespace",
            "not supported",
        ),
        (
            {"guided_json": {}, "guided_whitespace_pattern": " "},
            "guided_whitespace_pattern",
            "not supported",
        ),
    ],
)
def test_invalid_constraint_is_an_error_that_names_the_field(fields, param, message):
    with pytest.raises(APIError, match=message) as error:
        constraint_of(body(**fields))

    assert (error.value.status, error.value.param) == (400, param)


# ---- outputs ----

# From llama.cpp's grammars/json.gbnf.
JSON_GBNF = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""
CHOICES = ["yes", "no", 'a "quoted" \\ one', "two\nlines\x7f", "<|end|>", "é😀"]
ARITHMETIC = 'start: sum\nsum: sum "+" NUMBER | NUMBER\nNUMBER: /[0-9]+/'
OUTPUTS: dict[str, tuple[Grammar, Any]] = {
    "regex": (Grammar("regex", r"[0-9]{3}-[0-9]{4}"), re.compile(r"\d{3}-\d{4}").fullmatch),
    "anchored regex": (Grammar("regex", "^(red|blue)$"), ["red", "blue"].__contains__),
    "mail": (
        Grammar("regex", r"[a-z]+@[a-z]+\.com"),
        re.compile(r"[a-z]+@[a-z]+\.com").fullmatch,
    ),
    "quoted": (Grammar("regex", r'"([^"\\]|\\.)*"'), re.compile(r'"([^"\\]|\\.)*"').fullmatch),
    "line": (Grammar("regex", r"\w+\n"), re.compile(r"\w+\n").fullmatch),
    "choice": (Grammar.from_json("choice", CHOICES, ""), CHOICES.__contains__),
    "many choices": (
        Grammar.from_json("choice", [f"choice {i}" for i in range(4096)], ""),
        re.compile(r"choice \d+").fullmatch,
    ),
    "gbnf": (Grammar("cfg", JSON_GBNF), lambda text: isinstance(json.loads(text), dict)),
    "gbnf with escapes": (
        Grammar("cfg", 'root ::= [\\u3041-\\u309f]+ "\\u0021" "\\\\u" "\\U0001F600"'),
        re.compile("[\u3041-\u309f]+!\\\\u\U0001f600").fullmatch,
    ),
    "gbnf with names that Lark does not tell apart": (
        Grammar(
            "cfg", 'root ::= start a-b a_b aB\nstart ::= "1"\na-b ::= "2"\na_b ::= "3"\naB ::= "4"'
        ),
        lambda text: text == "1234",
    ),
    "lark with a modifier": (
        Grammar("cfg", '?start: letter\nletter: "a" | "b"'),
        lambda text: text in ("a", "b"),
    ),
    "gbnf of a list": (
        Grammar("cfg", 'root ::= item+\nitem ::= "- " [^\\r\\n]+ "\\n"'),
        re.compile(r"(- [^\r\n]+\n)+").fullmatch,
    ),
    "lark": (Grammar("cfg", ARITHMETIC), re.compile(r"\d+(\+\d+)*").fullmatch),
    "left recursion": (Grammar("cfg", 'root ::= root "a" | "b"'), re.compile("ba*").fullmatch),
    "ambiguous": (Grammar("cfg", 'start: a\na: a a a | a a | "x"'), re.compile("x+").fullmatch),
}


def answer(engine: Engine, guided: Any, max_tokens: int, seed: int) -> tuple[list[int], bool]:
    """Return tokens sampled uniformly from the allowed ones, and whether they are complete."""
    rng = np.random.default_rng(seed)
    tokens: list[int] = []
    while len(tokens) < max_tokens:
        logits = rng.gumbel(size=engine.config.vocab_size).astype(np.float32)
        token = guided.force_completion(int(guided.mask(logits).argmax()), max_tokens - len(tokens))
        if token in engine.end_tokens:
            return tokens, True
        tokens.append(token)
        if guided.accept(token):
            return tokens, True
    return tokens, False


def text_of(grammars: GrammarCompiler, tokens: list[int]) -> str:
    return b"".join(map(grammars.token_bytes, tokens)).decode()


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("more", [0, 1, 20])
def test_output_follows_its_grammar_within_max_tokens(engine, grammars, name, more):
    found, follows = OUTPUTS[name]
    shortest = grammars.check(found, "grammar", 4000).shortest
    assert shortest is not None
    max_tokens = len(shortest) + more
    make = grammars.compile(found, "grammar", max_tokens)

    for seed in range(4):
        tokens, _ = answer(engine, make(), max_tokens, seed)

        assert len(tokens) <= max_tokens
        assert follows(text_of(grammars, tokens)), text_of(grammars, tokens)


@pytest.mark.parametrize("text", ["a{2000}", "[0-9]{30}"])
def test_output_without_a_short_completion_is_truncated(engine, grammars, text):
    make = grammars.compile(Grammar("regex", text), "grammar", 5)

    tokens, is_complete = answer(engine, make(), 5, seed=1)

    assert len(tokens) == 5 and not is_complete
    assert re.fullmatch("a+|[0-9]+", text_of(grammars, tokens))


def test_choices_that_need_more_tokens_are_rejected(grammars):
    long = Grammar.from_json("choice", ["x y z " * 40], "guided_choice")

    with pytest.raises(APIError, match="list of choices has 200 tokens") as error:
        grammars.check(long, "guided_choice", 20)

    assert error.value.param == "max_tokens"


EXPONENTIAL = (
    "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1} r{i + 1}\n" for i in range(60)) + 'r60 ::= "y"'
)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("regex", "(", "regular expression is invalid or not supported .*unclosed group"),
        ("regex", "(?=a)b", "look-around"),
        ("regex", "(" * 2000 + "a" + ")" * 2000, "regular expression is invalid"),
        ("cfg", 'root ::= "a" | other', "Rule 'other' not found"),
        ("cfg", 'a ::= "b"', "No 'root' rule"),
        ("cfg", 'root ::= "a\\', "not GBNF"),
        ("cfg", "}{", "not GBNF"),
        ("cfg", "root ::= " + "(" * 5000 + '"a"' + ")" * 5000, "recursion limit"),
        ("cfg", 'root ::= root "a"', "no output matches it"),
        ("cfg", "start: @other", "unknown grammar"),
        ("cfg", "start: other", "other"),
        ("cfg", EXPONENTIAL, "too big"),
        ("regex", "a" * (limits.GRAMMAR_BYTES + 1), "may have 262,144 bytes, but this has"),
    ],
)
def test_invalid_grammar_is_rejected(grammars, monkeypatch, kind, text, message):
    monkeypatch.setattr(limits, "GRAMMAR_CPU_S", math.inf)  # on busy CPUs, some take longer
    with pytest.raises(APIError, match=message) as error:
        grammars.check(Grammar(kind, text), "grammar", 50)

    assert (error.value.status, error.value.param) == (400, "grammar")
    assert len(str(error.value)) < 500


HOSTILE = {
    "repetition": ("cfg", 'root ::= "a"{1000000}'),
    "repeated repetition": ("cfg", 'root ::= x{9999999}\nx ::= "a" x | "b"'),
    "alternatives": ("cfg", 'root ::= ("a" | "b" | "ab"){100000}'),
    "right recursion": ("cfg", 'root ::= "a" root | "b"'),
    "empty rules": ("cfg", 'start: a*\na: b*\nb: ""'),
    "any token": ("cfg", "start: <[*]>"),
    "stars": ("regex", "(a*)*b"),
    "counted stars": ("regex", "((a|b|c)*){1000}"),
    "dots": ("regex", "(.*a){500}"),
    "large count": ("regex", "[a-z]{1,100000}x"),
    "counts of counts": ("regex", "(((a{1,99}){1,99}){1,99}){1,99}"),
    "states": ("regex", "(.*a.{12}.*){3}"),
    "classes": ("regex", r"\p{L}{1000}"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_grammar_is_rejected_or_followed_in_bounded_steps(engine, grammars, name):
    try:
        make = grammars.compile(Grammar(*HOSTILE[name]), "grammar", 60)
    except APIError as error:
        assert error.status == 400
        return

    tokens, _ = answer(engine, make(), 60, seed=1)

    assert len(tokens) <= 60


def test_grammar_that_is_slow_to_compile_is_rejected_by_the_worker(monkeypatch):
    monkeypatch.setattr(limits, "PREPARATION_CPU_S", 0.3)
    rules = "".join(f'r{i} ::= r{i + 1} | "x{i}"\n' for i in range(3000))
    slow = "root ::= r0\n" + rules + 'r3000 ::= "y"'

    with servers.running(ServerSettings(threads=1)) as server:
        response = server.post(TEXT, prompt="a", grammar=slow)
        later = server.post(TEXT, prompt="a", max_tokens=1)

    assert response.status_code == 400
    assert response.json()["error"]["code"] == "too_costly"
    assert later.status_code == 200


# ---- requests ----


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("n", [1, 2])
def test_constraint_is_followed_by_all_choices(server, path, n):
    fields: dict[str, Any] = {"messages": SEA} if path == CHAT else {"prompt": ["a", "b"]}

    for spelling in (
        {"guided_choice": ["red", "blue"]},
        {"structured_outputs": {"regex": "red|blue"}},
    ):
        choices = server.post(path, **fields, **spelling, n=n, max_tokens=9, seed=1).json()[
            "choices"
        ]

        texts = [each.get("text") or each["message"]["content"] for each in choices]
        assert len(texts) == n * (1 if path == CHAT else 2)
        assert set(texts) <= {"red", "blue"}
        assert {each["finish_reason"] for each in choices} == {"stop"}


def test_response_format_is_followed_by_completions(server):
    form = {"type": "json_schema", "json_schema": {"schema": {"type": "array", "items": INTEGER}}}

    [choice] = server.post(TEXT, prompt="a", response_format=form, seed=3).json()["choices"]

    assert isinstance(json.loads(choice["text"]), list)


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_stop_strings_are_not_applied_while_a_grammar_constrains_the_output(server, path):
    fields: dict[str, Any] = {"messages": SEA} if path == CHAT else {"prompt": "a"}

    stops = {"stop": ["b", "l"], "stop_token_ids": [server.model.engine.encode("l")[-1]]}
    [choice] = server.post(path, **fields, guided_choice=["black"], **stops).json()["choices"]

    assert (choice.get("text") or choice["message"]["content"]) == "black"
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_dropped_keywords_are_listed_in_a_header(server, path, is_streamed):
    fields: dict[str, Any] = {"messages": SEA} if path == CHAT else {"prompt": "a"}

    response = server.post(path, **fields, json_schema=TAGS, max_tokens=40, stream=is_streamed)

    assert response.status_code == 200
    assert response.headers[DROPPED_HEADER] == "/json_schema/properties/tags/uniqueItems"


CALL_F = {"name": "f", "description": "?"}


@pytest.mark.parametrize(
    ("path", "body", "place"),
    [
        (
            "/v1/responses",
            {
                "input": "a",
                "text": {"format": {"type": "json_schema", "name": "a", "schema": TAGS}},
            },
            "/text/format/schema",
        ),
        (
            "/v1/responses",
            {
                "input": "a",
                "tools": [{**CALL_F, "type": "function", "parameters": TAGS}],
                "tool_choice": "required",
            },
            "/tools/0/parameters",
        ),
        (
            "/v1/messages",
            {
                "messages": SEA,
                "max_tokens": 60,
                "output_config": {"format": {"type": "json_schema", "schema": TAGS}},
            },
            "/output_config/format/schema",
        ),
        (
            "/v1/messages",
            {
                "messages": SEA,
                "max_tokens": 60,
                "tools": [{**CALL_F, "input_schema": TAGS}],
                "tool_choice": {"type": "any"},
            },
            "/tools/0/input_schema",
        ),
        ("/api/chat", {"model": "tiny", "messages": SEA, "format": TAGS}, "/format"),
    ],
)
def test_dropped_keywords_are_those_of_the_protocols_body(server, path, body, place):
    response = server.post(path, **body)

    assert response.status_code == 200, response.text
    assert response.headers[DROPPED_HEADER] == f"{place}/properties/tags/uniqueItems"


def test_nothing_is_listed_if_nothing_is_dropped(server):
    response = server.post(TEXT, prompt="a", json_schema=INTEGER)

    assert DROPPED_HEADER not in response.headers


def test_strict_schema_that_cannot_be_enforced_is_rejected(server):
    form = {"type": "json_schema", "json_schema": {"schema": TAGS, "strict": True}}

    response = server.post(CHAT, messages=SEA, response_format=form)

    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "response_format")
    place = "/response_format/json_schema/schema/properties/tags/uniqueItems"
    assert f"the keyword at {place} cannot be enforced, which strict requires" in error["message"]


@pytest.mark.parametrize("is_strict", [False, True])
def test_keywords_of_tools_are_listed_or_rejected(server, is_strict):
    function = {"name": "f", "parameters": TAGS, "strict": is_strict}
    tools = [
        {"type": "function", "function": {"name": "g"}},
        {"type": "function", "function": function},
    ]
    choice = {"type": "function", "function": {"name": "f"}}

    response = server.post(CHAT, messages=SEA, tools=tools, tool_choice=choice, max_tokens=60)

    place = "/tools/1/function/parameters/properties/tags/uniqueItems"
    if is_strict:
        assert response.status_code == 400
        assert place in response.json()["error"]["message"]
    else:
        assert response.headers[DROPPED_HEADER] == place


def test_header_is_bounded_and_has_safe_characters():
    names = ["\n\u00e9, \"#'", *(f"name {i}" * 3 for i in range(1000))]
    pointers = tuple(f"/properties/{name}/not" for name in names)

    (value,) = dropped_header(CheckedGrammar("", True, [], 0, pointers)).values()

    *listed, more = value.split(", ")
    assert len(value) < 1100 and re.fullmatch(r"[!-~ ]+", value)
    assert [unquote(each) for each in listed] == list(pointers[: len(listed)])
    assert more == f"and {1001 - len(listed)} more"


@pytest.mark.parametrize("name", ["ignore_eos", "min_tokens"])
def test_fields_that_would_extend_the_output_are_rejected(server, name):
    response = server.post(
        TEXT, prompt="a", guided_choice=["a"], **{name: 1 if name[0] == "m" else True}
    )

    assert response.status_code == 400
    assert response.json()["error"]["param"] == name


# ---- tool calls ----

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"properties": {"t": {"type": "boolean"}}}},
}
NAMED = {"type": "function", "function": {"name": "weather"}}


def calls(server, **fields: Any) -> list[dict[str, Any]]:
    """Return the calls of an answer, of a model that rather starts an array than an object."""
    bias = {
        str(server.model.engine.encode("[")[-1]): 100,
        str(server.model.engine.encode("{")[-1]): 50,
    }
    found = server.post(
        CHAT, messages=SEA, tools=[WEATHER], max_tokens=90, logit_bias=bias, seed=1, **fields
    ).json()
    [choice] = found["choices"]
    assert choice["finish_reason"] == "tool_calls"
    return choice["message"]["tool_calls"]


def test_required_calls_may_be_several(server):
    found = calls(server, tool_choice="required")

    assert len(found) > 1
    assert len({each["id"] for each in found}) == len(found)
    for each in found:
        assert each["function"]["name"] == "weather"
        assert json.loads(each["function"]["arguments"]).keys() <= {"t"}


@pytest.mark.parametrize(
    "fields",
    [{"tool_choice": "required", "parallel_tool_calls": False}, {"tool_choice": NAMED}],
    ids=["parallel_tool_calls", "named"],
)
def test_single_call_is_required(server, fields):
    assert len(calls(server, **fields)) == 1


def test_streamed_calls_equal_the_complete_ones(server):
    fields = {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 90, "seed": 1}
    whole = server.post(CHAT, messages=SEA, **fields).json()["choices"][0]["message"]["tool_calls"]

    found: list[dict[str, str]] = []
    for event in server.events(CHAT, messages=SEA, **fields):
        for part in event["choices"][0]["delta"].get("tool_calls", ()):
            if part["index"] == len(found):
                found.append({"name": part["function"]["name"], "arguments": ""})
            found[part["index"]]["arguments"] += part["function"]["arguments"]

    assert found == [each["function"] for each in whole]


def test_required_call_and_a_grammar_exclude_each_other(server):
    fields = {"tools": [WEATHER], "tool_choice": "required"}

    refused = server.post(CHAT, messages=SEA, **fields, guided_regex="a")
    # It constrains the content, which a required call has none of.
    accepted = server.post(
        CHAT, messages=SEA, **fields, max_tokens=60, response_format={"type": "json_object"}
    )

    assert refused.status_code == 400
    assert "tool_choice and guided_regex both" in refused.json()["error"]["message"]
    assert accepted.json()["choices"][0]["message"]["tool_calls"]
