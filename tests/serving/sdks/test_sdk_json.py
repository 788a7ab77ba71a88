"""Structured output: JSON objects, JSON schemas, and OpenAI's parsing helpers."""

from __future__ import annotations

import json

import openai
import pytest
from sdk_clients import MODEL, SEA, Forecast, chat, details, joined, text

FORECAST_FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "forecast", "schema": Forecast.model_json_schema(), "strict": True},
}


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
def test_json_that_does_not_fit_is_rejected_or_reported_as_truncated(client, sdk, max_tokens):
    # OpenAI truncates and reports "length"; Groq rejects (json_validate_failed).
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
