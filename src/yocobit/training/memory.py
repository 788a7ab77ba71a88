"""What a run that does not fit into memory says: what was tried, and what to ask for less of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from yocobit.config import ModelConfig
from yocobit.errors import is_out_of_memory
from yocobit.training import checkpoint
from yocobit.training.config import TrainConfig


class OutOfMemory(RuntimeError):
    """A run that needs more memory than there is; its checkpoints are as they were."""


@contextmanager
def in_memory(otherwise: Callable[[], str]) -> Iterator[None]:
    """Raise OutOfMemory with the line `otherwise` if the block runs out of memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(otherwise()) from None


def too_large(model: ModelConfig) -> str:
    """Return the line about a model whose weights alone do not fit."""
    return (
        f"not enough memory for the weights of {len(model.layers)} layers with "
        f"d_model = {model.d_model}, d_ff = {model.d_ff} and a vocabulary of {model.vocab_size}; "
        "choose a smaller [model]"
    )


def too_long(config: TrainConfig, run_dir: Path) -> str:
    """Return the line about a run whose steps do not fit."""
    tried = (
        f"not enough memory for optim.batch_size = {config.optim.batch_size} windows of "
        f"data.context = {config.data.context} tokens"
    )
    recompute = "" if config.run.recompute else "set run.recompute = true, "
    if (kept := checkpoint.last(run_dir)) is None:
        remedy = (
            f"{recompute}lower optim.batch_size and raise optim.accumulation as much, "
            "lower data.context, or choose a smaller [model]"
        )
    else:  # a run that goes on has the windows it had
        remedy = f"{recompute}free memory, and go on with --resume"
    return f"{tried}; {remedy}; last checkpoint: {kept or 'none yet'}"
