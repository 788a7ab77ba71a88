"""yocobit's server compared with llama-cpp-python's: one Transformer, random weights, interleaved.

    python benchmarks/serving_peers.py [--rounds 3] [--out benchmarks/results/serving_peers.json]

The shape is `150m`, in ternary and in TQ2_0. The packaged tokenizer is extended by words.
Needs the extras `serve` and `peers`, and llama-cpp-python[server].
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peers
import serving
from http_streams import stream, streams

from yocobit.benchmark.random_model import write_random_model
from yocobit.benchmark.shapes import named_shape
from yocobit.hardware.host import provenance

SHAPE, KIND, HEAD = "150m", "TQ2_0", "Q6_K"
STREAMS, TOKENS = 16, 32
WORDS, LONG_WORDS = 48, 1024  # of prompts
_WORDS = ["the", "of", "and", "to", "in", "a", "is", "that", "for", "it", "was", "on", "with"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results"
                        / "serving_peers.json")  # fmt: skip
    arguments = parser.parse_args()
    peers.need_llama_cpp()
    from llama_cpp_model import write_gguf

    config = named_shape(SHAPE)
    rounds: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        ours, theirs = Path(directory) / "model", Path(directory) / "model.gguf"
        tokenizer = serving.tokenizer(config.vocab_size)
        write_random_model(config, ours, head="int4", tokenizer=tokenizer)
        write_gguf(theirs, config, KIND, HEAD, tokenizer)
        ports = {
            "yocobit": stack.enter_context(serving.server(ours, "f16")),
            "llama-cpp-python": stack.enter_context(_their_server(theirs)),
        }
        for number in range(arguments.rounds + 1):
            found = {name: _measure(port, number) for name, port in ports.items()}
            if number > 0:  # the first warms up
                rounds.append(found)
                print(found, flush=True)
    report = {**provenance(), "shape": SHAPE, "median": _medians(rounds),
              "rounds": rounds}  # fmt: skip
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for name, values in report["median"].items():
        print(f"{name:18} {values}")


def _measure(port: int, seed: int) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    prompts = [" ".join(rng.choice(_WORDS, WORDS)) for _ in range(STREAMS + 1)]
    one = asyncio.run(streams("127.0.0.1", port, [_body(prompts[0])]))
    started = time.perf_counter()
    many = asyncio.run(streams("127.0.0.1", port, [_body(prompt) for prompt in prompts[1:]]))
    seconds = time.perf_counter() - started
    long_prompt = " ".join(rng.choice(_WORDS, LONG_WORDS))
    long = [
        asyncio.run(stream("127.0.0.1", port, {**_body(long_prompt), "max_tokens": 2}))
        for _ in range(2)
    ]
    return {
        "one_tokens_per_s": serving.rate(one),
        "many_tokens_per_s": sum(len(each.times) for each in many) / seconds,
        "many_first_token_s": statistics.median(each.first_s for each in many),
        "long_first_s": long[0].first_s,
        "long_again_s": long[1].first_s,
    }


def _body(prompt: str) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": TOKENS, "temperature": 1.0, "seed": 1}


@contextlib.contextmanager
def _their_server(model: Path) -> Iterator[int]:
    """Run llama-cpp-python's server with its prefix cache in memory; yield its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(model), "--port", str(port)]
    command += ["--n_ctx", "16384", "--n_threads", "2", "--n_threads_batch", "2"]
    command += ["--interrupt_requests", "false"]  # otherwise, a new request aborts the others
    command += ["--cache", "true"]  # without flash attention, which is slower on some CPUs
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if process.poll() is not None:
                raise RuntimeError(f"{command}: ended with {process.returncode}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        else:
            raise RuntimeError("the server must listen within a minute but does not")
        yield port
    finally:
        process.terminate()
        process.wait()


def _medians(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        name: {
            key: round(statistics.median(found[name][key] for found in rounds), 3)
            for key in rounds[0][name]
        }
        for name in rounds[0]
    }


if __name__ == "__main__":
    main()
