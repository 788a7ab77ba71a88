"""The figure of the YOCO paper (arXiv:2405.05254, figure 1) on this machine: memory, prefill and
decoding by length, of a decoder-decoder beside the Transformer of the same shape.

Both run in the same engine with the same kernels, cache type and random weights; the Transformer
has a cache in every layer where the other has retention states and one shared cache. Sessions of a
length are filled with noise, which leaves the same work for the tokens after it. A prefill of N
tokens would take the Transformer hours where N is large: the time of a chunk of 128 tokens is
measured at each length, and summed up to N, as if it grew in straight lines between them, which it
does: each token attends to one position more.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yocobit import _native
from yocobit.benchmark.plan import BenchmarkError
from yocobit.benchmark.random_model import write_random_model
from yocobit.config import ModelConfig
from yocobit.costs.traffic import session_bytes, weight_bytes
from yocobit.engine import Engine, Session
from yocobit.engine.session import CacheType
from yocobit.hardware.machine import Machine, available_bytes, describe_machine

LENGTHS = (1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 17, 1 << 18, 1 << 19, 1 << 20)
INDEX = "index:2048"
_CHUNK, _STEPS = 128, 8  # tokens of a prefill and of a decoding that are measured


@dataclasses.dataclass
class Curve:
    """A stack by length; a length that has no times needs more memory than there is."""

    name: str
    config: ModelConfig
    weight_bytes: int
    cache: CacheType
    chunk_s: dict[int, list[float]] = dataclasses.field(default_factory=dict)
    step_s: dict[int, list[float]] = dataclasses.field(default_factory=dict)

    def memory_bytes(self, length: int) -> int:
        """Return what the weights and a session of that length take."""
        return self.weight_bytes + session_bytes(self.config, self.cache, length)

    def tokens_per_s(self, length: int) -> float | None:
        """Return how fast text is decoded after so many tokens."""
        steps = self.step_s.get(length)
        return None if steps is None else 1 / statistics.median(steps)

    def prefill_s(self, length: int) -> float | None:
        """Return what the first token after a prompt of that length waits for."""
        depths = [depth for depth in sorted(self.chunk_s) if depth <= length]
        if length not in self.step_s or not depths or depths[-1] != length:
            return None
        rates = [statistics.median(self.chunk_s[depth]) / _CHUNK for depth in depths]
        return float(np.trapezoid(rates, depths)) + statistics.median(self.step_s[length])


@dataclasses.dataclass(frozen=True)
class PaperReport:
    """The curves of both stacks, the Transformer's first, and of the other one with an index."""

    shape: str
    machine: Machine
    kernels: str
    threads: int
    cache: CacheType
    repetitions: int
    lengths: tuple[int, ...]
    curves: list[Curve]

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "machine": self.machine.to_dict(),
            "shape": self.shape,
            "kernels": self.kernels,
            "threads": self.threads,
            "cache": self.cache,
            "repetitions": self.repetitions,
            "curves": [
                {
                    "name": curve.name,
                    "layers": list(curve.config.layers),
                    "points": [
                        {
                            "tokens": length,
                            "memory_bytes": curve.memory_bytes(length),
                            "prefill_s": curve.prefill_s(length),
                            "tokens_per_s": curve.tokens_per_s(length),
                            "chunk_s": curve.chunk_s.get(length),
                            "step_s": curve.step_s.get(length),
                        }
                        for length in self.lengths
                    ],
                }
                for curve in self.curves
            ],
        }


def run_paper(
    shape: str,
    config: ModelConfig,
    *,
    lengths: Sequence[int] = LENGTHS,
    cache: CacheType = "int8",
    threads: int,
    kernels: str | None = None,
    repetitions: int = 3,
    progress: Callable[[str], object] = lambda text: None,
) -> PaperReport:
    """Measure every stack at every length once a round; BenchmarkError if `config` is no YOCO."""
    if not config.has_cross_decoder:
        raise BenchmarkError(f"--paper needs a shape with cross layers but {shape} has none")
    if not lengths or min(lengths) < 1:
        raise BenchmarkError(f"--paper needs lengths of at least 1 but got {list(lengths)}")
    stacks = {
        "Transformer": config.replace(layers=("full",) * len(config.layers)),
        "YOCO": config.attending("full"),
        f"YOCO, {INDEX}": config.attending(INDEX),
    }
    with tempfile.TemporaryDirectory() as directory:
        curves, engines = [], []
        for i, (name, stack) in enumerate(stacks.items()):
            progress(f"making the {name}")
            model = write_random_model(stack, Path(directory) / str(i))
            curves.append(Curve(name, stack, weight_bytes(model), cache))
            engines.append(Engine(model, threads, kernels))
        for number in range(repetitions):
            for length in (0, *sorted(lengths)):
                for curve, engine in zip(curves, engines, strict=True):
                    progress(f"round {number + 1} of {repetitions}: {curve.name} at {length:,}")
                    _measure(engine, curve, length)
        return PaperReport(
            shape=shape,
            machine=describe_machine(),
            kernels=engines[0].kernels,
            threads=threads,
            cache=cache,
            repetitions=repetitions,
            lengths=tuple(sorted(lengths)),
            curves=curves,
        )


def _measure(engine: Engine, curve: Curve, length: int) -> None:
    """Add one repetition to a curve, unless there is no memory for it."""
    room = length + _STEPS + _CHUNK
    available = available_bytes()
    if available is not None and session_bytes(curve.config, curve.cache, room) > available:
        return
    session = engine.session(room, curve.cache)
    _native.fill(session._native, length)
    if length > 0:
        curve.step_s.setdefault(length, []).extend(_step_times(session))
    tokens = np.arange(_CHUNK, dtype=np.int32) % engine.config.vocab_size
    begin = time.perf_counter()
    engine.step([], [], prompts=[(session, tokens)])
    curve.chunk_s.setdefault(length, []).append(time.perf_counter() - begin)


def _step_times(session: Session) -> Iterator[float]:
    out = np.empty(session.feed([0]).shape, dtype=np.float32)
    for token in range(1, _STEPS):
        begin = time.perf_counter()
        session.step(token, out)
        yield time.perf_counter() - begin
