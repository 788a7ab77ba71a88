"""Generation requests and the events they produce, as the scheduler sees both.

Letters: T positions   V vocabulary   C model width
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from yocobit.engine import SamplingConfig
from yocobit.engine.decode import FinishReason, GuidedDecoding
from yocobit.engine.session import Logits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt and how to continue it."""

    prompt: tuple[int, ...]
    max_tokens: int  # of each choice
    sampling: tuple[SamplingConfig, ...]  # one per choice
    stop: tuple[str, ...] = ()
    stop_tokens: frozenset[int] = frozenset()  # next to the model's EOS tokens
    kept: frozenset[str | int] = frozenset()  # stop strings and tokens that stay in the text
    min_tokens: int = 0  # before which nothing ends the text
    ignore_end: bool = False  # never sample the model's EOS tokens
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    n_logprobs: int | None = None  # alternatives per generated token; None: no logprobs
    n_prompt_logprobs: int | None = None  # the same per prompt token
    # Called in the scheduler's thread with the hidden states (T, C) after the final norm of each
    # prompt chunk, in order; requires max_tokens 0.
    on_hidden_states: Callable[[NDArray[np.float32]], None] | None = None
    guided: Callable[[], GuidedDecoding] | None = None  # makes the state of one choice
    n_shared_tokens: int = 0  # of the prompt that other conversations share; 0: not known
    cache_salt: str = ""  # only requests with the same salt share cached prefixes
    client: str = ""  # API key or address; clients are scheduled round-robin
    timeout_s: float = 600.0

    def until_complete(self) -> Request:
        """Return the request without stop strings and tokens: its structured output ends it.

        The output may contain a string that otherwise ends the model's turn.
        """
        return dataclasses.replace(self, stop=(), stop_tokens=frozenset(), kept=frozenset())

    @property
    def n_tokens(self) -> int:
        """Positions that a choice may need."""
        return len(self.prompt) + self.max_tokens


@dataclasses.dataclass(frozen=True)
class Logprob:
    """Log-probability of a token at its position, and of the most probable tokens there."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    text: str = ""  # of the token, certain or held back
    is_open: bool = False  # whether the token ends inside a character; a later one has its text


@dataclasses.dataclass(frozen=True)
class Prefilled:
    """Event: the prompt has been prefilled."""

    n_cached_tokens: int
    logprobs: Sequence[Logprob | None] = ()  # if requested; None for the first token


@dataclasses.dataclass(frozen=True)
class Token:
    """Event: a token was generated, and this text became certain."""

    choice: int
    token: int
    text: str
    logprob: Logprob | None = None


@dataclasses.dataclass(frozen=True)
class Finish:
    """Event: a choice is complete; `text` was held back until now."""

    choice: int
    reason: FinishReason
    text: str
    matched_stop: str | None = None  # the stop string
    rest: str = ""  # the end of `text` that is an incomplete character


@dataclasses.dataclass(frozen=True)
class Failure:
    """Event: the request failed; no event follows."""

    error: Exception


Event = Prefilled | Token | Finish | Failure


def logprob(logits: Logits, token: int, n: int) -> Logprob:
    """Return the log-probability of a token under logits (V,), and those of the top n tokens."""
    scores = logits.astype(np.float64)
    scores -= scores.max()
    scores -= np.log(np.exp(scores).sum())
    top = np.argpartition(-scores, min(n, len(scores) - 1))[:n] if n else np.empty(0, dtype=int)
    top = top[np.lexsort((top, -scores[top]))]
    return Logprob(token, float(scores[token]), tuple((int(t), float(scores[t])) for t in top))
