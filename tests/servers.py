"""Servers for tests: on a free port of this machine, in a thread of this process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import forked
import httpx
import pytest
import uvicorn
import uvicorn.server

from yocobit.serving import ServerSettings, create_app
from yocobit.serving.http.server import configure
from yocobit.serving.runtime import preparation, worker_process

# logit_bias that excludes the packaged model's end token and the "|" of its <|end|>.
NO_END = {"0": -100, "92": -100}


class Server:
    """A running server and a client of it."""

    def __init__(self, url: str, app: Any, headers: dict[str, str]) -> None:
        self.url = url
        self.state = app.state.server
        self.client = httpx.Client(base_url=url, timeout=60, headers=headers)

    @property
    def runtime(self):
        return self.state.runtime

    @property
    def model(self):
        return self.state.model

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.client.post(path, json=body)

    def events(self, path: str, **body: Any) -> list[dict]:
        """The events of a streamed response, without the final [DONE], which is required."""
        with self.client.stream("POST", path, json={**body, "stream": True}) as response:
            assert response.status_code == 200, response.read()
            lines = [line for line in response.iter_lines() if line.startswith("data: ")]
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]

    def connect(self, receive_bytes: int | None = None) -> socket.socket:
        """Return a connection on which nothing has been sent; `receive_bytes` limits its buffer."""
        url = httpx.URL(self.url)
        connection = socket.socket()
        if receive_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection.connect((url.host, url.port))
        return connection

    def send(self, path: str, receive_bytes: int | None = None, **body: Any) -> socket.socket:
        """Return a connection on which a request has been sent; its response is unread."""
        request = self.client.build_request("POST", path, json=body)
        headers = b"".join(b"%b: %b\r\n" % pair for pair in request.headers.raw)
        connection = self.connect(receive_bytes)
        connection.sendall(
            b"POST %b HTTP/1.1\r\n%b\r\n%b" % (path.encode(), headers, request.content)
        )
        return connection

    def metrics(self) -> str:
        return self.client.get("/metrics").text

    def wait_until_idle(self) -> None:
        scheduler = self.runtime.scheduler
        wait_for(lambda: not scheduler.running and not scheduler.n_waiting)


def ok(response: httpx.Response) -> dict:
    """Return the body of a response, which must be 200."""
    assert response.status_code == 200, response.text
    return response.json()


def wait_for(condition: Callable[[], Any]) -> None:
    """Return once a condition holds; TimeoutError instead of a hanging test."""
    end = time.monotonic() + 120
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.002)


def fork_preparation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the process that prepares requests: its imports take most of a server's start."""
    code = (
        f"import sys; from {worker_process.__name__} import serve_forks; "
        "serve_forks(int(sys.argv[1]))"
    )

    def fork(control: socket.socket) -> forked.Process:
        return forked.Process(code=code, files=[control], stderr=sys.stderr)

    monkeypatch.setattr(preparation, "_spawn", fork)


def end_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let uvicorn check whether it must end every 10 ms, rather than every 100 ms."""

    async def sleep(delay_s: float) -> None:
        await asyncio.sleep(delay_s / 10)

    quick = SimpleNamespace(**{**vars(asyncio), "sleep": sleep})
    monkeypatch.setattr(uvicorn.server, "asyncio", quick)


@contextlib.contextmanager
def running(
    settings: ServerSettings, wait: bool = True, send_bytes: int | None = None
) -> Iterator[Server]:
    """Run a server until the block ends; `send_bytes` limits the buffers of its connections."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        fork_preparation(monkeypatch)
        end_quickly(monkeypatch)
        with _running(settings, wait, send_bytes) as server:
            yield server


@contextlib.contextmanager
def _running(settings: ServerSettings, wait: bool, send_bytes: int | None) -> Iterator[Server]:
    app = create_app(settings)
    listener = socket.create_server(("127.0.0.1", 0))
    if send_bytes is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_bytes)
    server = uvicorn.Server(configure(app, settings))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    key = settings.api_keys[0] if settings.api_keys else None
    headers = {"authorization": f"Bearer {key}"} if key else {}
    running = Server(f"http://127.0.0.1:{listener.getsockname()[1]}", app, headers)
    try:
        while wait and running.state.runtime is None and running.state.problem is None:
            time.sleep(0.005)
        yield running
    finally:
        running.client.close()
        server.should_exit = True
        thread.join()
        listener.close()
