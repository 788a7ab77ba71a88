"""Prometheus metrics, under vLLM's names, without a dependency on the scheduler."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest

_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKEN_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)


@dataclasses.dataclass(frozen=True)
class SchedulerStats:
    """A snapshot of the scheduler."""

    n_running: int
    n_waiting: int
    reserved_bytes: int  # of KV caches and states
    cache_bytes: int  # limit of reserved_bytes
    prefix_bytes: int  # of the prefix cache, in memory
    n_preparing: int = 0  # requests that the scheduler does not have yet


@dataclasses.dataclass(frozen=True)
class RequestStats:
    """A finished request. Times are of one clock; 0 for a stage that was not reached."""

    reason: str  # "stop", "length", "cancelled", or the status of an error
    n_prompt_tokens: int
    n_cached_tokens: int
    n_generated: int
    queued_at: float
    started_at: float
    first_token_at: float
    finished_at: float


class Metrics:
    """Counters, histograms and gauges of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, help_: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"yocobit:{name}", help_, labels, registry=self.registry)

        def histogram(name: str, help_: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"yocobit:{name}", help_, registry=self.registry, buckets=buckets)

        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of started requests.")
        self.generation_tokens = counter("generation_tokens", "Generated tokens.")
        self.prefix_queries = counter(
            "prefix_cache_queries", "Prompt tokens looked up in the prefix cache."
        )
        self.prefix_hits = counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.")
        self.successes = counter(
            "request_success", "Completed requests, by finish reason.", ("finished_reason",)
        )
        self.cancelled = counter("request_cancelled", "Requests cancelled by a disconnect.")
        self.failures = counter(
            "request_failure", "Failed and rejected requests, by HTTP status.", ("status",)
        )
        self.preemptions = counter(
            "num_preemptions", "Preemptions of running requests, whose caches made room for others."
        )
        self.queue = histogram(
            "request_queue_time_seconds", "Time from arrival to the start of prefill.", _SECONDS
        )
        self.first_token = histogram(
            "time_to_first_token_seconds", "Time from arrival to the first token.", _SECONDS
        )
        self.latency = histogram(
            "e2e_request_latency_seconds", "Time from arrival to completion.", _SECONDS
        )
        self.per_token = histogram(
            "request_time_per_output_token_seconds",
            "Mean time per token after the first, by request.",
            _TOKEN_SECONDS,
        )
        self.prompt_length = histogram(
            "request_prompt_tokens", "Prompt tokens per request.", _TOKENS
        )
        self.output_length = histogram(
            "request_generation_tokens", "Generated tokens per request.", _TOKENS
        )

    def watch(self, stats: Callable[[], SchedulerStats]) -> None:
        """Export the gauges of a scheduler, read at each scrape."""
        self.registry.register(_SchedulerGauges(stats))

    def record(self, request: RequestStats) -> None:
        """Count a finished request."""
        self.prompt_tokens.inc(request.n_prompt_tokens if request.started_at else 0)
        self.generation_tokens.inc(request.n_generated)
        if request.reason == "cancelled":
            self.cancelled.inc()
        elif request.reason not in ("stop", "length"):
            self.failures.labels(request.reason).inc()
            return
        else:
            self.successes.labels(request.reason).inc()
        if not request.started_at:
            return
        self.prefix_queries.inc(request.n_prompt_tokens)
        self.prefix_hits.inc(request.n_cached_tokens)
        self.queue.observe(request.started_at - request.queued_at)
        self.latency.observe(request.finished_at - request.queued_at)
        self.prompt_length.observe(request.n_prompt_tokens)
        self.output_length.observe(request.n_generated)
        if request.n_generated:
            self.first_token.observe(request.first_token_at - request.queued_at)
        if request.n_generated > 1:
            decode_s = request.finished_at - request.first_token_at
            self.per_token.observe(decode_s / (request.n_generated - 1))

    def reject(self, status: int) -> None:
        """Count a request that was rejected before it was scheduled."""
        self.failures.labels(str(status)).inc()

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _SchedulerGauges:
    """A Prometheus collector over snapshots of a scheduler."""

    def __init__(self, stats: Callable[[], SchedulerStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        yield _gauge("num_requests_running", "Requests in prefill or decode.", stats.n_running)
        yield _gauge("num_requests_waiting", "Requests in the queue.", stats.n_waiting)
        yield _gauge("num_requests_preparing", "Requests before the queue.", stats.n_preparing)
        usage = stats.reserved_bytes / stats.cache_bytes
        yield _gauge("kv_cache_usage_perc", "Reserved fraction of the KV cache memory.", usage)
        yield _gauge("kv_cache_bytes", "Reserved KV cache bytes.", stats.reserved_bytes)
        yield _gauge("prefix_cache_bytes", "Prefix cache bytes in memory.", stats.prefix_bytes)


def _gauge(name: str, help_: str, value: float) -> Metric:
    return GaugeMetricFamily(f"yocobit:{name}", help_, value=value)
