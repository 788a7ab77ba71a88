"""The number of steps that fit in run.minutes, next to evaluations, samples and checkpoints."""

import pytest

from yocobit.training.config import TrainConfig
from yocobit.training.time_budget import (
    Overheads,
    evaluation_tokens,
    is_measured,
    steps_in_budget,
)


def budget_config(**run) -> TrainConfig:
    sections = {
        "model": {"preset": "nano"},
        "data": {"train": ["a"], "valid": ["b"], "context": 64},
        "run": {"minutes": 9, "eval_every": 50, "checkpoint_every": 100, **run},
    }
    sections["run"] = {name: value for name, value in sections["run"].items() if value is not None}
    return TrainConfig.from_dict(sections, "test")


@pytest.mark.parametrize(
    ("overheads", "sample_every", "valid_tokens"),
    [
        (Overheads(1e-5), 0, 1000),
        (Overheads(1e-3), 0, 10_000_000),
        (Overheads(1e-4, sample=3.0, checkpoint=5.0), 100, 200_000),
        (Overheads(1e-3, sample=20.0, checkpoint=1.0), 10, 1_000_000),
    ],
)
def test_steps_in_a_budget_leave_time_for_all_that_is_due(overheads, sample_every, valid_tokens):
    config = budget_config(sample_every=sample_every)
    elapsed = 60.0

    n = steps_in_budget(config, [0.1] * 40, elapsed, valid_tokens, overheads)
    each, last = (
        tokens or valid_tokens
        for tokens in evaluation_tokens(config, valid_tokens, overheads.evaluation)
    )
    n_samples = n // sample_every + 1 if sample_every else 0
    end = (
        elapsed
        + n * 0.1
        + overheads.evaluation * (n // 50 * each + each + last)
        + n_samples * overheads.sample
        + (n // 100 + 1) * overheads.checkpoint
    )

    assert 0.7 * 540 < end < 540


def test_evaluations_in_a_budget_are_limited_to_their_shares():
    config = budget_config()  # 540 s

    assert evaluation_tokens(config, 1000, 1e-3) == (None, None)
    assert evaluation_tokens(config, 10**6, 1e-3) == (27_000, 54_000)
    assert evaluation_tokens(budget_config(eval_tokens=64), 10**6, 1e-3) == (64, 54_000)
    assert evaluation_tokens(budget_config(eval_tokens=64), 10**6, 1000.0) == (1, 1)
    assert evaluation_tokens(config, 10**6, None) == (None, None)
    steps = budget_config(minutes=None, steps=5, eval_tokens=64)
    assert evaluation_tokens(steps, 10**6, 1e-3) == (64, None)


@pytest.mark.parametrize(
    ("durations", "elapsed_s", "is_resumed", "expected"),
    [
        ([0.01] * 200, 2.0, False, False),  # 30 steps would be a third of a second
        ([0.2] * 140, 30.0, False, True),
        ([5.0] * 20, 100.0, False, False),
        ([100.0] * 3, 300.0, False, True),  # half of the budget
        ([0.01] * 30, 2.0, True, True),
    ],
)
def test_budget_is_converted_after_a_share_of_it(durations, elapsed_s, is_resumed, expected):
    assert is_measured(budget_config(), durations, elapsed_s, is_resumed) == expected
