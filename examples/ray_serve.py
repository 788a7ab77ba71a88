"""Replicas of a model behind one address, on Ray Serve (extra `cluster`).

    python examples/ray_serve.py [--model MODEL] [--replicas 2] [--threads 1] [--port 8000]

Each replica is a complete yocobit server. Requests with a common prefix go to the same replica, so
that a conversation hits that replica's prefix cache. If a replica is lost, its conversations move
to another one until Ray has started a new one. Answers are the same on any replica: they depend
only on the model, the request and its seed. API keys and limits are YOCOBIT_ variables.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import hashlib
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import HTTPOptions, RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Message

from yocobit.serving import ServerSettings, create_app

_MAX_ONGOING = 1024  # requests per replica, which itself rejects what exceeds its queue
_KEY_LENGTH = 256  # characters or tokens of a prompt that identify a conversation
_MAX_ATTEMPTS = 5  # replicas that may be lost before the client gets an error
_RAY_SCOPE = ("app", "state", "extensions")  # keys of a request's scope that belong to Ray
_LOST = {"error": {"message": "the replica was lost; try again", "type": "server_error"}}
_HASHING = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


@serve.deployment(
    max_ongoing_requests=_MAX_ONGOING,
    request_router_config=RequestRouterConfig(request_router_class=_HASHING),
    graceful_shutdown_timeout_s=30,
    health_check_period_s=2,
)
class Replica:
    """A server without a port: the application, with responses as Ray streams."""

    async def __init__(self, settings: ServerSettings) -> None:
        self._name = serve.get_replica_context().replica_id.unique_id.encode()
        self._app = create_app(settings)
        self._lifespan = self._app.router.lifespan_context(self._app)
        await self._lifespan.__aenter__()
        state = self._app.state.server
        while state.runtime is None:  # Ray sends no requests before __init__ returns
            if state.problem is not None:
                raise RuntimeError(state.problem)
            await asyncio.sleep(0.02)

    async def __del__(self) -> None:
        await self._lifespan.__aexit__(None, None, None)

    async def answer(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[Any]:
        """Yield status and headers, then the body in chunks."""
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        is_over = asyncio.Event()
        received = iter([{"type": "http.request", "body": body}])

        async def receive() -> Message:
            if (message := next(received, None)) is not None:
                return message
            await is_over.wait()
            return {"type": "http.disconnect"}

        work = asyncio.create_task(self._app({**scope, "state": {}}, receive, messages.put))
        work.add_done_callback(lambda _: messages.put_nowait(None))
        try:
            while (message := await messages.get()) is not None:
                if message["type"] == "http.response.start":
                    yield message["status"], [*message["headers"], (b"x-replica", self._name)]
                elif content := message.get("body"):
                    yield content
        finally:
            is_over.set()  # also if Ray cancels because the client disconnected


@serve.deployment(max_ongoing_requests=64 * _MAX_ONGOING, ray_actor_options={"num_cpus": 0})
class Router:
    """Routes a request to the replica of its conversation, and its response back."""

    def __init__(self, replicas: DeploymentHandle, max_body_bytes: int) -> None:
        self._answer = replicas.answer.options(stream=True)
        self._max_body_bytes = max_body_bytes

    async def __call__(self, request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > self._max_body_bytes:
                break  # the replica rejects it
        scope = {name: value for name, value in request.scope.items() if name not in _RAY_SCOPE}
        answer = self._answer.options(session_id=conversation(body))
        for i in range(_MAX_ATTEMPTS):
            contents = answer.remote(scope, body)
            try:
                status, headers = await anext(contents)
                first = await anext(contents, b"")
            except RayActorError:  # nothing was sent yet: another replica can answer
                await asyncio.sleep(0.1 * i)
                continue
            response = StreamingResponse(_relay(first, contents), status)
            response.raw_headers = list(headers)
            return response
        return JSONResponse(_LOST, 503, {"retry-after": "1"})


async def _relay(first: bytes, contents: Any) -> AsyncIterator[bytes]:
    try:
        yield first
        async for content in contents:
            yield content
    except RayActorError:
        yield b"data: " + json.dumps(_LOST).encode() + b"\n\n"
    finally:
        contents.cancel()


def conversation(body: bytes) -> str:
    """Return a key that all requests of a conversation share; empty if any replica may answer.

    It is OpenAI's prompt_cache_key if the client sends one, otherwise the start of the request:
    the messages of a chat up to the user's first one, or the first part of a prompt.
    """
    try:
        fields = json.loads(body)
        start = fields.get("prompt_cache_key") or fields.get("prompt", "")[:_KEY_LENGTH]
        if messages := fields.get("messages"):
            roles = [message["role"] for message in messages]
            start = start or messages[: roles.index("user") + 1]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return ""  # the replica reports the error
    return hashlib.sha256(json.dumps(start).encode()).hexdigest() if start else ""


def main() -> None:
    settings = ServerSettings.from_environment()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=settings.model)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="per replica")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    changes = {"model": arguments.model.resolve(), "threads": arguments.threads}
    settings = dataclasses.replace(settings, **changes)
    cpus = {"num_cpus": arguments.threads}
    replicas = Replica.options(num_replicas=arguments.replicas, ray_actor_options=cpus)
    ray.init()  # joins the cluster of RAY_ADDRESS or `ray start`, otherwise starts one
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=arguments.port))
    quiet = LoggingConfig(enable_access_log=False)  # the replicas log requests themselves
    app = Router.bind(replicas.bind(settings), settings.max_body_bytes)
    serve.run(app, name="yocobit", logging_config=quiet)
    print(f"serving at http://127.0.0.1:{arguments.port}", flush=True)
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        signal.pause()
    serve.shutdown()


if __name__ == "__main__":
    main()
