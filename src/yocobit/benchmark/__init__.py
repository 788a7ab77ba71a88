"""How fast a model runs here, beside what the machine can do at most. Never imports torch."""

from yocobit.benchmark.measure import Report, run
from yocobit.benchmark.paper import LENGTHS, PaperReport, run_paper
from yocobit.benchmark.paper_report import print_paper, write_paper_picture
from yocobit.benchmark.plan import BenchmarkError, Plan
from yocobit.benchmark.random_model import open_model
from yocobit.benchmark.report import print_report, to_dict
from yocobit.benchmark.shapes import named_shape

__all__ = [
    "LENGTHS",
    "BenchmarkError",
    "PaperReport",
    "Plan",
    "Report",
    "named_shape",
    "open_model",
    "print_paper",
    "print_report",
    "run",
    "run_paper",
    "to_dict",
    "write_paper_picture",
]
