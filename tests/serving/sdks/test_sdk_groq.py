"""Fields that Groq adds to OpenAI's responses: times, request ids and seeds."""

from __future__ import annotations

import pytest
from sdk_clients import chat, text


def test_groq_usage_has_times(groq_client):
    usage = chat(groq_client, max_tokens=5).usage

    assert usage.queue_time >= 0
    assert usage.prompt_time >= 0
    assert usage.completion_time > 0
    # "completion time and prompt time combined", without queue time. One rounding of the sum.
    assert usage.total_time == pytest.approx(usage.prompt_time + usage.completion_time, rel=1e-9)


def test_groq_response_has_a_request_id(groq_client):
    first, second = (chat(groq_client, max_tokens=2).x_groq.id for _ in range(2))

    assert first.startswith("req_")
    assert first != second


def test_groq_stream_has_the_request_id_first_and_last_and_ends_with_usage(groq_client):
    first, *others, last = chat(groq_client, max_tokens=5, stream=True)

    assert first.x_groq.id == last.x_groq.id
    assert [chunk.x_groq for chunk in others] == [None] * len(others)
    assert last.x_groq.error is None
    assert last.x_groq.usage.completion_tokens == 5
    assert last.x_groq.usage.total_time > 0


def test_groq_reports_the_seed(groq_client):
    whole = chat(groq_client, max_tokens=2, seed=11)
    *_, last = chat(groq_client, max_tokens=2, seed=11, stream=True)

    assert whole.x_groq.seed == 11
    assert last.x_groq.seed == 11  # "Sent in the final chunk."


def test_groq_seed_reproduces_the_answer(groq_client):
    first = chat(groq_client, max_tokens=20, temperature=1)

    again = chat(groq_client, max_tokens=20, temperature=1, seed=first.x_groq.seed)

    assert text(first) == text(again)
