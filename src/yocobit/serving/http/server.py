"""Running the application: one process, one port, graceful shutdown."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette

from yocobit.errors import UserError
from yocobit.hardware.host import share_heap
from yocobit.serving.api.call import ServerState
from yocobit.serving.http.app import create_app
from yocobit.serving.http.connection import Connection
from yocobit.serving.http.middleware import set_up_logging
from yocobit.serving.http.start_log import log_start
from yocobit.serving.runtime.preparation import check_can_fork
from yocobit.serving.settings import ServerSettings

# Python's thread switch interval: the scheduler's step must not wait the usual 5 ms for the GIL.
_SWITCH_S = 0.0002
_POLL_S = 0.02
_WATCH_S = 0.2  # between checks of the scheduler
_FLUSH_S = 5.0  # for clients to read the rest of their responses, if the drain leaves it
_LAST_FLUSH_S = 0.3  # the same at the end of the drain, and after a second signal
_EXIT_S = 0.8  # after the drain, for flush, threads and interpreter to end; then the process exits
_IDLE_CONNECTIONS = 512  # in addition to those of running and waiting requests


def serve(
    settings: ServerSettings,
    host: str,
    port: int,
    *,
    drain_s: float = 30.0,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; `ready` is called with the URL once requests are accepted.

    On shutdown, new requests are rejected while those in flight complete, for at most `drain_s`.
    UserError if the address is in use or the model cannot be loaded.
    """
    check_can_fork()
    share_heap()
    set_up_logging(settings.log_json)
    app = create_app(settings)
    state: ServerState = app.state.server
    state.report = lambda problem: None  # raised below as a UserError
    listener = _listen(host, port)
    config = configure(app, settings)
    sys.setswitchinterval(_SWITCH_S)
    url_host = f"[{host}]" if ":" in host else host
    url = f"http://{url_host}:{listener.getsockname()[1]}"

    def report() -> None:
        ready(url)
        log_start(state, url)

    asyncio.run(_run(config, state, drain_s, listener, report))
    if state.runtime is not None and state.runtime.scheduler.is_alive:
        os._exit(0)  # a step does not end: its thread still uses the model
    if state.problem is not None:
        raise UserError(state.problem)


def configure(app: Starlette, settings: ServerSettings) -> uvicorn.Config:
    """Return uvicorn's configuration for the application."""
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        # From others, a client could forge its address, and so its share of the round-robin.
        proxy_headers=bool(settings.forwarded_allow_ips),
        forwarded_allow_ips=list(settings.forwarded_allow_ips),
        root_path=settings.root_path,
        limit_concurrency=settings.max_sequences + settings.max_waiting + _IDLE_CONNECTIONS,
        timeout_keep_alive=30,
        backlog=1024,
    )


async def _run(
    config: uvicorn.Config,
    state: ServerState,
    drain_s: float,
    listener: socket.socket,
    ready: Callable[[], None],
) -> None:
    server = _Server(config, state, drain_s)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not serving.done() and state.runtime is None and state.problem is None:
        await asyncio.sleep(_POLL_S)
    if state.problem is not None:
        server.should_exit = True
    elif not serving.done():
        ready()
    while not serving.done():
        if state.runtime is not None and state.runtime.scheduler.problem is not None:
            state.problem = state.runtime.scheduler.problem  # serve() raises it
            config.timeout_graceful_shutdown = int(_FLUSH_S)
            server.should_exit = True
        await asyncio.wait([serving], timeout=_WATCH_S)
    await serving


class _Server(uvicorn.Server):
    """Exits once no request is in flight."""

    def __init__(self, config: uvicorn.Config, state: ServerState, drain_s: float) -> None:
        super().__init__(config)
        self._state = state
        self._drain_s = drain_s
        self._draining: asyncio.Task[None] | None = None
        self._is_forced = False  # exit without draining
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain on the first signal; fail the requests in flight on the second."""
        if self._is_forced or self._state.runtime is None:
            self.should_exit = self.force_exit = True
            _exit_after(_EXIT_S)  # a model that is being loaded cannot be interrupted
            return
        if self._state.is_draining:
            self._is_forced = True
            _exit_after(_EXIT_S)
            return
        self._state.is_draining = True
        _exit_after(self._drain_s + _EXIT_S)
        self._loop.call_soon_threadsafe(self._start_draining, sig)

    def _start_draining(self, sig: int) -> None:
        # Not in the signal handler: it may interrupt a write to the same stream.
        if sig == signal.SIGINT:
            logging.getLogger(__name__).info(
                "completing the requests in flight; Ctrl-C again exits at once"
            )
        self._draining = self._loop.create_task(self._drain())

    async def _drain(self) -> None:
        runtime = self._state.runtime
        assert runtime is not None
        deadline = self._loop.time() + self._drain_s
        while runtime.n_open > 0 and self._loop.time() < deadline and not self._is_forced:
            await asyncio.sleep(_POLL_S)
        runtime.begin_stop()
        left_s = 0.0 if self._is_forced else deadline - self._loop.time()
        flush_s: Any = min(_FLUSH_S, max(_LAST_FLUSH_S, left_s))
        self.config.timeout_graceful_shutdown = flush_s
        self.should_exit = True


def _exit_after(delay_s: float) -> None:
    """End the process then, whatever still runs: neither a thread nor the event loop delays it."""
    timer = threading.Timer(delay_s, os._exit, [0])
    timer.daemon = True
    timer.start()


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; UserError if the address is not available."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only if the protocol is given: otherwise Nagle's algorithm delays
    # each response on a kept connection by 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError, TypeError, ValueError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else error
        is_of_port = isinstance(error, OverflowError) or (
            isinstance(error, OSError) and error.errno in (errno.EADDRINUSE, errno.EACCES)
        )
        option = "--port" if is_of_port else "--host"
        raise UserError(
            f"cannot listen on {host}:{port} ({reason}); choose another {option}"
        ) from None
    listener.listen(1024)
    listener.setblocking(False)
    return listener
