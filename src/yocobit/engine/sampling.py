"""From logits to the next token.

Letters: V vocabulary
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from yocobit.config import check_types, require


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How tokens are drawn. Filters apply in the order of the fields, after the penalty."""

    repetition_penalty: float = 1.0  # divides positive logits of seen tokens, multiplies others
    temperature: float = 0.8  # 0 takes the likeliest token
    top_k: int = 0  # this many likeliest tokens; 0 keeps all
    top_p: float = 1.0  # the fewest tokens whose probabilities reach this sum
    min_p: float = 0.0  # tokens at least this times as likely as the likeliest
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        require(
            0.01 <= self.repetition_penalty <= 100,
            self,
            "repetition_penalty",
            "must be between 0.01 and 100",
        )
        require(0 <= self.temperature <= 100, self, "temperature", "must be between 0 and 100")
        require(self.top_k >= 0, self, "top_k", "must be at least 0")
        require(0 < self.top_p <= 1, self, "top_p", "must be above 0 and at most 1")
        require(0 <= self.min_p <= 1, self, "min_p", "must be between 0 and 1")
        require(self.seed >= 0, self, "seed", "must be at least 0")


class Sampler:
    """Draws tokens; the same config and logits give the same tokens."""

    def __init__(self, config: SamplingConfig) -> None:
        self.config = config
        self.random = np.random.default_rng(config.seed)

    def draw(self, logits: NDArray[np.float32], seen: Sequence[int] = ()) -> int:
        """Return the next token after logits (V,); `seen` are the tokens of the text so far."""
        scores = logits.astype(np.float64)
        if self.config.repetition_penalty != 1 and len(seen) > 0:
            repeated = np.unique(np.asarray(seen))
            penalty = self.config.repetition_penalty
            found = scores[repeated]
            scores[repeated] = np.where(found > 0, found / penalty, found * penalty)
        if self.config.temperature == 0:
            return int(scores.argmax())
        tokens, probabilities = self._candidates(scores / self.config.temperature)
        position = self.random.random() * probabilities.sum()
        index = np.searchsorted(probabilities.cumsum(), position, side="right")
        return int(tokens[min(int(index), len(tokens) - 1)])

    def _candidates(
        self, scores: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the tokens that the filters keep, likeliest first, and their weights."""
        config = self.config
        if 0 < config.top_k < len(scores):
            # Everything that ties with the last one is sorted too, so that ties go by token.
            smallest = np.partition(scores, -config.top_k)[-config.top_k]
            tokens = np.flatnonzero(scores >= smallest)
        else:
            tokens = np.arange(len(scores))
        tokens = tokens[np.argsort(-scores[tokens], kind="stable")]
        if config.top_k > 0:
            tokens = tokens[: config.top_k]
        weights = np.exp(scores[tokens] - scores[tokens[0]])
        weights /= weights.sum()
        kept = len(tokens)
        if config.top_p < 1:
            kept = int(np.searchsorted(weights.cumsum(), config.top_p, side="left")) + 1
        if config.min_p > 0:
            kept = min(kept, int((weights >= config.min_p * weights[0]).sum()))
        return tokens[:kept], weights[:kept]
