"""One optimizer step: the objective, the gradient of a global batch, and the weight update.

Letters: B batch   T positions   C model width
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yocobit.model import Decoder
from yocobit.model.experts import MixtureOfExperts
from yocobit.training.batch import Batch
from yocobit.training.distill import Teacher
from yocobit.training.distributed import SINGLE_PROCESS, Processes
from yocobit.training.loss import TeacherOutput, head_loss
from yocobit.training.optim import Optimizers
from yocobit.training.sharding import backward_context, is_sharded, local
from yocobit.training.state import GradientSpikeGuard

_BLOCK = 1 << 17  # elements of a gradient whose squares are summed at a time: they fit in L2


class Objective(nn.Module):
    """The loss of a model on a batch.

    Only `forward` reads weights: this is the module to compile, shard or replicate. The teacher is
    not a submodule. `balance_weight` multiplies the load-balancing loss, the mean over the layers
    with experts.
    """

    def __init__(
        self,
        model: Decoder,
        z_weight: float,
        teacher: Teacher | None = None,
        balance_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.model, self.z_weight, self.teacher = model, z_weight, teacher
        self.balance_weight = balance_weight
        for experts in _experts(model):
            experts.records_balance = True

    def forward(
        self, inputs: Tensor, targets: Tensor, resets: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the loss, and its terms (3,) without gradient: cross-entropy, divergence from the
        teacher, and load-balancing loss.

        Inputs, targets and resets are (B, T); a negative target is not in the loss, and a position
        where resets is True does not attend to earlier ones. All results are sums over targets: of
        nats, and of the load-balancing loss, which is equal for all targets. Without gradients,
        divergence and load-balancing loss are 0.
        """
        hidden = self.model.hidden(inputs, resets).flatten(0, 1)  # (B * T, C)
        teacher_output = None
        if self.teacher is not None and torch.is_grad_enabled():
            teacher_output = self.teacher.output(inputs, resets)
        if (scale := self.model.config.logit_scale) != 1:
            hidden = hidden * scale
        return self._loss(hidden, targets.flatten(), teacher_output)

    # head_loss is not compiled, and a graph after it would only add its results.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _loss(
        self, hidden: Tensor, targets: Tensor, teacher_output: TeacherOutput | None
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of hidden (N, C) and targets (N), and its terms."""
        weight = self.model.head.weight
        loss, terms = head_loss(hidden, weight, targets, self.z_weight, teacher_output)
        balance = _balance(self.model, targets)
        if balance is None:
            return loss, F.pad(terms, (0, 1))
        loss = loss + self.balance_weight * balance
        return loss, torch.cat([terms, balance.detach().to(terms.dtype)[None]])


def _balance(model: Decoder, targets: Tensor) -> Tensor | None:
    """Return the load-balancing loss of the last forward pass times the number of targets."""
    losses = []
    for experts in _experts(model):
        if experts.balance is not None:
            losses.append(experts.balance)
        experts.balance = None  # frees its graph
    if not losses or not torch.is_grad_enabled():  # recomputation in backward records it again
        return None
    return torch.stack(losses).mean() * (targets >= 0).sum()


def _experts(model: Decoder) -> list[MixtureOfExperts]:
    return [module for module in model.modules() if isinstance(module, MixtureOfExperts)]


@dataclass(frozen=True)
class StepResult:
    """Measurements of one step, taken before its weight update."""

    loss: float  # cross-entropy in nats per target
    divergence: float  # from the teacher, in nats per target; 0 without one
    balance: float  # load-balancing loss, 1 if balanced; 0 without experts
    grad_norm: float  # before clipping
    skipped: str | None  # why the weights were not updated


class GradientStep:
    """The gradient of a global batch, gradient clipping and the weight update.

    Sums over targets are divided by the number of targets in all micro-batches of all processes, so
    that the loss does not depend on the division into micro-batches.
    """

    def __init__(
        self,
        objective: nn.Module,
        optimizers: Optimizers,
        guard: GradientSpikeGuard,
        grad_clip: float,
        spike_factor: float,
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        self.objective, self.optimizers, self.guard = objective, optimizers, guard
        self.processes = processes
        self.max_norm = grad_clip or math.inf
        self.spike_factor = spike_factor

    def __call__(
        self, batches: Sequence[Batch], rate_factor: float, decay_factor: float
    ) -> StepResult:
        """Update the weights by the gradient of `batches` unless the guard skips the step.

        Every process passes the same number of micro-batches and gets the same result.
        """
        n_here = sum(int((batch.targets >= 0).sum()) for batch in batches)
        (n_targets,) = self.processes.sum(n_here)
        n_targets = max(1, n_targets)
        n_processes = self.processes.size
        terms = torch.zeros(3, dtype=torch.float64)
        for i, batch in enumerate(batches, start=1):
            with backward_context(self.objective, is_last=i == len(batches)):
                loss, part_terms = self.objective(batch.inputs, batch.targets, batch.resets)
                # FSDP2 and DDP divide the sum over processes by their number.
                (loss / (n_targets / n_processes)).backward()
            terms += part_terms
        nats, divergence, balance, squares = self.processes.sum(
            *(terms / n_targets).tolist(), self._local_squares()
        )
        grad_norm = math.sqrt(squares)
        skipped = self.guard.check(nats + divergence, grad_norm, self.spike_factor)
        if skipped is None:
            self._clip(grad_norm)
            self.optimizers.step(rate_factor, decay_factor)
        self.optimizers.clear_gradients()
        return StepResult(nats, divergence, balance, grad_norm, skipped)

    def _local_squares(self) -> float:
        """Return this process's part of the squared gradient norm.

        In float64, so that any number of processes clips by the same float32. A difference in its
        last bit would change all weights, and could change quantised codes.
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
