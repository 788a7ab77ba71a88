"""Hostile requests: each is rejected or answered, within limits, and the server serves others."""

from __future__ import annotations

import ctypes
import gc
import json
import shutil
import threading
from pathlib import Path

import httpx
import pytest
import servers

from yocobit.hardware.host import allocated_bytes
from yocobit.pretrained import TINY
from yocobit.serving import ServerSettings, limits
from yocobit.serving.api import protocol, served_model
from yocobit.serving.api.call import prepare
from yocobit.serving.errors import APIError

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
RESPONSES = "/v1/responses"
SEA = [{"role": "user", "content": "Tell me about the sea."}]
LOOP = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"


@pytest.fixture(scope="module")
def server():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "PREPARATION_CPU_S", 0.25)
        patch.setattr(limits, "PREPARATION_BYTES", 1 << 27)
        patch.setattr(limits, "RESPONSE_LOGPROBS", 100_000)
        with servers.running(ServerSettings(threads=1, context=2048, max_sequences=4)) as running:
            yield running
            assert running.post(TEXT, prompt="The", max_tokens=1).status_code == 200
            running.wait_until_idle()
            assert running.runtime.n_open == 0


def nested(depth: int) -> dict:
    schema: dict = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def choices(n: int) -> dict:
    return {"anyOf": [{"properties": {f"a{n}{i}": {"type": "integer"}}} for i in range(4)]}


SCHEMAS = {
    "large multiple": {"type": "integer", "multipleOf": 9999991},
    "several multiples": {"allOf": [{"type": "integer", "multipleOf": m} for m in (9973, 9967)]},
    "decimal multiple": {"type": "number", "multipleOf": 0.9999991},
    "long string": {"type": "string", "minLength": 10**9},
    "string of any length": {"type": "string", "maxLength": 10**9},
    "many items": {"type": "array", "items": {"type": "integer"}, "minItems": 10**9},
    "any number of items": {"type": "array", "items": {"type": "null"}, "maxItems": 10**9},
    "many choices of choices": {"allOf": [choices(i) for i in range(12)]},
    "endless": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
    "endless array": {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 2}},
    },
    "pattern": {"type": "string", "pattern": "^(([a-z]+)*)*([0-9a-z]{1,500}x){1,50}$"},
    "intersection of patterns": {
        "allOf": [{"type": "string", "pattern": f".*{c}.{{12}}.*"} for c in "abcdefgh"]
    },
    "many values": {"enum": [f"value {i}" for i in range(9000)]},
    "many properties": {"properties": {f"p{i}": {"type": "string"} for i in range(6000)}},
    "deep": nested(300),
    "huge numbers": {"type": "integer", "minimum": -(10**300), "maximum": 10**300},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_hostile_schema_is_rejected_or_followed(server, name):
    schema = {"type": "json_schema", "json_schema": {"schema": SCHEMAS[name]}}

    response = server.post(CHAT, messages=SEA, max_tokens=50, response_format=schema)

    assert response.status_code in (200, 400), response.text
    assert len(response.text) < 5000


def many(text: str, n: int, separator: str = ",") -> str:
    return separator.join([text] * n)


BODIES = {
    "empty prompts": (TEXT, '{"prompt":[' + many("[]", 700_000) + "]}"),
    "biases": (
        TEXT,
        '{"prompt":"a","logit_bias":{' + ",".join(f'"{i}":1' for i in range(200_000)) + "}}",
    ),
    "biases in a small body": (
        TEXT,
        '{"prompt":"a","logit_bias":{' + ",".join(f'"{i}":1' for i in range(1025)) + "}}",
    ),
    "keys of a schema": (
        CHAT,
        '{"messages":[{"role":"user","content":"a"}],"response_format":{"type":"json_schema",'
        '"json_schema":{"schema":{' + ",".join(f'"k{i}":{{}}' for i in range(150_000)) + "}}}}",
    ),
    "messages": (CHAT, '{"messages":[' + many('{"role":"user","content":""}', 5000) + "]}"),
    "parts": (
        CHAT,
        '{"messages":[{"role":"user","content":[' + many('{"type":"text"}', 1025) + "]}]}",
    ),
    "stop strings": (TEXT, '{"prompt":"a","stop":[' + many('"a"', 17) + "]}"),
    "long stop string": (TEXT, '{"prompt":"a","stop":"' + "a" * 1001 + '"}'),
    "deep": (TEXT, '{"prompt":"a","x":' + "[" * 500_000 + "]" * 500_000 + "}"),
    "deep tools": (
        CHAT,
        '{"messages":[{"role":"user","content":"a"}],"tools":[{"type":"function","function":'
        '{"name":"f","parameters":' + '{"a":' * 5000 + "1" + "}" * 5000 + "}}]}",
    ),
    "large number": (TEXT, '{"prompt":"a","seed":' + "9" * 100_000 + "}"),
    "not UTF-8": (TEXT, b'{"prompt":"\xff\xfe' + b"\xff" * 50_000 + b'"}'),
    "lone surrogate": (TEXT, '{"prompt":"\\ud800"}'),
    "lone surrogate in a message": (CHAT, '{"messages":[{"role":"user","content":"\\ud800"}]}'),
    "long text": ("/tokenize", '{"prompt":"' + "a " * 400_000 + '"}'),
    "long conversation": (
        "/tokenize",
        '{"messages":[{"role":"user","content":"' + "a " * 400_000 + '"}]}',
    ),
    "items": (
        RESPONSES,
        '{"input":[' + many('{"role":"user","content":""}', 5000) + "]}",
    ),
    "references": (
        RESPONSES,
        '{"input":[' + many('{"type":"item_reference","id":"msg_1"}', 4000) + "]}",
    ),
    "deep tools of a response": (
        RESPONSES,
        '{"input":"a","tools":[{"type":"function","name":"f","parameters":'
        + '{"a":' * 5000
        + "1"
        + "}" * 5000
        + "}]}",
    ),
    "large tools of a response": (
        RESPONSES,
        '{"input":"a","tools":[{"type":"function","name":"f","description":"'
        + "a" * (limits.REPEATED_BYTES + 1)
        + '"}]}',
    ),
    "large format of a response": (
        RESPONSES,
        '{"input":"a","text":{"format":{"type":"text","description":"'
        + "a" * (limits.REPEATED_BYTES + 1)
        + '"}}}',
    ),
    "large calls to store": (
        RESPONSES,
        '{"input":[{"role":"user","content":"a"},{"type":"function_call","call_id":"1","name":"f",'
        '"arguments":"' + "a" * (limits.STORED_INPUT_BYTES + 1) + '"}]}',
    ),
    "long conversation to truncate": (
        RESPONSES,
        '{"truncation":"auto","input":[' + many('{"role":"user","content":"a b c"}', 4097) + "]}",
    ),
    "long text to truncate": (
        RESPONSES,
        '{"truncation":"auto","input":"' + "a " * 400_000 + '"}',
    ),
    "long id": (RESPONSES, '{"input":"a","previous_response_id":"' + "a" * 100_000 + '"}'),
    "metadata": (
        RESPONSES,
        '{"input":"a","metadata":{' + ",".join(f'"{i}":""' for i in range(100_000)) + "}}",
    ),
    "long input": ("/v1/embeddings", '{"input":["' + "a " * 400_000 + '"]}'),
    "tokens": ("/detokenize", '{"tokens":[' + many("1", 12_000) + "]}"),
    "properties that are not an object": (
        CHAT,
        '{"messages":[{"role":"user","content":"a"}],"tool_choice":"required","tools":[{"type":'
        '"function","function":{"name":"f","parameters":{"properties":true,"required":["a"]}}}]}',
    ),
    "wrong type": (CHAT, '{"messages":"' + "a" * 100_000 + '"}'),
    "long enumeration value": (CHAT, '{"messages":[{"role":"' + "a" * 100_000 + '"}]}'),
    "log-probabilities": (TEXT, '{"prompt":"a","max_tokens":2000,"n":4,"logprobs":20}'),
    "log-probabilities of prompts": (
        TEXT,
        '{"prompt":[' + many('"a"', 68) + '],"max_tokens":1500,"logprobs":20}',
    ),
    "long model name": (TEXT, '{"prompt":"a","model":"' + "a" * 100_000 + '"}'),
}


@pytest.mark.parametrize("name", BODIES)
def test_hostile_body_is_rejected_with_a_short_error(server, name):
    path, body = BODIES[name]
    content = body if isinstance(body, bytes) else body.encode()

    response = server.client.post(
        path, content=content, headers={"content-type": "application/json"}
    )

    assert response.status_code in (400, 404, 413), response.text[:500]
    assert len(response.text) < 1000


def test_references_are_counted_before_they_are_looked_up(server):
    body = BODIES["references"][1].replace("[", "[" + many('{"type":"item_reference"}', 97) + ",")

    response = server.client.post(
        RESPONSES, content=body.encode(), headers={"content-type": "application/json"}
    )

    assert response.status_code == 400 and response.json()["error"]["param"] == "input"


def test_nesting_beyond_a_step_after_decoding_is_refused(server):
    def build(*arguments):
        return build(*arguments)

    with pytest.raises(APIError, match="nested too deep") as error:
        prepare(server.model, build, protocol.Sampling, b"{}", "client")
    assert error.value.status == 400


def test_body_above_the_small_size_is_not_decoded_by_the_event_loop(server, monkeypatch):
    monkeypatch.setattr("yocobit.serving.http.app.decode", lambda *_: 1 / 0)
    padding = "x" * limits.SMALL_BODY_BYTES

    assert server.post(TEXT, prompt="a", max_tokens=1, user=padding).status_code == 200


def test_large_bodies_in_memory_are_bounded(server, monkeypatch):
    monkeypatch.setattr(limits, "LARGE_BODIES", 70_000 / server.state.settings.max_body_bytes)
    head = (
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: 100000\r\n\r\n"
    )
    with server.connect() as slow:
        slow.sendall(head + b" " * 50_000)
        servers.wait_for(lambda: server.state._body_bytes)

        rejected = server.post(TEXT, prompt="a" * 50_000, max_tokens=1)
        small = server.post(TEXT, prompt="a", max_tokens=1)
    servers.wait_for(lambda: not server.state._body_bytes)

    assert rejected.status_code == 503 and rejected.headers["retry-after"]
    assert rejected.json()["error"]["code"] == "too_many_large_bodies"
    assert small.status_code == 200
    assert server.post(TEXT, prompt="a", user="a" * 50_000, max_tokens=1).status_code == 200


LARGE = 6 << 20  # bytes of a body
COSTLY = {
    "messages": SEA,
    "response_format": {
        "type": "json_schema",
        "json_schema": {"schema": SCHEMAS["large multiple"]},
    },
}


def status(server, path: str, **body) -> int:
    """The status of the response to a large body; the client keeps no copy of it."""
    with server.send(path, **body, user="x" * LARGE) as connection:
        return int(connection.recv(1 << 16).split()[1])


def complete(server, monkeypatch):
    assert status(server, TEXT, prompt="a", max_tokens=1) == 200


def reject_invalid(server, monkeypatch):
    assert status(server, TEXT, prompt=[[]]) == 400


def reject_costly(server, monkeypatch):
    assert status(server, CHAT, **COSTLY) == 400


def reject_at_the_time_limit(server, monkeypatch):
    monkeypatch.setattr(server.runtime, "_timeout_s", 0.01)
    assert status(server, CHAT, **COSTLY) == 504


def reject_without_memory(server, monkeypatch):
    monkeypatch.setattr(limits, "LARGE_BODIES", LARGE / server.state.settings.max_body_bytes)
    assert status(server, TEXT, prompt="a") == 503


def disconnect_while_reading(server, monkeypatch):
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with server.connect() as connection:
        connection.sendall(head + b"Content-Length: 9000000\r\n\r\n" + b" " * LARGE)
        servers.wait_for(lambda: server.state._body_bytes == LARGE)


def disconnect_while_preparing(server, monkeypatch):
    with server.send(CHAT, **COSTLY, user="x" * LARGE):
        servers.wait_for(lambda: server.runtime._n_preparing)


needs_glibc = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="the C library does not report its heap"
)


@needs_glibc
@pytest.mark.parametrize(
    "request_with",
    [
        complete,
        reject_invalid,
        reject_costly,
        reject_at_the_time_limit,
        reject_without_memory,
        disconnect_while_reading,
        disconnect_while_preparing,
    ],
)
def test_large_body_is_freed_without_a_garbage_collection(server, monkeypatch, request_with):
    server.client.get("/health")
    gc.collect()
    gc.disable()
    try:
        before = allocated_bytes()
        request_with(server, monkeypatch)
        servers.wait_for(lambda: not server.state._body_bytes)
        server.client.get("/health")  # the request's task has ended

        assert allocated_bytes() - before < LARGE // 2
    finally:
        gc.enable()


@needs_glibc
def test_large_body_is_freed_while_its_request_is_queued(server, monkeypatch):
    scheduler = server.runtime.scheduler
    server.client.get("/health")
    before = allocated_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(scheduler, "_fits", lambda request: False)
        connection = server.send(TEXT, prompt="a", max_tokens=1, user="x" * LARGE)
        servers.wait_for(lambda: scheduler.n_waiting)
        growth = allocated_bytes() - before
    with connection:
        response = connection.recv(1 << 16)

    assert response.split()[1] == b"200"
    assert growth < LARGE // 2


def test_error_after_a_disconnect_is_not_logged(server, monkeypatch, caplog):
    started, is_gone, is_over = (threading.Event() for _ in range(3))

    def refuse(*_):
        started.set()
        is_gone.wait()
        is_over.set()
        raise APIError(400, "too late")

    monkeypatch.setattr("yocobit.serving.http.app.prepare", refuse)
    with server.send(TEXT, prompt="a", user="x" * limits.TINY_BODY_BYTES):
        started.wait()
    servers.wait_for(lambda: not server.runtime._n_preparing)
    is_gone.set()
    is_over.wait()
    server.client.get("/health")  # the event loop has the thread's result
    gc.collect()

    assert "never retrieved" not in caplog.text


def test_requests_that_wait_for_preparation_count_as_queued(monkeypatch):
    monkeypatch.setattr(limits, "PREPARATION_CPU_S", 0.5)
    settings = ServerSettings(threads=1, max_sequences=1, max_waiting=0)
    schema = {"type": "json_schema", "json_schema": {"schema": SCHEMAS["large multiple"]}}
    with servers.running(settings) as server:
        waiting = server.send(CHAT, messages=SEA, response_format=schema)
        servers.wait_for(lambda: server.runtime.n_open)

        rejected = server.post(TEXT, prompt="a", max_tokens=1)
        waiting.close()  # frees its place
        servers.wait_for(lambda: not server.runtime.n_open)
        accepted = server.post(TEXT, prompt="a", max_tokens=1)

    assert rejected.status_code == 429 and rejected.headers["retry-after"]
    assert accepted.status_code == 200


def test_time_limit_covers_preparation(monkeypatch):
    schema = {"type": "json_schema", "json_schema": {"schema": SCHEMAS["large multiple"]}}
    with servers.running(ServerSettings(threads=1, timeout_s=0.2)) as server:
        response = server.post(CHAT, messages=SEA, response_format=schema)

        assert response.status_code == 504
        assert response.json()["error"]["code"] == "timeout"


# ---- files next to the weights ----


@pytest.fixture
def model(tmp_path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def test_template_with_an_endless_loop_stops_nobody_else(model, monkeypatch):
    monkeypatch.setattr(limits, "PREPARATION_CPU_S", 0.3)
    (model / "chat_template.jinja").write_text(LOOP + LOOP)
    with servers.running(ServerSettings(threads=1, model=model)) as server:
        chats = [server.post(path, messages=SEA) for path in (CHAT, "/tokenize")]
        text = server.post(TEXT, prompt="a", max_tokens=1)

    assert [chat.status_code for chat in chats] == [400, 400]
    assert text.status_code == 200


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("generation_config.json", '{"bos_token_id": 99999}'),
        ("generation_config.json", '{"bos_token_id": -1}'),
        ("generation_config.json", '{"bos_token_id": [0]}'),
        ("generation_config.json", '{"bos_token_id": "0"}'),
        ("generation_config.json", '{"eos_token_id": 99999}'),
        ("generation_config.json", '{"eos_token_id": [[0]]}'),
        ("generation_config.json", '{"stop_strings": [1]}'),
        ("generation_config.json", '{"temperature": -5}'),
        ("generation_config.json", '{"top_k": "x"}'),
        ("generation_config.json", "[" * 100_000),
        ("chat_template.jinja", "{% if %}"),
        ("chat_template.jinja", "{{ " + "(" * 400 + "1" + ")" * 400 + " }}"),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "[" * 100_000),
    ],
)
def test_server_with_an_invalid_file_does_not_start(model, name, content):
    (model / name).write_text(content)

    with servers.running(ServerSettings(threads=1, model=model)) as server:
        problem = server.state.problem

    assert problem and len(problem.splitlines()) == 1
    assert len(problem) < 1000


def test_error_of_a_wrong_enumeration_value_is_short():
    with pytest.raises(Exception, match="Invalid enum value") as rejected:
        protocol.decode(json.dumps({"role": "x" * 10_000}).encode(), protocol.Message)

    assert len(str(rejected.value)) < 600


def test_long_path_is_not_repeated_in_full(server):
    response = httpx.get(server.url + "/" + "a" * 5000)

    assert response.status_code == 404
    assert len(response.text) < 1000


def test_api_keys_share_no_cached_prefixes():
    keys = ("key-of-the-first", "key-of-the-second")
    body = {"prompt": "And God said, Let there be light. " * 20, "max_tokens": 1}
    with servers.running(ServerSettings(threads=1, api_keys=keys)) as server:
        found = []
        for key in (*keys, *keys):
            headers = {"authorization": f"Bearer {key}"}
            response = server.client.post(TEXT, json=body, headers=headers)
            found.append(response.json()["usage"]["prompt_tokens_details"]["cached_tokens"])
            server.wait_until_idle()

    assert found[:2] == [0, 0]
    assert all(n > 0 for n in found[2:])


def test_health_tells_a_crowded_server_from_a_stuck_one(server, monkeypatch):
    monkeypatch.setattr(server.runtime.scheduler, "max_waiting", 0)
    crowded = server.client.get("/health")
    monkeypatch.setattr(server.runtime.scheduler, "_step_started_at", -1e9)
    stuck = server.client.get("/health")
    monkeypatch.setattr(server.runtime.scheduler, "_step_started_at", None)

    assert (crowded.status_code, crowded.json()) == (200, {"status": "ok"})
    assert (stuck.status_code, stuck.json()) == (503, {"status": "stuck"})


def test_model_whose_tokenizer_has_no_grammars_is_served_without_schemas(monkeypatch):
    def fail(*_):
        raise ValueError("can't determine decoder type")

    monkeypatch.setattr(served_model.GrammarCompiler, "__init__", fail)
    model = served_model.text_model(ServerSettings())

    with pytest.raises(APIError, match="can't determine decoder type") as rejected:
        model.grammars.check({}, "response_format", 10)

    assert rejected.value.status == 400
    assert model.token_text(65)[0].encode() == bytes(model.token_text(65)[1])


def test_conversation_without_a_schema_needs_no_grammars(monkeypatch):
    monkeypatch.setattr(served_model, "_grammars", lambda engine: "not supported")
    with servers.running(ServerSettings(threads=1)) as server:
        assert server.post(CHAT, messages=SEA, max_tokens=1).status_code == 200


@pytest.mark.parametrize(
    ("messages", "n_jobs"),
    [
        (SEA, 0),
        ([{"role": "user", "content": "a" * limits.TINY_BODY_BYTES}], 1),
        ([{"role": "user", "content": "a</s>"}], 1),  # makes another tokenizer, in seconds
        ([{"role": "user"}], 1),  # rejected
    ],
    ids=["tiny", "not tiny", "special token", "invalid"],
)
def test_only_tiny_conversations_are_prepared_in_the_event_loop(
    server, n_jobs, messages, monkeypatch
):
    jobs = []
    in_worker = server.runtime.in_worker

    def count(*arguments, **options):
        jobs.append(arguments)
        return in_worker(*arguments, **options)

    monkeypatch.setattr(server.runtime, "in_worker", count)
    special = server.state.model.engine.tokenizer.id_to_token(
        min(server.state.model.engine.end_tokens)
    )
    messages = json.loads(json.dumps(messages).replace("</s>", special))

    for path in (CHAT, "/tokenize"):
        server.post(path, messages=messages, max_tokens=1)

    assert len(jobs) == 2 * n_jobs


def test_template_of_many_steps_is_rendered_in_a_worker(model, monkeypatch):
    steps = "{% for i in range(5000) %}{{ i }}{% endfor %}"
    (model / "chat_template.jinja").write_text(steps)
    with servers.running(ServerSettings(threads=1, model=model, context=20_000)) as server:
        response = server.post("/tokenize", messages=SEA)

    assert response.status_code == 200
    assert response.json()["count"] > 2048


def test_expensive_template_is_not_rendered_in_the_event_loop_again(monkeypatch):
    monkeypatch.setattr(limits, "TINY_CPU_S", -1.0)
    rendered = []
    monkeypatch.setattr(
        "yocobit.serving.http.app.prepare",
        lambda *arguments: rendered.append(arguments) or prepare(*arguments),
    )
    with servers.running(ServerSettings(threads=1)) as server:
        monkeypatch.setattr(server.runtime, "in_worker", lambda *_, **__: refuse())
        statuses = [server.post("/tokenize", messages=SEA).status_code for _ in range(3)]

    assert statuses == [200, 429, 429]
    assert len(rendered) == 1


async def refuse():
    raise APIError(429, "in a worker")


def test_model_without_end_tokens_is_served(model):
    (model / "generation_config.json").write_text('{"eos_token_id": []}')
    with servers.running(ServerSettings(threads=1, model=model)) as server:
        assert server.state.problem is None
        assert server.post(CHAT, messages=SEA, max_tokens=2).status_code == 200
