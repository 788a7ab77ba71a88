"""Generation: tokens drawn one after the other, turned into text as soon as it is certain."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Literal

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from yocobit.engine.sampling import Sampler, SamplingConfig
from yocobit.engine.session import Session


class Generation:
    """An iterator over pieces of text; when it ends, the attributes say how it went.

    The pieces joined are the text. A piece never splits a character, and never shows text that
    may turn out to be part of a stop text.
    """

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
        self.tokens: list[int] = []  # drawn, without the end token
        self.text = ""  # of the pieces so far
        self.finish_reason: Literal["stop", "length"] | None = None
        self.prefill_s = 0.0  # taking in the prompt
        self.decode_s = 0.0  # all tokens after the first
        self._session = session
        self._n_known = session.position  # tokens of the prompt that it holds already
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._end_tokens = end_tokens
        self._stop = stop
        self._stopped_at_text = False
        self._sampler = Sampler(sampling)
        self._pieces = self._run()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        piece = next(self._pieces)
        self.text += piece
        return piece

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
        seen = list(self.prompt)
        decoder, text, held = DecodeStream(skip_special_tokens=True), "", ""
        while self.finish_reason is None:
            token = self._sampler.draw(logits, seen)
            if token in self._end_tokens:
                self.finish_reason = "stop"
                break
            self.tokens.append(token)
            seen.append(token)
            piece = decoder.step(self._tokenizer, token) or ""
            text += piece
            certain, held = self._split(held + piece)
            if certain:
                yield certain
            if self.finish_reason is None and len(self.tokens) == self._max_tokens:
                self.finish_reason = "length"
            if self.finish_reason is None:
                begin = time.perf_counter()
                self._session.step(token, out=logits)
                self.decode_s += time.perf_counter() - begin
        # What was held back was no stop text after all; bytes of half a character come out too.
        whole: str = self._tokenizer.decode(self.tokens, skip_special_tokens=True)
        if not self._stopped_at_text and (rest := held + whole[len(text) :]):
            yield rest

    def _split(self, text: str) -> tuple[str, str]:
        """Split text into what can be shown and what may be the begin of a stop text."""
        found = [text.find(stop) for stop in self._stop if stop in text]
        if found:
            self.finish_reason = "stop"
            self._stopped_at_text = True
            return text[: min(found)], ""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:length]):
                    longest = length
                    break
        return text[: len(text) - longest], text[len(text) - longest :]
