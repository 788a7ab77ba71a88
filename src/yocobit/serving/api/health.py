"""GET health, metrics: for probes and Prometheus."""

from __future__ import annotations

from yocobit.serving.api.call import Call, Reply


async def health(call: Call) -> Reply:
    state = call.state
    if state.is_draining:
        return Reply({"status": "draining"}, 503)
    if state.problem is not None or (state.runtime and not state.runtime.scheduler.is_alive):
        return Reply({"status": "failed"}, 503)
    if state.runtime and state.runtime.scheduler.is_stuck:
        return Reply({"status": "stuck"}, 503)
    if state.runtime is None:
        return Reply({"status": "loading"}, 503)
    return Reply({"status": "ok"})


async def metrics(call: Call) -> Reply:
    content_type = "text/plain; version=0.0.4; charset=utf-8"
    return Reply(call.state.metrics.text(), content_type=content_type)
