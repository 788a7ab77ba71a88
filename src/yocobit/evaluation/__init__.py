"""Perplexity and bits per byte, by the native engine or in PyTorch.

`harness` connects lm-evaluation-harness. Importing this package imports neither torch nor
transformers.
"""

from yocobit.evaluation.backends import open_scorer
from yocobit.evaluation.perplexity import CONTEXT, Perplexity, perplexity
from yocobit.evaluation.scorer import Backend, Scorer

__all__ = [
    "CONTEXT",
    "Backend",
    "Perplexity",
    "Scorer",
    "open_scorer",
    "perplexity",
]
