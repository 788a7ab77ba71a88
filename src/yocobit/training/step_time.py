"""The duration of a step on this machine, measured before a run."""

from __future__ import annotations

import time

import torch

from yocobit.model import Decoder
from yocobit.training.backend import choose_precision, matmul_precision, set_threads
from yocobit.training.batch import Batch
from yocobit.training.config import TrainConfig
from yocobit.training.errors import model_too_large, out_of_memory_as
from yocobit.training.optim import Optimizers
from yocobit.training.state import GradientSpikeGuard
from yocobit.training.step import GradientStep, Objective

_WARM_UP_FACTOR = 3  # the first step takes at most this many times as long as a later one


def step_seconds(config: TrainConfig, enough_s: float) -> float:
    """Return the seconds of a step of a new model on random tokens, without a teacher.

    The first step also allocates memory and starts threads. If it takes more than `enough_s`, but
    at most _WARM_UP_FACTOR times that, a second one is timed.
    """
    set_threads(config.run.threads, 1)
    with (
        torch.random.fork_rng(devices=[]),
        matmul_precision(choose_precision(config.run.precision)),
        out_of_memory_as(lambda: model_too_large(config.model)),
    ):
        torch.manual_seed(config.run.seed)
        model, optim = Decoder(config.model), config.optim
        objective = Objective(model, optim.z_loss, balance_weight=optim.router_aux_loss_coef)
        step = GradientStep(
            objective,
            Optimizers(model, optim),
            GradientSpikeGuard(),
            optim.grad_clip,
            optim.spike_factor,
        )
        shape = (optim.batch_size, config.data.context + 1)
        tokens = torch.randint(config.model.vocab_size, shape)
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        batches = [Batch(inputs, targets, torch.zeros_like(inputs, dtype=torch.bool))]

        def timed() -> float:
            start = time.monotonic()
            step(batches * optim.accumulation, 1.0, 1.0)
            return time.monotonic() - start

        first = timed()
        if first <= enough_s or first > _WARM_UP_FACTOR * enough_s:
            return first
        return min(first, timed())
