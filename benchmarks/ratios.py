"""From runs to ratios: medians over rounds of ours / the best of theirs in the same round."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from measures import DEPTH, LONG_PREFILL, PYTORCH, SESSIONS, YOCOBIT

Run = dict[str, Any]


def ratios(runs: list[Run]) -> dict[str, float]:
    """Return each ratio that the runs allow, by name; shapes but 2b4t are part of it."""
    found: dict[str, float | None] = {}
    for shape in ("2b4t", "150m"):
        for kind in ("ternary", "sign"):
            for threads in (2, 1):
                for what in ("prefill", "decode"):
                    name = "_".join([what, *_unless_2b4t(shape), kind, f"{threads}t"])
                    match = {"measure": "speed", "shape": shape, "kind": kind, "threads": threads}
                    found[name] = _beside(runs, match, what)
                    if shape == "150m" and kind == "ternary":
                        del match["kind"]
                        found[f"{name}_over_pytorch"] = _beside(
                            runs, match, what, ours_kind=kind, peer=PYTORCH
                        )
    # Time: theirs / ours.
    slower = _beside(runs, {"measure": "attention"}, "ms", best=min)
    found[f"attention_{DEPTH}_f16_2t"] = None if slower is None else 1 / slower
    for run in _first_of_each(runs, "share"):
        match = {key: run[key] for key in ("measure", "shape", "kind", "threads")}
        name = "_".join([*_unless_2b4t(run["shape"]), run["kind"], f"{run['threads']}t"])
        found[f"share_of_read_limit_{name}"] = _median(runs, match, lambda r: r["share"])
        found[f"p99_over_median_{name}"] = _median(runs, match, lambda r: r["p99_over_median"])
    for run in _first_of_each(runs, "sessions"):
        name = "_".join(["sessions", str(SESSIONS), *_unless_2b4t(run["shape"]), "2t"])
        match = {"measure": "sessions", "shape": run["shape"]}
        found[name] = _median(runs, match, lambda r: r["together"] / r["alone"])
    found[f"early_exit_prefill_{LONG_PREFILL}_2t"] = _median(
        runs, {"measure": "early_exit"}, lambda r: r["yoco"] / r["transformer"]
    )
    found["opening_ms"] = _median(runs, {"measure": "opening"}, lambda r: r["ms"])
    return {name: round(value, 3) for name, value in found.items() if value is not None}


def _beside(
    runs: list[Run],
    match: Run,
    what: str,
    ours_kind: str | None = None,
    peer: str = "llama.cpp",
    best: Callable[[list[float]], float] = max,
) -> float | None:
    """Median over rounds of our figure / the best of the peer's types."""
    rounds: dict[int, dict[str, float]] = {}
    for run in _matching(runs, match):
        is_ours = run["engine"] == YOCOBIT
        if is_ours and ours_kind is not None and run["kind"] != ours_kind:
            continue
        if is_ours or run["engine"].startswith(peer):
            rounds.setdefault(run["round"], {})[run["engine"]] = run[what]
    each = [
        speeds[YOCOBIT] / best(others)
        for speeds in rounds.values()
        if YOCOBIT in speeds and (others := [v for n, v in speeds.items() if n != YOCOBIT])
    ]
    return statistics.median(each) if each else None


def _median(runs: list[Run], match: Run, value: Callable[[Run], float]) -> float | None:
    values = [value(run) for run in _matching(runs, match)]
    return statistics.median(values) if values else None


def _matching(runs: list[Run], match: Run) -> list[Run]:
    return [run for run in runs if match.items() <= run.items()]


def _first_of_each(runs: list[Run], measure: str) -> list[Run]:
    return [run for run in runs if run["measure"] == measure and run["round"] == 0]


def _unless_2b4t(shape: str) -> list[str]:
    return [] if shape == "2b4t" else [shape]
