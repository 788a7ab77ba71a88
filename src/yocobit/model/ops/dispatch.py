"""Selection of the training kernels: native ones of this CPU, or plain PyTorch."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from yocobit import _native

PYTORCH = "pytorch"
_SUPPORTED = tuple(_native.supported_kernels())
_MAX_COLUMNS = 1 << 17  # 127 K < 2^24: integer sums are exact in float32
_LANES = 8  # the row sizes of norm and gate kernels are multiples of it

_selected: str | None = None


def kernels() -> str:
    """Return the name of the kernels in use: the fastest of this CPU unless others were selected.

    On a CPU that supports the scalar kernels only, that is "pytorch", the reference.
    """
    if _selected is not None:
        return _selected
    return PYTORCH if _SUPPORTED[-1] == "scalar" else _SUPPORTED[-1]


@contextmanager
def use_kernels(name: str) -> Iterator[None]:
    """Use kernels by name: "pytorch" or one of _native.supported_kernels()."""
    global _selected
    names = (PYTORCH, *_SUPPORTED)
    if name not in names:
        raise ValueError(f"kernels must be one of {', '.join(names)} but are {name!r}")
    before, _selected = _selected, name
    try:
        yield
    finally:
        _selected = before


def describe() -> str:
    """Return a label of the low-bit matmul kernels in use, for logs."""
    return "plain PyTorch" if kernels() == PYTORCH else f"native {kernels()} kernels"


def matmul_kernels(x: Tensor, weights: Sequence[Tensor]) -> str:
    """Return the kernels that multiply x (..., K) by weights (M, K).

    Native ones for non-empty float32 tensors on a CPU, "pytorch" otherwise.
    """
    is_supported = all(map(_is_float32_on_cpu, (x, *weights)))
    if not is_supported or x.numel() == 0 or x.shape[-1] > _MAX_COLUMNS:
        return PYTORCH
    return kernels()


def has_row_kernels(*tensors: Tensor) -> bool:
    """Whether native norm and gate kernels run for tensors of this dtype, device and row size."""
    return kernels() != PYTORCH and all(
        _is_float32_on_cpu(x) and x.shape[-1] % _LANES == 0 for x in tensors
    )


def _is_float32_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32


@cache
def share_openmp() -> None:
    """Run native kernels on the threads of the OpenMP runtime that PyTorch loaded, if known."""
    if not sys.platform.startswith("linux"):
        return
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
    loaded = ctypes.CDLL(None)
    if all(hasattr(loaded, name) for name in names):
        _native.use_openmp(
            *(ctypes.cast(getattr(loaded, name), ctypes.c_void_p).value or 0 for name in names)
        )
