"""Sampling: selects the next token from logits.

Letters: N sequences   V vocabulary
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from yocobit import _native
from yocobit.engine.session import Logits
from yocobit.settings import Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig(Settings):
    """Sampling parameters. Filters apply in the order of the fields, after the penalties."""

    repetition_penalty: float = 1.0  # divides positive logits of seen tokens, multiplies negative
    presence_penalty: float = 0.0  # subtracted once from the logit of each generated token
    frequency_penalty: float = 0.0  # subtracted for each occurrence of a generated token
    temperature: float = 0.8  # 0 is greedy: argmax, ties broken by token id
    top_k: int = 0  # number of most probable tokens to keep; 0 keeps all
    top_p: float = 1.0  # nucleus: the fewest tokens whose probabilities reach this sum
    min_p: float = 0.0  # least probability to keep, as a fraction of the largest
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            0.01 <= self.repetition_penalty <= 100,
            "repetition_penalty",
            "must be between 0.01 and 100",
        )
        for name in ("presence_penalty", "frequency_penalty"):
            self.require(-2 <= getattr(self, name) <= 2, name, "must be between -2 and 2")
        self.require(0 <= self.temperature <= 100, "temperature", "must be between 0 and 100")
        self.require(self.top_k >= 0, "top_k", "must be at least 0")
        self.require(0 < self.top_p <= 1, "top_p", "must be above 0 and at most 1")
        self.require(0 <= self.min_p <= 1, "min_p", "must be between 0 and 1")
        self.require(self.seed >= 0, "seed", "must be at least 0")


class Sampler:
    """Samples the tokens of one sequence; equal parameters and logits give equal tokens."""

    def __init__(
        self,
        config: SamplingConfig,
        prompt: Sequence[int] = (),
        logit_bias: Mapping[int, float] | None = None,
    ) -> None:
        """Start after a prompt; `logit_bias` is added to the logits of the given token ids."""
        self.config = config
        random = np.random.PCG64(config.seed).state["state"]
        self.native = _native.Sampler(
            state=random["state"],
            increment=random["inc"],
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            min_p=config.min_p,
            repetition_penalty=config.repetition_penalty,
            presence_penalty=config.presence_penalty,
            frequency_penalty=config.frequency_penalty,
            prompt=prompt,
            logit_bias=list((logit_bias or {}).items()),
        )

    def sample(self, logits: Logits) -> int:
        """Return the next token for logits (V,); does not change them."""
        return self.native.sample(logits)

    def draw(self, logits: Logits) -> int:
        """Return `sample(logits)`. Deprecated alias, removed in 0.2."""
        return self.sample(logits)


def sample_batch(samplers: Sequence[Sampler], logits: Sequence[Logits]) -> list[int]:
    """Return the next token of each of N sequences, given its logits (V,).

    One native call, without the GIL; the tokens are those of `Sampler.sample`.
    """
    return _native.sample_batch([sampler.native for sampler in samplers], logits)
