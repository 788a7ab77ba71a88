"""GGUF files of any Transformer shape with random weights, for llama.cpp.

Needs the `gguf` package (extra `peers`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, TokenType

from yocobit.config import ModelConfig

# Byte offset of the float16 scale in a block of each type.
_SCALES = {"TQ2_0": 64, "TQ1_0": 52, "Q1_0": 0, "Q4_0": 0, "Q6_K": 208}


def write_gguf(
    path: Path, config: ModelConfig, weights: str, head: str, tokenizer: bytes | None = None
) -> None:
    """Write a llama-architecture file whose matrices are of type `weights`, its head of `head`.

    `tokenizer` is the content of a tokenizer.json (byte-level BPE); without it, the file has no
    vocabulary.
    """
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
    if tokenizer is None:
        writer.add_tokenizer_model("no_vocab")
    else:
        _add_tokenizer(writer, json.loads(tokenizer))

    def matrix(name: str, kind: str, rows: int, columns: int) -> None:
        if kind == "F16":
            values = rng.standard_normal((rows, columns), dtype=np.float32) * columns**-0.5
            writer.add_tensor(name, values.astype(np.float16))
            return
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
        data = rng.integers(0, 256, (rows, columns // block, size), dtype=np.uint8)
        at = _SCALES[kind]
        data[:, :, at : at + 2] = np.array([columns**-0.5], dtype=np.float16).view(np.uint8)
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


def _add_tokenizer(writer: GGUFWriter, fields: dict[str, Any]) -> None:
    model = fields["model"]
    special = {token["id"] for token in fields["added_tokens"]}
    tokens = sorted({**model["vocab"], **{t["content"]: t["id"] for t in fields["added_tokens"]}}
                    .items(), key=lambda item: item[1])  # fmt: skip
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in tokens])
    kinds = [TokenType.CONTROL if i in special else TokenType.NORMAL for _, i in tokens]
    writer.add_token_types(kinds)
    writer.add_token_merges(
        [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    )
