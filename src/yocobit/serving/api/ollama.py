"""POST api/chat, api/generate, api/embed and the models of Ollama's API, for its clients.

A body becomes a ChatRequest; its answer is rendered as lines of JSON. Names of models may end with
the tag :latest. What manages models is refused: `yocobit pull` and `yocobit serve` do that.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta, Struct

from yocobit.serving import limits
from yocobit.serving.api import chat, embeddings, protocol
from yocobit.serving.api.answer import Call as ToolUse
from yocobit.serving.api.answer import Content, Done
from yocobit.serving.api.call import Call, Events, Reply
from yocobit.serving.api.chat import ChatRequest, PreparedChat
from yocobit.serving.api.embeddings import EmbeddingRequest
from yocobit.serving.api.generation import Generation, usage
from yocobit.serving.api.generation import generate as run
from yocobit.serving.api.protocol import Message, Name, Tool
from yocobit.serving.api.refused_fields import REFUSED, Refused, check_value
from yocobit.serving.api.served_model import ServedModel
from yocobit.serving.api.wire import WireFormat
from yocobit.serving.errors import APIError
from yocobit.serving.runtime.request import Event, Finish, Token
from yocobit.serving.runtime.runtime import EventStream

TAG = ":latest"
# Of Ollama's API that this file implements: clients compare it with what they need.
VERSION = "0.12.11"
# The names of options as fields of ChatRequest. Other options do not change the answer.
_OPTIONS = {
    "num_predict": "max_tokens",
    "repeat_penalty": "repetition_penalty",
    **{
        name: name
        for name in (
            *("temperature", "top_k", "top_p", "min_p", "seed", "stop"),
            *("presence_penalty", "frequency_penalty"),
        )
    },
}
_NEVER = "9999-12-31T23:59:59Z"  # the served model is not unloaded


class CalledFunction(Struct, kw_only=True):
    name: Name
    arguments: dict[str, Any]


class CallMade(Struct, kw_only=True):
    function: CalledFunction
    id: Name | None = None


class OllamaMessage(Struct, kw_only=True):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    images: list[Any] | None = None  # rejected
    tool_calls: Annotated[list[CallMade], Meta(max_length=limits.TOOLS)] | None = None
    tool_name: Name | None = None
    tool_call_id: Name | None = None


class _Body(Struct, kw_only=True):
    """Fields of chat and generate. Streaming is the default."""

    refused: ClassVar[Mapping[str, Refused]] = {
        "think": Refused((False,)),
        "images": Refused(([],)),
        "suffix": Refused(("",)),
        "template": Refused(("",), "it is the model's"),
        "context": Refused(([],), "use api/chat"),
    }

    model: Name
    stream: bool | None = None
    format: Literal["json", ""] | dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=limits.LOGPROBS)] | None = None
    keep_alive: float | str | None = None  # the model stays loaded


class OllamaChatRequest(_Body, kw_only=True):
    """The body of api/chat. Without messages, it asks if the model is loaded."""

    messages: Annotated[list[OllamaMessage], Meta(max_length=limits.MESSAGES)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=limits.TOOLS)] | None = None


class GenerateRequest(_Body, kw_only=True):
    """The body of api/generate. Without a prompt, it asks if the model is loaded."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None  # the prompt is continued, without the chat template


class EmbedRequest(Struct, kw_only=True):
    """The body of api/embed."""

    model: Name
    input: str | Annotated[list[str], Meta(max_length=limits.INPUTS)]
    truncate: bool | None = None  # texts that are longer than the context, by default
    dimensions: int | None = None  # rejected
    options: dict[str, Any] | None = None
    keep_alive: float | str | None = None


class EmbeddingsRequest(Struct, kw_only=True):
    """The body of api/embeddings, the predecessor of api/embed."""

    model: Name
    prompt: str
    options: dict[str, Any] | None = None
    keep_alive: float | str | None = None


class ShowRequest(Struct, kw_only=True):
    """The body of api/show."""

    model: Name | None = None
    name: Name | None = None  # its earlier name
    verbose: bool | None = None


class ManagementRequest(Struct):
    """The body of a request that is refused: any object."""

    model: ClassVar[None] = None


# ---- chat and generate


def build_chat(
    model: ServedModel, body: OllamaChatRequest, client: str
) -> OllamaGeneration | bytes:
    """Return the response to generate for a body; JSON if there is nothing to generate."""
    if not body.messages:
        return _loaded(body, {"message": {"role": "assistant", "content": ""}})
    request = _to_chat(body, [_message(i, each) for i, each in enumerate(body.messages)])
    request.tools = body.tools
    return OllamaGeneration(model, body, chat.prepare(model, request, client, is_clamped=True))


def build_generate(
    model: ServedModel, body: GenerateRequest, client: str
) -> OllamaGeneration | bytes:
    """Return the response to generate for a body; JSON if there is nothing to generate."""
    if not body.prompt:
        return _loaded(body, {"response": ""})
    messages, prompt = [Message(role="user", content=body.prompt)], None
    if body.raw or not model.has_chat_template:
        prompt = model.encode(body.prompt, "prompt")
    elif body.system:
        messages.insert(0, Message(role="system", content=body.system))
    request = _to_chat(body, messages)
    prepared = chat.prepare(model, request, client, is_clamped=True, prompt=prompt)
    return OllamaGeneration(model, body, prepared)


def is_heavy(body: _Body) -> bool:
    """Whether a schema must be compiled."""
    return bool(body.format)


async def generate(call: Call) -> Reply | Events:
    """Handle a request to chat or generate."""
    return Reply(call.prepared) if isinstance(call.prepared, bytes) else await run(call)


class OllamaGeneration(Generation):
    """The response of chat and generate: one answer, whole or in lines."""

    def __init__(self, model: ServedModel, body: _Body, prepared: PreparedChat) -> None:
        super().__init__(model, [prepared.request], body.stream is not False, prepared.grammar)
        self._model_name = body.model
        self._is_chat = isinstance(body, OllamaChatRequest)
        self._has_logprobs = bool(body.logprobs)
        (self._answer,) = prepared.answers()

    def add(self, index: int, event: Event) -> None:
        self._answer.add(event)

    def whole(self, stream: EventStream) -> dict[str, Any]:
        answer = self._answer
        return {
            **self._line(answer.text, answer.calls),
            **self._logprobs(answer.logprobs),
            **self._end(stream),
        }

    def chunks_of(self, index: int, event: Event, stream: EventStream) -> Iterator[dict[str, Any]]:
        if not isinstance(event, Token | Finish):
            return
        for delta in self._answer.add(event):
            if isinstance(delta, Content):
                yield {**self._line(delta.text), **self._logprobs(delta.logprobs)}
            elif isinstance(delta, Done) and self._answer.calls:
                yield self._line("", self._answer.calls)

    def last_chunks(self, stream: EventStream) -> Iterator[dict[str, Any]]:
        yield {**self._line(""), **self._end(stream)}

    def _line(self, text: str, calls: Iterable[ToolUse] = ()) -> dict[str, Any]:
        line = {"model": self._model_name, "created_at": _now()}
        if not self._is_chat:
            return {**line, "response": text, "done": False}
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if made := [_call(i, each) for i, each in enumerate(calls)]:
            message["tool_calls"] = made
        return {**line, "message": message, "done": False}

    def _logprobs(self, found: Iterable[Any]) -> dict[str, Any]:
        entries = [self.logprob(each) for each in found]
        return {"logprobs": entries} if self._has_logprobs else {}

    def _end(self, stream: EventStream) -> dict[str, Any]:
        done = self._answer.done
        found = usage(stream.groups)
        return {
            "done": True,
            "done_reason": "length" if done is not None and done.reason == "length" else "stop",
            "total_duration": _ns(found["queue_time"] + found["total_time"]),
            "load_duration": 0,
            "prompt_eval_count": found["prompt_tokens"],
            "prompt_eval_duration": _ns(found["prompt_time"]),
            "eval_count": found["completion_tokens"],
            "eval_duration": _ns(found["completion_time"]),
        }


def _to_chat(body: _Body, messages: list[Message]) -> ChatRequest:
    """Return the conversation of a body; APIError 400 if it is invalid."""
    fields: dict[str, Any] = {}
    for name, value in (body.options or {}).items():
        if name in REFUSED:
            check_value(f"options.{name}", value, REFUSED[name])
        if name in _OPTIONS:
            fields[_OPTIONS[name]] = value
    if (limit := fields.get("max_tokens")) is not None and isinstance(limit, int) and limit < 1:
        fields["max_tokens"] = -1  # 0 and below: until the end
    if body.format == "json":
        fields["response_format"] = {"type": "json_object"}
    elif body.format:
        fields["response_format"] = {"type": "json_schema", "json_schema": {"schema": body.format}}
    if body.think is not None:
        fields["chat_template_kwargs"] = {"enable_thinking": False}
    if body.logprobs:
        fields |= {"logprobs": True, "top_logprobs": body.top_logprobs or 0}
    fields["messages"] = [{"role": "user", "content": ""}]  # checked already
    request = protocol.from_fields(fields, ChatRequest)
    request.messages = messages
    return request


def _message(i: int, message: OllamaMessage) -> Message:
    if message.images:
        raise APIError(
            400, f"messages[{i}].images are not supported; leave them out", param="messages"
        )
    calls = [
        {
            "id": call.id,
            "function": {
                "name": call.function.name,
                "arguments": msgspec.json.encode(call.function.arguments).decode(),
            },
        }
        for call in message.tool_calls or []
    ]
    return msgspec.convert(
        {
            "role": message.role,
            "content": message.content or "",
            "name": message.tool_name,
            "tool_call_id": message.tool_call_id,
            "tool_calls": calls or None,
        },
        Message,
    )


def _call(index: int, call: ToolUse) -> dict[str, Any]:
    try:
        arguments = msgspec.json.decode(call.arguments)
    except (msgspec.DecodeError, RecursionError):  # cut by num_predict
        arguments = {}
    return {
        "id": call.id,
        "function": {"index": index, "name": call.name, "arguments": arguments},
    }


def _loaded(body: _Body, empty: Mapping[str, Any]) -> bytes:
    """Return the response to a request that generates nothing."""
    reason = "unload" if body.keep_alive == 0 else "load"
    line = {"model": body.model, "created_at": _now(), **empty, "done": True, "done_reason": reason}
    return msgspec.json.encode(line)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat().replace("+00:00", "Z")


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


# ---- embeddings


@dataclasses.dataclass(frozen=True)
class Texts:
    """A prepared request for embeddings."""

    inputs: embeddings.Inputs
    is_single: bool = False


def build_embed(model: ServedModel, body: EmbedRequest, client: str) -> Texts:
    """Return the requests of a body; APIError 400 if it is invalid."""
    given: list[Any] = [body.input] if isinstance(body.input, str) else body.input
    if body.truncate is not False:
        suffix = model.engine.encoder.suffix
        n_tokens = model.settings.context - len(suffix)
        starts = [model.encode(text[: model.max_chars], "input")[:n_tokens] for text in given]
        given = [[*start, *suffix] for start in starts]
    request = EmbeddingRequest(input=given, model=body.model, dimensions=body.dimensions)
    return Texts(embeddings.build(model, request, client))


def build_embeddings(model: ServedModel, body: EmbeddingsRequest, client: str) -> Texts:
    """Return the request of a body; APIError 400 if it is invalid."""
    embed = EmbedRequest(model=body.model, input=body.prompt)
    return dataclasses.replace(build_embed(model, embed, client), is_single=True)


async def embed(call: Call) -> Reply:
    """Handle a request to embed or embeddings."""
    texts: Texts = call.prepared
    found = (await embeddings.embeddings(dataclasses.replace(call, prepared=texts.inputs))).value
    vectors = [each["embedding"] for each in found["data"]]
    if texts.is_single:
        return Reply({"embedding": vectors[0]})
    return Reply(
        {
            "model": found["model"],
            "embeddings": vectors,
            "load_duration": 0,
            "prompt_eval_count": found["usage"]["prompt_tokens"],
        }
    )


# ---- models


async def tags(call: Call) -> Reply:
    return Reply({"models": [_describe(call.model, name) for name in call.model.names]})


async def loaded_models(call: Call) -> Reply:
    more = {
        "expires_at": _NEVER,
        "size_vram": 0,
        "context_length": call.model.settings.context,
    }
    return Reply({"models": [{**_describe(call.model, n), **more} for n in call.model.names]})


async def version(call: Call) -> Reply:
    return Reply({"version": VERSION})


def show(model: ServedModel, body: ShowRequest, client: str) -> bytes:
    """Return the description of a model as JSON."""
    model.check_name(body.model or body.name)
    engine = model.engine
    template = engine.chat_template.source if model.has_chat_template else ""
    config = engine.config
    capabilities = ["completion", "embedding"]
    if "tools" in template:
        capabilities.append("tools")
    sampling = engine.sampling()
    parameters = {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
        "num_ctx": model.settings.context,
    }
    described = _describe(model, model.name)
    return msgspec.json.encode(
        {
            "modelfile": f"FROM {model.name}",
            "parameters": "\n".join(f"{name} {value}" for name, value in parameters.items()),
            "template": template,
            "details": described["details"],
            "model_info": {
                "general.architecture": "yocobit",
                "general.parameter_count": model.summary.parameters,
                "yocobit.context_length": model.settings.context,
                "yocobit.embedding_length": config.d_model,
                "yocobit.attention.head_count": config.n_heads,
                "yocobit.attention.head_count_kv": config.n_kv_heads,
                "yocobit.vocab_size": config.vocab_size,
            },
            "capabilities": capabilities,
            "modified_at": described["modified_at"],
        }
    )


def refuse_management(model: ServedModel, body: ManagementRequest, client: str) -> bytes:
    raise _manages_no_models()


async def refuse_deletion(call: Call) -> Reply:
    raise _manages_no_models()


def _manages_no_models() -> APIError:
    return APIError(
        400,
        "this server manages no models: import one with `yocobit pull` and serve it with `yocobit "
        "serve`",
    )


def _describe(model: ServedModel, name: str) -> dict[str, Any]:
    n, weights = model.summary.parameters, model.engine.config.weights
    size = f"{n / 1e9:.1f}B" if n >= 1e9 else f"{n / 1e6:.1f}M"
    changed_at = datetime.datetime.fromtimestamp(
        model.engine.model.file.stat().st_mtime, datetime.timezone.utc
    )
    return {
        "name": name + TAG,
        "model": name + TAG,
        "modified_at": changed_at.isoformat().replace("+00:00", "Z"),
        "size": model.summary.size_bytes,
        "digest": hashlib.sha256(model.identity.encode()).hexdigest(),
        "details": {
            "parent_model": "",
            "format": "safetensors",
            "family": "yocobit",
            "families": ["yocobit"],
            "parameter_size": size,
            "quantization_level": weights,
        },
    }


# ---- the wire format

OLLAMA = WireFormat(
    lambda value: msgspec.json.encode(value) + b"\n",
    ping=b"",
    stream_type="application/x-ndjson",
    error=lambda error: {"error": str(error)},
    error_name="OllamaError",
    error_schema={
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "string"}},
    },
)
