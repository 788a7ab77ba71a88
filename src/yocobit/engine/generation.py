"""Generation: tokens drawn one after the other, turned into text as soon as it is certain."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Literal

from tokenizers import Tokenizer

from yocobit.engine.sampling import Sampler, SamplingConfig
from yocobit.engine.session import Session
from yocobit.engine.text_stream import TextStream


class Generation:
    """An iterator over pieces of text; when it ends, the attributes say how it went."""

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
        self.finish_reason: Literal["stop", "length"] | None = None
        self.prefill_s = 0.0  # taking in the prompt
        self.decode_s = 0.0  # all tokens after the first
        self._session = session
        self._n_known = session.position  # tokens of the prompt that it holds already
        self._max_tokens = max_tokens
        self._end_tokens = end_tokens
        self._stream = TextStream(tokenizer, stop)
        self._sampler = Sampler(sampling, self.prompt)
        self._pieces = self._run()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        piece = next(self._pieces)
        self.text += piece
        return piece

    @property
    def tokens(self) -> list[int]:
        """The tokens drawn so far, without the end token."""
        return self._stream.tokens

    @property
    def prefill_tokens_per_s(self) -> float:
        new = len(self.prompt) - self._n_known
        return new / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        steps = self._session.position - len(self.prompt)
        return steps / self.decode_s if self.decode_s else 0.0

    def _run(self) -> Iterator[str]:
        begin = time.perf_counter()
        logits = self._session.feed(
            self.prompt[self._n_known :]
        )  # the one array for those of all tokens
        self.prefill_s = time.perf_counter() - begin
        while self.finish_reason is None:
            token = self._sampler.draw(logits)
            if token in self._end_tokens:
                self.finish_reason = "stop"
                break
            if piece := self._stream.add(token):
                yield piece
            if self._stream.stopped_at is not None:
                self.finish_reason = "stop"
            elif len(self.tokens) == self._max_tokens:
                self.finish_reason = "length"
            else:
                begin = time.perf_counter()
                self._session.step(token, out=logits)
                self.decode_s += time.perf_counter() - begin
        if rest := self._stream.finish():
            yield rest
