"""A request in flight: one session prefills the prompt, then each choice decodes in its own.

A preempted request loses only its sessions. It keeps its generated tokens and the state of its
samplers, grammars and texts. `start` makes the sessions again; by the engine's contract, the
request then continues with the same bits.

Letters: T positions   V vocabulary
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque

import numpy as np
from numpy.typing import NDArray

from yocobit.engine import Engine, Session
from yocobit.engine.decode import DecodeState, FinishReason
from yocobit.engine.session import CacheType, Logits
from yocobit.serving.errors import APIError
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
        self._session: Session | None = session  # None while the request is preempted
        self.next_token = request.prompt[-1]  # input of the next decode step
        self.is_finished = False
        self.step_s = 0.0  # CPU time of its last step, without the engine's
        self.stepped_at = 0.0  # time.monotonic() of its last slow step
        self._group = group
        self._choice = choice
        self._n_prompt = len(request.prompt)
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

    @property
    def session(self) -> Session:
        assert self._session is not None
        return self._session

    @session.setter
    def session(self, session: Session | None) -> None:
        self._session = session

    def append(self, token: int, logits: Logits) -> None:
        """Append the token that was sampled from logits (V,), before masking."""
        group, n = self._group, self._group.request.n_logprobs
        if (generated := self.state.accept(token)) is not None:
            if group.n_generated == 0:
                group.first_token_at = time.monotonic()
            group.n_generated += 1
            group.n_positions = max(group.n_positions, self._n_prompt + len(self.state.tokens))
            self.next_token = generated.token
            found = None
            if n is not None:
                found = dataclasses.replace(
                    logprob(logits, generated.token, n),
                    text=self.state.piece,
                    is_open=self.state.is_open,
                )
            group.events.append(Token(self._choice, generated.token, generated.text, found))
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


@dataclasses.dataclass
class Prefill:
    """Tokens that a session consumes before it decodes."""

    session: Session
    tokens: NDArray[np.int32]  # (T,)
    stops: list[int]  # positions where a chunk must end, ascending; the prefill ends at the last
    chain: Chain | None = None  # of the tokens, with a prefix cache


class SequenceGroup:
    """A request's progress and its sequences. Times are of time.monotonic()."""

    def __init__(self, request: Request, engine: Engine, queued_at: float) -> None:
        self.request = request
        self.engine = engine
        self.number = 0  # by order of submission
        self.sequences: list[Sequence] = []
        self.events: list[Event] = []
        self.n_positions = len(request.prompt)  # tokens of the prompt and of the longest choice
        self.reserved_tokens = 0  # positions of each choice
        self.reserved_bytes = 0
        self.n_cached_tokens = 0  # of the prompt, found in the prefix cache
        self.n_generated = 0
        self.n_preemptions = 0
        self.finish_reason: FinishReason = "stop"  # of the choice that finished last
        self.outcome = ""  # once finished: a finish reason, "cancelled" or the status of an error
        self.failure: APIError | None = None
        self.is_decoding = False
        self.is_cancelled = False
        self.is_finished = False
        self.queued_at = queued_at
        self.started_at = self.first_token_at = self.finished_at = 0.0
        self._prompt = np.array(request.prompt, dtype=np.int32)
        self._prefills: deque[Prefill] = deque()
        self._sessions: list[Session] = []  # of the choices; the first prefills the prompt
        self._chain: Chain | None = None  # of the prompt, with a prefix cache
        self._n_through_all_layers = 0  # prompt tokens whose logprobs or hidden states are known
        self._logprobs: list[Logprob | None] = [None]
        self._last_logits: Logits | None = None  # of the prompt, if all its logits are computed

    @property
    def deadline(self) -> float:
        return self.queued_at + self.request.timeout_s

    @property
    def session(self) -> Session:
        """The session that prefills."""
        return self._prefills[0].session

    @property
    def needs_all_layers(self) -> bool:
        """Whether the next prompt tokens run through all layers: there is no early exit then."""
        return (
            self._uses_all_layers
            and self._n_through_all_layers < len(self._prompt)
            and not self._prefills[0].stops
        )

    @property
    def _uses_all_layers(self) -> bool:
        request = self.request
        return request.n_prompt_logprobs is not None or request.on_hidden_states is not None

    def start(self, cache: CacheType, prefixes: PrefixCache | None) -> None:
        """Make the sessions, restored from the prefix cache; MemoryError if there is no memory.

        At first one for the prompt; after a preemption in decode, one for each unfinished choice.
        """
        is_first = self.started_at == 0
        if is_first:
            self.started_at = time.monotonic()
        if not self.sequences:
            prefill = self._prefill(self._prompt, cache, prefixes)
            if is_first:
                self.n_cached_tokens = prefill.session.position
        for sequence in self.sequences:
            if not sequence.is_finished:
                tokens = [*self.request.prompt, *sequence.state.tokens]
                prefill = self._prefill(np.array(tokens, dtype=np.int32), cache, prefixes)
                sequence.session = prefill.session
        self._decode_if_prefilled()

    def _prefill(
        self, tokens: NDArray[np.int32], cache: CacheType, prefixes: PrefixCache | None
    ) -> Prefill:
        """Add a prefill of tokens (T,) but the last, the input of the next decode step."""
        session = self.engine.session(max(1, self.request.n_tokens), cache)
        prefill = Prefill(session, tokens, [])
        stops, end = set[int](), len(tokens) - 1
        if self._uses_all_layers:
            end = end if self.sequences else self._n_through_all_layers
        elif prefixes is not None:
            prefill.chain = prefixes.chain(self.request.client, self.request.cache_salt)
            hit = prefixes.find(tokens, prefill.chain)
            if hit.state is not None:
                try:
                    session.restore(tokens[: hit.position], hit.state, hit.pieces)
                except ValueError:  # a file that another build of the engine wrote
                    prefixes.discard(tokens[: hit.position], prefill.chain)
                    prefill.session = self.engine.session(max(1, self.request.n_tokens), cache)
                    hit = Hit()
            stops = {hit.branch_point, self.request.n_shared_tokens}
            self._chain = self._chain or prefill.chain
        at = prefill.session.position
        prefill.stops = sorted(stop for stop in {*stops, end} if at < stop <= end)
        self._sessions.append(prefill.session)
        self._prefills.append(prefill)
        return prefill

    def next_chunk(self, n_tokens: int) -> NDArray[np.int32]:
        """Return the next tokens to prefill, at most `n_tokens`, for `session`."""
        prefill = self._prefills[0]
        start = prefill.session.position
        return prefill.tokens[start : min(start + n_tokens, prefill.stops[0])]

    def finish_chunk(self, prefixes: PrefixCache | None) -> None:
        """Record that a chunk has been prefilled; cache the prefix where one may be reused."""
        prefill = self._prefills[0]
        if prefill.session.position == prefill.stops[0]:
            if prefixes is not None and prefill.chain is not None:
                prefixes.store(prefill.session, prefill.chain)
            del prefill.stops[0]
        self._decode_if_prefilled()

    def prefill_all_layers(self, n_tokens: int) -> None:
        """Prefill at most `n_tokens` through all layers: for prompt logprobs or hidden states."""
        start = self.session.position
        chunk = self._prompt[start : start + n_tokens]
        if self.request.on_hidden_states is not None:
            self.request.on_hidden_states(self.session.hidden_states(chunk))
        else:
            self._add_logprobs(start, self.session.feed_all(chunk))
        self._n_through_all_layers += len(chunk)
        self._decode_if_prefilled()

    @property
    def needs_fork(self) -> bool:
        """Whether the prompt has been prefilled but some choice has no session yet."""
        return not self._prefills and not self.is_decoding

    def fork(self) -> None:
        """Make the session of one more choice; after the last one, decoding starts."""
        self._sessions.append(self._sessions[0].fork())
        self._decode_if_prefilled()

    def store_prefixes(self, prefixes: PrefixCache | None) -> None:
        """Cache the prompt and the generated tokens, for requests that continue them."""
        if prefixes is None or self._chain is None:
            return
        for session in self._sessions:
            if session.position > 0:
                prefixes.store(session, self._chain.copy())

    def release(self) -> None:
        """Free the sessions and the state of the choices."""
        self._free_sessions()
        self.sequences.clear()

    def preempt(self) -> None:
        """Free the sessions until the next `start`; the choices keep their state."""
        self._free_sessions()
        self.is_decoding = False
        self.n_preemptions += 1

    def _free_sessions(self) -> None:
        self._sessions.clear()
        self._prefills.clear()
        for sequence in self.sequences:
            sequence.session = None

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
        """Start decoding once all prefills are complete and each choice has a session."""
        while self._prefills and not self._prefills[0].stops and not self.needs_all_layers:
            self._prefills.popleft()
        is_resumed = bool(self.sequences)
        if self._prefills or (not is_resumed and len(self._sessions) < len(self.request.sampling)):
            return
        self.is_decoding = True
        if is_resumed:
            return
        logprobs = () if self.request.n_prompt_logprobs is None else self._logprobs
        self.events.append(Prefilled(self.n_cached_tokens, logprobs))
        self.sequences = [Sequence(self, i, session) for i, session in enumerate(self._sessions)]
        for sequence in self.sequences:
            if self.request.max_tokens == 0:
                sequence.finish("length")
            elif (logits := self._last_logits) is not None:
                token = sequence.state.sampler.sample(sequence.state.mask(logits))
                sequence.append(token, logits)
