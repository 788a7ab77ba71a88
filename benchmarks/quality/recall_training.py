"""Training and evaluation of one model on the tasks of recall_tasks, with one thread and seed.

Letters: B batch   T positions
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from recall_tasks import Tokens, associative_recall, passkey
from torch import Tensor

from yocobit.config import ModelConfig
from yocobit.model import Decoder
from yocobit.training.config import OptimConfig, ScheduleConfig
from yocobit.training.optim import Optimizers
from yocobit.training.schedule import rate_factor

TRAINED = {64: 16, 128: 32, 256: 64}  # pairs of associative recall, by length
BEYOND = {512: 64, 1024: 64, 2048: 64}
_SHAPES = (
    (64, 64, 4),
    (64, 64, 8),
    (64, 64, 16),
    (32, 128, 32),
    (16, 256, 64),
)  # B, T, pairs of a batch
_TRAINING, _EVALUATION = 0, 1  # streams of random numbers
_REPORT_EVERY = 100  # steps
_BATCH_TOKENS = 4096  # in evaluation


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings for training and evaluation; the same for all variants."""

    steps: int = 4000
    learning_rate: float = 1e-2
    warmup_steps: int = 50
    answers: int = 2048  # of associative recall, per length in evaluation
    passkeys: int = 256
    seed: int = 0


def batch(seed: int, index: int) -> tuple[Tokens, Tokens]:
    """Return tokens and targets (B, T) of a step: every fourth step is a passkey task."""
    rng = np.random.default_rng((seed, _TRAINING, index))
    B, T, n_pairs = _SHAPES[rng.integers(len(_SHAPES))]
    if index % 4 == 3:
        return passkey(rng, B, T)
    return associative_recall(rng, B, T, n_pairs)


def train(config: ModelConfig, recipe: Recipe, report: Callable[[int, float], None]) -> Decoder:
    """Train a new model with its loss on the answers only; call `report` with step and loss."""
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    model = Decoder(config)
    optimizers = Optimizers(
        model,
        OptimConfig(optimizer="muon", learning_rate=recipe.learning_rate, weight_decay=0.0),
    )
    schedule = ScheduleConfig(kind="cosine", warmup_steps=recipe.warmup_steps)
    smoothed = 0.0
    for step in range(recipe.steps):
        tokens, targets = (torch.from_numpy(a) for a in batch(recipe.seed, step))
        loss = F.cross_entropy(*answers(model, tokens, targets))
        if not math.isfinite(loss.item()):
            raise RuntimeError(f"step {step + 1}: loss is {loss.item()}; lower the learning rate")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.step(rate_factor(schedule, step, recipe.steps), 1.0)
        optimizers.clear_gradients()
        smoothed = loss.item() if step == 0 else 0.98 * smoothed + 0.02 * loss.item()
        if (step + 1) % _REPORT_EVERY == 0:
            report(step + 1, smoothed)
    return model


def answers(model: Decoder, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits (N, V) and targets (N,) of the queries."""
    is_query = targets >= 0
    return model.head(model.hidden(tokens)[is_query]), targets[is_query]


@torch.no_grad()
def evaluate(model: Decoder, recipe: Recipe) -> dict[str, dict[int, float]]:
    """Return by length the share of correct answers and of entirely correct passkeys."""
    found: dict[str, dict[int, float]] = {"associative_recall": {}, "passkey": {}}
    for length, n_pairs in (TRAINED | BEYOND).items():
        rng = np.random.default_rng((recipe.seed, _EVALUATION, length))
        pairs = associative_recall(rng, max(1, recipe.answers // n_pairs), length, n_pairs)
        found["associative_recall"][length] = _share(_is_right(model, *pairs))
        keys = passkey(rng, recipe.passkeys, length)
        right = _is_right(model, *keys).view(recipe.passkeys, -1)
        found["passkey"][length] = _share(right.all(dim=1))
    return found


def _is_right(model: Decoder, tokens: Tokens, targets: Tokens) -> Tensor:
    """Return for each query, text by text, whether the argmax of its logits is the answer."""
    size = max(1, _BATCH_TOKENS // tokens.shape[1])
    right = []
    for first in range(0, len(tokens), size):
        part = slice(first, first + size)
        inputs: Any = (torch.from_numpy(a[part]) for a in (tokens, targets))
        logits, expected = answers(model, *inputs)
        right.append(logits.argmax(dim=-1) == expected)
    return torch.cat(right)


def _share(right: Tensor) -> float:
    return round(float(right.double().mean()), 4)
