"""A time budget (run.minutes) turned into a number of steps, once the speed is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

from yocobit.training.config import TrainConfig

# A time budget becomes a number of steps after this many, the first few not counted.
_MEASURED_STEPS, _UNMEASURED_STEPS = 30, 6
_MARGIN = 0.94  # of the remaining time is planned; samples and checkpoints take some, too
_EVALUATION_COST = 0.7  # of training on as many tokens; every token is read twice


def steps_left(
    config: TrainConfig, durations: Sequence[float], seconds_over: float, valid_tokens: int
) -> int | None:
    """Return the steps that fit into what is left of run.minutes, None while the speed is unknown.

    `durations` are the seconds of the steps so far, `seconds_over` those of the budget that are
    over, evaluations included; `valid_tokens` has the whole validation text.
    """
    optim, run = config.optim, config.run
    assert run.minutes is not None
    remaining = run.minutes * 60 - seconds_over
    if len(durations) < _MEASURED_STEPS and remaining > 0:
        return None
    measured = sorted(durations[_UNMEASURED_STEPS:] or durations)
    seconds = measured[len(measured) // 2]
    evaluated = min(run.eval_tokens or valid_tokens, valid_tokens)
    tokens_per_step = optim.batch_size * optim.accumulation * config.data.context
    evaluation = seconds * _EVALUATION_COST / tokens_per_step
    per_step = seconds + evaluation * evaluated / run.eval_every
    steps = (remaining * _MARGIN - evaluation * valid_tokens) / per_step
    return max(0, math.floor(steps))
