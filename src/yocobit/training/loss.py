"""The loss of the output head, computed in slices of tokens to bound the memory of logits.

    cross-entropy   log Z - logit of the target,   Z = sum exp logits
    z-loss          (log Z)^2, which keeps logits near 0 (PaLM, arXiv:2204.02311)
    divergence      sum p (log p - log q),  p and q softmax(logits / temperature) of teacher and
                    student (arXiv:1503.02531)

    loss = (1 - w) cross-entropy + w temperature^2 divergence + z_weight z-loss,  w = distill.weight

Letters: N tokens   C model width   V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from yocobit.model.bitlinear import uses_bfloat16_matmul

_SLICE = 512  # tokens; their logits and gradients fit in the CPU caches


@dataclass(frozen=True)
class TeacherOutput:
    """A teacher's hidden states of N tokens; the head maps slices of them to logits."""

    hidden: Tensor  # (N, width of the teacher)
    head: Callable[[Tensor], Tensor]  # hidden states to logits, at least as many as the student has
    weight: float  # w of the loss
    temperature: float


class _HeadLoss(torch.autograd.Function):
    """The forward pass also computes the gradients, which need the same probabilities."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        z_weight: float,
        teacher: TeacherOutput | None,
        has_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        z_loss, terms = x.new_zeros(()), x.new_zeros(2)
        nats, divergence = terms
        grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(weight)
        dtype = torch.bfloat16 if uses_bfloat16_matmul(x) else x.dtype
        x, weight = x.to(dtype), weight.to(dtype)
        for first in range(0, len(x), _SLICE):
            part = slice(first, first + _SLICE)
            logits = (x[part] @ weight.mT).to(terms.dtype)  # (N, V)
            target = targets[part, None]
            log_p = logits.log_softmax(dim=-1)
            target_log_p = log_p.gather(1, target)
            nats -= target_log_p.sum()
            log_z = logits.gather(1, target) - target_log_p  # (N, 1)
            grad = log_p.exp_()
            if z_weight:
                z_loss += log_z.square().sum()
                z_grad = grad * (2 * z_weight * log_z)
            grad.scatter_add_(1, target, grad.new_full((), -1.0).expand_as(target))
            if teacher is not None:
                part_divergence, part_grad = _divergence(logits, teacher, part)
                divergence += part_divergence
                grad.lerp_(part_grad, teacher.weight)
            if z_weight:
                grad += z_grad
            if has_grad:
                grad = grad.to(dtype)
                grad_x[part] = grad @ weight
                grad_weight += grad.mT @ x[part]
        ctx.save_for_backward(grad_x, grad_weight)
        ctx.mark_non_differentiable(terms)
        loss = nats
        if teacher is not None:
            loss = nats.lerp(divergence * teacher.temperature**2, teacher.weight)
        return loss + z_weight * z_loss, terms

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight = ctx.saved_tensors
        return grad_x * grad, grad_weight * grad, None, None, None, None


def _divergence(logits: Tensor, teacher: TeacherOutput, part: slice) -> tuple[Tensor, Tensor]:
    """Return the divergence of a slice, and temperature^2 times its gradient by logits (N, V)."""
    teacher_logits = teacher.head(teacher.hidden[part])[:, : logits.shape[1]].to(logits.dtype)
    log_p = (teacher_logits / teacher.temperature).log_softmax(dim=-1)
    log_q = (logits / teacher.temperature).log_softmax(dim=-1)
    p = log_p.exp()
    divergence = (p * log_p.sub_(log_q)).sum()
    return divergence, log_q.exp_().sub_(p).mul_(teacher.temperature)


# Shapes vary with the number of targets, and there is nothing to fuse.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def head_loss(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    z_weight: float = 0.0,
    teacher: TeacherOutput | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the loss of logits x weight^T, and cross-entropy and divergence (2,): sums of nats.

    x is (N, C), weight (V, C), targets (N); a negative target is ignored. Only the loss has a
    gradient.
    """
    in_loss = targets >= 0
    if not in_loss.all():
        x, targets = x[in_loss], targets[in_loss]
        if teacher is not None:
            teacher = replace(teacher, hidden=teacher.hidden[in_loss])
    has_grad = torch.is_grad_enabled()
    found: tuple[Tensor, Tensor] = _HeadLoss.apply(  # type: ignore[no-untyped-call]
        x, weight, targets, z_weight, teacher, has_grad
    )
    return found
