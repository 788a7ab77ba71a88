"""How fast a model runs here, beside what the machine can do at most. Never imports torch."""

from yocobit.benchmark.measure import Report, run
from yocobit.benchmark.plan import BenchmarkError, Plan
from yocobit.benchmark.random_model import open_model
from yocobit.benchmark.report import print_report, to_dict

__all__ = ["BenchmarkError", "Plan", "Report", "open_model", "print_report", "run", "to_dict"]
