"""yocobit beside llama.cpp: the same shapes, random weights, the same machine, in turn.

    python benchmarks/peers.py [--rounds 3] [--shapes 2b4t 150m] [--work DIR]

Needs the extra `peers` (llama-cpp-python, gguf). Every round runs every engine once for each shape
and number of threads; a ratio is the median over rounds of ours / the best of theirs in that round.
Writes benchmarks/results/peers.json.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from yocobit import Engine
from yocobit.benchmark.random_model import write_random_model
from yocobit.benchmark.shapes import SHAPES

RESULTS = Path(__file__).parent / "results" / "peers.json"
PREFILL, DECODE = 512, 48
THEIRS = {"ternary": ("TQ2_0", "TQ1_0"), "sign": ("Q1_0",)}
THEIR_HEAD, OUR_HEAD = "Q6_K", "int4"  # llama.cpp's own choice for these types, and ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--work", type=Path, help="keep models here between runs")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(json.loads(arguments.one))))
        return
    with contextlib.ExitStack() as stack:
        work = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runs = [run for shape in arguments.shapes for run in prepare(work, shape)]
        report = {"machine": machine(), "runs": list(measured(runs, arguments.rounds))}
    report["ratios"] = ratios(report["runs"])
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for name, ratio in report["ratios"].items():
        print(f"{name:28} {ratio:.2f}")
    print(f"wrote {RESULTS}")


def prepare(work: Path, shape: str) -> Iterator[dict[str, Any]]:
    """Write the models of a shape; give one run for each engine, weight kind and thread count."""
    from llama_cpp_model import write_gguf

    config = SHAPES[shape]
    for kind, types in THEIRS.items():
        ours = work / f"{shape}-{kind}"
        if not ours.exists():
            write_random_model(config.replace(weights=kind), ours, head=OUR_HEAD)
        paths = {f"yocobit {kind}": ours}
        for name in types:
            path = work / f"{shape}-{name}.gguf"
            if not path.exists():
                write_gguf(path, config, name, THEIR_HEAD)
            paths[f"llama.cpp {name}"] = path
        for threads in (2, 1):
            for engine, path in paths.items():
                yield {"shape": shape, "kind": kind, "engine": engine, "threads": threads,
                       "path": str(path)}  # fmt: skip


def measured(runs: list[dict[str, Any]], rounds: int) -> Iterator[dict[str, Any]]:
    """Measure every run once a round, each in a process of its own."""
    for number in range(rounds):
        for run in runs:
            command = [sys.executable, __file__, "--one", json.dumps(run)]
            output = subprocess.run(command, capture_output=True, text=True)
            if output.returncode != 0:
                print(f"{run['engine']} {run['shape']}: {output.stderr.strip()[-300:]}")
                continue
            result = {**run, "round": number, **json.loads(output.stdout.splitlines()[-1])}
            del result["path"]
            print(
                f"{number} {run['shape']} {run['engine']:18} {run['threads']} threads: "
                f"prefill {result['prefill']:7.1f}, decode {result['decode']:6.1f} tokens/s",
                flush=True,
            )
            yield result


def measure(run: dict[str, Any]) -> dict[str, float]:
    """Prefill PREFILL tokens and decode DECODE after them; tokens/s of both, after a warm-up."""
    vocab_size = SHAPES[run["shape"]].vocab_size
    tokens = np.random.default_rng(0).integers(1, vocab_size, PREFILL + DECODE).tolist()
    is_ours = run["engine"].startswith("yocobit")
    texts = (_ours if is_ours else _theirs)(run["path"], run["threads"])
    feed = next(texts)
    feed(tokens[:64])
    feed = next(texts)
    begin = time.perf_counter()
    feed(tokens[:PREFILL])
    prefill = PREFILL / (time.perf_counter() - begin)
    seconds = []
    for token in tokens[PREFILL:]:
        begin = time.perf_counter()
        feed([token])
        seconds.append(time.perf_counter() - begin)
    return {"prefill": prefill, "decode": 1 / statistics.median(seconds)}


def _ours(path: str, threads: int) -> Iterator[Any]:
    engine = Engine.load(path, threads=threads)
    while True:
        yield engine.session(PREFILL + DECODE, "f16").feed


def _theirs(path: str, threads: int) -> Iterator[Any]:
    from llama_cpp import Llama

    model = Llama(path, n_ctx=1024, n_batch=512, n_ubatch=512, n_threads=threads,
                  n_threads_batch=threads, flash_attn=True, verbose=False)  # fmt: skip
    while True:
        model.reset()
        yield model.eval


def ratios(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over rounds of ours / the best of theirs."""
    found = {}
    for shape in SHAPES:
        for kind in THEIRS:
            for threads in (2, 1):
                for what in ("prefill", "decode"):
                    rounds: dict[int, dict[str, float]] = {}
                    for run in runs:
                        if (run["shape"], run["kind"], run["threads"]) == (shape, kind, threads):
                            rounds.setdefault(run["round"], {})[run["engine"]] = run[what]
                    each = [
                        speeds[f"yocobit {kind}"] / max(theirs)
                        for speeds in rounds.values()
                        if f"yocobit {kind}" in speeds
                        and (theirs := [v for n, v in speeds.items() if n.startswith("llama")])
                    ]
                    if each:
                        size = "" if shape == "2b4t" else f"_{shape}"
                        name = f"{what}{size}_{kind}_{threads}t"
                        found[name] = round(statistics.median(each), 3)
    return found


def machine() -> dict[str, Any]:
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    return {
        "cpu": cpu,
        "n_cpus": os.cpu_count(),
        "commit": commit,
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("yocobit", "llama-cpp-python", "gguf", "numpy")
        },
    }


if __name__ == "__main__":
    main()
