"""Learning-rate schedules: pure functions of the step, counted from 0.

`total` is the number of steps of the run. It is None while a time budget is not converted to steps
yet (time_budget.py); until then the rate stays at its peak.
"""

from __future__ import annotations

import math

from yocobit.training.config import ScheduleConfig


def rate_factor(schedule: ScheduleConfig, step: int, total: int | None) -> float:
    """Return the factor of all learning rates at `step`: 0 to 1."""
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    if schedule.kind == "step":
        return max(schedule.gamma ** (step // schedule.step_size), schedule.min_ratio)
    progress = _progress(schedule, step, total)
    return schedule.min_ratio + (1 - schedule.min_ratio) * _decay(schedule, progress)


def weight_decay_factor(schedule: ScheduleConfig, step: int, total: int | None) -> float:
    """Return the factor of weight decay at `step`: 1, or 0 in the second half of "two_stage"."""
    is_second_half = schedule.kind == "two_stage" and _progress(schedule, step, total) >= 0.5
    return 0.0 if is_second_half else 1.0


def short_run_warning(schedule: ScheduleConfig, total: int | None) -> str | None:
    """Return a warning about a run that ends during its warm-up, None otherwise."""
    if total is None or total > schedule.warmup_steps or total == 0:
        return None
    return (
        f"warning: the run ends after {total} of its {schedule.warmup_steps} steps of warm-up: the "
        f"learning rate reaches {total / schedule.warmup_steps:.0%} and never decays; lower "
        "schedule.warmup_steps or train for more steps"
    )


def _progress(schedule: ScheduleConfig, step: int, total: int | None) -> float:
    """Return the completed share of the run after warm-up: 0 <= share < 1."""
    if total is None or step <= schedule.warmup_steps:
        return 0.0
    return (step - schedule.warmup_steps) / (total - schedule.warmup_steps)


def _decay(schedule: ScheduleConfig, progress: float) -> float:
    if schedule.kind == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if schedule.kind == "wsd":  # warm-up, stable, decay (arXiv:2404.06395)
        return min(1.0, (1 - progress) / schedule.decay_fraction) if progress else 1.0
    if schedule.kind == "two_stage" and progress >= 0.5:  # BitNet b1.58 (arXiv:2402.17764)
        return schedule.second_ratio * (1 - progress) / 0.5
    return 1 - progress
