"""The access log and the start lines."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import httpx
import pytest
import servers
from servers import NO_END, wait_for

from yocobit.config import preset
from yocobit.serving import ServerSettings
from yocobit.serving.http.middleware import JSONFormatter
from yocobit.serving.http.start_log import context_note, log_start

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
KEY = "a-secret-key-of-mine"


@pytest.fixture(scope="module")
def server():
    settings = ServerSettings(
        threads=1, api_keys=(KEY,), forwarded_allow_ips=("127.0.0.1",), root_path="/llm"
    )
    with servers.running(settings) as running:
        yield running


@pytest.fixture
def logged(caplog):
    """A function that returns the record of a request to a path; it follows the response."""
    caplog.set_level(logging.INFO, "yocobit.access")

    def find(path: str) -> logging.LogRecord:
        def records():
            each = [r for r in caplog.records if hasattr(r, "fields")]
            return [r for r in each if r.fields.get("path") == f"/llm{path}"]

        wait_for(records)
        (record,) = records()
        return record

    return find


def test_record_of_a_completion_has_tokens_times_and_finish_reason(server, logged):
    body = {"prompt": "The king", "max_tokens": 5, "logit_bias": NO_END}
    usage = server.post(TEXT, **body).json()["usage"]

    record = logged(TEXT)

    fields = record.fields
    assert fields["prompt_tokens"] == usage["prompt_tokens"]
    assert (fields["cached_tokens"], fields["generated_tokens"]) == (0, 5)
    assert 0 < fields["first_token_s"] <= fields["seconds"]
    assert fields["tokens_per_s"] > 0
    assert fields["finish_reason"] == "length"
    line = record.getMessage()
    assert line.startswith(f"127.0.0.1 POST /llm{TEXT} 200 ")
    assert "3 prompt tokens (0 cached), 5 generated, first after " in line
    assert line.endswith(" tokens/s, length")


def test_record_of_ollamas_embeddings_has_tokens(server, logged):
    body = {"model": server.model.name, "input": ["The king", "The sea"]}
    n_tokens = server.post("/api/embed", **body).json()["prompt_eval_count"]

    assert logged("/api/embed").fields["prompt_tokens"] == n_tokens > 0


def test_record_of_a_stream_is_written_at_its_end(server, logged):
    server.events(CHAT, messages=[{"role": "user", "content": "Sea?"}], max_tokens=4)

    assert logged(CHAT).fields["generated_tokens"] > 0


def test_record_of_a_rejected_request_says_why(server, logged):
    server.post(TEXT, prompt="The king", temperature=-1)

    record = logged(TEXT)

    assert record.fields["status"] == 400
    assert "temperature" in record.fields["error"]
    assert record.getMessage().endswith(record.fields["error"])


@pytest.mark.parametrize(
    ("method", "path", "words"),
    [("GET", "/nothing", "does not exist"), ("DELETE", TEXT, "is not allowed")],
)
def test_record_of_an_unknown_path_or_method_says_why(server, logged, method, path, words):
    server.client.request(method, path)

    assert words in logged(path).fields["error"]


def test_record_of_a_request_that_fails_has_the_status(logged):
    settings = ServerSettings(threads=1, timeout_s=0.1, root_path="/llm")
    with servers.running(settings) as server:
        server.events(TEXT, prompt="The king", max_tokens=5000, logit_bias=NO_END)

        fields = logged(TEXT).fields

    assert (fields["status"], fields["finish_reason"]) == (200, "504")
    assert "the limit of 0.1 s" in fields["error"]


def test_no_record_has_a_key(server, logged):
    server.post(TEXT, prompt="The king", model=KEY)
    headers = {"x-request-id": KEY, "x-forwarded-for": KEY}
    server.client.get(f"/v1/models/{KEY}", headers=headers)

    for path in (TEXT, "/v1/models/%5Bkey%5D"):
        record = logged(path)
        assert KEY not in JSONFormatter().format(record) + record.getMessage()
        assert "[key]" in record.fields["error"]


def test_client_behind_a_trusted_proxy_is_logged(server, logged):
    server.client.get("/v1/models", headers={"x-forwarded-for": "203.0.113.9, 127.0.0.1"})

    assert logged("/v1/models").fields["client"] == "203.0.113.9"


def test_forged_client_stays_on_its_line(server, logged):
    server.client.get("/v1/models", headers={"x-forwarded-for": b"x\x85 GET /admin 200;" * 20})

    record = logged("/v1/models")

    assert record.getMessage().isprintable()
    assert len(record.fields["client"]) < 80


def test_header_of_an_untrusted_proxy_is_ignored(logged):
    with servers.running(ServerSettings(threads=1, root_path="/llm")) as server:
        server.client.get("/v1/models", headers={"x-forwarded-for": "203.0.113.9"})

        assert logged("/v1/models").fields["client"] == "127.0.0.1"


@pytest.mark.parametrize("prefix", ["", "/llm"])  # a proxy removes it, or does not
def test_paths_below_a_root_path_are_those_of_the_root(server, prefix):
    url, key = server.url + prefix, {"authorization": f"Bearer {KEY}"}

    assert httpx.get(url + "/health").status_code == 200
    assert httpx.get(url + "/v1/models", headers=key).status_code == 200
    assert httpx.get(url + "/v1/models").status_code == 401


def test_start_lines_say_what_is_served_with_what(server, caplog):
    caplog.set_level(logging.INFO)

    log_start(server.state, "http://127.0.0.1:1")

    text = "\n".join(record.getMessage() for record in caplog.records)
    engine, whole = server.model.engine, server.runtime.scheduler.session_bytes(8192)
    for words in (
        "tiny: ",
        " parameters, ternary",
        "8,192 tokens",
        "int8, 2,048 MiB",
        f"of the whole context at a time: {min(64, (2048 << 20) // whole)}",
        f"threads 1, kernels {engine.kernels}",
        "http://127.0.0.1:1/llm/\n",
        "http://127.0.0.1:1/llm/v1",
    ):
        assert words in text
    assert KEY not in text


def test_start_record_in_json_has_the_same_fields(caplog):
    caplog.set_level(logging.INFO)
    with servers.running(ServerSettings(threads=1, log_json=True, context=100)) as server:
        log_start(server.state, "http://a")

    (record,) = [r for r in caplog.records if r.getMessage() == "started"]
    fields = json.loads(JSONFormatter().format(record))
    assert (fields["model"], fields["context"], fields["cache"]) == ("tiny", 100, "int8")
    assert {"threads", "kernels", "whole_contexts", "page", "api"} <= set(fields)


def test_start_lines_say_that_memory_limits_the_context(caplog):
    caplog.set_level(logging.INFO)
    with servers.running(ServerSettings(threads=1, cache_mb=1)) as server:
        log_start(server.state, "http://a")
        context = server.model.settings.context
        scheduler = server.runtime.scheduler

        assert scheduler.session_bytes(context) <= 1 << 20
        assert scheduler.session_bytes(context + 32) > 1 << 20

    lines = [record.getMessage() for record in caplog.records]
    assert "         sequences of the whole context at a time: 1; up to 64 shorter ones" in lines
    assert any("--cache-mb 1 holds no more" in line for line in lines)


def test_context_beyond_that_of_training_is_noted():
    config = preset("tiny").replace(trained_context=1000)

    def note(context: int) -> str | None:
        settings = ServerSettings(context=context)
        model = SimpleNamespace(settings=settings, engine=SimpleNamespace(config=config))
        return context_note(model)

    assert "--context 1,001 exceeds the 1,000 tokens" in note(1001)
    assert note(1000) is note(500) is None


def test_answer_of_a_chat_has_the_models_own_limit_by_default():
    body = {"messages": [{"role": "user", "content": "The sea"}], "logit_bias": NO_END}
    with servers.running(ServerSettings(threads=1, context=400)) as server:
        default = server.post(CHAT, **body).json()
        rest = server.post(CHAT, **body, max_tokens=-1).json()

    assert default["choices"][0]["finish_reason"] == "length"
    assert default["usage"]["completion_tokens"] == 256  # generation_config.json
    assert rest["usage"]["total_tokens"] == 400
