"""A model of about 100M parameters whose working set stays in the last-level cache.

    python benchmarks/on_chip.py [--rounds 3] [--work DIR]

Decode of single tokens behind 512 others, int8 cache, vocabulary of 16,384: our ternary and sign
weights, in a Transformer and in a YOCO stack of the same width and depth, beside llama.cpp's F16
and ternary types on that Transformer. The same steps again with every cache filled by other data
before each. Needs the extra `peers`; every run is a process of its own, ratios are medians over
rounds. Writes benchmarks/results/on_chip.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import measures
import peers

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
    with contextlib.ExitStack() as stack:
        work = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runs = list(peers.measured(list(_runs(work)), arguments.rounds))
    report = {"machine": peers.machine(), "ratios": _ratios(runs), "runs": runs}
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
        yield {**common, "shape": SHAPES[0], "kind": kind, "engine": f"llama.cpp {kind}",
               "path": path, **_vocabulary(SHAPES[0])}  # fmt: skip


def _vocabulary(shape: str) -> Run:
    return {"vocab_size": peers.ALL_SHAPES[shape].vocab_size}


def _ratios(runs: list[Run]) -> dict[str, float]:
    """Return medians over rounds: ours / theirs on one Transformer, and what each of ours found."""
    found: dict[str, Callable[[dict[str, Run]], float]] = {}
    for shape in SHAPES:
        for kind in ("ternary", "sign"):
            name = f"{shape} {kind}"
            for peer, types in (("F16", F16), ("best ternary", TERNARY)):
                found[f"{name} / llama.cpp {peer}"] = lambda by, name=name, types=types: (
                    by[name]["tokens_per_s"] / max(by[_name(t)]["tokens_per_s"] for t in types)
                )
            for what in ("p99_over_median", "evicted_over_median"):
                found[f"{name} {what}"] = lambda by, name=name, what=what: by[name][what]
    rounds = [
        {f"{run['shape']} {run['kind']}": run for run in runs if run["round"] == number}
        for number in sorted({run["round"] for run in runs})
    ]
    return {
        name: round(statistics.median(value(by) for by in rounds), 3)
        for name, value in found.items()
    }


def _name(kind: str) -> str:
    return f"{SHAPES[0]} {kind}"


if __name__ == "__main__":
    main()
