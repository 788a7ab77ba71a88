"""Requests that ask for too much, or go wrong: what they cost is bounded, and theirs alone."""

from __future__ import annotations

import json
import socket
import threading
import time

import httpx
import pytest
import servers
from servers import wait_for

from yocobit.serving import ServerSettings
from yocobit.serving.prefix_cache import PrefixCache

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SEA = [{"role": "user", "content": "Tell me about the sea."}]


@pytest.fixture
def server():
    with servers.running(ServerSettings(threads=1, timeout_s=20)) as running:
        yield running


def form(schema) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def test_one_bad_request_leaves_the_others_alone(server):
    found = {}

    def other():
        found["other"] = httpx.post(
            server.url + TEXT,
            json={"prompt": "The king", "max_tokens": 1000, "seed": 1},
            timeout=60,
        ).status_code

    thread = threading.Thread(target=other)
    thread.start()
    wait_for(lambda: server.service.scheduler.running)
    bad = httpx.post(server.url + TEXT, json={"prompt": "The", "max_tokens": 3, "top_k": 10**30})
    thread.join()

    assert bad.status_code in (200, 400)
    assert found["other"] == 200


def test_odd_bias_is_no_server_error(server):
    response = server.post(TEXT, prompt="The", max_tokens=1, logit_bias={"1" * 5000: 1})

    assert response.status_code == 400


def test_scheduler_outlives_a_failure_of_the_prefix_cache(server, monkeypatch):
    def fail(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(PrefixCache, "keep", fail)
        httpx.post(server.url + TEXT, json={"prompt": "a b c d", "max_tokens": 2}, timeout=5)

    assert httpx.post(
        server.url + TEXT, json={"prompt": "a", "max_tokens": 2}, timeout=5
    ).is_success


def test_prompts_that_may_wait_are_taken_by_an_idle_server(server):
    response = server.post(TEXT, prompt=["a"] * 300, max_tokens=1)

    assert response.status_code == 200, response.text


def test_schema_is_not_tried_for_more_tokens_than_the_context(server):
    schema = {"type": "array", "items": {"type": "string"}, "minItems": 10**7}
    body = {"messages": SEA, "max_tokens": 10**6, "response_format": form(schema)}

    begin = time.monotonic()
    response = httpx.post(server.url + CHAT, json=body, timeout=60)

    assert response.status_code == 400
    assert time.monotonic() - begin < 1


def test_stop_texts_of_the_model_do_not_cut_json(server):
    body = server.post(
        CHAT, messages=SEA, max_tokens=60, response_format=form({"const": "a<|end|>b"})
    ).json()

    assert json.loads(body["choices"][0]["message"]["content"]) == "a<|end|>b"


def test_offsets_are_places_in_the_text(server):
    choice = server.post(
        TEXT, prompt="The king", echo=True, logprobs=0, max_tokens=1, temperature=0
    ).json()["choices"][0]

    offsets = choice["logprobs"]["text_offset"]
    assert choice["text"][offsets[1] : offsets[2]] == "The"


def test_session_goes_with_its_job_though_the_client_does_not_read(server):
    body = {"prompt": "The king", "max_tokens": 8000, "logit_bias": {"0": -100}}
    client = server.send(TEXT, **body, stream=True, logprobs=20)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    wait_for(lambda: server.service._answers)
    server.wait_until_idle()

    held = [job for job in server.service._answers if job._session is not None]
    client.close()
    assert not held


def test_long_text_does_not_stop_everything(server):
    """Tokenizer.encode keeps the interpreter's lock, in whatever thread it runs."""
    longest, stop = 0.0, threading.Event()

    def watch():
        nonlocal longest
        last = time.monotonic()
        while not stop.wait(0.001):
            longest, last = max(longest, time.monotonic() - last), time.monotonic()

    thread = threading.Thread(target=watch)
    thread.start()
    httpx.post(server.url + TEXT, json={"prompt": "the king of " * 100_000}, timeout=60)
    stop.set()
    thread.join()

    assert longest < 0.5
