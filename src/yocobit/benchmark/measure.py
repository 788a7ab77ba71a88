"""Runs a benchmark grid.

Every round measures the limits and every case once, so that noise of a shared machine affects all
of them. Every case starts from new sessions. A depth is filled with random values instead of a
prefill: attention takes the same time as over real tokens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from yocobit import _native
from yocobit.benchmark.grid import Case, Grid
from yocobit.config import ModelConfig
from yocobit.costs import (
    decode_bytes,
    describe,
    mixer_multiply_adds,
    multiply_adds,
    session_bytes,
    step_weight_bytes,
    summarize,
    weight_bytes,
)
from yocobit.engine import Engine, Session
from yocobit.errors import UserError
from yocobit.hardware.host import (
    Host,
    available_bytes,
    describe_host,
    peak_bytes,
    reset_peak,
    usable_cpus,
)
from yocobit.hardware.limits import Limits, measure_limits
from yocobit.hardware.load import read_cpu_times
from yocobit.packing import PackedModel

_WARM_UP_TOKENS = 32


@dataclasses.dataclass
class CaseResult:
    """A case with a thread count, and its times in every round."""

    case: Case
    threads: int
    n_bytes: int | None  # memory traffic of a repetition; decode only
    multiply_adds: int  # of weight matrices, per repetition
    mixer_multiply_adds: int  # of attention and retention, per repetition
    session_bytes: int  # of all sessions
    fits_last_level: bool  # whether weights and caches fit in the last-level cache
    seconds: list[float] = dataclasses.field(default_factory=list)  # of each repetition
    step_seconds: list[float] = dataclasses.field(default_factory=list)  # of each decode step
    peak_bytes: int = 0

    @property
    def n_tokens(self) -> int:
        """Tokens of a repetition over all sessions."""
        return self.case.n_tokens * self.case.batch

    @property
    def median_s(self) -> float:
        """Median time of a repetition."""
        return statistics.median(self.seconds)

    @property
    def tokens_per_s(self) -> dict[str, float]:
        """Speed: median, min and max over repetitions."""
        rates = [self.n_tokens / seconds for seconds in self.seconds]
        return {"median": self.n_tokens / self.median_s, "min": min(rates), "max": max(rates)}

    @property
    def ms_per_token(self) -> dict[str, float] | None:
        """Percentiles of the decode step time, which is the inter-token latency of each session."""
        return percentiles([1000 * s for s in self.step_seconds]) if self.step_seconds else None


@dataclasses.dataclass(frozen=True)
class Report:
    """The results of a benchmark grid."""

    name: str  # of the model
    config: ModelConfig
    parameters: int
    weight_bytes: int  # read by a decode step of one session
    description: list[str]  # lines about the model
    machine: Host
    kernels: str
    repetitions: int
    limits: dict[int, list[Limits]]  # of every round, by threads; empty if disabled
    rows: list[CaseResult]
    others_share: float | None  # of the CPUs, used by other programs; None if unknown


def run(
    model: PackedModel,
    grid: Grid,
    name: str,
    progress: Callable[[str], object] = lambda text: None,
) -> Report:
    """Measure a grid; UserError, before any measurement, if a case exceeds the available memory."""
    cases = list(grid.cases())
    for case in cases:
        check_memory(model, case, available_bytes())
    machine, cpus = describe_host(), usable_cpus()
    rows = {
        (threads, case): _row(model, case, threads, machine.caches.last_bytes)
        for threads in grid.threads
        for case in cases
    }
    limits: dict[int, list[Limits]] = {}
    started = read_cpu_times(cpus)
    for number in range(grid.repetitions):
        for threads in grid.threads:
            where = f"round {number + 1} of {grid.repetitions}, threads {threads}: "
            if grid.with_limits:
                progress(where + "limits of this host")
                measured = measure_limits(threads, cpus, machine.caches)
                limits.setdefault(threads, []).append(measured)
            progress(where + "warming up")
            engine = Engine(model, threads, grid.kernels)
            _warm_up(engine)
            for case in cases:
                progress(where + case.name)
                _measure(engine, rows[threads, case])
    return Report(
        name=name,
        config=model.config,
        parameters=summarize(model).parameters,
        weight_bytes=step_weight_bytes(model),
        description=describe(model)[:3],
        machine=machine,
        kernels=engine.kernels,
        repetitions=grid.repetitions,
        limits=limits,
        rows=list(rows.values()),
        others_share=started and started.others_share(read_cpu_times(cpus)),
    )


def check_memory(model: PackedModel, case: Case, available: int | None) -> None:
    """Raise UserError if model, sessions and logits of a case exceed the available memory.

    Linux overcommits memory: the allocation would succeed, and the first touch of the pages would
    kill the process.
    """
    logits = 4 * case.batch * model.config.vocab_size
    tokens = 12 * case.batch * case.n_tokens  # and the time of each step
    needed = weight_bytes(model) + _session_bytes(model, case) + logits + tokens
    if available is not None and needed > available:
        raise UserError(_too_large(case, needed, f"{available / 1e9:.1f} GB are available"))


def percentiles(values: list[float]) -> dict[str, float]:
    """Return p50, p90, p99 and max, without interpolation."""
    quantiles = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    found = np.quantile(values, list(quantiles.values()), method="inverted_cdf")
    return dict(zip(quantiles, map(float, found), strict=True))


def _row(model: PackedModel, case: Case, threads: int, last_level_bytes: int) -> CaseResult:
    config, depth, n = model.config, case.depth, case.n_tokens
    n_bytes, n_logits = None, 1
    if case.kind == "decode":
        n_bytes, n_logits = decode_bytes(model, case.cache, depth, n, case.batch), n
    return CaseResult(
        case,
        threads,
        n_bytes,
        case.batch * multiply_adds(config, n, n_logits),
        case.batch * mixer_multiply_adds(config, depth, n, n_logits),
        _session_bytes(model, case),
        weight_bytes(model) + _session_bytes(model, case) <= last_level_bytes,
    )


def _session_bytes(model: PackedModel, case: Case) -> int:
    return case.batch * session_bytes(model.config, case.cache, case.depth + case.n_tokens)


def _measure(engine: Engine, row: CaseResult) -> None:
    """Add one repetition to a result."""
    case = row.case
    rng = np.random.default_rng(len(row.seconds))
    tokens = rng.integers(0, engine.config.vocab_size, (case.n_tokens, case.batch), dtype=np.int32)
    reset_peak()
    sessions = [_session(engine, row) for _ in range(case.batch)]
    with _no_garbage_collection():
        if case.kind == "prefill":
            started = time.perf_counter()
            sessions[0].feed(tokens[:, 0])
            row.seconds.append(time.perf_counter() - started)
        else:
            times = _step_times(engine, sessions, tokens)
            row.seconds.append(times[-1] - times[0])
            row.step_seconds += np.diff(times).tolist()
    row.peak_bytes = max(row.peak_bytes, peak_bytes())


def _step_times(
    engine: Engine, sessions: list[Session], tokens: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Decode tokens (n, B); return the times (n + 1,) at the start and after each step."""
    times = np.empty(len(tokens) + 1)
    logits = np.empty((len(sessions), engine.config.vocab_size), dtype=np.float32)
    only = sessions[0] if len(sessions) == 1 else None
    integers = tokens[:, 0].tolist()
    times[0] = time.perf_counter()
    for i in range(len(tokens)):
        if only is not None:
            only.step(integers[i], logits[0])
        else:
            engine.step(sessions, tokens[i], logits)
        times[i + 1] = time.perf_counter()
    return times


def _session(engine: Engine, row: CaseResult) -> Session:
    """Return a new session, filled to the depth of the case."""
    case = row.case
    try:
        session = engine.session(case.depth + case.n_tokens, case.cache)
    except MemoryError:
        raise UserError(_too_large(case, row.session_bytes, "it cannot be allocated")) from None
    _native.fill(session._native, case.depth)
    return session


def _too_large(case: Case, needed: int, why: str) -> str:
    return (
        f"{case.name} with cache {case.cache} needs {needed / 1e9:.1f} GB of memory but {why}; "
        "choose a smaller --depth or --batch, or another --cache"
    )


def _warm_up(engine: Engine) -> None:
    """Touch every weight page and raise the CPU's clock."""
    tokens = [token % engine.config.vocab_size for token in range(_WARM_UP_TOKENS)]
    session = engine.session(len(tokens) + 2, "f32")
    session.feed(tokens)
    for token in tokens[:2]:
        session.step(token)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
