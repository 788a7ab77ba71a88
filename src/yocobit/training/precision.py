"""What products are computed in. Everything else is float32: weights, norms, softmax, states.

"float32"    float32
"bfloat16"   dense projections, the head and Muon's from bfloat16 factors, summed in float32

Products of quantised weights are the same in both: exact integers forward, and gradients as
yocobit.model.ops.dispatch says. PyTorch's own switch carries the setting:
torch.set_float32_matmul_precision("medium") allows bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from yocobit.config import ConfigError

Precision = Literal["float32", "bfloat16"]
_INSTRUCTIONS = ("avx512_bf16", "avx512_vnni")  # without them, bfloat16 is emulated


def choose_precision(wanted: Precision | None) -> Precision:
    """Return what this CPU computes in: as wanted, or the fastest that it has instructions for."""
    capabilities = torch.cpu.get_capabilities()
    missing = [name for name in _INSTRUCTIONS if not capabilities.get(name)]
    if wanted == "bfloat16" and missing:
        raise ConfigError(
            f"run.precision is 'bfloat16' but this CPU has no {' and no '.join(missing)}; "
            "set it to 'float32' or leave it out"
        )
    if wanted:
        return wanted
    # Twice float32's rate on AMD, half of it on Intel without AMX (docs/performance.md).
    is_fast = capabilities.get("amx_bf16") or "AMD" in capabilities.get("cpu_name", "")
    return "bfloat16" if is_fast and not missing else "float32"


@contextmanager
def products_in(precision: Precision) -> Iterator[None]:
    """Compute products in `precision` inside the block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if precision == "bfloat16" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
