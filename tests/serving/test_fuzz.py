"""Fuzzing: random and malformed requests get a response other than 500."""

from __future__ import annotations

import json
import socket

import httpx
import hypothesis
import pytest
import schemathesis
import servers
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from yocobit.config import ConfigError
from yocobit.serving import ServerSettings
from yocobit.text.chat_template import ChatTemplate

TEXT = "/v1/completions"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
SETTINGS = hypothesis.settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)


@pytest.fixture(scope="module")
def server():
    # A small context, so that no request takes long.
    with servers.running(ServerSettings(threads=1, context=48, max_body_mb=1)) as running:
        yield running
        assert running.post(TEXT, prompt="The", max_tokens=1).status_code == 200
        running.wait_until_idle()
        assert running.runtime.scheduler.memory.reserved_bytes == 0
        assert not running.runtime._streams


@pytest.fixture(scope="module")
def operations(server) -> list[schemathesis.schemas.APIOperation]:
    api = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    return [found.ok() for found in api.get_all_operations()]


@pytest.mark.parametrize("n_examples", [12, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "path",
    [
        *("/v1/chat/completions", TEXT, "/v1/tokenize", "/v1/detokenize", "/v1/tokenizer_info"),
        *("/v1/models", "/v1/models/{id}", "/v1/embeddings", "/health", "/metrics"),
        *("/v1/responses", "/v1/responses/{id}", "/v1/responses/{id}/input_items"),
        *("/v1/messages", "/v1/messages/count_tokens", "/api/chat", "/api/generate", "/api/embed"),
        *("/api/show", "/api/tags", "/api/pull"),
    ],
)
def test_responses_conform_to_the_openapi_schema_for_valid_and_invalid_requests(
    operations, path, n_examples
):
    found = [
        (operation, mode)
        for operation in operations
        if operation.path == path
        for mode in schemathesis.GenerationMode
        if operation.method == "post" or mode is schemathesis.GenerationMode.POSITIVE
    ]
    assert found
    for operation, mode in found:

        @hypothesis.given(operation.as_strategy(generation_mode=mode))
        @hypothesis.settings(SETTINGS, max_examples=n_examples)
        def run(case):
            case.call_and_validate(checks=CHECKS)

        run()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    [
        *("model", "messages", "prompt", "stream", "stream_options", "n", "stop", "seed", "top_p"),
        *("temperature", "top_k", "min_p", "presence_penalty", "frequency_penalty", "logit_bias"),
        *("max_tokens", "logprobs", "top_logprobs", "echo", "best_of", "suffix", "tools"),
        *("tool_choice", "response_format", "functions", "structured_outputs", "guided_json"),
        *("guided_regex", "guided_choice", "guided_grammar", "grammar", "json_schema"),
        *("input", "instructions", "text"),
        *("previous_response_id", "include", "truncation", "metadata", "max_output_tokens"),
    ]
)


@pytest.mark.parametrize(
    "path", [TEXT, "/v1/chat/completions", "/v1/responses", "/tokenize", "/detokenize"]
)
@hypothesis.given(st.dictionaries(FIELDS, JSON, max_size=6))
@SETTINGS
def test_random_values_of_known_fields_cause_no_server_error(server, path, body):
    base = {"prompt": "The king"} if path == TEXT else {}
    content = json.dumps({**base, **body}).encode("utf-8", "surrogatepass")

    response = server.client.post(
        path, content=content, headers={"content-type": "application/json"}
    )

    assert response.status_code < 500, (body, response.text)


@hypothesis.given(JSON)
@SETTINGS
def test_random_response_schemas_cause_no_server_error(server, schema):
    body = {
        "messages": [{"role": "user", "content": "The king"}],
        "max_tokens": 12,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    }

    response = server.client.post(
        "/v1/chat/completions",
        content=json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )

    assert response.status_code < 500, (schema, response.text)
    if response.status_code == 200 and schema is not None:
        json.loads(response.json()["choices"][0]["message"]["content"])


@hypothesis.given(st.text(alphabet=st.characters(), max_size=60))
@SETTINGS
def test_random_prompts_are_completed_or_rejected(server, text):
    body = {"prompt": text, "max_tokens": 2}
    content = json.dumps(body).encode()

    response = server.client.post(
        TEXT, content=content, headers={"content-type": "application/json"}
    )

    assert response.status_code in (200, 400), response.text


def test_an_error_that_quotes_the_request_is_short(server):
    parts = [{"type": "\x1b" + "x" * 100_000}]

    response = server.post("/v1/chat/completions", messages=[{"role": "user", "content": parts}])

    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert len(message) <= 2100
    assert message.isprintable()


def test_chat_template_rejects_deeply_nested_tools():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]

    with pytest.raises(ConfigError, match="rejects these messages"):
        ChatTemplate("{{ tools | tojson }}", "it").render([], tools=deep)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        b"\x00\xff\x16\x03\x01",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nContent-Length: 2\r\n\r\n{}",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 20_000 + b"\r\n",
        b"GET /%ff%fe%00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: \xff\xfe\r\nX-Request-Id: a\x01b\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    ],
)
def test_malformed_http_causes_no_server_error(server, data):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while more := connection.recv(65536):
            answer += more

    assert b" 500 " not in answer.split(b"\r\n")[0]
    assert httpx.get(server.url + "/health").status_code == 200
