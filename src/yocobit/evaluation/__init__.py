"""How well a model predicts text: perplexity and bits per byte, native or in PyTorch.

`harness` connects lm-evaluation-harness. Importing this package imports neither torch nor
transformers.
"""

from yocobit.evaluation.perplexity import CONTEXT, Perplexity, perplexity
from yocobit.evaluation.scorer import Backend, Scorer, open_scorer

__all__ = [
    "CONTEXT",
    "Backend",
    "Perplexity",
    "Scorer",
    "open_scorer",
    "perplexity",
]
