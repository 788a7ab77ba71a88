"""What Prometheus sees, under vLLM's names."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest

if TYPE_CHECKING:
    from yocobit.serving.job import Job
    from yocobit.serving.scheduler import Scheduler

_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKEN_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)


class Metrics:
    """Counts of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, help_: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"yocobit:{name}", help_, labels, registry=self.registry)

        def histogram(name: str, help_: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"yocobit:{name}", help_, registry=self.registry, buckets=buckets)

        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts.")
        self.generation_tokens = counter("generation_tokens", "Tokens drawn.")
        self.prefix_queries = counter("prefix_cache_queries", "Prompt tokens looked for.")
        self.prefix_hits = counter("prefix_cache_hits", "Prompt tokens that were known.")
        self.successes = counter("request_success", "Requests answered.", ("finished_reason",))
        self.cancelled = counter("request_cancelled", "Requests whose client went away.")
        self.failures = counter(
            "request_failure", "Requests that failed or were refused.", ("status",)
        )
        self.queue = histogram("request_queue_time_seconds", "Waiting for a place.", _SECONDS)
        self.first_token = histogram("time_to_first_token_seconds", "From arrival.", _SECONDS)
        self.latency = histogram("e2e_request_latency_seconds", "From arrival to end.", _SECONDS)
        self.per_token = histogram(
            "request_time_per_output_token_seconds", "Mean after the first.", _TOKEN_SECONDS
        )
        self.prompt_length = histogram("request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self.answer_length = histogram("request_generation_tokens", "Tokens of answers.", _TOKENS)

    def watch(self, scheduler: Scheduler) -> None:
        """Show what a scheduler is at."""
        self.registry.register(_State(weakref.ref(scheduler)))

    def ended(self, job: Job, reason: str) -> None:
        """Count a job that has ended: "stop", "length", "cancelled", or the status of an error."""
        self.prompt_tokens.inc(len(job.request.prompt) if job.begun_at else 0)
        self.generation_tokens.inc(job.n_drawn)
        if reason == "cancelled":
            self.cancelled.inc()
        elif reason not in ("stop", "length"):
            self.failures.labels(reason).inc()
            return
        else:
            self.successes.labels(reason).inc()
        if not job.begun_at:
            return
        self.prefix_queries.inc(len(job.request.prompt))
        self.prefix_hits.inc(job.n_cached)
        self.queue.observe(job.begun_at - job.queued_at)
        self.latency.observe(job.ended_at - job.queued_at)
        self.prompt_length.observe(len(job.request.prompt))
        self.answer_length.observe(job.n_drawn)
        if job.n_drawn:
            self.first_token.observe(job.read_at - job.queued_at)
        if job.n_drawn > 1:
            self.per_token.observe((job.ended_at - job.read_at) / (job.n_drawn - 1))

    def refused(self, status: int) -> None:
        """Count a request that came to no job."""
        self.failures.labels(str(status)).inc()

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _State:
    """Gauges that are read when they are asked for."""

    def __init__(self, scheduler: weakref.ref[Scheduler]) -> None:
        self._scheduler = scheduler

    def collect(self) -> Iterator[Metric]:
        if (scheduler := self._scheduler()) is None:
            return
        prefixes = scheduler.prefixes
        yield _gauge("num_requests_running", "Requests at work.", len(scheduler.running))
        yield _gauge("num_requests_waiting", "Requests that wait.", scheduler.n_waiting)
        share = scheduler.reserved_bytes / scheduler.cache_bytes
        yield _gauge("kv_cache_usage_perc", "Share of cache bytes reserved, 1 is all.", share)
        yield _gauge("kv_cache_bytes", "Cache bytes reserved.", scheduler.reserved_bytes)
        size = prefixes.size if prefixes else 0
        yield _gauge("prefix_cache_bytes", "Bytes of prefixes in memory.", size)


def _gauge(name: str, help_: str, value: float) -> Metric:
    return GaugeMetricFamily(f"yocobit:{name}", help_, value=value)
