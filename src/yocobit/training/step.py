"""One gradient step: what is minimised, and how a batch becomes one movement of the weights.

Letters: B batch   T positions   C model width
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from yocobit.model import Decoder
from yocobit.training.corpus import Batch
from yocobit.training.loss import head_cross_entropy
from yocobit.training.optim import Optimizers


class Objective(nn.Module):
    """What training minimises. All that reads weights happens in `forward`, so that this module
    is what is compiled, sharded or replicated.
    """

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, inputs: Tensor, targets: Tensor, resets: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the objective and the cross-entropy in nats, each summed over scored targets.

        Inputs, targets and resets are (B, T); a target below 0 is not scored. Only the first result
        has a gradient.
        """
        hidden = self.model.hidden(inputs, resets).flatten(0, 1)  # (B * T, C)
        nats = head_cross_entropy(hidden, self.model.head.weight, targets.flatten())
        return nats, nats.detach()


@dataclass(frozen=True)
class StepResult:
    """What one step found before it moved the weights."""

    loss: float  # nats per scored target
    grad_norm: float  # before clipping

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class GradientStep:
    """The gradient of a global batch, its clipping, and the movement of the weights.

    Sums over targets are divided by the number of scored targets of all micro-batches: how a
    batch is cut never changes what its loss means.
    """

    def __init__(self, objective: nn.Module, optimizers: Optimizers, grad_clip: float) -> None:
        self.objective, self.optimizers = objective, optimizers
        self.max_norm = grad_clip or math.inf

    def __call__(
        self, batches: Sequence[Batch], rate_factor: float, decay_factor: float
    ) -> StepResult:
        """Move the weights by the gradient of `batches`, if it is finite."""
        n_scored = max(1, sum(int((batch.targets >= 0).sum()) for batch in batches))
        nats = 0.0
        for batch in batches:
            objective, part_nats = self.objective(batch.inputs, batch.targets, batch.resets)
            (objective / n_scored).backward()
            nats += part_nats.item()
        parameters = self.objective.parameters()
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_norm)
        result = StepResult(nats / n_scored, float(norm))
        if result.is_finite:
            self.optimizers.step(rate_factor, decay_factor)
        return result
