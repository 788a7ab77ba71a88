"""Time budgets: the conversion of run.minutes to a number of steps.

The first steps are timed. Then the number of steps is fixed, so that a resumed run has the learning
rates of an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from yocobit.training.config import TrainConfig
from yocobit.training.distributed import Processes
from yocobit.training.state import RunState

# A time budget is converted after MEASURED_STEPS that took at least _MEASURED_SHARE of it. The
# first _UNMEASURED_STEPS are not timed.
MEASURED_STEPS, _UNMEASURED_STEPS = 30, 6
_MEASURED_SHARE = 0.05
_MARGIN = 0.94  # planned share of the remaining time, because speed varies
# Cost of an evaluation relative to training on as many tokens; it reads each token twice.
_EVALUATION_COST = 0.7
# Largest shares of a time budget for one evaluation, and for the last one.
_EVALUATION_SHARE, _LAST_EVALUATION_SHARE = 0.05, 0.1
# Time to write a checkpoint: bytes per parameter (its weight and two values of the optimizer), and
# an assumed speed of the disk.
_CHECKPOINT_BYTES, _DISK_BYTES_PER_S = 12, 2e8


class TimeBudget:
    """The time budget of a run: sets `state.total_steps` once.

    A run with run.steps has none: nothing is converted.
    """

    def __init__(
        self,
        config: TrainConfig,
        state: RunState,
        processes: Processes,
        valid_tokens: int,
        n_parameters: int,
    ) -> None:
        self.config, self.state, self.processes = config, state, processes
        self.valid_tokens = valid_tokens
        self.checkpoint_s = _CHECKPOINT_BYTES * n_parameters / _DISK_BYTES_PER_S
        self.durations: list[float] = []  # seconds of each step

    def convert(self, elapsed_s: float, is_resumed: bool = False) -> bool:
        """Fix the number of steps once the speed is known; return whether this call did."""
        if self.config.run.minutes is None or self.state.total_steps is not None:
            return False
        if not self.processes.max(is_measured(self.config, self.durations, elapsed_s, is_resumed)):
            return False
        overheads = Overheads(self.state.evaluation_s, self.state.sample_s, self.checkpoint_s)
        steps = steps_in_budget(
            self.config, self.durations, elapsed_s, self.valid_tokens, overheads
        )
        self.state.total_steps = self.state.step + self.processes.broadcast(steps)
        return True

    def convert_resumed(self, logged: list[float], elapsed_s: float) -> None:
        """Convert the budget of a resumed run by the logged durations, if there are enough.

        Only by those: a run resumed twice from one checkpoint has the same number of steps.
        """
        self.durations = self.processes.broadcast(logged)
        if self.durations:
            self.convert(elapsed_s, is_resumed=True)

    def evaluation_tokens(self) -> tuple[int | None, int | None]:
        """Return the tokens of each evaluation but the last, and of the last one; None for all."""
        return evaluation_tokens(self.config, self.valid_tokens, self.state.evaluation_s)


@dataclass(frozen=True)
class Overheads:
    """Seconds that a run spends on other work than steps."""

    evaluation: float | None = None  # per token of validation text; None: estimated from steps
    sample: float = 0.0
    checkpoint: float = 0.0


def is_measured(
    config: TrainConfig, durations: Sequence[float], elapsed_s: float, is_resumed: bool
) -> bool:
    """Whether the timed steps suffice to convert run.minutes, or half of it has passed.

    `durations` are the seconds of each step so far; `elapsed_s` is the used part of the budget,
    evaluations included. For a resumed run, MEASURED_STEPS logged durations suffice.
    """
    budget = _budget_s(config)
    is_long = is_resumed or sum(durations) >= _MEASURED_SHARE * budget
    return (is_long and len(durations) >= MEASURED_STEPS) or elapsed_s >= budget / 2


def evaluation_tokens(
    config: TrainConfig, valid_tokens: int, evaluation_s: float | None
) -> tuple[int | None, int | None]:
    """Return the validation tokens of each evaluation but the last, and of the last one.

    None is the whole text, of `valid_tokens` tokens. With run.minutes, an evaluation takes at most
    a share of the time; `evaluation_s`, its seconds per token, is measured at the start of the run.
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
    """Return the number of steps that fit in the rest of run.minutes.

    Time is reserved for the evaluations, samples and checkpoints between the steps and after the
    last one. `durations` are the seconds of some steps, at least one.
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
