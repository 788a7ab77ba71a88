"""GGUF files of any Transformer shape with random weights, for llama.cpp.

Needs the `gguf` package (extra `peers`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

from yocobit.config import ModelConfig

# Where a block of each type keeps its float16 scales, as byte offsets.
_SCALES: dict[str, tuple[int, ...]] = {"TQ2_0": (64,), "TQ1_0": (52,), "Q1_0": (0,), "Q4_0": (0,), "Q6_K": (208,)}


def write_gguf(path: Path, config: ModelConfig, weights: str, head: str) -> None:
    """Write a llama-architecture file whose matrices are of type `weights`, its head of `head`."""
    rng = np.random.default_rng(0)
    C, F, V = config.d_model, config.d_ff, config.vocab_size
    width = config.n_kv_heads * config.head_dim
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(1 << 16)
    writer.add_embedding_length(C)
    writer.add_block_count(len(config.layers))
    writer.add_feed_forward_length(F)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(V)
    writer.add_tokenizer_model("no_vocab")

    def matrix(name: str, kind: str, rows: int, columns: int) -> None:
        if kind == "F16":
            values = rng.standard_normal((rows, columns), dtype=np.float32) * columns**-0.5
            writer.add_tensor(name, values.astype(np.float16))
            return
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
        data = rng.integers(0, 256, (rows, columns // block, size), dtype=np.uint8)
        for at in _SCALES[kind]:
            scale = np.array([columns**-0.5], dtype=np.float16).view(np.uint8)
            data[:, :, at : at + 2] = scale
        raw = GGMLQuantizationType[kind]
        writer.add_tensor(name, data.reshape(rows, -1), raw_dtype=raw)

    matrix("token_embd.weight", head, V, C)
    for i in range(len(config.layers)):
        for name, rows, columns in (
            ("attn_q", C, C),
            ("attn_k", width, C),
            ("attn_v", width, C),
            ("attn_output", C, C),
            ("ffn_gate", F, C),
            ("ffn_up", F, C),
            ("ffn_down", C, F),
        ):
            matrix(f"blk.{i}.{name}.weight", weights, rows, columns)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{name}.weight", np.ones(C, dtype=np.float32))
    writer.add_tensor("output_norm.weight", np.ones(C, dtype=np.float32))
    matrix("output.weight", head, V, C)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
