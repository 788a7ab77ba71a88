"""Generation: prefill a prompt, then sample token after token, as an iterator over text."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer

from yocobit.engine.decode import DecodeState, FinishReason
from yocobit.engine.sampling import SamplingConfig
from yocobit.engine.session import Session, SessionMemory


class Generation:
    """An iterator over pieces of text, with its finish reason and timings."""

    def __init__(
        self,
        *,
        session: Session,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        max_tokens: int,
        end_tokens: frozenset[int],
        stop: tuple[str, ...],
        sampling: SamplingConfig,
    ) -> None:
        self.prompt = list(prompt)
        self.text = ""  # of the pieces so far
        self.prefill_s = 0.0
        self.decode_s = 0.0  # of all tokens after the first
        self.sampling = sampling
        self._session = session
        self._n_cached = session.position  # tokens of the prompt that the session holds
        self._state = DecodeState(
            tokenizer=tokenizer,
            prompt=self.prompt,
            max_tokens=max_tokens,
            end_tokens=end_tokens,
            stop=stop,
            sampling=sampling,
        )
        self._pieces = self._run()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        piece = next(self._pieces)
        self.text += piece
        return piece

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the text ended: "stop" or "length"; None while generation runs."""
        return self._state.finish_reason

    @property
    def tokens(self) -> list[int]:
        """The tokens generated so far, without an EOS token."""
        return self._state.tokens

    @property
    def n_prefilled(self) -> int:
        """Number of tokens of the prompt that were not cached."""
        return len(self.prompt) - self._n_cached

    @property
    def n_decode_steps(self) -> int:
        """Number of tokens that were decoded after the first one."""
        return self._session.position - len(self.prompt)

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prefill speed, without cached tokens of the prompt."""
        return self.n_prefilled / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """Decode speed, from the second token on."""
        return self.n_decode_steps / self.decode_s if self.decode_s else 0.0

    def memory(self) -> SessionMemory:
        """Return the memory reserved for the session."""
        return self._session.memory()

    def _run(self) -> Iterator[str]:
        started = time.perf_counter()
        logits = self._session.feed(self.prompt[self._n_cached :])  # (V,), reused by every step
        self.prefill_s = time.perf_counter() - started
        while True:
            token = self._state.sampler.sample(logits)
            if (generated := self._state.accept(token)) and generated.text:
                yield generated.text
            if self.finish_reason is not None:
                break
            started = time.perf_counter()
            self._session.step(token, out=logits)
            self.decode_s += time.perf_counter() - started
        if rest := self._state.finish():
            yield rest
