"""Errors that end a run. Its checkpoints are unchanged after any of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from yocobit.config import ModelConfig
from yocobit.errors import is_out_of_memory
from yocobit.packing import checkpoints
from yocobit.training.config import TrainConfig


class TrainingError(RuntimeError):
    """A run that cannot continue."""


class DamagedCheckpoint(RuntimeError):
    """A run that has ended and is saved, but was resumed without a damaged checkpoint."""


class OutOfMemory(RuntimeError):
    """A run that needs more memory than the machine has."""


@contextmanager
def out_of_memory_as(message: Callable[[], str]) -> Iterator[None]:
    """Raise OutOfMemory with `message` if the block runs out of memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(message()) from None


def model_too_large(model: ModelConfig) -> str:
    """Return the message about a model whose weights do not fit in memory."""
    return (
        f"not enough memory for the weights of {len(model.layers)} layers with "
        f"d_model = {model.d_model}, d_ff = {model.d_ff} and a vocabulary of {model.vocab_size}; "
        "choose a smaller [model]"
    )


def step_too_large(config: TrainConfig, run_dir: Path) -> str:
    """Return the message about a run whose steps do not fit in memory."""
    needed = (
        f"not enough memory for optim.batch_size = {config.optim.batch_size} windows of "
        f"data.context = {config.data.context} tokens"
    )
    recompute = "" if config.run.recompute else "set run.recompute = true, "
    if checkpoints.last(run_dir) is None:
        remedy = (
            f"{recompute}lower optim.batch_size and raise optim.accumulation by the same factor, "
            "lower data.context, or choose a smaller [model]"
        )
    else:  # a resumed run must keep its batches
        remedy = f"{recompute}free memory, and continue with --resume"
    return f"{needed}; {remedy}; {checkpoints.describe_last(run_dir)}"
