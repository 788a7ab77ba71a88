"""Replicas of a model behind one address, on Ray Serve (extra `cluster`).

    python examples/ray_serve.py [--model MODEL] [--replicas 2] [--threads 1] [--port 8000]

Each replica is a whole yocobit server. Requests that begin alike go to the same replica, so that a
conversation finds what it has said cached. If a replica is lost, its conversations go to another
one until Ray has made a new one; any gives the same answers, as these depend on the model, the
request and its seed alone. Keys and limits are those of YOCOBIT_ variables.
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

_AT_ONCE = 1024  # requests of a replica; it refuses by itself what it has no room for
_BEGIN = 256  # characters or tokens of a prompt that tell who asks
_TRIES = 5  # as many replicas may be lost before the client is told
_OWN = ("app", "state", "extensions")  # what a request's scope has that is Ray's
_LOST = {"error": {"message": "the replica was lost; ask again", "type": "server_error"}}
_HASHING = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


@serve.deployment(
    max_ongoing_requests=_AT_ONCE,
    request_router_config=RequestRouterConfig(request_router_class=_HASHING),
    graceful_shutdown_timeout_s=30,
    health_check_period_s=2,
)
class Replica:
    """A server without a port: the application, and its answers as Ray's streams."""

    async def __init__(self, settings: ServerSettings) -> None:
        self._name = serve.get_replica_context().replica_id.unique_id.encode()
        self._app = create_app(settings)
        self._lifespan = self._app.router.lifespan_context(self._app)
        await self._lifespan.__aenter__()
        state = self._app.state.server
        while state.runtime is None:  # until then, Ray sends nothing here
            if state.problem is not None:
                raise RuntimeError(state.problem)
            await asyncio.sleep(0.02)

    async def __del__(self) -> None:
        await self._lifespan.__aexit__(None, None, None)

    async def answer(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[Any]:
        """Yield status and headers, then the content as it comes."""
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        gone = asyncio.Event()
        received = iter([{"type": "http.request", "body": body}])

        async def receive() -> Message:
            if (message := next(received, None)) is not None:
                return message
            await gone.wait()
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
            gone.set()  # also when Ray tells that the client is


@serve.deployment(max_ongoing_requests=64 * _AT_ONCE, ray_actor_options={"num_cpus": 0})
class Router:
    """Sends a request to the replica of its conversation, and what that answers back."""

    def __init__(self, replicas: DeploymentHandle, max_body_bytes: int) -> None:
        self._answer = replicas.answer.options(stream=True)
        self._max_body_bytes = max_body_bytes

    async def __call__(self, request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > self._max_body_bytes:
                break  # the replica refuses it
        scope = {name: value for name, value in request.scope.items() if name not in _OWN}
        ask = self._answer.options(session_id=conversation(body))
        for i in range(_TRIES):
            contents = ask.remote(scope, body)
            try:
                status, headers = await anext(contents)
                first = await anext(contents, b"")
            except RayActorError:  # nothing was sent yet: another one can answer
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
    """Return what is the same for all requests of a conversation; empty if anybody may answer.

    That is OpenAI's prompt_cache_key if the client gives one, else how the request begins: a chat's
    messages up to the first of the user, or the begin of a prompt.
    """
    try:
        fields = json.loads(body)
        begin = fields.get("prompt_cache_key") or fields.get("prompt", "")[:_BEGIN]
        if messages := fields.get("messages"):
            roles = [message["role"] for message in messages]
            begin = begin or messages[: roles.index("user") + 1]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return ""  # the replica says what is wrong
    return hashlib.sha256(json.dumps(begin).encode()).hexdigest() if begin else ""


def main() -> None:
    settings = ServerSettings.from_environment()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=settings.model)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of a replica")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    changes = {"model": arguments.model.resolve(), "threads": arguments.threads}
    settings = dataclasses.replace(settings, **changes)
    cpus = {"num_cpus": arguments.threads}
    replicas = Replica.options(num_replicas=arguments.replicas, ray_actor_options=cpus)
    ray.init()  # finds the cluster that RAY_ADDRESS names or `ray start` made, or makes one here
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=arguments.port))
    quiet = LoggingConfig(enable_access_log=False)  # the replicas have logs of their own
    app = Router.bind(replicas.bind(settings), settings.max_body_bytes)
    serve.run(app, name="yocobit", logging_config=quiet)
    print(f"serving at http://127.0.0.1:{arguments.port}", flush=True)
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        signal.pause()
    serve.shutdown()


if __name__ == "__main__":
    main()
