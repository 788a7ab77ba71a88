"""A model of about 100M parameters whose working set stays in the last-level cache.

    python benchmarks/on_chip.py [--rounds 3] [--work DIR]

Measures decode at depth 512 with a vocabulary of 16,384. Ternary and sign weights with an int8 KV
cache, in a Transformer and in a YOCO stack of the same width and depth, are compared with
llama.cpp's F16 and ternary types with an f16 KV cache on that Transformer. Every twentieth step
starts with evicted caches. The p99 / median of a step is compared with that of equally long steps
of a model in the L2 caches, which is the noise of the machine. Needs the extra `peers`. Every run
is a separate process; ratios are medians over rounds. Writes benchmarks/results/on_chip.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measures
import peers

from yocobit.hardware.host import provenance

RESULTS = Path(__file__).parent / "results" / "on_chip.json"
SHAPES = ("100m", "100m-yoco")
F16, TERNARY = ("F16",), ("TQ2_0", "TQ1_0")
THREADS = 2

Run = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="keep models here between runs")
    arguments = parser.parse_args()
    peers.need_llama_cpp()
    with contextlib.ExitStack() as stack:
        work = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runs = list(peers.measured(list(_runs(work)), arguments.rounds))
    report = {**provenance(), "versions": peers.versions(), "ratios": _ratios(runs), "runs": runs}
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for name, ratio in report["ratios"].items():
        print(f"{name:44} {ratio:8.2f}")
    print(f"wrote {RESULTS}")


def _runs(work: Path) -> Iterator[Run]:
    common = {"measure": "on_chip", "threads": THREADS}
    for shape in SHAPES:
        for kind in ("ternary", "sign"):
            yield {**common, "shape": shape, "kind": kind, "engine": measures.YOCOBIT,
                   "path": peers.ours(work, shape, kind), **_vocabulary(shape)}  # fmt: skip
    for kind in F16 + TERNARY:
        path = peers.theirs(work, SHAPES[0], kind, "F16" if kind in F16 else peers.THEIR_HEAD)
        for engine in peers.llama_cpp(kind):
            yield {**common, "shape": SHAPES[0], "kind": kind, "engine": engine, "path": path,
                   **_vocabulary(SHAPES[0])}  # fmt: skip


def _vocabulary(shape: str) -> Run:
    return {"vocab_size": peers.ALL_SHAPES[shape].vocab_size}


def _ratios(runs: list[Run]) -> dict[str, float]:
    """Return medians over rounds: yocobit's speed / the best of llama.cpp's on the Transformer, and
    the ratios of each yocobit run."""
    rounds: dict[int, list[Run]] = {}
    for run in runs:
        rounds.setdefault(run["round"], []).append(run)
    found: dict[str, list[float]] = {}
    for of_round in rounds.values():
        for run in of_round:
            if run["engine"] != measures.YOCOBIT:
                continue
            name = f"{run['shape']} {run['kind']}"
            for peer, kinds in (("F16", F16), ("best ternary", TERNARY)):
                theirs = max(r["tokens_per_s"] for r in of_round if r["kind"] in kinds)
                ratio = run["tokens_per_s"] / theirs
                found.setdefault(f"{name} / llama.cpp {peer}", []).append(ratio)
            for what in ("p99_over_median", "machine_p99_over_median", "evicted_over_median"):
                found.setdefault(f"{name} {what}", []).append(run[what])
    return {name: round(statistics.median(values), 3) for name, values in found.items()}


if __name__ == "__main__":
    main()
