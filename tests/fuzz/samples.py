"""Valid inputs that the cases mutate: small models, a Hugging Face directory, a run, a session.

    python tests/fuzz/samples.py DIRECTORY

They are written by a process of their own, as the threads of the libraries do not survive the forks
of the cases.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path += [str(TESTS), str(TESTS / "text"), str(TESTS / "importers")]

import native_build  # noqa: E402, F401

TEMPLATE = """{{ bos_token }}{% for message in messages %}{% if message.role == 'system' %}
{{- message.content | trim }}
{% elif message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}
{% else %}<|turn|>{{ message['role'] }}: {{ message.content[:400] | tojson }}{% endif %}
{%- endfor %}{% if tools is not none and tools %}{{ tools | tojson(indent=2) }}{% endif %}
{% set ns = namespace(n=0) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}
{% macro line(x) %}{{ x ~ '\\n' }}{% endmacro %}{{ line('a') }}
{% if add_generation_prompt %}assistant:{% endif %}"""
TABLES = ("token_embd", "output")
LOW_BIT = (  # GGUF models: architecture, tensor type, tensors of it besides the projections
    ("qwen3", "Q1_0", TABLES),
    ("qwen3", "Q2_0", TABLES),
    ("llama", "Q2_0 with 128 weights per scale", TABLES),
    ("qwen3", "PQ2_0", ()),
    ("qwen3", "PTQ1_0", TABLES),
    ("hunyuan-dense", "STQ1_0", TABLES),
    ("hunyuan-dense", "Q2_0C", ()),
    ("minicpm", "TQ2_0", TABLES),
    ("maple", "TQ2_0", ()),
)
CONFIG = """
[model]
preset = "nano"
[data]
train = ["text.txt"]
valid = ["text.txt"]
deduplicate = false
vocab_size = 270
context = 16
[optim]
batch_size = 2
[run]
steps = 8
checkpoint_every = 4
eval_every = 4
threads = 1
"""


def write(directory: Path) -> None:
    """Write all samples."""
    write_models(directory)
    write_import(directory / "import")
    write_gguf(directory / "gguf")
    write_published(directory)
    write_run(directory / "run")
    write_session(directory)
    write_prefixes(directory)


def write_models(directory: Path) -> None:
    """Write a packed model for each kind of tokenizer."""
    from sample_tokenizers import KINDS, definition

    from yocobit.benchmark.random_model import write_random_model
    from yocobit.config import preset

    config = preset("nano").replace(vocab_size=512, d_model=64, d_ff=64)
    for kind in KINDS:
        model = directory / f"model-{kind}"
        write_random_model(config, model, tokenizer=definition(kind).encode())
        generation = {
            "bos_token_id": 0, "eos_token_id": [1, 2], "pad_token_id": 0, "temperature": 0.7,
            "top_k": 20, "top_p": 0.9, "min_p": 0.0, "repetition_penalty": 1.1, "do_sample": True,
            "stop_strings": ["<|turn|>"], "max_new_tokens": 20, "transformers_version": "4.50.0",
        }  # fmt: skip
        (model / "generation_config.json").write_text(json.dumps(generation))
        (model / "chat_template.jinja").write_text(TEMPLATE)


def write_import(directory: Path) -> None:
    """Write a small BitNet checkpoint as Hugging Face publishes it."""
    import torch
    from sample_tokenizers import definition
    from transformers import BitNetConfig, BitNetForCausalLM

    torch.manual_seed(0)
    shape = BitNetConfig(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    BitNetForCausalLM(shape).save_pretrained(directory)
    (directory / "tokenizer.json").write_text(definition("byte_level"))
    tokenizer = {
        "chat_template": TEMPLATE, "bos_token": "<s>", "eos_token": {"content": "</s>"},
        "added_tokens_decoder": {"0": {"content": "<s>", "special": True}},
    }  # fmt: skip
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (directory / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<s>"}))
    generation = {"bos_token_id": 0, "eos_token_id": 1, "temperature": 0.6, "do_sample": True}
    (directory / "generation_config.json").write_text(json.dumps(generation))
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def write_gguf(directory: Path) -> None:
    """Write GGUF models of several architectures and types."""
    import gguf_models

    directory.mkdir()
    for architecture, kind in (("bitnet-25", "I2_S"), ("llama", "TQ2_0"), ("bitnet", "TQ1_0")):
        replaced = gguf_models.ternary(architecture, kind)[2]
        gguf_models.write_model(directory / f"{architecture}.gguf", architecture, None, replaced)
    for architecture, kind, tables in LOW_BIT:
        replaced = gguf_models.low_bit(architecture, kind, tables)[2]
        path = directory / f"{architecture}-{kind.replace(' ', '_')}.gguf"
        gguf_models.write_model(path, architecture, None, replaced)
    keys = {"attention.sliding_window": 16, "pooling_type": 3}
    gguf_models.write_model(directory / "gemma3.gguf", "gemma3", keys, None, tied=True)


def write_published(directory: Path) -> None:
    """Write tiny checkpoints of several families in their published layouts."""
    from copy import deepcopy

    from low_bit_directories import model_and_matrices, publish_mlx
    from published import publish, quantised_model, random_model

    offline = {"linear_class": "bitlinear", "quantization_mode": "offline"}
    norms = {**offline, "use_rms_norm": True, "modules_to_not_convert": []}
    online = {"linear_class": "autobitlinear", "quantization_mode": "online"}
    models = {
        "llama": quantised_model("llama", offline),
        "qwen3": quantised_model("qwen3", norms, head_dim=16),
        "qwen2": quantised_model("qwen2", online),
        "mistral": random_model("mistral", sliding_window=8).half(),
        "gemma3": random_model("gemma3_text", head_dim=16, sliding_window=8).bfloat16(),
    }
    for name, model in models.items():
        publish(model, directory / f"import-{name}")
    low_bit, matrices = model_and_matrices(intermediate_size=128, num_hidden_layers=1)
    publish(deepcopy(low_bit).half(), directory / "import-unpacked")
    publish_mlx(low_bit, matrices, directory / "import-mlx", 2)


def write_run(directory: Path) -> None:
    """Train a few steps."""
    from yocobit.cli import run

    directory.mkdir()
    (directory / "text.txt").write_text("the whale and the sea and the ship " * 400)
    (directory / "short.txt").write_text("the whale and the sea " * 9)
    (directory / "run.toml").write_text(CONFIG)
    run(["train", str(directory / "run.toml"), "--out", str(directory / "out")])


def write_session(directory: Path) -> None:
    """Save a session of the first model."""
    from yocobit import Engine

    engine = Engine.load(directory / "model-byte_level", threads=1)
    session = engine.session(64, "f32")
    session.feed(list(range(40)))
    engine.save(session, directory / "session")


def write_prefixes(directory: Path) -> None:
    """Serve a request, so that its prefix is on disk."""
    import servers

    from yocobit.serving import ServerSettings

    settings = ServerSettings(
        model=directory / "model-byte_level", threads=1, prefix_dir=directory / "prefixes"
    )
    with servers.running(settings) as server:
        text = "In the beginning " * 60
        assert server.post("/v1/completions", prompt=text, max_tokens=2).status_code == 200


if __name__ == "__main__":
    write(Path(sys.argv[1]))
