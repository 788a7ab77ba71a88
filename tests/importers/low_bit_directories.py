"""Hugging Face and MLX directories of weights-only models in their published layouts.

Codes and scales are random. A directory comes with the float weights that it stands for, in the
names of transformers, so that transformers' own classes can run them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from published import SHAPE, random_model, stored
from safetensors.torch import save_file

WIDTHS = {
    **SHAPE,
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "head_dim": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
TRITS, SIGNS, INT2, ODD = (-1, 0, 1), (-1, 1), (-1, 0, 1, 2), (-3, -1, 1, 3)


class LowBit(NamedTuple):
    """A matrix of integers with a scale per group of columns, or per row if `columns` is None."""

    integers: np.ndarray  # int8 (M, K)
    scales: np.ndarray  # (M, groups)
    columns: int

    @classmethod
    def random(cls, rng, shape, values, columns, dtype=np.float16) -> LowBit:
        M, K = shape
        integers = rng.choice(np.array(values, dtype=np.int8), shape)
        scales = rng.uniform(0.01, 0.1, (M, -(-K // (columns or K)))).astype(dtype)
        if values == ODD:  # 3 times a scale is exact in float16
            scales = (scales.view(np.uint16) & np.uint16(0xFFF0)).view(np.float16)
        return cls(integers, scales, columns or K)

    @property
    def floats(self) -> np.ndarray:
        repeated = self.scales.astype(np.float32).repeat(self.columns, axis=1)
        return self.integers * repeated[:, : self.integers.shape[1]]


def model_and_matrices(
    kind="qwen3", values=TRITS, columns=128, seed=0, dtype=np.float16, **changes
):
    """Return transformers' model with quantised weights, and these matrices by module."""
    model = random_model(kind, seed, **{**WIDTHS, **changes})
    rng = np.random.default_rng(seed)
    matrices = {}
    with torch.no_grad():
        for name, module in model.named_modules():
            is_tied_head = name == "lm_head" and model.config.tie_word_embeddings
            if isinstance(module, torch.nn.Linear | torch.nn.Embedding) and not is_tied_head:
                shape = tuple(module.weight.shape)
                matrices[name] = LowBit.random(rng, shape, values, columns, dtype)
                module.weight.copy_(torch.from_numpy(matrices[name].floats))
        for parameter in model.parameters():
            parameter.copy_(parameter.half())  # norms: a checkpoint in float16 is the same model
    return model, matrices


def mlx_tensors(module: str, matrix: LowBit, bits: int, row_alpha: bool = False) -> dict:
    """Return the tensors of a matrix as mlx stores it."""
    values = {1: SIGNS, 2: ODD if matrix.integers.max() == 3 else INT2}[bits]
    codes = np.searchsorted(values, matrix.integers).astype(np.uint32)
    M = len(codes)
    words = codes.reshape(M, -1, 32 // bits) << np.arange(0, 32, bits, dtype=np.uint32)
    tensors = {"weight": torch.from_numpy(words.sum(axis=2, dtype=np.uint32).view(np.uint32))}
    unit = torch.from_numpy(matrix.scales)
    if row_alpha:
        tensors["row_alpha"] = unit.reshape(M).bfloat16()
    else:
        step = values[1] - values[0]
        tensors |= {"scales": unit * step, "biases": unit * values[0]}
    return {f"{module}.{kind}": tensor for kind, tensor in tensors.items()}


def publish_mlx(model, matrices, directory: Path, bits: int, columns=128, **config) -> Path:
    """Write a model in 1 or 2 bits as mlx-lm does."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        module = name.removesuffix(".weight")
        if module not in matrices and name != "lm_head.weight":
            tensors[name] = tensor.half()
    for module, matrix in matrices.items():
        tensors |= mlx_tensors(module, matrix, bits)
    quantization = {"group_size": columns, "bits": bits}
    both = {"quantization": quantization, "quantization_config": quantization}
    return write_directory(model, tensors, directory, **both, **config)


def write_directory(model, tensors, directory: Path, **config) -> Path:
    """Write config.json and model.safetensors."""
    directory.mkdir(parents=True)
    save_file({n: t.contiguous() for n, t in tensors.items()}, directory / "model.safetensors")
    fields = json.loads(model.config.to_json_string(use_diff=False))
    (directory / "config.json").write_text(json.dumps({**fields, **config}))
    return directory


# The modules of transformers by our parameters of a block.
BLOCK = {
    "mixer.q_proj": "self_attn.q_proj",
    "mixer.k_proj": "self_attn.k_proj",
    "mixer.v_proj": "self_attn.v_proj",
    "mixer.out_proj": "self_attn.o_proj",
    "ffn.gate_proj": "mlp.gate_proj",
    "ffn.up_proj": "mlp.up_proj",
    "ffn.down_proj": "mlp.down_proj",
}


def names(n_layers=2):
    """Return the modules of transformers by our parameters."""
    found = {"embedding.weight": "model.embed_tokens", "head.weight": "lm_head"}
    for i in range(n_layers):
        found |= {f"layers.{i}.{a}.weight": f"model.layers.{i}.{b}" for a, b in BLOCK.items()}
    return found


def stored_floats(model, name):
    """Return a matrix of a packed model, dequantised."""
    format, shape, _ = model.parameters[name]
    return format.dequantize(stored(model, name), stored(model, f"{name}_scale"), *shape)
