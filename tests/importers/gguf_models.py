"""Small GGUF models of each architecture with random weights, in the layout of llama.cpp."""

from __future__ import annotations

import gguf
import numpy as np
from gguf_files import BLOCKS, pack_i2_s, random_matrix, write

LAYERS, C, F, V = 2, 256, 512, 320
E, ACTIVE, WINDOW = 6, 2, 16  # of maple
BITNET = ("bitnet", "bitnet-b1.58", "bitnet-25")
# The 256 bytes as GPT-2 names them, and special tokens.
_BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]
TOKENS = [*map(chr, _BYTES), *(chr(256 + i) for i in range(256 - len(_BYTES)))]
TOKENS += ["ab", "<|begin|>", "<|eot_id|>", *(f"<|{i}|>" for i in range(V - 259))]
VOCABULARY = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "llama-bpe",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [1] * 257 + [3] * (V - 257),
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 257,
    "tokenizer.ggml.eos_token_id": 259,
    "tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}",
}
PROJECTIONS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
WITH_EXPERTS = ("maple", "qwen3moe")
EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
# Keys of each architecture, as the converters write them; None: without this key.
_OF_EXPERTS = {
    "feed_forward_length": None,
    "expert_feed_forward_length": F,
    "expert_count": E,
    "expert_used_count": ACTIVE,
}
KEYS = {
    "qwen3moe": _OF_EXPERTS,
    "maple": {
        **_OF_EXPERTS,
        "attention.sliding_window": WINDOW,
        "attention.sliding_window_pattern": [True, False],
        "swiglu_clamp_exp": [0.25] * LAYERS,
        "rope.dimension_count": 32,
    },
    "minicpm": {
        "embedding_scale": 12.0,
        "residual_scale": 1.4 / LAYERS**0.5,
        "logit_scale": C / 64,
    },
    "hunyuan-dense": {"rope.scaling.type": "none", "rope.scaling.factor": 1.0},
}


def metadata(architecture, n_heads=4, n_kv_heads=2, head_size=64):
    """Metadata as the converters write it."""
    keys = {
        "block_count": LAYERS,
        "context_length": 512,
        "embedding_length": C,
        "feed_forward_length": F,
        "attention.head_count": n_heads,
        "attention.head_count_kv": n_kv_heads,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 500000.0,
        "rope.dimension_count": head_size,
        "vocab_size": V,
    }
    if head_size * n_heads != C:
        keys |= {"attention.key_length": head_size, "attention.value_length": head_size}
    values = {f"{architecture}.{key}": value for key, value in keys.items()}
    return {"general.file_type": 0, **values, **VOCABULARY}


def tensors(architecture, n_heads=4, n_kv_heads=2, head_size=64, tied=False, seed=0, bias=None):
    """Float32 tensors by name."""
    rng = np.random.default_rng(seed)
    found = {}

    def matrix(name, *shape):
        found[name] = rng.normal(0, 0.05, shape).astype(np.float32)

    def norm(name, size):
        found[name] = rng.uniform(0.5, 1.5, size).astype(np.float32)

    width, kv_width = n_heads * head_size, n_kv_heads * head_size
    matrix("token_embd.weight", V, C)
    for i in range(LAYERS):
        blk = f"blk.{i}"
        norm(f"{blk}.attn_norm.weight", C)
        for name, rows in (("q", width), ("k", kv_width), ("v", kv_width)):
            matrix(f"{blk}.attn_{name}.weight", rows, C)
            if architecture == "qwen2" if bias is None else bias:
                matrix(f"{blk}.attn_{name}.bias", rows)
        if architecture in ("qwen3", "qwen3moe", "gemma3", "maple", "hunyuan-dense"):
            norm(f"{blk}.attn_q_norm.weight", head_size)
            norm(f"{blk}.attn_k_norm.weight", head_size)
        if architecture in BITNET:
            norm(f"{blk}.attn_sub_norm.weight", width)
            norm(f"{blk}.ffn_sub_norm.weight", F)
        matrix(f"{blk}.attn_output.weight", C, width)
        if architecture == "gemma3":
            norm(f"{blk}.post_attention_norm.weight", C)
            norm(f"{blk}.post_ffw_norm.weight", C)
        norm(f"{blk}.ffn_norm.weight", C)
        if architecture in WITH_EXPERTS:
            found[f"{blk}.ffn_gate_inp.weight"] = rng.normal(0, 1, (E, C)).astype(np.float32)
            matrix(f"{blk}.ffn_gate_exps.weight", E, F, C)
            matrix(f"{blk}.ffn_up_exps.weight", E, F, C)
            matrix(f"{blk}.ffn_down_exps.weight", E, C, F)
            continue
        matrix(f"{blk}.ffn_gate.weight", F, C)
        matrix(f"{blk}.ffn_up.weight", F, C)
        matrix(f"{blk}.ffn_down.weight", C, F)
    norm("output_norm.weight", C)
    if not tied:
        matrix("output.weight", V, C)
    return found


def write_model(path, architecture, keys=None, replace=None, **shape):
    """Write a model, with other `keys` of the architecture or metadata, and other tensors.

    None: without this key or tensor. `shape` has arguments of `metadata` and `tensors`.
    """
    heads = {key: value for key, value in shape.items() if key not in ("tied", "seed", "bias")}
    values = metadata(architecture, **heads)
    for key, value in {**KEYS.get(architecture, {}), **(keys or {})}.items():
        is_global = key.startswith(("general.", "tokenizer.", "yocobit.", "split.", "prism."))
        values[key if is_global else f"{architecture}.{key}"] = value
    values = {key: value for key, value in values.items() if value is not None}
    floats = tensors(architecture, **shape)
    stored = {k: v for k, v in ({**floats, **(replace or {})}).items() if v is not None}
    return write(path, architecture, values, stored)


def ternary(architecture, kind="I2_S", seed=1, **shape):
    """Trits, scales, and replaced tensors of the projections of a model in a ternary type."""
    rng = np.random.default_rng(seed)
    trits, scales, replaced = {}, {}, {}
    for name, floats in tensors(architecture, **shape).items():
        if name.split(".")[-2] not in PROJECTIONS or name.endswith(".bias"):
            continue
        trits[name] = rng.integers(-1, 2, floats.shape).astype(np.int8)
        # A float16, as scales of TQ1_0 and TQ2_0 are.
        scales[name] = np.float32(np.float16(rng.uniform(0.01, 0.1)))
        replaced[name] = encoded(kind, trits[name], scales[name])
    return trits, scales, replaced


def low_bit(architecture, kind, tables=(), has_twos=False, **shape):
    """Integers, scales, and replaced tensors of the matrices of a model in a low-bit type.

    Every block has its own scale. `tables` may name token_embd and output.
    """
    integers, scales, replaced = {}, {}, {}
    rng = np.random.default_rng(2)
    for seed, (name, floats) in enumerate(tensors(architecture, **shape).items()):
        is_matrix = name.split(".")[-2] in (*PROJECTIONS, *EXPERTS, *tables)
        if not (is_matrix and name.endswith(".weight")) or floats.shape[-1] % BLOCKS[kind]:
            continue
        blocks = *floats.shape[:-1], floats.shape[-1] // BLOCKS[kind]
        scales[name] = rng.uniform(0.02, 0.1, blocks).astype(np.float16)
        integers[name], data = random_matrix(kind, floats.shape, scales[name], seed, has_twos)
        replaced[name] = kind, data, floats.shape
    return integers, scales, replaced


def encoded(kind, trits, scale):
    """Trits times a scale in a type, as `write` takes them."""
    if kind == "I2_S":
        return kind, pack_i2_s(trits, scale), trits.shape
    weights = trits * np.float32(scale)
    if kind in ("F32", "F16"):
        return weights.astype(np.float32 if kind == "F32" else np.float16)
    data = gguf.quantize(weights, gguf.GGMLQuantizationType[kind])
    return kind, data, trits.shape
