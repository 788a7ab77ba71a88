"""_native.Sampler against its definition in NumPy: penalties, bias and random numbers, bit for bit.

Letters: V vocabulary
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from yocobit import _native

V = 1000
FILTERS = {"temperature": 0.8, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


class Definition:
    """What a sampler computes, in NumPy's float32."""

    def __init__(
        self, seed, filters, repetition=1.0, presence=0.0, frequency=0.0, prompt=(), bias=()
    ):
        self.random = np.random.default_rng(seed)
        self.filters = filters
        self.repetition, self.presence, self.frequency = repetition, presence, frequency
        self.prompt, self.bias = set(prompt), list(bias)
        self.generated = Counter()

    def sample(self, logits) -> int:
        logits = logits.copy()
        if self.repetition != 1:
            seen = list(self.prompt | self.generated.keys())
            found, penalty = logits[seen], np.float32(self.repetition)
            logits[seen] = np.where(found > 0, found / penalty, found * penalty)
        if self.generated:
            tokens = list(self.generated)
            occurrences = np.float32([self.generated[token] for token in tokens])
            logits[tokens] -= self.presence + self.frequency * occurrences
        for token, bias in self.bias:
            logits[token] += np.float32(bias)
        token = _native.sample_at(logits, **self.filters, uniform=self.random.random())
        self.generated[token] += 1
        return token


def native(seed, filters, repetition=1.0, presence=0.0, frequency=0.0, prompt=(), bias=()):
    state = np.random.PCG64(seed).state["state"]
    return _native.Sampler(
        state=state["state"],
        increment=state["inc"],
        **filters,
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        prompt=list(prompt),
        logit_bias=list(bias),
    )


CASES = [
    {},
    {"repetition": 1.3, "prompt": (3, 3, 5, 999)},
    {"presence": 1.37},
    {"frequency": 0.71, "presence": -0.3},
    {"bias": ((2, 2.5), (999, -100.0))},
    {"repetition": 0.7, "presence": 0.9, "frequency": 0.1, "prompt": (0,), "bias": ((1, 0.3),)},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("seed", [0, 1, 2**40 + 7, 2**90])
def test_tokens_equal_those_of_the_definition_in_numpy(case, seed):
    rng = np.random.default_rng(1)
    filters = FILTERS | {"top_k": 50, "top_p": 0.95}
    sampler, definition = native(seed, filters, **case), Definition(seed, filters, **case)

    for _ in range(200):
        logits = rng.normal(scale=2, size=V).astype(np.float32)
        assert sampler.sample(logits) == definition.sample(logits)

    assert sampler.n_generated == 200


def test_a_batch_samples_what_each_sampler_would_alone():
    logits = np.random.default_rng(0).normal(scale=2, size=(5, V)).astype(np.float32)
    alone = [native(seed, FILTERS) for seed in range(5)]
    together = [native(seed, FILTERS) for seed in range(5)]

    for _ in range(20):
        expected = [sampler.sample(row) for sampler, row in zip(alone, logits, strict=True)]
        assert _native.sample_batch(together, logits) == expected
        expected = [sampler.sample(row) for sampler, row in zip(alone, logits, strict=True)]
        assert _native.sample_batch(together, list(logits)) == expected


def test_a_batch_of_another_size_than_its_samplers_is_refused():
    with pytest.raises(ValueError, match="one row of logits for each sampler but got 2 for 1"):
        _native.sample_batch([native(0, FILTERS)], np.zeros((2, V), dtype=np.float32))


def test_a_batch_refuses_none_in_place_of_a_sampler():
    with pytest.raises((TypeError, ValueError)):
        _native.sample_batch([None], np.zeros((1, V), dtype=np.float32))


@pytest.mark.parametrize("case", [{"bias": ((V, 1.0),)}, {"prompt": (V,), "repetition": 2.0}])
def test_tokens_outside_the_vocabulary_are_refused(case):
    with pytest.raises(IndexError, match="token 1000"):
        native(0, FILTERS, **case).sample(np.zeros(V, dtype=np.float32))
    with pytest.raises(ValueError, match="must not be negative"):
        native(0, FILTERS, prompt=(-1,), repetition=2.0)


def test_no_logits_are_refused():
    with pytest.raises(ValueError, match="must have 1 to"):
        native(0, FILTERS).sample(np.zeros(0, dtype=np.float32))


@pytest.mark.parametrize("temperature", [-0.5, -np.inf, np.nan])
def test_a_temperature_below_zero_is_rejected(temperature):
    filters = {**FILTERS, "temperature": temperature}

    with pytest.raises(ValueError, match="temperature must be at least 0 but is"):
        _native.sample_at(np.zeros(V, np.float32), **filters, uniform=0.5)
    with pytest.raises(ValueError, match="temperature must be at least 0 but is"):
        native(0, filters)
