"""The service: a model behind a scheduler, as the endpoints use it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import secrets
import threading
from array import array
from collections.abc import AsyncIterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from yocobit.config import ConfigError
from yocobit.costs import summarize
from yocobit.engine import Engine, SamplingConfig
from yocobit.packing.format import CHAT_TEMPLATE, GENERATION, TOKENIZER
from yocobit.serving import protocol
from yocobit.serving.constraint import Grammars
from yocobit.serving.errors import APIError
from yocobit.serving.generation import Event, Failure, Finish, Request
from yocobit.serving.job import Job
from yocobit.serving.metrics import Metrics
from yocobit.serving.prefix_cache import PrefixCache
from yocobit.serving.prefix_store import PrefixStore
from yocobit.serving.scheduler import Scheduler
from yocobit.serving.settings import MB, ServerSettings
from yocobit.version import __version__

_PREPARATIONS = 4  # requests that are tokenised at a time
_KNOWN_TEXTS = 16  # of the last prompts: their tokens are remembered


class Answer:
    """What comes of one or more requests, as it comes."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self._events: asyncio.Queue[list[tuple[int, Event]]] = asyncio.Queue()
        self._n_open = 0  # choices that are not complete

    def add(self, job: Job) -> None:
        self.jobs.append(job)
        self._n_open += len(job.request.sampling)

    def put(self, index: int, events: Sequence[Event]) -> None:
        """Take in what came of the request with that index."""
        self._events.put_nowait([(index, event) for event in events])

    async def events(self) -> AsyncIterator[list[tuple[int, Event]]]:
        """Yield events as they came together, each with the index of its request.

        The last ones complete the last choice. Raises the error of a failure.
        """
        while self._n_open > 0:
            events = await self._events.get()
            while not self._events.empty():
                events += self._events.get_nowait()
            for i, (_, event) in enumerate(events):
                if isinstance(event, Failure):
                    if i > 0:
                        yield events[:i]
                    raise event.error
                self._n_open -= isinstance(event, Finish)
            yield events


class Service:
    """Made in the event loop that it serves."""

    def __init__(self, engine: Engine, settings: ServerSettings, metrics: Metrics) -> None:
        self.engine = engine
        self.settings = settings
        self.name = settings.model.resolve().name
        self.summary = summarize(engine.model)
        self._answers: dict[Job, tuple[Answer, int]] = {}  # and the job's index in it
        self._n_preparing = 0
        self._preparations = asyncio.Semaphore(_PREPARATIONS)
        self._known_texts: dict[str, array[int]] = {}  # and their tokens
        self._known_lock = threading.Lock()
        self._loop = asyncio.get_running_loop()
        identity = f"{engine.model.metadata['header_sha256']} {settings.cache} {__version__}"
        if settings.attention is not None:
            identity += f" {settings.attention}"
        # What the same request and seed get the same answer from.
        self.fingerprint = f"fp_{_hash(identity, engine.model.path)[:12]}"
        self._store = (
            PrefixStore(settings.prefix_dir, settings.prefix_dir_mb * MB)
            if settings.prefix_dir is not None
            else None
        )
        self.scheduler = Scheduler(
            engine,
            self._deliver,
            cache=settings.cache,
            cache_bytes=settings.cache_bytes,
            max_sequences=settings.max_sequences,
            max_waiting=settings.max_waiting,
            prefixes=self._prefixes(identity) if settings.prefix_mb > 0 else None,
            metrics=metrics,
        )
        try:
            self._check_cache()
        except ConfigError:
            self.stop()
            raise
        metrics.watch(self.scheduler)

    @cached_property
    def grammars(self) -> Grammars:
        return Grammars(self.engine)

    @cached_property
    def has_chat_template(self) -> bool:
        return (self.engine.model.path / CHAT_TEMPLATE).exists()

    @cached_property
    def tokenizer_info(self) -> dict[str, Any]:
        """What lm-evaluation-harness wants to know of the tokenizer, as vLLM tells it."""
        config, tokenizer = self.engine.generation_config, self.engine.tokenizer
        begin, ends = config.get("bos_token_id"), sorted(self.engine.end_tokens)
        template = self.engine.model.path / CHAT_TEMPLATE
        return {
            "bos_token": None if begin is None else tokenizer.id_to_token(begin),
            "eos_token": tokenizer.id_to_token(ends[0]) if ends else None,
            "model_max_length": self.settings.context,
            "chat_template": template.read_text("utf-8") if self.has_chat_template else None,
        }

    def check_model(self, name: str | None) -> None:
        """APIError 404 if a request names another model."""
        if name is not None and name not in (self.name, *self.settings.alias):
            raise APIError(
                404,
                f"The model {name!r} does not exist here; this server has {self.name!r}",
                param="model",
                code="model_not_found",
            )

    def encode(self, text: str, param: str) -> list[int]:
        """Return the tokens of a text, at once if it was asked for a few texts ago.

        APIError 400 without a try if it is far too long for the context.

        `param` is the field that it comes from.
        """
        most = self.settings.context * self._longest_token
        if len(text) > most:
            raise APIError(
                400,
                f"This model's maximum context length is {self.settings.context} tokens, which "
                f"no more than {most:,} characters can be, but the prompt has {len(text):,}",
                param=param,
                code="context_length_exceeded",
            )
        with self._known_lock:
            known = self._known_texts.pop(text, None)
        # As an array, a token takes 4 bytes.
        tokens = array("i", self.engine.encode(text)) if known is None else known
        if len(tokens) <= self.settings.context:
            with self._known_lock:
                self._known_texts[text] = tokens  # the last: those before go first
                while len(self._known_texts) > _KNOWN_TEXTS:
                    del self._known_texts[next(iter(self._known_texts))]
        return tokens.tolist()

    @cached_property
    def _longest_token(self) -> int:
        """Characters of the longest token."""
        return max(map(len, self.engine.tokenizer.get_vocab()))

    @property
    def n_open(self) -> int:
        """Requests whose answers are not yet written to their end."""
        return len(self._answers) + self._n_preparing

    @contextlib.asynccontextmanager
    async def preparing(self) -> AsyncIterator[None]:
        """Work on a request before it is submitted, a few at a time; errors as of check_room."""
        self.scheduler.check_room(1 + self._n_preparing)
        self._n_preparing += 1
        try:
            async with self._preparations:
                yield
        finally:
            self._n_preparing -= 1

    def sampling(self, body: protocol.Sampling, n_prompts: int = 1) -> tuple[SamplingConfig, ...]:
        """Return how each choice of each prompt is drawn: as the model says but for the request."""
        names = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty")
        changes: dict[str, Any] = {
            name: value
            for name in (*names, "repetition_penalty")
            if (value := getattr(body, name)) is not None
        }
        if body.top_k is not None:
            changes["top_k"] = min(max(0, body.top_k), self.engine.config.vocab_size)  # -1 is all
        seed = secrets.randbits(53) if body.seed is None else body.seed % (1 << 64)
        return tuple(
            self.engine.sampling(**changes, seed=seed + i) for i in range((body.n or 1) * n_prompts)
        )

    def logit_bias(self, body: protocol.Sampling) -> dict[int, float]:
        """Return the bias by token; APIError 400 for what is not in the vocabulary."""
        bias = {}
        for key, value in (body.logit_bias or {}).items():
            if not re.fullmatch(r"\d{1,9}", key, re.A) or int(key) >= self.engine.config.vocab_size:
                raise APIError(
                    400,
                    f"logit_bias: {key[:20]!r} must be a token, at least 0 and below "
                    f"{self.engine.config.vocab_size}",
                    param="logit_bias",
                )
            bias[int(key)] = value
        return bias

    def check(self, request: Request, param: str) -> Request:
        """Return a request that can be served; APIError 400 with the numbers if it never can.

        `param` is the field that its prompt comes from.
        """
        n, room = len(request.prompt), self.settings.context
        if n + request.max_tokens > room:
            raise APIError(
                400,
                f"This model's maximum context length is {room} tokens, but the prompt has {n} and "
                f"max_tokens is {request.max_tokens}: {n + request.max_tokens} together",
                param=param,
                code="context_length_exceeded",
            )
        if len(request.sampling) > self.settings.max_sequences:
            raise APIError(
                400,
                f"n is {len(request.sampling)}, but this server writes at most "
                f"{self.settings.max_sequences} texts at a time",
                param="n",
            )
        if (size := self.scheduler.bytes_of(request)) > self.settings.cache_bytes:
            raise APIError(
                400,
                f"the caches of {len(request.sampling)} x {request.n_tokens} tokens need {size:,} "
                f"bytes, but this server has {self.settings.cache_bytes:,}; ask for fewer tokens",
                param="max_tokens",
                code="cache_exceeded",
            )
        return request

    @contextlib.asynccontextmanager
    async def answer(self, requests: Sequence[Request]) -> AsyncIterator[Answer]:
        """Give the answer to requests; what is not complete at the end is cancelled."""
        answer = Answer()
        try:
            for job in self.scheduler.submit(requests):
                self._answers[job] = answer, len(answer.jobs)
                answer.add(job)
            yield answer
        finally:
            for job in answer.jobs:
                del self._answers[job]
                self.scheduler.cancel(job)

    def stop(self) -> None:
        """End; what is not complete fails."""
        self.scheduler.stop()
        if self._store is not None:
            self._store.close()

    def _check_cache(self) -> None:
        """ConfigError unless a text of the whole context fits."""
        settings = self.settings
        size = self.scheduler.bytes_of_text(settings.context)
        if size > settings.cache_bytes:
            raise ConfigError(
                f"a text of --context {settings.context} tokens needs {size:,} bytes of caches, "
                f"but --cache-mb {settings.cache_mb} is {settings.cache_bytes:,}; give at least "
                f"--cache-mb {-(-size // MB)}, or a smaller --context"
            )

    def _prefixes(self, identity: str) -> PrefixCache:
        per_token = self.engine.session(1, self.settings.cache).memory().per_token
        return PrefixCache(self.settings.prefix_mb * MB, identity, per_token, self._store)

    def _deliver(self, events: Sequence[tuple[Job, list[Event]]]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._hand_out, events)

    def _hand_out(self, events: Sequence[tuple[Job, list[Event]]]) -> None:
        for job, found in events:
            if job in self._answers:
                answer, index = self._answers[job]
                answer.put(index, found)


def _hash(identity: str, model: Path) -> str:
    """Return a hash of that and of the files beside the weights that answers depend on."""
    whole = hashlib.sha256(identity.encode())
    for name in (TOKENIZER, GENERATION, CHAT_TEMPLATE):
        path = model / name
        whole.update(path.read_bytes() if path.exists() else b"-")
    return whole.hexdigest()
