"""The server as users of OpenAI's and Groq's own clients meet it.

Only what the two SDKs and their documentation promise is asserted. The clients are strict: an
answer that is not of the SDK's types raises APIResponseValidationError. The packaged model writes
nonsense, so that nothing here asks what a text means.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any, Literal

import groq
import openai
import pytest
import servers
from pydantic import BaseModel, ConfigDict, Field

from yocobit import Engine
from yocobit.serving import ServerSettings

MODEL = "tiny"
SEA = [{"role": "user", "content": "Tell me about the sea."}]
KING = "The king of the island"
KEYS = ("the first key", "the second key")


class Day(BaseModel):
    model_config = ConfigDict(extra="forbid")

    weekday: Literal["Monday", "Tuesday"]
    degrees: int = Field(ge=-40, le=50)


class Forecast(BaseModel):
    """What the model is asked for, small enough to end soon."""

    model_config = ConfigDict(extra="forbid")

    city: Literal["Oslo", "Rome", "Lima"]
    windy: bool
    days: list[Day] = Field(min_length=1, max_length=2)


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a day.",
        "parameters": Day.model_json_schema(),
    },
}
CLOCK = {
    "type": "function",
    "function": {
        "name": "clock",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"enum": ["UTC", "CET"]}},
            "required": ["zone"],
            "additionalProperties": False,
        },
    },
}
FORECAST_FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "forecast", "schema": Forecast.model_json_schema(), "strict": True},
}


# ---- clients and servers ----


def connect(sdk: ModuleType, url: str, kind: str = "", **options: Any) -> Any:
    """A strict client of the server at url; kind is "" or "Async"."""
    base_url = f"{url}/v1" if sdk is openai else url  # Groq's client appends /openai/v1
    options = {"api_key": "none", "max_retries": 0, "_strict_response_validation": True, **options}
    return getattr(sdk, kind + {openai: "OpenAI", groq: "Groq"}[sdk])(base_url=base_url, **options)


@pytest.fixture(scope="module", params=[openai, groq], ids=["openai", "groq"])
def sdk(request) -> ModuleType:
    return request.param


@pytest.fixture(scope="module")
def server():
    with servers.running(ServerSettings(threads=1, alias=("gpt-4o",))) as running:
        yield running


@pytest.fixture(scope="module")
def guarded():
    """A server that wants a key, with little room for text."""
    settings = ServerSettings(threads=1, api_keys=KEYS, context=128)
    with servers.running(settings) as running:
        yield running


@pytest.fixture(scope="module")
def narrow():
    """A server that answers one request at a time and lets none wait."""
    with servers.running(ServerSettings(threads=1, max_sequences=1, max_waiting=0)) as running:
        yield running


@pytest.fixture(scope="module")
def hurried():
    """A server that gives up soon."""
    with servers.running(ServerSettings(threads=1, timeout_s=0.05)) as running:
        yield running


@pytest.fixture(scope="module")
def client(sdk, server):
    with connect(sdk, server.url) as client:
        yield client


@pytest.fixture(scope="module")
def openai_client(server):
    with connect(openai, server.url) as client:
        yield client


@pytest.fixture(scope="module")
def groq_client(server):
    with connect(groq, server.url) as client:
        yield client


@pytest.fixture(scope="module")
def lenient(server):
    """For what the API answers although the SDK's types do not allow it: null in lists."""
    with connect(openai, server.url, _strict_response_validation=False) as client:
        yield client


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(threads=1)


@pytest.fixture(scope="module")
def endless(engine) -> dict[str, Any]:
    """Options that make the model repeat one word for seconds, whatever it would say."""
    return {"max_completion_tokens": 8000, "logit_bias": {str(engine.encode(" sea")[-1]): 100}}


def chat(client: Any, **body: Any) -> Any:
    return client.chat.completions.create(**{"model": MODEL, "messages": SEA, **body})


def text(completion: Any, index: int = 0) -> str:
    return completion.choices[index].message.content


def joined(chunks: Iterable[Any], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(choice.delta.content or "" for choice in choices)


def details(error: Any) -> dict[str, Any]:
    """The error object of the answer; OpenAI's client has unwrapped it already."""
    return error.body.get("error", error.body)


def n_running(server: servers.Server) -> float:
    metrics = server.client.get("/metrics").text
    return float(re.search(r"^yocobit:num_requests_running\S* (\S+)$", metrics, re.M)[1])


def wait_until(condition: Callable[[], bool], timeout_s: float = 3.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} seconds"
        time.sleep(0.005)


# ---- chat ----


def test_chat_completion_has_the_documented_fields(client):
    started = int(time.time())

    completion = chat(client, max_completion_tokens=12, seed=1)

    assert completion.id.startswith("chatcmpl-")
    assert completion.object == "chat.completion"
    assert completion.model == MODEL
    assert started <= completion.created <= time.time()
    assert completion.system_fingerprint
    [choice] = completion.choices
    assert choice.index == 0
    assert choice.finish_reason == "length"
    assert choice.logprobs is None
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.message.tool_calls is None


def test_chat_usage_counts_tokens(client, engine):
    short = chat(client, max_completion_tokens=7, seed=1).usage
    long = chat(client, messages=[{"role": "user", "content": KING * 9}], max_tokens=3).usage

    assert short.completion_tokens == 7
    assert short.prompt_tokens >= len(engine.encode(SEA[0]["content"])) - 1
    assert short.total_tokens == short.prompt_tokens + short.completion_tokens
    assert long.completion_tokens == 3
    assert long.prompt_tokens > short.prompt_tokens


def test_chat_ends_with_the_end_token(client, engine):
    completion = chat(client, logit_bias={str(max(engine.end_tokens)): 100})

    assert completion.choices[0].finish_reason == "stop"
    assert not text(completion)


def test_chat_repeats_itself_for_a_seed(client):
    first, again, other = (chat(client, max_tokens=30, temperature=1, seed=s) for s in (5, 5, 6))

    assert text(first) == text(again) != text(other)
    assert first.id != again.id
    assert first.system_fingerprint == again.system_fingerprint


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1, "top_p": 1e-6}])
def test_chat_ignores_the_seed_when_only_one_token_can_be_drawn(client, sampling):
    first, other = (chat(client, max_tokens=20, seed=seed, **sampling) for seed in (1, 2))

    assert text(first) == text(other) == text(chat(client, max_tokens=20, temperature=0))


def test_chat_accepts_an_alias(client):
    completion = chat(client, model="gpt-4o", max_tokens=5, seed=2)

    assert text(completion) == text(chat(client, max_tokens=5, seed=2))


def test_chat_accepts_fields_that_say_nothing_about_the_text(client):
    plain = chat(client, max_tokens=8, seed=2)

    completion = chat(
        client,
        max_tokens=8,
        seed=2,
        user="someone",
        metadata={"trace": "7"},
        store=False,
        service_tier="auto",
        logit_bias={},
        presence_penalty=0,
        frequency_penalty=0,
        stop=None,
    )

    assert text(completion) == text(plain)


def test_chat_stops_before_the_stop_string(client):
    whole = text(chat(client, max_tokens=30, seed=3))
    word = whole.split()[4]

    completion = chat(client, max_tokens=30, seed=3, stop=word)

    assert completion.choices[0].finish_reason == "stop"
    assert text(completion) == whole[: whole.index(word)]


def test_chat_stops_before_the_first_of_several_stop_strings(client):
    whole = text(chat(client, max_tokens=30, seed=3))
    words = [whole[20:28], whole[10:16], "\x00", "@@@"]

    options = {"max_tokens": 30, "seed": 3, "stop": words}

    assert text(chat(client, **options)) == whole[: min(whole.index(w) for w in words[:2])]
    assert joined(chat(client, stream=True, **options)) == text(chat(client, **options))


def test_chat_returns_n_choices_and_counts_all_their_tokens(client):
    completion = chat(client, n=3, max_tokens=10, temperature=1.5, seed=4)

    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    assert len({text(completion, index) for index in range(3)}) == 3
    assert completion.usage.completion_tokens == 30


def test_chat_logit_bias_of_100_selects_and_of_minus_100_bans(client, engine):
    options = {"max_tokens": 4, "temperature": 0, "logprobs": True}
    first = chat(client, **options).choices[0].logprobs.content[0].token

    selected = chat(client, logit_bias={str(engine.encode(" sea")[-1]): 100}, **options)
    banned = chat(client, logit_bias={str(engine.encode(first)[-1]): -100}, **options)

    assert {t.token for t in selected.choices[0].logprobs.content} == {" sea"}
    assert banned.choices[0].logprobs.content[0].token != first


def test_chat_logprobs_describe_each_token(client):
    completion = chat(client, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3)

    tokens = completion.choices[0].logprobs.content
    assert len(tokens) == completion.usage.completion_tokens == 6
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == text(completion)
    for token in tokens:
        tops = [top.logprob for top in token.top_logprobs]
        assert len(tops) == 3
        assert tops == sorted(tops, reverse=True)
        assert all(logprob <= 0 for logprob in tops)
        # Greedy: what was drawn is the likeliest.
        assert (token.token, token.logprob) == (
            token.top_logprobs[0].token,
            token.top_logprobs[0].logprob,
        )
        # Disjoint outcomes; the slack is the rounding of three float32 logarithms.
        assert sum(math.exp(logprob) for logprob in tops) <= 1 + 1e-5


def test_chat_logprobs_without_top_logprobs_list_no_others(client):
    completion = chat(client, max_tokens=3, logprobs=True)

    assert [token.top_logprobs for token in completion.choices[0].logprobs.content] == [[]] * 3


def test_chat_reads_developer_as_system(client):
    system, developer, none = (
        chat(client, messages=head + SEA, max_tokens=10, seed=1)
        for head in (
            [{"role": "system", "content": "Speak of fish."}],
            [{"role": "developer", "content": "Speak of fish."}],
            [],
        )
    )

    assert text(system) == text(developer)
    assert system.usage.prompt_tokens == developer.usage.prompt_tokens > none.usage.prompt_tokens


def test_chat_reads_text_parts_as_one_text(client):
    parts = [{"type": "text", "text": "Tell me "}, {"type": "text", "text": "about the sea."}]

    completion = chat(client, messages=[{"role": "user", "content": parts}], max_tokens=10, seed=1)

    assert text(completion) == text(chat(client, max_tokens=10, seed=1))


def test_chat_continues_a_conversation(client):
    answer = chat(client, max_tokens=10, seed=1)
    conversation = [*SEA, answer.choices[0].message, {"role": "user", "content": "And?"}]

    completion = chat(client, messages=conversation, max_tokens=5, seed=1)

    assert completion.usage.prompt_tokens > answer.usage.prompt_tokens


def test_chat_finds_a_prompt_in_its_cache_and_says_the_same(client, sdk):
    messages = [{"role": "user", "content": f"For {sdk.__name__}: " + KING * 10}]

    first, again = (chat(client, messages=messages, max_tokens=20, seed=1) for _ in range(2))

    cached = [usage.prompt_tokens_details.cached_tokens for usage in (first.usage, again.usage)]
    assert 0 <= cached[0] < cached[1] <= again.usage.prompt_tokens
    assert text(first) == text(again)


# ---- chat, streamed ----


def test_stream_pieces_are_the_whole_text(client):
    options = {"max_tokens": 20, "seed": 7}

    chunks = list(chat(client, stream=True, **options))

    assert joined(chunks) == text(chat(client, **options))
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    assert chunks[0].object == "chat.completion.chunk"
    assert chunks[0].choices[0].delta.role == "assistant"
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert reasons == [None] * (len(reasons) - 1) + ["length"]
    assert not any(chunk.usage for chunk in chunks)
    assert len(chunks) > 5  # pieces, not the whole at once


def test_stream_has_its_usage_last_when_asked(client):
    options = {"max_tokens": 9, "seed": 7}

    *chunks, last = chat(
        client, stream=True, extra_body={"stream_options": {"include_usage": True}}, **options
    )

    assert last.choices == []
    assert last.usage.completion_tokens == 9
    assert last.usage.prompt_tokens == chat(client, **options).usage.prompt_tokens
    assert last.usage.prompt_tokens_details.cached_tokens <= last.usage.prompt_tokens
    assert all(chunk.choices for chunk in chunks)
    assert not any(chunk.usage for chunk in chunks)


def test_stream_has_null_as_usage_of_all_chunks_but_the_last(openai_client):
    options = {"stream": True, "max_tokens": 3}

    asked = list(chat(openai_client, stream_options={"include_usage": True}, **options))
    unasked = list(chat(openai_client, **options))

    # "All other chunks will also include a usage field, but with a null value."
    assert all("usage" in chunk.model_fields_set for chunk in asked)
    assert [chunk.usage for chunk in asked[:-1]] == [None] * (len(asked) - 1)
    assert not any("usage" in chunk.model_fields_set for chunk in unasked)


def test_stream_of_n_choices_tells_them_apart(client):
    options = {"n": 2, "max_tokens": 10, "temperature": 1.5, "seed": 4}
    completion = chat(client, **options)

    chunks = list(chat(client, stream=True, **options))

    for index in range(2):
        assert joined(chunks, index) == text(completion, index)
    reasons = [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason]
    assert reasons == ["length", "length"]


def test_stream_has_the_logprobs_of_the_whole(client):
    options = {"max_tokens": 6, "seed": 1, "logprobs": True, "top_logprobs": 2}

    chunks = list(chat(client, stream=True, **options))

    choices = [choice for chunk in chunks for choice in chunk.choices if choice.logprobs]
    streamed = [token.token for choice in choices for token in choice.logprobs.content or ()]
    whole = chat(client, **options).choices[0].logprobs.content
    assert streamed == [token.token for token in whole]


def test_streaming_response_is_read_by_lines(client):
    options = {"model": MODEL, "messages": SEA, "max_tokens": 5, "seed": 1, "stream": True}

    with client.chat.completions.with_streaming_response.create(**options) as response:
        lines = [line for line in response.iter_lines() if line]

    assert response.headers["content-type"].startswith("text/event-stream")
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert [json.loads(line[6:])["object"] for line in lines[:-1]] == (
        ["chat.completion.chunk"] * (len(lines) - 1)
    )


@pytest.mark.parametrize("stream", [False, True])
def test_streaming_response_is_parsed(client, stream):
    options = {"model": MODEL, "messages": SEA, "max_tokens": 5, "seed": 1}

    with client.chat.completions.with_streaming_response.create(
        stream=stream, **options
    ) as response:
        parsed = response.parse()
        said = joined(parsed) if stream else text(parsed)

    assert said == text(chat(client, **options))


def test_stream_helper_fires_events(openai_client):
    options = {"max_tokens": 8, "seed": 1}
    whole = text(chat(openai_client, **options))

    with openai_client.chat.completions.stream(
        model=MODEL,
        messages=SEA,
        logprobs=True,
        top_logprobs=1,
        stream_options={"include_usage": True},
        **options,
    ) as stream:
        events = list(stream)

    deltas = [event for event in events if event.type == "content.delta"]
    assert "".join(event.delta for event in deltas) == deltas[-1].snapshot == whole
    [done] = [event for event in events if event.type == "content.done"]
    assert done.content == whole
    [logprobs] = [event for event in events if event.type == "logprobs.content.done"]
    assert len(logprobs.content) == stream.current_completion_snapshot.usage.completion_tokens == 8


def test_stream_helper_assembles_the_completion(openai_client):
    options = {"model": MODEL, "messages": SEA, "n": 2, "temperature": 1.5, "seed": 1}
    # The helper raises for an answer of finish_reason "length": end at a letter of the text.
    options |= {"max_tokens": 200, "stop": ["a", "e", "i", "o", "u"][:4]}

    with openai_client.chat.completions.stream(**options) as stream:
        final = stream.get_final_completion()

    whole = openai_client.chat.completions.create(**options)
    assert final.object == "chat.completion"
    assert [text(final, index) for index in range(2)] == [text(whole, index) for index in range(2)]
    assert {choice.message.role for choice in final.choices} == {"assistant"}
    assert {choice.finish_reason for choice in final.choices} == {"stop"}


# ---- Groq's own fields ----


def test_groq_usage_has_times(groq_client):
    usage = chat(groq_client, max_tokens=5).usage

    assert usage.queue_time >= 0
    assert usage.prompt_time >= 0
    assert usage.completion_time > 0
    assert usage.total_time > 0


def test_groq_total_time_is_prompt_and_completion_time(groq_client):
    usage = chat(groq_client, max_tokens=5).usage

    # "completion time and prompt time combined": the queue's is apart. One rounding of the sum.
    assert usage.total_time == pytest.approx(usage.prompt_time + usage.completion_time, rel=1e-9)


def test_groq_names_the_request(groq_client):
    first, second = (chat(groq_client, max_tokens=2).x_groq.id for _ in range(2))

    assert first.startswith("req_")
    assert first != second


def test_groq_stream_names_the_request_first_and_last_and_ends_with_its_usage(groq_client):
    first, *others, last = chat(groq_client, max_tokens=5, stream=True)

    assert first.x_groq.id == last.x_groq.id
    assert [chunk.x_groq for chunk in others] == [None] * len(others)
    assert last.x_groq.error is None
    assert last.x_groq.usage.completion_tokens == 5
    assert last.x_groq.usage.total_time > 0


def test_groq_says_which_seed_was_used(groq_client):
    whole = chat(groq_client, max_tokens=2, seed=11)
    *_, last = chat(groq_client, max_tokens=2, seed=11, stream=True)

    assert whole.x_groq.seed == 11
    assert last.x_groq.seed == 11  # "Sent in the final chunk."


def test_groq_repeats_an_answer_by_the_seed_that_it_names(groq_client):
    first = chat(groq_client, max_tokens=20, temperature=1)

    again = chat(groq_client, max_tokens=20, temperature=1, seed=first.x_groq.seed)

    assert text(first) == text(again)


# ---- answers in JSON ----


def test_json_object_is_an_object(client):
    messages = [{"role": "user", "content": "Answer in JSON."}]

    completion = chat(
        client, messages=messages, response_format={"type": "json_object"}, max_tokens=60, seed=1
    )

    assert isinstance(json.loads(text(completion)), dict)
    assert completion.choices[0].finish_reason == "stop"


def test_json_schema_is_followed(client):
    completion = chat(client, response_format=FORECAST_FORMAT, seed=1)

    Forecast.model_validate_json(text(completion), strict=True)
    assert completion.choices[0].finish_reason == "stop"


def test_json_schema_is_followed_by_streams_and_by_all_choices(client):
    options = {"response_format": FORECAST_FORMAT, "n": 2, "temperature": 1.5, "seed": 1}

    chunks = list(chat(client, stream=True, **options))

    for index in range(2):
        Forecast.model_validate_json(joined(chunks, index), strict=True)


@pytest.mark.parametrize("max_tokens", [3, 30, 50, 70])
def test_json_that_does_not_fit_is_refused_or_said_to_be_cut(client, sdk, max_tokens):
    # OpenAI cuts and says "length"; Groq refuses (json_validate_failed).
    try:
        completion = chat(client, response_format=FORECAST_FORMAT, max_tokens=max_tokens, seed=1)
    except sdk.BadRequestError as error:
        assert "max_tokens" in details(error)["message"]
        return

    if completion.choices[0].finish_reason != "length":
        Forecast.model_validate_json(text(completion), strict=True)


def test_parse_returns_the_pydantic_model(openai_client):
    completion = openai_client.chat.completions.parse(
        model=MODEL, messages=SEA, response_format=Forecast, seed=1
    )

    message = completion.choices[0].message
    assert isinstance(message.parsed, Forecast)
    assert message.parsed == Forecast.model_validate_json(message.content)


def test_parse_raises_when_the_answer_does_not_fit(openai_client):
    with pytest.raises((openai.LengthFinishReasonError, openai.BadRequestError)):
        openai_client.chat.completions.parse(
            model=MODEL, messages=SEA, response_format=Forecast, max_tokens=3
        )


def test_stream_helper_parses_the_pydantic_model(openai_client):
    with openai_client.chat.completions.stream(
        model=MODEL, messages=SEA, response_format=Forecast, seed=1
    ) as stream:
        events = list(stream)

    [done] = [event for event in events if event.type == "content.done"]
    assert isinstance(done.parsed, Forecast)
    assert stream.get_final_completion().choices[0].message.parsed == done.parsed


# ---- tools ----


def test_tool_choice_required_calls_a_tool(client):
    completion = chat(client, tools=[WEATHER, CLOCK], tool_choice="required", seed=1)

    [choice] = completion.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls
    assert not choice.message.content
    for call in choice.message.tool_calls:
        assert call.type == "function"
        assert call.id
        assert call.function.name in ("weather", "clock")
        assert isinstance(json.loads(call.function.arguments), dict)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", ["weather", "clock"])
def test_named_tool_is_called_with_arguments_of_its_schema(client, name, seed):
    choice = {"type": "function", "function": {"name": name}}

    completion = chat(client, tools=[WEATHER, CLOCK], tool_choice=choice, seed=seed)

    [call] = completion.choices[0].message.tool_calls
    assert call.function.name == name
    if name == "weather":
        Day.model_validate_json(call.function.arguments, strict=True)
    else:
        assert json.loads(call.function.arguments)["zone"] in ("UTC", "CET")
    # OpenAI's API says "stop" of a call that was named, Groq's says "tool_calls".
    assert completion.choices[0].finish_reason in ("stop", "tool_calls")


def test_tool_calls_have_ids_of_their_own(client):
    completion = chat(client, tools=[CLOCK], tool_choice="required", n=3, seed=1)

    ids = [call.id for choice in completion.choices for call in choice.message.tool_calls]
    assert len(set(ids)) == len(ids) >= 3


def test_parallel_tool_calls_false_calls_one_tool(client):
    completion = chat(
        client, tools=[WEATHER, CLOCK], tool_choice="required", parallel_tool_calls=False, seed=1
    )

    assert len(completion.choices[0].message.tool_calls) == 1


def test_tool_choice_none_calls_no_tool(client):
    completion = chat(client, tools=[CLOCK], tool_choice="none", max_tokens=10, seed=1)

    assert completion.choices[0].message.tool_calls is None
    assert text(completion)


def test_tool_choice_auto_either_calls_or_speaks(client):
    [choice] = chat(client, tools=[CLOCK], tool_choice="auto", seed=1).choices

    assert (choice.finish_reason == "tool_calls") == bool(choice.message.tool_calls)
    assert choice.message.tool_calls or choice.message.content


def test_tool_parameters_may_refer_to_their_definitions(client):
    schema = Forecast.model_json_schema()
    assert "$defs" in schema
    tool = {"type": "function", "function": {"name": "forecast", "parameters": schema}}
    choice = {"type": "function", "function": {"name": "forecast"}}

    completion = chat(client, tools=[tool, CLOCK], tool_choice=choice, seed=1)

    [call] = completion.choices[0].message.tool_calls
    Forecast.model_validate_json(call.function.arguments, strict=True)


def test_tool_without_parameters_is_called_without_arguments(client):
    tool = {"type": "function", "function": {"name": "now"}}

    completion = chat(client, tools=[tool], tool_choice="required", max_tokens=60, seed=1)

    # "Omitting parameters defines a function with an empty parameter list."
    for call in completion.choices[0].message.tool_calls:
        assert json.loads(call.function.arguments) == {}


def test_deprecated_function_call_is_obeyed_or_refused(client, sdk):
    function = CLOCK["function"]

    try:
        completion = chat(
            client, functions=[function], function_call={"name": "clock"}, max_tokens=60
        )
    except sdk.BadRequestError as error:
        assert details(error)["param"] in ("functions", "function_call")
    else:
        assert completion.choices[0].message.function_call.name == "clock"


def test_streamed_tool_calls_are_the_whole_ones(client):
    options = {"tools": [WEATHER, CLOCK], "tool_choice": "required", "seed": 1}
    [choice] = chat(client, **options).choices

    chunks = list(chat(client, stream=True, **options))

    calls: dict[int, dict[str, str]] = {}
    for chunk in chunks:
        for delta in chunk.choices[0].delta.tool_calls or ():
            call = calls.setdefault(delta.index, {"id": "", "name": "", "arguments": ""})
            call["id"] += delta.id or ""
            call["name"] += delta.function.name or ""
            call["arguments"] += delta.function.arguments or ""
    assert sorted(calls) == list(range(len(choice.message.tool_calls)))
    for index, call in enumerate(choice.message.tool_calls):
        assert calls[index]["id"]
        assert calls[index]["name"] == call.function.name
        assert calls[index]["arguments"] == call.function.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_stream_helper_assembles_tool_calls(openai_client):
    with openai_client.chat.completions.stream(
        model=MODEL,
        messages=SEA,
        tools=[openai.pydantic_function_tool(Day, name="weather")],
        tool_choice="required",
        seed=1,
    ) as stream:
        events = list(stream)
        calls = stream.get_final_completion().choices[0].message.tool_calls

    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    deltas = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
    assert len(done) == len(calls) >= 1
    for event, call in zip(done, calls, strict=True):
        assert (event.name, call.type) == ("weather", "function")
        pieces = [delta.arguments_delta for delta in deltas if delta.index == event.index]
        assert "".join(pieces) == event.arguments == call.function.arguments
        assert isinstance(call.function.parsed_arguments, Day)


@pytest.mark.parametrize("model", [Day, Forecast], ids=["flat", "nested"])
def test_parse_returns_the_arguments_as_pydantic_model(openai_client, model):
    completion = openai_client.chat.completions.parse(
        model=MODEL,
        messages=SEA,
        tools=[openai.pydantic_function_tool(model, name="weather")],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        seed=1,
    )

    [call] = completion.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, model)


def test_tool_results_are_read(client):
    call = chat(client, tools=[CLOCK], tool_choice="required", seed=1)
    message = call.choices[0].message
    results = [
        {"role": "tool", "tool_call_id": tool_call.id, "content": "It is 10:42."}
        for tool_call in message.tool_calls
    ]

    # The message goes back as the SDK gave it: the documented way.
    completion = chat(client, messages=[*SEA, message, *results], tools=[CLOCK], max_tokens=9)

    assert completion.usage.prompt_tokens > call.usage.prompt_tokens
    assert completion.choices[0].message.role == "assistant"


def test_tool_results_in_parts_are_read_as_one_text(client):
    call = {"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    asked = [*SEA, {"role": "assistant", "content": None, "tool_calls": [call]}]
    parts = [{"type": "text", "text": "10:"}, {"type": "text", "text": "42"}]

    whole, split = (
        chat(
            client,
            messages=[*asked, {"role": "tool", "tool_call_id": "call_1", "content": content}],
            max_tokens=9,
            seed=1,
        )
        for content in ("10:42", parts)
    )

    assert text(whole) == text(split)
    assert whole.usage.prompt_tokens == split.usage.prompt_tokens


# ---- legacy completions ----


def complete(client: openai.OpenAI, **body: Any) -> Any:
    return client.completions.create(**{"model": MODEL, "prompt": KING, **body})


def test_completion_has_the_documented_fields(openai_client, engine):
    completion = complete(openai_client, max_tokens=9, seed=1)

    assert completion.id.startswith("cmpl-")
    assert completion.object == "text_completion"
    assert completion.model == MODEL
    [choice] = completion.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert completion.usage.prompt_tokens == len(engine.encode(KING))
    assert completion.usage.completion_tokens == 9
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + 9


def test_completion_is_of_16_tokens_by_default(openai_client, endless):
    completion = complete(openai_client, logit_bias=endless["logit_bias"])

    assert completion.usage.completion_tokens == 16


def test_completion_of_token_ids_is_that_of_their_text(openai_client, engine):
    options = {"max_tokens": 12, "seed": 1}

    of_text = complete(openai_client, **options)
    of_tokens = complete(openai_client, prompt=engine.encode(KING), **options)

    assert of_tokens.choices[0].text == of_text.choices[0].text
    assert of_tokens.usage.prompt_tokens == of_text.usage.prompt_tokens


@pytest.mark.parametrize("kind", ["texts", "tokens"])
def test_completion_answers_each_prompt_of_a_list(openai_client, engine, kind):
    prompts = [KING, "In the beginning", "A ship"]
    listed = prompts if kind == "texts" else [engine.encode(prompt) for prompt in prompts]
    options = {"max_tokens": 8, "temperature": 0}

    completion = complete(openai_client, prompt=listed, **options)

    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    alone = [complete(openai_client, prompt=prompt, **options) for prompt in prompts]
    assert [c.text for c in completion.choices] == [one.choices[0].text for one in alone]
    assert completion.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in alone)


def test_completion_returns_n_choices_of_each_prompt(openai_client):
    completion = complete(
        openai_client, prompt=[KING, "A ship"], n=2, echo=True, max_tokens=5, seed=1
    )

    assert [choice.index for choice in completion.choices] == [0, 1, 2, 3]
    texts = [choice.text for choice in completion.choices]
    assert [t.startswith(KING) for t in texts] == [True, True, False, False]
    assert [t.startswith("A ship") for t in texts] == [False, False, True, True]
    assert completion.usage.completion_tokens == 20


def test_completion_logprobs_describe_each_token(openai_client):
    completion = complete(openai_client, max_tokens=6, temperature=0, logprobs=2)

    [choice] = completion.choices
    logprobs = choice.logprobs
    assert "".join(logprobs.tokens) == choice.text
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 6
    starts = [len("".join(logprobs.tokens[:i])) for i in range(6)]
    assert [offset - logprobs.text_offset[0] for offset in logprobs.text_offset] == starts
    for token, logprob, top in zip(
        logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True
    ):
        assert 2 <= len(top) <= 3  # "up to logprobs+1 elements"
        assert top[token] == logprob == max(top.values()) <= 0


@pytest.mark.parametrize("max_tokens", [0, 4])
@pytest.mark.parametrize("kind", ["text", "tokens", "tokens without the first"])
def test_completion_echo_scores_the_prompt(lenient, engine, kind, max_tokens):
    tokens = engine.encode(KING)
    prompt = {"text": KING, "tokens": tokens, "tokens without the first": tokens[1:]}[kind]
    options = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0}

    completion = complete(lenient, echo=True, logprobs=1, **options)

    [choice] = completion.choices
    logprobs = choice.logprobs
    if max_tokens == 0:
        assert choice.text == KING
    else:
        assert choice.text == KING + complete(lenient, **options).choices[0].text
    assert len(logprobs.tokens) == completion.usage.total_tokens
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset)
    assert logprobs.token_logprobs[0] is None  # nothing comes before the first token
    assert all(logprob <= 0 for logprob in logprobs.token_logprobs[1:])


@pytest.mark.parametrize("with_first", [True, False])
def test_completion_text_offset_is_where_a_token_stands(lenient, engine, with_first):
    prompt = engine.encode(KING)[0 if with_first else 1 :]

    [choice] = complete(lenient, prompt=prompt, max_tokens=3, echo=True, logprobs=1).choices

    # The first token begins the text and may be a special one, which is no part of it.
    placed = list(zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True))[1:]
    assert [choice.text[at : at + len(token)] for token, at in placed] == [t for t, _ in placed]


def test_completion_scores_a_token_as_it_drew_it(lenient):
    drawn = complete(lenient, max_tokens=5, temperature=0, logprobs=0, echo=True).choices[0]

    scored = complete(lenient, prompt=drawn.text, max_tokens=0, logprobs=0, echo=True).choices[0]

    assert scored.logprobs.tokens == drawn.logprobs.tokens
    assert scored.logprobs.token_logprobs == drawn.logprobs.token_logprobs


# Pieces of a streamed completion have null as finish_reason, which the SDK's type does not know.


def test_completion_streams_the_whole_text(lenient):
    options = {"max_tokens": 9, "seed": 1}

    *chunks, last = complete(
        lenient, stream=True, stream_options={"include_usage": True}, **options
    )

    whole = complete(lenient, **options)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert {chunk.object for chunk in (*chunks, last)} == {"text_completion"}
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(reasons) - 1) + ["length"]
    assert last.choices == []
    assert last.usage.completion_tokens == 9


def test_completion_streams_several_prompts_apart(lenient):
    options = {"prompt": [KING, "A ship"], "max_tokens": 6, "temperature": 0}
    texts = ["", ""]

    for chunk in complete(lenient, stream=True, **options):
        for choice in chunk.choices:
            texts[choice.index] += choice.text

    assert texts == [choice.text for choice in complete(lenient, **options).choices]


# ---- models ----


def test_models_are_listed(client):
    models = client.models.list()

    assert models.object == "list"
    assert MODEL in [model.id for model in models.data]
    assert {model.object for model in models.data} == {"model"}


def test_model_is_retrieved_as_it_is_listed(client):
    [listed] = [model for model in client.models.list().data if model.id == MODEL]

    assert client.models.retrieve(MODEL) == listed
    assert client.models.retrieve("gpt-4o").object == "model"


# ---- errors ----


@pytest.mark.parametrize("stream", [False, True])
def test_unknown_model_is_not_found(client, sdk, stream):
    with pytest.raises(sdk.NotFoundError) as caught:
        chat(client, model="huge", stream=stream)

    assert details(caught.value)["code"] == "model_not_found"
    assert "huge" in caught.value.message


def test_unknown_model_is_not_retrieved(client, sdk):
    with pytest.raises(sdk.NotFoundError) as caught:
        client.models.retrieve("huge")

    assert details(caught.value)["code"] == "model_not_found"


def test_what_is_not_served_is_not_found(client, sdk):
    with pytest.raises(sdk.NotFoundError) as caught:
        client.embeddings.create(model=MODEL, input="the sea")

    assert details(caught.value)["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_prompt_longer_than_the_context_is_a_bad_request(guarded, sdk, stream):
    with (
        connect(sdk, guarded.url, api_key=KEYS[0]) as client,
        pytest.raises(sdk.BadRequestError) as caught,
    ):
        chat(client, messages=[{"role": "user", "content": KING * 50}], stream=stream)

    error = details(caught.value)
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "messages"
    assert error["type"] == "invalid_request_error"
    assert "128" in error["message"]


def test_completion_prompt_longer_than_the_context_is_a_bad_request(guarded):
    with (
        connect(openai, guarded.url, api_key=KEYS[0]) as client,
        pytest.raises(openai.BadRequestError) as caught,
    ):
        complete(client, prompt=KING * 50)

    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "prompt"
    assert caught.value.type == "invalid_request_error"


def test_answer_ends_with_the_context(guarded, sdk, endless):
    with connect(sdk, guarded.url, api_key=KEYS[0]) as client:
        completion = chat(client, logit_bias=endless["logit_bias"])

    assert completion.choices[0].finish_reason == "length"
    assert completion.usage.total_tokens <= 128


@pytest.mark.parametrize("key", KEYS)
def test_each_key_opens_the_server(guarded, sdk, key):
    with connect(sdk, guarded.url, api_key=key) as client:
        assert text(chat(client, max_tokens=2))


def test_wrong_key_does_not_open_the_server(guarded, sdk):
    with connect(sdk, guarded.url, api_key="a third key") as client:
        with pytest.raises(sdk.AuthenticationError) as caught:
            chat(client, max_tokens=2)
        with pytest.raises(sdk.AuthenticationError):
            client.models.list()

    assert details(caught.value)["code"] == "invalid_api_key"
    assert "a third key" not in caught.value.message


def test_no_key_does_not_open_the_server(guarded, sdk):
    with connect(sdk, guarded.url) as client, pytest.raises(sdk.AuthenticationError):
        chat(client, max_tokens=2, extra_headers={"Authorization": sdk.Omit()})


IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}
NO_SCHEMA = {"name": "x", "schema": {"type": "no such type"}}
CALENDAR = {"type": "function", "function": {"name": "calendar"}}


@pytest.mark.parametrize(
    "param, body",
    [
        ("messages", {"messages": []}),
        ("messages", {"messages": "Tell me about the sea."}),
        ("messages", {"messages": [{"role": "pirate", "content": "Arr."}]}),
        ("messages", {"messages": [{"role": "user"}]}),
        ("messages", {"messages": [{"role": "user", "content": [IMAGE]}]}),
        ("temperature", {"temperature": -0.1}),
        ("temperature", {"temperature": "hot"}),
        ("top_p", {"top_p": 1.5}),
        ("n", {"n": 0}),
        ("max_completion_tokens", {"max_completion_tokens": 0}),
        ("max_tokens", {"max_tokens": -1}),
        ("stop", {"stop": 7}),
        ("seed", {"seed": "lucky"}),
        ("presence_penalty", {"presence_penalty": 2.5}),
        ("frequency_penalty", {"frequency_penalty": -2.5}),
        ("logit_bias", {"logit_bias": {"5": 101}}),
        ("logit_bias", {"logit_bias": {"sea": 1}}),
        ("top_logprobs", {"logprobs": True, "top_logprobs": 21}),
        ("top_logprobs", {"top_logprobs": 2}),
        ("stream_options", {"stream_options": {"include_usage": True}}),
        ("response_format", {"response_format": {"type": "poem"}}),
        ("response_format", {"response_format": {"type": "json_schema", "json_schema": NO_SCHEMA}}),
        ("tools", {"tools": [{"type": "function", "function": {}}]}),
        ("tool_choice", {"tool_choice": "required"}),
        ("tool_choice", {"tools": [CLOCK], "tool_choice": CALENDAR}),
    ],
    ids=lambda value: None if isinstance(value, str) else re.sub(r"\W+", " ", str(value))[:50],
)
def test_bad_request_names_the_parameter(client, sdk, param, body):
    with pytest.raises(sdk.BadRequestError) as caught:
        chat(client, extra_body={"max_tokens": 2, **body})

    error = details(caught.value)
    assert re.split(r"[.\[]", error["param"])[0] == param
    assert error["type"] == "invalid_request_error"
    assert error["message"]


@pytest.mark.parametrize(
    "param, body",
    [
        ("prompt", {"prompt": 7}),
        ("prompt", {"prompt": [10**9]}),
        ("prompt", {"prompt": ["a", 1]}),
        ("max_tokens", {"max_tokens": "many"}),
        ("logprobs", {"logprobs": -1}),
    ],
)
def test_bad_completion_request_names_the_parameter(openai_client, param, body):
    with pytest.raises(openai.BadRequestError) as caught:
        complete(openai_client, extra_body=body)

    assert re.split(r"[.\[]", caught.value.param)[0] == param


@pytest.mark.parametrize("stream", [False, True])
def test_full_server_refuses_and_serves_again_later(narrow, sdk, stream, endless):
    with connect(sdk, narrow.url) as client:
        with chat(client, stream=True, **endless) as running:
            next(iter(running))
            with pytest.raises(sdk.RateLimitError) as caught:
                chat(client, max_tokens=2, stream=stream)
        wait_until(lambda: n_running(narrow) == 0)

        assert text(chat(client, max_tokens=2))

    assert caught.value.status_code == 429
    assert details(caught.value)["message"]


def test_client_tries_again_when_the_server_was_full(narrow, sdk, endless):
    statuses = []

    def end_the_other(response: Any) -> None:
        statuses.append(response.status_code)
        running.close()

    hooked = sdk.DefaultHttpxClient(event_hooks={"response": [end_the_other]})
    with connect(sdk, narrow.url) as first:
        running = chat(first, stream=True, **endless)
        next(iter(running))
        with connect(sdk, narrow.url, max_retries=3, http_client=hooked) as second:
            assert text(chat(second, max_tokens=2))

    assert statuses[0] == 429
    assert statuses[-1] == 200


def test_request_that_takes_too_long_fails_with_504(hurried, sdk, endless):
    with connect(sdk, hurried.url) as client, pytest.raises(sdk.InternalServerError) as caught:
        chat(client, **endless)

    assert caught.value.status_code == 504
    assert details(caught.value)["message"]
    wait_until(lambda: n_running(hurried) == 0)


def test_stream_that_takes_too_long_ends_in_an_error(hurried, sdk, endless):
    with connect(sdk, hurried.url) as client, pytest.raises(sdk.APIError) as caught:
        for _ in chat(client, stream=True, **endless):
            pass

    assert not isinstance(caught.value, sdk.APIConnectionError)
    assert caught.value.message


def test_closed_server_is_a_connection_error(sdk):
    with servers.running(ServerSettings(threads=1)) as running:
        client = connect(sdk, running.url)
        assert text(chat(client, max_tokens=2))

    with client, pytest.raises(sdk.APIConnectionError):
        chat(client, max_tokens=2)


# ---- request ids ----


def test_raw_response_has_a_request_id(client):
    options = {"model": MODEL, "messages": SEA, "max_tokens": 2}

    first, second = (client.chat.completions.with_raw_response.create(**options) for _ in range(2))

    assert first.status_code == 200
    assert first.headers["x-request-id"]
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert first.parse().object == "chat.completion"


def test_openai_answers_have_a_request_id(openai_client):
    options = {"model": MODEL, "messages": SEA, "max_tokens": 2}

    raw = openai_client.chat.completions.with_raw_response.create(**options)

    assert raw.parse()._request_id == raw.headers["x-request-id"]
    assert chat(openai_client, max_tokens=2)._request_id
    assert openai_client.models.retrieve(MODEL)._request_id


def test_errors_have_a_request_id(client, sdk):
    with pytest.raises(sdk.NotFoundError) as caught:
        chat(client, model="huge")

    assert caught.value.response.headers["x-request-id"]


# ---- clients that go away, and clients at once ----


def test_closed_stream_frees_the_server(client, server, endless):
    stream = chat(client, stream=True, **endless)
    for chunk in stream:
        if joined([chunk]):
            break
    assert n_running(server) == 1

    stream.close()

    wait_until(lambda: n_running(server) == 0)


def test_client_that_waits_no_longer_frees_the_server(client, sdk, server, endless):
    with pytest.raises(sdk.APITimeoutError):
        chat(client, timeout=0.2, **endless)

    wait_until(lambda: n_running(server) == 0)


def test_both_sdks_at_once_get_the_texts_they_get_alone(openai_client, groq_client):
    def ask(request: tuple[Any, int]) -> str:
        client, seed = request
        return text(chat(client, max_tokens=40, temperature=1, seed=seed))

    requests = [(client, seed) for seed in range(4) for client in (openai_client, groq_client)]
    alone = [ask(request) for request in requests]

    with ThreadPoolExecutor(len(requests)) as pool:
        together = list(pool.map(ask, requests))

    assert together == alone
    assert alone[0::2] == alone[1::2]  # the same of both SDKs
    assert len(set(alone)) == 4


# ---- asynchronous clients ----


def test_async_client_gets_what_the_other_gets(client, sdk, server):
    options = {"max_tokens": 12, "seed": 1}

    async def talk() -> tuple[str, str, list[str]]:
        async with connect(sdk, server.url, "Async") as client:
            whole = await chat(client, **options)
            chunks = [chunk async for chunk in await chat(client, stream=True, **options)]
            models = await client.models.list()
            return text(whole), joined(chunks), [model.id for model in models.data]

    whole, streamed, models = asyncio.run(talk())

    assert whole == streamed == text(chat(client, **options))
    assert MODEL in models


def test_async_requests_at_once_get_the_texts_they_get_alone(client, sdk, server):
    options = [{"max_tokens": 20, "temperature": 1, "seed": seed} for seed in range(8)]

    async def talk() -> list[str]:
        async with connect(sdk, server.url, "Async") as client:
            answers = await asyncio.gather(*(chat(client, **one) for one in options))
            return [text(answer) for answer in answers]

    assert asyncio.run(talk()) == [text(chat(client, **one)) for one in options]


def test_async_errors_are_typed(sdk, server):
    async def talk() -> None:
        async with connect(sdk, server.url, "Async") as client:
            with pytest.raises(sdk.NotFoundError):
                await chat(client, model="huge")
            with pytest.raises(sdk.BadRequestError):
                await chat(client, temperature=-1)

    asyncio.run(talk())


def test_async_stream_helper_parses_the_pydantic_model(server):
    async def talk() -> Any:
        async with (
            connect(openai, server.url, "Async") as client,
            client.chat.completions.stream(
                model=MODEL, messages=SEA, response_format=Forecast, seed=1
            ) as stream,
        ):
            return await stream.get_final_completion()

    assert isinstance(asyncio.run(talk()).choices[0].message.parsed, Forecast)


def test_async_closed_stream_frees_the_server(sdk, server, endless):
    async def talk() -> None:
        async with connect(sdk, server.url, "Async") as client:
            stream = await chat(client, stream=True, **endless)
            async for _ in stream:
                break
            await stream.close()

    asyncio.run(talk())

    wait_until(lambda: n_running(server) == 0)


def test_async_cancelled_request_frees_the_server(sdk, server, endless):
    async def talk() -> None:
        async with connect(sdk, server.url, "Async") as client:
            task = asyncio.create_task(chat(client, **endless))
            while n_running(server) == 0:
                await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(talk())

    wait_until(lambda: n_running(server) == 0)
