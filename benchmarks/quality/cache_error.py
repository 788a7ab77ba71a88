"""Effect of cache rounding on logits: each KV cache type compared with f32 on the same text.

    python benchmarks/quality/cache_error.py [--model DIR] [--tokens 4096] [--context 512] TEXT

Feeds the first tokens of TEXT in windows of CONTEXT. The default model is the packaged one. Writes
benchmarks/results/cache_error.json.

Letters: T positions   V vocabulary
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

import numpy as np
import results_file
from numpy.typing import NDArray

from yocobit import Engine
from yocobit.data.documents import read_texts
from yocobit.engine.session import CacheType
from yocobit.hardware.host import provenance
from yocobit.pretrained import TINY

RESULTS = Path(__file__).parent.parent / "results" / "cache_error.json"

Logits = NDArray[np.float64]  # (T, V)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--model", type=Path, default=TINY)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--context", type=int, default=512)
    arguments = parser.parse_args()
    engine = Engine.load(arguments.model)
    text = "\n".join(read_texts([arguments.text]))
    tokens = engine.encode(text[: 16 * arguments.tokens])[: arguments.tokens]
    exact = logits(engine, tokens, arguments.context, "f32")
    found = {
        cache: error(logits(engine, tokens, arguments.context, cache), exact)
        for cache in get_args(CacheType)
        if cache != "f32"
    }
    for cache, values in found.items():
        print(f"{cache:5} " + "  ".join(f"{name} {value:.3g}" for name, value in values.items()))
    made_of = {"model": arguments.model.name, "text": arguments.text.name}
    sizes = {"tokens": len(tokens), "context": arguments.context}
    results_file.write(RESULTS, {**provenance(), **made_of, **sizes, **found})


def logits(engine: Engine, tokens: list[int], context: int, cache: CacheType) -> Logits:
    """Return the logits after each token, (T, V)."""
    windows = [tokens[i : i + context] for i in range(0, len(tokens), context)]
    return np.concatenate(
        [engine.session(len(window), cache).feed_all(window) for window in windows]
    ).astype(np.float64)


def error(rounded: Logits, exact: Logits) -> dict[str, Any]:
    """Return error metrics of logits (T, V) over all positions."""
    p, q = log_softmax(exact), log_softmax(rounded)
    return {
        "relative_rms": float(np.sqrt(np.mean((rounded - exact) ** 2) / np.mean(exact**2))),
        "kl_nats": float(np.mean(np.sum(np.exp(p) * (p - q), axis=1))),
        "same_best_token": float(np.mean(rounded.argmax(axis=1) == exact.argmax(axis=1))),
    }


def log_softmax(x: Logits) -> Logits:
    shifted: Logits = x - x.max(axis=1, keepdims=True)
    normed: Logits = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normed


if __name__ == "__main__":
    main()
