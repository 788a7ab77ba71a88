"""Sampling: from logits to the next token.

Letters: N sequences   V vocabulary
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from yocobit import _native
from yocobit.config import check_types, require


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Sampling parameters. Filters apply in the order of the fields, after the penalties."""

    repetition_penalty: float = 1.0  # divides positive logits of seen tokens, multiplies others
    presence_penalty: float = 0.0  # subtracted once from the logit of each generated token
    frequency_penalty: float = 0.0  # subtracted for each occurrence of a generated token
    temperature: float = 0.8  # 0 is greedy: argmax, ties broken by token id
    top_k: int = 0  # number of most probable tokens to keep; 0 keeps all
    top_p: float = 1.0  # nucleus: the fewest tokens whose probabilities reach this sum
    min_p: float = 0.0  # least probability to keep, as a fraction of the largest
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        require(
            0.01 <= self.repetition_penalty <= 100,
            self,
            "repetition_penalty",
            "must be between 0.01 and 100",
        )
        for name in ("presence_penalty", "frequency_penalty"):
            require(-2 <= getattr(self, name) <= 2, self, name, "must be between -2 and 2")
        require(0 <= self.temperature <= 100, self, "temperature", "must be between 0 and 100")
        require(self.top_k >= 0, self, "top_k", "must be at least 0")
        require(0 < self.top_p <= 1, self, "top_p", "must be above 0 and at most 1")
        require(0 <= self.min_p <= 1, self, "min_p", "must be between 0 and 1")
        require(self.seed >= 0, self, "seed", "must be at least 0")


class Sampler:
    """Samples the tokens of one sequence; the same parameters and logits give the same tokens."""

    def __init__(
        self,
        config: SamplingConfig,
        prompt: Sequence[int] = (),
        logit_bias: Mapping[int, float] | None = None,
    ) -> None:
        """Start after a prompt; `logit_bias` is added to the logits of the given token ids."""
        self.config = config
        self._random = np.random.default_rng(config.seed)
        self._drawer = _native.TokenDrawer()
        self._prompt = set(prompt) if config.repetition_penalty != 1 else set()
        self._generated: Counter[int] = Counter()
        bias = logit_bias or {}
        self._biased = np.array(list(bias), dtype=np.int64)
        self._bias = np.array(list(bias.values()), dtype=np.float32)

    def sample(self, logits: NDArray[np.float32]) -> int:
        """Return the next token after logits (V,), which are not changed."""
        (token,) = sample_batch([self], [logits])
        return token

    def draw(self, logits: NDArray[np.float32]) -> int:
        """Return `sample(logits)`: the former name of that method, which goes away in 0.2."""
        return self.sample(logits)

    def _adjusted(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits with bias and penalties."""
        config = self.config
        counts = config.presence_penalty != 0 or config.frequency_penalty != 0
        if config.repetition_penalty == 1 and not counts and not len(self._biased):
            return logits
        logits = logits.copy()
        if config.repetition_penalty != 1:
            seen = np.fromiter(self._prompt | self._generated.keys(), dtype=np.int64)
            found, penalty = logits[seen], np.float32(config.repetition_penalty)
            logits[seen] = np.where(found > 0, found / penalty, found * penalty)
        if counts and self._generated:
            tokens = np.fromiter(self._generated.keys(), dtype=np.int64)
            occurrences = np.fromiter(self._generated.values(), dtype=np.float32)
            logits[tokens] -= config.presence_penalty + config.frequency_penalty * occurrences
        logits[self._biased] += self._bias
        return logits


def sample_batch(samplers: Sequence[Sampler], logits: Sequence[NDArray[np.float32]]) -> list[int]:
    """Return the next token of each of N sequences after its logits (V,), as `Sampler.sample`."""
    tokens = []
    for sampler, row in zip(samplers, logits, strict=True):
        config = sampler.config
        token = sampler._drawer.draw(
            sampler._adjusted(row),
            config.temperature,
            config.top_k,
            config.top_p,
            config.min_p,
            sampler._random.random(),
        )
        sampler._generated[token] += 1
        tokens.append(token)
    return tokens
