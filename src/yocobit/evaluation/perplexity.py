"""Perplexity per token and bits per byte, document by document.

A BOS token precedes each document. Each token of a document is predicted once; its end is not
predicted. A document longer than the context is scored in windows with a stride of half a context.
The first window scores all its tokens, each later window its second half, so that at least half a
context precedes every token after the first window. Memory and cost per token do not grow with the
document, and the model is never evaluated beyond the context.

Letters: T tokens
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from yocobit.config import ConfigError
from yocobit.evaluation.scorer import Scorer

CONTEXT = 2048


@dataclass(frozen=True)
class Perplexity:
    """The negative log-likelihood of documents."""

    n_documents: int
    n_tokens: int
    n_bytes: int
    nats: float  # -log p of all tokens

    @property
    def perplexity(self) -> float:
        """Perplexity per token; comparable only between models with the same tokenizer."""
        return math.exp(self.nats / self.n_tokens)

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of text; comparable between tokenizers, and with compressors."""
        return self.nats / math.log(2) / self.n_bytes

    def describe(self) -> list[str]:
        """Return the results as lines of text."""
        return [
            f"perplexity     {self.perplexity:.4f} per token",
            f"bits per byte  {self.bits_per_byte:.4f}",
            f"of             {self.n_bytes:,} bytes, {self.n_tokens:,} tokens, "
            f"{self.n_documents:,} documents",
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the results as JSON values."""
        return {
            "documents": self.n_documents,
            "tokens": self.n_tokens,
            "bytes": self.n_bytes,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
        }


def perplexity(scorer: Scorer, documents: Iterable[str], context: int = CONTEXT) -> Perplexity:
    """Score documents in windows of at most `context` tokens.

    Raises ConfigError if the documents have no tokens.
    """
    if context < 2:
        raise ConfigError(f"context must be at least 2 tokens but is {context}")
    n_documents = n_tokens = n_bytes = 0
    nats = []
    for document in documents:
        tokens = [scorer.bos_token, *scorer.encode(document)]
        for window, n_context in windows(tokens, context):
            nats.append(math.fsum(scorer.nats(window, n_context)))
        n_documents += 1
        n_tokens += len(tokens) - 1
        n_bytes += len(document.encode())
    if n_tokens == 0:
        raise ConfigError("documents must hold text but are empty; name files with text")
    return Perplexity(n_documents, n_tokens, n_bytes, math.fsum(nats))


def windows(tokens: Sequence[int], context: int) -> Iterator[tuple[Sequence[int], int]]:
    """Split tokens (T,) into windows, each with its number of leading tokens that are only context.

    All tokens but the first are scored once. A window has up to `context` + 1 tokens:
    its last token is predicted, not an input.
    """
    end = min(len(tokens), context + 1)
    yield tokens[:end], 1
    while end < len(tokens):
        next_end = min(end + context // 2, len(tokens))
        start = next_end - context - 1
        yield tokens[start:next_end], end - start
        end = next_end
