"""Rates of the engine's own kernels on this machine, measured as they are asked for.

Each is measured over as many bytes as go by between two reads of the same byte, so that it is the
rate from the level of memory where the data lies; the loops are in native/kernel_rates.cpp.

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
from yocobit.packing import PackedModel

_MIB = 1 << 20
_PASSES = 25  # of a loop, the median of which counts
_MOST_BYTES = 512 * _MIB  # that are read: more would come from DRAM as these do
_ROUNDS, _STEPS = 10, 40  # of the probe: the fastest round counts, a machine may be busy for some
_PROBE_TOKENS = 128  # that the engine takes in together (native/engine/decoder.h)
_CHOICES = 5  # rounds of a choice of blocks: the fastest counts


@dataclasses.dataclass(frozen=True)
class ProbeTimes:
    """Seconds of the engine on a short model: a decode step, and a prompt of `n_tokens`."""

    step_s: float
    prompt_s: float
    n_tokens: int


class Meter(Protocol):
    """What a prediction is made from."""

    @property
    def threads(self) -> int: ...
    def product(self, stored: str, n: int, m: int, k: int, n_bytes: int) -> float:
        """Return bytes a second of weights M x K that are multiplied with N tokens each."""
        ...

    def attention(self, cache: str, n_queries: int, head_dim: int, n_bytes: int) -> float:
        """Return bytes a second of keys and values."""
        ...

    def retention(self, n: int, head_dim: int, n_bytes: int) -> float:
        """Return bytes a second of states, read and written once for N positions."""
        ...

    def choice(self, model: PackedModel, cache: str, context: int) -> float:
        """Return seconds in which the index of a short model, which need not exist, chooses blocks
        of a context."""
        ...

    def probe(self, model: PackedModel, cache: str, batch: int) -> ProbeTimes:
        """Return the times of a short model, which need not exist."""
        ...


@dataclasses.dataclass
class MachineMeter:
    """A Meter of this machine with a number of threads; a rate or a choice is measured once."""

    threads: int
    kernels: str
    cpus: list[int]
    here: Host
    _rates: dict[tuple[object, ...], float] = dataclasses.field(default_factory=dict)
    _choices: dict[tuple[object, ...], float] = dataclasses.field(default_factory=dict)

    def product(self, stored: str, n: int, m: int, k: int, n_bytes: int) -> float:
        return self._rate(_native.product_bytes_per_s, (stored, n, m, k), n_bytes)

    def attention(self, cache: str, n_queries: int, head_dim: int, n_bytes: int) -> float:
        return self._rate(_native.attention_bytes_per_s, (cache, n_queries, head_dim), n_bytes)

    def retention(self, n: int, head_dim: int, n_bytes: int) -> float:
        return self._rate(_native.retention_bytes_per_s, (n, head_dim), n_bytes)

    def limits(self) -> Limits:
        """Measure what the machine can do at most."""
        return measure_limits(self.threads, self.cpus, self.here.caches)

    def l2_bytes_per_s(self) -> float:
        """Measure reads of half the second-level cache of each thread."""
        return _native.read_bytes_per_s(self._chosen(), self.here.caches.l2_bytes // 2, _PASSES)

    def choice(self, model: PackedModel, cache: str, context: int) -> float:
        key = (model.config, cache, context)
        if key not in self._choices:
            self._choices[key] = self._choice(model, cache, context)
        return self._choices[key]

    def probe(self, model: PackedModel, cache: str, batch: int) -> ProbeTimes:
        with _written(model) as written:
            engine = Engine(written, self.threads, self.kernels)
            tokens = np.arange(_PROBE_TOKENS, dtype=np.int32) % model.config.vocab_size
            steps, prompts = [], []
            for _ in range(_ROUNDS):
                session = engine.session(_PROBE_TOKENS, cast(CacheType, cache))
                prompts.append(_seconds(lambda s=session: s.feed(tokens)))  # type: ignore[misc]
                sessions = [engine.session(_STEPS, cast(CacheType, cache)) for _ in range(batch)]
                steps.append(statistics.median(_step_seconds(engine, sessions)))
        return ProbeTimes(min(steps), min(prompts), _PROBE_TOKENS)

    def _choice(self, model: PackedModel, cache: str, context: int) -> float:
        """Return what a step takes longer than one with full attention to as many positions."""
        positions = model.config.cross_positions
        with _written(model) as written:
            choosing = self._fastest_step(written.attending(f"index:{positions}"), cache, context)
            given = self._fastest_step(written.attending("full"), cache, positions)
        return max(choosing - given, 0.0)

    def _fastest_step(self, model: PackedModel, cache: str, context: int) -> float:
        """Return seconds of a decode step after a context."""
        engine = Engine(model, self.threads, self.kernels)
        session = engine.session(context + _STEPS, cast(CacheType, cache))
        _native.fill(session._native, context - 1)
        begin = session.snapshot()
        steps = []
        for _ in range(_CHOICES):
            steps.append(statistics.median(_step_seconds(engine, [session])))
            session.truncate(begin)
        return min(steps)

    def _rate(self, measure: Callable[..., float], kind: tuple[object, ...], n_bytes: int) -> float:
        available = available_bytes()
        most = _MOST_BYTES if available is None else min(_MOST_BYTES, available // 4)
        size = max(min(n_bytes, most) // self.threads, 1)
        key = (measure.__name__, *kind, size)
        if key not in self._rates:
            self._rates[key] = measure(self.kernels, *kind, self._chosen(), size, _PASSES)
        return self._rates[key]

    def _chosen(self) -> list[int]:
        return [self.cpus[i % len(self.cpus)] for i in range(self.threads)]


@contextlib.contextmanager
def _written(model: PackedModel) -> Iterator[PackedModel]:
    """Give a model of that shape with random weights, gone afterwards."""
    with tempfile.TemporaryDirectory() as directory:
        yield write_random_model(
            model.config,
            Path(directory) / "model",
            model.projection_format.name,
            model.head_format.name,
        )


def _step_seconds(engine: Engine, sessions: list[Session]) -> list[float]:
    """Decode a token of each session as often as they have room; return the time of each step."""
    logits = np.empty((len(sessions), engine.config.vocab_size), dtype=np.float32)
    tokens = np.zeros(len(sessions), dtype=np.int32)
    if len(sessions) == 1:
        return [_seconds(lambda: sessions[0].step(0, logits[0])) for _ in range(_STEPS)]
    return [_seconds(lambda: engine.step(sessions, tokens, logits)) for _ in range(_STEPS)]


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
