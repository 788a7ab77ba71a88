"""What answers to both kinds of requests have in common."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from yocobit.serving.errors import APIError
from yocobit.serving.generation import Event, Logprob, Request
from yocobit.serving.job import Job
from yocobit.serving.protocol import Sampling
from yocobit.serving.service import Answer, Service


class Completion(ABC):
    """A request's body, and how its answer is written."""

    requests: Sequence[Request]
    kind: str  # begins its id
    chunk_object: str  # what its chunks are called

    def __init__(self, service: Service, body: Sampling) -> None:
        self.service = service
        self.id = f"{self.kind}-{secrets.token_hex(12)}"
        self.streams = bool(body.stream)
        self.has_usage_chunk = bool(body.stream_options and body.stream_options.include_usage)
        if body.stream_options is not None and not self.streams:
            raise APIError(
                400, "stream_options go with stream, which is not set", param="stream_options"
            )
        self._model = body.model or service.name
        self._created = int(time.time())

    @abstractmethod
    async def whole(self, answer: Answer) -> dict[str, Any]:
        """Return the whole answer."""

    async def chunks(self, answer: Answer) -> AsyncIterator[list[dict[str, Any]]]:
        """Yield the answer in chunks, one for each token that shows text, as they come together."""
        if first := list(self.first_chunks()):
            yield first
        async for events in answer.events():
            chunks = [c for each in events for c in self.chunks_of(*each, answer)]
            if chunks:
                yield chunks
        if self.has_usage_chunk:
            yield [{**self._frame(self.chunk_object, []), "usage": usage(answer.jobs)}]

    @abstractmethod
    def first_chunks(self) -> Iterable[dict[str, Any]]:
        """Return the chunks before anything has come."""

    @abstractmethod
    def chunks_of(self, index: int, event: Event, answer: Answer) -> Iterable[dict[str, Any]]:
        """Return the chunks that an event of the request with that index makes."""

    def whole_frame(
        self, object_: str, choices: list[dict[str, Any]], answer: Answer
    ) -> dict[str, Any]:
        """Return choices as a whole answer."""
        return {
            **self._frame(object_, choices),
            "usage": usage(answer.jobs),
            "x_groq": self._groq(seed=self._seed),
        }

    def chunk_frame(
        self,
        choices: list[dict[str, Any]],
        ended: Answer | None,
        *,
        is_first: bool = False,
    ) -> dict[str, Any]:
        """Return choices as a chunk; `ended` is the answer, if this is its last."""
        frame = self._frame(self.chunk_object, choices)
        if self.has_usage_chunk:
            frame["usage"] = None
        if ended is not None:
            frame["x_groq"] = self._groq(seed=self._seed, usage=usage(ended.jobs))
        elif is_first:
            frame["x_groq"] = self._groq()
        return frame

    def _frame(self, object_: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": object_,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": self.service.fingerprint,
            "choices": choices,
        }

    def _groq(self, **more: Any) -> dict[str, Any]:
        return {"id": f"req_{self.id.partition('-')[2]}", **more}

    @property
    def _seed(self) -> int:
        """The seed of the first choice, as a request may have it; those of the others follow."""
        seed = self.requests[0].sampling[0].seed
        return seed if seed < 1 << 63 else seed - (1 << 64)

    def token_text(self, token: int) -> tuple[str, list[int]]:
        """Return a token as text, and its bytes, which may be half a character."""
        raw = self.service.grammars.token_bytes(token)
        return raw.decode("utf-8", errors="replace"), list(raw)

    def chosen(self, found: Logprob) -> dict[str, Any]:
        """Return a token's log-probability as chat completions have it."""
        entry = self._entry(found.token, found.logprob)
        entry["top_logprobs"] = [self._entry(*each) for each in found.top]
        return entry

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text, raw = self.token_text(token)
        return {"token": text, "logprob": logprob, "bytes": raw}


def stops(stop: str | list[str] | None) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def usage(jobs: Sequence[Job]) -> dict[str, Any]:
    """Return the tokens and seconds that jobs took; seconds are those of the slowest."""
    prompt = sum(len(job.request.prompt) for job in jobs)
    drawn = sum(job.n_drawn for job in jobs)
    last = max(jobs, key=lambda job: job.ended_at)
    read_at = last.read_at or last.ended_at
    return {
        "prompt_tokens": prompt,
        "completion_tokens": drawn,
        "total_tokens": prompt + drawn,
        "prompt_tokens_details": {"cached_tokens": sum(job.n_cached for job in jobs)},
        "queue_time": last.begun_at - last.queued_at,
        "prompt_time": read_at - last.begun_at,
        "completion_time": last.ended_at - read_at,
        "total_time": last.ended_at - last.begun_at,  # as Groq has it, without the queue
    }
