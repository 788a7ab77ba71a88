"""Excessive and failing requests: their cost is bounded, and other requests are unaffected."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading

import httpx
import pytest
import servers
from servers import NO_END, wait_for

from yocobit.serving import ServerSettings
from yocobit.serving.api import chat, completions, embeddings, tokenize
from yocobit.serving.api.call import prepare
from yocobit.serving.api.chat_request import ChatRequest
from yocobit.serving.api.completions import CompletionRequest
from yocobit.serving.api.embeddings import EmbeddingRequest
from yocobit.serving.api.tokenize import TokenizeRequest
from yocobit.serving.errors import APIError
from yocobit.serving.runtime.prefix_cache import PrefixCache
from yocobit.serving.runtime.preparation import WorkerPool
from yocobit.serving.runtime.structured_output import GrammarCompiler

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
LONG = "the king of " * 4000  # 12,000 tokens
FAR_TOO_LONG = "the king of " * 90_000
SEA = [{"role": "user", "content": "Tell me about the sea."}]


@pytest.fixture(scope="module")
def running():
    settings = ServerSettings(threads=1, timeout_s=20)
    with servers.running(settings, send_bytes=1 << 16) as running:
        yield running


@pytest.fixture
def server(running):
    """The shared server, idle and with an empty token cache."""
    running.wait_until_idle()
    running.model.prompts._token_cache.clear()
    return running


def form(schema) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def test_invalid_request_does_not_affect_others(server):
    found = {}

    def other():
        found["other"] = httpx.post(
            server.url + TEXT,
            json={"prompt": "The king", "max_tokens": 1000, "seed": 1},
            timeout=60,
        ).status_code

    thread = threading.Thread(target=other)
    thread.start()
    wait_for(lambda: server.runtime.scheduler.running)
    bad = httpx.post(server.url + TEXT, json={"prompt": "The", "max_tokens": 3, "top_k": 10**30})
    thread.join()

    assert bad.status_code in (200, 400)
    assert found["other"] == 200


def test_invalid_bias_is_not_a_server_error(server):
    response = server.post(TEXT, prompt="The", max_tokens=1, logit_bias={"1" * 5000: 1})

    assert response.status_code == 400


def test_scheduler_survives_a_failure_of_the_prefix_cache(server, monkeypatch):
    def fail(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(PrefixCache, "store", fail)
        server.post(TEXT, prompt="a b c d", max_tokens=2)

    assert server.post(TEXT, prompt="a", max_tokens=2).is_success


def test_idle_server_accepts_as_many_prompts_as_may_wait(server):
    response = server.post(TEXT, prompt=["a"] * 300, max_tokens=1)

    assert response.status_code == 200, response.text


def test_more_prompts_than_the_queue_holds_are_a_bad_request(server):
    response = server.post(TEXT, prompt=["a"] * 321, max_tokens=1)

    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt"
    assert (
        "has 321 texts, but this server accepts at most 320: 64 running and 256 waiting"
        in (response.json()["error"]["message"])
    )


def test_max_tokens_above_the_context_are_rejected_before_compiling_a_schema(server, monkeypatch):
    monkeypatch.setattr(GrammarCompiler, "check", lambda *_: 1 / 0)
    body = {"messages": SEA, "max_tokens": 10**6, "response_format": form({})}

    with pytest.raises(APIError) as rejected:
        prepared(server, chat.build, ChatRequest, **body)

    assert rejected.value.status == 400
    assert rejected.value.code == "context_length_exceeded"


def test_stop_strings_of_the_model_do_not_truncate_json(server):
    body = server.post(
        CHAT, messages=SEA, max_tokens=60, response_format=form({"const": "a<|end|>b"})
    ).json()

    assert json.loads(body["choices"][0]["message"]["content"]) == "a<|end|>b"


def test_text_offsets_index_the_text(server):
    choice = server.post(
        TEXT, prompt="The king", echo=True, logprobs=0, max_tokens=1, temperature=0
    ).json()["choices"][0]

    offsets = choice["logprobs"]["text_offset"]
    assert choice["text"][offsets[1] : offsets[2]] == "The"


def test_session_is_released_while_the_client_does_not_read(server):
    body = {"prompt": "The king", "max_tokens": 600, "logit_bias": NO_END}
    client = server.send(TEXT, receive_bytes=4096, **body, stream=True, logprobs=20)
    wait_for(lambda: server.runtime._streams)
    server.wait_until_idle()

    unread = list(server.runtime._streams)
    held = [group for group in unread if group._sessions]
    client.close()
    assert unread and not held


# ---- long texts ----


@pytest.fixture
def answers(server):
    """The statuses that another client gets, which sends requests in a loop."""
    found, is_over = [], threading.Event()

    def poll():
        while not is_over.is_set():
            found.append(server.client.get("/v1/models").status_code)

    thread = threading.Thread(target=poll)
    thread.start()
    yield found
    is_over.set()
    thread.join()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (TEXT, {"prompt": LONG}),
        (CHAT, {"messages": [{"role": "user", "content": LONG}]}),
        ("/tokenize", {"prompt": LONG}),
        ("/tokenize", {"prompt": LONG, "add_special_tokens": False}),
        ("/detokenize", {"tokens": [1000] * 32_000}),
    ],
    ids=["completions", "chat", "tokenize", "tokenize without special tokens", "detokenize"],
)
def test_other_requests_are_served_while_a_long_text_is_tokenized(
    server, answers, monkeypatch, path, body
):
    run = WorkerPool.run
    n_during = []

    async def run_slowly(*arguments, **options):
        n_before = len(answers)
        while len(answers) < n_before + 2:  # the first may have been in flight before
            await asyncio.sleep(0)
        n_during.append(len(answers) - n_before)
        return await run(*arguments, **options)

    monkeypatch.setattr(WorkerPool, "run", run_slowly)

    assert server.post(path, **body).status_code in (200, 400)
    assert n_during


def prepared(server, build, kind, **body):
    """What a worker prepares, in this process."""
    return prepare(server.model, build, kind, json.dumps(body).encode(), "")


def test_recent_prompts_are_tokenized_once(server, monkeypatch):
    encoded = []
    encode = server.model.engine.encode
    monkeypatch.setattr(
        server.model.engine, "encode", lambda text: encoded.append(text) or encode(text)
    )

    for prompt in ("a", "b", "a", *map(str, range(15)), "a", "b", LONG, LONG):
        with contextlib.suppress(APIError):  # too long
            prepared(server, completions.build, CompletionRequest, prompt=prompt, max_tokens=1)
    for _ in range(2):
        prepared(server, chat.build, ChatRequest, messages=SEA, max_tokens=1)

    assert encoded[:-1] == ["a", "b", *map(str, range(15)), "b", LONG, LONG]
    assert len(server.model.prompts._token_cache) == 16


@pytest.mark.parametrize(
    ("build", "kind", "body"),
    [
        (completions.build, CompletionRequest, {"prompt": FAR_TOO_LONG}),
        (chat.build, ChatRequest, {"messages": [{"role": "user", "content": FAR_TOO_LONG}]}),
        (tokenize.tokenize, TokenizeRequest, {"prompt": FAR_TOO_LONG}),
        (tokenize.tokenize, TokenizeRequest, {"prompt": FAR_TOO_LONG, "add_special_tokens": False}),
        (
            tokenize.tokenize,
            TokenizeRequest,
            {"messages": [{"role": "user", "content": FAR_TOO_LONG}]},
        ),
        (embeddings.build, EmbeddingRequest, {"input": ["a", FAR_TOO_LONG]}),
    ],
)
def test_far_too_long_text_is_rejected_before_tokenization(server, monkeypatch, build, kind, body):
    monkeypatch.setattr(server.model.engine, "encode", lambda text: [0])
    monkeypatch.setattr(server.model.engine, "tokenizer", None)
    monkeypatch.setattr(server.model.engine, "chat_template", None)

    with pytest.raises(APIError) as rejected:
        prepared(server, build, kind, **body)

    assert rejected.value.status == 400
    assert rejected.value.code == "context_length_exceeded"
