"""Samples of the PyTorch model during training; the engine generates for users."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer

from yocobit.data.tokenizer import end_token
from yocobit.model import Cache, Decoder
from yocobit.text import TextEncoder
from yocobit.text.detokenizer import continuation


@torch.no_grad()
def sample(
    model: Decoder,
    tokenizer: Tokenizer,
    prompt: str,
    n_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> str:
    """Return up to `n_tokens` tokens of text after the prompt; temperature 0 is greedy."""
    generator = torch.Generator().manual_seed(seed)
    end = end_token(tokenizer)
    # A document starts after the end token of the previous one.
    tokens = start = [end, *TextEncoder(tokenizer).encode(prompt)]
    cache = Cache()
    generated: list[int] = []
    while len(generated) < n_tokens:
        logits = model.step(torch.tensor([tokens]), cache)[0, -1]  # (V,)
        if not logits.isfinite().all():
            break  # the run diverges: there is no distribution to sample from
        if temperature > 0:
            weights = (logits / temperature).softmax(dim=-1)
            token = int(torch.multinomial(weights, 1, generator=generator))
        else:
            token = int(logits.argmax())
        if token == end:
            break
        generated.append(token)
        tokens = [token]
    return continuation(tokenizer, start, generated)
