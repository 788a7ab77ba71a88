"""A tiny published checkpoint: packed BitNet weights in a Hugging Face directory, without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer

CONFIG: dict[str, Any] = {
    "model_type": "bitnet",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "relu2",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear"},
}
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "


def save_checkpoint(folder: Path, tokenizer: Tokenizer, seed: int = 0) -> Path:
    """Write a checkpoint with random weights to the new directory `folder`."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    C, F, V = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["vocab_size"]
    tensors = {"model.embed_tokens.weight": random.normal(size=(V, C)).astype(np.float32)}

    def norm(name: str, width: int) -> None:
        tensors[f"{name}.weight"] = random.uniform(0.5, 1.5, width).astype(np.float32)

    def projection(name: str, rows: int, columns: int) -> None:
        codes = random.integers(0, 3, (4, rows // 4, columns), dtype=np.uint8)
        packed = codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6
        tensors[f"{name}.weight"] = packed
        tensors[f"{name}.weight_scale"] = np.array([0.125], np.float32)

    for i in range(CONFIG["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        norm(f"{layer}.input_layernorm", C)
        norm(f"{layer}.post_attention_layernorm", C)
        for name, rows in (("q_proj", C), ("k_proj", C // 2), ("v_proj", C // 2), ("o_proj", C)):
            projection(f"{layer}.self_attn.{name}", rows, C)
        norm(f"{layer}.self_attn.attn_sub_norm", C)
        projection(f"{layer}.mlp.gate_proj", F, C)
        projection(f"{layer}.mlp.up_proj", F, C)
        projection(f"{layer}.mlp.down_proj", C, F)
        norm(f"{layer}.mlp.ffn_sub_norm", F)
    norm("model.norm", C)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder
