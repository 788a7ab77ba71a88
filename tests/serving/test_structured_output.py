"""Structured output: for any sample, it parses, follows the schema and fits max_tokens."""

from __future__ import annotations

import ctypes
import gc
import json
import weakref
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from llguidance import LLMatcher

from yocobit import Engine
from yocobit.hardware.host import allocated_bytes
from yocobit.serving import limits
from yocobit.serving.errors import APIError
from yocobit.serving.runtime import structured_output
from yocobit.serving.runtime.structured_output import (
    CheckedGrammar,
    CompiledGrammar,
    Grammar,
    GrammarCompiler,
)

AMPLE = 1 << 40
NODE = {
    "type": "object",
    "properties": {
        "value": {"type": "integer"},
        "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
    },
    "required": ["value", "next"],
    "additionalProperties": False,
}
LEAF = {
    "type": "object",
    "properties": {"end": {"type": "integer"}},
    "required": ["end"],
    "additionalProperties": False,
}
UNENDING = {
    "type": "object",
    "properties": {"next": {"$ref": "#/$defs/unending"}},
    "required": ["next"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {
    "anything": True,
    "object": {"type": "object"},
    "list of strings": {"type": "array", "items": {"type": "string"}, "minItems": 50},
    "list ended by null": {"$ref": "#/$defs/node", "$defs": {"node": NODE}},
    "list ended by an object": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, LEAF]}},
                "required": ["next"],
                "additionalProperties": False,
            }
        },
    },
    "integer": {"type": "integer", "minimum": 1, "maximum": 99},
    "negative integer": {"type": "integer", "maximum": -5},
    "fraction": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "integers without a zero": {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 5}, "b": {"type": "integer"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
    "short or long": {"enum": ["a", "b" * 300, 3, None]},
    "special characters": {"const": {"a<|end|>b": [1, "\n\u00e9\U0001f600"]}},
    "pattern": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]+$"},
    "pattern of two names": {"type": "string", "pattern": "^[a-z]+@[a-z]+[.]com$"},
    "pattern that may grow": {"type": "string", "pattern": "^(a|b{200})*$"},
    "optional long list": {
        "type": "object",
        "properties": {
            "a": {"type": "array", "items": {"type": "integer"}, "minItems": 200},
            "b": {"type": "string"},
        },
        "additionalProperties": False,
    },
    "long string": {"type": "string", "minLength": 200},
    "custom separators": {
        "x-guidance": {"item_separator": ";", "whitespace_pattern": "\u2028*"},
        "type": "array",
        "items": {"type": "integer"},
        "minItems": 3,
    },
    "lists in lists": {
        "type": "array",
        "items": {"type": "array", "items": {"type": "boolean"}, "minItems": 3},
        "minItems": 3,
    },
    "many properties": {
        "type": "object",
        "properties": {f"property_{i}": {"type": ["string", "boolean"]} for i in range(40)},
        "required": [f"property_{i}" for i in range(0, 40, 2)],
        "additionalProperties": False,
    },
    "values of different length": {
        "anyOf": [
            {"type": "string", "minLength": 50},
            {"type": "array", "minItems": 60, "items": {"type": "null"}},
            {
                "type": "object",
                "properties": {"x": {"enum": ["p", "q"]}},
                "required": ["x"],
                "additionalProperties": False,
            },
        ]
    },
    "date": {"type": "string", "format": "date"},
    "uuid": {"type": "string", "format": "uuid"},
}


@pytest.fixture(scope="module")
def grammars(engine) -> GrammarCompiler:
    return GrammarCompiler(engine)


@pytest.fixture
def n_masks(grammars, monkeypatch) -> list[int]:
    """The number of computed masks, as the only item."""
    count = [0]
    allowed = grammars.completions.allowed

    def counted(matcher):
        count[0] += 1
        return allowed(matcher)

    monkeypatch.setattr(grammars.completions, "allowed", counted)
    return count


def of(schema: Any, param: str = "schema") -> Grammar:
    return Grammar.from_json("json", schema, param)


def answer(engine: Engine, guided: Any, max_tokens: int, seed: int) -> list[int]:
    """Return the tokens of an output, each sampled uniformly from the allowed ones."""
    rng = np.random.default_rng(seed)
    tokens: list[int] = []
    while len(tokens) < max_tokens:
        logits = rng.gumbel(size=engine.config.vocab_size).astype(np.float32)
        sampled = int(guided.mask(logits).argmax())
        token = guided.force_completion(sampled, max_tokens - len(tokens))
        if token in engine.end_tokens:
            break
        tokens.append(token)
        if guided.accept(token):
            break
    return tokens


def text_of(grammars: GrammarCompiler, tokens: list[int]) -> str:
    return b"".join(map(grammars.token_bytes, tokens)).decode()


def n_shortest(grammars: GrammarCompiler, schema: Any) -> int:
    """Return the number of tokens of the shortest output found, from the error for max_tokens 0."""
    try:
        grammars.compile(of(schema, "schema"), "schema", 0)
    except APIError as error:
        return int(str(error).split(" tokens")[0].rsplit(" ", 1)[1])
    raise AssertionError("an output without tokens")


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("more", [0, 1, 7, 60])
def test_output_follows_its_schema_within_max_tokens(engine, grammars, name, more):
    schema = SCHEMAS[name]
    max_tokens = n_shortest(grammars, schema) + more
    make = grammars.compile(of(schema, "schema"), "schema", max_tokens)

    answers = [answer(engine, make(), max_tokens, seed) for seed in range(3)]

    for tokens in answers:
        assert 0 < len(tokens) <= max_tokens
        jsonschema_rs.validate(schema, json.loads(text_of(grammars, tokens)), validate_formats=True)


def test_output_with_a_long_completion_parses(engine, grammars):
    schema = {"type": "array", "items": {"type": "string"}, "minItems": 600}

    tokens = answer(engine, grammars.compile(of(schema, "schema"), "schema", 2600)(), 2600, seed=1)

    assert len(json.loads(text_of(grammars, tokens))) >= 600


def test_shortest_output_omits_optional_members(grammars):
    schema = SCHEMAS["many properties"]
    needed = {**schema, "properties": {k: schema["properties"][k] for k in schema["required"]}}

    assert n_shortest(grammars, schema) == n_shortest(grammars, needed)


def test_error_names_max_tokens_when_the_schema_needs_more(grammars):
    with pytest.raises(APIError, match="max_tokens is 20") as error:
        grammars.compile(of(SCHEMAS["list of strings"], "schema"), "schema", 20)

    assert (error.value.status, error.value.param) == (400, "max_tokens")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"type": "string"}, "minItems": 4 * 10**9},
        {"type": "string", "minLength": 10**6},
        {"$ref": "#/$defs/unending", "$defs": {"unending": UNENDING}},
    ],
    ids=["items", "letters", "unending"],
)
def test_search_for_a_completion_is_bounded(grammars, n_masks, schema):
    with pytest.raises(APIError) as error:
        grammars.compile(of(schema, "schema"), "schema", AMPLE)

    assert error.value.status == 400
    assert n_masks[0] < 20_000


@pytest.mark.parametrize(
    "schema, message",
    [
        ({"type": "no such type"}, "no such type"),
        ({"type": "string", "pattern": "("}, "regex parse error"),
        (False, "the schema is invalid or not supported"),
        ({"const": "x" * limits.GRAMMAR_BYTES}, "may have 262,144 bytes, but this has 262,156"),
        (json.loads('{"items":' * 900 + "{}" + "}" * 900), "recursion"),
    ],
    ids=["type", "pattern", "false", "size", "depth"],
)
def test_invalid_schema_is_rejected(grammars, schema, message):
    with pytest.raises(APIError, match=message) as error:
        grammars.compile(of(schema, "tools"), "tools", AMPLE)

    assert (error.value.status, error.value.param) == (400, "tools")
    assert str(error.value).startswith("tools: ") and len(str(error.value)) < 500


def test_too_deep_schema_is_rejected(grammars):
    schema: dict = {}
    for _ in range(100_000):
        schema = {"items": schema}

    with pytest.raises(APIError, match="nested too deep"):
        grammars.compile(of(schema, "tools"), "tools", AMPLE)


def test_completion_is_not_searched_again_for_each_token(engine, grammars, n_masks):
    schema = {"type": "array", "items": {"type": "string"}, "minItems": 300}
    guided = grammars.compile(of(schema, "schema"), "schema", 700)()
    n_masks[0] = 0

    tokens = answer(engine, guided, 700, seed=1)

    assert n_masks[0] <= 3 * len(tokens)


def test_failed_searches_of_one_output_are_bounded(engine, grammars, n_masks):
    # An item that starts an object cannot be completed: each one costs a failed search.
    schema = {"type": "array", "items": {"anyOf": [UNENDING, {"type": "null"}]}, "minItems": 300}
    schema = {**schema, "$defs": {"unending": UNENDING}}
    guided = grammars.compile(of(schema, "schema"), "schema", 3000)()
    n_masks[0] = 0

    tokens = answer(engine, guided, 3000, seed=2)

    assert n_masks[0] < 5000 + 40 * len(tokens)
    jsonschema_rs.validate(schema, json.loads(text_of(grammars, tokens)))


@pytest.mark.parametrize("n_before", [0, 5, 40])
def test_output_parses_after_the_grammar_failed(engine, grammars, n_before):
    schema = SCHEMAS["list of strings"]
    guided = grammars.compile(of(schema, "schema"), "schema", 300)()
    tokens = []
    for token in answer(engine, grammars.compile(of(schema, "schema"), "schema", 300)(), 300, 3)[
        :n_before
    ]:
        tokens.append(guided.force_completion(token, 300 - len(tokens)))
        guided.accept(tokens[-1])
    guided._matcher.consume_token(min(engine.end_tokens))
    logits = guided.mask(np.zeros(engine.config.vocab_size, dtype=np.float32))

    tokens += answer(engine, guided, 300 - n_before, seed=4)

    assert guided._matcher.is_error()
    assert np.flatnonzero(logits == 0).tolist() == [tokens[n_before]]
    jsonschema_rs.validate(schema, json.loads(text_of(grammars, tokens)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("schema", [{"type": "number"}, {"type": "object"}, {"enum": [1, 1.25]}])
def test_output_ends_without_end_tokens(engine, grammars, schema, seed, monkeypatch):
    monkeypatch.setattr(grammars.completions, "end_tokens", frozenset())
    guided = grammars.compile(of(schema, "schema"), "schema", 2)()

    text = text_of(grammars, answer(engine, guided, 2, seed))

    jsonschema_rs.validate(schema, json.loads(text))


# ---- memory ----


def checked(value: int) -> CheckedGrammar:
    text = LLMatcher.grammar_from_json_schema(json.dumps({"const": value}))
    return CheckedGrammar(text, is_json=True, shortest=[value], size_bytes=0)


GROWING = {"type": "number", "multipleOf": 0.99991}  # 60 lexer states per token
needs_glibc = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="the C library does not report its heap"
)


def follow_until_it_fails(guided) -> None:
    """Follow outputs of random tokens until a limit is exceeded."""
    rng = np.random.default_rng(0)
    while True:
        matcher = guided._compiled.matcher.deep_copy()
        for _ in range(200):
            allowed = np.flatnonzero(guided._completions.allowed(matcher))
            if matcher.is_error():
                guided._matcher = matcher
                guided.mask(np.zeros(guided._completions.n_tokens, dtype=np.float32))
                return
            if not len(allowed) or not matcher.consume_token(int(rng.choice(allowed))):
                break
            if matcher.is_stopped():
                break


@needs_glibc
def test_size_of_a_schema_includes_memory_that_was_freed_before(grammars):
    grammar = of({"type": "integer", "multipleOf": 9999})

    first = grammars._check(grammar).size_bytes
    gc.collect()
    second = grammars._check(grammar).size_bytes

    assert min(first, second) > 1 << 20
    assert abs(first - second) < first // 4


@needs_glibc
def test_growth_of_a_schema_is_bounded(engine):
    grammars = GrammarCompiler(engine)
    guided = grammars.compile(of(GROWING, "schema"), "schema", 50)()
    before = allocated_bytes()

    follow_until_it_fails(guided)

    assert allocated_bytes() - before < structured_output._GROWTH_BYTES * 1.25


def test_schema_whose_lexer_is_exhausted_is_compiled_again(engine):
    grammars = GrammarCompiler(engine)
    make = grammars.compile(of(GROWING, "schema"), "schema", 50)
    follow_until_it_fails(make())

    again = grammars.compile(of(GROWING, "schema"), "schema", 50)()
    again.mask(np.zeros(engine.config.vocab_size, dtype=np.float32))

    assert make()._compiled is not again._compiled
    assert not again._matcher.is_error()


def test_cached_schemas_are_bounded_with_their_growth(engine, monkeypatch):
    monkeypatch.setattr(structured_output, "_MAX_CACHED_BYTES", 3 * structured_output._GROWTH_BYTES)
    grammars, kept = GrammarCompiler(engine), weakref.WeakSet[CompiledGrammar]()

    for i in range(8):
        guided = grammars.factory(checked(i))()
        kept.add(guided._compiled)
        del guided

    assert len(kept) == 3


def test_schemas_of_all_requests_are_bounded(engine, monkeypatch):
    monkeypatch.setattr(limits, "GRAMMARS_BYTES", 2 * structured_output._GROWTH_BYTES)
    monkeypatch.setattr(structured_output, "_MAX_CACHED_BYTES", 0)
    grammars = GrammarCompiler(engine)
    requests = [grammars.factory(checked(i)) for i in range(2)]
    grammars._cache.clear()

    with pytest.raises(APIError, match="try again") as error:
        grammars.factory(checked(2))
    requests.pop()
    grammars.factory(checked(2))

    assert error.value.status == 503
