"""POST tokenize, detokenize and GET tokenizer_info, as vLLM defines them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta, Struct

from yocobit.serving import limits
from yocobit.serving.api import protocol
from yocobit.serving.api.call import Call, Reply
from yocobit.serving.api.chat_request import ChatRequest, prompt_tokens
from yocobit.serving.api.refused_fields import REFUSED, Refused, check_value
from yocobit.serving.api.served_model import ServedModel
from yocobit.serving.errors import APIError
from yocobit.serving.settings import ServerSettings

_TOKEN_BYTES = 16  # upper bound of a token in JSON, with its separators


class TokenizeRequest(Struct, kw_only=True):
    """The body of tokenize: a text, or a conversation."""

    refused: ClassVar[Mapping[str, Refused]] = {"chat_template": REFUSED["chat_template"]}

    model: protocol.Name | None = None
    prompt: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    # Of a conversation, as in chat completions:
    messages: protocol.Messages | None = None
    tools: Annotated[list[protocol.Tool], Meta(max_length=limits.TOOLS)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(Struct, kw_only=True):
    """The body of detokenize."""

    tokens: list[int]
    model: protocol.Name | None = None


async def tokenizer_info(call: Call) -> Reply:
    return Reply(call.model.tokenizer_info)


def max_detokenize_bytes(settings: ServerSettings) -> int:
    """Return the size limit of detokenize's body."""
    return min(settings.max_body_bytes, 1024 + _max_tokens(settings) * _TOKEN_BYTES)


def _max_tokens(settings: ServerSettings) -> int:
    return 4 * settings.context


def tokenize(model: ServedModel, body: TokenizeRequest, client: str) -> bytes:
    """Return the response to a body as JSON; APIError 400 if it is invalid."""
    if (body.prompt is None) == (body.messages is None):
        raise APIError(400, "give either prompt or messages", param="prompt")
    text = body.prompt or ""
    if body.messages is not None:
        tokens = _conversation(model, body)
    else:
        model.prompts.check_length(len(text), "prompt")
        if (special := _special_token(model, text)) is not None:
            tokens = [special]
        elif body.add_special_tokens is False:
            tokens = model.engine.encoder.encode(text)
        else:
            tokens = model.prompts.encode(text, "prompt")
    found = {"count": len(tokens), "max_model_len": model.settings.context, "tokens": tokens}
    if body.return_token_strs:
        found["token_strs"] = [model.engine.tokenizer.id_to_token(token) for token in tokens]
    return msgspec.json.encode(found)


def _conversation(model: ServedModel, body: TokenizeRequest) -> list[int]:
    """Return the tokens of the prompt that chat completions would have."""
    name = "add_special_tokens"
    check_value(name, body.add_special_tokens, ChatRequest.refused[name])
    fields = ("messages", "tools", "add_generation_prompt", "continue_final_message")
    values = {each: getattr(body, each) for each in (*fields, "chat_template_kwargs")}
    return prompt_tokens(model, ChatRequest(**values))


def _special_token(model: ServedModel, text: str) -> int | None:
    """Return the id of a special token whose name is the whole text.

    Clients such as lm-evaluation-harness look up the tokens of tokenizer_info this way. In any
    other text, special tokens are plain text.
    """
    added = model.engine.tokenizer.get_added_tokens_decoder().items()
    return next((token for token, each in added if each.special and each.content == text), None)


def detokenize(model: ServedModel, body: DetokenizeRequest, client: str) -> bytes:
    """Return the response to a body as JSON; APIError 400 if it is invalid."""
    limit = _max_tokens(model.settings)
    if len(body.tokens) > limit:
        raise APIError(
            400, f"tokens: must be at most {limit} but are {len(body.tokens)}", param="tokens"
        )
    model.prompts.check_tokens(body.tokens, "tokens")
    (text,) = model.engine.tokenizer.decode_batch([body.tokens], skip_special_tokens=False)
    return msgspec.json.encode({"prompt": text})
