"""Cross-entropy of the head's logits, a slice of tokens at a time: never all logits at once.

Letters: N tokens   C model width   V vocabulary
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_SLICE = 512  # tokens; their logits and gradients stay in the cache


class _HeadCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        loss = x.new_zeros(())
        grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(weight)
        for first in range(0, len(x), _SLICE):
            part = slice(first, first + _SLICE)
            log_p = F.linear(x[part], weight).log_softmax(dim=-1)  # (N, V)
            target = targets[part, None]
            loss -= log_p.gather(1, target).sum()
            grad = log_p.exp_()
            grad.scatter_add_(1, target, grad.new_full((), -1.0).expand_as(target))
            grad_x[part] = grad @ weight
            grad_weight += grad.mT @ x[part]
        ctx.save_for_backward(grad_x, grad_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_x, grad_weight = ctx.saved_tensors
        return grad_x * grad, grad_weight * grad, None


def head_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of logits x weight^T in nats, summed over targets of at least 0.

    x is (N, C), weight (V, C), targets (N).
    """
    is_scored = targets >= 0
    if not is_scored.all():
        x, targets = x[is_scored], targets[is_scored]
    loss: Tensor = _HeadCrossEntropy.apply(x, weight, targets)  # type: ignore[no-untyped-call]
    return loss
