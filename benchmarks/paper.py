"""Figure 1 of the YOCO paper (arXiv:2405.05254) on this host: memory, prefill, decode by length.

    python benchmarks/paper.py [--shape small] [--lengths 1024,...,1048576] [--cache int8]
        [--repetitions 3] [--picture docs/assets/long-contexts.png]
        [--out benchmarks/results/paper.json]

A decoder-decoder, with and without an index, is compared with the Transformer of the same shape in
the same engine, with the same kernels and cache type. The Transformer's KV cache has K and V of
every layer. Sessions are filled with noise, as attention costs the same as with real tokens. A full
prefill of the Transformer would take hours at the largest lengths, so the time of a chunk of 128
tokens is measured at each length and integrated by the trapezoidal rule. This is exact if the time
of a chunk grows linearly with its depth.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from rich.console import Console
from rich.table import Table

from yocobit import Engine, _native, pictures
from yocobit.benchmark.random_model import write_random_model
from yocobit.benchmark.shapes import named_shape
from yocobit.config import ModelConfig
from yocobit.costs import session_bytes, weight_bytes
from yocobit.engine.session import CacheType, Session
from yocobit.hardware.host import available_bytes, default_threads, provenance

RESULTS = Path(__file__).parent / "results" / "paper.json"
LENGTHS = (1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 17, 1 << 18, 1 << 19, 1 << 20)
INDEX = "index:2048"
CHUNK, STEPS = 128, 8  # tokens of a timed prefill chunk and of a timed decode
PAPER_MEMORY, PAPER_PREFILL = (1 << 20, 9.4), (1 << 19, 30.3)  # the paper's ratios, on a GPU
COLORS = ("#8A8A8A", pictures.BLUE, pictures.ORANGE)


@dataclasses.dataclass
class Curve:
    """One stack by length; a length that exceeds the available memory has no times."""

    name: str
    config: ModelConfig
    weight_bytes: int
    cache: CacheType
    chunk_s: dict[int, list[float]] = dataclasses.field(default_factory=dict)
    step_s: dict[int, list[float]] = dataclasses.field(default_factory=dict)

    def memory_bytes(self, length: int) -> int:
        """Return the bytes of the weights and of a session of that length."""
        return self.weight_bytes + session_bytes(self.config, self.cache, length)

    def tokens_per_s(self, length: int) -> float | None:
        """Return the decode speed at that depth."""
        steps = self.step_s.get(length)
        return None if steps is None else 1 / statistics.median(steps)

    def prefill_s(self, length: int) -> float | None:
        """Return the time to first token of a prompt of that length."""
        depths = [depth for depth in sorted(self.chunk_s) if depth <= length]
        if length not in self.step_s or not depths or depths[-1] != length:
            return None
        rates = [statistics.median(self.chunk_s[depth]) / CHUNK for depth in depths]
        return float(np.trapezoid(rates, depths)) + statistics.median(self.step_s[length])

    def to_dict(self, lengths: Sequence[int]) -> dict[str, Any]:
        """Return the figures as JSON values."""
        points = [
            {
                "tokens": length,
                "memory_bytes": self.memory_bytes(length),
                "prefill_s": self.prefill_s(length),
                "tokens_per_s": self.tokens_per_s(length),
                "chunk_s": self.chunk_s.get(length),
                "step_s": self.step_s.get(length),
            }
            for length in lengths
        ]
        return {"name": self.name, "layers": list(self.config.layers), "points": points}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="small")
    parser.add_argument("--weights", choices=("ternary", "sign"), default="ternary")
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)))
    parser.add_argument("--cache", choices=get_args(CacheType), default="int8")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--kernels")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--picture", type=Path, help="draw the curves: .png, .svg or .pdf")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    lengths = sorted(int(length) for length in arguments.lengths.split(","))
    curves = measure(
        named_shape(arguments.shape).replace(weights=arguments.weights),
        lengths,
        arguments.cache,
        arguments.threads,
        arguments.kernels,
        arguments.repetitions,
        print,
    )
    settings = {
        key: getattr(arguments, key) for key in ("shape", "cache", "threads", "repetitions")
    }
    report = {**provenance(), **settings, "curves": [curve.to_dict(lengths) for curve in curves]}
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print_table(curves, lengths, Console())
    if arguments.picture:
        draw(curves, lengths, arguments.shape, arguments.picture)


def measure(
    config: ModelConfig,
    lengths: Sequence[int],
    cache: CacheType,
    threads: int,
    kernels: str | None = None,
    repetitions: int = 1,
    progress: Callable[[str], object] = lambda text: None,
) -> list[Curve]:
    """Time three stacks at every length in every round: Transformer, YOCO, YOCO with an index."""
    if not config.has_cross_decoder:
        raise SystemExit("error: --shape must have cross layers")
    if not lengths or min(lengths) < 1:
        raise SystemExit(f"error: --lengths must be at least 1 but are {list(lengths)}")
    stacks = {
        "Transformer": config.replace(layers=("full",) * len(config.layers)),
        "YOCO": config.attending("full"),
        f"YOCO, {INDEX}": config.attending(INDEX),
    }
    curves, engines = [], []
    with tempfile.TemporaryDirectory() as directory:
        for i, (name, stack) in enumerate(stacks.items()):
            model = write_random_model(stack, Path(directory) / str(i))
            curves.append(Curve(name, stack, weight_bytes(model), cache))
            engines.append(Engine(model, threads, kernels))
        for number in range(repetitions):
            for length in (0, *sorted(lengths)):
                for curve, engine in zip(curves, engines, strict=True):
                    progress(f"round {number + 1} of {repetitions}: {curve.name} at {length:,}")
                    time_length(engine, curve, length)
    return curves


def time_length(engine: Engine, curve: Curve, length: int) -> None:
    """Add one repetition to a curve if memory suffices."""
    capacity = length + STEPS + CHUNK
    available = available_bytes()
    if available is not None and session_bytes(curve.config, curve.cache, capacity) > available:
        return
    session = engine.session(capacity, curve.cache)
    _native.fill(session._native, length)
    if length > 0:
        curve.step_s.setdefault(length, []).extend(step_times(session))
    tokens = np.arange(CHUNK, dtype=np.int32) % engine.config.vocab_size
    started = time.perf_counter()
    engine.step([], [], prompts=[(session, tokens)])
    curve.chunk_s.setdefault(length, []).append(time.perf_counter() - started)


def step_times(session: Session) -> Iterator[float]:
    """Yield the times of STEPS - 1 decode steps, after one to warm up."""
    out = np.empty(session.feed([0]).shape, dtype=np.float32)
    for token in range(1, STEPS):
        started = time.perf_counter()
        session.step(token, out)
        yield time.perf_counter() - started


def print_table(curves: Sequence[Curve], lengths: Sequence[int], console: Console) -> None:
    """Print one line per length, then the ratios next to those of the paper."""
    transformer, yoco, index = curves
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="bold")
    headings = ["tokens", "memory", "YOCO", "ratio", "prefill", "YOCO", "ratio"]
    for heading in [*headings, "tokens/s", "YOCO", "ratio", "index"]:
        table.add_column(heading, justify="right", no_wrap=True)
    for length in lengths:
        memory = transformer.memory_bytes(length), yoco.memory_bytes(length)
        prefill = transformer.prefill_s(length), yoco.prefill_s(length)
        speeds = transformer.tokens_per_s(length), yoco.tokens_per_s(length)
        table.add_row(
            size(length),
            *(f"{n_bytes / 1e9:.2f} GB" for n_bytes in memory),
            ratio(*memory),
            *map(duration, prefill),
            ratio(*prefill),
            *map(speed, speeds),
            ratio(*reversed(speeds)),
            speed(index.tokens_per_s(length)),
        )
    console.width = max(console.width, 110)
    console.print(table, highlight=False)
    for name, (length, published) in {"memory": PAPER_MEMORY, "prefill": PAPER_PREFILL}.items():
        both = [
            curve.memory_bytes(length) if name == "memory" else curve.prefill_s(length)
            for curve in (transformer, yoco)
        ]
        if length in lengths and all(both):
            console.print(f"{name} at {size(length)}: {ratio(*both)}, in the paper {published}x")


def draw(curves: Sequence[Curve], lengths: Sequence[int], title: str, out: Path) -> None:
    """Draw memory, prefill and decode next to each other."""
    panels: list[tuple[str, Callable[[Curve, int], float | None]]] = [
        ("memory, GB", lambda curve, n: curve.memory_bytes(n) / 1e9),
        ("prefill, seconds", lambda curve, n: curve.prefill_s(n)),
        ("decode, tokens/s", lambda curve, n: curve.tokens_per_s(n)),
    ]
    with pictures.style({"axes.grid.axis": "both"}):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 3.4), layout="constrained")
        for axes, (label, value) in zip(figure.subplots(1, len(panels)), panels, strict=True):
            for curve, color in zip(curves, COLORS, strict=True):
                points = [(n, y) for n in lengths if (y := value(curve, n)) is not None]
                style = {"color": color, "marker": "o", "ms": 3, "label": curve.name}
                axes.plot(*zip(*points, strict=True), **style)
            scale = "log" if axes.lines else "linear"  # a log axis needs data
            axes.set(title=label, xscale=scale, yscale=scale)
            axes.set_xticks(lengths, [size(n) for n in lengths])
            axes.minorticks_off()
            axes.tick_params(axis="x", rotation=45)
        figure.axes[0].legend(frameon=False, fontsize=8)
        figure.suptitle(title, fontsize=9, x=0.01, ha="left")
        pictures.save(figure, out, dpi=150)


def ratio(a: float | None, b: float | None) -> str:
    return "" if a is None or b is None else f"{a / b:.1f}x"


def size(length: int) -> str:
    """Write a number of tokens as 64K or 1M if it is a multiple."""
    for unit, name in ((1 << 20, "M"), (1 << 10, "K")):
        if length % unit == 0:
            return f"{length // unit}{name}"
    return f"{length}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def speed(tokens_per_s: float | None) -> str:
    return "" if tokens_per_s is None else f"{tokens_per_s:.3g}"


if __name__ == "__main__":
    main()
