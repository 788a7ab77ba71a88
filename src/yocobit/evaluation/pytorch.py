"""Scoring with the PyTorch model, the reference of the native engine. Needs torch.

Letters: B batch, of 1   T tokens   C model width
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from yocobit.data.tokenizer import end_token, load_tokenizer
from yocobit.evaluation.scorer import CHUNK, Backend, Nats, Scorer
from yocobit.model import Cache
from yocobit.packing.checkpoints import TOKENIZER, find
from yocobit.text import TextEncoder
from yocobit.training.backend import set_threads
from yocobit.training.checkpoint import load_model


class TorchScorer(Scorer):
    """Scores with the weights of a checkpoint, quantised as in training."""

    backend: Backend = "torch"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        set_threads(threads, n_local_processes=1)
        checkpoint = find(path)
        tokenizer = load_tokenizer(checkpoint / TOKENIZER)
        self._encoder = TextEncoder(tokenizer, checkpoint / TOKENIZER, [end_token(tokenizer)])
        self._model = load_model(checkpoint).eval()
        # In training, the EOS token of the previous document precedes each document.
        self.bos_token = end_token(tokenizer)

    def encode(self, text: str) -> list[int]:
        return self._encoder.encode(text)

    def encode_pieces(self, pieces: Iterable[str]) -> Iterator[Sequence[int]]:
        return self._encoder.encode_pieces(pieces)

    @torch.inference_mode()
    def nats(self, tokens: Sequence[int], n_context: int) -> Nats:
        n_scored = len(tokens) - n_context
        if n_scored == 0:
            return np.empty(0)
        ids = torch.tensor(tokens)
        hidden = self._model.extend(ids[None, :-1], Cache(), n_last=n_scored)[0]  # (T, C)
        # In chunks, as the logits of all tokens would be the largest tensor by far.
        losses = [
            F.cross_entropy(self._model.logits(rows), targets, reduction="none")
            for rows, targets in zip(hidden.split(CHUNK), ids[n_context:].split(CHUNK), strict=True)
        ]
        nats: Nats = torch.cat(losses).double().numpy()
        return nats
