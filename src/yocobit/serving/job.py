"""A request at work: one session reads the prompt, then each choice is written by its own."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from yocobit.engine import Engine, Sampler, Session
from yocobit.engine.detokenizer import Detokenizer
from yocobit.engine.session import CacheType
from yocobit.serving.generation import (
    Event,
    Finish,
    FinishReason,
    Logits,
    Logprob,
    Prompt,
    Request,
    Token,
    logprob,
)
from yocobit.serving.prefix_cache import Chain, Hit, PrefixCache


class Sequence:
    """One choice: a text that is being written."""

    def __init__(self, job: Job, choice: int, session: Session) -> None:
        request = job.request
        self.session = session
        self.next_token = request.prompt[-1]  # to be taken in
        self.is_over = False
        self._job = job
        self._choice = choice
        self._sampler = Sampler(request.sampling[choice], request.prompt, request.logit_bias)
        self._stream = Detokenizer(job.engine.tokenizer, request.stop)
        self._constraint = request.constraint() if request.constraint else None

    def draw(self, logits: Logits) -> None:
        """Draw the token that follows logits (V,)."""
        request, job = self._job.request, self._job
        allowed = self._constraint.apply(logits) if self._constraint else logits
        token = self._sampler.sample(allowed)
        if self._constraint:
            token = self._constraint.settle(token, request.max_tokens - len(self._stream.tokens))
        if token in job.engine.end_tokens:
            self.finish("stop")
            return
        if job.n_drawn == 0:
            job.read_at = time.monotonic()
        job.n_drawn += 1
        n = request.n_logprobs
        found = None if n is None else logprob(logits, token, n)
        job.events.append(Token(self._choice, token, self._stream.add(token), found))
        is_complete = self._constraint is not None and self._constraint.accept(token)
        if is_complete or self._stream.matched_stop is not None:
            self.finish("stop")
        elif len(self._stream.tokens) == request.max_tokens:
            self.finish("length")
        else:
            self.next_token = token

    def finish(self, reason: FinishReason) -> None:
        self.is_over = True
        self._job.finish_reason = reason
        text, stopped_at = self._stream.finish(), self._stream.matched_stop
        self._job.events.append(Finish(self._choice, reason, text, stopped_at))


class Job:
    """Where a request is. Times are of time.monotonic()."""

    def __init__(self, request: Request, engine: Engine) -> None:
        self.request = request
        self.engine = engine
        self.sequences: list[Sequence] = []
        self.events: list[Event] = []
        self.reserved_bytes = 0
        self.n_cached = 0  # tokens of the prompt that were known
        self.n_drawn = 0
        self.finish_reason: FinishReason = "stop"  # of the choice that was complete last
        self.is_writing = False
        self.is_cancelled = False
        self.is_over = False
        self.queued_at = time.monotonic()
        self.begun_at = self.read_at = self.ended_at = 0.0
        self._prompt = np.array(request.prompt, dtype=np.int32)
        self._session: Session | None = None  # reads the prompt, then writes the first choice
        self._forks: list[Session] = []  # write the others
        self._chain: Chain | None = None  # of the prompt, if prefixes are kept
        self._logprobs: list[Logprob | None] = [None]
        self._last_logits: Logits | None = None  # of the prompt, if it was scored
        self._stops: list[int] = []  # positions to keep, in order

    @property
    def deadline(self) -> float:
        return self.queued_at + self.request.timeout_s

    @property
    def scores_prompt(self) -> bool:
        """Whether all layers must read the prompt, as its own tokens' logits are asked for."""
        return self.request.n_prompt_logprobs is not None

    def begin(self, cache: CacheType, prefixes: PrefixCache | None) -> None:
        """Make the session, with what is known of the prompt; MemoryError if there is no room."""
        self.begun_at = time.monotonic()
        self._session = self.engine.session(max(1, self.request.n_tokens), cache)
        self._stops = [len(self._prompt) - 1]
        if prefixes is not None and not self.scores_prompt:
            self._chain = prefixes.chain()
            hit = prefixes.find(self._prompt, self._chain)
            if hit.state is not None:
                try:
                    self._session.restore(self._prompt[: hit.position], hit.state, hit.pieces)
                except ValueError:  # a file that another build of the engine left
                    hit = Hit()
            self.n_cached = hit.position
            stops = {hit.fork, *self._stops}
            self._stops = sorted(stop for stop in stops if stop > hit.position)
        else:
            self._stops = [stop for stop in self._stops if stop > 0]
        self._write_if_read()

    def next_part(self, rows: int) -> NDArray[np.int32]:
        """Return at most that many of the next tokens of the prompt."""
        begin = self.reader.position
        return self._prompt[begin : min(begin + rows, self._stops[0])]

    def has_read(self, prefixes: PrefixCache | None) -> None:
        """Note that a part of the prompt has been taken in."""
        if self.reader.position == self._stops[0]:
            if prefixes is not None and self._chain is not None:
                prefixes.keep(self.reader, self._chain)
            del self._stops[0]
        self._write_if_read()

    def score(self, rows: int) -> None:
        """Take in at most that many tokens of the prompt by all layers, and score those after."""
        begin = self.reader.position
        part = self._prompt[begin : begin + rows]
        logits = self.reader.feed_all(part)
        n = self.request.n_prompt_logprobs or 0
        for i, token in enumerate(self._prompt[begin + 1 : begin + len(part) + 1]):
            self._logprobs.append(logprob(logits[i], int(token), n))
        if begin + len(part) == len(self._prompt):
            self._last_logits = logits[-1].copy()
            self._stops.clear()
            self._write_if_read()

    @property
    def reader(self) -> Session:
        """The session that reads the prompt."""
        assert self._session is not None
        return self._session

    @property
    def has_to_fork(self) -> bool:
        """Whether the prompt has been read but not every choice has a session yet."""
        return not self._stops and not self.is_writing

    def fork(self) -> None:
        """Make the session of one more choice; the last one lets all begin."""
        self._forks.append(self.reader.fork())
        self._write_if_read()

    def keep(self, prefixes: PrefixCache | None) -> None:
        """Keep what was read and written for those who go on from there."""
        if prefixes is None or self._chain is None or self._session is None:
            return
        for session in (self._session, *self._forks):
            if session.position > 0:
                prefixes.keep(session, self._chain.copy())

    def let_go(self) -> None:
        """Free the sessions."""
        self._session = None
        self._forks.clear()
        self.sequences.clear()

    def take_events(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    def _write_if_read(self) -> None:
        """Begin to write once the prompt has been read and each choice has a session."""
        if self._stops or len(self._forks) < len(self.request.sampling) - 1:
            return
        self.is_writing = True
        self.events.append(Prompt(self.n_cached, self._logprobs if self.scores_prompt else ()))
        sessions = (self.reader, *self._forks)
        self.sequences = [Sequence(self, i, session) for i, session in enumerate(sessions)]
        for sequence in self.sequences:
            if self.request.max_tokens == 0:
                sequence.finish("length")
            elif self._last_logits is not None:
                sequence.draw(self._last_logits)
