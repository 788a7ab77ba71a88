"""Training: text -> tokens -> model -> checkpoint. Needs torch; the engine never imports it."""

from yocobit.training.allocator import keep_freed_memory
from yocobit.training.checkpoint import load_model
from yocobit.training.config import TrainConfig, load
from yocobit.training.loop import TrainingError, train

__all__ = ["TrainConfig", "TrainingError", "keep_freed_memory", "load", "load_model", "train"]
