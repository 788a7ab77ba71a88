"""Compute settings of a process: threads, the precision of matmuls, torch.compile.

    "float32"    float32
    "bfloat16"   dense projections, the head and Muon from bfloat16 inputs, accumulated in float32

Everything else is float32: weights, norms, softmax, states. Matmuls of quantised weights are the
same in both: exact integers forward, and gradients as in yocobit.model.ops.dispatch. PyTorch's
own switch carries the setting: torch.set_float32_matmul_precision("medium") allows bfloat16.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import nn

from yocobit.config import ConfigError
from yocobit.hardware.host import default_threads
from yocobit.system import c_function
from yocobit.training.config import Precision

_BFLOAT16_FEATURES = ("avx512_bf16", "avx512_vnni")  # without them, bfloat16 is emulated
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # <malloc.h> of glibc


class CompilationError(RuntimeError):
    """torch.compile cannot compile the model."""


def set_threads(threads: int | None, n_local_processes: int) -> int:
    """Set torch's threads; return their number.

    By default, the CPUs that the processes of this machine may use are divided among them.
    OMP_NUM_THREADS lowers that, except with several processes: torchrun sets it to 1 if unset.
    """
    if threads is None:
        threads = max(1, default_threads() // n_local_processes)
        limit = os.environ.get("OMP_NUM_THREADS", "")
        if limit.isdecimal() and int(limit) > 0 and n_local_processes == 1:
            threads = min(threads, int(limit))
    torch.set_num_threads(threads)
    return threads


def keep_freed_memory() -> None:
    """Let glibc reuse the memory of freed tensors for the rest of the process.

    By default it returns large blocks to the system, and each reuse of a page costs a page fault.
    Every step needs the same memory, so the peak hardly grows.
    """
    mallopt = c_function("mallopt")
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def choose_precision(requested: Precision | None) -> Precision:
    """Return the requested precision or, for None, the faster one on this CPU."""
    capabilities = torch.cpu.get_capabilities()
    missing = [name for name in _BFLOAT16_FEATURES if not capabilities.get(name)]
    if requested == "bfloat16" and missing:
        raise ConfigError(
            f"run.precision is 'bfloat16' but this CPU has no {' and no '.join(missing)}; "
            "set it to 'float32' or omit it"
        )
    if requested:
        return requested
    # Twice the rate of float32 on AMD, half of it on Intel without AMX (benchmarks in docs/).
    is_fast = capabilities.get("amx_bf16") or "AMD" in capabilities.get("cpu_name", "")
    return "bfloat16" if is_fast and not missing else "float32"


@contextmanager
def matmul_precision(precision: Precision) -> Iterator[None]:
    """Set the precision of matmuls inside the block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if precision == "bfloat16" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def compile_error() -> str | None:
    """Return the reason that torch.compile fails on this machine; None if it compiles x + 1."""
    try:
        with compile_errors_in_one_line():
            torch.compile(lambda x: x + 1)(torch.zeros(2))
    except CompilationError as error:
        return str(error)
    return None


def compiled(module: nn.Module) -> nn.Module:
    """Compile a module, once for each shape of its inputs."""
    return cast(nn.Module, torch.compile(module, dynamic=False))


@contextmanager
def compile_errors_in_one_line() -> Iterator[None]:
    """Raise errors of torch.compile as CompilationError, one line with a remedy."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    try:
        yield
    except TorchDynamoException as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        # The cache may contain incomplete files of a killed process.
        raise CompilationError(
            f"torch.compile fails ({reason}); omit --compile, or empty {cache_dir()}"
        ) from error
