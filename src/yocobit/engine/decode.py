"""The decode state of one sequence: sampling, structured output, detokenisation, stop conditions.

The engine's own loop (generation.py) and the server's scheduler both use it. Each step masks the
logits of every running sequence (`mask`), samples one token per sequence (`sample_batch`) and
appends it (`accept`).

Letters: V vocabulary
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, Protocol

import numpy as np
from tokenizers import Tokenizer

from yocobit.engine.sampling import Sampler, SamplingConfig
from yocobit.engine.session import Logits
from yocobit.text import Detokenizer

FinishReason = Literal["stop", "length"]


class GuidedDecoding(Protocol):
    """Structured output: the grammar state of one sequence."""

    def mask(self, logits: Logits) -> Logits:
        """Return logits (V,) with -infinity for every token that the grammar does not allow."""

    def force_completion(self, token: int, n_left: int) -> int:
        """Return `token`, or a token that leads to completion if `token` would not.

        `n_left` is the number of tokens left, `token` included.
        """

    def accept(self, token: int) -> bool:
        """Append a token; return whether the output is complete."""


@dataclasses.dataclass(frozen=True)
class Generated:
    """An appended token, and the text that is final after it."""

    token: int
    text: str


class DecodeState:
    """One sequence in decode; `finish_reason` is None until the sequence is complete."""

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        max_tokens: int,
        end_tokens: frozenset[int],
        stop: Sequence[str],
        sampling: SamplingConfig,
        logit_bias: Mapping[int, float] | None = None,
        guided: GuidedDecoding | None = None,
        min_tokens: int = 0,
        ignore_end: bool = False,
        stop_tokens: frozenset[int] = frozenset(),
        kept: Collection[str | int] = (),
    ) -> None:
        """Start after a prompt.

        EOS tokens, `stop_tokens` and stop strings have no effect before `min_tokens`; `ignore_end`
        excludes the EOS tokens. `kept` are the stop strings and tokens that stay in the text.
        """
        self.finish_reason: FinishReason | None = None
        self.max_tokens = max_tokens
        self.sampler = Sampler(sampling, prompt, logit_bias)
        self._end_tokens = end_tokens
        self._stop_tokens = stop_tokens
        self._kept = frozenset(kept)
        self._min_tokens = min_tokens
        self._stop = stop
        self._excluded = sorted(end_tokens) if ignore_end else []
        self._detokenizer = Detokenizer(
            tokenizer,
            () if min_tokens else stop,
            prompt,
            [text for text in self._kept if isinstance(text, str)],
        )
        self._guided = guided

    @property
    def tokens(self) -> list[int]:
        """The generated tokens, without an EOS token."""
        return self._detokenizer.tokens

    @property
    def matched_stop(self) -> str | None:
        """The stop string that ended the text, if one did."""
        return self._detokenizer.matched_stop

    @property
    def piece(self) -> str:
        """The text of the last token, final or held back; after `finish`, the held-back text."""
        return self._detokenizer.piece

    @property
    def is_open(self) -> bool:
        """Whether the last token ends inside a character."""
        return self._detokenizer.is_open

    def mask(self, logits: Logits) -> Logits:
        """Return the logits (V,) to sample from: masked by the grammar and the end conditions."""
        masked = self._guided.mask(logits) if self._guided else logits
        excluded = self._excluded
        if len(self.tokens) < self._min_tokens:
            excluded = sorted(self._end_tokens | self._stop_tokens)
        if excluded:
            masked = masked.copy()
            masked[excluded] = -np.inf
        return masked

    def accept(self, token: int) -> Generated | None:
        """Append the sampled token, or the token that the grammar requires instead.

        None for an end or stop token that is not part of the text. Sets `finish_reason` if the
        sequence is complete.
        """
        if self._guided is not None:
            token = self._guided.force_completion(token, self.max_tokens - len(self.tokens))
        is_stop = token in self._stop_tokens
        if (token in self._end_tokens or is_stop) and token not in self._kept:
            self.finish_reason = "stop"
            return None
        text = self._detokenizer.add(token)
        is_complete = self._guided is not None and self._guided.accept(token)
        if is_complete or is_stop or self.matched_stop is not None:
            self.finish_reason = "stop"
        elif len(self.tokens) == self.max_tokens:
            self.finish_reason = "length"
        elif len(self.tokens) == self._min_tokens:
            self._detokenizer.stop_at(self._stop)
        return Generated(token, text)

    def finish(self) -> str:
        """Return the held-back text; call it once the sequence is complete."""
        return self._detokenizer.finish()
