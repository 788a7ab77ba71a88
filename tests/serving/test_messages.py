"""Anthropic's API: raw requests with exact events, and Anthropic's SDK."""

from __future__ import annotations

import json

import anthropic
import httpx
import pytest
import servers
from servers import ok

from yocobit.serving import ServerSettings
from yocobit.serving.api import message_request
from yocobit.serving.api import messages as protocol
from yocobit.serving.api import protocol as chat_protocol
from yocobit.serving.api.answer import CallArguments, CallStart, Content, Done
from yocobit.serving.api.message_request import AnthropicMessage, MessagesRequest
from yocobit.serving.errors import timed_out

PATH = "/v1/messages"
SEA = [{"role": "user", "content": "Tell me about the sea."}]
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
CONTEXT = 512
SETTINGS = {"context": CONTEXT}


@pytest.fixture(scope="module")
def guarded():
    with servers.running(ServerSettings(threads=1, api_keys=("the first key",))) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def refusal(response) -> str:
    """Return the message of an error in Anthropic's shape."""
    assert response.status_code == 400, response.text
    body = response.json()
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"
    return body["error"]["message"]


def events_of(server, **body) -> list[dict]:
    """Return the events of a stream, whose names are their types."""
    body = {"messages": SEA, "max_tokens": 20, **body, "stream": True}
    with server.client.stream("POST", PATH, json=body) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        frames = "".join(response.iter_text()).split("\n\n")
    assert frames.pop() == ""
    found = []
    for frame in frames:
        name, data = frame.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def send(server, **body):
    return server.post(PATH, **{"messages": SEA, "max_tokens": 20, **body})


# ---- answers


def test_a_message_is_the_chats_answer(server, engine):
    body = ok(send(server, temperature=0, model="tiny"))

    prompt = engine.chat_template.render(SEA)
    expected = engine.generate(
        prompt, max_tokens=20, sampling=engine.sampling(temperature=0), stop=engine.stop_strings
    )
    assert body["id"].startswith("msg_")
    assert {name: body[name] for name in ("type", "role", "model")} == {
        "type": "message",
        "role": "assistant",
        "model": "tiny",
    }
    assert body["content"] == [{"type": "text", "text": expected}]
    usage = body["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == len(engine.encode(prompt))
    assert usage["cache_creation_input_tokens"] == 0
    assert usage["output_tokens"] <= 20


def test_streamed_text_has_these_events(server):
    whole = ok(send(server, temperature=0))

    start, ping, block, *deltas, stop, end, last = events_of(server, temperature=0)

    assert start["type"] == "message_start"
    message = start["message"]
    assert (message["content"], message["stop_reason"]) == ([], None)
    assert message["usage"]["output_tokens"] == 0
    assert ping == {"type": "ping"}
    text = {"type": "text", "text": ""}
    assert block == {"type": "content_block_start", "index": 0, "content_block": text}
    assert {(d["type"], d["index"], d["delta"]["type"]) for d in deltas} == {
        ("content_block_delta", 0, "text_delta")
    }
    assert "".join(d["delta"]["text"] for d in deltas) == whole["content"][0]["text"]
    assert stop == {"type": "content_block_stop", "index": 0}
    assert end["type"] == "message_delta"
    assert end["delta"] == {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    assert end["usage"]["output_tokens"] == whole["usage"]["output_tokens"]
    n_input = sum(v for name, v in end["usage"].items() if "input" in name)
    assert n_input == sum(v for name, v in whole["usage"].items() if "input" in name)
    assert last == {"type": "message_stop"}


def test_streamed_calls_have_these_events(server):
    choice = {"type": "tool", "name": "get_weather"}

    start, ping, block, *deltas, stop, end, last = events_of(
        server, tools=[WEATHER], tool_choice=choice, max_tokens=60
    )

    assert [each["type"] for each in (start, ping, last)] == [
        "message_start",
        "ping",
        "message_stop",
    ]
    call = block["content_block"]
    assert {**call, "id": ""} == {"type": "tool_use", "id": "", "name": "get_weather", "input": {}}
    assert {d["delta"]["type"] for d in deltas} == {"input_json_delta"}
    arguments = json.loads("".join(d["delta"]["partial_json"] for d in deltas))
    assert arguments["city"] in ("Oslo", "Rome")
    assert stop == {"type": "content_block_stop", "index": 0}
    assert end["delta"]["stop_reason"] == "tool_use"


def test_text_and_calls_are_blocks_in_order(server):
    body = MessagesRequest(messages=[AnthropicMessage(role="user", content="a")], max_tokens=9)
    generation = protocol.build(server.model, body, "")

    found = [
        event
        for delta in (
            Content("Well."),
            Content(""),
            CallStart(0, "call_1", "f"),
            CallArguments(0, "{}"),
            CallStart(1, "call_2", "g"),
            CallArguments(1, "{"),
            CallArguments(1, "}"),
            Done("tool_calls"),
        )
        for event in generation._events(delta)
    ]

    shapes = [(e["type"].removeprefix("content_block_"), e["index"]) for e in found]
    assert shapes == [
        *[("start", 0), ("delta", 0), ("stop", 0)],
        *[("start", 1), ("delta", 1), ("stop", 1)],
        *[("start", 2), ("delta", 2), ("delta", 2), ("stop", 2)],
    ]


def test_an_answer_without_text_has_no_blocks(server):
    generation = generation_of(server, Done("stop"))

    assert [*generation._events(Done("stop"))] == []
    assert protocol._blocks(generation._answer) == []


def generation_of(server, done: Done):
    body = MessagesRequest(
        messages=[AnthropicMessage(role="user", content="a")],
        max_tokens=9,
        stop_sequences=["@@"],
    )
    generation = protocol.build(server.model, body, "")
    generation._answer.done = done
    return generation


@pytest.mark.parametrize(
    ("done", "reason", "sequence"),
    [
        (Done("stop"), "end_turn", None),
        (Done("stop", "<|end|>"), "end_turn", None),  # the model's own stop string
        (Done("stop", "@@"), "stop_sequence", "@@"),
        (Done("length"), "max_tokens", None),
        (Done("tool_calls"), "tool_use", None),
    ],
)
def test_reasons_have_anthropics_names(server, done, reason, sequence):
    found = generation_of(server, done)._stop()

    assert found == {"stop_reason": reason, "stop_sequence": sequence}


def test_stop_reasons(server):
    whole = ok(send(server, temperature=0))["content"][0]["text"]
    stop = whole[8:12]

    cut = ok(send(server, temperature=0, stop_sequences=["@@", stop]))
    assert (cut["stop_reason"], cut["stop_sequence"]) == ("stop_sequence", stop)
    assert cut["content"][0]["text"] == whole[: whole.index(stop)]
    assert ok(send(server, max_tokens=3))["stop_reason"] == "max_tokens"
    choice = {"type": "any"}
    assert (
        ok(send(server, max_tokens=60, tools=[WEATHER], tool_choice=choice))["stop_reason"]
        == "tool_use"
    )


def test_a_limit_beyond_the_context_ends_with_it(server):
    choice = {"type": "auto"}
    body = {"max_tokens": 32_000, "tools": [WEATHER], "tool_choice": choice}

    prepared = protocol.build(
        server.model,
        MessagesRequest(messages=[AnthropicMessage(role="user", content="a")], max_tokens=32_000),
        "",
    )

    (request,) = prepared.requests
    assert request.n_tokens == CONTEXT
    assert ok(send(server, **body))["stop_reason"] in (
        *("end_turn", "tool_use", "model_context_window_exceeded"),
    )


def test_output_follows_a_schema(server):
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    form = {"type": "json_schema", "schema": {**schema, "additionalProperties": False}}

    for body in ({"output_config": {"format": form}}, {"output_format": form}):
        found = ok(send(server, max_tokens=40, **body))
        assert json.loads(found["content"][0]["text"])["a"] in (1, 2)


# ---- conversations


def converted(**body) -> list[dict]:
    decoded = chat_protocol.decode(
        json.dumps({"messages": SEA, "max_tokens": 9, **body}).encode(), MessagesRequest
    )
    return chat_protocol.to_template(message_request.chat_request(decoded).messages)


def test_blocks_become_messages():
    hint = {"cache_control": {"type": "ephemeral"}}
    found = converted(
        system=[
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2; cch=1;"},
            {"type": "text", "text": "You are ", **hint},
            {"type": "text", "text": "kind."},
        ],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Hi", **hint}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "x"},
                    {"type": "text", "text": "Well."},
                    {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "content": "42", **hint},
                    {"type": "text", "text": "And "},
                ],
            },
            {"role": "user", "content": "now?"},
            {"role": "system", "content": " Be brief."},
        ],
    )

    call = {"id": "toolu_1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    assert found == [
        {"role": "system", "content": "You are kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Well.", "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "toolu_1"},
        {"role": "user", "content": "And now? Be brief."},
    ]


def test_results_may_be_blocks():
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "4"}]}
    empty = {"type": "tool_result", "tool_use_id": "t", "is_error": True}

    found = converted(messages=[{"role": "user", "content": [result, empty]}])

    assert [each["content"] for each in found] == ["4", ""]


def test_a_final_message_of_the_assistant_is_continued(server, engine):
    messages = [*SEA, {"role": "assistant", "content": "The sea is"}]

    found = ok(send(server, messages=messages, temperature=0))

    prompt = engine.chat_template.render(messages, continue_final_message=True)
    usage = found["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == len(engine.encode(prompt))


def test_tool_choices():
    hello = AnthropicMessage(role="user", content="a")

    def choice(**fields) -> object:
        body = MessagesRequest(
            messages=[hello],
            max_tokens=1,
            tool_choice=message_request.AnthropicToolChoice(**fields),
        )
        return message_request.chat_request(body)

    assert [choice(type=kind).tool_choice for kind in ("auto", "any", "none")] == [
        *("auto", "required", "none"),
    ]
    assert choice(type="tool", name="f").tool_choice.function.name == "f"
    assert choice(type="auto", disable_parallel_tool_use=True).parallel_tool_calls is False


def test_claude_codes_request_is_answered(server):
    body = {
        "model": "tiny",
        "max_tokens": 32_000,
        "system": [
            {"type": "text", "text": "You are Claude Code.", "cache_control": {"type": "ephemeral"}}
        ],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Hello", "cache_control": {"type": "ephemeral"}}
                ],
            }
        ],
        "tools": [{**WEATHER, "cache_control": {"type": "ephemeral"}}],
        "metadata": {"user_id": "user_1"},
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "stop_sequences": ["\n"],
        "temperature": 1,
    }
    headers = {
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "claude-code-20250219",
        "x-api-key": "x",
    }

    found = server.client.post(f"{PATH}?beta=true", json=body, headers=headers)
    counted = server.client.post(
        f"{PATH}/count_tokens?beta=true", json={k: body[k] for k in ("messages", "system", "tools")}
    )

    usage = ok(found)["usage"]
    n_input = usage["input_tokens"] + usage["cache_read_input_tokens"]
    assert ok(counted) == {"input_tokens": n_input}


# ---- refused requests

UNSATISFIABLE = {"type": "json_schema", "schema": {"type": "integer", "minimum": 2, "maximum": 1}}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            {"thinking": {"type": "enabled", "budget_tokens": 1024}},
            "thinking: 'enabled' is not supported",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "messages[0].content: 'image' blocks",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "tool_result", "content": [{"type": "image"}]}],
                    }
                ]
            },
            "tool_result: 'image' blocks",
        ),
        ({"system": [{"type": "document"}]}, "system: 'document' blocks"),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            "tools[0]: 'web_search_20250305' runs on",
        ),
        ({"tool_choice": {"type": "tool"}}, "the name of the tool is missing"),
        ({"mcp_servers": [{"type": "url"}]}, "mcp_servers: "),
        (
            {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
            "context_management: 'clear_tool_uses_",
        ),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"guided_choice": ["a"]}, "guided_choice is not supported"),
        ({"response_format": {"type": "json_object"}}, "use output_config.format"),
        ({"seed": 1}, "seed: "),
        ({"stop": ["a"]}, "use stop_sequences"),
        ({"mirostat": 2}, "mirostat: "),
        ({"output_config": {"format": UNSATISFIABLE}}, "output_config.format: the schema"),
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": []}]}, "messages have no content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "'tool'"),
    ],
)
def test_unsupported_requests_are_refused(server, body, words):
    assert words in refusal(send(server, **body))


def test_errors_have_anthropics_types(server, guarded):
    unknown = send(server, model="claude-9")
    keyless = httpx.post(guarded.url + PATH, json={"messages": SEA, "max_tokens": 1})

    assert unknown.status_code == 404
    assert unknown.json()["error"]["type"] == "not_found_error"
    assert keyless.status_code == 401
    assert keyless.json()["error"]["type"] == "authentication_error"


def test_an_error_within_a_stream_is_an_event():
    frame = protocol.ANTHROPIC.frame(protocol.ANTHROPIC.error(timed_out(5, is_started=True)))

    name, data, *rest = frame.decode().split("\n")
    assert (name, rest) == ("event: error", ["", ""])
    assert json.loads(data.removeprefix("data: "))["error"]["type"] == "timeout_error"


# ---- Anthropic's SDK


def test_sdk_answers(client):
    message = client.messages.create(model="tiny", max_tokens=20, messages=SEA)

    assert message.content[0].type == "text"
    assert message.usage.output_tokens <= 20


def test_sdk_streams_text(client):
    body = {"model": "tiny", "max_tokens": 20, "messages": SEA, "extra_body": {"temperature": 0}}
    with client.messages.stream(**body) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()

    assert text == final.content[0].text
    whole = client.messages.create(**body)
    assert text == whole.content[0].text
    assert final.stop_reason == whole.stop_reason


def test_sdk_streams_calls(client):
    body = {"tools": [WEATHER], "tool_choice": {"type": "any"}, "model": "tiny", "max_tokens": 60}
    with client.messages.stream(messages=SEA, **body) as stream:
        (block,) = stream.get_final_message().content

    assert block.type == "tool_use"
    assert block.input["city"] in ("Oslo", "Rome")
    result = {"type": "tool_result", "tool_use_id": block.id, "content": "rain"}
    turns = [
        *SEA,
        {"role": "assistant", "content": [block.model_dump()]},
        {"role": "user", "content": [result]},
    ]
    assert client.messages.create(messages=turns, model="tiny", max_tokens=9).content


def test_sdk_counts_tokens(client):
    counted = client.messages.count_tokens(model="tiny", messages=SEA)

    usage = client.messages.create(model="tiny", max_tokens=1, messages=SEA).usage
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


def test_sdk_raises_its_errors(client, guarded):
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="claude-9", max_tokens=9, messages=SEA)
    with pytest.raises(anthropic.BadRequestError, match="'image' blocks"):
        image = {"type": "image", "source": {"type": "url", "url": "x"}}
        client.messages.create(
            model="tiny", max_tokens=9, messages=[{"role": "user", "content": [image]}]
        )
    wrong = anthropic.Anthropic(base_url=guarded.url, api_key="wrong", max_retries=0)
    right = anthropic.Anthropic(base_url=guarded.url, api_key="the first key", max_retries=0)
    bearer = anthropic.Anthropic(base_url=guarded.url, auth_token="the first key", max_retries=0)
    with pytest.raises(anthropic.AuthenticationError):
        wrong.messages.create(model="tiny", max_tokens=1, messages=SEA)
    for each in (right, bearer):
        assert each.messages.create(model="tiny", max_tokens=1, messages=SEA)
