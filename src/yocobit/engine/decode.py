"""The decode loop's state for one sequence: sampling, structured output, detokenisation and stop
conditions. The engine's own loop (generation.py) and the server's scheduler both use it.

Each step masks the logits of every running sequence (`mask`), samples one token per sequence
(`sample_batch`) and appends it (`accept`).

Letters: V vocabulary
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

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
    """An appended token, and the text that became certain with it."""

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
    ) -> None:
        self.finish_reason: FinishReason | None = None
        self.max_tokens = max_tokens
        self.sampler = Sampler(sampling, prompt, logit_bias)
        self._end_tokens = end_tokens
        self._detokenizer = Detokenizer(tokenizer, stop, prompt)
        self._guided = guided

    @property
    def tokens(self) -> list[int]:
        """The generated tokens, without an end token."""
        return self._detokenizer.tokens

    @property
    def matched_stop(self) -> str | None:
        """The stop string that ended the text, if one did."""
        return self._detokenizer.matched_stop

    def mask(self, logits: Logits) -> Logits:
        """Return the logits (V,) to sample from: masked by the grammar, if any."""
        return self._guided.mask(logits) if self._guided else logits

    def accept(self, token: int) -> Generated | None:
        """Append the sampled token, or the token that the grammar requires instead.

        None for an end token, which is not part of the text. Sets `finish_reason` if the sequence
        is complete.
        """
        if self._guided is not None:
            token = self._guided.force_completion(token, self.max_tokens - len(self.tokens))
        if token in self._end_tokens:
            self.finish_reason = "stop"
            return None
        text = self._detokenizer.add(token)
        is_complete = self._guided is not None and self._guided.accept(token)
        if is_complete or self.matched_stop is not None:
            self.finish_reason = "stop"
        elif len(self.tokens) == self.max_tokens:
            self.finish_reason = "length"
        return Generated(token, text)

    def finish(self) -> str:
        """Return the held-back text; call it once the sequence is complete."""
        return self._detokenizer.finish()
