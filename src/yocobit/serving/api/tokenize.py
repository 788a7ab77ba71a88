"""POST tokenize, detokenize and GET tokenizer_info, as vLLM defines them."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from msgspec import Meta, Struct

from yocobit.serving.api import protocol
from yocobit.serving.api.call import Call, Reply
from yocobit.serving.api.chat import render
from yocobit.serving.api.served_model import ServedModel
from yocobit.serving.errors import APIError
from yocobit.serving.settings import ServerSettings

_TOKEN_BYTES = 16  # upper bound of a token in JSON, with its separators


class TokenizeRequest(Struct, kw_only=True):
    """The body of tokenize: a text, or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[protocol.Message], Meta(min_length=1)] | None = None
    add_special_tokens: bool | None = None


class DetokenizeRequest(Struct, kw_only=True):
    """The body of detokenize."""

    tokens: list[int]
    model: str | None = None


async def tokenize(call: Call) -> Reply:
    return Reply(await asyncio.to_thread(_tokenize, call.model, call.body))


async def detokenize(call: Call) -> Reply:
    return Reply(await asyncio.to_thread(_detokenize, call.model, call.body))


async def tokenizer_info(call: Call) -> Reply:
    return Reply(call.model.tokenizer_info)


def max_detokenize_bytes(settings: ServerSettings) -> int:
    """Return the size limit of detokenize's body: parsing JSON blocks the event loop."""
    return min(settings.max_body_bytes, 1024 + _max_tokens(settings) * _TOKEN_BYTES)


def _max_tokens(settings: ServerSettings) -> int:
    return 4 * settings.context


def _tokenize(model: ServedModel, body: TokenizeRequest) -> dict[str, Any]:
    if (body.prompt is None) == (body.messages is None):
        raise APIError(400, "give either prompt or messages", param="prompt")
    if body.messages is not None:
        tokens = render(model, body.messages, [])
    elif body.add_special_tokens is False:
        # Unlike encode, encode_batch releases the GIL.
        (found,) = model.engine.tokenizer.encode_batch([body.prompt], add_special_tokens=False)
        tokens = found.ids
    else:
        tokens = model.engine.encode(body.prompt or "")
    return {"count": len(tokens), "max_model_len": model.settings.context, "tokens": tokens}


def _detokenize(model: ServedModel, body: DetokenizeRequest) -> dict[str, Any]:
    limit = _max_tokens(model.settings)
    if len(body.tokens) > limit:
        raise APIError(
            400, f"tokens: must be at most {limit} but are {len(body.tokens)}", param="tokens"
        )
    model.check_tokens(body.tokens, "tokens")
    (text,) = model.engine.tokenizer.decode_batch([body.tokens], skip_special_tokens=False)
    return {"prompt": text}
