"""Perplexity per token and bits per byte, document by document.

A document is read from the token that begins one; each of its tokens is predicted once, the end
after it is not. One that is longer than the context is read in windows: the first scores all its
tokens, each later one is moved by half a context and scores that half. So a token of a long
document is predicted from at least half a context, memory and the cost of a token do not grow
with its document, and a model is not judged at lengths that it was not trained for.

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
    """What some documents cost a model."""

    n_documents: int
    n_tokens: int
    n_bytes: int
    nats: float  # -log p of all tokens

    @property
    def perplexity(self) -> float:
        """Per token: comparable between models of one tokenizer only."""
        return math.exp(self.nats / self.n_tokens)

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers, and with what a compressor needs."""
        return self.nats / math.log(2) / self.n_bytes

    def describe(self) -> list[str]:
        """Return the results as lines for people."""
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
    """Score documents, of which no window is longer than `context` tokens.

    ConfigError if they have no token at all.
    """
    if context < 2:
        raise ConfigError(f"context must be at least 2 tokens but is {context}")
    n_documents = n_tokens = n_bytes = 0
    nats = []
    for document in documents:
        tokens = [scorer.begin, *scorer.encode(document)]
        for window, n_seen in windows(tokens, context):
            nats.append(math.fsum(scorer.nats(window, n_seen)))
        n_documents += 1
        n_tokens += len(tokens) - 1
        n_bytes += len(document.encode())
    if n_tokens == 0:
        raise ConfigError("documents must hold text but there is none in them")
    return Perplexity(n_documents, n_tokens, n_bytes, math.fsum(nats))


def windows(tokens: Sequence[int], context: int) -> Iterator[tuple[Sequence[int], int]]:
    """Split tokens (T,) into windows, each with the number of its tokens that are not scored.

    All tokens but the first are scored once. A window has a token more than `context`, since its
    last one is only predicted.
    """
    end = min(len(tokens), context + 1)
    yield tokens[:end], 1
    while end < len(tokens):
        next_end = min(end + context // 2, len(tokens))
        begin = next_end - context - 1
        yield tokens[begin:next_end], end - begin
        end = next_end
