"""Perplexity per token and bits per byte, document by document.

A BOS token precedes each document. Each token of a document is predicted once; its end is not
predicted. A document longer than the context is scored in windows with a stride of half a context.
The first window scores all its tokens, each later window its second half, so that at least half a
context precedes every token after the first window. A document is read and tokenised piece by
piece: memory and cost per token do not grow with it, and the model is never evaluated beyond the
context.

Letters: T tokens
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from yocobit.config import ConfigError
from yocobit.evaluation.scorer import Scorer

CONTEXT = 2048
_MAX_CONTEXT = 1 << 24


@dataclass(frozen=True)
class Perplexity:
    """The negative log-likelihood of documents."""

    n_documents: int
    n_tokens: int
    n_bytes: int
    nats: float  # -log p of all tokens

    @property
    def perplexity(self) -> float:
        """Perplexity per token; comparable only between models with the same tokenizer.

        Infinite if a float cannot represent it.
        """
        try:
            return math.exp(self.nats / self.n_tokens)
        except OverflowError:
            return math.inf

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
        """Return the results as JSON values; None for an infinite perplexity."""
        return {
            "documents": self.n_documents,
            "tokens": self.n_tokens,
            "bytes": self.n_bytes,
            "perplexity": self.perplexity if math.isfinite(self.perplexity) else None,
            "bits_per_byte": self.bits_per_byte,
        }


def perplexity(
    scorer: Scorer,
    documents: Iterable[str | Iterable[str]],
    context: int = CONTEXT,
    progress: Callable[[int], object] | None = None,
) -> Perplexity:
    """Score documents, each a text or its pieces in order, in windows of at most `context` tokens.

    `progress` receives the bytes of text that were scored, approximately. Raises ConfigError if the
    documents have no tokens or the model's logits are not finite.
    """
    if not 2 <= context <= _MAX_CONTEXT:
        rule = f"at most {_MAX_CONTEXT:,}" if context > 2 else "at least 2"
        raise ConfigError(f"context must be {rule} tokens but is {context}")
    scored: list[Perplexity] = []
    n_before = 0  # bytes of the documents before this one

    def report(n_bytes: int) -> None:
        if progress is not None:
            progress(n_before + n_bytes)

    for document in documents:
        pieces = [document] if isinstance(document, str) else document
        scored.append(_score(scorer, pieces, context, report))
        n_before += scored[-1].n_bytes
    n_tokens = sum(each.n_tokens for each in scored)
    if n_tokens == 0:
        raise ConfigError("documents must hold text but are empty; name files with text")
    n_bytes, nats = sum(each.n_bytes for each in scored), math.fsum(each.nats for each in scored)
    return Perplexity(len(scored), n_tokens, n_bytes, nats)


def _score(
    scorer: Scorer,
    pieces: Iterable[str],
    context: int,
    report: Callable[[int], object],
) -> Perplexity:
    """Score a document."""
    n_tokens = n_bytes = n_encoded = 0
    nats = []

    def counted() -> Iterator[str]:
        nonlocal n_bytes
        for piece in pieces:
            n_bytes += len(piece.encode())
            yield piece

    def encoded() -> Iterator[Sequence[int]]:
        nonlocal n_encoded
        for tokens in scorer.encode_pieces(counted()):
            n_encoded += len(tokens)
            yield tokens

    tokens = chain([scorer.bos_token], chain.from_iterable(encoded()))
    for window, n_context in windows(tokens, context):
        nats.append(math.fsum(scorer.nats(window, n_context)))
        n_tokens += len(window) - n_context
        report(n_bytes * n_tokens // max(n_encoded, 1))
        if not math.isfinite(nats[-1]):
            raise ConfigError(
                f"model: its logits must be finite but -log p is {nats[-1]}; the weights are "
                "damaged, or the training diverged"
            )
    return Perplexity(1, n_tokens, n_bytes, math.fsum(nats))


def windows(tokens: Iterable[int], context: int) -> Iterator[tuple[Sequence[int], int]]:
    """Split tokens (T,) into windows, each with its number of leading tokens that are only context.

    All tokens but the first are scored once. A window has up to `context` + 1 tokens, the last of
    which is only predicted.
    """
    tokens = iter(tokens)
    window = list(islice(tokens, context + 1))
    yield window, 1
    while scored := list(islice(tokens, context // 2)):
        window = [*window, *scored][-(context + 1) :]
        yield window, len(window) - len(scored)
