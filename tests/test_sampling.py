"""Drawing tokens: each filter against its definition, and the same seed gives the same tokens."""

import numpy as np
import pytest

from yocobit.config import ConfigError
from yocobit.engine import Sampler, SamplingConfig

LOGITS = np.log(np.float32([0.4, 0.3, 0.2, 0.06, 0.04]))


def drawn(n=2000, seen=(), logits=LOGITS, **config):
    """Frequencies of n draws by token."""
    sampler = Sampler(SamplingConfig(**config))
    tokens = [sampler.draw(logits, seen) for _ in range(n)]
    return np.bincount(tokens, minlength=len(logits)) / n


def test_temperature_0_takes_the_likeliest_and_the_first_of_equals():
    assert Sampler(SamplingConfig(temperature=0)).draw(np.float32([1, 3, 3, 2])) == 1


def test_temperature_1_draws_by_the_models_probabilities():
    # Standard deviation of a frequency: at most 0.5 / sqrt(20000) = 0.0035; five of those.
    np.testing.assert_allclose(drawn(20000, temperature=1), np.exp(LOGITS), atol=0.018)


def test_low_temperature_sharpens():
    expected = np.exp(2 * LOGITS) / np.exp(2 * LOGITS).sum()
    np.testing.assert_allclose(drawn(20000, temperature=0.5), expected, atol=0.018)


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
def test_filters_keep_the_likeliest_tokens(config, kept):
    frequencies = drawn(temperature=1.0, **config)

    assert (frequencies[:kept] > 0).all()
    assert (frequencies[kept:] == 0).all()


def test_top_k_breaks_ties_by_token():
    frequencies = drawn(temperature=1.0, top_k=2, logits=np.float32([0, 1, 1, 1]))

    assert (frequencies > 0).tolist() == [False, True, True, False]


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    sampler = Sampler(SamplingConfig(temperature=0, repetition_penalty=2.0))

    assert sampler.draw(np.float32([3, 2, -1]), seen=[0, 0]) == 1
    assert sampler.draw(np.float32([-3, -2]), seen=[1]) == 0
    assert sampler.draw(np.float32([3, 2, -1]), seen=[]) == 0


def test_same_seed_draws_the_same_and_another_seed_does_not():
    def tokens(seed):
        sampler = Sampler(SamplingConfig(temperature=1, seed=seed))
        return [sampler.draw(np.zeros(1000, dtype=np.float32)) for _ in range(20)]

    assert tokens(7) == tokens(7)
    assert tokens(7) != tokens(8)


def test_draw_does_not_change_the_logits():
    logits = LOGITS.copy()

    Sampler(SamplingConfig(repetition_penalty=2.0)).draw(logits, seen=[0, 1])

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
        ("seed", -1),
    ],
)
def test_settings_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=f"{field} must be .* but is"):
        SamplingConfig(**{field: value})
