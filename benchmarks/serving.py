"""Speed of the server, compared with the bare engine in the same run.

    python benchmarks/serving.py [--shape small] [--rounds 5] [--out FILE]

Each round measures the engine without a server, one stream, STREAMS concurrent streams, and a long
text prompt twice. Responses have TOKENS tokens. Weights are random, as speed does not depend on
their values.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from http_streams import Stream, stream, streams

from yocobit import Engine
from yocobit.benchmark.random_model import write_random_model
from yocobit.benchmark.shapes import named_shape
from yocobit.hardware.host import provenance
from yocobit.pretrained import TINY

STREAMS, TOKENS, PROMPT, LONG_PROMPT = 16, 128, 64, 8192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="small")
    parser.add_argument("--cache", default="int8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model"
        config = named_shape(arguments.shape)
        write_random_model(config, path, tokenizer=tokenizer(config.vocab_size))
        engine = Engine.load(path)
        rounds = []
        with server(path, arguments.cache) as port:
            measure(engine, port, arguments.cache, 0)  # warm-up
            for i in range(arguments.rounds):
                rounds.append(measure(engine, port, arguments.cache, i + 1))
                print(rounds[-1], flush=True)
    result = {
        **provenance(),
        "shape": arguments.shape,
        "cache": arguments.cache,
        "summary": summary(rounds),
        "rounds": rounds,
    }
    for name, value in result["summary"].items():
        print(f"{name:34} {value}")
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def measure(engine: Engine, port: int, cache: str, seed: int) -> dict[str, float]:
    """Execute every measurement once."""
    rng = np.random.default_rng(seed)
    prompts = rng.integers(1, 4000, (STREAMS + 1, PROMPT)).tolist()
    long_prompt = engine.tokenizer.decode(rng.integers(1, 4000, LONG_PROMPT).tolist())
    alone = bare(engine, prompts[0], cache)
    one = asyncio.run(streams("127.0.0.1", port, [body(prompts[0])]))
    many = asyncio.run(streams("127.0.0.1", port, [body(prompt) for prompt in prompts[1:]]))
    long = [
        asyncio.run(stream("127.0.0.1", port, {**body(long_prompt), "max_tokens": 2}))
        for _ in range(2)
    ]
    gaps = sorted(gap for each in many for gap in each.gaps_s)
    return {
        "engine_tokens_per_s": alone,
        "one_tokens_per_s": rate(one),
        "many_tokens_per_s": rate(many),
        "many_gap_median_ms": 1e3 * statistics.median(gaps),
        "many_gap_p99_ms": 1e3 * gaps[int(0.99 * len(gaps))],
        "long_first_ms": 1e3 * long[0].first_s,
        "long_again_ms": 1e3 * long[1].first_s,
    }


def bare(engine: Engine, prompt: list[int], cache: str) -> float:
    """Return tokens/s of generation without a server, after the first token."""
    times = []
    for _ in engine.stream(prompt, max_tokens=TOKENS, cache=cache, sampling=sampling(engine)):
        times.append(time.perf_counter())
    return (len(times) - 1) / (times[-1] - times[0])


def sampling(engine: Engine) -> Any:
    return engine.sampling(temperature=1.0, seed=1)


def body(prompt: list[int] | str) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": TOKENS, "temperature": 1.0, "seed": 1}


def rate(responses: list[Stream]) -> float:
    """Return tokens/s of all responses, from the first token of any to the last token of all."""
    start = min(response.times[0] for response in responses)
    end = max(response.times[-1] for response in responses)
    return sum(len(response.times) for response in responses) / (end - start)


def summary(rounds: list[dict[str, float]]) -> dict[str, str]:
    """Return median (min-max) over the rounds of each ratio and measurement."""
    ratios = {
        "16 streams over one, tokens/s": [
            r["many_tokens_per_s"] / r["one_tokens_per_s"] for r in rounds
        ],
        "p99 over median gap, 16 streams": [
            r["many_gap_p99_ms"] / r["many_gap_median_ms"] for r in rounds
        ],
        "server over engine, time a token": [
            r["engine_tokens_per_s"] / r["one_tokens_per_s"] for r in rounds
        ],
        "repeated over first prompt, time": [
            r["long_again_ms"] / r["long_first_ms"] for r in rounds
        ],
    }
    for name in rounds[0]:
        ratios[name] = [r[name] for r in rounds]
    return {
        name: f"{statistics.median(v):.4g} ({min(v):.4g}-{max(v):.4g})"
        for name, v in ratios.items()
    }


def tokenizer(vocab_size: int) -> bytes:
    """Return the packaged tokenizer, extended to `vocab_size` so that every token has a text."""
    fields = json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = fields["model"]["vocab"]
    vocab.update({f"Ġword{i}": i for i in range(len(vocab), vocab_size)})
    return json.dumps(fields).encode()


@contextlib.contextmanager
def server(model: Path, cache: str) -> Iterator[int]:
    """Run `yocobit serve`; yield its port."""
    command = [sys.executable, "-m", "yocobit", "serve", str(model), "--port", "0"]
    command += ["--cache", cache, "--context", "16384"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        found = re.search(r":(\d+)\s*$", process.stderr.readline())
        yield int(found[1])
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
