"""Sampling: each filter equals its definition, and equal seeds give equal tokens."""

import numpy as np
import pytest

from yocobit import _native
from yocobit.config import ConfigError
from yocobit.engine import Sampler, SamplingConfig

LOGITS = np.log(np.float32([0.4, 0.3, 0.2, 0.06, 0.04]))


def sampled(n=2000, logits=LOGITS, **config):
    """Return the frequencies of n samples by token."""
    sampler = Sampler(SamplingConfig(**config))
    tokens = [sampler.sample(logits) for _ in range(n)]
    return np.bincount(tokens, minlength=len(logits)) / n


def test_temperature_0_is_argmax_with_ties_broken_by_token_id():
    assert Sampler(SamplingConfig(temperature=0)).sample(np.float32([1, 3, 3, 2])) == 1


def test_temperature_1_samples_the_models_probabilities():
    # Standard deviation of a frequency: at most 0.5 / sqrt(20000) = 0.0035; five of those.
    np.testing.assert_allclose(sampled(20000, temperature=1), np.exp(LOGITS), atol=0.018)


def test_low_temperature_sharpens():
    expected = np.exp(2 * LOGITS) / np.exp(2 * LOGITS).sum()
    np.testing.assert_allclose(sampled(20000, temperature=0.5), expected, atol=0.018)


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({"top_k": 2}, 2),
        ({"top_k": 9}, 5),
        ({"top_p": 0.4}, 1),
        ({"top_p": 0.5}, 2),
        ({"top_p": 0.95}, 4),
        ({"min_p": 0.45}, 3),
        ({"min_p": 1.0}, 1),
        ({"top_k": 4, "top_p": 0.999}, 4),
        ({"top_k": 3, "min_p": 0.7}, 2),
    ],
)
def test_filters_keep_the_most_probable_tokens(config, kept):
    frequencies = sampled(temperature=1.0, **config)

    assert (frequencies[:kept] > 0).all()
    assert (frequencies[kept:] == 0).all()


def test_top_k_breaks_ties_by_token():
    frequencies = sampled(temperature=1.0, top_k=2, logits=np.float32([0, 1, 1, 1]))

    assert (frequencies > 0).tolist() == [False, True, True, False]


def greedy(logits, prompt=(), logit_bias=None, **config):
    """Return the greedy token after a prompt."""
    config = SamplingConfig(temperature=0, **config)
    return Sampler(config, prompt, logit_bias).sample(np.float32(logits))


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    assert greedy([3, 2, -1], prompt=[0, 0], repetition_penalty=2.0) == 1
    assert greedy([-3, -2], prompt=[1], repetition_penalty=2.0) == 0
    assert greedy([3, 2, -1], repetition_penalty=2.0) == 0


def test_repetition_penalty_counts_generated_tokens_too():
    sampler = Sampler(SamplingConfig(temperature=0, repetition_penalty=2.0))

    assert [sampler.sample(np.float32([3, 2, 1])) for _ in range(3)] == [0, 1, 0]


def test_presence_penalty_counts_a_generated_token_once_and_ignores_the_prompt():
    sampler = Sampler(SamplingConfig(temperature=0, presence_penalty=1.5), prompt=[0])

    assert [sampler.sample(np.float32([3, 2, -9])) for _ in range(4)] == [0, 1, 0, 0]


def test_frequency_penalty_grows_with_each_occurrence_of_a_generated_token():
    sampler = Sampler(SamplingConfig(temperature=0, frequency_penalty=0.75), prompt=[0])

    assert [sampler.sample(np.float32([3, 2, -9])) for _ in range(5)] == [0, 0, 1, 0, 1]


def test_logit_bias_forbids_and_forces_tokens():
    assert greedy([3, 2, 1], logit_bias={0: -100}) == 1
    assert greedy([3, 2, 1], logit_bias={2: 100}) == 2
    assert greedy([3, 2, 1], logit_bias={2: 2.5, 1: 0.5}) == 2


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"top_k": 40},
        {"top_p": 0.9},
        {"min_p": 0.05},
        {"top_k": 300, "top_p": 0.95, "min_p": 0.01},
        {"top_p": 0.3},
        {"top_p": 0.99999},
    ],
)
@pytest.mark.parametrize("n", [1000, 9001])
def test_filters_equal_their_definition_on_many_tokens(n, config, seed):
    """Sampled tokens are those that a full sort and cumulative sum in NumPy keep."""
    logits = np.random.default_rng(seed).normal(scale=3, size=n).astype(np.float32).round(1)
    order = np.argsort(-logits, kind="stable")
    weights = np.exp(logits[order].astype(np.float64) - logits.max())
    kept = config.get("top_k", n)
    weights = weights[:kept] / weights[:kept].sum()
    if "top_p" in config:
        kept = int(np.searchsorted(weights.cumsum(), config["top_p"], side="left")) + 1
    if "min_p" in config:
        kept = min(kept, int((weights >= config["min_p"] * weights[0]).sum()))
    expected = weights[:kept] / weights[:kept].sum()

    frequencies = sampled(4000, logits, temperature=1.0, seed=seed, **config)

    assert set(np.flatnonzero(frequencies)) <= set(order[:kept])
    # Six standard deviations of a frequency, plus four samples of rare tokens.
    bound = 6 * np.sqrt(expected * (1 - expected) / 4000) + 1e-3
    assert (np.abs(frequencies[order[:kept]] - expected) <= bound).all()
    uniform = np.linspace(0, 1, 20_000, endpoint=False)
    if kept <= 100 and expected.min() > 1e-4:  # fine enough to sample each kept token
        how = (1.0, *(config.get(k, d) for k, d in DEFAULTS))
        assert {_native.sample_at(logits, *how, u) for u in uniform} == set(order[:kept])


DEFAULTS = (("top_k", 0), ("top_p", 1.0), ("min_p", 0.0))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("logits", "token"),
    [
        ([np.nan, 1, np.nan], 1),
        ([np.nan, np.nan], 0),
        ([-np.inf, -np.inf], 0),
        ([0, np.inf, 0], 1),
        ([-np.inf, 2, -np.inf], 1),
    ],
)
def test_logits_that_are_not_finite_still_give_a_token(logits, token, temperature):
    sampler = Sampler(SamplingConfig(temperature=temperature, top_p=0.9))

    assert [sampler.sample(np.float32(logits)) for _ in range(3)] == [token] * 3


@pytest.mark.parametrize("temperature", [1e-9, 100.0])
def test_extreme_temperatures_give_tokens(temperature):
    logits = np.float32([-3e38, 3e38, 1.0])

    assert Sampler(SamplingConfig(temperature=temperature)).sample(logits) == 1


def test_same_seed_samples_the_same_tokens_and_another_seed_does_not():
    def tokens(seed):
        sampler = Sampler(SamplingConfig(temperature=1, seed=seed))
        return [sampler.sample(np.zeros(1000, dtype=np.float32)) for _ in range(20)]

    assert tokens(7) == tokens(7)
    assert tokens(7) != tokens(8)


def test_sampling_does_not_change_the_logits():
    logits = LOGITS.copy()

    penalties = SamplingConfig(repetition_penalty=2.0, presence_penalty=1.0)
    sampler = Sampler(penalties, prompt=[0, 1], logit_bias={2: 1.0})
    sampler.sample(logits)
    sampler.sample(logits)

    np.testing.assert_array_equal(logits, LOGITS)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("repetition_penalty", 0),
        ("presence_penalty", 2.1),
        ("frequency_penalty", float("nan")),
        ("seed", -2),
    ],
)
def test_settings_out_of_range_are_rejected_by_name(field, value):
    with pytest.raises(ConfigError, match=f"{field} must be .* but is"):
        SamplingConfig(**{field: value})
