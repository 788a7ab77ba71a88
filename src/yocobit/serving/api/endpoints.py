"""The endpoint table: routes, OpenAPI, documentation and the startup listing are made from it.

Adding an endpoint takes one record here and one handler file.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from yocobit.serving.api import (
    chat,
    completions,
    embeddings,
    messages,
    ollama,
    ollama_embeddings,
    ollama_models,
    responses,
    tokenize,
)
from yocobit.serving.api.call import Call, Events, Reply, ServerState, reply
from yocobit.serving.api.chat_request import ChatRequest
from yocobit.serving.api.completions import CompletionRequest
from yocobit.serving.api.embeddings import EmbeddingRequest
from yocobit.serving.api.generated_response import generate
from yocobit.serving.api.health import health, metrics
from yocobit.serving.api.message_request import CountRequest, MessagesRequest
from yocobit.serving.api.messages import ANTHROPIC
from yocobit.serving.api.models import ModelPage, get_model, list_models
from yocobit.serving.api.ollama import OLLAMA
from yocobit.serving.api.response_request import ResponseRequest
from yocobit.serving.api.responses import Recalled
from yocobit.serving.api.tokenize import DetokenizeRequest, TokenizeRequest
from yocobit.serving.api.wire import OPENAI, RESPONSES, WireFormat
from yocobit.serving.settings import ServerSettings

V1 = ("/v1", "/openai/v1")  # the second: Groq's client
VLLM = (*V1, "")  # vLLM serves its own endpoints without a prefix
ROOT = ("",)


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A path, its handler, and its properties."""

    path: str  # after each prefix; "{id}" is a parameter, which may contain slashes
    handler: Callable[[Call], Awaitable[Reply | Events]]
    summary: str
    body: type | None = None  # of a POST, a msgspec.Struct; None: a GET or DELETE
    query: type | None = None  # a msgspec.Struct
    has_anthropic_query: bool = False  # of Anthropic's API alone: other clients' is ignored
    deletes: bool = False  # the resource of the path, with the method DELETE
    # Builds from model, body and client what the handler runs. It must be picklable.
    prepare: Callable[..., Any] = lambda model, body, client: None
    # Looks up the `recalled` argument of `prepare`, in the state of the server, by body, client and
    # time of arrival.
    recall: Callable[[ServerState, bytes, str, float], Awaitable[Recalled | None]] | None = None
    uses_template: bool = False  # then even a small body may be costly
    is_heavy: Callable[[Any], bool] = lambda body: False  # whatever the size of the body
    prefixes: tuple[str, ...] = V1
    wire: WireFormat = OPENAI  # of its streams and errors
    is_streamed: bool = False  # with "stream": true in the body
    is_public: bool = False  # needs no API key and no trusted host name
    content_type: str = "application/json"
    own_statuses: Mapping[int, str] = dataclasses.field(default_factory=dict)  # not errors
    max_body_bytes: Callable[[ServerSettings], int] = lambda settings: settings.max_body_bytes
    any_content_type: bool = False  # of bodies, unless a browser sends them

    @property
    def method(self) -> str:
        if self.deletes:
            return "DELETE"
        return "GET" if self.body is None else "POST"

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(prefix + self.path for prefix in self.prefixes)


_anthropic = functools.partial(Endpoint, prefixes=("/v1",), wire=ANTHROPIC)
# Ollama's documentation uses curl without a header: the body is then declared as a form.
_ollama = functools.partial(Endpoint, prefixes=ROOT, wire=OLLAMA, any_content_type=True)
_vllm = functools.partial(Endpoint, prefixes=VLLM)

ENDPOINTS = (
    Endpoint(
        "/chat/completions",
        generate,
        "Answer a conversation.",
        body=ChatRequest,
        prepare=chat.build,
        uses_template=True,
        is_heavy=chat.is_heavy,
        is_streamed=True,
    ),
    Endpoint(
        "/completions",
        generate,
        "Continue a text.",
        body=CompletionRequest,
        prepare=completions.build,
        is_heavy=completions.is_heavy,
        is_streamed=True,
    ),
    Endpoint(
        "/responses",
        responses.create,
        "Answer a conversation, in OpenAI's Responses API.",
        body=ResponseRequest,
        prepare=responses.build,
        recall=responses.recall,
        uses_template=True,
        is_heavy=responses.is_heavy,
        wire=RESPONSES,
        is_streamed=True,
    ),
    # Before the shorter path, whose id would match the rest of this one.
    Endpoint(
        "/responses/{id}/input_items",
        responses.input_items,
        "List the input items of a stored response.",
        query=responses.Page,
    ),
    Endpoint(
        "/responses/{id}",
        responses.retrieve,
        "Return a stored response.",
        query=responses.Retrieval,
    ),
    Endpoint("/responses/{id}", responses.delete, "Delete a stored response.", deletes=True),
    Endpoint(
        "/embeddings",
        embeddings.embeddings,
        "Embed texts as normalised vectors.",
        body=EmbeddingRequest,
        prepare=embeddings.build,
    ),
    _anthropic(
        "/messages",
        generate,
        "Answer a conversation, in Anthropic's API.",
        body=MessagesRequest,
        prepare=messages.build,
        uses_template=True,
        is_heavy=messages.is_heavy,
        is_streamed=True,
    ),
    _anthropic(
        "/messages/count_tokens",
        reply,
        "Count the tokens of a conversation, in Anthropic's API.",
        body=CountRequest,
        prepare=messages.count_tokens,
        uses_template=True,
    ),
    Endpoint("/models", list_models, "List the models.", query=ModelPage, has_anthropic_query=True),
    Endpoint("/models/{id}", get_model, "Describe a model."),
    _vllm(
        "/tokenize",
        reply,
        "Convert text or a conversation to tokens.",
        body=TokenizeRequest,
        prepare=tokenize.tokenize,
        uses_template=True,
    ),
    _vllm(
        "/detokenize",
        reply,
        "Convert tokens to text.",
        body=DetokenizeRequest,
        prepare=tokenize.detokenize,
        max_body_bytes=tokenize.max_detokenize_bytes,
    ),
    _vllm("/tokenizer_info", tokenize.tokenizer_info, "Describe the tokenizer."),
    _ollama(
        "/api/chat",
        ollama.generate,
        "Answer a conversation, in Ollama's API.",
        body=ollama.OllamaChatRequest,
        prepare=ollama.build_chat,
        uses_template=True,
        is_heavy=ollama.is_heavy,
        is_streamed=True,
    ),
    _ollama(
        "/api/generate",
        ollama.generate,
        "Answer a prompt, in Ollama's API.",
        body=ollama.GenerateRequest,
        prepare=ollama.build_generate,
        uses_template=True,
        is_heavy=ollama.is_heavy,
        is_streamed=True,
    ),
    _ollama(
        "/api/embed",
        ollama_embeddings.embed,
        "Embed texts, in Ollama's API.",
        body=ollama_embeddings.EmbedRequest,
        prepare=ollama_embeddings.build_embed,
    ),
    _ollama(
        "/api/embeddings",
        ollama_embeddings.embed,
        "Embed a text, in Ollama's earlier API.",
        body=ollama_embeddings.EmbeddingsRequest,
        prepare=ollama_embeddings.build_embeddings,
    ),
    _ollama(
        "/api/show",
        reply,
        "Describe a model, in Ollama's API.",
        body=ollama_models.ShowRequest,
        prepare=ollama_models.show,
    ),
    _ollama("/api/tags", ollama_models.tags, "List the models."),
    _ollama("/api/ps", ollama_models.loaded_models, "List the loaded models."),
    _ollama("/api/version", ollama_models.version, "Return the version."),
    *(
        _ollama(
            f"/api/{name}",
            reply,
            "Refused: the server manages no models.",
            body=ollama_models.ManagementRequest,
            prepare=ollama_models.refuse_management,
        )
        for name in ("pull", "push", "create", "copy")
    ),
    _ollama(
        "/api/delete",
        ollama_models.refuse_deletion,
        "Refused: the server manages no models.",
        deletes=True,
    ),
    Endpoint(
        "/health",
        health,
        "Report readiness.",
        prefixes=ROOT,
        is_public=True,
        own_statuses={503: "New requests are not accepted; `status` says why."},
    ),
    Endpoint("/metrics", metrics, "Prometheus metrics.", prefixes=ROOT, content_type="text/plain"),
)


def listing() -> list[str]:
    """Return a line for each endpoint, for the server to print at startup."""
    return [f"{e.method:4} {e.paths[0]:26} {e.summary}" for e in ENDPOINTS]
