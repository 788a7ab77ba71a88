"""The native training kernels as PyTorch operators: low-bit matmul, RMSNorm, SwiGLU gate.

reference.py computes the same: outputs of matmuls bit for bit, their gradients within 1e-5 of
the largest value.

Letters: M output features   K input features   N tokens   H heads   D head size
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from yocobit import _native
from yocobit.config import WeightKind
from yocobit.model.ops import dispatch
from yocobit.model.ops.reference import straight_through_gradients
from yocobit.model.quantization import weight_scale
from yocobit.packing.formats import FORMATS

_TYPES = {torch.float32: "<f4", torch.int8: "|i1"}


def matmul(x: Tensor, weights: list[Tensor], kind: WeightKind, kernels: str) -> list[Tensor]:
    """Return x (..., K) times each of weights (M, K), both quantised: (..., M) each."""
    rows = x.reshape(-1, x.shape[-1])
    ys = torch.ops.yocobit.matmul(rows, weights, kind, kernels)[: len(weights)]
    return [y.reshape(*x.shape[:-1], -1) for y in ys]


@torch.library.custom_op("yocobit::matmul", mutates_args=())
def _matmul(x: Tensor, weights: list[Tensor], kind: str, kernels: str) -> list[Tensor]:
    """Return the outputs (N, M), then int8 x, its scales and the weight scales for backward."""
    x, weights = x.contiguous(), [weight.contiguous() for weight in weights]
    # The sign of a weight is that of its difference from the mean; ternary weights need no mean.
    means = [x.new_zeros(()) if kind == "ternary" else weight.mean() for weight in weights]
    scales = torch.stack((*map(weight_scale, weights), *means)).view(2, -1).T.contiguous()
    ys, codes, x_scales = _matmul_outputs(x, weights, kind)
    dispatch.share_openmp()
    _native.training_forward(
        kernels,
        torch.get_num_threads(),
        as_array(x),
        _arrays(weights),
        as_array(scales),
        kind == "ternary",
        as_array(codes),
        as_array(x_scales),
        _arrays(ys),
    )
    return [*ys, codes, x_scales, scales]


@_matmul.register_fake
def _(x: Tensor, weights: list[Tensor], kind: str, kernels: str) -> list[Tensor]:
    ys, codes, x_scales = _matmul_outputs(x, weights, kind)
    return [*ys, codes, x_scales, x.new_empty((len(weights), 2))]


@torch.library.custom_op("yocobit::matmul_gradient", mutates_args=())
def _matmul_gradient(
    grads: list[Tensor],
    codes: Tensor,
    x_scales: Tensor,
    weights: list[Tensor],
    scales: Tensor,
    kind: str,
    kernels: str,
    needs_x: bool,
    needs_weights: bool,
) -> list[Tensor]:
    """Return the gradient of x (N, K), if needed, then those of the weights, if needed."""
    gradients = _matmul_gradients(codes, weights, needs_x, needs_weights)
    dispatch.share_openmp()
    _native.training_backward(
        kernels,
        torch.get_num_threads(),
        _arrays([grad.contiguous() for grad in grads]),
        as_array(codes),
        as_array(x_scales),
        _arrays([weight.contiguous() for weight in weights]),
        as_array(scales),
        kind == "ternary",
        as_array(gradients[0]) if needs_x else None,
        _arrays(gradients[needs_x:]),
    )
    return gradients


@_matmul_gradient.register_fake
def _(
    grads: list[Tensor],
    codes: Tensor,
    x_scales: Tensor,
    weights: list[Tensor],
    scales: Tensor,
    kind: str,
    kernels: str,
    needs_x: bool,
    needs_weights: bool,
) -> list[Tensor]:
    return _matmul_gradients(codes, weights, needs_x, needs_weights)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    _, weights, ctx.kind, ctx.kernels = inputs
    ctx.n_weights = len(weights)
    ctx.save_for_backward(*output[len(weights) :], *weights)


def _backward(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    codes, x_scales, scales, *weights = ctx.saved_tensors
    grads = grads[: ctx.n_weights]
    needs_x, needs_each, *_ = ctx.needs_input_grad
    needs_weights = any(needs_each)
    if torch.is_grad_enabled():  # for second derivatives, which the kernels do not support
        x_codes = codes[:, : weights[0].shape[1]]
        gradients = straight_through_gradients(grads, x_codes, x_scales[:, None], weights, ctx.kind)
        return *gradients, None, None
    gradients = torch.ops.yocobit.matmul_gradient(
        grads, codes, x_scales, weights, scales, ctx.kind, ctx.kernels, needs_x, needs_weights
    )
    of_weights = gradients[needs_x:] if needs_weights else [None] * len(weights)
    return gradients[0] if needs_x else None, of_weights, None, None


_matmul.register_autograd(_backward, setup_context=_save_for_backward)


@torch.library.custom_op("yocobit::norm", mutates_args=())
def norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return x r weight and r = 1 / sqrt(mean(x^2) + eps), (N, K) and (N,), of x (N, K)."""
    y, r = torch.empty_like(x), x.new_empty(x.shape[0])
    _native.training_norm(*_context(), as_array(x), as_array(weight), eps, as_array(y), as_array(r))
    return y, r


@norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[0])


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

    gate is (N, K); up is (1, N, K) or, with has_heads, (H, N, D) and normalised by head first.
    """
    y, r, head_r = _gate_outputs(gate, up, has_heads)
    w = None if weight is None else as_array(weight)
    outputs = (as_array(y), as_array(r), as_array(head_r))
    _native.training_gate(*_context(), as_array(gate), as_array(up), w, eps, *outputs)
    return y, r, head_r


@gate.register_fake
def _(
    gate: Tensor, up: Tensor, weight: Tensor | None, eps: float, has_heads: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _gate_outputs(gate, up, has_heads)


@torch.library.custom_op("yocobit::gate_gradient", mutates_args=())
def gate_gradient(
    grad: Tensor, gate: Tensor, up: Tensor, weight: Tensor | None, r: Tensor, head_r: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of gate (N, K), of up as (N, H * D), and of weight (K,)."""
    gradients = _gate_gradients(gate)
    w = None if weight is None else as_array(weight)
    gates, factors = (as_array(gate), as_array(up)), (as_array(r), as_array(head_r))
    outputs = [as_array(tensor) for tensor in gradients]
    _native.training_gate_gradient(*_context(), as_array(grad), *gates, w, *factors, *outputs)
    return gradients


@gate_gradient.register_fake
def _(
    grad: Tensor, gate: Tensor, up: Tensor, weight: Tensor | None, r: Tensor, head_r: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _gate_gradients(gate)


def as_array(tensor: Tensor) -> NDArray[Any]:
    """Return an array that shares the memory of a tensor on the CPU."""
    return np.asarray(_Memory(tensor))


class _Memory:
    """The array interface of a tensor.

    tensor.numpy() would fix the size of the storage, which FSDP frees and reallocates.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.__array_interface__ = {
            "data": (tensor.data_ptr(), False),
            "shape": tuple(tensor.shape),
            "strides": tuple(stride * tensor.element_size() for stride in tensor.stride()),
            "typestr": _TYPES[tensor.dtype],
            "version": 3,
        }


def _arrays(tensors: list[Tensor]) -> list[NDArray[Any]]:
    return [as_array(tensor) for tensor in tensors]


def _context() -> tuple[str, int]:
    """Return the kernels to use and the number of threads, which are PyTorch's own."""
    dispatch.share_openmp()
    return dispatch.kernels(), torch.get_num_threads()


def _matmul_outputs(
    x: Tensor, weights: list[Tensor], kind: str
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return empty outputs (N, M), and int8 (N, K padded to blocks) and scales (N,) of x (N, K)."""
    N, K = x.shape
    block = FORMATS[kind].block_columns
    codes = x.new_empty((N, (K + block - 1) // block * block), dtype=torch.int8)
    return [x.new_empty((N, w.shape[0])) for w in weights], codes, x.new_empty(N)


def _matmul_gradients(
    codes: Tensor, weights: list[Tensor], needs_x: bool, needs_weights: bool
) -> list[Tensor]:
    first = weights[0]
    grad_x = [first.new_empty((codes.shape[0], first.shape[1]))] if needs_x else []
    return grad_x + ([w.new_empty(w.shape) for w in weights] if needs_weights else [])


def _gate_outputs(gate: Tensor, up: Tensor, has_heads: bool) -> tuple[Tensor, Tensor, Tensor]:
    N, H = gate.shape[0], up.shape[0] if has_heads else 0
    return torch.empty_like(gate), gate.new_empty(N), gate.new_empty((N, H))


def _gate_gradients(gate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(gate), torch.empty_like(gate), gate.new_empty(gate.shape[1])
