"""Benchmarks: prefill and decode speed, compared with the limits of this host. No torch."""

from yocobit.benchmark.grid import Grid
from yocobit.benchmark.measure import Report, run
from yocobit.benchmark.random_model import open_model
from yocobit.benchmark.report import print_report, to_dict
from yocobit.benchmark.shapes import named_shape
from yocobit.renamed import aliases

__all__ = [
    "Grid",
    "Report",
    "named_shape",
    "open_model",
    "print_report",
    "run",
    "to_dict",
]

__getattr__ = aliases(
    __name__,
    {"BenchmarkError": "yocobit.errors:UserError", "Plan": "yocobit.benchmark.grid:Grid"},
)
