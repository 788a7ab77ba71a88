"""Learning-rate schedules compared with PyTorch's and with values computed by hand."""

import pytest
import torch

from yocobit.training.config import ScheduleConfig
from yocobit.training.schedule import rate_factor, weight_decay_factor


def factors(total: int, **settings) -> list[float]:
    schedule = ScheduleConfig(**settings)
    return [rate_factor(schedule, step, total) for step in range(total)]


def torch_factors(total: int, kind: type, **settings) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = kind(optimizer, **settings)
    rates = []
    for _ in range(total):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(("step_size", "gamma"), [(1, 0.9), (3, 0.5), (5, 0.1), (100, 0.5)])
def test_step_equals_torch_step_lr(step_size, gamma):
    expected = torch_factors(20, torch.optim.lr_scheduler.StepLR, step_size=step_size, gamma=gamma)

    assert factors(20, kind="step", step_size=step_size, gamma=gamma) == pytest.approx(expected)


def test_linear_equals_torch_linear_lr_to_zero():
    expected = torch_factors(
        20, torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.0, total_iters=20
    )

    assert factors(20, kind="linear") == pytest.approx(expected)


@pytest.mark.parametrize("min_ratio", [0.0, 0.1])
def test_cosine_equals_torch_cosine_annealing(min_ratio):
    expected = torch_factors(
        20, torch.optim.lr_scheduler.CosineAnnealingLR, T_max=20, eta_min=min_ratio
    )

    assert factors(20, kind="cosine", min_ratio=min_ratio) == pytest.approx(expected)


def test_wsd_is_constant_and_decays_to_zero_over_the_last_part():
    expected = [1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]

    assert factors(10, kind="wsd", decay_fraction=0.4)[:7] == expected[:7]
    assert factors(10, kind="wsd", decay_fraction=0.4)[7:] == pytest.approx(expected[7:])


def test_two_stage_decays_drops_at_half_and_decays_again():
    rates = factors(8, kind="two_stage", second_ratio=0.25)

    assert rates == pytest.approx([1, 7 / 8, 6 / 8, 5 / 8, 0.25, 0.1875, 0.125, 0.0625])


def test_two_stage_switches_weight_decay_off_at_half():
    schedule = ScheduleConfig(kind="two_stage")

    assert [weight_decay_factor(schedule, step, 6) for step in range(6)] == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("kind", ["step", "linear", "cosine", "wsd"])
def test_weight_decay_is_constant_in_other_schedules(kind):
    schedule = ScheduleConfig(kind=kind)

    assert [weight_decay_factor(schedule, step, 4) for step in range(4)] == [1, 1, 1, 1]


@pytest.mark.parametrize("kind", ["step", "linear", "cosine", "wsd", "two_stage"])
def test_warmup_rises_to_the_full_rate_in_equal_parts(kind):
    rates = factors(100, kind=kind, warmup_steps=4)

    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_linear_ends_at_min_ratio_one_step_after_the_last():
    schedule = ScheduleConfig(kind="linear", warmup_steps=2, min_ratio=0.1)

    assert rate_factor(schedule, 11, 12) == pytest.approx(0.1 + 0.9 * 1 / 10)
    assert rate_factor(schedule, 12, 12) == pytest.approx(0.1)


@pytest.mark.parametrize("kind", ["linear", "cosine", "wsd", "two_stage"])
def test_rate_is_constant_while_the_number_of_steps_is_unknown(kind):
    schedule = ScheduleConfig(kind=kind, warmup_steps=2)

    assert [rate_factor(schedule, step, None) for step in (0, 1, 2, 50)] == [0.5, 1, 1, 1]


@pytest.mark.parametrize("kind", ["linear", "cosine", "wsd", "two_stage"])
def test_rate_is_finite_when_the_run_is_shorter_than_the_warmup(kind):
    assert factors(3, kind=kind, warmup_steps=5) == pytest.approx([0.2, 0.4, 0.6])
