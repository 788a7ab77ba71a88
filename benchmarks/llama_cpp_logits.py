"""Logits and texts of yocobit compared with llama.cpp's on the same GGUF files.

    python benchmarks/llama_cpp_logits.py [--gguf FILE] [--threads 1]
        [--out benchmarks/results/llama_cpp_logits.json]

Without a file: tiny models with random weights, each architecture in F32 and F16, and some in
low-bit types and with the same weights in F32. With a file: also the greedy texts of ten prompts
and the logits along llama.cpp's texts, of the file and of a copy in F32. llama.cpp rounds
activations for quantised weights, but not for F32, so the copy separates its rounding from other
differences.

Needs the extra `peers` (llama-cpp-python, gguf).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from numpy.typing import NDArray
from peers import versions

from yocobit import Engine
from yocobit.exporters import export_gguf
from yocobit.hardware.host import provenance
from yocobit.importers import import_model

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "importers"))
from gguf_files import BLOCKS
from gguf_models import low_bit, tensors, write_model

Logits = NDArray[np.float32]
Found = dict[str, Any]

RESULTS = Path(__file__).parent / "results" / "llama_cpp_logits.json"
N_TOKENS = 64
TINY: dict[str, tuple[Found, Found]] = {  # architecture: shape, keys
    "llama": ({}, {}),
    "qwen2": ({"tied": True}, {}),
    "qwen3": ({"head_size": 128}, {}),
    "gemma3": (
        {"n_heads": 2, "n_kv_heads": 1, "head_size": 256, "tied": True},
        {"attention.sliding_window": 16, "rope.freq_base": 1e6},
    ),
    "qwen3moe": ({"head_size": 128}, {}),
    "maple": ({"head_size": 128}, {"rope.dimension_count": 64}),
    "minicpm": ({"tied": True}, {}),
    "hunyuan-dense": ({"tied": True}, {}),
}
# Keys of a second model of an architecture.
SCALED_ROPE: dict[str, Found] = {
    "qwen3": {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 128,
    },
    "minicpm": {
        "rope.scaling.type": "longrope",
        "rope.scaling.original_context_length": 1024,
        "rope.scaling.attn_factor": 1.25,
    },
    "hunyuan-dense": {"rope.scaling.alpha": 50.0},
}
LOW_BITS = (
    ("qwen3", "Q1_0"),
    ("qwen3", "Q2_0"),
    ("maple", "TQ2_0"),
    ("minicpm", "TQ2_0"),
    ("hunyuan-dense", "Q2_0"),
)
PROMPTS = (
    "What is the capital of France?",
    "Explain in two sentences why the sky is blue.",
    "Write a haiku about the sea.",
    "List three uses of a paper clip.",
    "What is 17 times 4?",
    "Translate to German: Good morning, how are you?",
    "def fibonacci(n):",
    "Summarise: The cat sat on the mat. It was tired, so it slept until noon.",
    "Who wrote Hamlet, and when?",
    "Give me a recipe for pancakes.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, help="a model with a tokenizer and a chat template")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    report: Found = {**provenance(), "versions": versions()}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        report["tiny"] = {
            f"{architecture} {kind}": tiny(work / f"{architecture}-{kind}", architecture, kind)
            for architecture in TINY
            for kind in ("F32", "F16")
        }
        report["tiny"] |= {
            f"{architecture} F32, {keys.get('rope.scaling.type', 'alpha')}": tiny(
                work / f"{architecture}-scaled", architecture, "F32", keys
            )
            for architecture, keys in SCALED_ROPE.items()
        }
        report["low bits"] = {
            f"{architecture} {kind}": low_bits(work / f"{architecture}-{kind}", architecture, kind)
            for architecture, kind in LOW_BITS
        }
        for model, found in {**report["tiny"], **report["low bits"]}.items():
            print(f"{model:24} " + ", ".join(f"{k} {v:.3g}" for k, v in found.items()))
        if arguments.gguf:
            report["file"] = arguments.gguf.name
            packed = import_model(arguments.gguf, work / "packed")
            engine = Engine(packed, arguments.threads, None)
            copy = in_f32(arguments.gguf, work / "f32.gguf")
            for label, path in (("as published", arguments.gguf), ("copy in F32", copy)):
                report[label] = texts(engine, path, arguments.threads)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {arguments.out}")


def tiny(work: Path, architecture: str, kind: str, scaled_rope: Found | None = None) -> Found:
    """Return the largest difference of logits of a random model, relative to the largest logit."""
    work.mkdir()
    shape, keys = TINY[architecture]
    keys = keys | (scaled_rope or {})
    # llama.cpp reads the F32 of norms and biases only.
    matrices = {k: v for k, v in tensors(architecture, **shape).items() if v.ndim >= 2}
    replace = {k: v.astype(np.float16) for k, v in matrices.items()} if kind == "F16" else {}
    if "rope.scaling.original_context_length" in keys and architecture == "minicpm":
        factors = {"long": np.linspace(2, 9, 32), "short": np.linspace(1, 3, 32)}
        replace |= {f"rope_factors_{k}.weight": v.astype("f4") for k, v in factors.items()}
    path = write_model(work / "m.gguf", architecture, keys, replace, **shape)
    packed = import_model(path, work / "packed")
    tokens = np.random.default_rng(0).integers(1, packed.config.vocab_size, 48).tolist()
    ours = Engine(packed, 1, None).logits(tokens, "f32")
    expected = LlamaCpp(path, 1).logits(tokens)
    difference = np.abs(ours - expected)
    return {
        "largest": float(difference.max() / np.abs(expected).max()),
        "same_top": float((ours.argmax(1) == expected.argmax(1)).mean()),
    }


def low_bits(work: Path, architecture: str, kind: str) -> Found:
    """Return the largest difference of logits from llama.cpp's of the same weights in F32.

    Differences are relative to the largest logit: with int8 and int16 activations, and those of
    llama.cpp itself, from the file and from our export of it. All result from the rounding of
    activations.
    """
    work.mkdir()
    shape, keys = TINY[architecture]
    tables = () if architecture == "maple" else ("token_embd", "output")
    integers, scales, packed = low_bit(architecture, kind, tables, **shape)
    floats = {
        name: values * scales[name].astype("f4").repeat(BLOCKS[kind], axis=-1)
        for name, values in integers.items()
    }
    path = write_model(work / "m.gguf", architecture, keys, packed, **shape)
    copy = write_model(work / "f32.gguf", architecture, keys, floats, **shape)
    model = import_model(path, work / "packed", "f32" if architecture == "maple" else None)
    tokens = np.random.default_rng(0).integers(1, model.config.vocab_size, 48).tolist()
    expected = LlamaCpp(copy, 1).logits(tokens)
    exact = Engine.load(work / "packed", threads=1, exact=True)
    export_gguf(model, work / "export.gguf")
    logits = {
        "int8": Engine(model, 1, None).logits(tokens, "f32"),
        "exact": exact.logits(tokens, "f32"),
        "llama_cpp": LlamaCpp(path, 1).logits(tokens),
        "llama_cpp_export": LlamaCpp(work / "export.gguf", 1).logits(tokens),
    }
    largest = np.abs(expected).max()
    return {name: float(np.abs(each - expected).max() / largest) for name, each in logits.items()}


def texts(engine: Engine, path: Path, threads: int) -> Found:
    """Compare tokens, greedy texts, and the logits along llama.cpp's texts."""
    peer = LlamaCpp(path, threads)
    rows, differences = [], []
    for prompt in PROMPTS:
        rendered = engine.chat_template.render([{"role": "user", "content": prompt}])
        start = engine.encode_chat([{"role": "user", "content": prompt}])
        theirs = peer.greedy(start, engine.end_tokens)
        sampling = engine.sampling(temperature=0.0)
        generation = engine.stream(start, max_tokens=N_TOKENS, cache="f32", sampling=sampling)
        text = "".join(generation)
        ours = [token for token in generation.tokens if token not in engine.end_tokens]
        tokens = start + theirs
        logits, expected = engine.logits(tokens, "f32"), peer.logits(tokens)
        difference = np.abs(logits - expected)[len(start) - 1 :]
        differences.append(difference)
        row: Found = {
            "prompt": prompt,
            "same_tokens": start == peer.encode(rendered),
            "same_template": rendered == peer.render(prompt),
            "tokens": len(theirs),
            "same_text": ours == theirs,
            "text": text,
        }
        if ours != theirs:
            pairs = zip(ours, theirs, strict=False)
            n = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
            at = len(start) - 1 + n
            row |= {
                "first_difference": n,
                "gap_ours": gap(logits[at]),
                "gap_theirs": gap(expected[at]),
                "difference_of_top_two": float(
                    np.abs(logits[at] - expected[at])[np.argsort(logits[at])[-2:]].max()
                ),
            }
        rows.append(row)
        print(json.dumps(row))
    every = np.concatenate([each.ravel() for each in differences])
    found = {
        "same_texts": sum(row["same_text"] for row in rows),
        "same_tokens": sum(row["same_tokens"] for row in rows),
        "same_templates": sum(row["same_template"] for row in rows),
        "difference_of_logits": {
            **{f"p{p}": float(np.percentile(every, p)) for p in (50, 90, 99, 99.9)},
            "largest": float(every.max()),
            "positions": int(sum(len(each) for each in differences)),
        },
        "prompts": rows,
    }
    print({key: value for key, value in found.items() if key != "prompts"})
    return found


def gap(logits: Logits) -> float:
    """Return the difference of the two largest logits."""
    second, first = np.sort(logits)[-2:]
    return float(first - second)


class LlamaCpp:
    """llama.cpp with a KV cache in F32 and without flash attention."""

    def __init__(self, path: Path, threads: int) -> None:
        self._model = llama_cpp.Llama(
            str(path),
            n_ctx=512,
            n_batch=512,
            n_threads=threads,
            n_threads_batch=threads,
            logits_all=True,
            flash_attn=False,
            type_k=llama_cpp.GGML_TYPE_F32,
            type_v=llama_cpp.GGML_TYPE_F32,
            verbose=False,
        )

    def logits(self, tokens: list[int]) -> Logits:
        """Return the logits (T, V) after each of tokens (T,)."""
        self._model.reset()
        self._model.eval(tokens)
        return np.array(self._model.scores[: len(tokens)])

    def greedy(self, tokens: list[int], end_tokens: frozenset[int]) -> list[int]:
        """Return the most likely tokens one after the other, without the EOS token."""
        self._model.reset()
        self._model.eval(tokens)
        found: list[int] = []
        while len(found) < N_TOKENS:
            token = int(self._model.scores[len(tokens) + len(found) - 1].argmax())
            if token in end_tokens:
                break
            found.append(token)
            self._model.eval([token])
        return found

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text that may spell special tokens."""
        return self._model.tokenize(text.encode(), add_bos=False, special=True)

    def render(self, prompt: str) -> str:
        """Render a conversation by the chat template of the file, in llama-cpp-python."""
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        names = {"eos_token": self._model.token_eos(), "bos_token": self._model.token_bos()}
        texts = {
            key: self._model.detokenize([token], special=True).decode()
            for key, token in names.items()
        }
        template = self._model.metadata["tokenizer.chat_template"]
        formatter = Jinja2ChatFormatter(template, **texts)
        return formatter(messages=[{"role": "user", "content": prompt}]).prompt


def in_f32(source: Path, out: Path) -> Path:
    """Write a copy of a file with all tensors in F32, decoded by llama.cpp's own Python."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(out, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind = field.types[0]
        sub_type = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        value = 0 if name == "general.file_type" else field.contents()
        writer.add_key_value(name, value, kind, sub_type=sub_type)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


if __name__ == "__main__":
    main()
