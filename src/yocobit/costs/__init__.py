"""The cost model: memory, memory traffic and multiply-adds of a model, counted from its shape.

Used by inspect, bench, plan and the server's scheduler.
"""

from yocobit.costs.memory import (
    CACHE_FORMATS,
    committed_bytes,
    session_bytes,
    step_weight_bytes,
    weight_bytes,
)
from yocobit.costs.summary import Summary, describe, folded, rounded, summarize
from yocobit.costs.traffic import decode_bytes, mixer_multiply_adds, multiply_adds

__all__ = [
    "CACHE_FORMATS",
    "Summary",
    "committed_bytes",
    "decode_bytes",
    "describe",
    "folded",
    "mixer_multiply_adds",
    "multiply_adds",
    "rounded",
    "session_bytes",
    "step_weight_bytes",
    "summarize",
    "weight_bytes",
]
