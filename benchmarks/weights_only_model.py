"""GGUF files with random weights in the shapes and layouts of published weights-only models.

Bonsai (qwen3): all matrices in one type, the embedding and the head included. Maple (maple): a
mixture of experts with one scale per row in TQ2_0, embedding and head in Q4_K. Matrices repeat a
few random rows: speed does not depend on values.

Letters: C model width   D head size   E experts   F feed-forward width   V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from low_bit_gguf import TYPES, Array, Tensor, encode, write_gguf

DISTINCT_ROWS = 64
YARN_FACTOR, YARN_CONTEXT = 4.0, 8192
WINDOW, WINDOWED_OF = 512, 4  # of four layers of Maple, the last has no window and no RoPE
CLAMP = 7.0


@dataclass(frozen=True)
class Shape:
    """A published shape; with experts, F is the width of one."""

    architecture: str
    n_layers: int
    C: int
    n_heads: int
    n_kv_heads: int
    F: int
    D: int = 128
    V: int = 151936
    n_experts: int = 0
    n_active: int = 0


SHAPES = {
    "bonsai-1.7b": Shape("qwen3", 28, 2048, 16, 8, 6144),
    "bonsai-8b": Shape("qwen3", 36, 4096, 32, 8, 12288),
    "maple": Shape("maple", 24, 2048, 16, 4, 512, n_experts=256, n_active=8),
}


def named_shape(name: str) -> Shape:
    """Return one of SHAPES; "bonsai-8b:9" has the first nine layers."""
    name, _, n_layers = name.partition(":")
    shape = SHAPES[name]
    return replace(shape, n_layers=int(n_layers)) if n_layers else shape


def write_random_gguf(path: Path, shape: Shape, kind: str) -> Path:
    """Write a file whose projections are of type `kind`."""
    return write_gguf(path, shape.architecture, metadata(shape), dict(tensors(shape, kind)))


def metadata(shape: Shape) -> dict[str, Any]:
    """Return metadata as the converter of llama.cpp writes it, without a vocabulary."""
    found: dict[str, Any] = {
        "tokenizer.ggml.model": "no_vocab",
        "vocab_size": shape.V,
        "block_count": shape.n_layers,
        "context_length": int(YARN_FACTOR) * YARN_CONTEXT,
        "embedding_length": shape.C,
        "attention.head_count": shape.n_heads,
        "attention.head_count_kv": shape.n_kv_heads,
        "attention.key_length": shape.D,
        "attention.value_length": shape.D,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 1e6,
    }
    if shape.n_experts == 0:
        return found | {
            "feed_forward_length": shape.F,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": YARN_FACTOR,
            "rope.scaling.original_context_length": YARN_CONTEXT,
        }
    return found | {
        "expert_count": shape.n_experts,
        "expert_used_count": shape.n_active,
        "expert_feed_forward_length": shape.F,
        "feed_forward_length": shape.F,
        "rope.dimension_count": shape.D // 2,
        "attention.sliding_window": WINDOW,
        "attention.sliding_window_pattern": [
            (i + 1) % WINDOWED_OF != 0 for i in range(shape.n_layers)
        ],
        "swiglu_clamp_exp": [CLAMP] * shape.n_layers,
    }


def tensors(shape: Shape, kind: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors by name."""
    C, F, E = shape.C, shape.F, shape.n_experts
    width, kv_width = shape.n_heads * shape.D, shape.n_kv_heads * shape.D
    outer = "Q4_K" if E else kind
    projections: dict[str, tuple[int, ...]] = {
        "attn_q": (width, C),
        "attn_k": (kv_width, C),
        "attn_v": (kv_width, C),
        "attn_output": (C, width),
    }
    if E:
        projections |= {
            "ffn_gate_exps": (E, F, C),
            "ffn_up_exps": (E, F, C),
            "ffn_down_exps": (E, C, F),
        }
    else:
        projections |= {"ffn_gate": (F, C), "ffn_up": (F, C), "ffn_down": (C, F)}
    yield "token_embd.weight", matrix(outer, shape.V, C)
    for i in range(shape.n_layers):
        for name, dimensions in projections.items():
            yield f"blk.{i}.{name}.weight", matrix(kind, *dimensions)
        if E:
            yield f"blk.{i}.ffn_gate_inp.weight", router(E, C, seed=i)
        for name, size in (("attn", C), ("ffn", C), ("attn_q", shape.D), ("attn_k", shape.D)):
            yield f"blk.{i}.{name}_norm.weight", ones(size)
    yield "output_norm.weight", ones(C)
    yield "output.weight", matrix(outer, shape.V, C)


def matrix(kind: str, *shape: int) -> Tensor:
    """Return a random matrix, or one per expert, that is stored in `kind`."""
    rows = int(np.prod(shape[:-1]))
    return Tensor(
        kind, shape, lambda: np.resize(random_rows(kind, shape[-1]), (rows, _size(kind, shape[-1])))
    )


def router(n_experts: int, C: int, seed: int) -> Tensor:
    """Return the float32 weights of a router, different for each seed."""
    shape = (n_experts, C)
    rng = np.random.default_rng(seed)
    return Tensor("F32", shape, lambda: rng.standard_normal(shape, dtype=np.float32) * C**-0.5)


def ones(size: int) -> Tensor:
    """Return the weight of a norm."""
    return Tensor("F32", (size,), lambda: np.ones(size, dtype=np.float32))


@cache
def random_rows(kind: str, K: int) -> Array:
    """Return the bytes of DISTINCT_ROWS random rows of K columns.

    As in the published files, Q2_0 repeats the scale of 128 columns, and TQ2_0 that of a row.
    """
    rng = np.random.default_rng(K)
    if kind == "Q4_K":
        return _q4_k_rows(rng, K)
    values = (-1, 1) if kind == "Q1_0" else (-1, 0, 1)
    codes = rng.choice(np.array(values, dtype=np.int8), (DISTINCT_ROWS, K))
    columns = TYPES[kind].columns
    group = K if kind == "TQ2_0" else 128
    scales = rng.uniform(0.5, 1.5, (DISTINCT_ROWS, K // group)) * K**-0.5
    return encode(kind, codes, scales.repeat(group // columns, axis=1))


def _q4_k_rows(rng: np.random.Generator, K: int) -> Array:
    """Return random blocks of Q4_K: values are d * scale * code - dmin * minimum, about zero."""
    data = rng.integers(0, 256, (DISTINCT_ROWS, K // 256, TYPES["Q4_K"].size), dtype=np.uint8)
    d = K**-0.5 / 256
    data[:, :, :4] = np.array([d, 7.5 * d], dtype=np.float16).view(np.uint8)
    return data.reshape(DISTINCT_ROWS, -1)


def _size(kind: str, K: int) -> int:
    return K // TYPES[kind].columns * TYPES[kind].size
