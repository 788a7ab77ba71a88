"""What the server is asked to generate, and what comes of it, as the scheduler sees both."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from yocobit.engine import SamplingConfig

Logits = NDArray[np.float32]
FinishReason = Literal["stop", "length"]


class Constraint(Protocol):
    """What an answer must look like, token by token."""

    def apply(self, logits: Logits) -> Logits:
        """Return logits (V,) in which tokens that must not follow are -infinity."""

    def settle(self, token: int, left: int) -> int:
        """Return the token that follows when `token` was drawn and `left` fit, it included."""

    def accept(self, token: int) -> bool:
        """Take in the token that follows; return whether the answer is complete."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt and how to go on from it."""

    prompt: tuple[int, ...]
    max_tokens: int  # of each choice
    sampling: tuple[SamplingConfig, ...]  # one a choice
    stop: tuple[str, ...] = ()
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    n_logprobs: int | None = None  # alternatives with each drawn token; None: no logprobs
    n_prompt_logprobs: int | None = None  # the same with each token of the prompt
    constraint: Callable[[], Constraint] | None = None  # makes one for each choice
    client: str = ""  # who asks; clients take turns
    timeout_s: float = 600.0

    @property
    def n_tokens(self) -> int:
        """Positions that a choice may need."""
        return len(self.prompt) + self.max_tokens


@dataclasses.dataclass(frozen=True)
class Logprob:
    """Log-probability of a token in its place, and of the likeliest there."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Event: the prompt has been taken in."""

    cached_tokens: int
    logprobs: Sequence[Logprob | None] = ()  # if they were asked for; None for the first token


@dataclasses.dataclass(frozen=True)
class Token:
    """Event: a token was drawn, and this much more of the text is certain."""

    choice: int
    token: int
    text: str
    logprob: Logprob | None = None


@dataclasses.dataclass(frozen=True)
class Finish:
    """Event: a choice is complete; `text` is what was held back."""

    choice: int
    reason: FinishReason
    text: str
    stopped_at: str | None = None  # the stop text


@dataclasses.dataclass(frozen=True)
class Failure:
    """Event: nothing more will come."""

    error: Exception


Event = Prompt | Token | Finish | Failure


def logprob(logits: Logits, token: int, n: int) -> Logprob:
    """Return the log-probability of a token after logits (V,), and those of the n likeliest."""
    scores = logits.astype(np.float64)
    scores -= scores.max()
    scores -= np.log(np.exp(scores).sum())
    top = np.argpartition(-scores, min(n, len(scores) - 1))[:n] if n else np.empty(0, dtype=int)
    top = top[np.lexsort((top, -scores[top]))]
    return Logprob(token, float(scores[token]), tuple((int(t), float(scores[t])) for t in top))
