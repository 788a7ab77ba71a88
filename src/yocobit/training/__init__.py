"""Training: text -> tokens -> model -> checkpoint. Needs torch; the engine never imports it."""

from yocobit.training.checkpoint import load_model
from yocobit.training.config import TrainConfig, load
from yocobit.training.loop import TrainingError, train

__all__ = ["TrainConfig", "TrainingError", "load", "load_model", "train"]
