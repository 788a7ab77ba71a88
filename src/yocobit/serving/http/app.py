"""The ASGI application: routes of the endpoint table, the chat page, middleware, lifespan."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from yocobit.config import ConfigError
from yocobit.errors import printable
from yocobit.serving import limits
from yocobit.serving.api.call import Call, Events, ServerState, prepare
from yocobit.serving.api.constraints import DROPPED_HEADER
from yocobit.serving.api.endpoints import ENDPOINTS, Endpoint
from yocobit.serving.api.messages import ANTHROPIC
from yocobit.serving.api.protocol import decode, decode_query
from yocobit.serving.api.responses import Recalled
from yocobit.serving.errors import APIError
from yocobit.serving.http.chat_page import page_routes
from yocobit.serving.http.json_body import (
    check_content_type,
    json_response,
    read_body,
    write_body,
)
from yocobit.serving.http.middleware import Access, set_up_logging
from yocobit.serving.http.openapi import describe
from yocobit.serving.http.sse import while_connected, write_events
from yocobit.serving.settings import ServerSettings
from yocobit.text.template_sandbox import short_limits


def create_app(settings: ServerSettings | None = None) -> Starlette:
    """Return the application; settings come from YOCOBIT_ variables unless given.

    An invalid variable ends the program with a one-line error.
    """
    settings = settings or _settings_from_environment()
    state = ServerState(settings)
    public_paths = frozenset(path for e in ENDPOINTS if e.is_public for path in e.paths)
    middleware = [
        Middleware(
            Access,
            settings=settings,
            metrics=state.metrics,
            public_paths=public_paths,
            wires={path: e.wire for e in ENDPOINTS for path in e.paths},
        )
    ]
    if settings.cors_origins:
        middleware.insert(
            0,
            Middleware(
                CORSMiddleware,
                allow_origins=list(settings.cors_origins),
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["*"],
                expose_headers=["x-request-id", DROPPED_HEADER],
            ),
        )
    app = Starlette(
        routes=[
            *(route for endpoint in ENDPOINTS for route in _routes(endpoint)),
            # Not endpoints of the API: its description, and the files of the chat page.
            Route("/openapi.json", _openapi),
            *page_routes(),
        ],
        middleware=middleware,
        lifespan=_lifespan,
        exception_handlers={404: _not_found, 405: _method_not_allowed},
    )
    # A redirect would use the request's Host header, which the client controls.
    app.router.redirect_slashes = False
    app.state.server = state
    return app


class EndpointApp:
    """Runs an endpoint's handler: reads the body, writes the reply."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.wire = endpoint.wire
        self._at_once_from = 0.0  # time.monotonic() before which no request is prepared at once

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint, state = self.endpoint, scope["app"].state.server
        arrived_at, client = time.monotonic(), scope["state"]["client"]
        is_anthropic = scope["state"]["wire"] is ANTHROPIC
        prepared, query = None, self._query(scope, is_anthropic)
        if endpoint.body is not None:
            prepared = await self._read_and_prepare(scope, receive, client, arrived_at)
        async with contextlib.AsyncExitStack() as resources:
            call = Call(
                state,
                prepared,
                client,
                arrived_at,
                scope["path_params"],
                resources,
                query,
                is_anthropic=is_anthropic,
            )
            try:
                reply = await while_connected(receive, endpoint.handler(call))
            finally:
                scope["state"]["is_counted"] = call.is_counted
                scope["state"]["record"].groups = call.groups
            if isinstance(reply, Events):
                await write_events(receive, send, reply, self.wire)
            else:
                await write_body(send, reply.status, reply.value, reply.content_type, reply.headers)

    def _query(self, scope: Scope, is_anthropic: bool) -> Any:
        """Return the query as the endpoint's type, if it has one; APIError 400 if it is invalid."""
        if self.endpoint.query is None or (self.endpoint.has_anthropic_query and not is_anthropic):
            return None
        query = scope["query_string"]
        if len(query) > limits.QUERY_BYTES:
            raise APIError(400, f"the query must have at most {limits.QUERY_BYTES:,} bytes")
        fields = dict(parse_qsl(query.decode("latin-1")))
        return decode_query(fields, self.endpoint.query)

    async def _read_and_prepare(
        self, scope: Scope, receive: Receive, client: str, arrived_at: float
    ) -> Any:
        """Return the prepared request; its body is freed then."""
        state = scope["app"].state.server
        state.require_ready()
        with state.body_memory() as reserve:
            check_content_type(scope, self.endpoint.any_content_type)
            limit = self.endpoint.max_body_bytes(state.settings)
            body = await read_body(scope, receive, limit, reserve)
            recalled = None
            if self.endpoint.recall is not None:
                recalling = self.endpoint.recall(state, body, client, arrived_at)
                recalled = await while_connected(receive, recalling)
            if recalled is not None:
                reserve(recalled.n_bytes)
            else:
                prepared = self._prepare_at_once(state, body, client)
                if prepared is not None:
                    return prepared
            work = self._prepare(state, body, recalled, client, arrived_at)
            return await while_connected(receive, work)

    def _prepare_at_once(self, state: ServerState, body: bytes, client: str) -> Any:
        """Return the prepared request, or None unless it is cheap enough for the event loop."""
        endpoint = self.endpoint
        assert endpoint.body is not None
        if len(body) > limits.TINY_BODY_BYTES or time.monotonic() < self._at_once_from:
            return None
        model, runtime = state.require_ready()
        decoded: Any = decode(body, endpoint.body)
        strings = msgspec.to_builtins(decoded)
        if endpoint.is_heavy(decoded) or model.engine.encoder.spells_special_tokens(strings):
            return None
        runtime.check_capacity()
        started_s = time.thread_time()
        try:
            with short_limits():
                return prepare(model, endpoint.prepare, endpoint.body, body, client)
        except APIError:
            if not endpoint.uses_template:
                raise
            return None  # the template may have exceeded the short limits
        finally:
            if time.thread_time() - started_s > limits.TINY_CPU_S:
                self._at_once_from = time.monotonic() + limits.TINY_PAUSE_S

    async def _prepare(
        self,
        state: ServerState,
        body: bytes,
        recalled: Recalled | None,
        client: str,
        arrived_at: float,
    ) -> Any:
        """Return the prepared request: from a thread if its cost is small, or from a worker."""
        endpoint = self.endpoint
        assert endpoint.body is not None
        model, runtime = state.require_ready()
        build, n_bytes = endpoint.prepare, len(body)
        if recalled is not None:
            build = functools.partial(build, recalled=recalled)
            n_bytes += recalled.n_bytes
        arguments = (build, endpoint.body, body, client)
        is_heavy = n_bytes > limits.SMALL_BODY_BYTES
        if not is_heavy:
            decoded: Any = decode(body, endpoint.body)
            model.check_name(decoded.model)
            is_heavy = endpoint.is_heavy(decoded)
        if is_heavy or endpoint.uses_template:
            work = runtime.in_worker(prepare, *arguments, client=client, is_heavy=is_heavy)
        else:
            work = runtime.in_thread(prepare, model, *arguments)
        return await runtime.prepare(arrived_at, work)


def _routes(endpoint: Endpoint) -> list[Route]:
    app = EndpointApp(endpoint)
    paths = [path.replace("}", ":path}") for path in endpoint.paths]
    return [Route(path, app, methods=[endpoint.method]) for path in paths]


def _settings_from_environment() -> ServerSettings:
    try:
        settings = ServerSettings.from_environment()
    except ConfigError as error:
        raise SystemExit(f"error: {error}") from None
    if settings.log_json:  # otherwise the program that runs the application configures logging
        set_up_logging(as_json=True)
    return settings


@contextlib.asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    state: ServerState = app.state.server
    loading = asyncio.create_task(state.load())
    try:
        yield
    finally:
        loading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await loading
        if state.runtime is not None:
            await asyncio.to_thread(state.runtime.stop)


async def _openapi(request: Request) -> Response:
    return json_response(describe(ENDPOINTS))


async def _not_found(request: Request, error: Exception) -> Response:
    not_found = APIError(
        404, f"{printable(request.url.path, 200)} does not exist", code="not_found"
    )
    state = request.scope["state"]
    state["record"].error = str(not_found)
    return json_response(state["wire"].error(not_found), 404)


async def _method_not_allowed(request: Request, error: Exception) -> Response:
    # Several endpoints may have this path; Starlette's error lists the methods of the first only.
    routes = [
        route
        for route in request.app.routes
        if isinstance(route, Route) and route.matches(request.scope)[0] is Match.PARTIAL
    ]
    allowed = ", ".join(sorted({m for route in routes for m in route.methods or ()}))
    path = printable(request.url.path, 200)
    not_allowed = APIError(405, f"{request.method} is not allowed for {path}; use {allowed}")
    state = request.scope["state"]
    state["record"].error = str(not_allowed)
    return json_response(state["wire"].error(not_allowed), 405, {"Allow": allowed})
