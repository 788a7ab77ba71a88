"""Running a plan: every round measures the limits and every case once, so that a slow minute of a
shared machine hits all of them.

A case starts from new sessions. Those of a depth are filled with noise, which takes a moment where
a prompt would take minutes and leaves the same work for the tokens after it.
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
from yocobit.benchmark.plan import BenchmarkError, Case, Plan
from yocobit.config import ModelConfig
from yocobit.costs import describe, summarize
from yocobit.costs.traffic import (
    decode_bytes,
    mixer_multiply_adds,
    multiply_adds,
    session_bytes,
    weight_bytes,
)
from yocobit.engine import Engine, Session
from yocobit.hardware.limits import Limits, measure_limits
from yocobit.hardware.machine import (
    Machine,
    available_bytes,
    describe_machine,
    forget_peak,
    peak_bytes,
    usable_cpus,
)
from yocobit.packing import PackedModel

_WARM_UP_TOKENS = 32


@dataclasses.dataclass
class Row:
    """A case with a number of threads, and what every round measured of it."""

    case: Case
    threads: int
    n_bytes: int | None  # that a repetition must touch; decode only
    multiply_adds: int  # with weights, of a repetition
    mixer_multiply_adds: int  # of attention and retention, likewise
    session_bytes: int  # that all its sessions reserve
    fits_last_level: bool  # weights and caches, in the last-level cache
    seconds: list[float] = dataclasses.field(default_factory=list)  # of each repetition
    step_seconds: list[float] = dataclasses.field(default_factory=list)  # of each decode step
    peak_bytes: int = 0

    @property
    def n_tokens(self) -> int:
        """Tokens of a repetition, of all sessions."""
        return self.case.n_tokens * self.case.batch

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    @property
    def tokens_per_s(self) -> dict[str, float]:
        rates = [self.n_tokens / seconds for seconds in self.seconds]
        return {"median": self.n_tokens / self.median_s, "min": min(rates), "max": max(rates)}

    @property
    def ms_per_token(self) -> dict[str, float] | None:
        """Percentiles of the time of a decode step: what every one of its sessions waits."""
        return percentiles([1000 * s for s in self.step_seconds]) if self.step_seconds else None


@dataclasses.dataclass(frozen=True)
class Report:
    """All that a run of a plan found."""

    name: str  # of the model
    config: ModelConfig
    parameters: int
    weight_bytes: int  # that a decode step reads
    description: list[str]  # of the model, lines for people
    machine: Machine
    kernels: str
    repetitions: int
    limits: dict[int, list[Limits]]  # of every round, by threads; empty if not asked for
    rows: list[Row]


def run(
    model: PackedModel,
    plan: Plan,
    name: str,
    progress: Callable[[str], object] = lambda text: None,
) -> Report:
    """Measure a plan; BenchmarkError, before anything is measured, if a case needs more memory
    than there is."""
    cases = list(plan.cases())
    for case in cases:
        check_memory(model, case, available_bytes())
    machine, cpus = describe_machine(), usable_cpus()
    rows = {
        (threads, case): _row(model, case, threads, machine.caches.last_bytes)
        for threads in plan.threads
        for case in cases
    }
    limits: dict[int, list[Limits]] = {}
    for number in range(plan.repetitions):
        for threads in plan.threads:
            where = f"round {number + 1} of {plan.repetitions}, threads {threads}: "
            if plan.with_limits:
                progress(where + "limits of the machine")
                measured = measure_limits(threads, cpus, machine.caches)
                limits.setdefault(threads, []).append(measured)
            progress(where + "warming up")
            engine = Engine(model, threads, plan.kernels)
            _warm_up(engine)
            for case in cases:
                progress(where + case.name)
                _measure(engine, rows[threads, case])
    return Report(
        name=name,
        config=model.config,
        parameters=summarize(model).parameters,
        weight_bytes=weight_bytes(model),
        description=describe(model)[:2],
        machine=machine,
        kernels=engine.kernels,
        repetitions=plan.repetitions,
        limits=limits,
        rows=list(rows.values()),
    )


def check_memory(model: PackedModel, case: Case, available: int | None) -> None:
    """Raise BenchmarkError if model, sessions and logits of a case need more memory than there is.

    The system promises memory that it lacks, and kills whoever uses it.
    """
    logits = 4 * case.batch * model.config.vocab_size
    needed = weight_bytes(model) + _session_bytes(model, case) + logits
    if available is not None and needed > available:
        raise BenchmarkError(_too_large(case, needed, f"{available / 1e9:.1f} GB are available"))


def percentiles(values: list[float]) -> dict[str, float]:
    """Return p50, p90, p99 and max; each is one of the values."""
    quantiles = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    found = np.quantile(values, list(quantiles.values()), method="inverted_cdf")
    return dict(zip(quantiles, map(float, found), strict=True))


def _row(model: PackedModel, case: Case, threads: int, last_level_bytes: int) -> Row:
    config, depth, n = model.config, case.depth, case.n_tokens
    n_bytes, n_logits = None, 1
    if case.kind == "decode":
        n_bytes, n_logits = decode_bytes(model, case.cache, depth, n, case.batch), n
    return Row(
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


def _measure(engine: Engine, row: Row) -> None:
    """Add one repetition to a row."""
    case = row.case
    rng = np.random.default_rng(len(row.seconds))
    tokens = rng.integers(0, engine.config.vocab_size, (case.n_tokens, case.batch), dtype=np.int32)
    forget_peak()
    sessions = [_session(engine, row) for _ in range(case.batch)]
    with _no_garbage_collection():
        if case.kind == "prefill":
            begin = time.perf_counter()
            sessions[0].feed(tokens[:, 0])
            row.seconds.append(time.perf_counter() - begin)
        else:
            times = _step_times(engine, sessions, tokens)
            row.seconds.append(times[-1] - times[0])
            row.step_seconds += np.diff(times).tolist()
    row.peak_bytes = max(row.peak_bytes, peak_bytes())


def _step_times(
    engine: Engine, sessions: list[Session], tokens: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Decode tokens (n, B); return the time (n + 1,) of the begin and after each step."""
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


def _session(engine: Engine, row: Row) -> Session:
    """Return a new session that holds the depth of a case."""
    case = row.case
    try:
        session = engine.session(case.depth + case.n_tokens, case.cache)
    except MemoryError:
        raise BenchmarkError(_too_large(case, row.session_bytes, "the system refuses it")) from None
    _native.fill(session._native, case.depth)
    return session


def _too_large(case: Case, needed: int, why: str) -> str:
    return (
        f"{case.name} with cache {case.cache} needs {needed / 1e9:.1f} GB of memory but {why}; "
        "choose a smaller --depth or --batch, or another --cache"
    )


def _warm_up(engine: Engine) -> None:
    """Touch every weight, and let the CPU's clock rise."""
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
