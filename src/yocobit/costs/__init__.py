"""The cost model: memory, memory traffic and multiply-adds of a model, counted, not measured."""

from yocobit.costs.summary import Summary, describe, summarize

__all__ = ["Summary", "describe", "summarize"]
