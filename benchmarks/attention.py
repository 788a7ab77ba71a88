"""Attention over long texts, beside what memory could deliver in the same run.

    python benchmarks/attention.py [--depths 1024,4096,16384,65536] [--threads 1,2] [--rounds 5]

The time of one cross layer is that of a step with it at a depth, less that of the same step at the
start of a text. `bound` is the time that the bytes of its keys and values need at the read
bandwidth measured beside it: a depth that fits the last-level cache can take less.

Letters: S cached positions   H query heads   G K/V heads   D head size
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import get_args

import numpy as np
from measures import seconds

from yocobit import Engine
from yocobit.benchmark.random_model import write_random_model
from yocobit.config import ModelConfig
from yocobit.engine.session import CacheType, Session
from yocobit.hardware.limits import measure_limits
from yocobit.hardware.machine import read_caches, usable_cpus

# H 20, G 5, D 128 as in BitNet 2B4T. A cross layer attends over keys and values that prefill
# computes without attending, so that a depth is reached at once.
CONFIG = ModelConfig(
    vocab_size=256,
    d_model=2560,
    layers=("window", "cross"),
    d_ff=256,
    n_heads=20,
    n_kv_heads=5,
    n_self_heads=20,
    n_self_kv_heads=5,
    window=32,
)
N_ROWS = 128  # that prefill takes at a time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", default="1024,4096,16384,65536")
    parser.add_argument("--threads", default=",".join(sorted({"1", str(os.cpu_count())})))
    parser.add_argument("--caches", default=",".join(get_args(CacheType)))
    parser.add_argument("--kernels", help="as in yocobit generate; the fastest by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prefill", action="store_true", help=f"{N_ROWS} rows at a time instead")
    arguments = parser.parse_args()
    depths = [int(depth) for depth in arguments.depths.split(",")]
    show, unit = (show_prefill, "GFLOP/s") if arguments.prefill else (show_decode, "GB/s")

    with tempfile.TemporaryDirectory() as directory:
        path = write_random_model(CONFIG, Path(directory) / "model").path
        for threads in map(int, arguments.threads.split(",")):
            engine = Engine.load(path, threads=threads, kernels=arguments.kernels)
            print(f"\n{engine.kernels}, {threads} threads, minimum of {arguments.rounds}")
            print(f"{'cache':6} {'depth':>7} {'MB':>7} {'ms':>9} {unit:>8} {'bound ms':>9}")
            for cache in arguments.caches.split(","):
                for depth in depths:
                    show(engine, cache, depth, arguments.rounds)


def show_decode(engine: Engine, cache: CacheType, depth: int, rounds: int) -> None:
    """Measure and print one token at a depth."""
    session, start = session_at(engine, cache, depth, 4 * rounds), engine.session(4 * rounds, cache)
    size = depth * session.memory().shared_kv_per_token
    at_depth, at_start, bandwidth = [], [], []
    for _ in range(rounds):
        for _ in range(4):
            at_start.append(seconds(lambda: start.step(1)))
        for _ in range(4):
            at_depth.append(seconds(lambda: session.step(1)))
        bandwidth.append(read_limit(engine))
    elapsed = min(at_depth) - min(at_start)
    print(
        f"{cache:6} {depth:7,} {size / 1e6:7.1f} {elapsed * 1e3:9.3f} {size / elapsed / 1e9:8.1f} "
        f"{size / max(bandwidth) * 1e3:9.3f}",
        flush=True,
    )


def show_prefill(engine: Engine, cache: CacheType, depth: int, rounds: int) -> None:
    """Measure and print N_ROWS tokens, all of whose logits are asked for, at a depth."""
    session = session_at(engine, cache, depth, N_ROWS * rounds)
    start = [engine.session(N_ROWS, cache) for _ in range(rounds)]
    tokens = np.ones(N_ROWS, dtype=np.int32)
    at_depth = min(seconds(lambda: session.feed_all(tokens)) for _ in range(rounds))
    at_start = min(seconds(lambda s=s: s.feed_all(tokens)) for s in start)
    operations = 4 * N_ROWS * depth * CONFIG.d_model
    size = depth * session.memory().shared_kv_per_token
    elapsed = at_depth - at_start
    bound = size / read_limit(engine) * 1e3
    print(
        f"{cache:6} {depth:7,} {size / 1e6:7.1f} {elapsed * 1e3:9.3f} "
        f"{operations / elapsed / 1e9:8.1f} {bound:9.3f}",
        flush=True,
    )


def session_at(engine: Engine, cache: CacheType, depth: int, more: int) -> Session:
    """A session that has taken in random tokens."""
    session = engine.session(depth + more, cache)
    session.feed(np.random.default_rng(0).integers(0, CONFIG.vocab_size, depth, dtype=np.int32))
    return session


def read_limit(engine: Engine) -> float:
    """Bytes a second that as many threads read from memory."""
    return measure_limits(engine.threads, usable_cpus(), read_caches()).dram_bytes_per_s


if __name__ == "__main__":
    main()
