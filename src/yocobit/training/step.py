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
from yocobit.training.distill import Teacher
from yocobit.training.distributed import ALONE, Processes
from yocobit.training.guard import Guard
from yocobit.training.loss import head_loss
from yocobit.training.optim import Optimizers
from yocobit.training.sharding import backward_context, is_sharded, local

_BLOCK = 1 << 17  # elements of a gradient whose squares are summed at a time, in cache


class Objective(nn.Module):
    """What training minimises. All that reads weights happens in `forward`, so that this module
    is what is compiled, sharded or replicated. The teacher is not a part of it.
    """

    def __init__(self, model: Decoder, z_weight: float, teacher: Teacher | None = None) -> None:
        super().__init__()
        self.model, self.z_weight, self.teacher = model, z_weight, teacher

    def forward(
        self, inputs: Tensor, targets: Tensor, resets: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the loss, and cross-entropy and divergence from the teacher (2,) without gradient.

        Inputs, targets and resets are (B, T); a target below 0 is not scored, and a position where
        resets is True sees nothing before it. All are sums of nats over scored targets. Without
        gradients the teacher is not asked.
        """
        hidden = self.model.hidden(inputs, resets).flatten(0, 1)  # (B * T, C)
        guidance = None
        if self.teacher is not None and torch.is_grad_enabled():
            guidance = self.teacher.guide(inputs, resets)
        return head_loss(hidden, self.model.head.weight, targets.flatten(), self.z_weight, guidance)


@dataclass(frozen=True)
class StepResult:
    """What one step found, before it moved the weights."""

    loss: float  # cross-entropy in nats per scored target
    divergence: float  # from the teacher, in nats per scored target; 0 without one
    grad_norm: float  # before clipping
    skipped: str | None  # why the weights were not moved


class GradientStep:
    """The gradient of a global batch, its clipping, and the movement of the weights.

    Sums over targets are divided by the number of scored targets of all micro-batches of all
    processes: how a batch is cut never changes what its loss means.
    """

    def __init__(
        self,
        objective: nn.Module,
        optimizers: Optimizers,
        guard: Guard,
        grad_clip: float,
        spike_factor: float,
        processes: Processes = ALONE,
    ) -> None:
        self.objective, self.optimizers, self.guard = objective, optimizers, guard
        self.processes = processes
        self.max_norm = grad_clip or math.inf
        self.spike_factor = spike_factor

    def __call__(
        self, batches: Sequence[Batch], rate_factor: float, decay_factor: float
    ) -> StepResult:
        """Move the weights by the gradient of `batches`, unless the guard says no.

        Every process has as many micro-batches as the others, and gets the same result.
        """
        n_here = sum(int((batch.targets >= 0).sum()) for batch in batches)
        (n_scored,) = self.processes.sum(n_here)
        n_scored = max(1, n_scored)
        n_processes = self.processes.size
        terms = torch.zeros(2, dtype=torch.float64)
        for i, batch in enumerate(batches, start=1):
            with backward_context(self.objective, is_last=i == len(batches)):
                loss, part_terms = self.objective(batch.inputs, batch.targets, batch.resets)
                # FSDP2 and DDP divide the sum over processes by their number.
                (loss / (n_scored / n_processes)).backward()
            terms += part_terms
        nats, divergence, squares = self.processes.sum(
            *(terms / n_scored).tolist(), self._squares_here()
        )
        grad_norm = math.sqrt(squares)
        skipped = self.guard.check(nats + divergence, grad_norm, self.spike_factor)
        if skipped is None:
            self._clip(grad_norm)
            self.optimizers.step(rate_factor, decay_factor)
        self.optimizers.clear_gradients()
        return StepResult(nats, divergence, grad_norm, skipped)

    def _squares_here(self) -> float:
        """Return this process's part of the gradient's squared norm.

        In float64 and rounded later, so that every number of processes clips by the same float32:
        one bit of it moves all weights, and a quantised one over an edge.
        """
        squares = 0.0
        for gradient in self._gradients():
            share = 1 if is_sharded(gradient) else self.processes.size
            for block in local(gradient).flatten().split(_BLOCK):
                values = block.double()
                squares += float(values.dot(values)) / share
        return squares

    def _clip(self, norm: float) -> None:
        if norm > self.max_norm:
            for gradient in self._gradients():
                local(gradient).mul_(self.max_norm / norm)

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.objective.parameters() if p.grad is not None]
