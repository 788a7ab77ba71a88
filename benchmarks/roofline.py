"""The roofline plot of docs/benchmarks/cpus.md: measured speed under the roofline.

    python benchmarks/roofline.py

Reads benchmarks/results/peers.json, writes docs/assets/roofline.png. The x axis is arithmetic
intensity (multiply-adds per byte of memory traffic), the y axis multiply-adds per second, both
logarithmic.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from measures import PREFILL, YOCOBIT

from yocobit.benchmark.shapes import SHAPES
from yocobit.costs import multiply_adds

ROOT = Path(__file__).parent.parent
CONFIG = SHAPES["2b4t"]
THREADS = 2
# Bytes per weight as stored: body, then head.
_BYTES = {
    (YOCOBIT, "ternary"): (1 / 4, 4.25 / 8),
    (YOCOBIT, "sign"): (1 / 8, 4.25 / 8),
    ("llama.cpp TQ2_0", "ternary"): (66 / 256, 210 / 256),
    ("llama.cpp TQ1_0", "ternary"): (54 / 256, 210 / 256),
    ("llama.cpp Q1_0", "sign"): (18 / 128, 210 / 256),
}
_OURS, _THEIRS, _ROOF = "#c2410c", "#475569", "#94a3b8"
_LABEL = {"fontsize": 8, "textcoords": "offset points"}


def main() -> None:
    report = json.loads((ROOT / "benchmarks/results/peers.json").read_text())
    figure, axes = plt.subplots(figsize=(8, 5), dpi=120)
    draw_roofs(axes, limits(report["runs"]))
    for engine, kind in _BYTES:
        draw_engine(axes, report["runs"], engine, kind)
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(1, 12000),
        ylim=(8, 2000),
        xlabel="multiply-adds per byte read from memory",
        ylabel="10⁹ multiply-adds per second",
        title=f"2B4T shape, {THREADS} threads: decode (left), prefill of {PREFILL} (right)",
    )
    axes.title.set_fontsize(10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(ROOT / "docs/assets/roofline.png")


def limits(runs: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Return the measured limits of all rounds, in 10^9 per second."""
    of_threads = [r for r in runs if r["measure"] == "share" and r["threads"] == THREADS]
    read = {
        name: [r["limit_gigabytes_per_s"] for r in of_threads if (r["shape"] == "85m") == resident]
        for name, resident in (("DRAM", False), ("last-level cache", True))
    }
    return {**read, "int8": [r["limit_gigamultiply_adds_per_s"] for r in of_threads]}


def draw_roofs(axes: Any, limit: dict[str, list[float]]) -> None:
    """Draw bandwidth and int8 limits."""
    across = np.geomspace(1, 12000, 2)
    for name in ("DRAM", "last-level cache"):
        low, high = min(limit[name]), max(limit[name])
        axes.fill_between(across, low * across, high * across, color=_ROOF, alpha=0.25, lw=0)
        axes.plot(across, high * across, color=_ROOF, lw=1)
        axes.annotate(f"{name} {low:.0f}-{high:.0f} GB/s", (1.1, 1.1 * high), xytext=(0, 3),
                      rotation=43, rotation_mode="anchor", color=_THEIRS, **_LABEL)  # fmt: skip
    most = max(limit["int8"])
    axes.axhline(most, color=_ROOF, lw=1)
    axes.annotate(f"int8 multiply-add {most:.0f}", (100, most), xytext=(0, 4), color=_THEIRS,
                  **_LABEL)  # fmt: skip


def draw_engine(axes: Any, runs: list[dict[str, Any]], engine: str, kind: str) -> None:
    """Draw decode and prefill of an engine as two connected points."""
    match = {"measure": "speed", "shape": "2b4t", "engine": engine, "kind": kind,
             "threads": THREADS}  # fmt: skip
    own = [run for run in runs if match.items() <= run.items()]
    if not own:
        return
    body = multiply_adds(CONFIG, 1, 0)
    head = multiply_adds(CONFIG, 1, 1) - body
    body_bytes, head_bytes = (
        n * size for n, size in zip((body, head), _BYTES[engine, kind], strict=True)
    )
    work = {"decode": (body + head, 1), "prefill": (body + head / PREFILL, PREFILL)}
    points = [
        (
            count * n / (body_bytes + head_bytes),
            count * statistics.median(r[what] for r in own) / 1e9,
        )
        for what, (count, n) in work.items()
    ]
    color = _OURS if engine == YOCOBIT else _THEIRS
    axes.plot(*zip(*points, strict=True), "o", color=color, ms=6)
    name = f"{engine} {kind}" if engine == YOCOBIT else engine
    below = -10 if engine.endswith("TQ1_0") else 0
    for point in points:
        axes.annotate(name, point, xytext=(7, below - 3), color=color, **_LABEL)


if __name__ == "__main__":
    main()
