"""Sampling: selects the next token from logits.

Letters: N sequences   V vocabulary
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from msgspec import Meta

from yocobit import _native
from yocobit.engine.session import Logits
from yocobit.settings import Fraction, PositiveFraction, Settings
from yocobit.text.generation_config import RepetitionPenalty, Temperature, TopK

Penalty = Annotated[float, Meta(ge=-2, le=2)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig(Settings):
    """Sampling parameters. Filters apply in the order of the fields, after the penalties."""

    # Divides the positive logits of seen tokens, multiplies the negative ones.
    repetition_penalty: RepetitionPenalty = 1.0
    presence_penalty: Penalty = 0.0  # subtracted once from the logit of each generated token
    frequency_penalty: Penalty = 0.0  # subtracted for each occurrence of a generated token
    temperature: Temperature = 0.8  # 0 is greedy: argmax, ties broken by token id
    top_k: TopK = 0  # number of most probable tokens to keep; 0 keeps all
    top_p: PositiveFraction = 1.0  # nucleus: the fewest tokens whose probabilities reach this sum
    min_p: Fraction = 0.0  # least probability to keep, as a fraction of the largest
    seed: int = 0  # -1 chooses one at random, as in vLLM and llama.cpp

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed == -1:
            object.__setattr__(self, "seed", secrets.randbits(53))
        self.require(self.seed >= 0, "seed", "must be at least 0, or -1 for a random one,")


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
