"""GeneratedResponse, of endpoints that generate text; the frames of OpenAI's completions."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any

from yocobit.serving.api.call import Call, Events, Reply
from yocobit.serving.api.constraints import dropped_header
from yocobit.serving.api.protocol import Sampling
from yocobit.serving.api.served_model import ServedModel
from yocobit.serving.errors import APIError
from yocobit.serving.runtime.request import Event, Logprob, Request
from yocobit.serving.runtime.runtime import EventStream
from yocobit.serving.runtime.sequence import SequenceGroup
from yocobit.serving.runtime.structured_output import CheckedGrammar


class GeneratedResponse(ABC):
    """A prepared request that generates text, and its response, built from events.

    It is made in a worker or a thread and must be picklable; `attach` completes it.
    """

    def __init__(
        self,
        model: ServedModel,
        requests: Sequence[Request],
        is_streamed: bool,
        grammar: CheckedGrammar | None = None,
    ) -> None:
        """The output follows `grammar`."""
        self.model = model
        self.requests = requests
        self.is_streamed = is_streamed
        self.grammar = grammar
        self.headers = dropped_header(grammar)  # of the HTTP response

    async def completed(self, stream: EventStream) -> dict[str, Any]:
        """Return the response once it is complete."""
        async for events in stream.events():
            for index, event in events:
                self.add(index, event)
        return self.whole(stream)

    async def chunks(self, stream: EventStream) -> AsyncIterator[list[dict[str, Any]]]:
        """Yield the response as chunks, one per token with text, in batches as they arrive."""
        if first := list(self.first_chunks()):
            yield first
        async for events in stream.events():
            chunks = [chunk for each in events for chunk in self.chunks_of(*each, stream)]
            if chunks:
                yield chunks
        if last := list(self.last_chunks(stream)):
            yield last

    def __getstate__(self) -> dict[str, Any]:  # it is built in a worker
        return {name: value for name, value in vars(self).items() if name != "model"}

    def attach(self, model: ServedModel) -> None:
        """Complete a response that was built in a worker, for the model of this process."""
        self.model = model
        if self.grammar is not None:
            guided = model.grammars.factory(self.grammar)
            self.requests = [dataclasses.replace(each, guided=guided) for each in self.requests]

    @abstractmethod
    def add(self, index: int, event: Event) -> None:
        """Add an event of the request with that index to a response that is not streamed."""

    @abstractmethod
    def whole(self, stream: EventStream) -> dict[str, Any]:
        """Return the response to all events."""

    def first_chunks(self) -> Iterable[dict[str, Any]]:
        """Return the chunks that precede all events."""
        return ()

    @abstractmethod
    def chunks_of(self, index: int, event: Event, stream: EventStream) -> Iterable[dict[str, Any]]:
        """Return the chunks of an event of the request with that index."""

    def last_chunks(self, stream: EventStream) -> Iterable[dict[str, Any]]:
        """Return the chunks that follow all events."""
        return ()

    def failed(self, error: APIError) -> dict[str, Any] | None:
        """Return the last event of a stream that fails; None: the wire format's error."""
        return None

    def logprob(self, found: Logprob) -> dict[str, Any]:
        """Return a token's log-probability in the form of chat completions."""
        _, raw = self.model.token_text(found.token)
        text = list(found.text.encode())
        if len(text) < len(raw) and is_utf8(raw):  # a stop string cut it, or it has no text
            raw = text
        top = [self._top_logprob(*each) for each in found.top]
        return {"token": found.text, "logprob": found.logprob, "bytes": raw, "top_logprobs": top}

    def _top_logprob(self, token: int, logprob: float) -> dict[str, Any]:
        text, raw = self.model.token_text(token)
        return {"token": text, "logprob": logprob, "bytes": raw}


class Completion(GeneratedResponse):
    """The response of chat completions and completions: choices in a frame."""

    id_prefix: str
    object_name: str
    chunk_object_name: str

    def __init__(
        self,
        model: ServedModel,
        body: Sampling,
        requests: Sequence[Request],
        grammar: CheckedGrammar | None = None,
    ) -> None:
        super().__init__(model, requests, bool(body.stream), grammar)
        self.id = f"{self.id_prefix}-{secrets.token_hex(12)}"
        self._has_usage_chunk = bool(body.stream_options and body.stream_options.include_usage)
        self._model_name = body.model or model.name
        # Always present: LiteLLM requires it. "auto" is valid for the clients of OpenAI and Groq.
        self._service_tier = body.service_tier or "auto"
        self.has_token_ids = bool(body.return_token_ids)
        self._created = int(time.time())
        self._n_open = sum(len(request.sampling) for request in requests)  # choices to finish

    @abstractmethod
    def choices(self) -> list[dict[str, Any]]:
        """Return the choices of a complete response."""

    def whole(self, stream: EventStream) -> dict[str, Any]:
        return {
            **self._frame(self.object_name, self.choices()),
            "usage": usage(stream.groups),
            "x_groq": self._groq(seed=self._seed),
        }

    def last_chunks(self, stream: EventStream) -> Iterator[dict[str, Any]]:
        if self._has_usage_chunk:
            yield {**self._frame(self.chunk_object_name, []), "usage": usage(stream.groups)}

    def chunk(
        self, choice: dict[str, Any], finished: EventStream | None = None, *, is_first: bool = False
    ) -> dict[str, Any]:
        """Return a choice as a chunk; `finished` is the stream if this is its last chunk."""
        frame = self._frame(self.chunk_object_name, [choice])
        if self._has_usage_chunk:
            frame["usage"] = None
        if finished is not None:
            frame["x_groq"] = self._groq(seed=self._seed, usage=usage(finished.groups))
        elif is_first:
            frame["x_groq"] = self._groq()
        return frame

    def finish_choice(self, stream: EventStream) -> EventStream | None:
        """Count a finished choice; return the stream if it was the last."""
        self._n_open -= 1
        return None if self._n_open else stream

    def _frame(self, object_name: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": object_name,
            "created": self._created,
            "model": self._model_name,
            "system_fingerprint": self.model.fingerprint,
            "service_tier": self._service_tier,
            "choices": choices,
        }

    def _groq(self, **more: Any) -> dict[str, Any]:
        return {"id": f"req_{self.id.partition('-')[2]}", **more}

    @property
    def _seed(self) -> int:
        """The seed of the first choice, in a request's range; the other choices count up."""
        seed = self.requests[0].sampling[0].seed
        return seed if seed < 1 << 63 else seed - (1 << 64)


def is_utf8(raw: Sequence[int]) -> bool:
    """Return whether bytes are whole characters."""
    try:
        bytes(raw).decode()
    except UnicodeDecodeError:
        return False
    return True


async def generate(call: Call) -> Reply | Events:
    """Handle a request to an endpoint that generates text; a GeneratedResponse was prepared."""
    response: GeneratedResponse = call.prepared
    if response.grammar is None:
        response.attach(call.model)
    else:  # compiles it
        await asyncio.to_thread(response.attach, call.model)
    stream = await call.generate(response.requests)
    if response.is_streamed:
        return Events(response.chunks(stream), response.failed, response.headers)
    return Reply(await response.completed(stream), headers=response.headers)


def check_stream_options(body: Sampling) -> None:
    """APIError 400 if there are stream_options without a stream."""
    if body.stream_options is not None and not body.stream:
        raise APIError(400, "stream_options requires stream to be true", param="stream_options")


def usage(groups: Sequence[SequenceGroup]) -> dict[str, Any]:
    """Return the tokens and seconds of requests; seconds are those of the last to finish."""
    prompt = sum(len(group.request.prompt) for group in groups)
    generated = sum(group.n_generated for group in groups)
    last = max(groups, key=lambda group: group.finished_at)
    prefilled_at = last.first_token_at or last.finished_at
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": sum(g.n_cached_tokens for g in groups)},
        "queue_time": last.started_at - last.queued_at,
        "prompt_time": prefilled_at - last.started_at,
        "completion_time": last.finished_at - prefilled_at,
        "total_time": last.finished_at - last.started_at,  # as Groq defines it, without the queue
    }
