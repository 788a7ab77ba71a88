"""Raw responses, asynchronous and concurrent clients, and disconnects."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sdk_clients import MODEL, SEA, cancelling, chat, connect, joined, text
from servers import wait_for


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


def test_closed_stream_frees_the_server(client, server, endless):
    with cancelling(server):
        stream = chat(client, stream=True, **endless)
        next(chunk for chunk in stream if joined([chunk]))
        assert server.runtime.scheduler.running

        stream.close()


def test_client_timeout_cancels_the_request(client, sdk, server, endless):
    with cancelling(server), pytest.raises(sdk.APITimeoutError):
        chat(client, timeout=0.5, **endless)


def test_concurrent_sdks_get_the_texts_they_get_alone(openai_client, groq_client):
    def answer(request: tuple[Any, int]) -> str:
        client, seed = request
        return text(chat(client, max_tokens=40, temperature=1, seed=seed))

    requests = [(client, seed) for seed in range(4) for client in (openai_client, groq_client)]
    alone = [answer(request) for request in requests]

    with ThreadPoolExecutor(len(requests)) as pool:
        together = list(pool.map(answer, requests))

    assert together == alone
    assert alone[0::2] == alone[1::2]  # equal for both SDKs
    assert len(set(alone)) == 4


def test_async_client_gets_the_responses_of_the_other(client, sdk, server):
    options = {"max_tokens": 12, "seed": 1}

    async def run() -> tuple[str, str, list[str]]:
        async with connect(sdk, server.url, "Async") as client:
            whole = await chat(client, **options)
            chunks = [chunk async for chunk in await chat(client, stream=True, **options)]
            models = await client.models.list()
            return text(whole), joined(chunks), [model.id for model in models.data]

    whole, streamed, models = asyncio.run(run())

    assert whole == streamed == text(chat(client, **options))
    assert MODEL in models


def test_concurrent_async_requests_get_the_texts_they_get_alone(client, sdk, server):
    options = [{"max_tokens": 20, "temperature": 1, "seed": seed} for seed in range(8)]

    async def run() -> list[str]:
        async with connect(sdk, server.url, "Async") as client:
            answers = await asyncio.gather(*(chat(client, **one) for one in options))
            return [text(answer) for answer in answers]

    assert asyncio.run(run()) == [text(chat(client, **one)) for one in options]


def test_async_errors_are_typed(sdk, server):
    async def run() -> None:
        async with connect(sdk, server.url, "Async") as client:
            with pytest.raises(sdk.NotFoundError):
                await chat(client, model="huge")
            with pytest.raises(sdk.BadRequestError):
                await chat(client, temperature=-1)

    asyncio.run(run())


def test_async_closed_stream_frees_the_server(sdk, server, endless):
    async def run() -> None:
        async with connect(sdk, server.url, "Async") as client:
            stream = await chat(client, stream=True, **endless)
            async for _ in stream:
                break
            await stream.close()

    with cancelling(server):
        asyncio.run(run())


def test_async_cancelled_request_frees_the_server(sdk, server, endless):
    async def run() -> None:
        async with connect(sdk, server.url, "Async") as client:
            task = asyncio.create_task(chat(client, **endless))
            await asyncio.to_thread(wait_for, lambda: server.runtime.scheduler.running)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with cancelling(server):
        asyncio.run(run())
