"""Streamed chat responses, read as chunks, as lines and by OpenAI's helper."""

from __future__ import annotations

import json

import pytest
from sdk_clients import MODEL, SEA, chat, joined, text


def test_streamed_text_equals_the_complete_text(client):
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


def test_stream_ends_with_usage_when_requested(client):
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

    with_usage = list(chat(openai_client, stream_options={"include_usage": True}, **options))
    without_usage = list(chat(openai_client, **options))

    # "All other chunks will also include a usage field, but with a null value."
    assert all("usage" in chunk.model_fields_set for chunk in with_usage)
    assert [chunk.usage for chunk in with_usage[:-1]] == [None] * (len(with_usage) - 1)
    assert not any("usage" in chunk.model_fields_set for chunk in without_usage)


def test_stream_of_n_choices_has_their_indices(client):
    options = {"n": 2, "max_tokens": 10, "temperature": 1.5, "seed": 4}
    completion = chat(client, **options)

    chunks = list(chat(client, stream=True, **options))

    for index in range(2):
        assert joined(chunks, index) == text(completion, index)
    reasons = [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason]
    assert reasons == ["length", "length"]


def test_stream_has_the_logprobs_of_the_complete_response(client):
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
    # The helper raises if finish_reason is "length": stop at a letter of the text.
    options |= {"max_tokens": 200, "stop": ["a", "e", "i", "o", "u"][:4]}

    with openai_client.chat.completions.stream(**options) as stream:
        final = stream.get_final_completion()

    whole = openai_client.chat.completions.create(**options)
    assert final.object == "chat.completion"
    assert [text(final, index) for index in range(2)] == [text(whole, index) for index in range(2)]
    assert {choice.message.role for choice in final.choices} == {"assistant"}
    assert {choice.finish_reason for choice in final.choices} == {"stop"}
