"""Calibration: rates of the engine's kernels on this host, measured on demand.

Each kernel is timed over a buffer of the data's reuse distance, so that it reads from the memory
level that will hold the data. The loops are native.

Letters: C d_model   N tokens   M output features   K input features   D head size
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from yocobit import _native
from yocobit.benchmark.random_model import write_random_model
from yocobit.engine import Engine, Session
from yocobit.engine.session import CacheType
from yocobit.hardware.host import Host, available_bytes
from yocobit.hardware.limits import Limits, measure_limits
from yocobit.mixers import FEED_FORWARDS
from yocobit.packing import PackedModel

_MIB = 1 << 20
_PASSES = 25  # per measurement; the median counts
_MOST_BYTES = 512 * _MIB  # per buffer; larger buffers are read at the same rate, from DRAM
_ROUNDS, _STEPS = 10, 40  # of the shallow model; the fastest round counts, as noise only adds time
_SELECTIONS = 5  # rounds of a block selection; the fastest counts


@dataclasses.dataclass(frozen=True)
class ShallowTimes:
    """Times of the engine on a shallow model: a decode step, and a prefill of `n_tokens`."""

    step_s: float
    prompt_s: float
    n_tokens: int


class Calibration(Protocol):
    """The measurements that a prediction needs."""

    @property
    def threads(self) -> int: ...
    def gemm(self, format: str, n: int, m: int, k: int, n_bytes: int) -> float:
        """Return weight bytes per second of a GEMM of M x K weights with N tokens."""
        ...

    def attention(self, cache: str, n_queries: int, head_dim: int, n_bytes: int) -> float:
        """Return KV cache bytes per second of attention."""
        ...

    def retention(self, n: int, head_dim: int, n_bytes: int) -> float:
        """Return bytes of state per second of retention, read and written once per N positions."""
        ...

    def selection(self, model: PackedModel, cache: str, context: int) -> float:
        """Return the seconds of block selection by the index of a shape-only model."""
        ...

    def shallow_times(self, model: PackedModel, cache: str, batch: int) -> ShallowTimes:
        """Return the step and prefill times of a shape-only model."""
        ...


@dataclasses.dataclass
class HostCalibration:
    """Calibration of this host with a number of threads; every measurement is cached."""

    threads: int
    kernels: str
    cpus: list[int]
    here: Host
    _rates: dict[tuple[object, ...], float] = dataclasses.field(default_factory=dict)
    _selections: dict[tuple[object, ...], float] = dataclasses.field(default_factory=dict)

    def gemm(self, format: str, n: int, m: int, k: int, n_bytes: int) -> float:
        return self._rate(_native.gemm_bytes_per_s, (format, n, m, k), n_bytes)

    def attention(self, cache: str, n_queries: int, head_dim: int, n_bytes: int) -> float:
        return self._rate(_native.attention_bytes_per_s, (cache, n_queries, head_dim), n_bytes)

    def retention(self, n: int, head_dim: int, n_bytes: int) -> float:
        return self._rate(_native.retention_bytes_per_s, (n, head_dim), n_bytes)

    def limits(self) -> Limits:
        """Measure the limits of this host."""
        return measure_limits(self.threads, self.cpus, self.here.caches)

    def l2_bytes_per_s(self) -> float:
        """Measure the read bandwidth of the L2 caches, over half of each."""
        return _native.read_bytes_per_s(
            self._pinned_cpus(), self.here.caches.l2_bytes // 2, _PASSES
        )

    def selection(self, model: PackedModel, cache: str, context: int) -> float:
        key = (model.config, cache, context)
        if key not in self._selections:
            self._selections[key] = self._selection(model, cache, context)
        return self._selections[key]

    def shallow_times(self, model: PackedModel, cache: str, batch: int) -> ShallowTimes:
        with _written(model) as written:
            engine = Engine(written, self.threads, self.kernels)
            n_tokens = FEED_FORWARDS[model.config.ffn].max_batch_tokens
            tokens = np.arange(n_tokens, dtype=np.int32) % model.config.vocab_size
            steps, prompts = [], []
            for _ in range(_ROUNDS):
                session = engine.session(n_tokens, cast(CacheType, cache))
                prompts.append(_seconds(lambda s=session: s.feed(tokens)))  # type: ignore[misc]
                sessions = [engine.session(_STEPS, cast(CacheType, cache)) for _ in range(batch)]
                steps.append(statistics.median(_step_seconds(engine, sessions)))
        return ShallowTimes(min(steps), min(prompts), n_tokens)

    def _selection(self, model: PackedModel, cache: str, context: int) -> float:
        """Return the time of block selection in a step.

        It is the difference to a step that attends to as many positions without a selection.
        """
        positions = model.config.cross_positions
        with _written(model) as written:
            selecting = self._fastest_step(written, cache, context)
            full = written.attending("full")
            attending = self._fastest_step(full, cache, positions - _STEPS)
        return max(selecting - attending, 0.0)

    def _fastest_step(self, model: PackedModel, cache: str, context: int) -> float:
        """Return the seconds of a decode step at the end of a context."""
        engine = Engine(model, self.threads, self.kernels)
        session = engine.session(context + _STEPS, cast(CacheType, cache))
        _native.fill(session._native, context - 1)
        start = session.snapshot()
        steps = []
        for _ in range(_SELECTIONS):
            steps.append(statistics.median(_step_seconds(engine, [session])))
            session.truncate(start)
        return min(steps)

    def _rate(self, measure: Callable[..., float], kind: tuple[object, ...], n_bytes: int) -> float:
        available = available_bytes()
        most = _MOST_BYTES if available is None else min(_MOST_BYTES, available // 4)
        size = max(min(n_bytes, most) // self.threads, 1)
        key = (measure.__name__, *kind, size)
        if key not in self._rates:
            self._rates[key] = measure(self.kernels, *kind, self._pinned_cpus(), size, _PASSES)
        return self._rates[key]

    def _pinned_cpus(self) -> list[int]:
        return [self.cpus[i % len(self.cpus)] for i in range(self.threads)]


@contextlib.contextmanager
def _written(model: PackedModel) -> Iterator[PackedModel]:
    """Yield a temporary model of that shape with random weights."""
    with tempfile.TemporaryDirectory() as directory:
        yield write_random_model(
            model.config,
            Path(directory) / "model",
            model.projection_format.name,
            model.head_format.name,
        )


def _step_seconds(engine: Engine, sessions: list[Session]) -> list[float]:
    """Decode _STEPS tokens of each session; return the time of each step."""
    logits = np.empty((len(sessions), engine.config.vocab_size), dtype=np.float32)
    tokens = np.zeros(len(sessions), dtype=np.int32)
    if len(sessions) == 1:
        return [_seconds(lambda: sessions[0].step(0, logits[0])) for _ in range(_STEPS)]
    return [_seconds(lambda: engine.step(sessions, tokens, logits)) for _ in range(_STEPS)]


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
