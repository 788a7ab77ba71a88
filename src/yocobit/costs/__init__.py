"""The cost model: memory, memory traffic and multiply-adds of a model, counted, not measured."""

from yocobit.costs.summary import Summary, describe, summarize
from yocobit.costs.traffic import (
    decode_bytes,
    multiply_adds,
    session_bytes,
    session_memory_bytes,
    weight_bytes,
)

__all__ = [
    "Summary",
    "decode_bytes",
    "describe",
    "multiply_adds",
    "session_bytes",
    "session_memory_bytes",
    "summarize",
    "weight_bytes",
]
