"""Learning-rate schedules, and the conversion of a time budget to a number of steps.

Schedules are pure functions of the step, counted from 0. `total` is the number of steps of the run,
None while a time budget is not converted to steps yet; until then the rate stays at its peak.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from yocobit.training.config import ScheduleConfig, TrainConfig

# A time budget is converted after MEASURED_STEPS that took at least _MEASURED_SHARE of it. The
# first _UNMEASURED_STEPS are not timed.
MEASURED_STEPS, _UNMEASURED_STEPS = 30, 6
_MEASURED_SHARE = 0.05
_MARGIN = 0.94  # share of the remaining time that is planned; speed varies
_EVALUATION_COST = 0.7  # compared with training on as many tokens; an evaluation reads each twice
# Largest shares of a time budget for one evaluation, and for the last one.
_EVALUATION_SHARE, _LAST_EVALUATION_SHARE = 0.05, 0.1


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


@dataclass(frozen=True)
class Overheads:
    """The seconds of a run that are not steps, as far as a time budget must include them."""

    evaluation: float | None = None  # of a token of the validation text; None: by speed of steps
    sample: float = 0.0
    checkpoint: float = 0.0


def is_measured(
    config: TrainConfig, durations: Sequence[float], elapsed_s: float, is_resumed: bool
) -> bool:
    """Whether steps were timed for long enough to convert run.minutes; at half of it in any case.

    `durations` are the seconds of each step so far; `elapsed_s` is the used part of the budget,
    evaluations included. A resumed run has the durations in its log, however short they are.
    """
    budget = _budget_s(config)
    is_long = is_resumed or sum(durations) >= _MEASURED_SHARE * budget
    return (is_long and len(durations) >= MEASURED_STEPS) or elapsed_s >= budget / 2


def evaluation_tokens(
    config: TrainConfig, valid_tokens: int, evaluation_s: float | None
) -> tuple[int | None, int | None]:
    """Return the validation tokens of each evaluation but the last, and of the last one.

    None is the whole text, of `valid_tokens` tokens. A run of run.minutes spends at most a share of
    them on an evaluation, whose seconds per token `evaluation_s` are measured at its start.
    """
    run, last = config.run, valid_tokens
    each = min(run.eval_tokens or valid_tokens, valid_tokens)
    if run.minutes is not None and evaluation_s:
        affordable = _budget_s(config) / evaluation_s
        each = min(each, max(1, int(affordable * _EVALUATION_SHARE)))
        last = min(last, max(each, int(affordable * _LAST_EVALUATION_SHARE)))
    return each if each < valid_tokens or run.eval_tokens else None, (
        last if last < valid_tokens else None
    )


def steps_in_budget(
    config: TrainConfig,
    durations: Sequence[float],
    elapsed_s: float,
    valid_tokens: int,
    overheads: Overheads,
) -> int:
    """Return the steps that fit in the rest of run.minutes, with what is due between and after.

    `durations` are the seconds of some steps, at least one.
    """
    optim, run = config.optim, config.run
    measured = sorted(durations[_UNMEASURED_STEPS:] or durations)
    seconds = measured[len(measured) // 2]
    each, last = (
        n or valid_tokens for n in evaluation_tokens(config, valid_tokens, overheads.evaluation)
    )
    evaluation = overheads.evaluation
    if evaluation is None:
        tokens_per_step = optim.batch_size * optim.accumulation * config.data.context
        evaluation = seconds * _EVALUATION_COST / tokens_per_step
    per_step = (
        seconds
        + evaluation * each / run.eval_every
        + overheads.checkpoint / run.checkpoint_every
        + (overheads.sample / run.sample_every if run.sample_every else 0.0)
    )
    at_end = evaluation * (last if last == each else last + each) + overheads.checkpoint
    at_end += overheads.sample if run.sample_every else 0.0
    remaining = (_budget_s(config) - elapsed_s) * _MARGIN - at_end
    return max(0, math.floor(remaining / per_step))


def _budget_s(config: TrainConfig) -> float:
    assert config.run.minutes is not None
    return config.run.minutes * 60
