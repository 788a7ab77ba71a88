"""The tokenizer's endpoints: text to tokens, tokens to text, and what the special ones are."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from yocobit.serving import protocol
from yocobit.serving.chat import render
from yocobit.serving.errors import APIError
from yocobit.serving.exchange import json_response
from yocobit.serving.service import Service
from yocobit.serving.settings import ServerSettings

_TOKEN_BYTES = 16  # of a token in JSON, with what stands around it: ample


def tokenize(service: Service, body: protocol.TokenizeRequest) -> dict[str, Any]:
    if (body.prompt is None) == (body.messages is None):
        raise APIError(400, "give prompt or messages, one of the two", param="prompt")
    if body.messages is not None:
        tokens = render(service, body.messages, [])
    elif body.add_special_tokens is False:
        # Unlike encode, a batch leaves the interpreter to other threads.
        (found,) = service.engine.tokenizer.encode_batch([body.prompt], add_special_tokens=False)
        tokens = found.ids
    else:
        tokens = service.engine.encode(body.prompt or "")
    return {"count": len(tokens), "max_model_len": service.settings.context, "tokens": tokens}


def detokenize(service: Service, body: protocol.DetokenizeRequest) -> dict[str, Any]:
    if len(body.tokens) > (most := max_tokens(service.settings)):
        raise APIError(
            400, f"tokens: there are {len(body.tokens)}, but {most} is the most", param="tokens"
        )
    size = service.engine.config.vocab_size
    for token in body.tokens:
        if not 0 <= token < size:
            raise APIError(
                400, f"tokens: {token} must be at least 0 and below {size}", param="tokens"
            )
    (text,) = service.engine.tokenizer.decode_batch([body.tokens], skip_special_tokens=False)
    return {"prompt": text}


async def tokenizer_info(request: HTTPRequest) -> Response:
    return json_response(request.app.state.server.ready().tokenizer_info)


def max_tokens(settings: ServerSettings) -> int:
    """Return the most tokens that detokenize takes."""
    return 4 * settings.context


def max_token_bytes(settings: ServerSettings) -> int:
    """Return the most bytes of a body of tokens: reading JSON holds everything else up."""
    return min(settings.max_body_bytes, 1024 + max_tokens(settings) * _TOKEN_BYTES)
