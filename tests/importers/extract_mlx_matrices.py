"""Write data/mlx_matrices.safetensors: matrices as mlx packs them, and the weights that it reads.

    pip install 'mlx[cpu]' safetensors
    python tests/importers/extract_mlx_matrices.py

Codes, scales and biases are random; mlx (MIT) dequantises them in float32.
"""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
from safetensors.numpy import save_file

ROWS, COLUMNS = 3, 256
OUT = Path(__file__).parent / "data" / "mlx_matrices.safetensors"

if __name__ == "__main__":
    rng = np.random.default_rng(0)
    arrays = {}
    for bits, columns in ((1, 128), (2, 64), (2, 128), (4, 64), (8, 32)):
        codes = rng.integers(0, 1 << 32, (ROWS, COLUMNS * bits // 32), dtype=np.uint32)
        scales = rng.normal(size=(ROWS, COLUMNS // columns)).astype(np.float16)
        biases = rng.normal(size=scales.shape).astype(np.float16)
        parts = (mx.array(scales.astype(np.float32)), mx.array(biases.astype(np.float32)))
        weights = mx.dequantize(mx.array(codes), *parts, group_size=columns, bits=bits)
        name = f"{bits}.{columns}"
        arrays |= {f"{name}.weight": codes, f"{name}.scales": scales, f"{name}.biases": biases}
        arrays[f"{name}.weights"] = np.array(weights)
    save_file(arrays, OUT)
