"""Products with ternary and sign weights by the native training kernels, as PyTorch operators.

They compute what plain_products.py does: outputs to the bit, gradients within 1e-5 of the largest
value. Which of the two runs is decided by `kernels_for` and is the user's to change with
`use_kernels`.

Letters: M output features   K input features   N tokens
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from yocobit import _native
from yocobit.config import WeightKind
from yocobit.model.plain_products import straight_through_gradients
from yocobit.model.quantization import weight_scale

PYTORCH = "pytorch"
_BLOCKS = {True: 128, False: 256}  # columns of a packed block, by whether weights are ternary
_SUPPORTED = tuple(_native.supported_kernels())
_TYPES = {torch.float32: "<f4", torch.int8: "|i1"}
_MOST_COLUMNS = 1 << 17  # whose sums are exact in float32

_chosen: str | None = None


def kernels() -> str:
    """Return the name of the kernels in use: the fastest of this CPU unless one was chosen.

    "pytorch" is the plain form, used where the CPU has no kernels but the scalar reference.
    """
    if _chosen is not None:
        return _chosen
    return PYTORCH if _SUPPORTED[-1] == "scalar" else _SUPPORTED[-1]


@contextmanager
def use_kernels(name: str) -> Iterator[None]:
    """Use kernels by name: "pytorch" or one of _native.supported_kernels()."""
    global _chosen
    names = (PYTORCH, *_SUPPORTED)
    if name not in names:
        raise ValueError(f"kernels must be one of {', '.join(names)} but are {name!r}")
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


def describe() -> str:
    """Say in a few words what multiplies ternary and sign weights here."""
    return "plain PyTorch" if kernels() == PYTORCH else f"native {kernels()} kernels"


def kernels_for(x: Tensor, weights: Sequence[Tensor]) -> str:
    """Return the name of the kernels that multiply x (..., K) by weights (M, K).

    They are native for float32 on a CPU; elsewhere, and of nothing, "pytorch".
    """
    is_float32_on_cpu = all(
        tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in (x, *weights)
    )
    if not is_float32_on_cpu or x.numel() == 0 or x.shape[-1] > _MOST_COLUMNS:
        return PYTORCH
    return kernels()


def project(x: Tensor, weights: list[Tensor], is_ternary: bool, name: str) -> list[Tensor]:
    """Return x (..., K) times each of weights (M, K), both rounded: (..., M) each."""
    rows = x.reshape(-1, x.shape[-1])
    ys = torch.ops.yocobit.project(rows, weights, is_ternary, name)[: len(weights)]
    return [y.reshape(*x.shape[:-1], -1) for y in ys]


@torch.library.custom_op("yocobit::project", mutates_args=())
def _project(x: Tensor, weights: list[Tensor], is_ternary: bool, kernels: str) -> list[Tensor]:
    """Return the outputs (N, M), then what backward needs: the codes of x, its scales, theirs."""
    x, weights = x.contiguous(), [weight.contiguous() for weight in weights]
    # The mean decides the codes of sign weights only.
    means = [x.new_zeros(()) if is_ternary else weight.mean() for weight in weights]
    scales = torch.stack((*map(weight_scale, weights), *means)).view(2, -1).T.contiguous()
    ys, codes, x_scales = _outputs(x, weights, is_ternary)
    share_threads_of_torch()
    _native.training_forward(
        kernels,
        torch.get_num_threads(),
        as_array(x),
        _arrays(weights),
        as_array(scales),
        is_ternary,
        as_array(codes),
        as_array(x_scales),
        _arrays(ys),
    )
    return [*ys, codes, x_scales, scales]


@_project.register_fake
def _(x: Tensor, weights: list[Tensor], is_ternary: bool, kernels: str) -> list[Tensor]:
    ys, codes, x_scales = _outputs(x, weights, is_ternary)
    return [*ys, codes, x_scales, x.new_empty((len(weights), 2))]


@torch.library.custom_op("yocobit::project_backward", mutates_args=())
def _project_backward(
    grads: list[Tensor],
    codes: Tensor,
    x_scales: Tensor,
    weights: list[Tensor],
    scales: Tensor,
    is_ternary: bool,
    kernels: str,
    needs_x: bool,
    needs_weights: bool,
) -> list[Tensor]:
    """Return the gradient of x (N, K), if wanted, then those of the weights, if wanted."""
    gradients = _gradients(codes, weights, needs_x, needs_weights)
    share_threads_of_torch()
    _native.training_backward(
        kernels,
        torch.get_num_threads(),
        _arrays([grad.contiguous() for grad in grads]),
        as_array(codes),
        as_array(x_scales),
        _arrays([weight.contiguous() for weight in weights]),
        as_array(scales),
        is_ternary,
        as_array(gradients[0]) if needs_x else None,
        _arrays(gradients[needs_x:]),
    )
    return gradients


@_project_backward.register_fake
def _(
    grads: list[Tensor],
    codes: Tensor,
    x_scales: Tensor,
    weights: list[Tensor],
    scales: Tensor,
    is_ternary: bool,
    kernels: str,
    needs_x: bool,
    needs_weights: bool,
) -> list[Tensor]:
    return _gradients(codes, weights, needs_x, needs_weights)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    _, weights, ctx.is_ternary, ctx.kernels = inputs
    ctx.n_weights = len(weights)
    ctx.save_for_backward(*output[len(weights) :], *weights)


def _backward(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    codes, x_scales, scales, *weights = ctx.saved_tensors
    grads = grads[: ctx.n_weights]
    needs_x, needs_each, *_ = ctx.needs_input_grad
    needs_weights = any(needs_each)
    if torch.is_grad_enabled():  # somebody will differentiate the gradients: see there
        kind: WeightKind = "ternary" if ctx.is_ternary else "sign"
        x_codes = codes[:, : weights[0].shape[1]]
        gradients = straight_through_gradients(grads, x_codes, x_scales[:, None], weights, kind)
        return *gradients, None, None
    gradients = torch.ops.yocobit.project_backward(
        grads, codes, x_scales, weights, scales, ctx.is_ternary, ctx.kernels, needs_x, needs_weights
    )
    of_weights = gradients[needs_x:] if needs_weights else [None] * len(weights)
    return gradients[0] if needs_x else None, of_weights, None, None


_project.register_autograd(_backward, setup_context=_remember)


def _outputs(
    x: Tensor, weights: list[Tensor], is_ternary: bool
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return empty outputs (N, M), codes (N, K padded to blocks) and scales (N,) of x (N, K)."""
    N, K = x.shape
    block = _BLOCKS[is_ternary]
    codes = x.new_empty((N, (K + block - 1) // block * block), dtype=torch.int8)
    return [x.new_empty((N, w.shape[0])) for w in weights], codes, x.new_empty(N)


def _gradients(
    codes: Tensor, weights: list[Tensor], needs_x: bool, needs_weights: bool
) -> list[Tensor]:
    first = weights[0]
    grad_x = [first.new_empty((codes.shape[0], first.shape[1]))] if needs_x else []
    return grad_x + ([w.new_empty(w.shape) for w in weights] if needs_weights else [])


class _Memory:
    """The memory of a tensor to NumPy. Not tensor.numpy(): it would fix the size of the storage,
    which FSDP frees and makes anew.
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


def as_array(tensor: Tensor) -> NDArray[Any]:
    """Return an array that shares the memory of a tensor on the CPU."""
    return np.asarray(_Memory(tensor))


def _arrays(tensors: list[Tensor]) -> list[NDArray[Any]]:
    return [as_array(tensor) for tensor in tensors]


@cache
def share_threads_of_torch() -> None:
    """Give the kernels the OpenMP runtime that PyTorch has loaded, if it is one that they know."""
    if not sys.platform.startswith("linux"):
        return
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
    loaded = ctypes.CDLL(None)
    if all(hasattr(loaded, name) for name in names):
        _native.use_openmp(
            *(ctypes.cast(getattr(loaded, name), ctypes.c_void_p).value or 0 for name in names)
        )
