"""Answers and stream events are of OpenAI's published types, field by field."""

from __future__ import annotations

import copy
import json

import pydantic
import pytest
from openai.pagination import SyncPage
from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseItemList, ResponseStreamEvent
from openai_types import validate

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
SEA = "Tell me about the sea."
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}},
    "required": ["a"],
    "additionalProperties": False,
}
FUNCTION = {"name": "f", "description": "F.", "parameters": SCHEMA, "strict": True}
FORMAT = {"name": "x", "schema": SCHEMA, "strict": True}


CHATS = {
    "text": {"max_tokens": 4, "n": 2},
    "logprobs": {"max_tokens": 4, "logprobs": True, "top_logprobs": 2},
    "JSON": {"response_format": {"type": "json_schema", "json_schema": FORMAT}},
    "required tool": {
        "tools": [{"type": "function", "function": FUNCTION}],
        "tool_choice": "required",
    },
    "tool": {"tools": [{"type": "function", "function": FUNCTION}], "max_tokens": 4},
    "seed": {"seed": 1, "stop": ["x"], "max_tokens": 9, "user": "u"},
}


@pytest.mark.parametrize("name", CHATS)
def test_chat_completions_are_valid(server, name):
    body = {"messages": [{"role": "user", "content": SEA}], **CHATS[name]}

    validate(ChatCompletion, server.post(CHAT, **body).json())
    for chunk in server.events(CHAT, **body, stream_options={"include_usage": True}):
        validate(ChatCompletionChunk, chunk)


@pytest.mark.parametrize(
    "options", [{"n": 2}, {"logprobs": 2}, {"logprobs": 1, "echo": True}, {"stop": "e"}]
)
def test_completions_are_valid(server, options):
    body = {"prompt": "The king", "max_tokens": 4, "seed": 1, **options}

    answer = server.post(TEXT, **body).json()
    if body.get("echo"):
        # Nothing precedes the first token: null, as OpenAI's server sends it against its type.
        logprobs = answer["choices"][0]["logprobs"]
        assert logprobs["token_logprobs"].pop(0) is logprobs["top_logprobs"].pop(0) is None
    validate(Completion, answer)
    for chunk in server.events(TEXT, **body) if not body.get("echo") else ():
        # A chunk's finish_reason is null until the last, which the type does not express.
        for choice in chunk["choices"]:
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        validate(Completion, chunk)


FUNCTION_TOOL = {"type": "function", **FUNCTION}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a":"x"}'}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "7"}
RESPONSE_BODIES = {
    "text": {"max_output_tokens": 4, "metadata": {"a": "b"}, "user": "u"},
    "whole text": {"stop": ["e"], "max_output_tokens": 200, "seed": 1},
    "logprobs": {
        "max_output_tokens": 4,
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
    },
    "JSON": {"text": {"format": {"type": "json_schema", **FORMAT}}},
    "JSON object": {"text": {"format": {"type": "json_object"}}, "max_output_tokens": 12},
    "required tool": {"tools": [FUNCTION_TOOL], "tool_choice": "required"},
    "named tool": {
        "tools": [FUNCTION_TOOL, {**FUNCTION_TOOL, "name": "g"}],
        "tool_choice": {"type": "function", "name": "g"},
        "parallel_tool_calls": False,
    },
    "allowed tools": {
        "tools": [{"type": "function", "name": "now"}, FUNCTION_TOOL],
        "tool_choice": {
            "type": "allowed_tools",
            "mode": "auto",
            "tools": [{"type": "function", "name": "f"}],
        },
        "max_output_tokens": 4,
    },
    "conversation": {
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": SEA}]},
            {"role": "assistant", "content": "Yes."},
            {"role": "developer", "content": "Be short."},
            CALL,
            OUTPUT,
        ],
        "instructions": "Answer.",
        "max_output_tokens": 4,
        "truncation": "auto",
        "temperature": 0,
        "top_p": 0.5,
    },
}


@pytest.mark.parametrize("name", RESPONSE_BODIES)
def test_responses_are_valid(server, name):
    body = {"input": SEA, **RESPONSE_BODIES[name]}

    response = server.post(RESPONSES, **body)
    assert response.status_code == 200, response.text
    validate(Response, response.json())
    path = f"{RESPONSES}/{response.json()['id']}"
    validate(Response, server.client.get(path).json())
    validate(ResponseItemList, server.client.get(f"{path}/input_items").json())
    for event in named_events(server, **body):
        validate(ResponseStreamEvent, event)


def test_failed_response_is_valid(server, monkeypatch):
    from yocobit.serving.api.response import Response as Generated
    from yocobit.serving.errors import APIError

    def fail(self, stream):
        raise APIError(504, "too late")

    monkeypatch.setattr(Generated, "last_chunks", fail)
    *_, last = events = named_events(server, input=SEA, max_output_tokens=3)

    for event in events:
        validate(ResponseStreamEvent, event)
    assert last["type"] == "response.failed"
    assert last["response"]["error"] == {"code": "server_error", "message": "too late"}
    assert last["response"]["status"] == "failed"


def named_events(server, **body) -> list[dict]:
    """Return the events of a streamed response; each is named by its type."""
    with server.client.stream("POST", RESPONSES, json={**body, "stream": True}) as response:
        assert response.status_code == 200, response.read()
        blocks = response.read().decode().strip().split("\n\n")
    found = []
    for block in blocks:
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def test_models_are_valid(server):
    models = server.client.get("/v1/models").json()

    validate(SyncPage[Model], models)
    for model in models["data"]:
        validate(Model, model)
    validate(Model, server.client.get("/v1/models/tiny").json())


def test_embeddings_are_valid(server):
    validate(CreateEmbeddingResponse, server.post("/v1/embeddings", input=["a", "b"]).json())


@pytest.mark.parametrize(
    ("kind", "path", "body"),
    [
        (ChatCompletion, CHAT, {"messages": [{"role": "user", "content": SEA}], "max_tokens": 2}),
        (Completion, TEXT, {"prompt": SEA, "max_tokens": 2}),
        (Response, RESPONSES, {"input": SEA, "max_output_tokens": 2}),
        (CreateEmbeddingResponse, "/v1/embeddings", {"input": "a"}),
    ],
)
def test_validation_is_strict(server, kind, path, body):
    answer = server.post(path, **body).json()
    required = [name for name, field in kind.model_fields.items() if field.is_required()]
    assert len(required) >= 4

    for name in required:
        for wrong in ({}, {name: {"wrong": 1}}):
            changed = copy.deepcopy(answer)
            del changed[name]
            with pytest.raises(pydantic.ValidationError):
                validate(kind, {**changed, **wrong})
    with pytest.raises(AssertionError, match="unknown"):
        validate(kind, {**answer, "unknown": 1})
    inner = copy.deepcopy(answer)
    inner["usage"]["unknown"] = 1
    with pytest.raises(AssertionError, match="unknown"):
        validate(kind, inner)
