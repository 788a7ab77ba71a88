"""POST api/embed and api/embeddings: Ollama's API for embeddings."""

from __future__ import annotations

import dataclasses
import time
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from yocobit.serving import limits
from yocobit.serving.api import embeddings
from yocobit.serving.api.call import Call, Reply
from yocobit.serving.api.embeddings import EmbeddingInputs, EmbeddingRequest
from yocobit.serving.api.protocol import Name
from yocobit.serving.api.served_model import ServedModel


class EmbedRequest(Struct, kw_only=True):
    """The body of api/embed. Without input, nothing is embedded."""

    model: Name
    input: str | Annotated[list[str], Meta(max_length=limits.INPUTS)] | None = None
    truncate: bool | None = None  # true by default: texts longer than the context are cut
    dimensions: int | None = None  # the model's width
    options: dict[str, Any] | None = None
    keep_alive: float | str | None = None


class EmbeddingsRequest(Struct, kw_only=True):
    """The body of api/embeddings, the predecessor of api/embed."""

    model: Name
    prompt: str | None = None
    options: dict[str, Any] | None = None
    keep_alive: float | str | None = None


@dataclasses.dataclass(frozen=True)
class Texts:
    """A prepared request for embeddings."""

    inputs: EmbeddingInputs
    is_single: bool = False


def build_embed(model: ServedModel, body: EmbedRequest, client: str) -> Texts | bytes:
    """Return the requests of a body; JSON if there is nothing to embed."""
    if not body.input:
        return msgspec.json.encode({"model": body.model, "embeddings": []})
    return _texts(model, body, client)


def build_embeddings(model: ServedModel, body: EmbeddingsRequest, client: str) -> Texts | bytes:
    """Return the request of a body; JSON if there is nothing to embed."""
    if not body.prompt:
        return msgspec.json.encode({"embedding": []})
    embed = EmbedRequest(model=body.model, input=body.prompt)
    return dataclasses.replace(_texts(model, embed, client), is_single=True)


def _texts(model: ServedModel, body: EmbedRequest, client: str) -> Texts:
    """Return the requests of a body; APIError 400 if it is invalid."""
    given: list[Any] = [body.input] if isinstance(body.input, str) else body.input or []
    if body.truncate is not False:
        suffix = model.engine.encoder.suffix
        n_tokens = model.settings.context - len(suffix)
        starts = [
            model.prompts.encode(text[: model.prompts.max_chars], "input")[:n_tokens]
            for text in given
        ]
        given = [[*start, *suffix] for start in starts]
    request = EmbeddingRequest(input=given, model=body.model, dimensions=body.dimensions)
    return Texts(embeddings.build(model, request, client))


async def embed(call: Call) -> Reply:
    """Handle a request to embed or embeddings."""
    if isinstance(call.prepared, bytes):
        return Reply(call.prepared)
    texts: Texts = call.prepared
    found = await embeddings.embed(call, texts.inputs)
    vectors = [each["embedding"] for each in found["data"]]
    if texts.is_single:
        return Reply({"embedding": vectors[0]})
    return Reply(
        {
            "model": found["model"],
            "embeddings": vectors,
            "total_duration": round((time.monotonic() - call.arrived_at) * 1e9),
            "load_duration": 0,
            "prompt_eval_count": found["usage"]["prompt_tokens"],
        }
    )
