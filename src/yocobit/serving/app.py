"""The ASGI application: paths, and what answers under them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as HTTPRequest
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import Receive, Scope, Send

from yocobit.engine import Engine
from yocobit.serving import protocol
from yocobit.serving.access import Access
from yocobit.serving.chat import ChatCompletion, render
from yocobit.serving.completion import Completion
from yocobit.serving.errors import APIError
from yocobit.serving.exchange import (
    read_json,
    while_connected,
    write_events,
    write_json,
)
from yocobit.serving.metrics import Metrics
from yocobit.serving.openapi import describe
from yocobit.serving.service import Service
from yocobit.serving.settings import ServerSettings
from yocobit.serving.text import TextCompletion

PAGE = Path(__file__).parent / "page"
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)

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
        if self.service is None:
            raise APIError(503, "the model is being loaded", code="loading", retry_after=1)
        return self.service


def create_app(settings: ServerSettings | None = None) -> Starlette:
    """Return the application; its settings come from YOCOBIT_ variables unless given.

    ConfigError for settings that cannot be.
    """
    settings = settings or ServerSettings.from_environment()
    api: list[BaseRoute] = [
        Route("/chat/completions", Generate(protocol.ChatRequest, ChatCompletion)),
        Route("/completions", Generate(protocol.CompletionRequest, TextCompletion)),
        Route("/models", models),
        Route("/models/{name:path}", model),
        Route("/tokenize", Post(protocol.TokenizeRequest, tokenize)),
        Route("/detokenize", Post(protocol.DetokenizeRequest, detokenize)),
        Route("/tokenizer_info", tokenizer_info),
    ]
    middleware = [Middleware(Access, settings=settings)]
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
    app = Starlette(
        routes=[
            Mount("/v1", routes=api),
            Mount("/openai/v1", routes=api),
            *api[-3:],  # of the tokenizer, where vLLM has them
            Route("/health", health),
            Route("/metrics", metrics),
            Route("/openapi.json", openapi),
            Route("/", page),
            Route("/page/{name}", page),
        ],
        middleware=middleware,
        lifespan=_lifespan,
        exception_handlers={404: _not_found, 405: _wrong_method, Exception: _failed},
    )
    app.state.server = State(settings)
    return app


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
            verify=settings.verify,
        )
        state.service = Service(engine, settings, state.metrics)
        await asyncio.to_thread(lambda: state.service and state.service.grammars)
    except (ValueError, OSError, MemoryError) as error:
        state.problem = str(error) or type(error).__name__
        state.report(state.problem)


class Post:
    """An endpoint that takes JSON of one kind and answers with JSON."""

    def __init__(
        self, kind: type[Any], answer: Callable[[Service, Any], Awaitable[dict[str, Any]]]
    ) -> None:
        self.kind = kind
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, body = await _begin(self.kind, scope, receive)
        await write_json(send, 200, await self._answer(service, body))


class Generate:
    """An endpoint that generates text, whole or as events."""

    def __init__(self, kind: type[Any], completion: Callable[..., Completion]) -> None:
        self.kind = kind
        self._completion = completion

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, body = await _begin(self.kind, scope, receive)
        # Tokenising a long text and compiling a schema take a while.
        completion = await asyncio.to_thread(
            self._completion, service, body, scope["state"]["caller"]
        )
        async with service.answer(completion.requests) as answer:
            if completion.streams:
                await write_events(receive, send, completion.chunks(answer))
            else:
                whole = await while_connected(receive, completion.whole(answer))
                await write_json(send, 200, whole)


async def _begin(kind: type[Any], scope: Scope, receive: Receive) -> tuple[Service, Any]:
    state: State = scope["app"].state.server
    if scope["method"] != "POST":
        raise APIError(405, f"{scope['method']} is not offered here, only POST")
    service = state.ready()
    body = await read_json(scope, receive, kind, state.settings.max_body_bytes)
    service.check_model(body.model)
    return service, body


async def tokenize(service: Service, body: protocol.TokenizeRequest) -> dict[str, Any]:
    if (body.prompt is None) == (body.messages is None):
        raise APIError(400, "give prompt or messages, one of the two", param="prompt")
    if body.messages is not None:
        tokens = render(service, body.messages, [])
    elif body.add_special_tokens is False:
        tokens = service.engine.tokenizer.encode(body.prompt, add_special_tokens=False).ids
    else:
        tokens = service.engine.encode(body.prompt or "")
    return {"count": len(tokens), "max_model_len": service.settings.context, "tokens": tokens}


async def detokenize(service: Service, body: protocol.DetokenizeRequest) -> dict[str, Any]:
    size = service.engine.config.vocab_size
    for token in body.tokens:
        if not 0 <= token < size:
            raise APIError(
                400, f"tokens: {token} must be at least 0 and below {size}", param="tokens"
            )
    text = service.engine.tokenizer.decode(body.tokens, skip_special_tokens=False)
    return {"prompt": text}


async def tokenizer_info(request: HTTPRequest) -> Response:
    return _json(request.app.state.server.ready().tokenizer_info)


async def models(request: HTTPRequest) -> Response:
    service = request.app.state.server.ready()
    return _json({"object": "list", "data": [_describe(service, name) for name in _names(service)]})


async def model(request: HTTPRequest) -> Response:
    service: Service = request.app.state.server.ready()
    name = request.path_params["name"]
    service.check_model(name)
    return _json(_describe(service, name))


def _names(service: Service) -> tuple[str, ...]:
    return (service.name, *service.settings.alias)


def _describe(service: Service, name: str) -> dict[str, Any]:
    summary, settings = service.summary, service.settings
    sampling = service.engine.sampling()
    return {
        "id": name,
        "object": "model",
        "created": int(service.engine.model.file.stat().st_mtime),
        "owned_by": "yocobit",
        "active": True,
        "context_window": settings.context,
        "max_completion_tokens": settings.context,
        "yocobit": {
            "parameters": summary.parameters,
            "weights": service.engine.config.weights,
            "model_bytes": summary.size_bytes,
            "cache": settings.cache,
            "cache_bytes_per_token": summary.cache_bytes_per_token[settings.cache],
            "transformer_cache_bytes_per_token": summary.transformer_cache_bytes_per_token[
                settings.cache
            ],
            "state_bytes": summary.state_bytes[settings.cache],
            "sampling": {
                name: getattr(sampling, name)
                for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
            },
            "has_chat_template": service.has_chat_template,
        },
    }


async def health(request: HTTPRequest) -> Response:
    state: State = request.app.state.server
    if state.problem is not None:
        return _json({"status": "failed"}, 503)
    if state.is_draining:
        return _json({"status": "draining"}, 503)
    if state.service is None:
        return _json({"status": "loading"}, 503)
    return _json({"status": "ok"})


async def metrics(request: HTTPRequest) -> Response:
    state: State = request.app.state.server
    return Response(state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def openapi(request: HTTPRequest) -> Response:
    return _json(describe())


async def page(request: HTTPRequest) -> Response:
    path = PAGE / request.path_params.get("name", "index.html")
    if path.parent != PAGE or not path.is_file():
        raise APIError(404, f"there is nothing at {request.url.path}")
    headers = {
        "content-security-policy": _PAGE_POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return FileResponse(path, headers=headers)


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


async def _not_found(request: HTTPRequest, error: Exception) -> Response:
    path = request.url.path
    return _json(APIError(404, f"there is nothing at {path}", code="not_found").to_dict(), 404)


async def _wrong_method(request: HTTPRequest, error: Exception) -> Response:
    return _json(APIError(405, f"{request.method} is not offered here").to_dict(), 405)


async def _failed(request: HTTPRequest, error: Exception) -> Response:
    return _json(APIError(500, "the server failed; its log says more").to_dict(), 500)
