"""The ASGI application: paths, and what answers under them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route, Router
from starlette.types import Receive, Scope, Send

from yocobit.config import ConfigError
from yocobit.engine import Engine
from yocobit.serving import protocol
from yocobit.serving.access import Access, set_up_logging
from yocobit.serving.chat import ChatCompletion
from yocobit.serving.chat_page import page_routes
from yocobit.serving.completion import Completion
from yocobit.serving.errors import APIError
from yocobit.serving.exchange import (
    json_response,
    read_json,
    while_connected,
    write_events,
    write_json,
)
from yocobit.serving.metrics import Metrics
from yocobit.serving.models import model, models
from yocobit.serving.openapi import describe
from yocobit.serving.service import Service
from yocobit.serving.settings import ServerSettings
from yocobit.serving.text import TextCompletion
from yocobit.serving.tokens import detokenize, max_token_bytes, tokenize, tokenizer_info

logger = logging.getLogger(__name__)


class State:
    """What a server is at: loading, ready, or draining."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.service: Service | None = None
        self.problem: str | None = None  # why there is no service
        self.report: Callable[[str], None] = logger.error  # is told of it
        self.is_draining = False

    def ready(self) -> Service:
        """Return the service; APIError 503 if there is none for new requests."""
        if self.is_draining:
            raise APIError(503, "the server is shutting down", code="draining", retry_after=5)
        if self.problem is not None:
            raise APIError(503, "the model cannot be loaded; the log says why", code="failed")
        if self.service is None:
            raise APIError(503, "the model is being loaded", code="loading", retry_after=1)
        return self.service


def create_app(settings: ServerSettings | None = None) -> Starlette:
    """Return the application; its settings come from YOCOBIT_ variables unless given.

    Variables that cannot be are said in one line, and end the program that asks for it.
    """
    settings = settings or _settings_of_environment()
    limit, token_limit = settings.max_body_bytes, max_token_bytes(settings)
    api: list[BaseRoute] = [
        Route("/chat/completions", Generate(protocol.ChatRequest, ChatCompletion, limit)),
        Route("/completions", Generate(protocol.CompletionRequest, TextCompletion, limit)),
        Route("/models", models),
        Route("/models/{name:path}", model),
        Route("/tokenize", Post(protocol.TokenizeRequest, tokenize, limit)),
        Route("/detokenize", Post(protocol.DetokenizeRequest, detokenize, token_limit)),
        Route("/tokenizer_info", tokenizer_info),
    ]
    state = State(settings)
    middleware = [Middleware(Access, settings=settings, metrics=state.metrics)]
    if settings.cors_origins:
        middleware.insert(
            0,
            Middleware(
                CORSMiddleware,
                allow_origins=list(settings.cors_origins),
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["x-request-id"],
            ),
        )
    # A redirection would lead to whatever name a request calls this server by.
    versioned = Router(api, redirect_slashes=False)
    app = Starlette(
        routes=[
            Mount("/v1", versioned),
            Mount("/openai/v1", versioned),
            *api[-3:],  # of the tokenizer, where vLLM has them
            Route("/health", health),
            Route("/metrics", metrics),
            Route("/openapi.json", openapi),
            *page_routes(),
        ],
        middleware=middleware,
        lifespan=_lifespan,
        exception_handlers={404: _not_found, 405: _wrong_method},
    )
    app.router.redirect_slashes = False
    app.state.server = state
    return app


def _settings_of_environment() -> ServerSettings:
    try:
        settings = ServerSettings.from_environment()
    except ConfigError as error:
        raise SystemExit(f"error: {error}") from None
    if settings.log_json:  # else the program that asks for the application decides
        set_up_logging(as_json=True)
    return settings


@contextlib.asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    state: State = app.state.server
    loading = asyncio.create_task(_load(state))
    try:
        yield
    finally:
        loading.cancel()
        if state.service is not None:
            await asyncio.to_thread(state.service.stop)


async def _load(state: State) -> None:
    settings = state.settings
    try:
        engine = await asyncio.to_thread(
            Engine.load,
            settings.model,
            threads=settings.threads,
            kernels=settings.kernels,
            attention=settings.attention,
            verify=settings.verify,
        )
        service = Service(engine, settings, state.metrics)
        try:
            await asyncio.to_thread(lambda: service.grammars)  # takes a while
            state.service = service
        finally:
            if state.service is None:
                service.stop()
    except Exception as error:
        if not isinstance(error, ValueError | OSError | MemoryError):  # not a mistake in settings
            logger.exception("the model cannot be loaded")
        state.problem = str(error) or type(error).__name__
        state.report(state.problem)


class Post:
    """An endpoint that takes at most `limit` bytes of JSON of one kind, and answers with JSON.

    `answer` works in a thread.
    """

    def __init__(
        self, kind: type[Any], answer: Callable[[Service, Any], dict[str, Any]], limit: int
    ) -> None:
        self.kind = kind
        self._answer = answer
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, body = await _begin(self.kind, scope, receive, self._limit)
        await write_json(send, 200, await asyncio.to_thread(self._answer, service, body))


class Generate:
    """An endpoint that generates text, whole or as events."""

    def __init__(self, kind: type[Any], completion: Callable[..., Completion], limit: int) -> None:
        self.kind = kind
        self._completion = completion
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, body = await _begin(self.kind, scope, receive, self._limit)
        async with service.preparing():
            # Tokenising a long text and compiling a schema take a while.
            completion = await asyncio.to_thread(
                self._completion, service, body, scope["state"]["caller"]
            )
        async with service.answer(completion.requests) as answer:
            scope["state"]["is_counted"] = True  # by its jobs
            if completion.streams:
                await write_events(receive, send, completion.chunks(answer))
            else:
                whole = await while_connected(receive, completion.whole(answer))
                await write_json(send, 200, whole)


async def _begin(
    kind: type[Any], scope: Scope, receive: Receive, limit: int
) -> tuple[Service, Any]:
    state: State = scope["app"].state.server
    if scope["method"] != "POST":
        raise APIError(405, f"{scope['method']} is not offered here, only POST")
    service = state.ready()
    body = await read_json(scope, receive, kind, limit)
    service.check_model(body.model)
    return service, body


async def health(request: HTTPRequest) -> Response:
    state: State = request.app.state.server
    if state.is_draining:
        return json_response({"status": "draining"}, 503)
    if state.problem is not None or (state.service and not state.service.scheduler.is_alive):
        return json_response({"status": "failed"}, 503)
    if state.service is None:
        return json_response({"status": "loading"}, 503)
    return json_response({"status": "ok"})


async def metrics(request: HTTPRequest) -> Response:
    state: State = request.app.state.server
    return Response(state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def openapi(request: HTTPRequest) -> Response:
    return json_response(describe())


async def _not_found(request: HTTPRequest, error: Exception) -> Response:
    path = request.url.path
    return json_response(
        APIError(404, f"there is nothing at {path}", code="not_found").to_dict(), 404
    )


async def _wrong_method(request: HTTPRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    refusal = APIError(405, f"{request.method} is not offered here")
    return json_response(refusal.to_dict(), 405, error.headers)
