"""yocobit beside llama.cpp, PyTorch and itself: the same shapes, random weights, in turn.

    python benchmarks/peers.py [--rounds 3] [--only speed attention ...] [--threads 2]
        [--work DIR] [--out benchmarks/results/peers.json]

Needs the extra `peers` (llama-cpp-python, gguf). Every round makes every run once, each in a
process of its own; a ratio is the median over rounds of ours / the best of theirs in that round.
docs/performance.md explains the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measures
from ratios import ratios

from yocobit.benchmark.random_model import write_random_model
from yocobit.benchmark.shapes import SHAPES, transformer, yoco
from yocobit.config import ModelConfig
from yocobit.hardware.machine import describe_machine

RESULTS = Path(__file__).parent / "results" / "peers.json"
THEIRS = {"ternary": ("TQ2_0", "TQ1_0"), "sign": ("Q1_0",)}
THEIR_HEAD, OUR_HEAD = "Q6_K", "int4"  # llama.cpp's own choice for these types, and ours

_100M = transformer(768, 12, 12, 12, 2048, 16384)
ALL_SHAPES: dict[str, ModelConfig] = {
    "2b4t": SHAPES["2b4t"],
    "150m": SHAPES["150m"],
    "150m-yoco": yoco(SHAPES["150m"]),
    # Weights that fit a last-level cache of 32 MB.
    "85m": transformer(768, 12, 12, 12, 2048, 8192),
    # on_chip.py
    "100m": _100M,
    "100m-yoco": yoco(_100M),
    # One layer of attention as in 2b4t, and little else.
    "attention": transformer(2560, 1, 20, 5, 256, 1024),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=_PLANS, default=list(_PLANS))
    parser.add_argument("--threads", type=int, help="make only the runs with so many")
    parser.add_argument("--work", type=Path, help="keep models here between runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        run = json.loads(arguments.one)
        print(json.dumps(getattr(measures, run["measure"])(run)))
        return
    need_llama_cpp()
    with contextlib.ExitStack() as stack:
        work = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runs = [run for name in arguments.only for run in _PLANS[name](work)
                if arguments.threads in (None, run["threads"])]  # fmt: skip
        report = {"machine": machine(), "runs": list(measured(runs, arguments.rounds))}
    report["ratios"] = ratios(report["runs"])
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for name, ratio in report["ratios"].items():
        print(f"{name:36} {ratio:8.2f}")
    print(f"wrote {arguments.out}")


def speed_runs(work: Path) -> Iterator[dict[str, Any]]:
    """Prefill and decode: every weight kind beside the types of llama.cpp, and PyTorch."""
    for shape in ("2b4t", "150m"):
        config = ALL_SHAPES[shape]
        for kind, types in THEIRS.items():
            paths = {measures.YOCOBIT: ours(work, shape, kind)}
            for name in types:
                paths |= dict.fromkeys(llama_cpp(name), theirs(work, shape, name))
            for threads in (2, 1):
                for engine, path in paths.items():
                    yield {"measure": "speed", "shape": shape, "kind": kind, "engine": engine,
                           "threads": threads, "path": path,
                           "vocab_size": config.vocab_size}  # fmt: skip
    for threads in (2, 1):
        yield {"measure": "speed", "shape": "150m", "kind": "float32",
               "engine": measures.PYTORCH, "threads": threads,
               "config": config.to_dict(), "vocab_size": config.vocab_size}  # fmt: skip


def attention_runs(work: Path) -> Iterator[dict[str, Any]]:
    """A layer of attention over a long f16 cache."""
    paths = {measures.YOCOBIT: ours(work, "attention", "ternary")}
    paths |= dict.fromkeys(llama_cpp("TQ2_0"), theirs(work, "attention", "TQ2_0"))
    for engine, path in paths.items():
        yield {"measure": "attention", "shape": "attention", "engine": engine, "threads": 2,
               "path": path}  # fmt: skip


def own_runs(work: Path) -> Iterator[dict[str, Any]]:
    """What needs no peer: ratios to ourselves and to the machine's limits."""
    for shape, kind in (("2b4t", "ternary"), ("2b4t", "sign"), ("85m", "ternary")):
        for threads in (2, 1):
            yield {"measure": "share", "shape": shape, "kind": kind, "threads": threads,
                   "path": ours(work, shape, kind)}  # fmt: skip
    for shape in ("2b4t", "150m"):
        yield {"measure": "sessions", "shape": shape, "threads": 2,
               "path": ours(work, shape, "ternary")}  # fmt: skip
    yield {"measure": "early_exit", "shape": "150m", "threads": 2,
           "path": ours(work, "150m", "ternary"),
           "yoco_path": ours(work, "150m-yoco", "ternary")}  # fmt: skip
    yield {"measure": "opening", "shape": "2b4t", "threads": 2,
           "path": ours(work, "2b4t", "ternary")}  # fmt: skip


_PLANS = {"speed": speed_runs, "attention": attention_runs, "own": own_runs}


def need_llama_cpp() -> None:
    """End the program, unless llama.cpp and what writes its files are installed."""
    try:
        import gguf  # noqa: F401
        import llama_cpp  # noqa: F401
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error.name} is not installed: pip install 'yocobit[peers]'")


def llama_cpp(kind: str) -> tuple[str, str]:
    """Return the names of both ways in which llama.cpp attends."""
    return f"llama.cpp {kind}", f"llama.cpp {kind}{measures.WITHOUT_FLASH}"


def ours(work: Path, shape: str, kind: str) -> str:
    """Return a packed model of that shape, written unless it is there."""
    path = work / f"{shape}-{kind}"
    if not path.exists():
        write_random_model(ALL_SHAPES[shape].replace(weights=kind), path, head=OUR_HEAD)
    return str(path)


def theirs(work: Path, shape: str, kind: str, head: str = THEIR_HEAD) -> str:
    """Return a GGUF file of that shape, written unless it is there."""
    from llama_cpp_model import write_gguf

    path = work / f"{shape}-{kind}.gguf"
    if not path.exists():
        write_gguf(path, ALL_SHAPES[shape], kind, head)
    return str(path)


def measured(runs: list[dict[str, Any]], rounds: int) -> Iterator[dict[str, Any]]:
    """Make every run once a round, each in a process of its own."""
    for number in range(rounds):
        for run in runs:
            command = [sys.executable, __file__, "--one", json.dumps(run)]
            output = subprocess.run(command, capture_output=True, text=True)
            known = {key: value for key, value in run.items() if key in _SHOWN}
            name = f"{number} " + " ".join(map(str, known.values()))
            if output.returncode != 0:
                print(f"{name}: {output.stderr.strip()[-300:]}", flush=True)
                continue
            found = json.loads(output.stdout.splitlines()[-1])
            shown = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
            print(f"{name}: {shown}", flush=True)
            yield {**known, "round": number, **found}


_SHOWN = ("measure", "shape", "kind", "engine", "threads")


def machine() -> dict[str, Any]:
    packages = ("yocobit", "llama-cpp-python", "gguf", "torch", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {**describe_machine().to_dict(), "versions": versions}


if __name__ == "__main__":
    main()
