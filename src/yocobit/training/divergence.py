"""Divergence of a run: the check of its weights, and the errors that end it without saving them.

The guard that skips single steps is in state.py.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from yocobit.packing import checkpoints
from yocobit.training import checkpoint
from yocobit.training.distributed import Processes
from yocobit.training.errors import TrainingError
from yocobit.training.sharding import local

_LARGEST_WEIGHT = 2.0**27  # a product of four weights is in the range of float32


def unusable_weight(model: nn.Module, processes: Processes) -> str | None:
    """Return a line about a weight of any process that is NaN, infinite or too large; or None.

    The loss of a step does not show this, as it is computed before the update.
    """
    weights = {name: local(tensor) for name, tensor in model.state_dict().items()}
    found = checkpoint.first_above(weights, _LARGEST_WEIGHT)
    if not processes.max(found is not None):
        return None
    return (
        f"'{found or 'a weight of another process'}' has values that are NaN, infinite or above "
        f"{_LARGEST_WEIGHT:.0e}"
    )


def divergence_error(run_dir: Path, step: int, reason: str) -> TrainingError:
    """Return the error of a run whose weights are not saved."""
    return TrainingError(
        f"step {step}: the run has diverged, {reason}; its weights are not saved; "
        f"{checkpoints.describe_last(run_dir)}; lower optim.learning_rate or raise "
        "schedule.warmup_steps, and start again with another --out"
    )


def skips_error(run_dir: Path, step: int, n_skipped: int, reason: str) -> TrainingError:
    """Return the error of a run that has skipped optim.max_skips steps in a row."""
    return TrainingError(
        f"step {step}: skipped {n_skipped} steps in a row, the last one because {reason}; "
        f"{checkpoints.describe_last(run_dir)}; lower optim.learning_rate, or raise "
        "optim.spike_factor if only norms were too large"
    )
