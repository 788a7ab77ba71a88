"""Training: corpus -> model -> checkpoint. Needs torch; the engine does not import it."""

from yocobit.training.backend import keep_freed_memory
from yocobit.training.checkpoint import load_model
from yocobit.training.config import TrainConfig, load
from yocobit.training.errors import TrainingError
from yocobit.training.loop import train
from yocobit.training.step_time import step_seconds
from yocobit.training.text_run import configure

__all__ = [
    "TrainConfig",
    "TrainingError",
    "configure",
    "keep_freed_memory",
    "load",
    "load_model",
    "step_seconds",
    "train",
]
