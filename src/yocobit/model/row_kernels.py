"""The native kernels of native/row_kernels.h as operators of PyTorch; norm.py has their twins.

Letters: N tokens   K features   H heads   D head size
"""

from __future__ import annotations

import torch
from torch import Tensor

from yocobit import _native
from yocobit.model import native_products

_LANES = 8


def serves(*tensors: Tensor) -> bool:
    """Whether kernels are in use and take tensors of this type, device and last dimension."""
    return native_products.kernels() != native_products.PYTORCH and all(
        x.device.type == "cpu" and x.dtype == torch.float32 and x.shape[-1] % _LANES == 0
        for x in tensors
    )


@torch.library.custom_op("yocobit::norm", mutates_args=())
def norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return x r weight and r = 1 / sqrt(mean(x^2) + eps), (N, K) and (N,), of x (N, K)."""
    y, r = torch.empty_like(x), x.new_empty(len(x))
    _native.norm(*_context(), x.detach(), weight.detach(), eps, y, r)
    return y, r


@torch.library.custom_op("yocobit::norm_gradient", mutates_args=())
def norm_gradient(grad: Tensor, x: Tensor, weight: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of x (N, K) and weight (K,)."""
    grad_x, grad_weight = torch.empty_like(x), torch.empty_like(weight)
    inputs = (grad.detach(), x.detach(), weight.detach(), r)
    _native.norm_gradient(*_context(), *inputs, grad_x, grad_weight)
    return grad_x, grad_weight


@torch.library.custom_op("yocobit::gate", mutates_args=())
def gate(
    gate: Tensor, up: Tensor, weight: Tensor | None, eps: float, has_heads: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return silu(gate) * up, normalised if there is a weight, and r (N,) and head_r (N, H).

    gate is (N, K) and up (H, N, D), each head of it normalised first if has_heads.
    """
    y, r = torch.empty_like(gate), gate.new_empty(len(gate))
    head_r = gate.new_empty(len(gate), len(up) if has_heads else 0)
    inputs = (gate.detach(), up.detach(), None if weight is None else weight.detach())
    _native.gate(*_context(), *inputs, eps, y, r, head_r)
    return y, r, head_r


@torch.library.custom_op("yocobit::gate_gradient", mutates_args=())
def gate_gradient(
    grad: Tensor, gate: Tensor, up: Tensor, weight: Tensor | None, r: Tensor, head_r: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of gate (N, K), up as (N, H * D), and weight (K,)."""
    grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(gate)
    grad_weight = gate.new_empty(gate.shape[1])
    inputs = (grad.detach(), gate.detach(), up.detach())
    w = None if weight is None else weight.detach()
    _native.gate_gradient(
        *_context(), *inputs, w, r, head_r, grad_gate, grad_up, grad_weight
    )
    return grad_gate, grad_up, grad_weight


@norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(len(x))


@norm_gradient.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight)


@gate.register_fake
def _(
    gate: Tensor, up: Tensor, weight: Tensor | None, eps: float, has_heads: bool
) -> tuple[Tensor, Tensor, Tensor]:
    N, H = len(gate), len(up) if has_heads else 0
    return torch.empty_like(gate), gate.new_empty(N), gate.new_empty(N, H)


@gate_gradient.register_fake
def _(
    grad: Tensor, gate: Tensor, up: Tensor, weight: Tensor | None, r: Tensor, head_r: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(gate), torch.empty_like(gate), gate.new_empty(gate.shape[1])


def _context() -> tuple[str, int]:
    """Return the kernels to use and the number of threads, which are PyTorch's own."""
    native_products._share_threads_of_torch()
    return native_products.kernels(), torch.get_num_threads()
