"""API keys, trusted hosts, CORS, limits, disconnects, timeouts and loading."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import json
import logging
import re
import selectors
import threading

import httpx
import pytest
import servers
from servers import NO_END, wait_for

from yocobit.serving import ServerSettings, create_app
from yocobit.serving.api.call import Events
from yocobit.serving.api.endpoints import ENDPOINTS
from yocobit.serving.api.wire import WireFormat
from yocobit.serving.errors import APIError, internal_error
from yocobit.serving.http.sse import write_events

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
KEYS = ("the-first-key", "the-second-key")
HOSTS = ("127.0.0.1", "localhost", "MyBox", "::1")
LONG = {"prompt": "The king", "max_tokens": 5000, "logit_bias": NO_END}


@pytest.fixture(scope="module")
def server():
    settings = ServerSettings(
        threads=1,
        api_keys=KEYS,
        trusted_hosts=HOSTS,
        cors_origins=("https://friend.example",),
        max_body_mb=1,
        max_waiting=2,
        max_sequences=4,
    )
    with servers.running(settings) as running:
        yield running


def bare(server, method: str, path: str, **headers: str) -> httpx.Response:
    """Send a request with these headers and no key."""
    return httpx.request(method, server.url + path, headers=headers)


@pytest.mark.parametrize(
    "path", ["/", "/v1/models", "/metrics", "/openapi.json", "/page/page.js", "/nothing", TEXT]
)
def test_every_path_except_health_requires_a_key(server, path):
    for method in ("GET", "POST", "HEAD", "OPTIONS"):
        response = bare(server, method, path)
        assert response.status_code == 401
        assert response.headers["www-authenticate"].startswith("Basic")
    assert bare(server, "GET", "/health").status_code == 200


@pytest.mark.parametrize(("path", "status"), [("/health", 503), ("/v1/models", 401)])
def test_health_requires_no_key_below_a_proxy_prefix(path, status):
    app = create_app(
        ServerSettings(api_keys=KEYS, trusted_hosts=("a.b",))
    )  # loads no model: no lifespan

    async def get() -> int:
        transport = httpx.ASGITransport(app, root_path="/proxy")
        async with httpx.AsyncClient(transport=transport, base_url="http://a.b/proxy") as client:
            return (await client.get(path)).status_code

    assert asyncio.run(get()) == status


@pytest.mark.parametrize("key", KEYS)
def test_each_key_is_accepted_in_each_header(server, key):
    basic = base64.b64encode(f"me:{key}".encode()).decode()

    for headers in (
        {"authorization": f"Bearer {key}"},
        {"authorization": f"bearer  {key}"},
        {"authorization": f"Basic {basic}"},
        {"x-api-key": key},
    ):
        assert bare(server, "GET", "/v1/models", **headers).status_code == 200


@pytest.mark.parametrize(
    "value",
    ["Bearer the-first-ke", "Bearer the-first-keyy", "Bearer", "", "Basic !!", "Basic YTpi", "x"],
)
def test_wrong_keys_are_rejected(server, value):
    assert bare(server, "GET", "/v1/models", authorization=value).status_code == 401


def test_keys_are_compared_in_constant_time(server, monkeypatch):
    compared = []
    real = __import__("hmac").compare_digest
    monkeypatch.setattr(
        "yocobit.serving.http.middleware.hmac.compare_digest",
        lambda a, b: compared.append((a, b)) or real(a, b),
    )

    bare(server, "GET", "/v1/models", authorization=f"Bearer {KEYS[0]}")

    assert [b for _, b in compared] == [key.encode() for key in KEYS]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:99", 200),
        ("mybox", 200),
        ("MYBOX:8080", 200),
        ("[::1]:8080", 200),
        ("[::1]", 200),
        ("evil.example", 403),
        ("[::2]:8080", 403),
        ("localhost.evil.example", 403),
        ("", 403),
    ],
)
def test_untrusted_host_names_are_rejected(server, host, status):
    headers = {"authorization": f"Bearer {KEYS[0]}", "host": host}

    assert bare(server, "GET", "/v1/models", **headers).status_code == status
    assert bare(server, "GET", "/health", host=host).status_code == 200


@pytest.mark.parametrize("path", ["/health/", "/v1", "/v1/models/", "/metrics/", "/page/"])
def test_unknown_path_is_not_found(server, path):
    response = server.client.get(path)

    assert (response.status_code, response.headers.get("location")) == (404, None)


@pytest.mark.parametrize("name", ["x" * 300, "%2e%2e", "..%2fapp.py", "%00", "nothing.js"])
def test_page_serves_its_own_files_only(server, name):
    assert server.client.get(f"/page/{name}").status_code == 404


def test_cors_allows_configured_origins_only(server):
    def allowed(origin):
        preflight = bare(
            server, "OPTIONS", TEXT, origin=origin, **{"access-control-request-method": "POST"}
        )
        headers = {"origin": origin, "authorization": f"Bearer {KEYS[0]}"}
        answer = bare(server, "GET", "/v1/models", **headers)
        name = "access-control-allow-origin"
        return preflight.headers.get(name), answer.headers.get(name)

    assert allowed("https://friend.example") == ("https://friend.example",) * 2
    assert allowed("https://evil.example") == (None, None)


def test_cors_is_off_by_default():
    with servers.running(ServerSettings(threads=1)) as server:
        answer = bare(server, "GET", "/v1/models", origin="https://friend.example")
        preflight = bare(
            server,
            "OPTIONS",
            TEXT,
            origin="https://a.b",
            **{"access-control-request-method": "POST"},
        )

    assert not any(name.startswith("access-control") for name in answer.headers)
    assert preflight.status_code == 405


@pytest.mark.parametrize("chunked", [False, True])
def test_too_large_body_is_rejected(server, chunked):
    body = json.dumps({"prompt": "x" * (1 << 20)}).encode()
    content = iter([body[: 1 << 19], body[1 << 19 :]]) if chunked else body

    response = server.client.post(
        TEXT, content=content, headers={"content-type": "application/json"}
    )

    assert response.status_code == 413


def test_valid_request_ids_are_echoed(server):
    answers = [
        server.client.get("/v1/models", headers={"x-request-id": name}).headers["x-request-id"]
        for name in ("abc-1", "a b", "x" * 500)
    ]

    assert answers[0] == "abc-1"
    assert all(len(each) == 32 for each in answers[1:])


def test_path_in_the_log_stays_on_its_line(server, caplog):
    with caplog.at_level(logging.INFO, "yocobit.access"):
        server.client.get("/x%0a12:00:00%20GET%20/admin%20200%1b[31m%c2%85")
        # the line of an earlier test's request may arrive now, too
        wait_for(lambda: any("admin" in each.fields["path"] for each in caplog.records))

    (record,) = (each for each in caplog.records if "admin" in each.fields["path"])
    assert record.getMessage().isprintable()
    assert record.fields["path"].isprintable()


# ---- metrics of rejected requests ----


def failures(server) -> dict[str, float]:
    """Return the number of failed requests in /metrics, by status."""
    found = re.findall(r'request_failure_total{status="(\d+)"} (\S+)', server.metrics())
    return {status: float(n) for status, n in found}


def test_rejected_requests_are_counted_by_status(server):
    before = failures(server)

    bare(server, "GET", "/v1/models")
    bare(server, "GET", "/v1/models", host="evil.example")
    server.client.get("/nothing")
    server.client.get(TEXT)
    server.client.get("/health/x")
    server.post(TEXT, prompt="x", temperature=-1)
    server.post(TEXT, prompt="x", max_tokens=10**6)
    server.post(TEXT, prompt="x" * (1 << 20))
    connections = [server.send(TEXT, **LONG, stream=True) for _ in range(6)]
    wait_for(lambda: server.runtime.scheduler.n_waiting == 2)
    server.post(TEXT, prompt="The", max_tokens=1)
    for connection in connections:
        connection.close()
    server.wait_until_idle()

    after = failures(server)
    grown = {status: n - before.get(status, 0) for status, n in after.items()}
    assert {status: n for status, n in grown.items() if n} == {
        "400": 2,
        "401": 1,
        "403": 1,
        "404": 2,
        "405": 1,
        "413": 1,
        "429": 1,
    }


# ---- exceptions ----


def test_exception_is_a_500_with_a_logged_request_id(server, monkeypatch, caplog):
    monkeypatch.setattr(
        "yocobit.serving.api.completions.TextCompletion.completed", lambda *_: 1 / 0
    )

    response = server.post(TEXT, prompt="a", max_tokens=1)
    wait_for(lambda: not server.runtime._streams)

    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.fields["request_id"] == response.headers["x-request-id"]
    assert record.exc_info[0] is ZeroDivisionError


def test_exception_in_a_stream_is_an_event_and_is_logged(server, monkeypatch, caplog):
    async def chunks(*_):
        yield [{}]
        raise ZeroDivisionError

    monkeypatch.setattr("yocobit.serving.api.completions.TextCompletion.chunks", chunks)

    events = server.events(TEXT, prompt="a", max_tokens=1)  # requires a [DONE]
    wait_for(lambda: not server.runtime._streams)
    wait_for(lambda: any(record.exc_info for record in caplog.records))

    assert events[0] == {}
    assert events[1]["error"]["type"] == "server_error"
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.exc_info[0] is ZeroDivisionError


# ---- bodies ----


def test_detokenize_limits_its_tokens(server):
    limit = 4 * server.model.settings.context

    assert server.post("/detokenize", tokens=[1] * limit).status_code == 200
    assert server.post("/detokenize", tokens=[1] * (limit + 1)).status_code == 400
    assert server.post("/detokenize", tokens=[1000] * (4 * limit)).status_code == 413


# ---- disconnects ----


@pytest.mark.parametrize("stream", [True, False])
def test_disconnect_releases_the_request_within_a_step(server, stream):
    scheduler = server.runtime.scheduler
    connection = server.send(TEXT, **LONG, stream=stream)
    wait_for(lambda: scheduler.running and scheduler.running[0].n_generated > 3)
    group = scheduler.running[0]

    connection.close()
    wait_for(lambda: group.is_cancelled)
    at = group.n_generated
    wait_for(lambda: not scheduler.running and scheduler.memory.reserved_bytes == 0)

    assert group.n_generated <= at + 1
    assert not server.runtime._streams


def test_full_server_sends_retry_after(server):
    scheduler = server.runtime.scheduler
    connections = [server.send(TEXT, **LONG, stream=True) for _ in range(6)]
    wait_for(lambda: len(scheduler.running) == 4 and scheduler.n_waiting == 2)

    rejected = server.post(TEXT, prompt="The", max_tokens=1)

    for connection in connections:
        connection.close()
    assert rejected.status_code == 429
    assert rejected.headers["retry-after"] == "1"
    assert rejected.json()["error"]["type"] == "rate_limit_error"
    wait_for(lambda: not scheduler.running and not scheduler.n_waiting)


def test_incomplete_request_leaves_nothing_running(server):
    connection = server.send(TEXT, **LONG)
    connection.close()
    half = server.connect()
    half.sendall(
        f"POST {TEXT} HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {KEYS[0]}\r\n"
        "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{".encode()
    )
    half.close()

    wait_for(lambda: not server.runtime.scheduler.running)
    assert server.post(TEXT, prompt="The", max_tokens=1).status_code == 200


# ---- timeouts and pings ----


def test_request_that_takes_too_long_ends_with_an_error():
    with servers.running(ServerSettings(threads=1, timeout_s=0.2)) as server:
        whole = server.post(TEXT, **LONG)
        events = server.events(TEXT, **LONG)
        counted = failures(server)

    assert whole.status_code == 504
    assert whole.json()["error"]["code"] == "timeout"
    assert events[-1]["error"]["code"] == "timeout"
    assert counted == {"504": 2}


def test_idle_stream_gets_pings(monkeypatch):
    monkeypatch.setattr("yocobit.serving.http.sse.PING_S", 0.01)
    with servers.running(ServerSettings(threads=1, max_sequences=1)) as server:
        first = server.send(TEXT, **LONG, stream=True)
        wait_for(lambda: server.runtime.scheduler.running)
        body = {"prompt": "x", "max_tokens": 1, "stream": True}
        with server.client.stream("POST", TEXT, json=body) as response:
            lines = response.iter_lines()
            assert next(lines) == ": ping"
            first.close()
            lines = [line for line in lines if line]

    assert lines[-1] == "data: [DONE]"


class Clock(selectors.DefaultSelector):
    """Time that passes only while an event loop waits, and then at once."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list:
        self.now += timeout or 0
        return super().select(None if timeout is None else 0)

    def loop(self) -> asyncio.SelectorEventLoop:
        loop = asyncio.SelectorEventLoop(self)
        loop.time = lambda: self.now
        return loop


def test_busy_stream_gets_no_pings(monkeypatch):
    async def chunks():
        for _ in range(40):
            await asyncio.sleep(0.01)
            yield [{}]

    async def receive():
        await asyncio.Event().wait()

    sent = []

    async def send(message):
        sent.append(message.get("body"))

    monkeypatch.setattr("yocobit.serving.http.sse.PING_S", 0.25)
    with asyncio.Runner(loop_factory=Clock().loop) as runner:
        runner.run(write_events(receive, send, Events(chunks())))

    assert sent == [None, *[b"data: {}\n\n"] * 40, b"data: [DONE]\n\n"]


# ---- wire formats ----

SHORT = WireFormat(
    lambda value: json.dumps(value).encode() + b"\n",
    end=b"end\n",
    ping=b"",
    stream_type="application/x-ndjson",
    error=lambda error: {"error": str(error)},
)


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("POST", {}, 401),
        ("GET", {"x-api-key": KEYS[0]}, 405),
        ("POST", {"x-api-key": KEYS[0]}, 503),
    ],
)
def test_errors_have_the_shape_of_the_endpoints_wire_format(method, headers, status, monkeypatch):
    endpoints = [
        dataclasses.replace(e, wire=SHORT) if e.path == "/completions" else e for e in ENDPOINTS
    ]
    monkeypatch.setattr("yocobit.serving.http.app.ENDPOINTS", endpoints)
    app = create_app(ServerSettings(api_keys=KEYS))  # loads no model: no lifespan

    async def send(path: str) -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://a.b") as client:
            return await client.request(method, path, headers=headers)

    short, usual = (asyncio.run(send(path)) for path in (TEXT, CHAT))

    assert short.status_code == usual.status_code == status
    assert isinstance(short.json()["error"], str)
    assert usual.json()["error"]["message"]


@pytest.mark.parametrize("failure", [APIError(504, "late"), ValueError("a bug")])
def test_stream_has_the_wire_formats_frames_and_errors(failure):
    async def batches():
        yield [1, 2]
        raise failure

    async def receive():
        await asyncio.Event().wait()

    sent: list[dict] = []

    async def send(message):
        sent.append(message)

    async def run(events: Events) -> bytes:
        sent.clear()
        with contextlib.suppress(ValueError):
            await write_events(receive, send, events, SHORT)
        return b"".join(message.get("body", b"") for message in sent)

    message = str(failure if isinstance(failure, APIError) else internal_error())
    expected = b"1\n2\n" + json.dumps({"error": message}).encode() + b"\nend\n"
    assert asyncio.run(run(Events(batches()))) == expected
    assert dict(sent[0]["headers"])[b"content-type"] == b"application/x-ndjson; charset=utf-8"
    own = Events(batches(), failed=lambda error: {"failed": str(error)}, headers={"X-A": "b"})
    assert asyncio.run(run(own)) == expected.replace(b"error", b"failed", 1)
    assert dict(sent[0]["headers"])[b"x-a"] == b"b"


# ---- loading ----


@pytest.mark.parametrize(
    "place", ["yocobit.Engine.load", "yocobit.serving.api.served_model.summarize"]
)
def test_model_that_fails_to_load_is_reported(place, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("no threads")

    monkeypatch.setattr(place, fail)
    with servers.running(ServerSettings(threads=1)) as server:
        health, rejected = server.client.get("/health"), server.post(TEXT, prompt="The")

    assert (health.status_code, health.json()) == (503, {"status": "failed"})
    assert rejected.status_code == 503
    assert server.state.problem == "no threads"
    assert any(record.exc_info for record in caplog.records)


def test_server_is_not_ready_until_the_model_is_loaded(monkeypatch):
    release = threading.Event()
    from yocobit import Engine

    real = Engine.load

    def slow(*args, **kwargs):
        release.wait(30)
        return real(*args, **kwargs)

    monkeypatch.setattr(Engine, "load", slow)
    with servers.running(ServerSettings(threads=1), wait=False) as server:
        wait_for(lambda: _answers(server))
        loading, rejected = server.client.get("/health"), server.post(TEXT, prompt="The")
        release.set()
        wait_for(lambda: server.client.get("/health").status_code == 200)

    assert (loading.status_code, loading.json()) == (503, {"status": "loading"})
    assert rejected.status_code == 503
    assert rejected.headers["retry-after"]


def _answers(server) -> bool:
    try:
        server.client.get("/health")
    except httpx.ConnectError:
        return False
    return True
