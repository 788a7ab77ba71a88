"""Bits per byte of a trained model by KV cache type and attention of the engine.

    python benchmarks/quality/served_as.py runs/quality/gret-ternary-seed0 TEXT.jsonl

Packs the run, evaluates it on the same text with each setting as `yocobit eval` does, and adds the
results to benchmarks/results/quality_served.json.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import results_file

from yocobit.data.documents import read_texts
from yocobit.engine.session import CacheType
from yocobit.evaluation import open_scorer, perplexity
from yocobit.packing import pack

RESULTS = Path(__file__).parent.parent / "results" / "quality_served.json"
SETTINGS: list[tuple[CacheType, str]] = [
    ("f32", "full"),
    ("f16", "full"),
    ("int8", "full"),
    ("int4", "full"),
    ("f32", "index:256"),
    ("f32", "index:128"),
    ("int4", "index:256"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    results = results_file.read(RESULTS)
    with tempfile.TemporaryDirectory() as directory:
        model = pack(arguments.run, Path(directory) / "model").path
        for cache, attention in SETTINGS:
            scorer = open_scorer(model, "native", arguments.threads, cache, attention)
            found = perplexity(scorer, read_texts([arguments.text]), arguments.context)
            name = f"{cache}, {attention}"
            results.setdefault(arguments.run.name, {})[name] = found.to_dict()
            print(f"{arguments.run.name} {name:16} {found.bits_per_byte:.4f} bits/byte", flush=True)
    results_file.write(RESULTS, results)


if __name__ == "__main__":
    main()
