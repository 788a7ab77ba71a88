"""A request in flight: one session prefills the prompt, then each choice decodes in its own.

Letters: V vocabulary
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from yocobit.engine import Engine, Session
from yocobit.engine.decode import DecodeState, FinishReason
from yocobit.engine.session import CacheType, Logits
from yocobit.serving.runtime.prefix_cache import Chain, Hit, PrefixCache
from yocobit.serving.runtime.request import (
    Event,
    Finish,
    Logprob,
    Prefilled,
    Request,
    Token,
    logprob,
)


class Sequence:
    """One choice of a request, being decoded."""

    def __init__(self, group: SequenceGroup, choice: int, session: Session) -> None:
        request = group.request
        self.session = session
        self.next_token = request.prompt[-1]  # input of the next decode step
        self.is_finished = False
        self.step_s = 0.0  # CPU time of its last step, without the engine's
        self.stepped_at = 0.0  # of time.monotonic(), if that took long
        self._group = group
        self._choice = choice
        self.state = DecodeState(
            tokenizer=group.engine.tokenizer,
            prompt=request.prompt,
            max_tokens=request.max_tokens,
            end_tokens=group.engine.end_tokens,
            stop=request.stop,
            sampling=request.sampling[choice],
            logit_bias=request.logit_bias,
            guided=request.guided() if request.guided else None,
            min_tokens=request.min_tokens,
            ignore_end=request.ignore_end,
            stop_tokens=request.stop_tokens,
            kept=request.kept,
        )

    def append(self, token: int, logits: Logits) -> None:
        """Append the token that was sampled from logits (V,), before masking."""
        group, n = self._group, self._group.request.n_logprobs
        if (generated := self.state.accept(token)) is not None:
            if group.n_generated == 0:
                group.first_token_at = time.monotonic()
            group.n_generated += 1
            self.next_token = generated.token
            found = None if n is None else logprob(logits, generated.token, n)
            piece = self.state.piece
            group.events.append(Token(self._choice, generated.token, generated.text, found, piece))
        if self.state.finish_reason is not None:
            self.finish(self.state.finish_reason)

    def finish(self, reason: FinishReason) -> None:
        """End the choice, with the text that was held back."""
        self.is_finished = True
        self._group.finish_reason = reason
        text = self.state.finish()
        self._group.events.append(
            Finish(self._choice, reason, text, self.state.matched_stop, self.state.piece)
        )


class SequenceGroup:
    """A request's progress and its sequences. Times are of time.monotonic()."""

    def __init__(self, request: Request, engine: Engine, queued_at: float) -> None:
        self.request = request
        self.engine = engine
        self.sequences: list[Sequence] = []
        self.events: list[Event] = []
        self.reserved_bytes = 0
        self.n_cached_tokens = 0  # of the prompt, found in the prefix cache
        self.n_generated = 0
        self.finish_reason: FinishReason = "stop"  # of the choice that finished last
        self.is_decoding = False
        self.is_cancelled = False
        self.is_finished = False
        self.queued_at = queued_at
        self.started_at = self.first_token_at = self.finished_at = 0.0
        self._prompt = np.array(request.prompt, dtype=np.int32)
        self._session: Session | None = None  # prefills, then decodes the first choice
        self._forks: list[Session] = []  # decode the other choices
        self._chain: Chain | None = None  # of the prompt, with a prefix cache
        self._logprobs: list[Logprob | None] = [None]
        self._last_logits: Logits | None = None  # of the prompt, if all its logits are computed
        self._checkpoints: list[int] = []  # positions where a chunk must end, ascending

    @property
    def deadline(self) -> float:
        return self.queued_at + self.request.timeout_s

    @property
    def session(self) -> Session:
        """The session that prefills the prompt."""
        assert self._session is not None
        return self._session

    @property
    def needs_all_layers(self) -> bool:
        """Whether every prompt token must run through all layers: there is no early exit then."""
        request = self.request
        return request.n_prompt_logprobs is not None or request.on_hidden_states is not None

    def start(self, cache: CacheType, prefixes: PrefixCache | None) -> None:
        """Make the session, restored from the prefix cache; MemoryError if there is no memory."""
        self.started_at = time.monotonic()
        self._session = self.engine.session(max(1, self.request.n_tokens), cache)
        self._checkpoints = [len(self._prompt) - 1]
        if prefixes is not None and not self.needs_all_layers:
            self._chain = prefixes.chain(self.request.client)
            hit = prefixes.find(self._prompt, self._chain)
            if hit.state is not None:
                try:
                    self._session.restore(self._prompt[: hit.position], hit.state, hit.pieces)
                except ValueError:  # a file that another build of the engine wrote
                    prefixes.discard(self._prompt[: hit.position], self._chain)
                    self._session = self.engine.session(max(1, self.request.n_tokens), cache)
                    hit = Hit()
            self.n_cached_tokens = hit.position
            checkpoints = {hit.branch_point, *self._checkpoints}
            self._checkpoints = sorted(at for at in checkpoints if at > hit.position)
        else:
            self._checkpoints = [at for at in self._checkpoints if at > 0]
        self._decode_if_prefilled()

    def next_chunk(self, n_tokens: int) -> NDArray[np.int32]:
        """Return the next tokens of the prompt to prefill, at most `n_tokens`."""
        start = self.session.position
        return self._prompt[start : min(start + n_tokens, self._checkpoints[0])]

    def finish_chunk(self, prefixes: PrefixCache | None) -> None:
        """Record that a chunk has been prefilled; cache the prefix at a checkpoint."""
        if self.session.position == self._checkpoints[0]:
            if prefixes is not None and self._chain is not None:
                prefixes.store(self.session, self._chain)
            del self._checkpoints[0]
        self._decode_if_prefilled()

    def prefill_all_layers(self, n_tokens: int) -> None:
        """Prefill at most `n_tokens` through all layers: for prompt logprobs or hidden states."""
        start = self.session.position
        chunk = self._prompt[start : start + n_tokens]
        if self.request.on_hidden_states is not None:
            self.request.on_hidden_states(self.session.hidden_states(chunk))
        else:
            self._add_logprobs(start, self.session.feed_all(chunk))
        if start + len(chunk) == len(self._prompt):
            self._checkpoints.clear()
            self._decode_if_prefilled()

    @property
    def needs_fork(self) -> bool:
        """Whether the prompt has been prefilled but some choice has no session yet."""
        return not self._checkpoints and not self.is_decoding

    def fork(self) -> None:
        """Make the session of one more choice; after the last one, decoding starts."""
        self._forks.append(self.session.fork())
        self._decode_if_prefilled()

    def store_prefixes(self, prefixes: PrefixCache | None) -> None:
        """Cache the prompt and the generated tokens, for requests that continue them."""
        if prefixes is None or self._chain is None or self._session is None:
            return
        for session in (self._session, *self._forks):
            if session.position > 0:
                prefixes.store(session, self._chain.copy())

    def release(self) -> None:
        """Free the sessions."""
        self._session = None
        self._forks.clear()
        self.sequences.clear()

    def take_events(self) -> list[Event]:
        """Return the events since the last call."""
        events, self.events = self.events, []
        return events

    def _add_logprobs(self, start: int, logits: Logits) -> None:
        """Add the logprob of the token that follows each of a chunk's, under logits (T, V)."""
        n = self.request.n_prompt_logprobs or 0
        for i, token in enumerate(self._prompt[start + 1 : start + len(logits) + 1]):
            self._logprobs.append(logprob(logits[i], int(token), n))
        self._last_logits = logits[-1].copy()

    def _decode_if_prefilled(self) -> None:
        """Start decoding once the prompt has been prefilled and each choice has a session."""
        if self._checkpoints or len(self._forks) < len(self.request.sampling) - 1:
            return
        self.is_decoding = True
        logprobs = () if self.request.n_prompt_logprobs is None else self._logprobs
        self.events.append(Prefilled(self.n_cached_tokens, logprobs))
        sessions = (self.session, *self._forks)
        self.sequences = [Sequence(self, i, session) for i, session in enumerate(sessions)]
        for sequence in self.sequences:
            if self.request.max_tokens == 0:
                sequence.finish("length")
            elif (logits := self._last_logits) is not None:
                token = sequence.state.sampler.sample(sequence.state.mask(logits))
                sequence.append(token, logits)
