"""Bits per byte of weights-only quantisation, per-tensor ternary and dense weights, and a YOCO
mixture of experts that is trained, packed and served.

    python benchmarks/quality/weights_only.py TEXT --out runs/weights_only

TEXT is a file with one document per line; every tenth line is held out. All variants have the same
shape and tokens. The committed results are in benchmarks/results/quality_weights_only.json. A run
that is in the results file is not trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import corpus
import numpy as np
import results_file
import torch

from yocobit import Engine
from yocobit.data.tokenizer import read_tokenizer
from yocobit.packing import checkpoints, pack
from yocobit.packing.layout import quantize_rows
from yocobit.training import load_model

HERE = Path(__file__).parent
RECIPE = HERE / "weights_only.toml"
VARIANTS: dict[str, dict[str, Any]] = {
    "ternary_g128 (A16)": {"weights": "ternary_g128"},
    "ternary (A8)": {"weights": "ternary"},
    "dense": {"weights": "dense"},
}
# As many multiply-adds per token as the others: two experts half as wide.
MOE = {"weights": "ternary_g128", "ffn": "moe", "d_ff": 256, "n_experts": 8, "n_active_experts": 2}
SEEDS = (0, 1, 2)
_CHARACTERS = {"train": 10_000, "valid": 3_000}  # of each document
_LOGIT_TOKENS = 256


def write_text(text: Path, data: Path) -> None:
    """Write train.jsonl and valid.jsonl."""
    data.mkdir(parents=True, exist_ok=True)
    train, valid = corpus.speeches(text.read_text(encoding="utf-8"))
    for split, lines in {"train": train, "valid": valid}.items():
        texts = [line[: _CHARACTERS[split]] for line in lines]
        rows = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
        (data / f"{split}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def train(out: Path, name: str, seed: int, model: dict[str, Any]) -> Path:
    """Train a model, or resume its training; return its run directory."""
    run, data = out / f"{name.split()[0]}-seed{seed}", out.resolve() / "data"
    run.mkdir(parents=True, exist_ok=True)
    changes = [f"model.{key}={json.dumps(value)}" for key, value in model.items()]
    changes += [f'data.{split}=["{data / split}.jsonl"]' for split in ("train", "valid")]
    command = [sys.executable, "-m", "yocobit", "train", str(RECIPE), "--out", str(run), "--resume"]
    for change in (*changes, f"run.seed={seed}"):
        command += ["--set", change]
    with (out / f"{run.name}.log").open("a") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, stdout=log, stderr=log, env=environment)
    return run


def measured(run: Path) -> dict[str, float]:
    """Return bits per byte of the held-out text, size and duration of a finished run."""
    last = json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    manifest = json.loads((run / "run.json").read_text(encoding="utf-8"))
    found = {
        "bits_per_byte": float(last["valid_bits_per_byte"]),
        "tokens": int(last["tokens"]),
        "parameters": int(manifest["model"]["parameters"]),
        "minutes": round(float(last["seconds"]) / 60, 1),
    }
    if "load_balancing_loss" in last:
        found["load_balancing_loss"] = float(last["load_balancing_loss"])
    return found


@torch.no_grad()
def served(run: Path, text: str) -> dict[str, float]:
    """Pack a run, and compare the logits of the engine with PyTorch's.

    Embedding and head of the PyTorch model are rounded as they are packed.
    """
    checkpoint = checkpoints.find(run)
    packed = pack(checkpoint, run / "packed")
    model = load_model(checkpoint).eval()
    for weight in {model.embedding.weight, model.head.weight}:
        codes, scales = quantize_rows(weight.numpy())
        weight.copy_(torch.from_numpy(codes.astype("float32") * scales[:, None]))
    tokens = read_tokenizer(checkpoint / checkpoints.TOKENIZER).encode(text).ids
    prompt = np.array(tokens[:_LOGIT_TOKENS], dtype=np.int32)
    expected = model(torch.from_numpy(prompt.astype(np.int64))[None])[0].numpy()
    result = {}
    for name, exact in (("int8", False), ("int16", True)):
        engine = Engine.load(packed.path, threads=1, exact=exact)
        logits = engine.logits(prompt, "f32")
        result[f"{name}_relative_error"] = float(
            np.linalg.norm(logits - expected) / np.linalg.norm(expected)
        )
        agree = (logits.argmax(axis=1) == expected.argmax(axis=1)).mean()
        result[f"{name}_same_argmax"] = float(agree)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/weights_only"))
    parser.add_argument("--results", metavar="FILE", type=Path, help="OUT/results.json by default")
    arguments = parser.parse_args()
    out = arguments.out
    write_text(arguments.text, out / "data")
    recipe = [line for line in RECIPE.read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    path = arguments.results or out / "results.json"
    results = results_file.read(path, {"recipe": [line for line in recipe if line]})
    found = results.setdefault("runs", {})
    jobs = [(name, seed, VARIANTS[name]) for seed in SEEDS for name in VARIANTS]
    jobs.insert(len(VARIANTS), ("moe", 0, MOE))
    for name, seed, model in jobs:
        key = f"{name}, seed {seed}"
        if key in found:
            continue
        run = train(out, name, seed, model)
        found[key] = measured(run)
        if name == "moe":
            found[key] |= served(run, arguments.text.read_text(encoding="utf-8")[:5000])
        results_file.write(path, results)
        print(f"{key}: {found[key]['bits_per_byte']:.4f} bits/byte", flush=True)


if __name__ == "__main__":
    main()
