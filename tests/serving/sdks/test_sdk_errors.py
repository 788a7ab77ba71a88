"""Errors, as the exceptions that the SDKs raise for them."""

from __future__ import annotations

import re
from typing import Any

import openai
import pytest
import servers
from sdk_clients import (
    KEYS,
    KING,
    Clock,
    chat,
    complete,
    connect,
    details,
    named,
    text,
    tool,
)

from yocobit.serving import ServerSettings


@pytest.fixture(scope="module")
def narrow():
    """A server of one request at a time, without a queue."""
    with servers.running(ServerSettings(threads=1, max_sequences=1, max_waiting=0)) as running:
        yield running


@pytest.fixture(scope="module")
def hurried():
    """A server with a short timeout."""
    with servers.running(ServerSettings(threads=1, timeout_s=0.05)) as running:
        yield running


@pytest.mark.parametrize(
    "send",
    [
        lambda client: chat(client, model="huge"),
        lambda client: chat(client, model="huge", stream=True),
        lambda client: client.models.retrieve("huge"),
    ],
    ids=["whole", "stream", "model"],
)
def test_unknown_model_is_not_found(client, sdk, send):
    with pytest.raises(sdk.NotFoundError) as caught:
        send(client)

    assert details(caught.value)["code"] == "model_not_found"
    assert "huge" in caught.value.message
    assert caught.value.response.headers["x-request-id"]


def test_unsupported_endpoint_is_not_found(client, sdk):
    with pytest.raises(sdk.NotFoundError) as caught:
        client.batches.list()

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


def test_answer_ends_at_the_context_limit(guarded, sdk, endless):
    with connect(sdk, guarded.url, api_key=KEYS[1]) as client:
        completion = chat(client, logit_bias=endless["logit_bias"])

    assert completion.choices[0].finish_reason == "length"
    assert completion.usage.total_tokens <= 128


def test_wrong_key_is_rejected(guarded, sdk):
    with connect(sdk, guarded.url, api_key="a third key") as client:
        with pytest.raises(sdk.AuthenticationError) as caught:
            chat(client, max_tokens=2)
        with pytest.raises(sdk.AuthenticationError):
            client.models.list()

    assert details(caught.value)["code"] == "invalid_api_key"
    assert "a third key" not in caught.value.message


def test_missing_key_is_rejected(guarded, sdk):
    with connect(sdk, guarded.url) as client, pytest.raises(sdk.AuthenticationError):
        chat(client, max_tokens=2, extra_headers={"Authorization": sdk.Omit()})


NO_SCHEMA = {"name": "x", "schema": {"type": "no such type"}}


@pytest.mark.parametrize(
    "param, body",  # test_serving.py has more
    [
        ("messages", {"messages": "Tell me about the sea."}),
        ("messages", {"messages": [{"role": "user"}]}),
        ("temperature", {"temperature": -0.1}),
        ("temperature", {"temperature": "hot"}),
        ("top_p", {"top_p": 1.5}),
        ("n", {"n": 0}),
        ("max_completion_tokens", {"max_completion_tokens": 0}),
        ("max_tokens", {"max_tokens": -2}),
        ("stop", {"stop": 7}),
        ("seed", {"seed": "lucky"}),
        ("presence_penalty", {"presence_penalty": 2.5}),
        ("frequency_penalty", {"frequency_penalty": -2.5}),
        ("logit_bias", {"logit_bias": {"5": 101}}),
        ("logit_bias", {"logit_bias": {"sea": 1}}),
        ("top_logprobs", {"logprobs": True, "top_logprobs": 21}),
        ("stream_options", {"stream_options": {"include_usage": True}}),
        ("response_format", {"response_format": {"type": "json_schema", "json_schema": NO_SCHEMA}}),
        ("tools", {"tools": [{"type": "function", "function": {}}]}),
        ("tool_choice", {"tools": [tool("clock", Clock)], "tool_choice": named("calendar")}),
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
        ("prompt", {"prompt": [10**9]}),
        ("max_tokens", {"max_tokens": "many"}),
        ("logprobs", {"logprobs": -1}),
    ],
)
def test_bad_completion_request_names_the_parameter(openai_client, param, body):
    with pytest.raises(openai.BadRequestError) as caught:
        complete(openai_client, extra_body=body)

    assert re.split(r"[.\[]", caught.value.param)[0] == param


@pytest.mark.parametrize("stream", [False, True])
def test_full_server_rejects_and_serves_again_later(narrow, sdk, stream, endless):
    with connect(sdk, narrow.url) as client:
        with chat(client, stream=True, **endless) as running:
            next(iter(running))
            with pytest.raises(sdk.RateLimitError) as caught:
                chat(client, max_tokens=2, stream=stream)
        narrow.wait_until_idle()

        assert text(chat(client, max_tokens=2))

    assert caught.value.status_code == 429
    assert details(caught.value)["message"]


def test_client_retries_when_the_server_was_full(narrow, sdk, endless):
    statuses = []

    def end_the_first(response: Any) -> None:
        statuses.append(response.status_code)
        running.close()

    hooked = sdk.DefaultHttpxClient(event_hooks={"response": [end_the_first]})
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
    hurried.wait_until_idle()


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
