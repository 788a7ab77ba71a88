"""Recall by length, up to eight times the training length: associative recall and passkeys.

    python benchmarks/quality/recall.py --out benchmarks/results/recall.json

Trains each variant that is not in FILE, in a process with one thread, and adds its results. The
tasks are in recall_tasks.py, the recipe is in recall_training.py. --keep DIR packs each model as
DIR/VARIANT for the engine.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import results_file
from recall_tasks import MARK, VOCAB_SIZE
from recall_training import BEYOND, TRAINED, Recipe, evaluate, train
from tokenizers import Tokenizer, models

from yocobit.config import ModelConfig
from yocobit.data.tokenizer import END
from yocobit.hardware.host import default_threads
from yocobit.model import Decoder
from yocobit.packing import pack
from yocobit.training import checkpoint

BASE = ModelConfig(
    vocab_size=VOCAB_SIZE,
    d_model=64,
    layers=("retention", "retention", "cross", "cross"),
    d_ff=128,
    n_heads=2,
    n_kv_heads=2,
    n_self_heads=2,
    n_self_kv_heads=2,
    window=16,
)
FULL, WINDOW = ("full",) * 4, ("window", "window", "cross", "cross")
VARIANTS: dict[str, dict[str, Any]] = {
    "transformer-dense": {"layers": FULL, "weights": "dense"},
    "transformer-ternary": {"layers": FULL},
    "gret-dense": {"weights": "dense"},
    "gret-ternary": {},
    "gret-sign": {"weights": "sign"},
    "swa-ternary": {"layers": WINDOW},
    "retention-dense": {"layers": ("retention",) * 4, "weights": "dense"},
    "retention-ternary": {"layers": ("retention",) * 4},
    "gret-ternary-int8": {"shared_kv": "int8"},
    "gret-ternary-int4": {"shared_kv": "int4"},
    "gret-ternary-nope": {"cross_rope": "none"},
    "gret-dense-nope": {"cross_rope": "none", "weights": "dense"},
    "gret-ternary-index": {"cross_attention": "index", "cross_positions": 128},
    "gret-ternary-nope-index": {
        "cross_rope": "none",
        "cross_attention": "index",
        "cross_positions": 128,
    },
    "gret-ternary-gmu": {"layers": ("retention", "retention", "cross", "gmu")},
}
SERVED: dict[str, dict[str, Any]] = {  # settings for evaluation only, after training without them
    "int8": {"shared_kv": "int8"},
    "int4": {"shared_kv": "int4"},
    "index": {"cross_attention": "index", "cross_positions": 128},
    "index:192": {"cross_attention": "index", "cross_positions": 192},
    "int4, index:192": {
        "shared_kv": "int4",
        "cross_attention": "index",
        "cross_positions": 192,
    },
    "int4, index": {"shared_kv": "int4", "cross_attention": "index", "cross_positions": 128},
}


def measure(variant: str, recipe: Recipe, keep: Path | None) -> dict[str, Any]:
    """Train one variant and return its recall; write its packed model to `keep` if given."""
    config, started = BASE.replace(**VARIANTS[variant]), time.process_time()

    def report(step: int, loss: float) -> None:
        print(f"{variant:22} step {step}/{recipe.steps}  loss {loss:.3f}", flush=True)

    model = train(config, recipe, report)
    if keep is not None:
        pack_model(model, recipe, keep / variant)
    found = {
        "parameters": model.n_parameters(),
        "cpu_seconds": round(time.process_time() - started),
        **evaluate(model, recipe),
    }
    if config.has_cross_decoder and (config.shared_kv, config.cross_attention) == ("float", "full"):
        found["evaluated_with"] = {}
        for name, changes in SERVED.items():
            served = Decoder(config.replace(**changes))
            served.load_state_dict(model.state_dict())
            found["evaluated_with"][name] = evaluate(served, recipe)
    return found


def pack_model(model: Decoder, recipe: Recipe, out: Path) -> None:
    """Write a packed model; the tokenizer names each token by its number, and the mark END."""
    names = {END if i == MARK else str(i): i for i in range(VOCAB_SIZE)}
    tokenizer = Tokenizer(models.WordLevel(names))
    state = checkpoint.RunState(corpus_sha256="", step=recipe.steps)
    with tempfile.TemporaryDirectory() as run:
        saved = checkpoint.save(Path(run), state, model, {}, {}, tokenizer, keep=1)
        pack(saved, out, None, "int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", metavar="FILE", type=Path, required=True)
    parser.add_argument("--variants", help="separated by commas", default=",".join(VARIANTS))
    parser.add_argument("--keep", metavar="DIR", type=Path, help="pack each model there")
    parser.add_argument("--jobs", type=int, default=default_threads(), help="variants at once")
    for field in dataclasses.fields(Recipe):
        name = "--" + field.name.replace("_", "-")
        parser.add_argument(name, type=type(field.default), default=field.default)
    arguments = parser.parse_args()
    names = arguments.variants.split(",")
    for variant in names:
        if variant not in VARIANTS:
            parser.error(f"--variants must be among {', '.join(VARIANTS)} but has {variant!r}")
    recipe = Recipe(**{f.name: getattr(arguments, f.name) for f in dataclasses.fields(Recipe)})
    results = results_file.read(arguments.out, _made_by(recipe))
    variants = results.setdefault("variants", {})
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        left = [variant for variant in names if variant not in variants]
        jobs = {pool.submit(measure, variant, recipe, arguments.keep): variant for variant in left}
        for job in as_completed(jobs):
            variants[jobs[job]] = job.result()
            results_file.write(arguments.out, results)
            recalled = job.result()["associative_recall"]
            line = "  ".join(f"{length}: {share:.3f}" for length, share in recalled.items())
            print(f"{jobs[job]:22} {line}", flush=True)


def _made_by(recipe: Recipe) -> dict[str, Any]:
    return {
        "recipe": dataclasses.asdict(recipe),
        "pairs_by_length": {"trained": _keyed(TRAINED), "beyond": _keyed(BEYOND)},
    }


def _keyed(pairs: dict[int, int]) -> dict[str, int]:
    return {str(length): n_pairs for length, n_pairs in pairs.items()}


if __name__ == "__main__":
    main()
