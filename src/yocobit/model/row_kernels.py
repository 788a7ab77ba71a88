"""The kernels of native/kernels/row_kernels.h as operators of PyTorch; norm.py has their twins.

Letters: N tokens   K features   H heads   D head size
"""

from __future__ import annotations

import torch
from torch import Tensor

from yocobit import _native
from yocobit.model import native_products
from yocobit.model.native_products import as_array

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
    _native.training_norm(*_context(), as_array(x), as_array(weight), eps, as_array(y), as_array(r))
    return y, r


@norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(len(x))


@torch.library.custom_op("yocobit::norm_gradient", mutates_args=())
def norm_gradient(grad: Tensor, x: Tensor, weight: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of x (N, K) and weight (K,)."""
    gradients = torch.empty_like(x), torch.empty_like(weight)
    arrays = [as_array(tensor) for tensor in (grad, x, weight, r, *gradients)]
    _native.training_norm_gradient(*_context(), *arrays)
    return gradients


@norm_gradient.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight)


@torch.library.custom_op("yocobit::gate", mutates_args=())
def gate(
    gate: Tensor, up: Tensor, weight: Tensor | None, eps: float, has_heads: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return silu(gate) * up, normalised if there is a weight, and r (N,) and head_r (N, H).

    gate is (N, K) and up (H, N, D), each head of it normalised first if has_heads.
    """
    y, r, head_r = _outputs(gate, up, has_heads)
    w = None if weight is None else as_array(weight)
    outputs = (as_array(y), as_array(r), as_array(head_r))
    _native.training_gate(*_context(), as_array(gate), as_array(up), w, eps, *outputs)
    return y, r, head_r


@gate.register_fake
def _(
    gate: Tensor, up: Tensor, weight: Tensor | None, eps: float, has_heads: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _outputs(gate, up, has_heads)


@torch.library.custom_op("yocobit::gate_gradient", mutates_args=())
def gate_gradient(
    grad: Tensor, gate: Tensor, up: Tensor, weight: Tensor | None, r: Tensor, head_r: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of gate (N, K), of up as (N, H * D), and of weight (K,)."""
    gradients = _gradients(gate)
    w = None if weight is None else as_array(weight)
    gates, factors = (as_array(gate), as_array(up)), (as_array(r), as_array(head_r))
    outputs = [as_array(tensor) for tensor in gradients]
    _native.training_gate_gradient(*_context(), as_array(grad), *gates, w, *factors, *outputs)
    return gradients


@gate_gradient.register_fake
def _(
    grad: Tensor, gate: Tensor, up: Tensor, weight: Tensor | None, r: Tensor, head_r: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(gate)


def _outputs(gate: Tensor, up: Tensor, has_heads: bool) -> tuple[Tensor, Tensor, Tensor]:
    N, H = len(gate), len(up) if has_heads else 0
    return torch.empty_like(gate), gate.new_empty(N), gate.new_empty((N, H))


def _gradients(gate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(gate), torch.empty_like(gate), gate.new_empty(gate.shape[1])


def _context() -> tuple[str, int]:
    """Return the kernels to use and the number of threads, which are PyTorch's own."""
    native_products.share_threads_of_torch()
    return native_products.kernels(), torch.get_num_threads()
