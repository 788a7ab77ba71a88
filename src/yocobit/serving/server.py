"""Running the application: one process, one port, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from yocobit.serving.access import set_up_logging
from yocobit.serving.app import State, create_app
from yocobit.serving.connection import Connection
from yocobit.serving.settings import ServerSettings

# How long Python lets one thread work while another waits for its turn: the scheduler's step must
# not wait the usual 5 ms for the event loop.
_SWITCH_S = 0.0002
_POLL_S = 0.02
_FLUSH_S = 5  # for clients to read the ends of their answers
_LAST_FLUSH_S = 1  # the same after a second signal
_IDLE_CONNECTIONS = 512  # beside those of the requests that the scheduler takes


class ServeError(RuntimeError):
    """The server cannot begin: names the reason."""


def serve(
    settings: ServerSettings,
    host: str,
    port: int,
    *,
    drain_s: float = 30.0,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; `ready` is called with the address once requests are taken.

    At the end new requests are refused while those at work are finished, for at most `drain_s`.
    ServeError if the address is taken or the model cannot be used.
    """
    set_up_logging(settings.log_json)
    app = create_app(settings)
    state: State = app.state.server
    state.report = lambda problem: None  # ServeError says it
    listener = _listen(host, port)
    config = configure(app, settings)
    sys.setswitchinterval(_SWITCH_S)
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{listener.getsockname()[1]}"
    asyncio.run(_run(config, state, drain_s, listener, lambda: ready(url)))
    if state.problem is not None:
        raise ServeError(state.problem)


def configure(app: Starlette, settings: ServerSettings) -> uvicorn.Config:
    """Return how uvicorn runs the application."""
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        # Else whoever asks chooses the address that it asks from, and with it its turn.
        proxy_headers=False,
        limit_concurrency=settings.max_sequences + settings.max_waiting + _IDLE_CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=_FLUSH_S,
        backlog=1024,
    )


async def _run(
    config: uvicorn.Config,
    state: State,
    drain_s: float,
    listener: socket.socket,
    ready: Callable[[], None],
) -> None:
    server = _Server(config, state, drain_s)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not serving.done() and state.service is None and state.problem is None:
        await asyncio.sleep(_POLL_S)
    if state.problem is not None:
        server.should_exit = True
    elif not serving.done():
        ready()
    await serving


class _Server(uvicorn.Server):
    """Ends when nothing is at work any more."""

    def __init__(self, config: uvicorn.Config, state: State, drain_s: float) -> None:
        super().__init__(config)
        self._state = state
        self._drain_s = drain_s
        self._draining: asyncio.Task[None] | None = None
        self._is_ending = False  # whatever is at work
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain at the first signal; end what is at work at the second, by an error."""
        if self._is_ending or self._state.service is None:
            self.should_exit = self.force_exit = True
            return
        if self._state.is_draining:
            self._is_ending = True
            self.config.timeout_graceful_shutdown = _LAST_FLUSH_S
            return
        self._state.is_draining = True
        if sig == signal.SIGINT:
            logging.getLogger(__name__).info("finishing what is at work; Ctrl-C again ends at once")
        self._loop.call_soon_threadsafe(self._begin_to_drain)

    def _begin_to_drain(self) -> None:
        self._draining = self._loop.create_task(self._drain())

    async def _drain(self) -> None:
        service = self._state.service
        assert service is not None
        deadline = self._loop.time() + self._drain_s
        while service.n_open > 0 and self._loop.time() < deadline and not self._is_ending:
            await asyncio.sleep(_POLL_S)
        service.scheduler.stop()
        self.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; ServeError if the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else error
        raise ServeError(
            f"{host}:{port} cannot be listened on ({reason}); choose another --port"
        ) from None
    listener.listen(1024)
    listener.setblocking(False)
    return listener
