"""Connections: limit, timeouts, invalid HTTP, client addresses."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import threading

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from yocobit.serving import ServerSettings, create_app
from yocobit.serving.http import server
from yocobit.serving.http.server import configure

HEAD = b"GET /health HTTP/1.1\r\nHost: x\r\n"
SETTINGS = ServerSettings(threads=1, max_sequences=1, max_waiting=0)


@contextlib.contextmanager
def running(app: Starlette | None = None):
    """Run a server whose model is never loaded; yield its address."""
    app = app or create_app(SETTINGS)
    app.state.server.load = lambda: asyncio.Event().wait()
    listener = socket.create_server(("127.0.0.1", 0))
    runner = uvicorn.Server(configure(app, SETTINGS))
    thread = threading.Thread(target=runner.run, args=([listener],))
    thread.start()
    try:
        yield listener.getsockname()
    finally:
        runner.should_exit = True
        thread.join()
        listener.close()


def answer(client: socket.socket) -> tuple[bytes, dict]:
    """Return the status line and the JSON of a response, read until the connection closes."""
    found = b""
    while more := client.recv(65536):
        found += more
    head, _, body = found.partition(b"\r\n\r\n")
    return head.split(b"\r\n")[0], json.loads(body)


def read_response(client: socket.socket) -> None:
    """Read one response of status 503, in as many packets as it has."""
    found = b""
    while b"\r\n\r\n" not in found:
        found += client.recv(1)
    assert found.startswith(b"HTTP/1.1 503"), found
    n_left = int(found.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    while n_left > 0:
        n_left -= len(client.recv(n_left))


@pytest.mark.parametrize(
    "start",
    [
        b"",
        HEAD,
        HEAD + b"\r\n" + HEAD,  # the second request on a connection
        HEAD + b"Content-Length: 9\r\n\r\n{",  # the response does not wait for the body
    ],
)
def test_connection_without_a_complete_request_is_closed(start, monkeypatch):
    monkeypatch.setattr("yocobit.serving.http.connection.REQUEST_TIMEOUT_S", 0.05)
    with running() as address, socket.create_connection(address, timeout=10) as client:
        client.sendall(start)
        if start.count(b"\r\n\r\n"):
            read_response(client)  # the model is being loaded
            client.sendall(b"x")

        assert client.recv(65536) == b""


def test_connection_beyond_the_limit_gets_an_openai_error(monkeypatch):
    monkeypatch.setattr(server, "_IDLE_CONNECTIONS", 0)
    app = create_app(SETTINGS)
    with (
        running(app) as address,
        socket.create_connection(address, timeout=10) as first,
        socket.create_connection(address, timeout=10) as second,
    ):
        second.sendall(HEAD + b"\r\n")
        status, body = answer(second)
        first.sendall(HEAD + b"Connection: close\r\n\r\n")
        answer(first)
        metrics = app.state.server.metrics.text()

    assert b'request_failure_total{status="503"} 1.0' in metrics
    assert status == b"HTTP/1.1 503 Service Unavailable"
    assert body["error"]["code"] == "too_many_connections"


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00\x01", HEAD + b"Content-Length: -1\r\n\r\n"]
)
def test_invalid_http_gets_an_openai_error(data):
    app = create_app(SETTINGS)
    with running(app) as address, socket.create_connection(address, timeout=10) as client:
        client.sendall(data)
        status, body = answer(client)
        metrics = app.state.server.metrics.text()

    assert b'request_failure_total{status="400"} 1.0' in metrics
    assert status == b"HTTP/1.1 400 Bad Request"
    assert body["error"]["type"] == "invalid_request_error"


def test_websocket_upgrade_is_ignored(caplog):
    with running() as address, socket.create_connection(address, timeout=10) as client:
        client.sendall(
            b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n"
            b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        response = client.recv(1000)

    assert response.startswith(b"HTTP/1.1 200")
    assert "WebSocket" not in caplog.text


def test_client_cannot_forge_its_address(caplog):
    with (
        caplog.at_level(logging.INFO, "yocobit.access"),
        running() as address,
        socket.create_connection(address, timeout=10) as client,
    ):
        client.sendall(HEAD + b"X-Forwarded-For: 9.9.9.9\r\nConnection: close\r\n\r\n")
        answer(client)

    (record,) = [each for each in caplog.records if each.name == "yocobit.access"]
    assert record.fields["client"] == "127.0.0.1"


@pytest.mark.parametrize(
    "data",
    [
        b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n",
        HEAD + b"X-A: b\r\n" * 101,
        HEAD + b"X-A: " + b"b" * 70_000,  # without an end
        HEAD + (b"X-A: " + b"b" * 30_000 + b"\r\n") * 3,
        HEAD + b"X-A" + b"a" * 70_000,
    ],
)
def test_too_large_head_is_rejected_before_its_end(data):
    app = create_app(ServerSettings(threads=1, api_keys=("secret-key-1",)))
    with running(app) as address, socket.create_connection(address, timeout=10) as client:
        client.sendall(data)
        found = client.makefile("rb").read()

    assert found.startswith(b"HTTP/1.1 431 Request Header Fields Too Large"), found
    assert json.loads(found.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


def test_endless_trailer_ends_the_connection(monkeypatch):
    monkeypatch.setattr("yocobit.serving.http.connection.REQUEST_TIMEOUT_S", 1000)
    with running() as address, socket.create_connection(address, timeout=10) as client:
        client.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX-A: " + b"b" * 70_000)

        assert client.makefile("rb").read().count(b"HTTP/1.1") <= 1


def test_pipelined_requests_are_limited(monkeypatch):
    monkeypatch.setattr("yocobit.serving.limits.PIPELINED", 2)
    with running() as address, socket.create_connection(address, timeout=10) as client:
        client.sendall((HEAD + b"\r\n") * 50)
        found = client.makefile("rb").read()

    assert found.count(b"HTTP/1.1 503") <= 3  # the model is being loaded


def test_client_that_does_not_read_is_disconnected(monkeypatch):
    monkeypatch.setattr("yocobit.serving.http.connection.READ_TIMEOUT_S", 0.01)
    is_over = threading.Event()

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * (1 << 25), "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        is_over.set()

    served = create_app(SETTINGS)
    served.router.routes.insert(0, Mount("/stall", app))
    with running(served) as address, socket.create_connection(address, timeout=10) as client:
        client.sendall(b"GET /stall/ HTTP/1.1\r\nHost: x\r\n\r\n")

        assert is_over.wait(10)


def test_responses_are_not_delayed_by_nagles_algorithm():
    with contextlib.closing(server._listen("127.0.0.1", 0)) as listener:
        assert listener.proto == socket.IPPROTO_TCP  # then asyncio sets TCP_NODELAY
